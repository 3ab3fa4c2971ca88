"""Headlines of made-up run folders: no verdict that the numbers do not allow, a collapse called one, alarms told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unigrpo.files import write_json_atomic, write_records_atomic
from unigrpo.reports import alarms, comparison, html, model_card, runlog
from unigrpo.reports.differences import trusted, verdict

Maker = Callable[..., Path]
WIDE = {"difference": 0.2, "low": 0.1, "high": 0.3}


def alarm(title: str = "edge energy", kind: str = "canary", **more: Any) -> dict[str, Any]:
    words = f"{title} is 0.031, above its band" if kind == "canary" else f"{title} fell by 0.2"
    return {"kind": kind, "name": title, "title": title, "words": words, "look": "the pictures", **more}


def content(run_dir: Path, found: dict[int, list[dict[str, Any]]], **summary: Any) -> dict[str, Any]:
    """The report of a made-up run with alarms at some iterations (from 1), and more in its summary."""
    lines = runlog.read_metrics(run_dir)
    for iteration, raised in found.items():
        lines[iteration - 1]["alarms"] = raised
    write_records_atomic(run_dir / runlog.METRICS, lines)
    write_json_atomic(run_dir / runlog.SUMMARY, {**runlog.read_json(run_dir / runlog.SUMMARY), **summary})
    return html.report_content(run_dir)


@pytest.mark.parametrize(("low", "high", "said"), [
    (0.1, 0.2, "rose"), (-0.2, -0.1, "fell"), (-0.1, 0.1, "open"), (0.0, 0.1, "open"),
    (0.1, 0.1, None), (None, None, None), (float("nan"), float("nan"), None),
])  # fmt: skip
def test_one_function_gives_the_verdict(low: float, high: float, said: str) -> None:
    assert verdict({"low": low, "high": high}) == said
    assert verdict(None) is None


def few(make_run: Maker, prompts: int, samples: int) -> Path:
    """A run as an older version left it: an interval over a handful of prompts."""
    run_dir = make_run(iterations=2, paired={"score": WIDE})
    records = [
        {"position": p, "sample": s, "prompt": "a", "thinking": None, "correct": True}
        for p in range(prompts) for s in range(samples)
    ]  # fmt: skip
    write_records_atomic(runlog.evaluation_file(run_dir, "before", "jsonl"), records)
    summary = runlog.read_json(run_dir / runlog.SUMMARY)
    summary["before"]["n"] = summary["after"]["n"] = len(records)
    write_json_atomic(run_dir / runlog.SUMMARY, summary)
    return run_dir


def test_no_verdict_below_twenty_prompts_whatever_the_summary_holds(make_run: Maker) -> None:
    found = html.report_content(few(make_run, 6, 4))
    assert "no interval: 6 prompts are too few to say, 20 are needed" in found["headline"]
    assert "chance" not in found["headline"] and "95 %" not in found["headline"]
    assert [row["interval"] for row in found["measures"] if row["name"] == "score"] == ["none"]


def test_twenty_prompts_may_have_one(make_run: Maker) -> None:
    assert "the rise is more than chance" in html.report_content(few(make_run, 20, 2))["headline"]


def test_cards_and_comparisons_follow_the_same_rule() -> None:
    summary = {"before": {"score": 0.5, "n": 12}, "after": {"score": 0.7, "n": 12}, "paired": {"score": WIDE}}
    (row,) = model_card.figures_of(summary)
    assert row[-1] == "none: 12 prompts are too few to say, 20 are needed"
    flat = {**summary, "before": {"score": 0.5, "n": 80}, "paired": {"score": {**WIDE, "low": 0.2, "high": 0.2}}}
    assert model_card.figures_of(flat)[0][-1] == "none: the resampled prompts show no spread"
    run = comparison.Compared("few", Path(), {}, [], summary)
    (score,) = comparison.figures([run])
    assert score["interval"] == "12 prompts are too few to say, 20 are needed"
    assert trusted({"before": {"n": 80}, "paired": {"score": WIDE}}) == {"score": WIDE}


def test_an_alarm_stands_in_the_headline_and_in_a_table(make_run: Maker) -> None:
    run_dir = make_run(iterations=45, after=False)
    found = content(run_dir, {20: [alarm()], 40: [alarm(), alarm("picture follows plan", "proxy")]})
    assert found["headline"].endswith(
        "2 alarms: edge energy left its band (iterations 20 to 40); "
        "picture follows plan fell while the trained reward rose (iteration 40)."
    )
    page = html.write_report(run_dir).read_text(encoding="utf-8")
    assert "edge energy is 0.031, above its band" in page and 'href="#alarms"' in page


def test_an_alarm_that_is_over_is_said_to_be(make_run: Maker) -> None:
    found = content(make_run(iterations=45, after=False), {20: [alarm()]})
    assert "An alarm: edge energy left its band (iteration 20, not since)." in found["headline"]
    assert "collapsed" not in found["headline"]


def test_a_run_without_alarms_says_nothing_of_them(make_run: Maker) -> None:
    run_dir = make_run(iterations=45)
    assert "larm" not in html.report_content(run_dir)["headline"]
    assert 'id="alarms"' not in html.write_report(run_dir).read_text(encoding="utf-8")


def test_diversity_that_is_gone_is_a_collapse_although_the_score_rose(make_run: Maker) -> None:
    lost = alarm("variety of colours", collapsed=True)
    run_dir = make_run(iterations=45)
    found = content(run_dir, {40: [lost]}, alarms=[{"iteration": 45, "when": "after", **lost}])
    assert found["headline"].startswith("The run collapsed: variety of colours is 0.031, above its band. Score 0.600")
    assert "the rise is more than chance" in found["headline"]
    back = content(make_run(iterations=45), {40: [lost]})  # the evaluation after training raised none
    assert "collapsed" not in back["headline"] and "not since" in back["headline"]


@pytest.mark.parametrize("diverged", [True, False])
def test_a_run_that_was_stopped_by_an_error_says_so(make_run: Maker, diverged: bool) -> None:
    stopped = {"iterations": 45, "why": "the text loss is nan", "diverged": diverged}
    said = content(make_run(iterations=45, after=False), {}, stopped=stopped)["headline"]
    assert "It was stopped by an error after 45 iterations: the text loss is nan." in said
    assert said.startswith("The run collapsed: training made numbers that are not finite.") == diverged


def test_alarms_of_wrong_types_are_named(make_run: Maker) -> None:
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 20: alarms is .* not a list of alarms"):
        content(make_run(iterations=45), {20: [{"kind": "canary"}]})


@pytest.mark.usefixtures("charts_are_drawn")
def test_the_band_is_drawn_with_its_canary(make_run: Maker) -> None:
    run_dir = make_run(iterations=45, after=False)
    lines = runlog.read_metrics(run_dir)
    for line in lines:
        if "validation" in line:
            line["validation"]["canaries"] = {"edge_energy": 0.05, "saturation": 0.3}
    write_records_atomic(run_dir / runlog.METRICS, lines)
    found = content(run_dir, {}, bands={"edge_energy": {"start": 0.05, "noise": 0.001, "low": 0.03, "high": 0.08}})
    charts = {chart.name: (chart, drawn) for _, group in found["sections"] for chart, drawn in group}
    chart, drawn = charts["canary-edge_energy"]
    assert "end of the band" in drawn and chart.caption.startswith("training 0.0")
    assert charts["canary-saturation"][0].caption == "0.3"


def test_each_alarm_is_told_once() -> None:
    lines = [{"iteration": k, "validation": {}, "alarms": [alarm()]} for k in (9, 19, 29)]
    (found,) = alarms.raised({}, lines)
    assert (found.first, found.last, found.on, found.when) == (10, 30, True, "iterations 10 to 30")
