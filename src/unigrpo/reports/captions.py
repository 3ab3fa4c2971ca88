"""What curves of a run say of themselves: captions are computed, so that they are true of any run."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

Series = tuple[np.ndarray, np.ndarray]
FEW = 3
"""Curves up to which a caption gives the numbers of each; of more it counts those that ended higher and lower."""


def smooth(y: np.ndarray) -> np.ndarray:
    """Centred moving average over about a fifteenth of the run (at least 5 points), cut off at the ends; [n] -> [n]."""
    half = max(2, len(y) // 30)
    sums = np.concatenate([[0.0], np.cumsum(y)])
    index = np.arange(len(y))
    first, last = np.maximum(index - half, 0), np.minimum(index + half, len(y) - 1)
    return (sums[last + 1] - sums[first]) / (last - first + 1)


def course(found: Mapping[str, Series]) -> str:
    """Say in a few words where curves of this run began and where they are: computed, so that it is true of any run."""
    ends = {label: _ends(y) for label, (_, y) in found.items() if len(y)}
    if len(ends) == 1:
        (ends_of,) = ends.values()
        return _from_to(*ends_of)
    if len(ends) <= FEW:
        return "; ".join(f"{label} {_from_to(*sides)}" for label, sides in ends.items())
    rose = [label for label, (start, end) in ends.items() if end > start]
    fell = [label for label, (start, end) in ends.items() if end < start]
    names = f" ({', '.join(name.replace('_', ' ') for name in fell)})" if 0 < len(fell) <= FEW else ""
    return f"Of {len(ends)}, {len(rose)} ended higher than they began, {len(fell)} lower{names}."


def _ends(y: np.ndarray) -> tuple[float, float]:
    """Where a curve begins and ends: of many points the smoothed ones."""
    whole = smooth(y) if len(y) >= 8 else y
    return float(whole[0]), float(whole[-1])


def _from_to(start: float, end: float) -> str:
    return f"{start:.3g}" if start == end else f"{start:.3g} → {end:.3g}"
