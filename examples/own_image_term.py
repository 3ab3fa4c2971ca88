"""An image term of one's own in one file: flow matching on the model's own pictures, each weighed by its advantage.

loss = w(A) mean_n |v(x_n, t_n) - (eps_n - x_0)|^2,   w(A) = clamp(exp(A / temperature), 0, limit)

This is advantage-weighted regression (arXiv 1910.00177) for the velocity: pictures that the reward liked are imitated,
the others next to not at all. There are no ratios and no SDE steps, so that pictures are drawn by the plain ODE.

    unigrpo train shapes/unigrpo --method "{name: examples/own_image_term.py:WeightedMatching, text: {}}"
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from unigrpo.objectives.forward_noise import ForwardNoise
from unigrpo.objectives.image_terms import ImageBatch
from unigrpo.objectives.terms import Term
from unigrpo.ranges import Positive


@dataclass(frozen=True)
class WeightedMatching(ForwardNoise):
    """Flow matching on drawn pictures, weighed by exp(A / temperature); fields are keys of the recipe."""

    temperature: Positive = 1.0
    """How sharply advantages are told apart."""
    limit: Positive = 20.0
    """The largest weight of a picture."""

    needs_behaviour_velocity = False  # nothing is compared with the weights before the update

    def loss(self, batch: ImageBatch, advantages: Tensor) -> Term:
        """Return the loss per picture, [P]."""
        weights = (advantages.double() / self.temperature).exp().clamp(max=self.limit)
        pairs = zip(batch.velocities, batch.targets, strict=True)
        errors = torch.stack([(v.double() - target.double()).square().mean() for v, target in pairs])
        statistics = {"awr/weight": weights, "awr/error": errors.detach()}  # means of them go to metrics.jsonl
        return Term(weights.to(errors.device) * errors, statistics)
