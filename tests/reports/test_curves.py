"""Charts: only what has data, and the right numbers."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from unigrpo.reports import captions, curves, rendering

Maker = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.usefixtures("charts_are_drawn")


def without(line: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in names}


def names(lines: list[dict[str, Any]]) -> set[str]:
    return {chart.name for chart in curves.charts(lines)}


def test_full_run_has_all_charts(metric_line: Maker) -> None:
    found = names([metric_line(k) for k in range(40)])
    expected = {"reward", "halves", "categories", "clipped", "text-ratio", "image-ratio-spread", "image-ratio-mean"}
    expected |= {"velocity-mse", "gradients", "length", "entropy", "seconds", "speed", "canary-colour_diversity"}
    assert expected <= found
    assert "supervised" not in found


def test_places_in_the_window_are_counted_like_people_do(metric_line: Maker) -> None:
    found = {chart.name: chart for chart in curves.charts([metric_line(k) for k in range(3)])}
    for name in ("clipped", "image-ratio-spread", "image-ratio-mean"):
        drawn = curves.svg(found[name])
        assert all(f"{place} place" in drawn for place in ("1st", "2nd", "3rd"))
        assert "place in the window" in found[name].title
        assert "image, step" not in drawn
    said = [curves.ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 112)]
    assert said == ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "112th"]


def test_text_only_run_has_no_image_charts(metric_line: Maker) -> None:
    found = names([without(metric_line(k), "flow") for k in range(5)])
    assert found.isdisjoint({"velocity-mse", "image-ratio-spread", "image-ratio-mean"})
    assert {"clipped", "text-ratio"} <= found


def test_supervised_and_empty_runs(supervised_line: Maker) -> None:
    found = curves.charts([supervised_line(k) for k in range(9)])
    assert {chart.name for chart in found} == {"supervised", "gradients", "entropy", "seconds", "speed"}
    drawn = next(curves.svg(chart) for chart in found if chart.name == "supervised")
    assert "cross-entropy (words)" in drawn and "flow matching (velocity)" in drawn
    assert curves.charts([]) == [] and curves.charts([{"iteration": 0}, {}]) == []
    with pytest.raises(ValueError, match="no metrics yet"):
        curves.png([])


def test_series_counts_from_one_and_skips_gaps() -> None:
    lines = [{"iteration": 0, "a": {"b": 1}}, {"iteration": 1, "a": None}, {"iteration": 2, "a": {"b": float("nan")}}]
    x, y = curves.series([*lines, {"iteration": 3, "a": {"b": 4}}], "a.b")
    assert x.tolist() == [1, 4] and y.tolist() == [1, 4]


def test_smoothing_keeps_constants_and_averages() -> None:
    np.testing.assert_allclose(captions.smooth(np.full(50, 3.0)), 3.0)
    y = np.arange(20.0)
    np.testing.assert_allclose(captions.smooth(y)[2:-2], y[2:-2])
    assert captions.smooth(y)[0] == 1.0  # mean of 0, 1, 2
    assert captions.smooth(np.array([5.0])).tolist() == [5.0]


def test_phases_add_up_to_the_total() -> None:
    lines = [{"iteration": k, "seconds": {"rollout": 1.0, "update": 2.0, "total": 3.5}} for k in range(3)]
    found = {name: y.tolist() for name, (_, y) in curves.phases(lines).items()}
    assert found == {"rollout": [1.0] * 3, "update": [2.0] * 3, "other": [0.5] * 3}
    assert curves.phases([{"iteration": 0}]) == {}


@pytest.mark.parametrize("count", [1, 2, 30])
def test_every_chart_renders(metric_line: Maker, count: int) -> None:
    lines = [metric_line(k) for k in range(count)]
    lines[-1] = metric_line(19) | {"iteration": count - 1}
    found = curves.charts(lines)
    for chart in found:
        text = curves.svg(chart)
        root = ElementTree.fromstring(text)
        assert root.tag.endswith("svg") and "currentColor" in text
        assert rendering.INK not in text.lower()
    if count == 2:
        assert curves.png(found).startswith(b"\x89PNG")


def test_svg_is_reproducible(metric_line: Maker) -> None:
    lines = [metric_line(k) for k in range(10)]
    assert curves.svg(curves.charts(lines)[0]) == curves.svg(curves.charts(lines)[0])


def test_ticks_have_the_digits_that_tell_them_apart() -> None:
    assert [rendering.tick_label(y, [0, 0.25, 0.5]) for y in (0, 0.25, 0.5)] == ["0", "0.25", "0.5"]
    assert rendering.tick_label(1234.5, [1000, 1234.5]) == "1.23e+03"
    assert [rendering.tick_label(y, [-61.25, -61.2, -61.15]) for y in (-61.25, -61.2)] == ["-61.25", "-61.2"]
    assert rendering.tick_label(0.5, [0.5, 0.5]) == "0.5"


def test_captions_say_what_this_run_did(metric_line: Callable[..., dict[str, Any]]) -> None:
    """Of a run that fell, no caption may speak of a rise."""
    lines = [metric_line(k) for k in range(120)]
    rising = {chart.name: chart.caption for chart in curves.charts(lines)}
    falling = {chart.name: chart.caption for chart in curves.charts([
        {**line, "iteration": k} for k, line in enumerate(reversed(lines))
    ])}  # fmt: skip
    assert rising["halves"].startswith("plan right 0.756 → 0.87; follow ")
    assert rising["categories"] == "Of 6, 6 ended higher than they began, 0 lower."
    assert falling["categories"] == "Of 6, 0 ended higher than they began, 6 lower."
    words = " ".join([*rising.values(), *falling.values()])
    assert not any(word in words for word in ("rises", "falls", "steady", "healthy", "Steady"))


def test_a_caption_of_few_points_and_of_none() -> None:
    one = (np.array([1]), np.array([0.25]))
    assert captions.course({"a": one}) == "0.25"
    assert captions.course({"a": one, "b": (np.array([1, 2]), np.array([1.0, 0.5]))}) == "a 0.25; b 1 → 0.5"
    mixed = {name: (np.arange(2), np.array([1.0, end])) for name, end in zip("abcd", (2.0, 0.5, 1.0, 3.0), strict=True)}
    assert captions.course(mixed) == (
        "Of 4, 2 ended higher than they began, 1 lower (b), 1 changed by no more than noise."
    )


def test_a_caption_takes_no_noise_for_a_change() -> None:
    rng = np.random.default_rng(0)
    x, steady = np.arange(100), np.linspace(0, 0.3, 100)
    flat = [captions.course_of(0.5 + 0.1 * rng.normal(size=n)).way for n in (5, 20, 100) for _ in range(100)]
    assert flat.count(0) > 0.9 * len(flat)
    rising, falling = steady + 0.05 * rng.normal(size=100), 0.05 * rng.normal(size=100) - steady
    assert [captions.course_of(y).way for y in (rising, falling, steady)] == [1, -1, 1]
    assert captions.course({"a": (x, 0.5 + 0.1 * rng.normal(size=100))}).endswith("(no change beyond noise)")
    assert captions.course({"a": (x, np.full(100, 106.6666) + 1e-9 * rng.normal(size=100))}) == "107"


def test_each_reward_has_a_curve_where_there_are_several():
    """Names may hold dots, as those of files do."""
    lines = [{"iteration": i, "reward_values": {"mine.py:one": i, "two": -i}} for i in range(5)]
    (chart,) = [chart for chart in curves.charts(lines) if chart.name == "each-reward"]
    assert "mine.py:one 0 \u2192 4" in chart.caption and "two 0 \u2192 -4" in chart.caption
    alone = [{"iteration": 0, "reward_values": {"two": 1.0}}]
    assert not [chart for chart in curves.charts(alone) if chart.name == "each-reward"]
