"""GenEval's rules: is a picture right, given what a detector found in it? Pure Python, without torch or numpy.

They give the verdicts of the official evaluation, with its edges (docs/geneval.md lists them): a detection counts if
its score is *above* 0.3 (0.9 for counting); of a class the 16 most confident count; an entry of ``include`` looks at
its ``count`` most confident objects; boxes that overlap are not merged.

Source: GenEval (arXiv 2310.11513), protocol.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from unigrpo.evaluation.geneval_metadata import Asked, Wanted, read
from unigrpo.ranges import shown

THRESHOLD = 0.3
COUNTING_THRESHOLD = 0.9
MAX_OBJECTS = 16
OVERLAP = 0.1
"""Share of both objects' sizes that an offset between their centres must exceed to be one."""
LEAST_OFFSET = 1e-3  # pixels
LEAST_SHARE = 0.5
"""Of the distance between the centres: a relation holds above it, so on a diagonal two of them hold."""


class DetectionError(ValueError):
    """A detector's answer that cannot be judged: the picture is not judged, which is not the same as wrong."""


@dataclass(frozen=True)
class Verdict:
    """Whether a picture is right, and what is not, in words; one reason at most for an entry of the metadata."""

    correct: bool
    reasons: list[str]


@dataclass(frozen=True)
class Found:
    """A detection that counts: its box (x0, y0, x1, y1) in pixels, y downwards."""

    name: str
    box: tuple[float, float, float, float]
    score: float
    colour: str | None


def judge(metadata: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]) -> Verdict:
    """Judge a picture by what was found in it.

    metadata: a line of GenEval's prompt file: ``tag``, ``include``, ``exclude``. detections: all that a detector gave,
    unfiltered and in any order, as ``{"class", "box": [x0, y0, x1, y1], "score", "color"}``; color: one of GenEval's
    ten, or None where it was not looked for, which is no colour that anybody asks for. ConfigError for metadata without
    the form of GenEval's, DetectionError for detections without theirs.
    """
    asked = read(metadata)
    found = kept(asked.tag, detections)
    reasons: list[str] = []
    groups: list[Sequence[Found] | None] = []  # the objects of every entry so far; None: it failed
    for item in asked.include:
        group = found.get(item.name, [])[: item.count]
        fault = _fault(item, group, groups)
        groups.append(group if fault is None else None)
        reasons += [] if fault is None else [fault]
    for item in asked.exclude:
        number = len(found.get(item.name, []))
        if number >= item.count:
            reasons.append(f"fewer than {item.count} {item.name} wanted, {number} found")
    return Verdict(not reasons, reasons)


def kept(tag: str, detections: Sequence[Mapping[str, Any]]) -> dict[str, list[Found]]:
    """The detections that count, by class, the most confident first.

    Of equal scores the later one goes first, as the official sort has it (for up to 16 objects of a class; beyond, its
    order of equals depends on NumPy's version and the processor).
    """
    threshold = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    read_all = [_found(index, detection) for index, detection in enumerate(detections)]
    found: dict[str, list[Found]] = {}
    for one in sorted(reversed(read_all), key=lambda one: -one.score):
        if one.score > _precision(one.score)(threshold):
            found.setdefault(one.name, []).append(one)
    return {name: group[:MAX_OBJECTS] for name, group in found.items()}


def relations(box: Sequence[float], other: Sequence[float]) -> frozenset[str]:
    """How a box lies to another one: none, one or, on a diagonal, two of left of, right of, above, below.

    With the offset o between the centres and the boxes' sizes s (per axis): r = sign(o) max(|o| - 0.1 (s1 + s2), 0); a
    relation holds where |r| / ||o|| > 0.5 on its axis, and none does where |r| < 0.001 on both axes.
    """
    to = _precision(*box, *other)
    offset, reduced = [0.0, 0.0], [0.0, 0.0]
    for axis in (0, 1):
        (low, high), (low2, high2) = (box[axis], box[axis + 2]), (other[axis], other[axis + 2])
        sizes = to(to(abs(high - low)) + to(abs(high2 - low2)))
        offset[axis] = to(to(low + high) / 2 - to(low2 + high2) / 2)
        margin = to(to(OVERLAP) * sizes)
        reduced[axis] = math.copysign(max(to(abs(offset[axis]) - margin), 0.0), offset[axis])
    if all(abs(r) < to(LEAST_OFFSET) for r in reduced):
        return frozenset()
    distance = to(math.sqrt(to(to(offset[0] * offset[0]) + to(offset[1] * offset[1]))))
    x, y = to(reduced[0] / distance), to(reduced[1] / distance)
    holds = {
        "left of": x < -LEAST_SHARE,
        "right of": x > LEAST_SHARE,
        "above": y < -LEAST_SHARE,
        "below": y > LEAST_SHARE,
    }
    return frozenset(name for name, true in holds.items() if true)


def _precision(*numbers: float) -> Callable[[float], float]:
    """How results of computing with these numbers are rounded.

    A detector's numbers are in single precision, and the official evaluation computes with them in single precision:
    there 0.3 is 0.300000012, and a score of that is not above it. Other numbers are computed with as they are.
    """
    return _single if all(_single(number) == number for number in numbers) else float


def _single(number: float) -> float:
    return ctypes.c_float(number).value


def uncoloured(asked: Asked, found: Mapping[str, Sequence[Found]]) -> str | None:
    """A class of which a colour is asked for, and a detector that was to look for it gave none; None: there is none."""
    for item in asked.include:
        group = found.get(item.name, [])[: item.count]
        if item.colour is not None and len(group) == item.count and any(one.colour is None for one in group):
            return item.name
    return None


def _fault(item: Wanted, group: Sequence[Found], groups: Sequence[Sequence[Found] | None]) -> str | None:
    """What is wrong with the objects of one entry: their number, then their colour, then their place."""
    if len(group) < item.count:
        return f"{item.count} {item.name} wanted, {len(group)} found"
    colours = [one.colour for one in group]
    if item.colour is not None and colours.count(item.colour) < item.count:
        seen = ", ".join(str(colour or "no colour") for colour in colours)
        return f"{item.count} {item.colour} {item.name} wanted, the most confident: {seen}"
    if item.place is None:
        return None
    relation, target = item.place
    others = groups[target]
    if others is None:
        return f"{item.name} wanted {relation} what is not there as it was asked for"
    for one, other in product(group, others):
        if relation not in (true := relations(one.box, other.box)):
            return f"{item.name} wanted {relation} {other.name}, it is {' and '.join(sorted(true)) or 'nowhere to it'}"
    return None


def _found(index: int, detection: Mapping[str, Any]) -> Found:
    """A detection whose numbers are sound."""
    try:
        name, colour, score = detection["class"], detection.get("color"), float(detection["score"])
        x0, y0, x1, y1 = map(float, detection["box"])
    except (KeyError, TypeError, ValueError) as error:
        raise DetectionError(
            f"detection {index} is {shown(detection)}: it must have class, box (x0, y0, x1, y1) and score"
        ) from error
    if not all(map(math.isfinite, (x0, y0, x1, y1, score))):
        raise DetectionError(f"detection {index} ({name}) has NaN or infinity: box {[x0, y0, x1, y1]}, score {score}")
    return Found(name, (x0, y0, x1, y1), score, colour)
