"""Two toy rewards that need no model: how small, or how large, a picture is as a JPEG (DDPO, arXiv 2305.13301).

They run on any prompt and any size in milliseconds, so a recipe can be tried out before a reward model is at hand. What
they teach is worthless: smooth, empty pictures, or noise.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from unigrpo.rewards.protocol import RewardFunction, RewardOutput
from unigrpo.rewards.registry import register

QUALITY = 95
COMPRESSIBILITY, INCOMPRESSIBILITY = "image/jpeg-compressibility", "image/jpeg-incompressibility"


def jpeg_kilobytes(images: Tensor) -> list[float]:
    """The size in kB (1000 bytes) of each picture float [B, 3, H, W] in [0, 1] as a JPEG of quality 95."""
    from PIL import Image

    pictures = (images.detach() * 255.0).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    sizes = []
    for picture in pictures:
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(picture)).save(buffer, format="JPEG", quality=QUALITY)
        sizes.append(buffer.tell() / 1000)
    return sizes


def _scorer(sign: float) -> RewardFunction:
    def score(
        images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]], thinking: Sequence[str | None]
    ) -> RewardOutput:
        sizes = jpeg_kilobytes(images)
        return RewardOutput([sign * size for size in sizes], {"kilobytes": sizes})

    return score


def compressibility() -> RewardFunction:
    """R = -kB of the picture as a JPEG: smooth pictures are good."""
    return _scorer(-1.0)


def incompressibility() -> RewardFunction:
    """R = +kB of the picture as a JPEG: detailed pictures are good."""
    return _scorer(1.0)


register(COMPRESSIBILITY, compressibility)
register(INCOMPRESSIBILITY, incompressibility)
