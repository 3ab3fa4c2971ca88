"""Flow matching as arithmetic: schedule, window, ODE and SDE steps, log-prob, RatioNorm, guidance (no I/O, no model).

Conventions (docs/math.md#the-path): x_t = (1 - t) x_0 + t eps, t = 1 is noise and t = 0 is data, the velocity v =
dx_t/dt = eps - x_0 points from data to noise, and sampling goes t: 1 -> 0. h = t - t_next > 0 is the length of a step.

Shapes: x and v are [B, ...]; times are floats, 0-dim or [B] tensors (one time per row); std and log-probs are [B].
Dtypes: any float goes in; everything is computed in fp64 and rounded once, to fp64 if any input tensor is fp64 and to
fp32 otherwise (a python float never promotes). So a step taken with t as a float in fp32, and the same step scored with
t as a fp64 tensor and then rounded to fp32, agree bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, cast

import torch
from torch import Tensor

Times = float | Tensor
Renorm = Literal["global", "channel", "text_channel"]
_STEP_DTYPES = (torch.float32, torch.float64)
_NORM_FLOOR = 1e-8  # of the guidance's denominators (BAGEL)


def timesteps(num_points: int, shift: float) -> Tensor:
    """Return the grid t_0 = 1 > ... > t_{M-1} = 0 of M = ``num_points`` points, that is M - 1 forwards; fp64 [M].

    u = linspace(1, 0, M),  t = shift u / (1 + (shift - 1) u)   (docs/math.md#the-path; Table 3: 25 points, shift 3).
    Raises ValueError if ``num_points`` < 2 or ``shift`` <= 0.
    """
    if num_points < 2:
        raise ValueError(f"num_points is {num_points}: a schedule needs at least 2 points, noise (1) and data (0)")
    if not (shift > 0 and math.isfinite(shift)):
        raise ValueError(f"shift is {shift}: it must be a positive number (1 leaves the grid uniform)")
    u = torch.linspace(1.0, 0.0, num_points, dtype=torch.float64)
    grid = shift * u / (1.0 + (shift - 1.0) * u)
    grid[0] = 1.0  # exactly: sde_transition compares t with 1
    return grid


def guided_steps(num_points: int, shift: float, interval: tuple[float, float]) -> tuple[bool, ...]:
    """Return for each of the M - 1 steps whether it starts at low < t <= high, where guidance is on.

    Compared in fp32 on the grid as BAGEL computes it, so that a bound that is a point of the grid counts as it does
    there: of the fp64 grid of 4 points with shift 3, the second is 0.6000000000000001 and would be above 0.6.
    """
    u = torch.linspace(1.0, 0.0, num_points, dtype=torch.float32)
    t = (shift * u / (1.0 + (shift - 1.0) * u))[:-1]
    low, high = interval
    return tuple(((t > low) & (t <= high)).tolist())


def sde_window(window: tuple[int, int], size: int, *, generator: torch.Generator, num_points: int | None = None) -> int:
    """Draw the first of ``size`` consecutive SDE steps, uniformly in lo .. hi - size inclusive.

    ``window`` (lo, hi) is half-open over step indices: (0, 5) with size 3 starts at 0, 1 or 2. ``num_points`` (of the
    grid), if given, checks that the last step, where the Gaussian is too narrow, stays outside: hi <= num_points - 2.
    Raises ValueError where no start exists.
    Source: docs/math.md#the-window.
    """
    lo, hi = window
    if size < 1 or lo < 0 or hi - size < lo:
        raise ValueError(
            f"no {size} consecutive SDE steps fit into the window [{lo}, {hi}): widen it or take fewer steps"
        )
    if num_points is not None and hi > num_points - 2:
        raise ValueError(
            f"window [{lo}, {hi}) reaches the last step of a grid of {num_points} points, where an SDE leaves noise "
            f"in the picture: end it at {num_points - 2} or before, or use more points"
        )
    return int(torch.randint(lo, hi - size + 1, (), generator=generator, device=generator.device))


# ---------------------------------------------------------------- identities of the linear path
def interpolate(x0: Tensor, noise: Tensor, t: Times) -> Tensor:
    """Return x_t = (1 - t) x_0 + t eps, [B, ...] (docs/math.md#the-path)."""
    return _linear(x0, noise, lambda t_: (1.0 - t_, t_), t)


def predict_x0(x: Tensor, v: Tensor, t: Times) -> Tensor:
    """Return the data that the velocity points away from, x_0 = x - t v, [B, ...] (docs/math.md#the-path)."""
    return _linear(x, v, lambda t_: (torch.ones_like(t_), -t_), t)


def predict_noise(x: Tensor, v: Tensor, t: Times) -> Tensor:
    """Return the noise that the velocity points to, eps = x + (1 - t) v, [B, ...] (docs/math.md#the-path)."""
    return _linear(x, v, lambda t_: (torch.ones_like(t_), 1.0 - t_), t)


# ---------------------------------------------------------------- transitions


def ode_step(x: Tensor, v: Tensor, t: Times, t_next: Times) -> Tensor:
    """Return one Euler step of the flow ODE, x - h v with h = t - t_next, [B, ...] (docs/math.md#steps)."""
    dtype = _result_dtype(x, v, t, t_next)
    start, end = _step_times(x, t, t_next)
    return _combine(x, v, torch.ones_like(start), end - start, dtype)


def sde_transition(
    x: Tensor, v: Tensor, t: Times, t_next: Times, *, noise_level: float, t_second: Times, kind: str = "flow"
) -> tuple[Tensor, Tensor]:
    """Return mean [B, ...] and standard deviation [B] of the Gaussian p(x_next | x), with h = t - t_next.

    kinds (``noise_level`` is a):
      flow     sigma = a sqrt(t / (1 - t)), with t_second for t inside the root where t = 1 (docs/math.md#steps, paper
      eq. 3):
               mean = x - h [v + sigma^2/(2t) (x + (1 - t) v)],  std = sigma sqrt(h)
      dance    the same with sigma = a at every t (docs/math.md#steps)
      cps      std = t_next sin(a pi/2),  mean = (1 - t_next) x_0 + sqrt(t_next^2 - std^2) eps (docs/math.md#steps)
      flow_cp  the mean of cps with std = min(sigma sqrt(h), 0.999 t_next), sigma as in flow: the noise of flow without
               its excess variance (docs/math.md#steps; not in any paper)
    With a = 0 every kind is :func:`ode_step` with std 0. ``t_second`` is the second point of the FULL grid, in replay
    too (docs/math.md#steps). Raises ValueError on an unknown kind, a < 0 (cps: also a > 1), or times out of order.
    """
    if kind not in _COEFFICIENTS:
        raise ValueError(f"sde kind is {kind!r}: known kinds are {', '.join(_COEFFICIENTS)}")
    if not 0.0 <= noise_level < math.inf or (kind == "cps" and noise_level > 1.0):
        raise ValueError(f"noise_level is {noise_level}: it must be >= 0, and for cps at most 1")
    dtype = _result_dtype(x, v, t, t_next, t_second)
    start, end = _step_times(x, t, t_next)
    second = _times(x, t_second)
    if not bool(((second >= 0.0) & (second < 1.0)).all()):
        raise ValueError(f"t_second is {t_second}: it is the second point of the timestep grid, so 0 <= t_second < 1")
    c_x, c_v, std = _COEFFICIENTS[kind](start, end, second, noise_level)
    return _combine(x, v, c_x, c_v, dtype), std.to(x.device, dtype).expand(x.shape[0])


def velocity_gain(t: Tensor, t_next: Tensor, *, noise_level: float, t_second: float, kind: str = "flow") -> Tensor:
    """Return |d mean / d v| of :func:`sde_transition`, by which it carries a velocity's rounding on; fp64 like t."""
    second = torch.tensor(t_second, dtype=torch.float64, device=t.device)
    _, c_v, _ = _COEFFICIENTS[kind](t.double(), t_next.double(), second, noise_level)
    return c_v.abs()


Coefficients = tuple[Tensor, Tensor, Tensor]  # mean = c_x x + c_v v, and std


def _flow_sigma(t: Tensor, t_second: Tensor, a: float) -> Tensor:
    return a * torch.sqrt(t / (1.0 - torch.where(t == 1.0, t_second, t)))


def _drift_coefficients(t: Tensor, t_next: Tensor, sigma: Tensor) -> Coefficients:
    h, gain = t - t_next, sigma.square() / (2.0 * t)
    return 1.0 - gain * h, -(1.0 + gain * (1.0 - t)) * h, sigma * h.sqrt()


def _preserving_coefficients(t: Tensor, t_next: Tensor, kept: Tensor, std: Tensor) -> Coefficients:
    """mean = (1 - t_next) x_0 + kept eps, written in x and v."""
    return (1.0 - t_next) + kept, kept * (1.0 - t) - (1.0 - t_next) * t, std


def _flow(t: Tensor, t_next: Tensor, t_second: Tensor, a: float) -> Coefficients:
    return _drift_coefficients(t, t_next, _flow_sigma(t, t_second, a))


def _dance(t: Tensor, t_next: Tensor, t_second: Tensor, a: float) -> Coefficients:
    return _drift_coefficients(t, t_next, torch.full_like(t, a))


def _cps(t: Tensor, t_next: Tensor, t_second: Tensor, a: float) -> Coefficients:
    angle = a * math.pi / 2.0
    return _preserving_coefficients(t, t_next, t_next * math.cos(angle), t_next * math.sin(angle))


def _flow_cp(t: Tensor, t_next: Tensor, t_second: Tensor, a: float) -> Coefficients:
    std = torch.minimum(_flow_sigma(t, t_second, a) * (t - t_next).sqrt(), 0.999 * t_next)
    return _preserving_coefficients(t, t_next, (t_next.square() - std.square()).sqrt(), std)


_COEFFICIENTS: dict[str, Callable[[Tensor, Tensor, Tensor, float], Coefficients]] = {
    "flow": _flow,
    "cps": _cps,
    "dance": _dance,
    "flow_cp": _flow_cp,
}
SDE_KINDS = tuple(_COEFFICIENTS)


# ---------------------------------------------------------------- log-probs, ratios, divergences


def log_prob(x_next: Tensor, mean: Tensor, std: Times) -> Tensor:
    """Return log p(x_next) = mean over elements of -(x_next - mean)^2 / (2 std^2), [B] (docs/math.md#steps).

    The mean over all D elements and the dropped constants are what clip ranges near 1e-6 are made for
    (docs/math.md#clip-range); ``x_next`` counts as data and gets no gradient. Round it to its storage dtype first
    (docs/math.md#precision). Raises TypeError unless fp32 or fp64, ValueError unless std > 0.
    """
    dtype, (x_, mean_), std_ = _exact(std, x_next=x_next, mean=mean)
    return (-0.5 * _row_mean((x_.detach() - mean_).square()) / std_.square()).to(dtype)


def log_ratio_norm(x_next: Tensor, mean: Tensor, mean_old: Tensor, std: Times) -> Tensor:
    """Return the normalised log-ratio of RatioNorm, [B] (paper eq. 5, docs/math.md#rationorm).

    log r~ = mean_D[z (mean - mean_old)],  z = (x_next - mean_old) / std
    which equals std (log r + mean_D[(mean - mean_old)^2] / (2 std^2)) without subtracting two nearly equal log-probs.
    Only ``mean`` gets a gradient. Raises TypeError unless fp32 or fp64, ValueError unless std > 0.
    """
    dtype, (x_, mean_, old), std_ = _exact(std, x_next=x_next, mean=mean, mean_old=mean_old)
    old = old.detach()
    return (_row_mean((x_.detach() - old) * (mean_ - old)) / std_).to(dtype)


def latent_kl(mean: Tensor, mean_reference: Tensor, std: Times) -> Tensor:
    """Return KL(p || p_ref) of two transitions with one std, summed over elements, [B] (docs/math.md#regularisers).

    KL = ||mean - mean_ref||^2 / (2 std^2); for the kind ``flow`` that is h kappa^2 / (2 sigma^2) ||v - v_ref||^2.
    The official code's penalty is h KL / D. Raises TypeError unless fp32 or fp64, ValueError unless std > 0.
    """
    dtype, (mean_, reference), std_ = _exact(std, mean=mean, mean_reference=mean_reference)
    return (0.5 * (mean_ - reference).square().flatten(1).sum(1) / std_.square()).to(dtype)


def guided_velocity(
    v: Tensor,
    v_text: Tensor,
    v_image: Tensor | None = None,
    *,
    text_scale: float,
    image_scale: float = 1.0,
    renorm: Renorm = "global",
    renorm_min: float = 0.0,
) -> Tensor:
    """Return BAGEL's guided velocity [B, n, d] of v (full context), v_text and v_image (without text, image).

    a = v_text + text_scale (v - v_text);  b = v_image + image_scale (a - v_image) if image_scale > 1, else a
      global        b clamp(|v| / |b|, renorm_min, 1), norms over all tokens and channels of each sample
      channel       the same with norms over the channels of each token
      text_channel  a is rescaled per token, before the image guidance, and b is left as it is
    A text_scale <= 1 returns v itself. (docs/bagel-architecture.md#guidance; the original's ``global`` norm runs over
    all samples of a batch.) Raises ValueError on an unknown renorm, or if image_scale > 1 without v_image.
    """
    if renorm not in ("global", "channel", "text_channel"):
        raise ValueError(f"renorm is {renorm!r}: known kinds are global, channel, text_channel")
    if not 0.0 <= renorm_min <= 1.0:
        raise ValueError(f"renorm_min is {renorm_min}: it must lie in [0, 1]")
    if text_scale <= 1.0:
        return v
    if image_scale > 1.0 and v_image is None:
        raise ValueError(f"image_scale is {image_scale}, which needs v_image, the velocity without the image context")
    dtype = _result_dtype(v, v_text, *(() if v_image is None else (v_image,)))
    full, text = v.double(), v_text.double()
    guided = text + text_scale * (full - text)
    if renorm == "text_channel":
        guided = _rescale(guided, full, (-1,), renorm_min)
    if image_scale > 1.0:
        image = cast(Tensor, v_image).double()
        guided = image + image_scale * (guided - image)
    if renorm != "text_channel":
        guided = _rescale(guided, full, (-1,) if renorm == "channel" else tuple(range(1, v.ndim)), renorm_min)
    return guided.to(dtype)


def _rescale(guided: Tensor, full: Tensor, dims: tuple[int, ...], minimum: float) -> Tensor:
    norm, target = (torch.linalg.vector_norm(u, dim=dims, keepdim=True) for u in (guided, full))
    return guided * (target / (norm + _NORM_FLOOR)).clamp(minimum, 1.0)


# ---------------------------------------------------------------- rows, dtypes, checks


def _result_dtype(*inputs: Times) -> torch.dtype:
    """fp64 if any input tensor is, else fp32."""
    tensors = [u for u in inputs if isinstance(u, Tensor)]
    if not all(u.is_floating_point() for u in tensors):
        raise TypeError(f"flow functions take floating-point tensors, got {[str(u.dtype) for u in tensors]}")
    return torch.float64 if any(u.dtype == torch.float64 for u in tensors) else torch.float32


def _times(x: Tensor, value: Times) -> Tensor:
    """A time as fp64, 0-dim or [B]; python floats stay on the CPU, so that checking them costs no device sync."""
    if not isinstance(value, Tensor):
        return torch.tensor(float(value), dtype=torch.float64)
    if value.ndim > 1 or (value.ndim == 1 and value.shape[0] != x.shape[0]):
        raise ValueError(f"a time or std is a number or one per row: got {list(value.shape)} for x {list(x.shape)}")
    return value.to(x.device, torch.float64)


def _step_times(x: Tensor, t: Times, t_next: Times) -> tuple[Tensor, Tensor]:
    start, end = _times(x, t), _times(x, t_next)
    if not bool(((end >= 0.0) & (end < start) & (start <= 1.0)).all()):
        raise ValueError(f"a step goes from t to a smaller t_next, 0 <= t_next < t <= 1: got t={t}, t_next={t_next}")
    return start, end


def _per_row(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (x.ndim - 1)) if values.ndim else values


def _combine(x: Tensor, v: Tensor, c_x: Tensor, c_v: Tensor, dtype: torch.dtype) -> Tensor:
    if x.shape != v.shape:
        raise ValueError(f"x {list(x.shape)} and v {list(v.shape)} must have one shape")
    return (_per_row(c_x, x) * x.double() + _per_row(c_v, x) * v.double()).to(dtype)


def _linear(x: Tensor, y: Tensor, weights: Callable[[Tensor], tuple[Tensor, Tensor]], t: Times) -> Tensor:
    return _combine(x, y, *weights(_times(x, t)), _result_dtype(x, y, t))


def _row_mean(u: Tensor) -> Tensor:
    return u.flatten(1).mean(1)


def _exact(std: Times, **tensors: Tensor) -> tuple[torch.dtype, list[Tensor], Tensor]:
    """The tensors and std in fp64, refusing low precision (a clip range near 1e-6 would mean nothing) and std <= 0."""
    for name, u in {**tensors, **({"std": std} if isinstance(std, Tensor) else {})}.items():
        if u.dtype not in _STEP_DTYPES:
            raise TypeError(f"{name} is {u.dtype}: image log-probs and ratios need float32 or float64")
    first, *others = tensors.values()
    if any(u.shape != first.shape for u in others):
        raise ValueError(f"shapes differ: {', '.join(f'{name} {list(u.shape)}' for name, u in tensors.items())}")
    std_ = _times(first, std)
    if not bool((std_ > 0.0).all()):
        raise ValueError("std must be > 0: a step without noise (noise_level 0, or cps at t_next 0) has no log-prob")
    return _result_dtype(*tensors.values(), std), [u.double() for u in tensors.values()], std_
