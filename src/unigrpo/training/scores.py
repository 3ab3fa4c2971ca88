"""Scores of drawings: every picture of every round is scored in one call, and trajectories have those of theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from unigrpo.rewards.composite import Scored
from unigrpo.rewards.protocol import RewardInput, metadata_of
from unigrpo.rollout.sample import Drawn
from unigrpo.trajectory import Score, Trajectory


class Rewarding(Protocol):
    """Scores pictures, and says when too many of them failed (``rewards.composite.CompositeReward``)."""

    def __call__(self, given: RewardInput) -> Scored:
        """The values of B pictures, by reward."""
        ...

    def check_failures(self, failures: Sequence[str | None]) -> None:
        """RewardFault where too many failed."""
        ...


def score(reward: Rewarding, drawn: Drawn) -> list[Trajectory]:
    """Give every drawing its score: reward, values by name, and named parts of the verdict; all in one call.

    A trajectory has those of its last drawing too, or why one of its drawings failed.
    """
    every = drawn.every
    asked = [drawn.trajectories[row].prompt for row in every.owners]
    output = reward(
        RewardInput(
            images=every.pictures.float() / 255.0,
            prompts=[prompt.text for prompt in asked],
            metadata=metadata_of(asked),
            thinking=every.thinking,
        )
    )
    scores: list[list[Score]] = [[] for _ in drawn.trajectories]
    for i, (row, value) in enumerate(zip(every.owners, output.values, strict=True)):
        values = {name: values[i] for name, values in output.by_name.items()}
        verdict = {name: part[i] for name, part in output.parts.items()}
        scores[row].append(Score(None if i in output.failures else float(value), values, verdict))
    failures = of_owners(output.failures, every.owners)
    return [
        _with_scores(t, tuple(own), failures.get(i))
        for i, (t, own) in enumerate(zip(drawn.trajectories, scores, strict=True))
    ]


def _with_scores(trajectory: Trajectory, scores: tuple[Score, ...], failure: str | None) -> Trajectory:
    last = scores[-1]
    return replace(
        trajectory,
        reward=None if failure is not None else last.reward,
        values=last.values,
        verdict=last.verdict,
        failure=failure,
        scores=scores,
    )


def of_owners(failures: Mapping[int, str], owners: Sequence[int]) -> dict[int, str]:
    """Why trajectories failed, by their rows: the first of their drawings that did."""
    found: dict[int, str] = {}
    for i, why in sorted(failures.items()):
        found.setdefault(owners[i], why)
    return found
