"""What the image half of a method is: which velocities it asks for, and its loss of them.

A new image term is one file: a frozen dataclass over :class:`ImageTerm`, whose fields a recipe fills. It is used by
name, ``method.name: path/file.py:Term`` (docs/extend.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from unigrpo.objectives.terms import Term
from unigrpo.policy import Replayed, VelocityQuery
from unigrpo.trajectory import FlowPath, Image, Prompt, Trajectory

if TYPE_CHECKING:  # shapes: B rows, P pictures, K noisy copies or steps, n tokens of d numbers
    from jaxtyping import Float

_T = TypeVar("_T")

LatentReward = Callable[[Tensor, Sequence[Prompt]], Tensor]
"""(latents [B, n, d], their prompts) -> rewards [B], with gradients into the latents."""


@dataclass(frozen=True)
class ImageTerm:
    """The image half of a method. A term overrides what it needs; trainer and builder ask these, never for a type."""

    needs_sde = False
    """Whether it is about the SDE steps of a rollout (else pictures are drawn by the ODE alone)."""
    needs_behaviour_velocity = False
    """Whether trajectories must carry ``behaviour``, the velocities of the weights before the update."""
    needs_reward_gradient = False
    """Whether it follows the gradient of the reward, and not advantages."""
    of_guided_pictures = False
    """Whether it can learn from pictures that were drawn with guidance."""

    def query(self, segment: int, image: Image, generator: torch.Generator, *, shift: float) -> VelocityQuery | None:
        """Where velocities are wanted for a picture that the policy drew; None: nowhere.

        Asked once per trajectory and kept over epochs. ``shift``: of the sampler's timestep grid.
        """
        raise NotImplementedError

    def loss(self, batch: ImageBatch, advantages: Float[Tensor, " P"]) -> Term:
        """Return the loss per picture, [P]; advantages: fp64 [P], the pictures' own."""
        raise NotImplementedError

    def copies(self, window_size: int) -> int:
        """Velocities that are asked for per picture (for the dry run)."""
        raise NotImplementedError

    def kept_steps(self, num_points: int) -> tuple[int, int] | None:
        """[lo, hi): the steps among which one is drawn whose state the sampler keeps for :meth:`query`; None: none."""
        return None

    def clip_range_for(self, num_elements: int) -> float | None:
        """The range to which ratios of SDE steps are clipped, for pictures of D numbers; None where there is none."""
        return None


@dataclass(frozen=True)
class ImageBatch:
    """The P pictures that B trajectories asked velocities for, entry by entry.

    velocities: of now, with gradients; references: the start checkpoint's; behaviours: the states that velocities were
    taken at before the update, and those velocities; all [K, n, d]. owners: the row of the trajectory. latent_reward:
    there where the term needs the reward's gradient.
    """

    trajectories: Sequence[Trajectory]
    images: list[Image]
    queries: list[VelocityQuery]
    velocities: list[Float[Tensor, "K n d"]]
    references: list[Float[Tensor, "K n d"] | None]
    behaviours: list[tuple[Float[Tensor, "K n d"], Float[Tensor, "K n d"]] | None]
    owners: list[int]
    latent_reward: LatentReward | None = None

    @property
    def paths(self) -> list[FlowPath]:
        """The SDE steps of every picture; ValueError where one has none."""
        return present([image.path for image in self.images], "a picture with SDE steps")

    @property
    def advantages(self) -> Float[Tensor, " P"]:
        """The advantage of every picture, fp64; ValueError where one has none."""
        known = present([image.advantage for image in self.images], "an advantage of a picture")
        return torch.tensor(known, dtype=torch.float64)

    @property
    def targets(self) -> list[Float[Tensor, "K n d"]]:
        """eps - x_0 of every noisy copy; ValueError where the queries are not about noised pictures."""
        return present([query.target for query in self.queries], "a target velocity")

    @property
    def prompts(self) -> list[Prompt]:
        """What every picture was drawn for."""
        return [self.trajectories[owner].prompt for owner in self.owners]


def collect(
    trajectories: Sequence[Trajectory],
    answers: Sequence[Replayed],
    queries: Sequence[Sequence[VelocityQuery]],
    latent_reward: LatentReward | None = None,
) -> ImageBatch:
    """Put together what is known of every picture; ValueError where a trajectory has none, or not all were replayed."""
    batch = ImageBatch(trajectories, [], [], [], [], [], [], latent_reward)
    for row, (trajectory, answer, wanted) in enumerate(zip(trajectories, answers, queries, strict=True)):
        if not wanted or len(wanted) != len(answer.velocities):
            raise ValueError(
                f"trajectory {row} has {len(wanted)} pictures to train on and {len(answer.velocities)} replayed: an "
                "image term needs at least one, and a replay of each (does the rollout keep what this term asks for?)"
            )
        sizes = [len(query.t) for query in wanted]
        reference, behaviour = trajectory.reference, trajectory.behaviour
        v_ref = None if reference is None else reference.velocity
        batch.images.extend(_image(trajectory, query.segment) for query in wanted)
        batch.queries.extend(wanted)
        batch.velocities.extend(answer.velocities)
        batch.references.extend([None] * len(wanted) if v_ref is None else v_ref.split(sizes))
        batch.behaviours.extend(
            [None] * len(wanted)
            if behaviour is None
            else list(zip(behaviour.x.split(sizes), behaviour.velocity.split(sizes), strict=True))
        )
        batch.owners.extend([row] * len(wanted))
    return batch


def _image(trajectory: Trajectory, index: int) -> Image:
    segment = trajectory.segments[index]
    assert isinstance(segment, Image)
    return segment


def behaviour_velocities(batch: ImageBatch) -> list[Float[Tensor, "K n d"]]:
    """The old velocities [K, n, d] of every picture, checked to be at the very states that are asked for now.

    Raises ValueError where they are not: queries are made once per trajectory and kept over epochs, since a ratio of
    losses at different (t, eps) would not be 1 for equal weights (docs/math.md#fpo).
    """
    found = present(batch.behaviours, "the velocities before the update")
    for row, (query, (x, _)) in enumerate(zip(batch.queries, found, strict=True)):
        if x.shape != query.x.shape or not torch.equal(x, query.x):
            raise ValueError(
                f"picture {row} was noised anew since its old velocities were taken: draw (t, eps) once per trajectory "
                "and keep them over epochs"
            )
    return [velocity for _, velocity in found]


def owner_means(values: Float[Tensor, " P"], owners: list[int], rows: int) -> Float[Tensor, " B"]:
    """Mean over the pictures of each trajectory; 0 for one without."""
    if owners == list(range(rows)):
        return values
    index = torch.tensor(owners, device=values.device)
    return owner_sums(values, owners, rows) / torch.bincount(index, minlength=rows).clamp(min=1)


def owner_sums(values: Float[Tensor, " P"], owners: list[int], rows: int) -> Float[Tensor, " B"]:
    """Sum over the pictures of each trajectory; 0 for one without."""
    return values.new_zeros(rows).index_add(0, torch.tensor(owners, device=values.device), values)


def present(values: Sequence[_T | None], what: str) -> list[_T]:
    """Return the values if none is missing; ValueError otherwise."""
    found = [v for v in values if v is not None]
    if len(found) < len(values):
        raise ValueError(f"{len(values) - len(found)} of {len(values)} rows lack {what}, which the method asks for")
    return found
