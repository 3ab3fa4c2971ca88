"""The ratios of samples with several rounds, round by round: statistics, from which nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unigrpo.objectives.credit import places_of
from unigrpo.objectives.terms import Statistics
from unigrpo.policy import Replayed, VelocityQuery
from unigrpo.trajectory import Text, Trajectory, made_by_policy

Rows = dict[int, list[Tensor]]
"""By round (from 1): the log-ratios of its texts, or of its pictures' steps."""


def ratios_by_round(
    trajectories: Sequence[Trajectory],
    answers: Sequence[Replayed],
    queries: Sequence[Sequence[VelocityQuery]],
    log_ratio: Tensor | None,
) -> Statistics:
    """``text/rounds/R/...`` and ``flow/rounds/R/...`` with ``ratio`` (means) and ``ratio_abs_max`` (of log-ratios).

    log_ratio: of the SDE steps, [P, K], of all pictures that were asked for; None where there are none.
    """
    texts: Rows = {}
    for trajectory, answer in zip(trajectories, answers, strict=True):
        start = 0
        for turn, text in _texts(trajectory):
            assert text.log_probs is not None
            now = answer.log_probs.detach()[start : start + text.num_actions].double()
            texts.setdefault(turn, []).append(now - text.log_probs.to(now.device, torch.float64))
            start += text.num_actions
    found = _named("text", texts)
    if log_ratio is None:
        return found
    steps: Rows = {}
    turns = [_turn(t, query.segment) for t, own in zip(trajectories, queries, strict=True) for query in own]
    for turn, row in zip(turns, log_ratio, strict=True):
        steps.setdefault(turn, []).append(row)
    return found | _named("flow", steps)


def _texts(trajectory: Trajectory) -> list[tuple[int, Text]]:
    """The texts that the policy wrote, and their rounds."""
    made = [s for s in trajectory.segments if made_by_policy(s)]
    places = places_of(trajectory.segments)
    return [(turn, s) for (turn, _), s in zip(places, made, strict=True) if isinstance(s, Text)]


def _turn(trajectory: Trajectory, index: int) -> int:
    """The round of a picture, by its segment."""
    return places_of(trajectory.segments[: index + 1])[-1][0]


def _named(half: str, rows: Rows) -> Statistics:
    found: Statistics = {}
    for turn, some in sorted(rows.items()):
        found[f"{half}/rounds/{turn}/ratio"] = torch.stack([row.exp().mean() for row in some])
        found[f"{half}/rounds/{turn}/ratio_abs_max"] = torch.stack([row.abs().max() for row in some])
    return found
