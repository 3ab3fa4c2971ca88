"""What a method is to the trainer and the builder: capabilities, what to replay, and losses; never its name.

A method is a frozen dataclass that a recipe fills; its fields are its terms and its settings. All losses are per
trajectory, so that J = mean over the trajectories of a minibatch is a sum over micro-batches divided by their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from unigrpo.objectives.advantage import Advantage
from unigrpo.objectives.image_terms import LatentReward
from unigrpo.objectives.terms import Statistics
from unigrpo.policy import Replayed, VelocityQuery
from unigrpo.trajectory import Text, Trajectory

if TYPE_CHECKING:  # shapes: B rows, P pictures, K noisy copies or steps, n tokens of d numbers
    from jaxtyping import Float


@dataclass(frozen=True)
class Losses:
    """What to minimise, per trajectory [B] and weighted: text_loss + image_loss; None: the method has no such part.

    They stay apart, because without gradients through the context the two are sent backward into different parameters
    (docs/math.md#joint).
    """

    text_loss: Float[Tensor, " B"] | None
    image_loss: Float[Tensor, " B"] | None
    stats: Statistics

    @property
    def total(self) -> Float[Tensor, " B"]:
        """text_loss + image_loss, [B]."""
        parts = [loss for loss in (self.text_loss, self.image_loss) if loss is not None]
        return torch.stack(parts).sum(0)


@dataclass(frozen=True)
class TargetsPerRow:
    """What supervised losses are divided by: target tokens of texts, and latent tokens whose velocities are learned
    (of all noisy copies), per trajectory of a whole minibatch, however it is cut into micro-batches."""

    text: float
    image: float


def targets_per_row(trajectories: Sequence[Trajectory], queries: Sequence[Sequence[VelocityQuery]]) -> TargetsPerRow:
    """Count the targets of a minibatch."""
    text = sum(s.num_actions for t in trajectories for s in t.segments if isinstance(s, Text) and s.target)
    image = sum(latents_of(query) for row in queries for query in row)
    return TargetsPerRow(text / len(trajectories), image / len(trajectories))


def latents_of(query: VelocityQuery) -> int:
    """Latent tokens of a picture, over all its noisy copies."""
    return query.x.shape[0] * query.x.shape[1]


@runtime_checkable
class Clipped(Protocol):
    """A term whose ratios are clipped."""

    clip_range: float | str


@dataclass(frozen=True)
class Method:
    """A method as everyone else sees it: what it needs, what it asks of a replay, and its losses.

    Subclasses are frozen dataclasses; what stands here is a method that needs nothing.
    """

    name: str
    """Which method; it decides the keys of this section and of data."""

    learns_from = "prompts"
    """prompts: of rollouts that are scored; demonstrations: of trajectories with targets."""
    trains_thinking = False
    """Whether the thinking is trained."""
    trains_drawing = False
    """Whether the drawing is trained."""
    image_grad_through_context = False
    """Whether each loss may change the other half's parameters through the context: the image loss those by which the
    words before it are read, the text loss those by which given and seen pictures before it are read."""
    ignores_words = False
    """Whether demonstrations teach by their pictures alone."""
    ignores_pictures = False
    """Whether demonstrations teach by their words alone."""
    lambda_flow = 1.0
    """Weight of the image term beside the text term."""
    train_vision = False
    """Whether the vision tower is trained too."""
    needs_sde = False
    """Whether SDE steps of a rollout are scored."""
    needs_thinking = False
    """Whether it scores the tokens of a thinking again."""
    of_guided_pictures = True
    """Whether it can learn from pictures that were drawn with guidance."""
    needs_reference_velocity = False
    """Whether trajectories must carry ``reference.velocity``."""
    needs_reference_log_probs = False
    """Whether trajectories must carry ``reference.log_probs``."""
    needs_behaviour_velocity = False
    """Whether trajectories must carry ``behaviour``."""
    needs_reward_gradient = False
    """Whether the reward must be differentiable in the pixels of a picture."""
    uses_advantages = False
    """Whether the loss has no gradient where all advantages are 0 (but for its regulariser)."""
    advantage = Advantage()
    """How rewards become advantages."""

    @property
    def needs_reference(self) -> bool:
        """Whether anything compares with the start checkpoint."""
        return self.needs_reference_velocity or self.needs_reference_log_probs

    @property
    def needs_old_values(self) -> bool:
        """Whether the loss compares with log-probs or transition means of the rollout."""
        return self.needs_thinking or self.needs_sde

    @property
    def clip_ranges(self) -> dict[str, float | str]:
        """The clip ranges of its terms, by the names of their sections."""
        return {name: term.clip_range for name, term in vars(self).items() if isinstance(term, Clipped)}

    def clip_range_for(self, num_elements: int) -> float | None:
        """The range to which ratios of SDE steps are clipped, for pictures of D numbers; None where there is none."""
        return None

    def kept_steps(self, num_points: int) -> tuple[int, int] | None:
        """[lo, hi): the steps among which one is drawn whose state the sampler keeps; None: none."""
        return None

    def copies(self, window_size: int) -> int:
        """Velocities that are asked for per picture (for the dry run)."""
        return 0

    def queries(self, trajectory: Trajectory, generator: torch.Generator, *, shift: float) -> tuple[VelocityQuery, ...]:
        """Return the velocities to ask the replay for; asked once per trajectory, then kept over epochs.

        ``shift``: of the sampler's timestep grid.
        """
        raise NotImplementedError

    def losses(
        self,
        trajectories: Sequence[Trajectory],
        answers: Sequence[Replayed],
        queries: Sequence[Sequence[VelocityQuery]],
        *,
        per_row: TargetsPerRow | None = None,
        latent_reward: LatentReward | None = None,
    ) -> Losses:
        """Return the losses of a micro-batch.

        ``per_row``: the targets of its minibatch, for supervised training; ``latent_reward``: where the method needs
        the reward's gradient.
        """
        raise NotImplementedError
