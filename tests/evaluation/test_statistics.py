"""Bootstrap intervals: right width, right coverage, NaN and clusters as documented."""

from __future__ import annotations

import math

import numpy as np
import pytest

from unigrpo.evaluation.statistics import paired_difference


def test_difference_is_exact_and_inside() -> None:
    before, after = np.array([0, 0, 1, 1, 0, 1.0]), np.array([1, 0, 1, 1, 1, 1.0])
    found = paired_difference(before, after)
    assert found["difference"] == pytest.approx(2 / 6)
    assert found["low"] <= found["difference"] <= found["high"]
    assert found == paired_difference(before, after)  # same seed, same interval
    assert paired_difference(before, before) == {"difference": 0.0, "low": 0.0, "high": 0.0}


def test_width_agrees_with_the_normal_approximation() -> None:
    rng = np.random.default_rng(1)
    before = rng.normal(size=400)
    after = before + 0.3 + rng.normal(size=400)
    found = paired_difference(before, after, resamples=8000)
    expected = 2 * 1.96 * np.std(after - before) / math.sqrt(400)
    assert found["high"] - found["low"] == pytest.approx(expected, rel=0.06)
    narrow = paired_difference(before, after, confidence=0.5)
    assert narrow["high"] - narrow["low"] < 0.5 * (found["high"] - found["low"])


def test_clusters_widen_the_interval_by_the_repeats() -> None:
    """Four copies of every entry are no new knowledge: clustered, the interval is that of the single entries."""
    rng = np.random.default_rng(2)
    single = [rng.random(100).round(), rng.random(100).round()]
    before, after = (np.repeat(side, 4) for side in single)
    clustered = paired_difference(before, after, np.repeat(np.arange(100), 4))
    assert clustered == pytest.approx(paired_difference(single[0], single[1]))
    naive = paired_difference(before, after)
    assert naive["high"] - naive["low"] < 0.6 * (clustered["high"] - clustered["low"])


def test_coverage_is_near_its_name() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for trial in range(200):
        before, after = rng.random(60) < 0.5, rng.random(60) < 0.7
        found = paired_difference(before, after, seed=trial, resamples=400)
        hits += found["low"] <= 0.2 <= found["high"]
    assert 0.88 <= hits / 200 <= 0.99


def test_nan_entries_are_left_out_side_by_side() -> None:
    before, after = np.array([1, np.nan, 0, np.nan]), np.array([1, 1, np.nan, 0])
    assert paired_difference(before, after)["difference"] == pytest.approx(2 / 3 - 1 / 2)
    empty = paired_difference(np.full(4, np.nan), after)
    assert all(math.isnan(value) for value in empty.values())


def test_strata_give_the_mean_of_category_means() -> None:
    before, after = np.zeros(6), np.array([1, 1, 1, 1, 0, 0.0])
    strata = ["a", "a", "a", "a", "b", "b"]
    assert paired_difference(before, after, strata=strata)["difference"] == pytest.approx(0.5)
    assert paired_difference(before, after)["difference"] == pytest.approx(4 / 6)


def test_wrong_input_is_explained() -> None:
    with pytest.raises(ValueError, match="before has 2, after 3"):
        paired_difference([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="at least one"):
        paired_difference([], [])
    with pytest.raises(ValueError, match="two strata"):
        paired_difference([1, 2], [1, 2], ["p", "p"], strata=["a", "b"])
    with pytest.raises(ValueError, match=r"confidence must lie in \(0, 1\)"):
        paired_difference([1], [1], confidence=95)
