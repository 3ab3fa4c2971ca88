"""Flow GRPO: the clipped surrogate on the SDE steps of a picture, with RatioNorm (paper eq. 4-6)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from unigrpo import flow
from unigrpo.objectives.image_terms import ImageBatch, ImageTerm
from unigrpo.objectives.terms import Term, check_rows, clipped_surrogate
from unigrpo.policy import VelocityQuery
from unigrpo.ranges import Positive
from unigrpo.trajectory import FlowPath, Image

if TYPE_CHECKING:  # shapes: B rows, P pictures, K noisy copies or steps, n tokens of d numbers
    from jaxtyping import Float

_AUTO_CLIP = 5.12e-4  # 1e-6 sqrt(262144): the paper's 1e-6 at 1024 x 1024 (docs/math.md#clip-range)


@dataclass(frozen=True)
class FlowGRPO(ImageTerm):
    """J_i = mean over the K SDE steps of min(r A_i, clip(r, 1 - eps, 1 + eps) A_i) (paper eq. 4-6).

    log r is RatioNorm's (paper eq. 5) or, with ``ratio_norm`` off, the raw log-ratio of the means over elements (eq.
    4). ``grad_reweight`` multiplies each step by 1/h ("inv_dt", the official GRPO-Guard script) or by that over its
    mean in the window ("inv_dt_norm"); the paper does neither (docs/math.md#the-clipped-surrogate).
    """

    clip_range: Positive | Literal["auto"] = "auto"
    """A ratio is clipped to 1 +- this; auto is 5.12e-4 / sqrt(D), Table 3's 1e-6 at 1024 x 1024."""
    ratio_norm: bool = True
    """Whether RatioNorm centres and scales the log-ratio of a step (Eq. 4-5)."""
    grad_reweight: Literal["none", "inv_dt", "inv_dt_norm"] = "none"
    """How steps are weighted in the gradient: by 1 / dt, or by that over its mean (the paper: none)."""
    needs_sde = True
    of_guided_pictures = True

    def query(self, segment: int, image: Image, generator: torch.Generator, *, shift: float) -> VelocityQuery | None:
        """Return the stored SDE steps; nothing is drawn."""
        path = image.path
        if path is None:
            return None
        return VelocityQuery(segment, path.x, path.t, guidance=path.guidance, guided=path.guided)

    def copies(self, window_size: int) -> int:
        """The steps of the window."""
        return window_size

    def clip_range_for(self, num_elements: int) -> float:
        """The clip range, where "auto" is 5.12e-4 / sqrt(D), the paper's 1e-6 carried over to D elements.

        log r~ has the standard deviation rms(mean - mean_old) / sqrt(D), so that is the range which clips the same
        change of the velocities at every resolution (docs/math.md#clip-range). ValueError on any other word.
        """
        if isinstance(self.clip_range, str):
            if self.clip_range != "auto":
                raise ValueError(f"flow clip_range is {self.clip_range!r}: give a number or 'auto'")
            return _AUTO_CLIP / math.sqrt(num_elements)
        return self.clip_range

    def loss(self, batch: ImageBatch, advantages: Float[Tensor, " P"]) -> Term:
        """Return -J_Flow per picture, without the regulariser, [P]."""
        return self.term(batch.velocities, batch.paths, advantages)

    def term(
        self, velocities: Sequence[Float[Tensor, "K n d"]], paths: Sequence[FlowPath], advantages: Float[Tensor, " B"]
    ) -> Term:
        """The same of velocities per picture [K, n, d], at the stored x and t, and of what the sampler saw.

        The statistic "flow/rounding_max" is how many times the rounding of a velocity grows on its way into log r.
        ValueError where pictures of one call differ in size, steps, noise level, kind or grid.
        """
        check_rows(velocities=velocities, paths=paths, advantages=advantages)
        joined, shape = join_paths(paths), (len(paths), -1)
        mean, std = replay_transition(velocities, joined)
        # fp64 throughout; the old log-prob is taken again, since the stored one is fp32: 6e-8 of rounding
        x_next, mean, mean_old, std = (u.double() for u in (joined.x_next, mean, joined.mean, std))
        if self.ratio_norm:
            log_ratio = flow.log_ratio_norm(x_next, mean, mean_old, std).reshape(shape)
        else:
            log_ratio = (flow.log_prob(x_next, mean, std) - flow.log_prob(x_next, mean_old, std)).reshape(shape)
        clip = self.clip_range_for(joined.x[0].numel())
        surrogate = clipped_surrogate(log_ratio, advantages.to(log_ratio.device)[:, None], clip)
        weight = self._step_weights((joined.t - joined.t_next).to(log_ratio.device).reshape(shape))
        ratio = log_ratio.detach()
        stats = {
            "flow/log_ratio": ratio,
            "flow/log_ratio_max": ratio.abs().amax(1),
            "flow/rounding_max": self._rounding(velocities, joined, std).reshape(shape).amax(1),
            "flow/ratio": ratio.exp(),
            "flow/clip_low": surrogate.clipped_low.double(),
            "flow/clip_high": surrogate.clipped_high.double(),
        }
        return Term(-(weight * surrogate.value).mean(1), stats)

    def _rounding(self, velocities: Sequence[Tensor], joined: FlowPath, std: Tensor) -> Tensor:
        """What a velocity's rounding is multiplied by on its way into log r, [B * K]."""
        gain = flow.velocity_gain(
            joined.t, joined.t_next, noise_level=joined.noise_level, t_second=joined.t_second, kind=joined.kind
        ).to(std.device)
        size = torch.cat(list(velocities)).detach().double().square().flatten(1).mean(1).sqrt()
        return (gain * size).clamp(min=1.0) / (1.0 if self.ratio_norm else std)

    def _step_weights(self, h: Tensor) -> Tensor | float:
        if self.grad_reweight == "none":
            return 1.0
        if self.grad_reweight == "inv_dt":
            return 1.0 / h
        if self.grad_reweight == "inv_dt_norm":
            return (1.0 / h) / (1.0 / h).mean(1, keepdim=True)
        raise ValueError(f"flow grad_reweight is {self.grad_reweight!r}: known kinds are none, inv_dt, inv_dt_norm")


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


def replay_transition(
    velocities: Sequence[Float[Tensor, "K n d"]], joined: FlowPath
) -> tuple[Float[Tensor, "BK n d"], Float[Tensor, " BK"]]:
    """Return mean [B * K, n, d] and std [B * K] of the stored steps under the velocities of now, per picture [K, n, d].

    The mean is rounded to the dtype it was stored in, as the sampler's was: with the same velocities it is the same
    to the bit, and every ratio is exactly 1 (docs/math.md#first-update).
    """
    v = torch.cat(list(velocities))
    if v.shape != joined.x.shape:
        raise ValueError(f"velocities {list(v.shape)} do not match the stored latents {list(joined.x.shape)}")
    mean, std = flow.sde_transition(
        joined.x, v, joined.t, joined.t_next,
        noise_level=joined.noise_level, t_second=joined.t_second, kind=joined.kind,
    )  # fmt: skip
    return mean.to(joined.mean.dtype), std
