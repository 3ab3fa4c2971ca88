"""Is the difference real? Bootstrap intervals over prompts (numpy only)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unigrpo.ranges import FEWEST_PROMPTS

Array = NDArray[np.float64]

FEWEST = FEWEST_PROMPTS
"""Prompts below which a bootstrap over prompts is no interval: its ends would be those of a handful of numbers."""
ROUNDING = 1e-9
"""Of the largest figure: a spread below this is what summing in another order makes, and says nothing of prompts."""


def mean(numbers: Sequence[float | None]) -> float | None:
    """The mean of those that are known; None of none."""
    known = [float(number) for number in numbers if number is not None]
    return sum(known) / len(known) if known else None


def judged_interval(
    values: ArrayLike, clusters: ArrayLike, *, strata: ArrayLike | None = None
) -> dict[str, float | str | None]:
    """Return the ``value`` of :func:`interval` with ``low`` and ``high``, or with ``why`` there are none.

    There is none (both None) where fewer than ``FEWEST`` prompts are known, or where resampling them shows no spread;
    value is None where nothing is known at all.
    """
    side = np.asarray(values, dtype=np.float64)
    prompts = len(set(np.asarray(clusters)[~np.isnan(side)].tolist()))
    if prompts == 0:
        return {"value": None, "low": None, "high": None, "why": "no picture has this figure"}
    found: dict[str, float | str | None] = {**interval(side, clusters, strata=strata)}
    why = _why_none(prompts, found["low"], found["high"], float(np.nanmax(np.abs(side))))
    return found if why is None else {**found, "low": None, "high": None, "why": why}


def _why_none(prompts: int, low: float | str | None, high: float | str | None, largest: float) -> str | None:
    """Why a bootstrap over so many prompts is no interval; None where it is one."""
    if prompts < FEWEST:
        return f"{prompts} prompt{'s are' if prompts != 1 else ' is'} too few to say, {FEWEST} are needed"
    if not isinstance(low, float) or not isinstance(high, float) or not high - low > ROUNDING * largest:
        return f"the resampled {prompts} prompts show no spread"
    return None


def judged_difference(
    before: ArrayLike, after: ArrayLike, clusters: ArrayLike, *, strata: ArrayLike | None = None
) -> dict[str, float | str | None]:
    """Return the ``difference`` of :func:`paired_difference` with ``low`` and ``high``, or with ``why`` there are none.

    There is no interval (both None) where fewer than ``FEWEST`` prompts are known on both sides, or where resampling
    them shows no spread at all: either would claim a certainty that nobody has.
    """
    found: dict[str, float | str | None] = {**paired_difference(before, after, clusters, strata=strata)}
    sides = [np.asarray(side, dtype=np.float64) for side in (before, after)]
    known = [set(np.asarray(clusters)[~np.isnan(side)].tolist()) for side in sides]
    prompts, low, high = len(known[0] & known[1]), found["low"], found["high"]
    largest = max(float(np.nanmax(np.abs(side), initial=0.0)) for side in sides)
    why = _why_none(prompts, low, high, largest)
    return found if why is None else {**found, "low": None, "high": None, "why": why}


def paired_difference(
    before: ArrayLike,
    after: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    strata: ArrayLike | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> dict[str, float]:
    """Return ``{"difference", "low", "high"}`` of mean(after) - mean(before), with a percentile bootstrap interval.

    Whole clusters (prompts) are drawn with replacement, the same on both sides, because images of one prompt rise and
    fall together and both sides drew the same prompts. NaN entries (follow without a parsable plan) are left out side
    by side: each mean is over what that side has. A side with nothing gives NaN.

    before, after: [N], entry i of both from the same prompt. clusters: [N] labels; None: every entry on its own.
    strata: [N] labels (prompt categories); the means are then means over strata of means within, as the score is, and
    clusters are drawn within their stratum. ValueError for unequal lengths, none at all, or a cluster in two strata.
    """
    sides = [np.asarray(side, dtype=np.float64).ravel() for side in (before, after)]
    means = _resampled(sides, clusters, strata, confidence, seed, resamples)
    difference = means[1] - means[0]
    low, high = _ends(difference[1:], confidence)
    return {"difference": float(difference[0]), "low": low, "high": high}


def interval(
    values: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    strata: ArrayLike | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> dict[str, float]:
    """Return ``{"value", "low", "high"}`` of the mean of one side, with a percentile bootstrap interval over prompts.

    values: [N], NaN where nothing is known; clusters, strata: as in :func:`paired_difference`, and the same draws.
    """
    side = np.asarray(values, dtype=np.float64).ravel()
    (means,) = _resampled([side], clusters, strata, confidence, seed, resamples)
    low, high = _ends(means[1:], confidence)
    return {"value": float(means[0]), "low": low, "high": high}


def _resampled(
    sides: list[Array],
    clusters: ArrayLike | None,
    strata: ArrayLike | None,
    confidence: float,
    seed: int,
    resamples: int,
) -> list[Array]:
    """The means [1 + resamples] of every side [N]: first of the sample itself, then of draws that all sides share."""
    size = sides[0].size
    labels = np.arange(size) if clusters is None else np.asarray(clusters).ravel()
    groups = np.zeros(size, dtype=np.int64) if strata is None else np.asarray(strata).ravel()
    _check(sides[-1].size, labels.size, groups.size, size, confidence, resamples)
    cluster_names, cluster = np.unique(labels, return_inverse=True)
    stratum_names, stratum = np.unique(groups, return_inverse=True)
    stratum_of = _stratum_of_cluster(cluster, stratum, len(cluster_names))
    weights = _draws(stratum_of, len(stratum_names), resamples, seed)
    weights = np.concatenate([np.ones((1, weights.shape[1])), weights])  # row 0: the sample itself
    return [_means(side, cluster, stratum_of, len(stratum_names), weights) for side in sides]


def _ends(drawn: Array, confidence: float) -> tuple[float, float]:
    """The quantiles of what was drawn; NaN where no draw met a defined entry in every stratum."""
    known = drawn[~np.isnan(drawn)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(known, [tail, 1 - tail]) if known.size else (np.nan, np.nan)
    return float(low), float(high)


def _check(after: int, clusters: int, strata: int, size: int, confidence: float, resamples: int) -> None:
    if size == 0 or not after == clusters == strata == size:
        raise ValueError(
            f"a paired difference needs equally many entries, at least one: before has {size}, after {after}, "
            f"clusters {clusters}, strata {strata}. Evaluate both sides on the same prompts and samples."
        )
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(f"confidence must lie in (0, 1) and resamples be at least 1, got {confidence} and {resamples}")


def _stratum_of_cluster(cluster: NDArray[np.int64], stratum: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """[clusters] -> its stratum; ValueError if some cluster lies in two."""
    result = np.zeros(count, dtype=np.int64)
    result[cluster] = stratum
    if np.any(result[cluster] != stratum):
        raise ValueError("a cluster lies in two strata: give every prompt one category, or leave strata out")
    return result


def _draws(stratum_of: NDArray[np.int64], strata: int, resamples: int, seed: int) -> Array:
    """How often each cluster is drawn: [resamples, clusters], each stratum with as many draws as it has clusters."""
    generator = np.random.default_rng(seed)
    weights = np.zeros((resamples, stratum_of.size))
    for index in range(strata):
        members = np.flatnonzero(stratum_of == index)
        weights[:, members] = generator.multinomial(
            members.size, np.full(members.size, 1 / members.size), size=resamples
        )
    return weights


def _means(
    side: Array, cluster: NDArray[np.int64], stratum_of: NDArray[np.int64], strata: int, weights: Array
) -> Array:
    """Mean over strata of the weighted means within, one per row of weights [R, clusters] -> [R].

    A stratum that never has a defined entry on this side is left out; one that a draw left empty makes the draw NaN.
    """
    valid = ~np.isnan(side)
    sums = np.bincount(cluster[valid], weights=side[valid], minlength=stratum_of.size)
    counts = np.bincount(cluster[valid], minlength=stratum_of.size).astype(np.float64)
    columns = []
    for index in range(strata):
        members = stratum_of == index
        if counts[members].any():
            with np.errstate(invalid="ignore", divide="ignore"):
                columns.append((weights[:, members] @ sums[members]) / (weights[:, members] @ counts[members]))
    return np.mean(columns, axis=0) if columns else np.full(weights.shape[0], np.nan)
