"""The band of every canary, learned from the first evaluation: how far it may move before somebody should look.

One formula for all, with ``FACTOR`` f and ``ERRORS`` k. Of the first evaluation, take the canary's value c and its
noise s, the standard deviation of that value when the evaluation's prompts are drawn again with replacement
(bootstrap). The band ends on the canary's bad side, or on both, at

    c / f - k s    and    c f + k s

so that a change must be large (the factor) and more than the choice of prompts can make (the noise). A factor needs a
scale on which it means something: entropies H are counted as 2^H (an effective number of colours or words, so the
factor is log2 f bits), and repetition r as 1 - r (the share of n-grams that are new). The distance to the reference's
pictures is 0 at first and has no factor: it may grow up to that of pictures of different prompts of the first
evaluation, d + k s, where a picture has no more in common with what the reference drew for its prompt.

Below ``FEWEST`` prompts there is no band, and no alarm; nor for a canary that is 0 at first and knows no scale (edges
of blank pictures). Nothing here draws from a global generator.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unigrpo.evaluation import canaries
from unigrpo.evaluation.statistics import FEWEST, ROUNDING

FACTOR = 1.5
"""Change by which a canary may differ from the first evaluation, whatever the noise."""
ERRORS = 4.0
"""Standard errors that noise is given, of canaries as of differences of scores."""
RESAMPLES = 1000
CHUNK = 2**24
"""Numbers of pictures that are looked at together: memory, not results."""

Scale = Literal["ratio", "bits", "repeated", "distance"]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Canary:
    """A canary's name for people, its unit, which side of its band is bad, on which scale, and what to look at."""

    name: str
    unit: str
    bad: Literal["below", "above", "both"]
    scale: Scale
    look: str


CANARIES: Mapping[str, Canary] = {
    "colour_diversity": Canary("variety of colours", "bits", "below", "bits", "the pictures: one colour everywhere?"),
    "edge_energy": Canary(
        "edge energy",
        "pixel value",
        "both",
        "ratio",
        "the pictures: noise or a grid (above), blank (below)?",
    ),
    "high_frequency": Canary(
        "share of high frequencies", "share", "above", "ratio", "the pictures, enlarged: a fine grid, or noise?"
    ),
    "saturation": Canary(
        "saturation", "share", "both", "ratio", "the pictures: glaring colours (above), greys (below)?"
    ),
    "group_diversity": Canary(
        "distance inside a group", "pixel value", "below", "ratio", "pictures of one prompt: are they all the same?"
    ),
    "plan_diversity": Canary("variety of words", "bits", "below", "bits", "the thinking: the same for every prompt?"),
    "think_words": Canary(
        "words of a thinking", "words", "both", "ratio", "the thinking: padded (above), given up (below)?"
    ),
    "think_repetition": Canary(
        "repetition in the thinking", "share", "above", "repeated", "the thinking: does it say things twice?"
    ),
    "reference_distance": Canary(
        "distance to the reference's pictures",
        "pixel value",
        "above",
        "distance",
        "the pictures beside those before training: do they still show their prompts?",
    ),
}
DIVERSITIES = ("colour_diversity", "plan_diversity", "group_diversity")
"""Canaries of which less than half is a collapse."""


@dataclass(frozen=True)
class Band:
    """A canary at the first evaluation, its noise, and the ends of its band; None where it has none."""

    start: float
    noise: float | None
    low: float | None
    high: float | None

    def json(self) -> dict[str, float | None]:
        """The band as a run folder keeps it."""
        return asdict(self)


@dataclass(frozen=True)
class Measured:
    """The canaries of every picture of an evaluation, before they are put together.

    prompts: [N], the prompt of each picture. means: by canary [N], NaN where there is none. counts: by canary of
    entropies [N, bins]. groups: the mean distance inside each prompt that has several pictures.
    """

    prompts: Sequence[int]
    means: Mapping[str, Array]
    counts: Mapping[str, Array]
    groups: Mapping[int, float]

    def values(self) -> dict[str, float]:
        """Every canary that these pictures have."""
        every = np.ones((1, len(self._names())))
        found = {name: float(rows[0]) for name, rows in self._resampled(every).items() if not np.isnan(rows[0])}
        if self.groups:
            found["group_diversity"] = float(np.mean(list(self.groups.values())))
        return {name: found[name] for name in CANARIES if name in found}

    def bands(self) -> dict[str, Band]:
        """What this evaluation, as the first one, allows the canaries of later ones (the formula is above)."""
        prompts = len(self._names())
        weights = _drawn(prompts)
        noise = {name: float(np.nanstd(rows)) for name, rows in self._resampled(weights).items()}
        values, found = self.values(), {}
        for name, value in values.items():
            known = len(self.groups) if name == "group_diversity" else prompts
            if name == "group_diversity":
                noise[name] = float(np.std(list(self.groups.values()))) / math.sqrt(known)
            found[name] = band(name, value, noise[name], known)
        return found

    def _names(self) -> list[int]:
        return list(dict.fromkeys(self.prompts))

    def _resampled(self, weights: Array) -> dict[str, Array]:
        """Every canary but that of groups when prompts weigh so much: weights [R, prompts] -> [R] each."""
        place = {prompt: index for index, prompt in enumerate(self._names())}
        index, size = np.array([place[prompt] for prompt in self.prompts], dtype=np.int64), len(place)
        found = {}
        for name, column in self.means.items():
            known = ~np.isnan(column)
            sums = np.bincount(index[known], weights=column[known], minlength=size)
            counted = np.bincount(index[known], minlength=size).astype(np.float64)
            with np.errstate(invalid="ignore", divide="ignore"):
                found[name] = (weights @ sums) / (weights @ counted)
        for name, rows in self.counts.items():
            if rows.shape[1]:
                whole = np.zeros((size, rows.shape[1]))
                np.add.at(whole, index, rows)
                found[name] = _entropies(weights @ whole)
        return found


def _drawn(prompts: int) -> Array:
    """How often each prompt is drawn: [RESAMPLES, prompts]; the same ones every time."""
    share = np.full(prompts, 1 / prompts)
    return np.random.default_rng(0).multinomial(prompts, share, size=RESAMPLES).astype(np.float64)


def _entropies(counts: Array) -> Array:
    """Entropy in bits of every row [R, bins] -> [R]; 0 where nothing was counted."""
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1e-300)
    logs = np.log2(share, where=share > 0, out=np.zeros_like(share))
    return np.maximum(0.0, -(share * logs).sum(1))


def band(name: str, start: float, noise: float, prompts: int, reach: float | None = None) -> Band:
    """The band of a canary with a value and a noise over so many prompts; the formula is at the top of this file.

    reach: of the distance to the reference's pictures, how far pictures of different prompts are apart.
    """
    canary = CANARIES[name]
    if prompts < FEWEST or (canary.scale == "ratio" and start <= ROUNDING):
        return Band(start, noise if prompts >= FEWEST else None, None, None)
    spare = ERRORS * noise
    if canary.scale == "distance":
        return Band(start, noise, None, None if reach is None else reach + spare)
    if canary.scale == "repeated":
        return Band(start, noise, None, 1 - (1 - start) / FACTOR + spare)
    if canary.scale == "bits":
        low, high = start - math.log2(FACTOR) - spare, start + math.log2(FACTOR) + spare
    else:
        low, high = start / FACTOR - spare, start * FACTOR + spare
    return Band(start, noise, low if canary.bad != "above" else None, high if canary.bad != "below" else None)


def collapsed(name: str, value: float, start: float) -> bool:
    """Whether less than half of a diversity is left: half the distance, or half the effective number (one bit less)."""
    if name not in DIVERSITIES:
        return False
    return value < start - 1 if CANARIES[name].scale == "bits" else value < start / 2


def measured(
    pictures: Tensor,
    prompts: Sequence[int],
    thinking: Sequence[str | None],
    reference: Mapping[int, Tensor] | None = None,
) -> Measured:
    """Look at pictures uint8 [N, 3, H, W] of so many prompts [N], and at what was thought before each [N].

    reference: small pictures uint8 [3, h, w] (:func:`reference_of`) by prompt, to which the first picture of each
    prompt is compared.
    """
    step = max(1, CHUNK // max(1, pictures[:1].numel()))
    parts = [_looked_at(pictures[i : i + step]) for i in range(0, len(pictures), step)]
    means = (
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != "hues"} if parts else {}
    )
    counts = {"colour_diversity": np.concatenate([part["hues"] for part in parts])} if parts else {}
    tiny = torch.cat([part for part in _small(pictures, step)]) if parts else pictures
    if reference is not None:
        means["reference_distance"] = _to_reference(tiny, prompts, reference)
    if any(thinking):
        means["think_words"] = np.array([np.nan if t is None else len(canaries.words_of(t)) for t in thinking])
        means["think_repetition"] = np.array([np.nan if t is None else canaries.repetition(t) for t in thinking])
        counts["plan_diversity"] = _word_counts(thinking)
    return Measured(prompts, means, counts, canaries.group_distances(tiny, prompts))


def _small(pictures: Tensor, step: int) -> list[Tensor]:
    return [canaries.small(pictures[i : i + step]) for i in range(0, len(pictures), step)]


def _looked_at(pictures: Tensor) -> dict[str, Array]:
    images = pictures.float() / 255.0
    found = {
        "edge_energy": canaries.edge_energies(images),
        "high_frequency": canaries.high_frequencies(images),
        "saturation": canaries.saturations(images),
        "hues": canaries.hue_counts(images),
    }
    return {name: tensor.double().cpu().numpy() for name, tensor in found.items()}


def _word_counts(thinking: Sequence[str | None]) -> Array:
    """[N, words that occur]."""
    each = [Counter(canaries.words_of(text or "")) for text in thinking]
    place = {word: i for i, word in enumerate(dict.fromkeys(word for counter in each for word in counter))}
    rows = np.zeros((len(each), len(place)))
    for row, counter in zip(rows, each, strict=True):
        for word, count in counter.items():
            row[place[word]] = count
    return rows


def _to_reference(tiny: Tensor, prompts: Sequence[int], reference: Mapping[int, Tensor]) -> Array:
    """The distance of the first picture of every prompt to the reference's; NaN for all others."""
    found, seen = np.full(len(prompts), np.nan), set[int]()
    for index, prompt in enumerate(prompts):
        if prompt in reference and prompt not in seen:
            other = reference[prompt][None].float() / 255.0
            found[index] = float(canaries.distances(tiny[index : index + 1], other))
        seen.add(prompt)
    return found


def reference_of(pictures: Tensor) -> Tensor:
    """What is kept of the first evaluation's pictures uint8 [P, 3, H, W], to compare with: made small, uint8."""
    return (canaries.small(pictures) * 255.0).round().to(torch.uint8)


def reference_band(kept: Tensor) -> Band:
    """The band of the distance to the reference's pictures [P, 3, h, w], one of each prompt of the first evaluation.

    Its reach is the mean distance of each picture to the next prompt's; its noise is that of this mean.
    """
    images = kept.float() / 255.0
    apart = canaries.distances(images, images.roll(-1, 0)).double().numpy()
    noise = float(np.std(apart)) / math.sqrt(max(1, len(apart)))
    return band("reference_distance", 0.0, noise, len(apart), reach=float(apart.mean()) if len(apart) else None)


def outside(values: Mapping[str, float], bands: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The canaries that have left their bands (as JSON), as alarms: name, value, start, the end that was passed."""
    found = []
    for name, value in values.items():
        own = bands.get(name) or {}
        low, high = own.get("low"), own.get("high")
        below, above = low is not None and value < low, high is not None and value > high
        if below or above:
            side = "below" if below else "above"
            found.append({"canary": name, "side": side, "value": value, "start": own["start"],
                          "limit": low if below else high})  # fmt: skip
    return found
