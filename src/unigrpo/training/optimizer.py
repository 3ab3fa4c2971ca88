"""AdamW with one group per expert, their learning-rate schedule and clipping, and a moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from unigrpo.config import Optimizer as OptimizerConfig
from unigrpo.policy import Policy

EXPERTS = ("reasoning", "denoising")


class TrainingFault(ValueError):
    """Training met a number it must not learn from (NaN, infinity, a first ratio off 1); the message says which."""


def expert_parameters(policy: Policy) -> dict[str, dict[str, nn.Parameter]]:
    """Named parameters of the two experts (design: Words)."""
    return {"reasoning": policy.reasoning_parameters(), "denoising": policy.denoising_parameters()}


class ExpertOptimizer:
    """One optimizer step at a time over both experts; parameters without a gradient stay as they are."""

    def __init__(self, policy: Policy, config: OptimizerConfig, iterations: int) -> None:
        self.config, self.iterations = config, iterations
        self.parameters = expert_parameters(policy)
        rates = {"reasoning": config.lr_reasoning, "denoising": config.lr_denoising}
        epsilons = {"reasoning": config.eps_reasoning, "denoising": config.eps_denoising}
        groups = [
            {"params": list(self.parameters[e].values()), "lr": rates[e], "eps": epsilons[e], "base_lr": rates[e]}
            for e in EXPERTS
        ]
        self.adam = torch.optim.AdamW(groups, betas=config.betas, weight_decay=config.weight_decay, foreach=True)

    def set_iteration(self, iteration: int) -> dict[str, float]:
        """Set the learning rates of an iteration; return them by expert."""
        factor = schedule(iteration, self.iterations, self.config.warmup, self.config.decay)
        for group in self.adam.param_groups:
            group["lr"] = group["base_lr"] * factor
        return {expert: group["lr"] for expert, group in zip(EXPERTS, self.adam.param_groups, strict=True)}

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self.adam.zero_grad(set_to_none=True)

    def step(self) -> dict[str, float]:
        """Clip each expert's gradient to max_grad_norm, step, and return the norms before clipping.

        Raises TrainingFault, and leaves the weights alone, where a norm is not finite.
        """
        gradients = {expert: self._gradients(expert) for expert in EXPERTS}
        norms = {expert: nn.utils.get_total_norm(list(named.values())) for expert, named in gradients.items()}
        for expert, norm in norms.items():
            if not bool(norm.isfinite()):  # looked at before clipping, which would spread it to every parameter
                worst = [name for name, gradient in gradients[expert].items() if not bool(gradient.isfinite().all())]
                raise TrainingFault(
                    f"the gradient of the {expert} parameters is {float(norm)} "
                    f"(first in {worst[0] if worst else 'their norm'}); nothing was updated. "
                    "Lower the learning rate, or look at the rewards of this iteration"
                )
        for expert, norm in norms.items():
            parameters = self.parameters[expert].values()
            nn.utils.clip_grads_with_norm_(parameters, self.config.max_grad_norm, norm, foreach=True)
        self.adam.step()
        return {expert: float(norm) for expert, norm in norms.items()}

    def _gradients(self, expert: str) -> dict[str, Tensor]:
        return {name: p.grad for name, p in self.parameters[expert].items() if p.grad is not None}

    def state(self) -> dict[str, Tensor]:
        """Adam's moments and step counts by parameter name, as flat tensors."""
        out: dict[str, Tensor] = {}
        for name, parameter in self._named():
            for key, value in self.adam.state.get(parameter, {}).items():
                out[f"{name}|{key}"] = value
        return out

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state` gave."""
        known = dict(self._named())
        for entry, value in state.items():
            name, key = entry.rsplit("|", 1)
            if name not in known:
                raise ValueError(f"the optimizer state has an unknown parameter {name!r}: it is of another model")
            self.adam.state[known[name]][key] = value.clone() if key == "step" else value.to(known[name].device).clone()

    def _named(self) -> Iterable[tuple[str, nn.Parameter]]:
        for expert in EXPERTS:
            yield from self.parameters[expert].items()


def schedule(iteration: int, iterations: int, warmup: int, decay: float) -> float:
    """Linear rise over ``warmup`` iterations, then 1, then linear fall to 0 over the last ``decay`` share."""
    rise = min(1.0, (iteration + 1) / warmup) if warmup else 1.0
    left = (iterations - iteration) / (decay * iterations) if decay else 1.0
    return rise * min(1.0, left)


class MovingAverage:
    """Exponential moving average of the trained weights; the memory starts short and grows to ``decay``."""

    def __init__(self, policy: Policy, decay: float) -> None:
        self.decay = decay
        self.parameters = {n: p for n, p in policy.module.named_parameters() if p.requires_grad}
        self.shadow = {n: p.detach().clone() for n, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """shadow <- d shadow + (1 - d) weights, d = min(decay, (1 + step) / (10 + step))."""
        weight = 1.0 - min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.parameters.items():
            self.shadow[name].lerp_(parameter, weight)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and average; calling it twice changes nothing."""
        for name, parameter in self.parameters.items():
            kept = parameter.detach().clone()
            parameter.copy_(self.shadow[name])
            self.shadow[name].copy_(kept)
