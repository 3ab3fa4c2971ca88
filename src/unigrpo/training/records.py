"""What a kept training sample says besides its reward: its window, its rounds, and the thinking's own advantage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from torch import Tensor

from unigrpo.policy import Policy
from unigrpo.rollout.sample import words_of
from unigrpo.training.sharing import key_of
from unigrpo.trajectory import Trajectory


def window_of(trajectory: Trajectory) -> list[int]:
    """The SDE steps of the last drawing."""
    path = trajectory.drawings[-1].path if trajectory.drawings else None
    return [] if path is None else list(path.steps)


def rounds_of(policy: Policy, trajectory: Trajectory) -> dict[str, list[dict[str, Any]]]:
    """What was thought in each round and what its drawing was worth, where there are several; the last may say stop."""
    if len(trajectory.rounds) < 2:
        return {}
    rewards = [score.reward for score in trajectory.scores]
    found = []
    for one, reward in zip_longest(trajectory.rounds, rewards):
        row = {"thinking": words_of(policy, one.thinking), "reward": reward}
        row |= {"advantage_thinking": one.thinking.advantage} if one.thinking is not None else {}
        found.append(row | ({"advantage": one.drawing.advantage} if one.drawing is not None else {}))
    return {"rounds": found}


def looked_at(
    trajectories: Sequence[Trajectory], earlier: Mapping[tuple[int, int], tuple[Tensor, ...]]
) -> dict[int, list[Any]]:
    """The drawings before the last, uint8 [3, H, W] each, by the row of the trajectory, where they are here.

    ``earlier``: by the trajectory's key, of those that came from other ranks without the numbers of their pictures.
    """
    found = {row: t.looked_at or earlier.get(key_of(t), ()) for row, t in enumerate(trajectories)}
    return {row: [one.numpy() for one in shown] for row, shown in found.items() if shown}


def thinking_advantage(trajectory: Trajectory) -> dict[str, float | None]:
    """The advantage of the thinking where it is another than the picture's (``reward.train[].teaches``, J x K)."""
    if len(trajectory.rounds) > 1:  # each round says its own
        return {}
    own = {text.advantage for text in trajectory.sampled_texts} - {trajectory.advantage}
    return {"advantage_thinking": own.pop()} if own else {}
