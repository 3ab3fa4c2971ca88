"""Keeping the velocities near those of the start checkpoint: velocity MSE (the paper's) and the latent KL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from unigrpo import flow
from unigrpo.objectives.flow_grpo import join_paths, replay_transition
from unigrpo.objectives.image_terms import ImageBatch, present
from unigrpo.objectives.terms import Term, check_rows
from unigrpo.ranges import NonNegative
from unigrpo.trajectory import FlowPath

if TYPE_CHECKING:  # shapes: B rows, P pictures, K noisy copies or steps, n tokens of d numbers
    from jaxtyping import Float


@dataclass(frozen=True)
class Regulariser:
    """What keeps the velocity near the start checkpoint on the window steps (eq. 8; docs/math.md#regularisers)."""

    kind: Literal["velocity_mse", "latent_kl", "none"] = "velocity_mse"
    """Distance on the window steps: of the velocities, or of the SDE steps (latent_kl)."""
    weight: NonNegative = 1.5e-5
    """Its weight (Table 3: 1.5e-5)."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.kind not in ("velocity_mse", "latent_kl", "none"):
            raise ValueError(f"regulariser kind is {self.kind!r}: known kinds are velocity_mse, latent_kl, none")
        if not self.weight >= 0.0:
            raise ValueError(f"regulariser weight is {self.weight}: it must be >= 0 (0 switches it off)")

    @property
    def on(self) -> bool:
        """Whether it has a weight; trajectories must then carry the reference's velocities."""
        return self.kind != "none" and self.weight > 0.0

    @property
    def needs_sde(self) -> bool:
        """Whether it compares SDE steps."""
        return self.on and self.kind == "latent_kl"

    def loss(self, batch: ImageBatch) -> Term:
        """Return the regulariser per picture, [P], not yet weighted."""
        references = present(batch.references, "a reference velocity")
        if self.kind == "latent_kl":
            return latent_kl(batch.velocities, batch.paths, references)
        return velocity_mse(batch.velocities, references)


def velocity_mse(velocities: Sequence[Float[Tensor, "K n d"]], references: Sequence[Float[Tensor, "K n d"]]) -> Term:
    """Return ||v - v_ref||^2 per picture, the mean over window steps and over elements, [B] (paper eq. 8).

    velocities, references: per picture [K, n, d] at the same x, t and context; no gradient goes into the references.
    The paper does not say mean or sum; only the mean gives its weight, 1.5e-5, an effect between freezing the policy
    and none (docs/math.md#regularisers). The statistic flow/velocity_mse is [B, K].
    """
    check_rows(velocities=velocities, references=references)
    shapes = {tuple(v.shape) for v in (*velocities, *references)}
    if len(shapes) != 1:
        raise ValueError(f"velocities and references must share one shape [K, n, d], got {sorted(shapes)}")
    difference = torch.stack(list(velocities)).double() - torch.stack(list(references)).double().detach()
    per_step = difference.square().flatten(2).mean(2)
    return Term(per_step.mean(1), {"flow/velocity_mse": per_step.detach()})


def latent_kl(
    velocities: Sequence[Float[Tensor, "K n d"]],
    paths: Sequence[FlowPath],
    references: Sequence[Float[Tensor, "K n d"]],
) -> Term:
    """Return the KL of the SDE steps against the reference's, KL / D, mean over window steps, [B].

    KL / D = mean_D[(mean - mean_ref)^2] / (2 std^2), per element like the image log-probs (docs/math.md#regularisers).
    The official penalty is h times this. Unlike :func:`velocity_mse` it presses unevenly over t, which the paper
    replaces (its section 4.2). The statistic flow/latent_kl is [B, K].
    """
    check_rows(velocities=velocities, paths=paths, references=references)
    joined = join_paths(paths)
    mean, std = replay_transition([v.double() for v in velocities], joined)
    reference, _ = replay_transition([v.detach() for v in references], joined)
    kl = flow.latent_kl(mean.double(), reference.double(), std.double()) / joined.x[0].numel()
    per_step = kl.reshape(len(paths), -1)
    return Term(per_step.mean(1), {"flow/latent_kl": per_step.detach()})
