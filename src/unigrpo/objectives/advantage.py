"""Group-relative advantages: how much better a sample is than the others of its prompt."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from unigrpo.objectives.credit import Columns, Credit, Teacher, assigned
from unigrpo.ranges import NonNegative, NotFiniteError, Positive
from unigrpo.trajectory import Score, Trajectory

if TYPE_CHECKING:  # shapes: B rows, P pictures, K noisy copies or steps, n tokens of d numbers
    from jaxtyping import Float


Half = Literal["thinking", "drawing"]


@dataclass(frozen=True)
class Share:
    """A training reward as advantages see it: its name in ``Trajectory.values``, its weight, and whom it teaches."""

    name: str
    weight: float = 1.0
    teaches: Literal["both", "thinking", "drawing"] = "both"

    def reaches(self, half: Half) -> bool:
        """Whether it counts for texts, or for pictures."""
        return self.teaches in ("both", half)


@dataclass(frozen=True)
class Advantage:
    """A = clamp((R - baseline) / scale, -clip, clip) inside a group, for every text and picture that was sampled.

    Paper eq. 1: baseline the group's mean, scale its standard deviation; it has no epsilon and no clamp and leaves the
    kind of std open: population std (ddof 0), 1e-4 and 5 are the official code's. docs/math.md#advantages has the
    formulas of the others, and their sources.
    """

    epsilon: NonNegative = 1e-4
    """Added to a standard deviation (paper silent)."""
    clip: Positive = 5.0
    """Advantages are clipped to +- this (paper silent)."""
    combine: Literal["sum", "gdpo"] = "sum"
    """Several rewards: sum compares their weighted sum; gdpo each by itself, then the weighted sum over the batch."""
    scale: Literal["group_std", "batch_std", "none"] = "group_std"
    """What differences are divided by: the group's std, that of the whole batch, or nothing (Dr. GRPO)."""
    baseline: Literal["group", "leave_one_out"] = "group"
    """What a reward is compared with: the mean of its group, or that of the others in it."""
    within: Literal["group", "thought"] = "group"
    """Which pictures one is compared with: all of its prompt, or those of its thought (rollout.images_per_thinking)."""
    credit: Credit = "terminal"
    """With rollout.rounds: worth the last picture, the mean of those that come after, or what a round improved."""

    def of(self, rewards: Float[Tensor, " N"] | Sequence[float], group_ids: Sequence[Hashable]) -> Float[Tensor, " N"]:
        """Return the advantages of N rewards, fp32 [N]; a group is all that share an id.

        Statistics are fp64. A group whose rewards are all equal, so also a group of one, gets exactly 0. Raises
        ValueError on NaN or infinite rewards.
        """
        return self._clipped(self._compared(_checked(rewards, group_ids), group_ids))

    def of_several(
        self, columns: Sequence[tuple[float, Sequence[float]]], group_ids: Sequence[Hashable]
    ) -> Float[Tensor, " N"]:
        """The same of several rewards, (weight, values [N]) each, put together by ``combine`` (docs/math.md#gdpo)."""
        if self.combine == "sum":
            total = [0.0] * len(group_ids)
            for weight, values in columns:
                total = [before + weight * value for before, value in zip(total, values, strict=True)]
            return self.of(total, group_ids)
        each = [weight * self._compared(_checked(values, group_ids), group_ids) for weight, values in columns]
        joined = torch.stack(each).sum(0)
        level = torch.stack(each).eq(0.0).all(0)  # of groups whose rewards are all equal, which teach exactly nothing
        if bool(joined.max() > joined.min()):
            joined = (joined - joined.mean()) / (_spread(joined) + self.epsilon)
        else:
            joined = torch.zeros_like(joined)
        return self._clipped(joined.masked_fill(level, 0.0))

    def assign(self, trajectories: Sequence[Trajectory], shares: Sequence[Share] = ()) -> list[Trajectory]:
        """Return the trajectories with an advantage for each text and each picture that they made.

        A group is all trajectories of one ``prompt.position``. A text is worth the mean of its thought's pictures, and
        is compared with the other thoughts of the group; a picture with those of its group (or thought: ``within``).
        ``shares``: the training rewards; none means ``Trajectory.reward`` for both halves. What no reward teaches has
        no advantage. With several rounds, ``credit`` says what each of them is worth (docs/math.md#rounds). Raises
        ValueError if a trajectory has not been scored.
        """
        if any(t.reward is None for t in trajectories):
            raise ValueError("a trajectory has no reward: score all trajectories before their advantages")
        shared = any(t.thought is not None for t in trajectories)
        if (self.credit != "terminal" or shared) and any(len(t.rounds) > 1 for t in trajectories):
            return assigned(trajectories, _teachers(shares), self.credit, self.of_several, within=self.within)
        groups = [t.prompt.position for t in trajectories]
        thoughts = [t.thinking_key for t in trajectories]
        thinking = self._of_thoughts(_columns(trajectories, shares, "thinking"), thoughts)
        others = thoughts if self.within == "thought" else groups
        drawing = self._of_rows(_columns(trajectories, shares, "drawing"), others)
        return [t.with_advantages(a, b) for t, a, b in zip(trajectories, thinking, drawing, strict=True)]

    def _of_rows(self, columns: Columns, groups: Sequence[Hashable]) -> Sequence[float | None]:
        """None where no reward teaches this half."""
        return self.of_several(columns, groups).tolist() if columns else [None] * len(groups)

    def _of_thoughts(self, columns: Columns, thoughts: Sequence[tuple[int, int]]) -> Sequence[float | None]:
        """Advantages of thoughts, for every trajectory that has one; each is worth the mean of its pictures."""
        members = list(_groups(thoughts))
        means = [(weight, [_mean([values[i] for i in rows]) for rows in members]) for weight, values in columns]
        per_thought = self._of_rows(means, [thoughts[rows[0]][0] for rows in members])
        found: list[float | None] = [None] * len(thoughts)
        for rows, advantage in zip(members, per_thought, strict=True):
            for row in rows:
                found[row] = advantage
        return found

    def _compared(self, values: Tensor, group_ids: Sequence[Hashable]) -> Tensor:
        """(R - baseline) / scale, fp64 [N]; exactly 0 where all rewards of a group are equal."""
        whole = _spread(values) if self.scale == "batch_std" else None
        advantages = torch.zeros_like(values)
        for rows in _groups(group_ids):
            group = values[rows]
            if bool(group.max() > group.min()):  # otherwise 0 exactly, whatever the rounding of the mean
                advantages[rows] = self._scaled(group - self._baseline(group), group, whole)
        return advantages

    def _baseline(self, group: Tensor) -> Tensor:
        if self.baseline == "group":
            return group.mean()
        return (group.sum() - group) / (len(group) - 1)

    def _scaled(self, difference: Tensor, group: Tensor, whole: Tensor | None) -> Tensor:
        if self.scale == "none":
            _spread(group)  # only to refuse what overflows
            return difference
        return difference / ((_spread(group) if whole is None else whole) + self.epsilon)

    def _clipped(self, advantages: Tensor) -> Tensor:
        if not self.epsilon >= 0.0 or not self.clip > 0.0:
            raise ValueError(f"epsilon ({self.epsilon}) must be >= 0 and clip ({self.clip}) > 0")
        return advantages.clamp(-self.clip, self.clip).float()


def _teachers(shares: Sequence[Share]) -> list[Teacher]:
    """The rewards as credit sees them: read from the scores of single drawings."""
    if not shares:
        return [Teacher(1.0, lambda score: float("nan") if score.reward is None else score.reward)]
    return [Teacher(s.weight, partial(_named, s.name), s.reaches("thinking"), s.reaches("drawing")) for s in shares]


def _named(name: str, score: Score) -> float:
    return score.values[name]


def _columns(trajectories: Sequence[Trajectory], shares: Sequence[Share], half: Half) -> Columns:
    """The rewards that teach a half."""
    if not shares:
        return [(1.0, [float("nan") if t.reward is None else t.reward for t in trajectories])]
    return [(s.weight, [t.values[s.name] for t in trajectories]) for s in shares if s.reaches(half)]


def _mean(values: Sequence[float]) -> float:
    return values[0] if len(values) == 1 else sum(values) / len(values)


def _checked(rewards: Float[Tensor, " N"] | Sequence[float], group_ids: Sequence[Hashable]) -> Tensor:
    """Rewards as fp64 [N]; ValueError where they are not one number a row, NotFiniteError where one is not finite."""
    values = torch.as_tensor(rewards, dtype=torch.float64).detach()
    if values.ndim != 1 or values.shape[0] != len(group_ids):
        raise ValueError(
            f"rewards {list(values.shape)} and group_ids [{len(group_ids)}] must be two lists of one length"
        )
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise NotFiniteError(
            f"reward {row} is {float(values[row])}: an advantage needs finite rewards; check the reward function"
        )
    return values


def _spread(group: Tensor) -> Tensor:
    """The standard deviation; NotFiniteError where fp64 cannot hold it, which would make every advantage 0."""
    std = group.std(correction=0)
    if not bool(torch.isfinite(std)):
        raise NotFiniteError(
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
