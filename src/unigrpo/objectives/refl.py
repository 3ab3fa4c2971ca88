"""ReFL: the gradient of a differentiable reward through one late denoising step and the decoder (spec f.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unigrpo.flow import predict_x0
from unigrpo.objectives.terms import Term, check_rows

PixelReward = Callable[[Tensor, Sequence[str], Sequence[Mapping[str, Any]]], Tensor]
"""(pictures [B, 3, H, W] in [0, 1], prompts, metadata) -> rewards [B], with gradients into the pictures."""


def late_steps(num_points: int, late: float) -> tuple[int, int]:
    """Return [lo, hi): the last share ``late`` of the num_points - 1 steps, at least one.

    The paper says "late" and no more; ImageReward's are the last quarter (spec f.1).
    """
    steps = num_points - 1
    return max(0, min(steps - 1, steps - round(late * steps))), steps


def refl(
    velocities: Sequence[Tensor],
    x: Sequence[Tensor],
    t: Sequence[Tensor],
    prompts: Sequence[str],
    metadata: Sequence[Mapping[str, Any]],
    *,
    decode: Callable[[Tensor], Tensor],
    reward: PixelReward,
) -> Term:
    """Return -R(decode(x - t v)) per picture, [B]: the picture that one step from x would finish (spec f.1).

    Only this forward has a gradient: x at the late step t was reached without one. velocities, x: per picture
    [1, n, d]; t: per picture [1], a time of the sampler's grid. ValueError where the reward gives no gradient or is not
    finite.
    """
    check_rows(velocities=velocities, x=x, t=t, prompts=prompts, metadata=metadata)
    v, at, time = torch.cat(list(velocities)), torch.cat(list(x)), torch.cat(list(t))
    predicted = predict_x0(at.to(v.device), v, time.to(v.device)).to(v.dtype)
    values = reward(decode(predicted), prompts, metadata)
    if values.shape != (len(prompts),):
        raise ValueError(f"the reward gave {list(values.shape)} values for {len(prompts)} pictures: one each is needed")
    finite = torch.isfinite(values.detach())
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise ValueError(f"the reward of {prompts[row]!r} is {float(values[row].detach())}: it must be a finite number")
    if v.requires_grad and not values.requires_grad:
        raise ValueError("the reward gives no gradient for its pictures: ReFL needs a differentiable one")
    return Term(-values.double(), {"refl/reward": values.detach().double()})
