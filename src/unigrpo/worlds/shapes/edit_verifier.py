"""The verifier of edits: how far what must change has changed, and how well what must stay has stayed, from pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.functional import avg_pool2d

from unigrpo.worlds.shapes.edits import Edit, changed_points, edit_of, empty_cells, kept_points
from unigrpo.worlds.shapes.renderer import IMAGE_SIZE, TEMPLATES, label
from unigrpo.worlds.shapes.scenes import CELL_INDEX, Object
from unigrpo.worlds.shapes.verifier import Reading, RewardWeights, read_scenes

_FLAT = TEMPLATES.reshape(len(TEMPLATES), -1).double().numpy()
_APART = np.sqrt(np.square(_FLAT[:, None] - _FLAT[None]).mean(-1))
"""RMS distance between any two templates: fp64 [43, 43]."""
_EMPTY = 0
_WEIGHTS = RewardWeights()


@dataclass(frozen=True, eq=False)
class EditVerdict:
    """The judgement of one picture for one edit.

    correct: all points are met; exam: share of points met; changed, kept: the two halves, in [0, 1]; reward: their
    product; points: (question, met), of what must change and then of what must stay.
    """

    correct: bool
    exam: float
    reward: float
    changed: float
    kept: float
    points: tuple[tuple[str, bool], ...]
    reading: Reading


def _way(reading: Reading, cell: str, wanted: int, start: int) -> float:
    """How far a cell has come from the template ``start`` to the one ``wanted``: 1 - d / d_start, in [0, 1].

    d is its RMS distance to ``wanted``, d_start that of ``start``: 0 for ``start`` and all that is as far away.
    """
    return float(np.clip(1 - reading.distances[CELL_INDEX[cell], wanted] / _APART[start, wanted], 0, 1))


def _start(edit: Edit, cell: str) -> int:
    """What the source picture shows in a cell."""
    return next((label(item) for item in edit.source.objects if item.cell == cell), _EMPTY)


def _arrived(reading: Reading, edit: Edit) -> tuple[float, str | None]:
    """How much of the wanted object is there, in the best of its cells, and which that is (None: nothing at all)."""
    if edit.wanted is None:
        return 0.0, None
    ways = {cell: _way(reading, cell, label(edit.wanted.at(cell)), _start(edit, cell)) for cell in edit.wanted.cells}
    best = max(ways, key=lambda cell: ways[cell])
    return ways[best], best if ways[best] > 0 else None


def _changed(reading: Reading, edit: Edit, arrived: float) -> float:
    """Mean of what was reached and what is met: 0 for the source picture, 1 where the change has happened."""
    ways = [] if edit.wanted is None else [arrived]
    if edit.left is not None:
        ways.append(_way(reading, edit.left, _EMPTY, _start(edit, edit.left)))
    met = [float(m) for _, m in changed_points(reading.scene, edit)]
    return float(np.mean(ways) + np.mean(met)) / 2


def _kept(reading: Reading, edit: Edit, placed: str | None, weights: RewardWeights) -> float:
    """Mean over the other objects of how much of each is there, times tidy ^ (cells that show something new)."""
    there = [_still(reading, item) for item in edit.kept]
    empty = [CELL_INDEX[cell] for cell in empty_cells(edit, placed)]
    extra = int((reading.nearest[empty] > 0).sum())
    blank = np.exp(-0.5 * np.square(reading.distances[empty, _EMPTY] / weights.scale)).mean()
    return float(np.mean(there or [1.0])) * weights.tidy**extra * float(blank)


def _still(reading: Reading, item: Object) -> float:
    """How much of an object is there, from an empty cell (0) to its template (1), and whether it is read as such."""
    return (_way(reading, item.cell, label(item), _EMPTY) + float(item in reading.scene.objects)) / 2


def _verdict(reading: Reading, metadata: Mapping[str, Any], weights: RewardWeights) -> EditVerdict:
    edit = edit_of(metadata)
    points = (*changed_points(reading.scene, edit), *kept_points(reading.scene, edit))
    met = [m for _, m in points]
    arrived, placed = _arrived(reading, edit)
    changed, kept = _changed(reading, edit, arrived), _kept(reading, edit, placed, weights)
    return EditVerdict(all(met), sum(met) / len(met), changed * kept, changed, kept, points, reading)


def verify_edits(
    images: Tensor, metadata: Sequence[Mapping[str, Any]], weights: RewardWeights = _WEIGHTS
) -> list[EditVerdict]:
    """Judge pictures float [B, 3, 32, 32] in [0, 1] for B edits: reward = changed * kept.

    With w(cell, a -> b) = clip(1 - d(cell, b) / d(a, b), 0, 1), how far a cell has come from template a to b:

    changed = mean_c w(c, source -> wanted) / 2 + share of the change's points that are met / 2, over the cells c that
    must change (the best cell where several will do);
    kept = mean_o [w(cell of o, empty -> o) + (o is read there)] / 2 * tidy^extra * mean_e k_e, over the objects o that
    must stay and the cells e that must stay empty, of which ``extra`` are nearest to an object; k_e =
    exp(-(d(e, empty) / scale)^2 / 2).

    So the source picture earns 0 for the change, and an empty one 0 for keeping: the product pays neither. An exact
    result has 1. Larger pictures, k * 32 pixels a side, are read by the means of their k x k squares.
    ValueError for other numbers of pictures and metadata, and for metadata of no edit.
    """
    if len(images) != len(metadata):
        raise ValueError(f"{len(images)} pictures but metadata of {len(metadata)} edits: one per picture is needed")
    times = images.shape[-1] // IMAGE_SIZE
    small = avg_pool2d(images, times) if times > 1 and is_multiple(images.shape[-2], images.shape[-1]) else images
    return [_verdict(r, m, weights) for r, m in zip(read_scenes(small), metadata, strict=True)]


def is_multiple(height: int, width: int) -> bool:
    """Whether a picture is as large as the world's, or so many times as large."""
    return height == width and height >= IMAGE_SIZE and height % IMAGE_SIZE == 0
