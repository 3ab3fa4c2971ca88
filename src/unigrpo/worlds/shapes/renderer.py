"""From scenes to pictures: 32 x 32 RGB, one 8 x 8 patch per cell, anti-aliased by supersampling, deterministic."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from unigrpo.worlds.shapes.scenes import CELL_INDEX, CELLS, COLOURS, SHAPES, Object, Scene

CELL_SIZE = 8
GRID = 4
IMAGE_SIZE = CELL_SIZE * GRID
BACKGROUND = (0.10, 0.10, 0.12)
_SUPERSAMPLING = 16

KINDS = tuple((shape, colour) for shape in SHAPES for colour in COLOURS)
"""What a cell can show; label k + 1 in :func:`cell_labels` is KINDS[k], label 0 the background."""
LABELS = {kind: index + 1 for index, kind in enumerate(KINDS)}

_INSIDE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": lambda x, y: np.hypot(x, y) <= 3.0,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) <= 3.5,
    "triangle": lambda x, y: (np.abs(x) <= 0.55 * (y + 3.7)) & (y <= 3.5),
    "cross": lambda x, y: (np.abs(np.abs(x) - np.abs(y)) <= 1.1) & (np.maximum(np.abs(x), np.abs(y)) <= 3.75),
    "diamond": lambda x, y: np.abs(x) / 2.1 + np.abs(y) / 3.9 <= 1.0,
    "ring": lambda x, y: (np.hypot(x, y) <= 3.75) & (np.hypot(x, y) >= 2.2),
}
"""Shape masks in pixels from the centre of the cell, x to the right and y down."""


def coverage(shape: str) -> np.ndarray:
    """Share of every pixel that the shape covers: float64 [8, 8] in [0, 1]."""
    size = CELL_SIZE * _SUPERSAMPLING
    points = (np.arange(size) + 0.5) / _SUPERSAMPLING - CELL_SIZE / 2
    inside = _INSIDE[shape](points[None, :], points[:, None])
    return inside.reshape(CELL_SIZE, _SUPERSAMPLING, CELL_SIZE, _SUPERSAMPLING).mean((1, 3))


def enlarged(scene: Scene) -> Tensor:
    """A scene as a picture of 512 pixels a side, uint8 [3, 512, 512], whose 16 x 16 squares average to :func:`render`.

    For models that draw large pictures; a verifier reads what they draw by the same averages.
    """
    size = CELL_SIZE * _SUPERSAMPLING
    points = (np.arange(size) + 0.5) / _SUPERSAMPLING - CELL_SIZE / 2
    picture = np.empty((3, GRID * size, GRID * size))
    picture[:] = np.asarray(BACKGROUND)[:, None, None]
    for item in scene.objects:
        row, column = divmod(CELL_INDEX[item.cell], GRID)
        cell = picture[:, row * size : (row + 1) * size, column * size : (column + 1) * size]
        cell[:, _INSIDE[item.shape](points[None, :], points[:, None])] = np.asarray(COLOURS[item.colour])[:, None]
    return torch.from_numpy((picture * 255).round().astype(np.uint8))


def _templates() -> Tensor:
    background = np.asarray(BACKGROUND)[:, None, None]
    patches = [np.broadcast_to(background, (3, CELL_SIZE, CELL_SIZE))]
    for shape, colour in KINDS:
        alpha = coverage(shape)[None]
        patches.append(alpha * np.asarray(COLOURS[colour])[:, None, None] + (1 - alpha) * background)
    return torch.from_numpy(np.stack(patches).astype(np.float32))


TEMPLATES = _templates()
"""float32 [43, 3, 8, 8]: the background, then KINDS in order."""


def label(item: Object) -> int:
    """The cell label of an object, 1..42."""
    return LABELS[item.shape, item.colour]


def cell_labels(scenes: Sequence[Scene]) -> Tensor:
    """What every cell shows: int64 [B, 16] in row-major order, 0 for the background."""
    labels = np.zeros((len(scenes), len(CELLS)), dtype=np.int64)
    for row, scene in enumerate(scenes):
        for item in scene.objects:
            labels[row, CELL_INDEX[item.cell]] = label(item)
    return torch.from_numpy(labels)


def draw(labels: Tensor) -> Tensor:
    """Draw cell labels int64 [B, 16] as pictures float32 [B, 3, 32, 32] in [0, 1]."""
    patches = TEMPLATES[labels].reshape(-1, GRID, GRID, 3, CELL_SIZE, CELL_SIZE)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, IMAGE_SIZE, IMAGE_SIZE)


def render(scenes: Sequence[Scene]) -> Tensor:
    """Draw scenes as pictures float32 [B, 3, 32, 32] in [0, 1]."""
    return draw(cell_labels(scenes))
