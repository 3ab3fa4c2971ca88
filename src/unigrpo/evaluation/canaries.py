"""Canaries: figures that move before the score does, when a policy games its reward (pure functions, any world).

Colour and plan diversity fall when free choices collapse (every picture yellow, every plan the same words); edge
energy rises with the grid artefacts that unregularised image RL produces. None of them is a target.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

MIN_SATURATION = 0.35
MIN_VALUE = 0.25


def _check(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images must be [B, 3, H, W], got {list(images.shape)}; permute the channels to the second place"
        )
    if not images.is_floating_point():
        raise TypeError(f"images must be floats in [0, 1], got {images.dtype}; divide by 255")


def _entropy_bits(counts: Tensor) -> float:
    """H = -sum_i p_i log2 p_i of counts [N]; 0 where nothing was counted."""
    total = counts.sum()
    if total == 0:
        return 0.0
    share = counts[counts > 0].double() / total
    return max(0.0, float(-(share * share.log2()).sum()))


def colour_diversity(images: Tensor, *, bins: int = 12) -> float:
    """Entropy in bits of the hues of all colourful pixels of a batch; 2 to this power is an effective number of hues.

    0: one hue only (or no colourful pixel at all); log2(6) = 2.58: six hues equally often; at most log2(bins).
    A pixel counts if its saturation and value pass MIN_SATURATION and MIN_VALUE, so background and greys do not.
    Bins are centred on multiples of 360/bins degrees: noise around a pure colour stays in one bin.
    images: float [B, 3, H, W] in [0, 1]. ValueError for another shape, TypeError for integers.
    """
    _check(images)
    red, green, blue = images.detach().float().unbind(1)
    value, _ = images.detach().float().max(dim=1)
    chroma = value - images.detach().float().amin(dim=1)
    colourful = (value >= MIN_VALUE) & (chroma >= MIN_SATURATION * value)
    safe = chroma.clamp_min(1e-12)
    hue = torch.where(  # HSV hue in sixths of the circle
        value == red,
        ((green - blue) / safe) % 6,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    index = (hue[colourful] * bins / 6).round().long() % bins
    return _entropy_bits(torch.bincount(index, minlength=bins))


def edge_energy(images: Tensor) -> float:
    """Mean absolute difference of neighbouring pixels: (mean |x[.., j+1] - x[.., j]| + the same over rows) / 2.

    In units of pixel value (0..1); 0 for blank pictures, rises with noise and grid artefacts.
    images: float [B, 3, H, W] in [0, 1], H and W at least 2. ValueError for another shape, TypeError for integers.
    """
    _check(images)
    if min(images.shape[2:]) < 2:
        raise ValueError(f"edge energy needs pictures of at least 2x2 pixels, got {list(images.shape[2:])}")
    pixels = images.detach().float()
    return float((pixels.diff(dim=3).abs().mean() + pixels.diff(dim=2).abs().mean()) / 2)


def plan_diversity(texts: Sequence[str]) -> float:
    """Entropy in bits of the words of all plans together; 2 to this power is an effective number of words in use.

    Not divided by a maximum: the vocabulary is not known here, and dividing by the log of the words seen would give 1
    to a policy that uses two words equally often. Falls when plans drift to one colour or one place.
    Words are split at white space, case-folded. No words: 0.
    """
    counts = Counter(word for text in texts for word in text.casefold().split())
    return _entropy_bits(torch.tensor(list(counts.values())))
