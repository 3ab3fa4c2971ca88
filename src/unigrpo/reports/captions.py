"""What curves of a run say of themselves: captions are computed, so that they are true of any run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

Series = tuple[np.ndarray, np.ndarray]
FEW = 3
"""Curves up to which a caption gives the numbers of each; of more it counts those that ended higher and lower."""
MANY = 8
"""Points from which a curve's ends are those of its smoothed course."""
NOISE = 3.0
"""Standard errors of the difference of a curve's ends, up to which it is noise."""


class Course(NamedTuple):
    """Where a curve begins and ends, and the way in which it moved by more than its noise: 1, -1, or 0 for neither."""

    start: float
    end: float
    way: int

    def __str__(self) -> str:
        start, end = f"{self.start:.3g}", f"{self.end:.3g}"
        if start == end:
            return start
        return f"{start} → {end}" + ("" if self.way else " (no change beyond noise)")


def smooth(y: np.ndarray) -> np.ndarray:
    """Centred moving average over about a fifteenth of the run (at least 5 points), cut off at the ends; [n] -> [n]."""
    half = _half(y)
    sums = np.concatenate([[0.0], np.cumsum(y)])
    index = np.arange(len(y))
    first, last = np.maximum(index - half, 0), np.minimum(index + half, len(y) - 1)
    return (sums[last + 1] - sums[first]) / (last - first + 1)


def _half(y: np.ndarray) -> int:
    return max(2, len(y) // 30)


def course_of(y: np.ndarray) -> Course:
    """The course of the points [n >= 1] of a curve.

    The noise of a point is the standard deviation of successive differences over the square root of 2, which a steady
    trend leaves alone; fewer than 4 points do not show it, and their way is that of their ends. Of 6 or 7 points one
    step may be most of the course: there the spread is that of the differences' median deviation.
    """
    points, averaged = (smooth(y), _half(y) + 1) if len(y) >= MANY else (y, 1)
    start, end = float(points[0]), float(points[-1])
    error = _spread(np.diff(y)) / averaged**0.5 if len(y) >= 4 else 0.0
    return Course(start, end, 0 if abs(end - start) <= NOISE * error else int(np.sign(end - start)))


def _spread(steps: np.ndarray) -> float:
    """The standard deviation of a curve's steps [n]; of 5 or 6 by their median deviation, for normal ones the same."""
    if not 5 <= len(steps) < MANY - 1:
        return float(np.std(steps, ddof=1))
    return 1.4826 * float(np.median(np.abs(steps - np.median(steps))))


def course(found: Mapping[str, Series]) -> str:
    """Say in a few words where curves of this run began and where they are."""
    courses = {label: course_of(y) for label, (_, y) in found.items() if len(y)}
    if len(courses) == 1:
        return str(*courses.values())
    if len(courses) <= FEW:
        return "; ".join(f"{label} {item}" for label, item in courses.items())
    ways = [item.way for item in courses.values()]
    fell = [label.replace("_", " ") for label, item in courses.items() if item.way < 0]
    names = f" ({', '.join(fell)})" if 0 < len(fell) <= FEW else ""
    flat = f", {ways.count(0)} changed by no more than noise" if ways.count(0) else ""
    return f"Of {len(ways)}, {ways.count(1)} ended higher than they began, {len(fell)} lower{names}{flat}."
