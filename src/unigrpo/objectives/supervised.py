"""Supervised fine-tuning: cross-entropy on the thinking, flow matching on the picture (spec f.5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from unigrpo.flow import interpolate
from unigrpo.objectives.terms import Term, check_rows

Times = Literal["logit_normal", "uniform"]


def token_cross_entropy(log_probs: Sequence[Tensor], *, tokens_per_row: float | None = None) -> Term:
    """Return -sum of the target tokens' log-probs over ``tokens_per_row``, per trajectory, [B].

    With tokens_per_row = target tokens / trajectories of the whole minibatch, the mean over its trajectories is the
    mean over all its target tokens, however it is cut into micro-batches; None takes this call for the minibatch.
    log_probs: one 1-D tensor per trajectory; a trajectory without target text is an empty one and gives 0.
    """
    count = sum(row.numel() for row in log_probs)
    per_row = count / len(log_probs) if tokens_per_row is None else tokens_per_row
    if not per_row > 0.0:
        raise ValueError(
            "there is no target token to learn: mark a text as target, or set the cross-entropy weight to 0"
        )
    loss = torch.stack([-row.double().sum() for row in log_probs]) / per_row
    return Term(loss, {"sft/cross_entropy": loss.detach()})


def flow_matching_mse(velocities: Sequence[Tensor], targets: Sequence[Tensor]) -> Term:
    """Return the mean over elements of (v - (eps - x_0))^2 per picture, [B].

    velocities: per picture [K, n, d] at x_t = (1 - t) x_0 + t eps; targets: eps - x_0, same shape.
    """
    check_rows(velocities=velocities, targets=targets)
    rows: list[Tensor] = []
    for row, (v, target) in enumerate(zip(velocities, targets, strict=True)):
        if v.shape != target.shape:
            raise ValueError(f"picture {row}: velocity {list(v.shape)} and target {list(target.shape)} differ in shape")
        rows.append((v.double() - target.double().detach()).square().mean())
    loss = torch.stack(rows)
    return Term(loss, {"sft/flow_matching": loss.detach()})


def sample_times(count: int, shift: float, *, generator: torch.Generator, times: Times = "logit_normal") -> Tensor:
    """Draw training times in [0, 1], then shift them, t <- s t / (1 + (s - 1) t); fp64 [count].

    logit_normal: the sigmoid of a standard normal (BAGEL, spec f.5); uniform: U(0, 1). The draws are stratified, one
    in each count-th of the distribution, so that several noisy copies of a picture cover all times; a single draw is
    plainly from the distribution.
    """
    if not shift > 0.0:
        raise ValueError(f"shift is {shift}: it must be > 0 (1 leaves the times as drawn)")
    fresh = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64)
    u = (torch.arange(count, device=generator.device) + fresh) / count
    if times == "logit_normal":
        u = torch.sigmoid(torch.special.ndtri(u.clamp(1e-12, 1.0 - 1e-12)))
    elif times != "uniform":
        raise ValueError(f"times is {times!r}: known distributions are logit_normal, uniform")
    return shift * u / (1.0 + (shift - 1.0) * u)


def noised(x0: Tensor, times: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return x_t [K, n, d] of one picture x0 [n, d] at K times with fresh noise, and the targets eps - x_0; fp32."""
    clean = x0.float().expand(len(times), *x0.shape)
    noise = torch.randn(clean.shape, generator=generator, device=generator.device).to(x0.device)
    return interpolate(clean, noise, times.to(x0.device)).float(), noise - clean
