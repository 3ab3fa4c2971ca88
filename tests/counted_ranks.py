"""Bytes of collectives on CPU ranks: ``python counted_ranks.py RANKS CASE...`` prints them as one JSON object.

The ranks of each number are forks of this process, which has done nothing yet but import torch.
"""

import contextlib
import json
import multiprocessing
import socket
import sys
from dataclasses import replace

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from test_scaling import Case, items_of

GATHER = ("all_gather_single", "all_gather_into_tensor", "_all_gather_base")
SCATTER = ("reduce_scatter_single", "reduce_scatter_tensor", "_reduce_scatter_base")
CASES = {
    "flow": Case("flow_grpo"),
    "text": Case("text_grpo"),
    "text fp32": Case("text_grpo", "float32"),
    "text lora": Case("text_grpo", lora=True),
    "text again": Case("text_grpo", again=True),
    "both": Case(),
    "both lora": Case(lora=True),
}


@contextlib.contextmanager
def counting():
    """Bytes that this rank sends, by kind: of a ring, as NCCL and gloo make them of large tensors."""
    sent = {"gather": 0.0, "scatter": 0.0, "reduce": 0.0}
    plain = {name: vars(dist)[name] for name in (*GATHER, *SCATTER, "all_reduce") if name in vars(dist)}

    def counted(name, call):
        kind = "gather" if name in GATHER else "scatter" if name in SCATTER else "reduce"

        def run(*given, **named):
            place = 1 if kind == "scatter" else 0  # the whole: what is gathered into, or reduced
            key = {"gather": ("output_tensor", "output"), "scatter": ("input",), "reduce": ("tensor",)}[kind]
            whole = given[place] if len(given) > place else next(named[k] for k in key if k in named)
            ranks = dist.get_world_size(named.get("group"))
            sent[kind] += (ranks - 1) / ranks * whole.numel() * whole.element_size() * (2 if kind == "reduce" else 1)
            return call(*given, **named)

        return run

    for name, call in plain.items():
        setattr(dist, name, counted(name, call))
    try:
        yield sent
    finally:
        for name, call in plain.items():
            setattr(dist, name, call)


def sharded(case, mesh):
    """A policy whose weights are shared out as runs do it: layer by layer in its dtype, the rest as it is held."""
    policy = case.policy
    dtype = None if policy.compute_dtype == torch.float32 else policy.compute_dtype
    for part, param in [*((layer, dtype) for layer in policy.model.language_model.model.layers), (policy.model, None)]:
        how = MixedPrecisionPolicy(param_dtype=param, reduce_dtype=torch.float32, cast_forward_inputs=False)
        fully_shard(part, mesh=mesh, mp_policy=how, reshard_after_forward=True)
    for door in policy.model.FRONT_DOORS[1:]:
        register_fsdp_forward_method(policy.model, door)
    return policy


def replays(case, mesh):
    """A replay without gradients, and one with its backward passes, apart as the losses are (docs/math.md#joint)."""
    policy, entered = sharded(case, mesh), []
    policy.model.language_model.model.layers[0].register_forward_pre_hook(lambda *_: entered.append(1))
    items = items_of(policy, case)
    with counting() as scored, torch.no_grad():
        policy.replay(items)
    entries = len(entered)
    with counting() as forward:
        answers = policy.replay(items)
    with counting() as backward:
        if case.method != "text_grpo":
            torch.stack([v.square().mean() for a in answers for v in a.velocities]).sum().backward(retain_graph=True)
        if case.method != "flow_grpo":
            torch.cat([a.log_probs for a in answers]).sum().backward()
    return {"entries": entries, "scored": scored, "forward": forward, "backward": backward}


def reduced(case):
    """What ``replicate`` sends in an update: the trained parameters' gradients, summed over all ranks."""
    policy = case.policy
    with counting() as sent:
        flat = torch.cat([p.reshape(-1) for p in policy.model.parameters() if p.requires_grad])
        dist.all_reduce(flat)
    return sent


def rank(number, size, port, answers, names):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=number, world_size=size)
    mesh = init_device_mesh("cpu", (size,))
    found = {name: replays(case, mesh) for name, case in CASES.items() if name in names}
    if size == 4:
        hybrid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
        found["text hsdp"] = replays(CASES["text"], hybrid)
    found["replicate"] = {"update": reduced(CASES["text"]), "update lora": reduced(replace(CASES["both"], lora=True))}
    if number == 0:
        answers.put(found)
    dist.barrier()
    dist.destroy_process_group()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def counted(size, names):
    """The counts of some cases on ``size`` ranks."""
    forks = multiprocessing.get_context("fork")
    answers, port = forks.SimpleQueue(), free_port()
    ranks = [forks.Process(target=rank, args=(number, size, port, answers, names)) for number in range(size)]
    for process in ranks:
        process.start()
    found = answers.get()
    for process in ranks:
        process.join()
    return found


if __name__ == "__main__":
    print(json.dumps(counted(int(sys.argv[1]), sys.argv[2:])))
