"""A deterministic verifier that sees pixels only: it reads the scene back from a picture and judges it.

Every 8 x 8 cell is compared with 43 templates (background, 6 shapes x 7 colours) by the RMS distance over its 192
numbers, in one matrix product for the whole batch. From distances come the hard reading (nearest template, or a smudge
where none is near enough or two are about as near) and the graded reward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unigrpo.worlds.shapes.renderer import CELL_SIZE, GRID, IMAGE_SIZE, KINDS, TEMPLATES
from unigrpo.worlds.shapes.scenes import (
    CELL_INDEX,
    CELLS,
    RELATED_CELLS,
    RELATIONS,
    Kind,
    Object,
    Requirement,
    Scene,
    judge,
    requirements,
)


@dataclass(frozen=True)
class Tolerance:
    """When a cell counts as read. A cell is a smudge unless its nearest template is within ``distance`` (RMS over the
    cell's RGB values in [0, 1]) and within ``ratio`` times the distance of the runner-up."""

    distance: float = 0.15
    ratio: float = 0.7


@dataclass(frozen=True)
class RewardWeights:
    """The graded reward: tidy ** extra * (correct * [correct] + evidence * soft evidence + clean * soft cleanness).

    ``extra`` is how many more cells show something than the prompt asks for. Without this factor a policy learns to
    plan every object several times, since GenEval's rule, and so [correct], forgives extra objects (LOG.md). The three
    weights are >= 0 and sum to 1; tidy is in (0, 1]. ``scale`` is the RMS distance at which the closeness
    exp(-(distance / scale)^2 / 2) of a cell to a template falls to 0.61: larger gives a signal for worse drawings.
    """

    correct: float = 0.5
    evidence: float = 0.4
    clean: float = 0.1
    scale: float = 0.12
    tidy: float = 0.5

    def __post_init__(self) -> None:
        weights = (self.correct, self.evidence, self.clean)
        if min(weights) < 0 or abs(sum(weights) - 1) > 1e-6:
            raise ValueError(f"reward weights {weights} (correct, evidence, clean) must be >= 0 and sum to 1")
        if not 0 < self.tidy <= 1:
            raise ValueError(f"tidy is the factor for every extra object and must be in (0, 1], not {self.tidy}")
        if self.scale <= 0:
            raise ValueError(f"the reward's scale is an RMS distance and must be > 0, not {self.scale}")


@dataclass(frozen=True, eq=False)
class Reading:
    """What one picture shows.

    scene: the objects found, row-major; smudges: number of cells that are neither an object nor background;
    labels: int64 [16], template index per cell (0: background), -1: smudge; nearest: int64 [16], the nearest template,
    smudge or not; distances: fp64 [16, 43], RMS distance of every cell to every template.
    """

    scene: Scene
    smudges: int
    labels: np.ndarray
    nearest: np.ndarray
    distances: np.ndarray


@dataclass(frozen=True, eq=False)
class Verdict:
    """The judgement of one picture for one prompt.

    correct: all requirements met; clean: no smudge; exam: share of points met; reward: graded, in [0, 1];
    points: (question, met); evidence, cleanness: the soft parts of the reward, in [0, 1].
    """

    correct: bool
    clean: bool
    exam: float
    reward: float
    points: tuple[tuple[str, bool], ...]
    evidence: float
    cleanness: float
    reading: Reading


_OBJECTS = [[Object(shape, colour, cell) for shape, colour in KINDS] for cell in CELLS]
_FLAT = TEMPLATES.reshape(len(TEMPLATES), -1).double()
_ORIGIN = _FLAT[0]
"""Distances are taken from the background as origin: that keeps |a|^2 - 2ab + |b|^2 exact where it matters."""
_CENTRED = _FLAT - _ORIGIN
_NORMS = _CENTRED.square().sum(1)


def _cells(images: Tensor) -> Tensor:
    """[B, 3, 32, 32] -> fp64 [B, 16, 192], cells row-major."""
    grid = images.detach().to("cpu", torch.float64).reshape(-1, 3, GRID, CELL_SIZE, GRID, CELL_SIZE)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(-1, GRID * GRID, 3 * CELL_SIZE**2)


def _check(images: Tensor) -> None:
    if images.ndim != 4 or tuple(images.shape[1:]) != (3, IMAGE_SIZE, IMAGE_SIZE) or not images.is_floating_point():
        raise ValueError(
            f"the shapes verifier reads float pictures [B, 3, {IMAGE_SIZE}, {IMAGE_SIZE}] in [0, 1], not "
            f"{images.dtype} {tuple(images.shape)}: use the shapes models, or resize and divide bytes by 255"
        )
    if images.numel() and not bool(((images >= -0.01) & (images <= 1.01)).all()):
        raise ValueError("pictures for the shapes verifier must be finite and in [0, 1]: clamp them after decoding")


def cell_distances(images: Tensor) -> Tensor:
    """RMS distance of every cell to every template: fp64 [B, 16, 43] for pictures [B, 3, 32, 32] in [0, 1].

    d = sqrt(mean over the 192 numbers of (cell - template)^2). ValueError for another shape, range or NaN.
    """
    _check(images)
    cells = _cells(images) - _ORIGIN
    squares = cells.square().sum(-1, keepdim=True) - 2 * cells @ _CENTRED.T + _NORMS
    return (squares / cells.shape[-1]).clamp_min(0).sqrt()


def read_scenes(images: Tensor, tolerance: Tolerance = Tolerance()) -> list[Reading]:
    """Read pictures float [B, 3, 32, 32] in [0, 1]."""
    distances = cell_distances(images).numpy()
    best_two = np.partition(distances, 1, axis=-1)
    nearest = distances.argmin(-1)
    known = (best_two[..., 0] <= tolerance.distance) & (best_two[..., 0] <= tolerance.ratio * best_two[..., 1])
    labels = np.where(known, nearest, -1)
    readings = []
    for row, found in enumerate(labels):
        objects = tuple(_OBJECTS[cell][label - 1] for cell, label in enumerate(found.tolist()) if label > 0)
        readings.append(Reading(Scene(objects), int((found < 0).sum()), found, nearest[row], distances[row]))
    return readings


def follows(reading: Reading, plan: Scene) -> bool:
    """Whether the picture shows exactly the plan's objects at their cells, nothing else and no smudge."""
    return reading.smudges == 0 and reading.scene.same_picture(plan)


def _related_mask(kind: str) -> np.ndarray:
    mask = np.zeros((len(CELLS), len(CELLS)), dtype=bool)
    for first, second in RELATED_CELLS[kind]:
        mask[CELL_INDEX[first], CELL_INDEX[second]] = True
    return mask


_RELATED = {kind: _related_mask(kind) for kind in RELATIONS}


@cache
def _columns(kind: Kind) -> np.ndarray:
    """Template indices that show an object of this kind."""
    wanted = [kind.shape == shape and kind.colour in (None, colour) for shape, colour in KINDS]
    return 1 + np.flatnonzero(wanted)


def _evidence(item: Requirement, reading: Reading, closeness: np.ndarray) -> float:
    """Soft version of ``Requirement.met`` in [0, 1]; closeness is [16, 43].

    exists: the best cell. count n: mean of the n best cells; where the count is exact, times 1 - the closeness of
    number n + 1 of the cells that are nearer to the kind than to anything else. relation: the best pair of cells, each
    pair by its weaker cell.
    """
    first = closeness[:, _columns(item.first)].max(1)
    if item.relation is not None and item.second is not None:
        second = closeness[:, _columns(item.second)].max(1)
        return float((np.minimum(first[:, None], second[None, :]) * _RELATED[item.relation]).max())
    if item.count == 1 and not item.exact:
        return float(first.max())
    best = float(np.sort(first)[-item.count :].mean())
    shown = np.sort(first[np.isin(reading.nearest, _columns(item.first))])
    return best * (1 - float(shown[-item.count - 1])) if item.exact and len(shown) > item.count else best


def _verdict(reading: Reading, metadata: Mapping[str, Any], weights: RewardWeights) -> Verdict:
    correct, points = judge(reading.scene, metadata)
    closeness = np.exp(-0.5 * np.square(reading.distances / weights.scale))
    evidence = float(np.mean([_evidence(item, reading, closeness) for item in requirements(metadata)]))
    cleanness = float(closeness.max(1).mean())
    graded = weights.correct * correct + weights.evidence * evidence + weights.clean * cleanness
    extra = max(0, int((reading.nearest > 0).sum()) - sum(item["count"] for item in metadata["objects"]))
    reward = weights.tidy**extra * graded
    exam = sum(met for _, met in points) / len(points)
    return Verdict(correct, reading.smudges == 0, exam, reward, points, evidence, cleanness, reading)


def verify(
    images: Tensor,
    metadata: Sequence[Mapping[str, Any]],
    weights: RewardWeights = RewardWeights(),
    tolerance: Tolerance = Tolerance(),
) -> list[Verdict]:
    """Judge pictures float [B, 3, 32, 32] in [0, 1] for B prompts' metadata.

    reward = tidy^extra (w_correct [correct] + w_evidence mean_r e_r + w_clean mean_c k_c), over the requirements r (the
    exam points) and cells c, where extra counts the cells that show something beyond what was asked for, with closeness
    k_c = exp(-(d / scale)^2 / 2) of a cell to its nearest template and e_r the same closeness to what r wants, in the
    best cells for it (:func:`_evidence`). A perfect picture of a scene that satisfies
    the prompt has 1; a wrong one less than w_evidence + w_clean. A smudge is no object; it makes ``clean`` False. Where
    the prompt leaves the colour open, a half-drawn colour can be nearer to another one, so e_r may dip on the way.
    """
    if len(images) != len(metadata):
        raise ValueError(f"{len(images)} pictures but metadata of {len(metadata)} prompts: one per picture is needed")
    return [_verdict(r, m, weights) for r, m in zip(read_scenes(images, tolerance), metadata, strict=True)]
