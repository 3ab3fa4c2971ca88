"""The report page: complete, self-contained, honest about what is missing."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unigrpo.files import write_json_atomic, write_records_atomic
from unigrpo.reports import grids, html, runlog

VOID = {"meta", "img", "br", "link", "use", "path", "wbr"}


class Structure(HTMLParser):
    """Checks nesting and collects text and links."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href"}]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(run_dir: Path) -> Structure:
    return Structure(html.write_report(run_dir).read_text(encoding="utf-8"))


@pytest.mark.usefixtures("charts_are_drawn")
def test_full_report(make_run: Callable[..., Path]) -> None:
    page = page_of(make_run(iterations=40))
    assert "Score 0.600 → 0.810 (+0.210, 95 % interval +0.150 to +0.270)" in page.text
    assert "more than chance" in page.text and "Judged on 200 pictures" in page.text
    for word in ("Glossary", "plan right", "color attr", "Seconds per phase", "Variety of colours", "# <not markup> &"):
        assert word in page.text
    assert page.text.count("It thought:") == 24
    assert "<think> red square a2" in page.text


@pytest.mark.usefixtures("charts_are_drawn")
def test_report_needs_nothing_from_outside(make_run: Callable[..., Path]) -> None:
    run_dir = make_run(iterations=25)
    page = page_of(run_dir)
    assert page.links and all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    text = (run_dir / runlog.REPORT).read_text(encoding="utf-8")
    assert not re.search(r"url\((?!#)|@import|<script|<link", text)
    targets = {link[1:] for link in page.links if link.startswith("#")}
    assert targets <= set(re.findall(r'id="([^"]+)"', text))


def test_unfinished_report_says_so(make_run: Callable[..., Path]) -> None:
    page = page_of(make_run(iterations=45, after=False))
    assert "This run is not finished: 45 of 120 iterations done, the evaluation after training missing." in page.text
    assert "Last validation score: 0.717, at iteration 40." in page.text
    assert "Score before training: 0.600." in page.text


def test_bare_run_of_a_recipe_only(tmp_path: Path) -> None:
    (tmp_path / runlog.RECIPE).write_text("iterations: 5\n")
    page = page_of(tmp_path)
    assert "0 of 5 iterations done, the evaluations before and after training missing" in page.text
    assert "No iteration is logged yet." in page.text


def test_supervised_run(tmp_path: Path, supervised_line: Callable[[int], dict[str, Any]]) -> None:
    (tmp_path / runlog.RECIPE).write_text("name: shapes/sft\niterations: 5\n")
    for k in range(5):
        runlog.append_metrics(tmp_path, supervised_line(k))
    page = page_of(tmp_path).text
    assert "Supervised losses" in page and "cross-entropy (words)" in page


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.1, 0.2, "rise is more than chance"), (-0.1, 0.2, "may be chance"), (-0.2, -0.1, "got worse")],
)
def test_headline_reads_the_interval(low: float, high: float, words: str) -> None:
    assert words in html.headline({"score": 0.5}, {"score": 0.6}, {"score": {"low": low, "high": high}})


def test_headline_without_interval() -> None:
    assert html.headline({"score": 0.5}, {"score": 0.6}, {}) == "Score 0.500 → 0.600 (+0.100)."
    empty = {"score": {"low": None, "high": None}}
    assert html.headline({"score": 0.5}, {"score": 0.6}, empty) == "Score 0.500 → 0.600 (+0.100)."


def test_headline_says_why_there_is_no_interval() -> None:
    few = {
        "score": {"difference": 0.1, "low": None, "high": None, "why": "6 prompts are too few to say, 20 are needed"}
    }
    said = html.headline({"score": 0.5}, {"score": 0.6}, few)
    assert said == "Score 0.500 → 0.600 (+0.100; no interval: 6 prompts are too few to say, 20 are needed)."
    assert "chance" not in said


def test_headline_calls_a_collapse_one() -> None:
    """A score that fell by more than chance; what may be chance, or has no interval, is none."""
    entry = {"score": {"low": -0.4, "high": -0.35}}
    assert html.headline({"score": 0.396}, {"score": 0.021}, entry).startswith("The run collapsed. Score 0.396 → 0.021")
    small = html.headline({"score": 0.5}, {"score": 0.4}, {"score": {"low": -0.2, "high": -0.05}})
    assert small.startswith("The run collapsed. Score 0.500 → 0.400") and "more than chance" in small
    for low, high in ((-0.2, 0.01), (0.1, 0.2), (-0.1, -0.1), (None, None)):
        assert "collapsed" not in html.headline({"score": 0.5}, {"score": 0.4}, {"score": {"low": low, "high": high}})


def test_headline_says_where_nothing_is_learned() -> None:
    lines = [{"no_signal": ["all rewards are equal"]}] * 3
    assert html.headline({}, {}, {}, lines) == ("Not evaluated yet. Something is not learning: all rewards are equal.")
    assert html.headline({}, {}, {}, lines[:2]) == "Not evaluated yet."
    assert html.headline({}, {}, {}, [*lines, {}]) == "Not evaluated yet."


def test_markup_in_model_output_is_escaped(make_run: Callable[..., Path]) -> None:
    run_dir = make_run(iterations=1, after=False)
    records = [{"prompt": "<script>alert(1)</script>", "thinking": "<b>x", "correct": None}]
    sheet = grids.record_sheet(np.zeros((1, 8, 8, 3), dtype=np.uint8), records)
    grids.save_png_atomic(sheet, runlog.evaluation_file(run_dir, "before", "png"))
    html.write_report(run_dir)
    assert "<script>" not in (run_dir / runlog.REPORT).read_text(encoding="utf-8")


def write_evaluation(run_dir: Path, shown: list[dict[str, Any]], records: list[dict[str, Any]]) -> None:
    """Write a contact sheet of some records beside the records of an evaluation."""
    sheet = grids.record_sheet(np.zeros((len(shown), 8, 8, 3), dtype=np.uint8), shown)
    grids.save_png_atomic(sheet, runlog.evaluation_file(run_dir, "before", "png"))
    write_records_atomic(runlog.evaluation_file(run_dir, "before", "jsonl"), records)


def twins() -> list[dict[str, Any]]:
    """Two prompts of the same words, two samples of each, all with the same words of thinking; all verdicts differ."""
    same = {"prompt": "a ring", "thinking": "a ring a1", "plan_right": True, "parsable": True}
    halves = [(0, 0, False, False), (0, 1, True, True), (1, 0, False, True), (1, 1, True, False)]
    return [
        {**same, "position": p, "sample": s, "correct": c, "follow": f, "points": [[f"ring {p}{s}?", c]]}
        for p, s, c, f in halves
    ]


def test_equal_prompts_and_thoughts_keep_their_own_verdicts(make_run: Callable[..., Path]) -> None:
    run_dir, records = make_run(iterations=1, after=False), twins()
    write_evaluation(run_dir, [r for r in records if r["sample"] == 0], records)
    shown = [pair["before"] for pair in html.report_content(run_dir)["pairs"]]
    assert [picture["missed"] for picture in shown] == [["ring 00?"], ["ring 10?"]]
    assert [picture["halves"] for picture in shown] == [
        "plan right, picture does not follow it",
        "plan right, picture follows it",
    ]


@pytest.mark.parametrize("change", ["fewer", "prompt", "thinking", "verdict"])
def test_records_that_do_not_belong_to_the_sheet_give_no_details(make_run: Callable[..., Path], change: str) -> None:
    run_dir = make_run(iterations=1, after=False)
    shown = [r for r in twins() if r["sample"] == 0]
    changed = {"prompt": {"prompt": "a star"}, "thinking": {"thinking": "no"}, "verdict": {"correct": True}}
    records = shown[:1] if change == "fewer" else [shown[0], shown[1] | changed[change]]
    write_evaluation(run_dir, shown, records)
    pictures = [pair["before"] for pair in html.report_content(run_dir)["pairs"]]
    assert [(p["thoughts"][0]["words"], p["verdict"], p["halves"], p["missed"]) for p in pictures] == [
        ("a ring a1", False, "", []),
        ("a ring a1", False, "", []),
    ]


def test_sheets_that_cannot_be_paired_are_shown_whole(make_run: Callable[..., Path]) -> None:
    run_dir = make_run(iterations=1)
    for when in ("before", "after"):
        Image.new("RGB", (8, 8)).save(runlog.evaluation_file(run_dir, when, "png"))
    page = page_of(run_dir)
    assert "after training" in page.text and "It thought:" not in page.text


def test_a_folder_that_is_no_run_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere is not a folder\. Give the folder of a run"):
        html.write_report(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"is not the folder of a run: recipe\.yaml is missing"):
        html.write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_named(make_run: Callable[..., Path]) -> None:
    run_dir = make_run(iterations=1)
    (run_dir / runlog.SUMMARY).write_text("{")
    with pytest.raises(ValueError, match=r"summary\.json is not JSON"):
        html.write_report(run_dir)
    (run_dir / runlog.RECIPE).write_text("a: [")
    with pytest.raises(ValueError, match=r"recipe\.yaml is not YAML"):
        html.write_report(run_dir)


def test_a_fall_without_an_interval_is_no_collapse_but_is_told() -> None:
    """One picture that was right and is wrong: what is left is said, a verdict is not."""
    few = {"score": {"difference": -1.0, "low": None, "high": None, "why": "1 prompt is too few to say, 20 are needed"}}
    said = html.headline({"score": 1.0}, {"score": 0.0}, few)
    assert said.endswith("20 are needed). Less than half of the score is left.") and "collapsed" not in said


def test_an_interval_of_width_0_is_none() -> None:
    """Summaries that were written before reasons were may hold one."""
    said = html.headline({"score": 0.5}, {"score": 0.524}, {"score": {"low": 0.024, "high": 0.024}})
    assert "no interval: the resampled prompts show no spread" in said and "chance" not in said


def test_the_table_says_once_why_there_are_no_intervals(make_run: Callable[..., Path]) -> None:
    few = {"difference": 0.1, "low": None, "high": None, "why": "6 prompts are too few to say, 20 are needed"}
    page = page_of(make_run(iterations=2, paired={"score": few, "plan_right": few})).text
    assert page.count("No interval of score, plan right: 6 prompts are too few to say, 20 are needed.") == 1
    assert "95 % interval +" not in page and "chance" not in page


def test_what_is_known_of_before_training_stands_beside_the_last_validation(make_run: Callable[..., Path]) -> None:
    run_dir = make_run(iterations=45, after=False)
    summary = runlog.read_json(run_dir / runlog.SUMMARY)
    summary["before"]["validation"] = {**summary["before"], "score": 0.583}
    write_json_atomic(run_dir / runlog.SUMMARY, summary)
    page = page_of(run_dir).text
    assert "Last validation score: 0.717, at iteration 40 (before training 0.583)." in page
    assert "the dot at 0 is the model before training" in page and "score 0.583 → 0.717" in page


def test_given_pictures_stand_beside_the_results(make_run: Callable[..., Path]) -> None:
    """Of edits, in the pairs and above the training samples; a source is no sheet of samples."""
    run_dir = make_run(iterations=1)
    for when in ("before", "after"):
        path = runlog.evaluation_file(run_dir, when, "jsonl")
        records = runlog.read_records(path)
        records[1]["images"] = ["evaluations/source-1-0.png", "evaluations/source-1-1.png"]
        write_records_atomic(path, records)
    samples = [{"position": 3, "sample": k, "prompt": "make it red", "images": [SAMPLE_SOURCE]} for k in range(3)]
    write_records_atomic(runlog.samples_file(run_dir, 25, "jsonl"), samples)
    for name in ("evaluations/source-1-0.png", "evaluations/source-1-1.png", SAMPLE_SOURCE):
        Image.new("RGB", (40, 20), (255, 0, 0)).save(run_dir / name)
    content = html.report_content(run_dir)
    assert [len(pair["given"]) for pair in content["pairs"]] == [0, 2, *[0] * 10]
    assert [sheet["iteration"] for sheet in content["samples"]] == [25, 75, 100]
    assert [item["prompt"] for item in content["samples"][0]["given"]] == ["make it red"]
    html.write_report(run_dir)
    assert (run_dir / runlog.REPORT).read_text(encoding="utf-8").count('alt="given picture') == 3


SAMPLE_SOURCE = "samples/iteration-000025-source-3-0.png"
