"""Which pictures a thinking or a drawing is worth, where a sample has several rounds (docs/math.md#rounds)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from unigrpo.trajectory import Image, Score, Segment, Text, Trajectory, made_by_policy

Credit = Literal["terminal", "per_picture", "improvement"]
Columns = Sequence[tuple[float, Sequence[float]]]
"""Rewards as (weight, one value a row)."""
Compare = Callable[[Columns, Sequence[Hashable]], Tensor]
"""Columns and the group of every row -> one advantage a row (``Advantage.of_several``)."""


@dataclass(frozen=True)
class Teacher:
    """A reward by its weight: ``of`` reads it from a score; it counts for texts (``thinking``) or pictures, or both."""

    weight: float
    of: Callable[[Score], float]
    thinking: bool = True
    drawing: bool = True


Place = tuple[int, type[Text] | type[Image]]
"""A thinking or a drawing of one round (from 1)."""


def places_of(segments: Sequence[Segment]) -> list[Place]:
    """Round and kind of every segment that the policy made, in order."""
    found, turn = list[Place](), 1
    for segment in segments:
        if made_by_policy(segment):
            found.append((turn, Text if isinstance(segment, Text) else Image))
            turn += isinstance(segment, Image)
    return found


def worth(scores: Sequence[float], turn: int, credit: Credit) -> float:
    """What the thinking and the drawing of a round are worth, of a sample whose n pictures have these scores.

    per_picture: the mean of scores[turn:], of the pictures that come after (a drawing itself included); improvement:
    scores[1] in the first round, scores[turn] - scores[turn - 1] in later ones (counted from 1). A thinking that ends
    its sample (turn = n + 1) is worth the picture that stands, or no improvement. terminal: the last.
    """
    if credit == "per_picture":
        after = scores[turn - 1 :] or scores[-1:]
        return sum(after) / len(after)
    if credit == "improvement" and turn > 1:
        return scores[turn - 1] - scores[turn - 2] if turn <= len(scores) else 0.0
    return scores[0] if credit == "improvement" else scores[-1]


@dataclass(frozen=True)
class Compared:
    """Rows that are of one thinking are one (``members``, each worth the mean of its rows), compared in ``groups``."""

    members: Sequence[Sequence[int]]
    groups: Sequence[Hashable]


def compared(
    trajectories: Sequence[Trajectory], rows: Sequence[int], place: Place, *, within: Literal["group", "thought"]
) -> Compared:
    """Who is compared with whom at a place: thinkings and drawings of a round with those of their prompt.

    The first thinking may be shared by several rows, and then their drawings may be compared by themselves (``within``
    thought); in later rounds each thinks for itself.
    """
    thoughts: dict[Hashable, list[int]] = {}
    for row in rows:
        thoughts.setdefault(trajectories[row].thinking_key, []).append(row)
    members = list(thoughts.values()) if place == (1, Text) else [[row] for row in rows]
    keys = [trajectories[some[0]].thinking_key for some in members]
    alone = within == "thought" and place == (1, Image)
    return Compared(members, keys if alone else [position for position, _ in keys])


def assigned(
    trajectories: Sequence[Trajectory],
    teachers: Sequence[Teacher],
    credit: Credit,
    compare: Compare,
    *,
    within: Literal["group", "thought"] = "group",
) -> list[Trajectory]:
    """The trajectories with an advantage for each text and picture: each compared with those of its round in its group.

    A group is all trajectories of one ``prompt.position`` that have such a segment (:func:`compared`); of terminal, all
    of them. ValueError where a drawing has no score.
    """
    if any(len(t.scores) != len(t.drawings) for t in trajectories):
        raise ValueError("a drawing has no score: score all drawings of a trajectory before its advantages")
    rows: dict[Place, list[int]] = {}
    for row, trajectory in enumerate(trajectories):
        for place in places_of(trajectory.segments):
            rows.setdefault(place, []).append(row)
    found: dict[tuple[int, Place], float] = {}
    for place, some in rows.items():
        turn, kind = place
        who = [t for t in teachers if (t.thinking if kind is Text else t.drawing)]
        if not who:
            continue
        # the last picture is what a whole sample is worth: those that stopped before this place are compared as well
        peers = range(len(trajectories)) if credit == "terminal" else some
        sides = compared(trajectories, peers, place, within=within)
        columns = [(t.weight, [_worth_of(trajectories, rows, t, turn, credit) for rows in sides.members]) for t in who]
        values = compare(columns, sides.groups).tolist()
        found |= {(row, place): value for rows, value in zip(sides.members, values, strict=True) for row in rows}
    return [
        t.with_each_advantage([found.get((row, place)) for place in places_of(t.segments)])
        for row, t in enumerate(trajectories)
    ]


def _worth_of(
    trajectories: Sequence[Trajectory], rows: Sequence[int], teacher: Teacher, turn: int, credit: Credit
) -> float:
    """The mean of what a thinking or a drawing is worth to its rows."""
    values = [worth([teacher.of(score) for score in trajectories[row].scores], turn, credit) for row in rows]
    return values[0] if len(values) == 1 else sum(values) / len(values)
