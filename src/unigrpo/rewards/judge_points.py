"""The exam of a prompt: questions with a known answer, some of which mean nothing where another failed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unigrpo.ranges import ConfigError, did_you_mean, shown

EXAM = "judge/exam"
KEYS = ("id", "question", "expected", "depends_on")
MOST = 100
"""Points of one prompt."""


@dataclass(frozen=True)
class Point:
    """A question, whether yes is right, and the points without which it means nothing."""

    id: str
    question: str
    expected: bool = True
    depends_on: tuple[str, ...] = ()


def points_of(prompt: str, metadata: Mapping[str, Any]) -> list[Point]:
    """The points in ``metadata["points"]``; ConfigError names the prompt and what is wrong with them.

    A point is a question (the right answer is yes), or {"id", "question", "expected": "yes" | "no", "depends_on": ids}.
    """
    where, given = f"judge/exam: points of the prompt {shown(prompt)}", metadata.get("points")
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise ConfigError(
            f"{where}: there are none; give every prompt a list of questions under the key points, such as "
            '["Is there a red circle?", {"question": "Is it blue?", "expected": "no"}]'
        )
    if len(given) > MOST:
        raise ConfigError(f"{where}: there are {len(given)}, and at most {MOST} are asked: leave some out")
    points = [_point(f"{where}, number {number + 1}", number, item) for number, item in enumerate(given)]
    _check(where, points)
    return points


def check_points(metadata: Mapping[str, Any]) -> None:
    """ConfigError where a row of prompts has no exam, or one that cannot be asked."""
    points_of("of this row", metadata)


def _point(where: str, number: int, item: Any) -> Point:
    row = {"question": item} if isinstance(item, str) else item
    if not isinstance(row, Mapping):
        raise ConfigError(f"{where}: {shown(item)} is no question and no object with one")
    for key in row:
        if key not in KEYS:
            raise ConfigError(
                f"{where}: unknown key {shown(key)}{did_you_mean(str(key), KEYS)}; known: {', '.join(KEYS)}"
            )
    question, expected, depends = row.get("question"), row.get("expected", "yes"), row.get("depends_on", ())
    if not isinstance(question, str) or not question.strip():
        raise ConfigError(f"{where}: question is {shown(question)}; write a question that yes or no answers")
    if expected not in ("yes", "no", True, False):
        raise ConfigError(f"{where}: expected is {shown(expected)}; write yes or no")
    depends = [depends] if isinstance(depends, str | int) else depends
    if not isinstance(depends, Sequence):
        raise ConfigError(f"{where}: depends_on is {shown(depends)}; write a list of the ids of other points")
    name = str(row.get("id", number + 1))
    return Point(name, question.strip(), expected in ("yes", True), tuple(str(other) for other in depends))


def _check(where: str, points: Sequence[Point]) -> None:
    """Ids are there once, and every point can be reached from those that depend on nothing."""
    ids = [point.id for point in points]
    if twice := [name for name in ids if ids.count(name) > 1]:
        raise ConfigError(f"{where}: the id {shown(twice[0])} is there {ids.count(twice[0])} times; number them apart")
    for point in points:
        if unknown := [other for other in point.depends_on if other not in ids]:
            raise ConfigError(f"{where}: {shown(point.id)} depends on {shown(unknown[0])}, which is no id of a point")
    reached, left = set[str](), list(points)
    while ready := [point for point in left if reached.issuperset(point.depends_on)]:
        reached |= {point.id for point in ready}
        left = [point for point in left if point not in ready]
    if left:
        raise ConfigError(f"{where}: {', '.join(p.id for p in left)} depend on each other in a circle")


@dataclass(frozen=True)
class Grade:
    """Of one picture: the means over its points of P(right) and of right or not, their product's root, all right."""

    soft: float
    hard: float
    geometric: float
    all: float


def grade(points: Sequence[Point], yes: Sequence[float]) -> Grade:
    """Mark an exam; ``yes`` is P(yes) for each point. A point whose ``depends_on`` are not all right counts 0 (DSG)."""
    right = {p.id: (y > 0.5) == p.expected for p, y in zip(points, yes, strict=True)}
    above = {p.id: p.depends_on for p in points}

    def stands(name: str) -> bool:
        return all(right[other] and stands(other) for other in above[name])

    soft = [(y if p.expected else 1.0 - y) * stands(p.id) for p, y in zip(points, yes, strict=True)]
    hard = [float(right[p.id] and stands(p.id)) for p in points]
    count = len(points)
    geometric = math.exp(math.fsum(map(math.log, soft)) / count) if min(soft) > 0.0 else 0.0
    return Grade(math.fsum(soft) / count, math.fsum(hard) / count, geometric, min(hard))
