"""Group-relative advantages: how much better a sample is than the others of its prompt."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unigrpo.ranges import NonNegative, Positive
from unigrpo.trajectory import Trajectory

if TYPE_CHECKING:  # shapes: B rows, P pictures, K noisy copies or steps, n tokens of d numbers
    from jaxtyping import Float


@dataclass(frozen=True)
class Advantage:
    """A = clamp((R - mean) / (std + epsilon), -clip, clip) inside a group (docs/math.md#advantages).

    Paper eq. 1, which has no epsilon and no clamp and leaves the kind of std open; these are the official code's:
    population std (ddof 0), 1e-4 and 5.
    """

    epsilon: NonNegative = 1e-4
    """Added to the group's standard deviation (paper silent)."""
    clip: Positive = 5.0
    """Advantages are clipped to +- this (paper silent)."""

    def of(self, rewards: Float[Tensor, " N"] | Sequence[float], group_ids: Sequence[Hashable]) -> Float[Tensor, " N"]:
        """Return the advantages of N rewards, fp32 [N]; a group is all that share an id.

        Statistics are fp64. A group whose rewards are all equal, so also a group of one, gets exactly 0. Raises
        ValueError on NaN or infinite rewards.
        """
        return _group_advantages(rewards, group_ids, epsilon=self.epsilon, clip=self.clip)

    def assign(self, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
        """Return the trajectories with their advantages; a group is all trajectories of one ``prompt.position``.

        Raises ValueError if a trajectory has no reward yet.
        """
        rewards = [t.reward for t in trajectories]
        known = [r for r in rewards if r is not None]
        if len(known) < len(rewards):
            raise ValueError("a trajectory has no reward: score all trajectories before their advantages")
        advantages = self.of(known, [t.prompt.position for t in trajectories])
        return [replace(t, advantage=a) for t, a in zip(trajectories, advantages.tolist(), strict=True)]


def _group_advantages(
    rewards: Float[Tensor, " N"] | Sequence[float], group_ids: Sequence[Hashable], *, epsilon: float, clip: float
) -> Tensor:
    values = torch.as_tensor(rewards, dtype=torch.float64).detach()
    if values.ndim != 1 or values.shape[0] != len(group_ids):
        raise ValueError(
            f"rewards {list(values.shape)} and group_ids [{len(group_ids)}] must be two lists of one length"
        )
    if not epsilon >= 0.0 or not clip > 0.0:
        raise ValueError(f"epsilon ({epsilon}) must be >= 0 and clip ({clip}) > 0")
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise ValueError(
            f"reward {row} is {float(values[row])}: an advantage needs finite rewards; check the reward function"
        )
    advantages = torch.zeros_like(values)
    for rows in _groups(group_ids):
        group = values[rows]
        if bool(group.max() > group.min()):  # otherwise 0 exactly, whatever the rounding of the mean
            advantages[rows] = (group - group.mean()) / (_spread(group) + epsilon)
    return advantages.clamp(-clip, clip).float()


def _spread(group: Tensor) -> Tensor:
    """The standard deviation of a group; ValueError where fp64 cannot hold it, which would make every advantage 0."""
    std = group.std(correction=0)
    if not bool(torch.isfinite(std)):
        raise ValueError(
            f"rewards from {float(group.min()):g} to {float(group.max()):g} in one group: their spread overflows, and "
            "every advantage would be 0; scale the reward down"
        )
    return std


def advantage_statistics(
    rewards: Float[Tensor, " N"] | Sequence[float],
    advantages: Float[Tensor, " N"] | Sequence[float],
    group_ids: Sequence[Hashable],
) -> dict[str, float]:
    """Return what to log of an iteration's rewards and advantages.

    reward_mean, reward_std: over everything; reward_group_std: mean of the groups' std, the signal GRPO has;
    zero_std_ratio: share of groups without any; advantage_mean, advantage_std, advantage_abs_max.
    """
    values, scaled = (torch.as_tensor(u, dtype=torch.float64).detach() for u in (rewards, advantages))
    groups = [values[rows] for rows in _groups(group_ids)]
    return {
        "reward_mean": float(values.mean()),
        "reward_std": float(values.std(correction=0)),
        "reward_group_std": sum(float(g.std(correction=0)) for g in groups) / len(groups),
        "zero_std_ratio": sum(bool(g.max() == g.min()) for g in groups) / len(groups),
        "advantage_mean": float(scaled.mean()),
        "advantage_std": float(scaled.std(correction=0)),
        "advantage_abs_max": float(scaled.abs().max()),
    }


def _groups(group_ids: Sequence[Hashable]) -> list[list[int]]:
    rows: dict[Hashable, list[int]] = {}
    for row, group in enumerate(group_ids):
        rows.setdefault(group, []).append(row)
    return list(rows.values())
