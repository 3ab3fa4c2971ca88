"""Weights that are shared out over the ranks (FSDP2), and what samples are drawn with then (docs/ranks.md).

Every rank enters each sharded part equally often: a collective waits behind every door. In replays the number of
micro-batches is agreed beforehand (``replay.Ranks``), and a forward enters each layer once, recomputation included.
Samples are drawn with a whole copy of the weights (:class:`Replica`), or in :class:`Lockstep`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from unigrpo import doing, memory
from unigrpo.policy import Policy
from unigrpo.recipe import Parallel
from unigrpo.training.full_memory import REFRESH
from unigrpo.training.parallel import OtherRank, World, put, whole


@cache
def mesh_of(world: World, device: torch.device, replicas: int) -> DeviceMesh:
    """All ranks in a row, or (HSDP) ``replicas`` rows, each of which holds all weights."""
    if replicas == 1:
        return init_device_mesh(device.type, (world.size,), mesh_dim_names=("shard",))
    shape = (replicas, world.size // replicas)
    return init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))


def shard(policy: Policy, mesh: DeviceMesh, config: Parallel) -> None:
    """Share a policy's weights out, layer by layer, in place; adapters must be there already.

    Shares stay in the dtype that weights are held in (fp32 where they are trained); layers compute in the policy's
    dtype, everything else as in one process; gradients are summed in fp32, not averaged: losses are divided by the
    trajectories of all ranks. The root is resharded after every forward, else the next one would see its old weights.
    """
    # it warns of changing an answer in place, which would lose its gradient: nothing here does (tests/rank_traps.py)
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    dtype = None if policy.compute_dtype == torch.float32 else policy.compute_dtype
    common: dict[str, Any] = {
        "mesh": mesh,
        "reshard_after_forward": True,
        "offload_policy": CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda")
        if config.cpu_offload
        else OffloadPolicy(),
    }
    for layer in policy.sharded_layers():
        layered = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        fully_shard(layer, mp_policy=layered, **common)
    root = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    fully_shard(policy.module, mp_policy=root, **common)
    for part in policy.module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    for door in policy.front_doors():
        if door != "forward":
            register_fsdp_forward_method(policy.module, door)
    policy.module.register_state_dict_post_hook(_as_gathered)


# Files: a model is saved and read whole


_WHOLE: dict[nn.Module, dict[str, Tensor]] = {}


def _as_gathered(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Inside of :func:`gathered` a sharded module's state dict is of whole tensors."""
    for name, tensor in _WHOLE.get(module, {}).items():
        if f"{prefix}{name}" in state:
            state[f"{prefix}{name}"] = tensor


@contextmanager
def gathered(module: nn.Module, world: World, *, read: bool = False) -> Iterator[None]:
    """Inside, ``module.state_dict()`` is of whole tensors on the CPU: on rank 0, with ``read`` on all ranks.

    With ``read`` what was written into them is shared out again at the end. Of a module with adapters only these are
    whole. All ranks enter together.
    """
    named = {name: tensor for name, tensor in module.state_dict().items() if isinstance(tensor, DTensor)}
    if any(".lora_" in name for name in named):
        named = {name: tensor for name, tensor in named.items() if ".lora_" in name}
    whole: dict[str, Tensor] = {}
    for name, tensor in named.items():
        full = tensor.full_tensor()
        if read or world.first:
            whole[name] = full.cpu()
    _WHOLE[module] = whole
    try:
        yield
        if read:
            with torch.no_grad():
                for name, tensor in named.items():
                    put(tensor, whole[name])
    finally:
        del _WHOLE[module]


# What samples are drawn with


@dataclass
class Replica:
    """A whole copy of the weights on every rank, made new before anything is drawn, so that no draw waits for another.

    ``copy``: the same model, not shared out; beside a GPU it is parked in the CPU's memory when it is not used. Its
    layers are held in the dtype that they compute in, which is what a replay gathers (:func:`shard`): half the memory,
    and the same numbers. Refreshed weights are rounded before they are gathered: half the bytes.
    """

    policy: Policy
    copy: Policy

    def __post_init__(self) -> None:
        for layer in self.copy.sharded_layers():
            layer.to(self.copy.compute_dtype)

    @contextmanager
    def __call__(self, policy: Policy) -> Iterator[Policy]:
        """The copy, with the weights of now."""
        device = next(self.policy.module.parameters()).device
        with memory.phase(REFRESH):
            self.copy.module.to(device)
            self._refresh()
        try:
            yield self.copy
        finally:
            if device.type == "cuda":
                self.copy.module.to("cpu")

    @torch.no_grad()
    def _refresh(self) -> None:
        places = dict(self.copy.module.named_parameters())
        for name, parameter in self.trained.items():
            places[name].copy_(whole(parameter.detach().to(places[name].dtype)))

    @property
    def trained(self) -> Mapping[str, nn.Parameter]:
        """The weights that change."""
        return {name: p for named in self.policy.parameter_groups().values() for name, p in named.items()}


IDLE, HEAD, FORWARD, FAILED = 0, 1, 2, 3
"""What a rank wants to do next: nothing any more, a head, a forward; or it has failed."""


class Lockstep:
    """Drawing with weights that are shared out: no rank enters a door alone.

    Before every door the ranks agree on the largest of what they want. Whoever wants something else, or is finished,
    gathers the same weights for nothing, computes nothing, and asks again.
    """

    def __init__(self, policy: Policy, world: World) -> None:
        self.policy, self.world, self.on = policy, world, False
        self.layers = [layer for layer in policy.sharded_layers() if isinstance(layer, FSDPModule)]
        module = policy.module
        assert isinstance(module, FSDPModule)
        self.root = module
        # before FSDP's own hook
        policy.module.register_forward_pre_hook(lambda module, given: self._turn(FORWARD), prepend=True)
        for door in policy.front_doors():
            if door != "forward":
                setattr(module, door, self._in_turn(vars(module)[door]))

    def _in_turn(self, head: Callable[..., Any]) -> Callable[..., Any]:
        def taken(*given: Any, **named: Any) -> Any:
            self._turn(HEAD)
            return head(*given, **named)

        return taken

    @contextmanager
    def __call__(self, policy: Policy) -> Iterator[Policy]:
        """The policy itself; at the end a rank goes on gathering until all are finished."""
        self.on = True
        try:
            with doing.breakable(False):
                yield policy
            while (chosen := self._agreed(IDLE)) != IDLE:
                self._idle(chosen)
        except OtherRank:
            raise
        except BaseException:
            self._agreed(FAILED, raising=False)
            raise
        finally:
            self.on = False

    def _turn(self, wanted: int) -> None:
        while self.on and (chosen := self._agreed(wanted)) != wanted:
            self._idle(chosen)

    def _agreed(self, wanted: int, *, raising: bool = True) -> int:
        chosen = self.world.most(wanted)
        if chosen == FAILED and raising:
            raise OtherRank("another rank failed while samples were drawn")
        return chosen

    def _idle(self, kind: int) -> None:
        """Gather what a door gathers, in the same order."""
        self.root.unshard()
        for layer in self.layers if kind == FORWARD else ():
            layer.unshard()
            layer.reshard()
        self.root.reshard()
