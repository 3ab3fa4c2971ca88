"""Canaries: figures that move before the score does, when a policy games its reward (pure functions, any world).

None of them is a target. Pictures are float [B, 3, H, W] in [0, 1]; ValueError for another shape, TypeError for
integers. What a healthy run may do to each is in ``evaluation/bands.py``; docs/alarms.md says what an alarm means.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

MIN_SATURATION = 0.35
MIN_VALUE = 0.25
BINS = 12
"""Hues that are told apart."""
NGRAM = 4
"""Words of the n-grams whose repetition is counted."""
SMALL = 64
"""Pixels of the longer side at which pictures are compared with each other: what matters is what they show."""


def _check(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images must be [B, 3, H, W], got {list(images.shape)}; permute the channels to the second place"
        )
    if not images.is_floating_point():
        raise TypeError(f"images must be floats in [0, 1], got {images.dtype}; divide by 255")


def entropy_bits(counts: Tensor) -> float:
    """H = -sum_i p_i log2 p_i of counts [N]; 0 where nothing was counted."""
    total = counts.sum()
    if total == 0:
        return 0.0
    share = counts[counts > 0].double() / total
    return max(0.0, float(-(share * share.log2()).sum()))


def hue_counts(images: Tensor, *, bins: int = BINS) -> Tensor:
    """Colourful pixels of every picture by hue: int64 [B, bins].

    A pixel counts if its saturation and value pass MIN_SATURATION and MIN_VALUE, so background and greys do not.
    Bins are centred on multiples of 360/bins degrees: noise around a pure colour stays in one bin.
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
    index = (hue * bins / 6).round().long() % bins
    picture = torch.arange(len(images), device=images.device)[:, None, None].expand_as(index)
    flat = (picture * bins + index)[colourful]
    return torch.bincount(flat, minlength=len(images) * bins).reshape(len(images), bins)


def colour_diversity(images: Tensor, *, bins: int = BINS) -> float:
    """Entropy in bits of the hues of all colourful pixels of a batch; 2 to this power is an effective number of hues.

    0: one hue only (or no colourful pixel at all); log2(6) = 2.58: six hues equally often; at most log2(bins).
    What counts as colourful, and as one hue: :func:`hue_counts`.
    """
    return entropy_bits(hue_counts(images, bins=bins).sum(0))


def edge_energies(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels of every picture: fp32 [B].

    (mean |x[.., j+1] - x[.., j]| + the same over rows) / 2, in units of pixel value (0..1); 0 for blank pictures, rises
    with noise and grid artefacts. H and W at least 2.
    """
    _check(images)
    if min(images.shape[2:]) < 2:
        raise ValueError(f"edge energy needs pictures of at least 2x2 pixels, got {list(images.shape[2:])}")
    pixels = images.detach().float()
    return (pixels.diff(dim=3).abs().mean((1, 2, 3)) + pixels.diff(dim=2).abs().mean((1, 2, 3))) / 2


def edge_energy(images: Tensor) -> float:
    """Mean absolute difference of neighbouring pixels over a batch (:func:`edge_energies`)."""
    _check(images)
    if min(images.shape[2:]) < 2:
        raise ValueError(f"edge energy needs pictures of at least 2x2 pixels, got {list(images.shape[2:])}")
    pixels = images.detach().float()
    return float((pixels.diff(dim=3).abs().mean() + pixels.diff(dim=2).abs().mean()) / 2)


def high_frequencies(images: Tensor) -> Tensor:
    """Share of the spectrum's energy at high frequencies, of every picture: fp64 [B], 0 to 1.

    sum over r > 1/4 of |F|^2 / sum over r > 0 of |F|^2, where F is the Fourier transform of the channels' mean and
    r = sqrt(fx^2 + fy^2) in cycles per pixel (1/2 is the finest that there is on an axis). A blank picture has 0, a
    chessboard of single pixels 1.
    """
    _check(images)
    energy = torch.fft.fft2(images.detach().double().mean(1)).abs().square()
    rows, columns = (torch.fft.fftfreq(size, dtype=torch.float64, device=energy.device) for size in energy.shape[1:])
    radius = (rows[:, None].square() + columns[None, :].square()).sqrt()
    varying = energy[:, radius > 0].sum(1)
    fine = energy[:, radius > 0.25].sum(1)
    blank = varying <= 1e-12 * energy[:, 0, 0].clamp_min(1.0)  # what is left of a constant is rounding
    return torch.where(blank, 0.0, fine / varying.clamp_min(1e-300))


def saturations(images: Tensor) -> Tensor:
    """Mean saturation of every picture: fp32 [B]; of a pixel (max - min) / max over its channels, 0 for grey and black.

    0: greys only; 1: pure colours only.
    """
    _check(images)
    value, darkest = images.detach().float().amax(1), images.detach().float().amin(1)
    return ((value - darkest) / value.clamp_min(1e-6)).mean((1, 2))


def small(pictures: Tensor) -> Tensor:
    """Pictures uint8 [B, 3, H, W] as floats in [0, 1], averaged down to at most ``SMALL`` pixels a side."""
    longest = max(pictures.shape[2:])
    images = pictures.float() / 255.0
    if longest <= SMALL:
        return images
    size = [max(1, round(side * SMALL / longest)) for side in pictures.shape[2:]]
    return interpolate(images, size=size, mode="area")


def distances(images: Tensor, others: Tensor) -> Tensor:
    """Mean absolute difference of two pictures of one shape, pair by pair: fp32 [B], in units of pixel value (0..1)."""
    _check(images)
    if images.shape != others.shape:
        raise ValueError(f"pictures {list(images.shape)} are compared with {list(others.shape)}: give pairs")
    return (images.detach().float() - others.detach().float()).abs().mean((1, 2, 3))


def group_distances(images: Tensor, groups: Sequence[int]) -> dict[int, float]:
    """Mean distance (:func:`distances`) of all pairs of pictures of each group that has two or more.

    0: all pictures of a prompt are the same one. groups: [B], the prompt of every picture.
    """
    members: dict[int, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    found = {}
    for group, own in members.items():
        if len(own) > 1:
            first, second = torch.combinations(torch.tensor(own)).unbind(1)
            found[group] = float(distances(images[first], images[second]).mean())
    return found


def group_diversity(images: Tensor, groups: Sequence[int]) -> float | None:
    """Mean over prompts of :func:`group_distances`; None where no prompt has two pictures."""
    found = group_distances(images, groups)
    return sum(found.values()) / len(found) if found else None


def words_of(text: str) -> list[str]:
    """The words of a text, split at white space and case-folded."""
    return text.casefold().split()


def repetition(text: str, n: int = NGRAM) -> float:
    """Share of a text's n-grams of words that were there before: 1 - distinct / all; 0 for a text without any.

    The same n words for ever tend to 1.
    """
    words = words_of(text)
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def plan_diversity(texts: Sequence[str]) -> float:
    """Entropy in bits of the words of all plans together; 2 to this power is an effective number of words in use.

    Not divided by a maximum: the vocabulary is not known here, and dividing by the log of the words seen would give 1
    to a policy that uses two words equally often. Falls when plans drift to one colour or one place.
    Words are split at white space, case-folded. No words: 0.
    """
    counts = Counter(word for text in texts for word in words_of(text))
    return entropy_bits(torch.tensor(list(counts.values())))
