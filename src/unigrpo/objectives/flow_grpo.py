"""Flow GRPO: the clipped surrogate on the SDE steps of a picture, with RatioNorm (paper eq. 4-6)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from unigrpo import flow
from unigrpo.objectives.terms import Term, check_rows, clipped_surrogate
from unigrpo.trajectory import FlowPath

GradReweight = Literal["none", "inv_dt", "inv_dt_norm"]
_AUTO_CLIP = 5.12e-4  # 1e-6 sqrt(262144): the paper's 1e-6 at 1024 x 1024 (spec b.6)


def resolve_clip_range(clip_range: float | str, num_elements: int) -> float:
    """Return the clip range, where "auto" is 5.12e-4 / sqrt(D), the paper's 1e-6 carried over to D elements.

    log r~ has the standard deviation rms(mean - mean_old) / sqrt(D), so that is the range which clips the same change
    of the velocities at every resolution (spec b.6). Raises ValueError on anything else that is not a number > 0.
    """
    if isinstance(clip_range, str):
        if clip_range != "auto":
            raise ValueError(f"flow clip_range is {clip_range!r}: give a number or 'auto'")
        return _AUTO_CLIP / math.sqrt(num_elements)
    return clip_range


def flow_grpo(
    velocities: Sequence[Tensor],
    paths: Sequence[FlowPath],
    advantages: Tensor,
    *,
    clip_range: float | Literal["auto"] = "auto",
    ratio_norm: bool = True,
    grad_reweight: GradReweight = "none",
) -> Term:
    """Return -J_Flow per picture, without the regulariser, [B] (paper eq. 6, spec b.5-b.7).

    J_i = mean over the K SDE steps of min(r A_i, clip(r, 1 - eps, 1 + eps) A_i); log r is RatioNorm's (paper eq. 5) or,
    with ``ratio_norm=False``, the raw log-ratio of the means over elements (paper eq. 4).

    velocities: per picture [K, n, d], at the stored x and t; paths: what the sampler saw; advantages: [B].
    ``grad_reweight`` multiplies each step by 1/h ("inv_dt", the official GRPO-Guard script) or by that over its mean in
    the window ("inv_dt_norm"); the paper does neither (spec b.5).
    The statistic "flow/rounding_max" is how many times the rounding of a velocity grows on its way into log r.
    Raises ValueError where pictures of one call differ in size, steps, noise level, kind or grid.
    """
    check_rows(velocities=velocities, paths=paths, advantages=advantages)
    joined, shape = join_paths(paths), (len(paths), -1)
    mean, std = replay_transition(velocities, joined)
    # fp64 throughout; the old log-prob is taken again, since the stored one is fp32: 6e-8 of rounding
    x_next, mean, mean_old, std = (u.double() for u in (joined.x_next, mean, joined.mean, std))
    if ratio_norm:
        log_ratio = flow.log_ratio_norm(x_next, mean, mean_old, std).reshape(shape)
    else:
        log_ratio = (flow.log_prob(x_next, mean, std) - flow.log_prob(x_next, mean_old, std)).reshape(shape)
    clip = resolve_clip_range(clip_range, joined.x[0].numel())
    surrogate = clipped_surrogate(log_ratio, advantages.to(log_ratio.device)[:, None], clip)
    weight = _step_weights((joined.t - joined.t_next).to(log_ratio.device).reshape(shape), grad_reweight)
    ratio = log_ratio.detach()
    gain = flow.velocity_gain(
        joined.t, joined.t_next, noise_level=joined.noise_level, t_second=joined.t_second, kind=joined.kind
    ).to(std.device)
    size = torch.cat(list(velocities)).detach().double().square().flatten(1).mean(1).sqrt()
    rounding = (gain * size).clamp(min=1.0) / (1.0 if ratio_norm else std)
    stats = {
        "flow/log_ratio": ratio,
        "flow/log_ratio_max": ratio.abs().amax(1),
        "flow/rounding_max": rounding.reshape(shape).amax(1),
        "flow/ratio": ratio.exp(),
        "flow/clip_low": surrogate.clipped_low.double(),
        "flow/clip_high": surrogate.clipped_high.double(),
    }
    return Term(-(weight * surrogate.value).mean(1), stats)


def join_paths(paths: Sequence[FlowPath]) -> FlowPath:
    """Join the steps of B pictures into one path of B * K rows, picture after picture.

    Raises ValueError unless they share size, number of steps, grid, noise level and kind.
    """
    settings = {(tuple(p.x.shape), p.t_second, p.noise_level, p.kind) for p in paths}
    if len(settings) != 1:
        raise ValueError(
            "the pictures of one micro-batch must share [steps, tokens, channels], t_second, noise level and kind; got "
            + "; ".join(map(str, sorted(settings, key=str)))
        )
    first = paths[0]
    return FlowPath(
        steps=tuple(k for p in paths for k in p.steps),
        t=torch.cat([p.t for p in paths]),
        t_next=torch.cat([p.t_next for p in paths]),
        t_second=first.t_second,
        x=torch.cat([p.x for p in paths]),
        x_next=torch.cat([p.x_next for p in paths]),
        mean=torch.cat([p.mean for p in paths]),
        std=torch.cat([p.std for p in paths]),
        log_prob=torch.cat([p.log_prob for p in paths]),
        noise_level=first.noise_level,
        kind=first.kind,
    )


def replay_transition(velocities: Sequence[Tensor], joined: FlowPath) -> tuple[Tensor, Tensor]:
    """Return mean [B * K, n, d] and std [B * K] of the stored steps under the velocities of now, per picture [K, n, d].

    The mean is rounded to the dtype it was stored in, as the sampler's was: with the same velocities it is the same
    to the bit, and every ratio is exactly 1 (spec I.6).
    """
    v = torch.cat(list(velocities))
    if v.shape != joined.x.shape:
        raise ValueError(f"velocities {list(v.shape)} do not match the stored latents {list(joined.x.shape)}")
    mean, std = flow.sde_transition(
        joined.x, v, joined.t, joined.t_next,
        noise_level=joined.noise_level, t_second=joined.t_second, kind=joined.kind,
    )  # fmt: skip
    return mean.to(joined.mean.dtype), std


def _step_weights(h: Tensor, grad_reweight: str) -> Tensor | float:
    if grad_reweight == "none":
        return 1.0
    if grad_reweight == "inv_dt":
        return 1.0 / h
    if grad_reweight == "inv_dt_norm":
        return (1.0 / h) / (1.0 / h).mean(1, keepdim=True)
    raise ValueError(f"flow grad_reweight is {grad_reweight!r}: known kinds are none, inv_dt, inv_dt_norm")
