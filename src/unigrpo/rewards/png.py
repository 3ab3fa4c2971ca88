"""Pictures as bytes, for whatever leaves the process: PNG, which keeps every pixel."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

QUICK = 1  # compression level: seven times faster than the usual 6, and a tenth larger


def quantised(images: Tensor) -> Tensor:
    """Pictures float [B, 3, H, W] in [0, 1] as a PNG holds them, uint8 [B, 3, H, W] where they are."""
    return (images.detach() * 255.0).round().clamp(0, 255).byte()


def as_bytes(images: Tensor) -> np.ndarray:
    """Pictures float [B, 3, H, W] in [0, 1] as uint8 [B, H, W, 3]."""
    return quantised(images).permute(0, 2, 3, 1).cpu().contiguous().numpy()


def as_png(pixels: np.ndarray) -> bytes:
    """One picture uint8 [H, W, 3] as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=QUICK)
    return buffer.getvalue()


def as_floats(pixels: np.ndarray) -> Tensor:
    """Pictures uint8 [B, H, W, 3] (or one, [H, W, 3]) as float32 with channels first, as a reward is given them."""
    moved = torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, -3)))
    return moved.float() / 255.0
