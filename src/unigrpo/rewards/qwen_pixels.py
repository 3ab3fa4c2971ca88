"""From pictures to the patches that the vision towers of Qwen2-VL, Qwen2.5-VL and Qwen3-VL read, with gradients.

A picture is resized so that both sides are multiples of ``patch * merge`` pixels, then cut into patches. The language
model gets one token for ``merge`` x ``merge`` patches, so these lie together: patches are ordered by rows of such
groups, then inside each group. A still picture is shown to every one of the ``frames`` of a patch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unigrpo.rewards.pixels import check_bicubic, resize

THINNEST = 200
"""How many times longer than wide a picture may be; the library refuses those above."""


@dataclass(frozen=True)
class QwenPixels:
    """Sizes of a Qwen-VL's preprocessing: ``least`` and ``most`` pixels that a resized picture may have."""

    patch: int
    merge: int
    frames: int
    least: int
    most: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that a picture is resized to.

        Both sides rounded to the grid; where that is more than ``most`` pixels both are scaled down by the square root
        of the excess and cut to the grid, where it is less than ``least`` they are scaled up and filled to the grid.
        """
        if max(height, width) > THINNEST * min(height, width):
            raise ValueError(f"a picture of {width} x {height} pixels is too thin: at most {THINNEST} times longer")
        cell = self.patch * self.merge
        rounded = [round(side / cell) * cell for side in (height, width)]
        excess = math.sqrt(height * width / self.most)
        lack = math.sqrt(self.least / (height * width))
        if math.prod(rounded) > self.most:
            rounded = [max(cell, math.floor(side / excess / cell) * cell) for side in (height, width)]
        elif math.prod(rounded) < self.least:
            rounded = [math.ceil(side * lack / cell) * cell for side in (height, width)]
        return rounded[0], rounded[1]

    def __call__(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Pictures [B, 3, H, W] in [0, 1] -> patches [B, rows * columns, 3 * frames * patch^2], (rows, columns)."""
        height, width = self.size(*images.shape[2:])
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        pixels = (resize(images, (height, width)) - mean) / std
        rows, columns, m, p = height // self.patch, width // self.patch, self.merge, self.patch
        cut = pixels.reshape(len(images), 3, rows // m, m, p, columns // m, m, p)
        # [B, group row, group column, row in it, column in it, 3, frame, y, x]
        grouped = cut.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, self.frames, -1, -1)
        return grouped.reshape(len(images), rows * columns, -1), (rows, columns)


def read_pixels(processor: Any, where: str) -> QwenPixels:
    """The sizes that a Qwen-VL image processor of transformers has; ConfigError where it resizes in another way."""
    check_bicubic(processor, where)
    size = dict(processor.size)
    return QwenPixels(
        processor.patch_size,
        processor.merge_size,
        processor.temporal_patch_size,
        size["shortest_edge"],
        size["longest_edge"],
        tuple(processor.image_mean),
        tuple(processor.image_std),
    )
