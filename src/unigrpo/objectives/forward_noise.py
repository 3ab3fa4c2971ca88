"""Noising a finished picture again: what FPO, DiffusionNFT and supervised training have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from unigrpo.flow import interpolate
from unigrpo.objectives.image_terms import ImageTerm
from unigrpo.policy import VelocityQuery
from unigrpo.ranges import Batch
from unigrpo.trajectory import Image

if TYPE_CHECKING:  # shapes: B rows, P pictures, K noisy copies or steps, n tokens of d numbers
    from jaxtyping import Float

Times = Literal["uniform", "logit_normal"]


@dataclass(frozen=True)
class ForwardNoise(ImageTerm):
    """Noising the finished picture at ``pairs`` fixed (t, eps), kept over epochs; times as in supervised training.

    t is drawn by :func:`sample_times` and shifted as the sampler's grid is (docs/math.md#fpo).
    """

    pairs: Batch = 8
    """Fixed (t, eps) at which a finished picture is noised."""
    times: Times = "uniform"
    """Distribution of their t, as in supervised training."""
    needs_behaviour_velocity = True

    def query(self, segment: int, image: Image, generator: torch.Generator, *, shift: float) -> VelocityQuery | None:
        """Noise a picture that the policy drew."""
        if not image.drawn:
            return None
        t = sample_times(self.pairs, shift, generator=generator, times=self.times)
        x, target = noised(image.latents, t, generator=generator)
        return VelocityQuery(segment, x, t, target)

    def copies(self, window_size: int) -> int:
        """One velocity per pair."""
        return self.pairs


def sample_times(count: int, shift: float, *, generator: torch.Generator, times: Times) -> Float[Tensor, " count"]:
    """Draw training times in [0, 1], then shift them, t <- s t / (1 + (s - 1) t); fp64 [count].

    logit_normal: the sigmoid of a standard normal (BAGEL; docs/math.md#supervised); uniform: U(0, 1). The draws are
    stratified, one in each count-th of the distribution, so that several noisy copies of a picture cover all times; a
    single draw is plainly from the distribution.
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


def noised(
    x0: Float[Tensor, "n d"], times: Float[Tensor, " K"], *, generator: torch.Generator
) -> tuple[Float[Tensor, "K n d"], Float[Tensor, "K n d"]]:
    """Return x_t [K, n, d] of one picture x0 [n, d] at K times with fresh noise, and the targets eps - x_0; fp32."""
    clean = x0.float().expand(len(times), *x0.shape)
    noise = torch.randn(clean.shape, generator=generator, device=generator.device).to(x0.device)
    return interpolate(clean, noise, times.to(x0.device)).float(), noise - clean
