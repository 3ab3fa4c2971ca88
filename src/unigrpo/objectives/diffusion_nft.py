"""DiffusionNFT: good pictures pull the velocity towards them, bad ones push its mirror image away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unigrpo.flow import predict_x0
from unigrpo.objectives.forward_noise import ForwardNoise
from unigrpo.objectives.image_terms import ImageBatch, behaviour_velocities
from unigrpo.objectives.terms import Term, check_rows
from unigrpo.ranges import Positive

if TYPE_CHECKING:  # shapes: B rows, P pictures, K noisy copies or steps, n tokens of d numbers
    from jaxtyping import Float

_SMALLEST_SCALE = 1e-5


@dataclass(frozen=True)
class DiffusionNFT(ForwardNoise):
    """r |x0(v+) - x_0|^2 / w+ + (1 - r) |x0(v-) - x_0|^2 / w- (docs/math.md#diffusionnft; not in the paper's table).

    v+ = beta v + (1 - beta) v_old,  v- = (1 + beta) v_old - beta v,  x0(v) = x - t v, squares and their scale
    w = mean_D |x0(v) - x_0| (no gradient) over the D elements of each noisy copy; r is :meth:`optimality`.
    With v = v_old both squares are equal and their gradients opposite: together (2 r - 1) times that of the first.
    """

    beta: Positive = 1.0
    """Share of the new velocity in the mix of new and old."""
    max_advantage: Positive = 5.0
    """Advantages beyond +- this count as best or worst."""

    def optimality(self, advantages: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Return r = clip(A / (2 A_max) + 1/2, 0, 1), how probably a picture is one of the good ones, fp64 [B]."""
        if not self.max_advantage > 0.0:
            raise ValueError(f"max_advantage is {self.max_advantage}: it must be > 0")
        return (advantages.double() / (2.0 * self.max_advantage) + 0.5).clamp(0.0, 1.0)

    def loss(self, batch: ImageBatch, advantages: Float[Tensor, " P"]) -> Term:
        """Return the loss per picture, [P]."""
        return self.term(
            batch.velocities,
            behaviour_velocities(batch),
            [query.x for query in batch.queries],
            [query.t for query in batch.queries],
            [image.latents for image in batch.images],
            advantages,
        )

    def term(
        self,
        velocities: Sequence[Float[Tensor, "K n d"]],
        old_velocities: Sequence[Float[Tensor, "K n d"]],
        x: Sequence[Float[Tensor, "K n d"]],
        t: Sequence[Float[Tensor, " K"]],
        clean: Sequence[Float[Tensor, "n d"]],
        advantages: Float[Tensor, " B"],
    ) -> Term:
        """The same of velocities (of now, with gradients), old_velocities, x: per picture [N, n, d]; t: [N]; clean:
        the picture's latents [n, d]; advantages: [B]."""
        check_rows(velocities=velocities, old_velocities=old_velocities, x=x, t=t, clean=clean, advantages=advantages)
        beta = self.beta
        if not beta > 0.0:
            raise ValueError(f"diffusion_nft beta is {beta}: it must be > 0 (0 would not learn)")
        good = self.optimality(advantages)
        rows, kept = [], []
        for v, old, at, time, x0, r in zip(
            velocities, old_velocities, x, t, clean, good.to(velocities[0].device), strict=True
        ):
            v, old = v.double(), old.double().detach()
            implicit = (beta * v + (1.0 - beta) * old, (1.0 + beta) * old - beta * v)
            positive, negative = (_scaled_error(predict_x0(at.double(), u, time), x0.double()) for u in implicit)
            rows.append((r * positive + (1.0 - r) * negative).mean())
            kept.append(positive.detach().mean())
        return Term(torch.stack(rows), {"nft/optimality": good, "nft/positive_error": torch.stack(kept)})


def _scaled_error(predicted: Tensor, clean: Tensor) -> Tensor:
    """|x0 - x|^2 / w of every copy [N], means over elements."""
    error = (predicted - clean).flatten(1)
    scale = error.detach().abs().mean(1).clamp_min(_SMALLEST_SCALE)
    return error.square().mean(1) / scale
