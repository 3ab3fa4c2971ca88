"""Supervised fine-tuning: cross-entropy on the thinking, flow matching on the picture (docs/math.md#supervised)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from unigrpo.objectives.forward_noise import noised, sample_times
from unigrpo.objectives.image_terms import LatentReward, owner_means, owner_sums, present
from unigrpo.objectives.method import Losses, Method, TargetsPerRow, latents_of, targets_per_row
from unigrpo.objectives.terms import Statistics, Term, check_rows
from unigrpo.policy import Replayed, VelocityQuery
from unigrpo.ranges import Batch, ConfigError, NonNegative, Shift
from unigrpo.trajectory import Image, Trajectory

if TYPE_CHECKING:  # shapes: B rows, P pictures, K noisy copies or steps, n tokens of d numbers
    from jaxtyping import Float


@dataclass(frozen=True)
class Supervised(Method):
    """ce_weight CE(text) + mse_weight MSE(velocity) on demonstrations, each image at noisy_copies times.

    CE is the mean over all target tokens of the minibatch. The mean of the MSE runs over each trajectory's pictures,
    then over trajectories (mse_over: pictures), or over all latent tokens of the minibatch, as BAGEL trains (tokens);
    they differ where pictures have several sizes, or not every trajectory has one. The times are stratified.
    """

    name: Literal["supervised"] = "supervised"
    ce_weight: NonNegative = 1.0
    """Weight of the cross-entropy of the text."""
    mse_weight: NonNegative = 1.0
    """Weight of the squared error of the velocity."""
    timestep_shift: Shift = 3.0
    """Of the drawn t towards noise."""
    noisy_copies: Batch = 1
    """Times t at which each picture is noised."""
    times: Literal["logit_normal", "uniform"] = "logit_normal"
    """Distribution of t (logit_normal: BAGEL's), stratified over the copies, then shifted."""
    mse_over: Literal["pictures", "tokens"] = "pictures"
    """Mean of the squared error over pictures and then trajectories, or over all latent tokens (BAGEL)."""
    train_vision: bool = False
    """Train the vision tower and its connector too, at the reasoning expert's learning rate."""

    learns_from = "demonstrations"
    trains_thinking = trains_drawing = True
    image_grad_through_context = True

    def __post_init__(self) -> None:
        """Refuse what teaches nothing."""
        if self.ce_weight == self.mse_weight == 0:
            raise ConfigError("method.ce_weight = method.mse_weight = 0: nothing would be learned; set one above 0")

    @property
    def ignores_words(self) -> bool:
        """True without a cross-entropy."""
        return self.ce_weight == 0

    @property
    def ignores_pictures(self) -> bool:
        """True without a squared error."""
        return self.mse_weight == 0

    def copies(self, window_size: int) -> int:
        """Noisy copies of a picture, where it is learned."""
        return self.noisy_copies if self.mse_weight > 0 else 0

    def queries(self, trajectory: Trajectory, generator: torch.Generator, *, shift: float) -> tuple[VelocityQuery, ...]:
        """Return noised target images at fresh times, with the velocities that would undo the noise."""
        if self.mse_weight == 0.0:
            return ()
        drawn: list[VelocityQuery] = []
        for i, segment in enumerate(trajectory.segments):
            if isinstance(segment, Image) and segment.target:
                t = sample_times(self.noisy_copies, self.timestep_shift, generator=generator, times=self.times)
                x, target = noised(segment.latents, t, generator=generator)
                drawn.append(VelocityQuery(i, x, t, target))
        return tuple(drawn)

    def losses(
        self,
        trajectories: Sequence[Trajectory],
        answers: Sequence[Replayed],
        queries: Sequence[Sequence[VelocityQuery]],
        *,
        per_row: TargetsPerRow | None = None,
        latent_reward: LatentReward | None = None,
    ) -> Losses:
        """Return both losses of B trajectories; ``per_row`` is the minibatch's, None where these are all of it."""
        check_rows(trajectories=trajectories, answers=answers, queries=queries)
        per_row = targets_per_row(trajectories, queries) if per_row is None else per_row
        text_loss = image_loss = None
        stats: Statistics = {}
        if per_row.text == 0.0 and self.mse_weight > 0.0:  # a minibatch of pictures alone: nothing to say of words
            stats["sft/cross_entropy"] = torch.full((len(trajectories),), float("nan"), dtype=torch.float64)
        elif self.ce_weight > 0.0:
            text = token_cross_entropy([a.log_probs for a in answers], tokens_per_row=per_row.text)
            text_loss, stats = self.ce_weight * text.loss, {**stats, **text.stats}
        velocities = [v for a in answers for v in a.velocities]
        if self.mse_weight > 0.0 and velocities:
            targets = present([query.target for row in queries for query in row], "a target velocity")
            image = flow_matching_mse(velocities, targets)
            owners = [i for i, row in enumerate(queries) for _ in row]
            if self.mse_over == "tokens":
                weights = [latents_of(query) / per_row.image for row in queries for query in row]
                rows = owner_sums(image.loss * image.loss.new_tensor(weights), owners, len(trajectories))
            else:
                rows = owner_means(image.loss, owners, len(trajectories))
            image_loss = self.mse_weight * rows
            stats = {**stats, **image.stats}
        return Losses(text_loss, image_loss, stats)


def token_cross_entropy(log_probs: Sequence[Float[Tensor, " actions"]], *, tokens_per_row: float | None = None) -> Term:
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


def flow_matching_mse(velocities: Sequence[Float[Tensor, "K n d"]], targets: Sequence[Float[Tensor, "K n d"]]) -> Term:
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
