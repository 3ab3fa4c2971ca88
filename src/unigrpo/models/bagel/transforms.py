"""From a picture file to what BAGEL reads: sizes, resizing and ranges.

Source: docs/bagel-architecture.md#sizes-of-pictures.

The order is ``pictures.read_picture``, ``resize`` with VAE_LIMITS for the latents, and ``resize`` with VIT_LIMITS *of
that* for the vision tower; ``to_signed`` makes the numbers of either. Until then pictures are uint8 RGB [3, H, W].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image as Images
from PIL.Image import Image as Picture
from torch import Tensor


@dataclass(frozen=True)
class Limits:
    """Sizes in pixels that a picture is resized to: sides are multiples of ``stride``, none above ``max_side``.

    A short side below ``min_side`` is enlarged to it where ``max_side`` allows; an area above ``max_pixels`` is scaled
    down once (:func:`target_size`). ValueError if ``max_side`` is no multiple of ``stride``, or a number cannot hold.
    """

    max_side: int
    min_side: int
    stride: int
    max_pixels: int = 14 * 14 * 9 * 1024

    def __post_init__(self) -> None:
        if self.stride < 1 or self.max_side % self.stride:
            raise ValueError(f"max_side {self.max_side} must be a multiple of stride {self.stride}, and both above 0")
        if not 1 <= self.min_side <= self.max_side:
            raise ValueError(f"min_side {self.min_side} must lie between 1 and max_side {self.max_side}")
        if self.max_pixels < self.stride**2:
            raise ValueError(f"max_pixels {self.max_pixels} leaves no room for one stride of {self.stride} squared")


VAE_LIMITS = Limits(1024, 512, 16)
VIT_LIMITS = Limits(980, 224, 14)


def _scaled(width: int, height: int, scale: float, stride: int) -> tuple[int, int]:
    """Both sides times ``scale``, rounded to pixels and then to strides, at least one stride."""

    def side(length: int) -> int:
        return max(stride, round(round(length * scale) / stride) * stride)

    return side(width), side(height)


def target_size(width: int, height: int, limits: Limits) -> tuple[int, int]:
    """(width, height) that a picture is resized to.

    scale = max(min(max_side / long, 1), min_side / short), then rounding to strides. If the area is above max_pixels
    the sides are scaled by max_pixels / area (the ratio itself, not its square root), and if the long side is above
    max_side by max_side / long. So a long side never stays above max_side, but a very long picture ends below min_side.
    Halves round to even, as everywhere in Python. ValueError if a side is below 1.
    """
    if width < 1 or height < 1:
        raise ValueError(f"a picture of {width} x {height} pixels has no area to resize")
    scale = max(min(limits.max_side / max(width, height), 1.0), limits.min_side / min(width, height))
    width, height = _scaled(width, height, scale, limits.stride)
    if width * height > limits.max_pixels:
        width, height = _scaled(width, height, limits.max_pixels / (width * height), limits.stride)
    if max(width, height) > limits.max_side:
        width, height = _scaled(width, height, limits.max_side / max(width, height), limits.stride)
    return width, height


def resize(image: Tensor, limits: Limits) -> Tensor:
    """uint8 [3, H, W] -> uint8 [3, H', W'] of :func:`target_size`, bicubic with antialias (Pillow's own filter)."""
    _check(image)
    size = target_size(image.shape[2], image.shape[1], limits)
    if size == (image.shape[2], image.shape[1]):
        return image
    picture = Images.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    return _tensor(picture.resize(size, Images.Resampling.BICUBIC)).to(image.device)


def to_signed(image: Tensor) -> Tensor:
    """uint8 0..255 -> float32 [-1, 1]: (x / 255 - 0.5) / 0.5."""
    _check(image)
    return (image.float() / 255.0 - 0.5) / 0.5


def _check(image: Tensor) -> None:
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"a picture is uint8 [3, H, W], not {image.dtype} {list(image.shape)}")


def _tensor(picture: Picture) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
