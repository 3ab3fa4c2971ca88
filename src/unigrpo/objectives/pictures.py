"""Drawn pictures in a replay: which velocities a method asks for, and what replay, past and reference say of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from unigrpo.trajectory import NO_GUIDANCE, FlowPath, Guidance, Image, Trajectory

_T = TypeVar("_T")


@dataclass(frozen=True)
class Draw:
    """Velocities that a method wants for the image ``segments[segment]``: at x [K, n, d] and t [K].

    ``target`` [K, n, d] is eps - x_0 where x was made by noising the picture, None where the sampler was there.
    ``guidance``: how the conditional velocity is to be mixed with those of the unconditional branches, at those of the
    K times that are ``guided`` (none where it is empty).
    """

    segment: int
    x: Tensor
    t: Tensor
    target: Tensor | None = None
    guidance: Guidance = NO_GUIDANCE
    guided: tuple[bool, ...] = ()


class Answers(Protocol):
    """What the replay said of one trajectory (a ``policy.Replayed`` is one)."""

    @property
    def log_probs(self) -> Tensor:
        """[actions] of all scored texts, in order."""
        ...

    @property
    def velocities(self) -> tuple[Tensor, ...]:
        """Per draw [K, n, d]."""
        ...


@dataclass(frozen=True)
class Pictures:
    """The P pictures that B trajectories asked velocities for, entry by entry.

    velocities: of now, with gradients; references: the start checkpoint's; behaviours: those of the weights before the
    update, and the states they were taken at; all [K, n, d]. owners: the row of the trajectory.
    """

    trajectories: Sequence[Trajectory]
    images: list[Image]
    draws: list[Draw]
    velocities: list[Tensor]
    references: list[Tensor | None]
    behaviours: list[tuple[Tensor, Tensor] | None]
    owners: list[int]

    @property
    def paths(self) -> list[FlowPath]:
        """The SDE steps of every picture; ValueError where one has none."""
        return present([image.path for image in self.images], "a picture with SDE steps")


def collect(
    trajectories: Sequence[Trajectory], answers: Sequence[Answers], draws: Sequence[Sequence[Draw]]
) -> Pictures:
    """Put together what is known of every picture; ValueError where a trajectory has none, or not all were replayed."""
    pictures = Pictures(trajectories, [], [], [], [], [], [])
    for row, (trajectory, answer, wanted) in enumerate(zip(trajectories, answers, draws, strict=True)):
        if not wanted or len(wanted) != len(answer.velocities):
            raise ValueError(
                f"trajectory {row} has {len(wanted)} pictures to train on and {len(answer.velocities)} replayed: an "
                "image term needs at least one, and a replay of each (does the rollout keep what this term asks for?)"
            )
        sizes = [len(draw.t) for draw in wanted]
        reference, behaviour = trajectory.reference, trajectory.behaviour
        v_ref = None if reference is None else reference.velocity
        pictures.images.extend(_image(trajectory, draw.segment) for draw in wanted)
        pictures.draws.extend(wanted)
        pictures.velocities.extend(answer.velocities)
        pictures.references.extend([None] * len(wanted) if v_ref is None else v_ref.split(sizes))
        pictures.behaviours.extend(
            [None] * len(wanted)
            if behaviour is None
            else list(zip(behaviour.x.split(sizes), behaviour.velocity.split(sizes), strict=True))
        )
        pictures.owners.extend([row] * len(wanted))
    return pictures


def _image(trajectory: Trajectory, index: int) -> Image:
    segment = trajectory.segments[index]
    assert isinstance(segment, Image)
    return segment


def behaviour_velocities(pictures: Pictures) -> list[Tensor]:
    """The old velocities [K, n, d] of every picture, checked to be at the very states that are asked for now.

    Raises ValueError where they are not: the draws of a method are made once per trajectory and kept over epochs, since
    a ratio of losses at different (t, eps) would not be 1 for equal weights (spec I.33).
    """
    found = present(pictures.behaviours, "the velocities before the update")
    for row, (draw, (x, _)) in enumerate(zip(pictures.draws, found, strict=True)):
        if x.shape != draw.x.shape or not torch.equal(x, draw.x):
            raise ValueError(
                f"picture {row} was noised anew since its old velocities were taken: draw (t, eps) once per trajectory "
                "and keep them over epochs"
            )
    return [velocity for _, velocity in found]


def owner_means(values: Tensor, owners: list[int], rows: int) -> Tensor:
    """Mean over the pictures of each trajectory; 0 for one without."""
    if owners == list(range(rows)):
        return values
    index = torch.tensor(owners, device=values.device)
    return owner_sums(values, owners, rows) / torch.bincount(index, minlength=rows).clamp(min=1)


def owner_sums(values: Tensor, owners: list[int], rows: int) -> Tensor:
    """Sum over the pictures of each trajectory; 0 for one without."""
    return values.new_zeros(rows).index_add(0, torch.tensor(owners, device=values.device), values)


def behaviour_log_probs(trajectory: Trajectory) -> Tensor:
    """Return the log-probs [actions] that the rollout gave the tokens it sampled, all texts in order."""
    texts = [t.log_probs for t in trajectory.sampled_texts if t.log_probs is not None]
    return torch.cat(texts) if texts else torch.empty(0)


def present(values: Sequence[_T | None], what: str) -> list[_T]:
    """Return the values if none is missing; ValueError otherwise."""
    found = [v for v in values if v is not None]
    if len(found) < len(values):
        raise ValueError(f"{len(values) - len(found)} of {len(values)} rows lack {what}, which the method asks for")
    return found
