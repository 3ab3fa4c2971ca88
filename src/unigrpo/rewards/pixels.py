"""What a vision tower's preprocessing does to a picture, as tensor operations that gradients go through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from unigrpo.ranges import ConfigError

BICUBIC = 3  # the number of it in Pillow
PIL_LEVELS = 1.13
"""How far, in levels of 1/255, :func:`resize` may lie from Pillow's resize of the same picture as bytes.

Pillow rounds to bytes after each of its two passes: half a level each, the first of which the second pass multiplies by
at most 1.25, the largest sum of the absolute weights of the bicubic kernel (a = -1/2, halfway between two pixels).
"""


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures [B, 3, H, W] in [0, 1] at (height, width): bicubic with antialias, rows first, as Pillow's BICUBIC.

    Like Pillow, each of the two passes cuts what overshoots [0, 1]. No rounding to bytes, so gradients go through; the
    result lies within ``PIL_LEVELS`` of Pillow's.
    """
    height, width = size
    for shape in ((images.shape[2], width), (height, width)):
        if tuple(images.shape[2:]) != shape:
            images = functional.interpolate(images, size=shape, mode="bicubic", antialias=True, align_corners=False)
            images = images.clamp(0.0, 1.0)
    return images


@dataclass(frozen=True)
class Preprocessing:
    """From pictures to what a CLIP vision tower takes: ``side`` pixels square, less ``mean``, over ``std``.

    ``shortest``: the shorter side is resized to so many pixels, and the middle square of ``side`` pixels is cut out
    (CLIP's own way). None: the longer side is resized to ``side`` and the rest is black (HPSv2's way).
    """

    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shortest: int | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1] -> [B, 3, side, side] in the same dtype."""
        squares = self._padded(images) if self.shortest is None else self._cropped(images, self.shortest)
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (squares - mean) / std

    def _cropped(self, images: Tensor, shortest: int) -> Tensor:
        height, width = images.shape[2:]
        short, long = min(height, width), max(height, width)
        longest = int(shortest * long / short)
        images = resize(images, (shortest, longest) if height <= width else (longest, shortest))
        top, left = ((length - self.side) // 2 for length in images.shape[2:])
        return images[:, :, top : top + self.side, left : left + self.side]

    def _padded(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        scale = self.side / max(height, width)
        images = resize(images, (max(1, round(height * scale)), max(1, round(width * scale))))
        below, beside = (self.side - length for length in images.shape[2:])
        return functional.pad(images, (beside // 2, beside - beside // 2, below // 2, below - below // 2))


def cropping(processor: Any, where: str) -> Preprocessing:
    """The preprocessing that a CLIP image processor of transformers describes; ConfigError where it is another kind."""
    check_bicubic(processor, where)
    size, crop = dict(processor.size), dict(processor.crop_size or {})
    shortest, side = size.get("shortest_edge"), crop.get("height")
    if not processor.do_center_crop or shortest is None or side is None or side != crop.get("width"):
        raise ConfigError(
            f"{where}: its preprocessor_config.json has size {size} and crop_size {crop}, but a shortest_edge and a "
            "square centre crop are needed: name a model with CLIP's preprocessing"
        )
    if side > shortest:
        raise ConfigError(f"{where}: its preprocessor_config.json cuts {side} pixels out of {shortest}: mend the file")
    return Preprocessing(side, tuple(processor.image_mean), tuple(processor.image_std), shortest)


def check_bicubic(processor: Any, where: str) -> None:
    """ConfigError where a processor of transformers resizes in another way than :func:`resize`."""
    if int(processor.resample) != BICUBIC:
        raise ConfigError(
            f"{where}: its preprocessor_config.json has resample {int(processor.resample)}, but only {BICUBIC} "
            "(bicubic) is done with gradients: name another model"
        )


def in_chunks(count: int, batch: int) -> list[slice]:
    """Slices of at most ``batch`` of ``count`` things."""
    return [slice(start, start + batch) for start in range(0, count, batch)]


def device_of(name: str | None, where: str) -> torch.device:
    """The device of this name; None is the accelerator where there is one. ConfigError where it is not there."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{where}: device = {name!r} is no device: give cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{where}: device = {name}, but torch sees no CUDA device here: set it to cpu")
    return device
