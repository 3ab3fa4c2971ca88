"""``unigrpo compare``: runs over each other on one page that needs nothing else."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

import tiny_runs
from unigrpo.reports import runlog
from unigrpo.reports.comparison import MOST, Compared, differing, figures, read


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """Two runs that differ in a rate, the second without a finished evaluation after training."""
    folder = tmp_path_factory.mktemp("compared")
    shutil.copytree(tiny_runs.finished_run(), folder / "first")
    words = tiny_runs.overrides(optimizer__lr_denoising=3e-4)
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", folder / "second", *words) == 0
    summary = runlog.read_json(folder / "second" / runlog.SUMMARY)
    kept = {key: value for key, value in summary.items() if key == "before"}
    (folder / "second" / runlog.SUMMARY).write_text(json.dumps(kept))
    return [folder / "first", folder / "second"]


@pytest.mark.usefixtures("charts_are_drawn")
def test_runs_stand_over_each_other_on_one_page(runs, tmp_path, capsys):
    page = tmp_path / "both.html"
    assert tiny_runs.unigrpo("compare", *runs, "--out", page) == 0
    whole, said = page.read_text(encoding="utf-8"), capsys.readouterr().out
    assert "optimizer.<wbr>lr_denoising" in whole  # a long key is broken between its parts, and numbers nowhere
    text = whole.replace("<wbr>", "")
    assert text.count("<svg") >= 5 and "optimizer.lr_denoising" in text and "0.0003" in text
    assert all(text.count(f">{name}<") for name in ("first", "second"))
    assert re.search(r"first +score +\d\.\d{3} -> \d\.\d{3}", said) and re.search(
        r"second +score +\d\.\d{3} -> -", said
    )
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text), "the page asks for something outside of it"


def test_what_is_unknown_of_a_run_stands_as_unknown(runs):
    of_second = [row for row in figures(read(runs)) if row["run"] == "second"]
    assert of_second and all(row["after"] is None and row["difference"] is None for row in of_second)


def test_only_what_differs_is_listed(runs):
    assert [key for key, _ in differing(read(runs))] == ["optimizer.lr_denoising"]


def test_curves_begin_before_training(runs):
    validations = [line["iteration"] for line in read(runs)[0].lines if line.get("validation")]
    assert validations[0] == -1  # drawn at 0 finished iterations


def test_stages_follow_each_other(runs, tmp_path):
    staged = tmp_path / "staged"
    for number, name in ((1, "first"), (2, "second")):
        shutil.copytree(runs[number - 1], staged / f"{number}-{name}")
    both = runlog.read_metrics(runs[0]) + runlog.read_metrics(runs[1])
    (staged / runlog.RECIPE).write_text("name: staged\nstages: [{name: first}, {name: second}]\n")
    lines = read([staged, runs[0]])[0].lines
    assert [line["iteration"] for line in lines if line["iteration"] >= 0] == list(range(len(both)))


def test_it_answers_in_json_too(runs, tmp_path, capsys):
    assert tiny_runs.unigrpo("compare", *runs, "--out", tmp_path / "a.html", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["wrote"].endswith("a.html") and answer["differing"]["optimizer.lr_denoising"]["second"] == "0.0003"


def test_runs_of_one_name_are_told_apart(runs, tmp_path):
    for place in ("a", "b"):
        shutil.copytree(runs[0], tmp_path / place / "run")
    assert [run.name for run in read([tmp_path / "a/run", tmp_path / "b/run"])] == ["a/run", "b/run"]


@pytest.mark.parametrize(
    "words, said",
    (
        (("first",), f"1 run: name 2 to {MOST}"),
        (("first", "./first"), "a run is named twice"),
        (("first", "nowhere"), "nowhere is not the folder of a run"),
        (("first", "begun"), "begun has no finished iteration yet"),
        (("first", "second", "--out", "page.pdf"), "the page is an .html file"),
        (("first", "second", "--out", "first"), "the page is an .html file"),
        ((), f"0 runs: name 2 to {MOST}"),
    ),
)
def test_what_cannot_be_compared_is_said(runs, tmp_path, monkeypatch, capsys, words, said):
    for run in runs:
        (tmp_path / run.name).symlink_to(run)
    shutil.copytree(runs[0], tmp_path / "begun", ignore=shutil.ignore_patterns("metrics.jsonl"))
    monkeypatch.chdir(tmp_path)
    assert tiny_runs.unigrpo("compare", *words) == 2
    captured = capsys.readouterr()
    assert said in captured.err + captured.out
    assert not list(tmp_path.glob("*.html"))


def test_first_pictures_of_runs_in_rounds_stand_beside_the_last():
    summary = {"before": {"score": 0.7, "score_first": 0.5, "revision": 0.2}, "after": {"score": 0.8}}
    rows = {row["measure"]: row["before"] for row in figures([Compared("a", Path("a"), {}, [], summary)])}
    assert rows == {"score": 0.7, "score of first pictures": 0.5, "gained by looking": 0.2}
