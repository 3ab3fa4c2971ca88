"""AdamW with one group per expert, their learning-rate schedule and clipping, and a moving average of the weights.

The moments are fp32, or in 8 bits by bitsandbytes: blockwise codes ``state1`` and ``state2``, each with a map of codes
to numbers and a scale per block; matrices below 4096 numbers keep fp32 moments.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from unigrpo.policy import Policy
from unigrpo.ranges import NotFiniteError, lacking
from unigrpo.recipe import Optimizer as OptimizerConfig
from unigrpo.training.parallel import local, put, whole

EIGHT_BIT = ("adamw_8bit", "paged_adamw_8bit")
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what torch's AdamW keeps of a parameter


class TrainingFault(ValueError):
    """Training met a number it must not learn from (NaN, infinity, a first ratio off 1); the message says which."""


class NotFinite(TrainingFault, NotFiniteError):
    """That number is NaN or infinite."""


def kind_of(expert: str) -> str:
    """The settings of a group of parameters: lr_denoising and eps_denoising of "denoising", else those of reasoning."""
    return "denoising" if expert == "denoising" else "reasoning"


class ExpertOptimizer:
    """One optimizer step at a time over the trained experts; parameters without a gradient stay as they are.

    ``trained`` names the experts that have parameters. ValueError where nothing is trained.
    """

    def __init__(self, policy: Policy, config: OptimizerConfig, iterations: int) -> None:
        self.config, self.iterations, self.steps = config, iterations, 0
        self.parameters = policy.parameter_groups()
        self.trained = tuple(expert for expert, named in self.parameters.items() if named)
        if not self.trained:
            raise ValueError("all weights of the model are frozen, so nothing can be trained: set model.lora.experts")
        rates = {"reasoning": config.lr_reasoning, "denoising": config.lr_denoising}
        epsilons = {"reasoning": config.eps_reasoning, "denoising": config.eps_denoising}
        groups = [
            {
                "params": list(self.parameters[expert].values()),
                "expert": expert,
                "lr": rates[kind_of(expert)],
                "base_lr": rates[kind_of(expert)],
                "eps": epsilons[kind_of(expert)],
            }
            for expert in self.trained
        ]
        self.adam = build_adam(groups, config)

    def set_iteration(self, iteration: int) -> dict[str, float]:
        """Set the learning rates of an iteration; return them by expert (0 for one that is not trained)."""
        factor = schedule(iteration, self.iterations, self.config.warmup, self.config.decay)
        rates: dict[str, float] = dict.fromkeys(self.parameters, 0.0)
        for group in self.adam.param_groups:
            group["lr"] = rates[group["expert"]] = group["base_lr"] * factor
        return rates

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self.adam.zero_grad(set_to_none=True)

    def step(self, learning: Collection[str] = ()) -> dict[str, float]:
        """Clip each expert's gradient to max_grad_norm, step, and return the norms before clipping.

        The norm of an expert without gradients (frozen, or not this method's) is 0. Raises TrainingFault, and leaves
        the weights alone, where a norm is not finite, and where one of the experts in ``learning`` has none: a gradient
        has reached its answers, and must arrive in its weights.
        """
        gradients = {expert: self._gradients(expert) for expert in self.parameters}
        norms = {expert: nn.utils.get_total_norm(list(named.values())) for expert, named in gradients.items()}
        for expert in learning:
            if self.parameters.get(expert) and float(whole(norms[expert])) == 0.0:
                raise TrainingFault(
                    f"the {expert} expert has no gradient, although its answers have one: its weights are cut off from "
                    "the loss (by a head of zeros that no adapter trains, frozen after the optimizer was made, or "
                    "computed with in another way than by the model's front doors); nothing was updated"
                )
        for expert, norm in norms.items():
            if not bool(whole(norm).isfinite()):  # looked at before clipping, which would spread it to every parameter
                worst = [name for name, gradient in gradients[expert].items() if not _finite(gradient)]
                raise NotFinite(
                    f"the gradient of the {expert} parameters is {float(whole(norm))} "
                    f"(first in {worst[0] if worst else 'their norm'}); nothing was updated. "
                    "Lower the learning rate, or look at the rewards of this iteration"
                )
        for expert, norm in norms.items():
            parameters = self.parameters[expert].values()
            nn.utils.clip_grads_with_norm_(parameters, self.config.max_grad_norm, norm, foreach=True)
        self.steps += 1
        self.adam.step()
        return {expert: float(whole(norm)) for expert, norm in norms.items()}

    def _gradients(self, expert: str) -> dict[str, Tensor]:
        return {name: p.grad for name, p in self.parameters[expert].items() if p.grad is not None}

    def state(self) -> dict[str, Tensor]:
        """What Adam keeps (moments, scales, step counts) by parameter name, in tensors that share no memory.

        Moments of weights that are shared out over ranks are so, too.
        """
        out: dict[str, Tensor] = {}
        seen: set[int] = set()
        for name, parameter in self._named():
            for key, value in self.adam.state.get(parameter, {}).items():
                tensor = value if isinstance(value, Tensor) else torch.tensor(value)
                if local(tensor).untyped_storage().data_ptr() in seen:
                    tensor = tensor.clone()  # bitsandbytes has one map for all, which safetensors would refuse
                seen.add(local(tensor).untyped_storage().data_ptr())
                out[f"{name}|{key}"] = tensor
        return out

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state` gave, bit for bit; ValueError for a state of another model or optimizer."""
        for entry, place in self.places(state).items():
            put(place, state[entry])

    def places(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Where each tensor of a state belongs, to be filled; of ``state`` dtypes and shapes are looked at.

        What is no tensor (the step counts of 8-bit optimizers) is put there at once. ValueError as in load_state.
        """
        known, found = dict(self._named()), {}
        split = [(*entry.rsplit("|", 1), value) for entry, value in state.items()]
        for name, _, _ in split:
            if name not in known:
                raise ValueError(f"the optimizer state has an unknown parameter {name!r}: it is of another model")
        if self.config.kind in EIGHT_BIT:
            self._prepare({name for name, _, _ in split})
        for name, key, value in split:
            kept = self.adam.state[known[name]]
            place = kept.get(key) if self.config.kind in EIGHT_BIT else empty_moment(key, known[name])
            if place is None or (isinstance(place, Tensor) and not fits(place, value)):
                raise ValueError(
                    f"the optimizer state of {name!r} has {key!r} ({value.dtype}, shape {tuple(value.shape)}), which "
                    f"optimizer.kind {self.config.kind} does not keep so: it is of another optimizer or model"
                )
            if isinstance(place, Tensor):
                kept[key] = found[f"{name}|{key}"] = place
            else:
                kept[key] = int(value)
        return found

    def _prepare(self, names: set[str]) -> None:
        """Let bitsandbytes make the (empty) states of these parameters, each in the memory it wants."""
        adam: Any = self.adam
        for index, group in enumerate(adam.param_groups):
            for place, (name, parameter) in enumerate(self.parameters[group["expert"]].items()):
                if name in names:
                    adam.init_state(group, parameter, index, place)

    def _named(self) -> Iterable[tuple[str, nn.Parameter]]:
        for named in self.parameters.values():
            yield from named.items()


def _finite(gradient: Tensor) -> bool:
    """Whether this rank sees nothing but finite numbers."""
    return bool(local(gradient).isfinite().all())


def empty_moment(key: str, parameter: nn.Parameter) -> Tensor | None:
    """The place of one of torch's AdamW states: the step count lies on the CPU, the moments beside the parameter."""
    if key not in MOMENTS:
        return None
    return torch.tensor(0.0) if key == "step" else torch.empty_like(parameter, requires_grad=False)


def fits(tensor: Tensor, value: Tensor) -> bool:
    """Whether a value may be copied into a tensor without a change of shape or type."""
    return tensor.shape == value.shape and tensor.dtype == value.dtype


def build_adam(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The AdamW that ``config.kind`` names; ValueError where it needs a package that is not there."""
    if config.kind not in EIGHT_BIT:
        return torch.optim.AdamW(groups, betas=config.betas, weight_decay=config.weight_decay, foreach=True)
    try:
        library: Any = import_module("bitsandbytes")
    except ImportError as error:
        raise lacking(f"optimizer.kind = {config.kind}", "bitsandbytes", "8bit") from error
    kinds = {"adamw_8bit": library.optim.AdamW8bit, "paged_adamw_8bit": library.optim.PagedAdamW8bit}
    return kinds[config.kind](groups, betas=config.betas, weight_decay=config.weight_decay)


def schedule(iteration: int, iterations: int, warmup: int, decay: float) -> float:
    """Linear rise over ``warmup`` iterations, then 1, then linear fall to 0 over the last ``decay`` share."""
    rise = min(1.0, (iteration + 1) / warmup) if warmup else 1.0
    left = (iterations - iteration) / (decay * iterations) if decay else 1.0
    return rise * min(1.0, left)


class MovingAverage:
    """Exponential moving average of the trained weights alone; the memory starts short and grows to ``decay``."""

    def __init__(self, policy: Policy, decay: float) -> None:
        self.decay = decay
        self.parameters = {n: p for named in policy.parameter_groups().values() for n, p in named.items()}
        self.shadow = {n: p.detach().clone() for n, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """shadow <- d shadow + (1 - d) weights, d = min(decay, (1 + step) / (10 + step))."""
        weight = 1.0 - min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.parameters.items():
            local(self.shadow[name]).lerp_(local(parameter), weight)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and average; calling it twice changes nothing."""
        for name, parameter in self.parameters.items():
            kept = parameter.detach().clone()
            parameter.copy_(self.shadow[name])
            self.shadow[name].copy_(kept)
