"""Two toy rewards that need no model: how small, or how large, a picture is as a JPEG (DDPO, arXiv 2305.13301).

They run on any prompt and any size in milliseconds, so a recipe can be tried out before a reward model is at hand. What
they teach is worthless: smooth, empty pictures, or noise.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from unigrpo.rewards.png import as_bytes
from unigrpo.rewards.protocol import RewardFunction, RewardOutput

QUALITY = 95


def jpeg_kilobytes(images: Tensor) -> list[float]:
    """The size in kB (1000 bytes) of each picture float [B, 3, H, W] in [0, 1] as a JPEG of quality 95."""
    from PIL import Image

    sizes = []
    for picture in as_bytes(images):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="JPEG", quality=QUALITY)
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
