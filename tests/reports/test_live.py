"""A page that follows its run, and a terminal that shows what is being done inside an iteration."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

import tiny_runs
from unigrpo import doing
from unigrpo.reports import live, runlog
from unigrpo.reports.html import write_report
from unigrpo.reports.progress import PER_SECOND, Progress

REFRESH = '<meta http-equiv="refresh"'


def test_a_page_of_a_living_run_loads_itself_again_and_a_finished_one_does_not(tmp_path, monkeypatch):
    pages = []

    def kept(run_dir, *, living=""):
        path = write_report(run_dir, living=living)
        pages.append((living, path.read_text()))
        return path

    monkeypatch.setattr(live, "write_report", kept)
    words = tiny_runs.overrides(iterations=3, eval__every=1)
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", tmp_path / "run", *words) == 0
    living, page = pages[0]
    assert REFRESH in page and living.startswith("iteration 1 of 3, ") and f"It goes on: {living}" in page
    assert REFRESH not in (tmp_path / "run" / runlog.REPORT).read_text()


def test_it_takes_no_more_than_its_share_of_the_time(monkeypatch, tmp_path):
    now, written = [0.0], []

    def slow(run_dir, *, living):
        written.append(now[0])
        now[0] += 3.0

    monkeypatch.setattr(live, "write_report", slow)
    report = live.LiveReport(tmp_path, lambda: "soon", print, clock=lambda: now[0])
    for _ in range(400):
        report.milestone()
        now[0] += 1.0
    assert written == [0.0, 103.0, 206.0, 309.0]  # 3 s in 103


def test_a_page_that_cannot_be_written_stops_nothing(monkeypatch, tmp_path):
    def full(run_dir, *, living):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(live, "write_report", full)
    said: list[str] = []
    report = live.LiveReport(tmp_path, lambda: "soon", said.append)
    report.milestone()
    report.milestone()
    assert len(said) == 1 and "No space left" in said[0]


def test_what_is_said_inside_is_heard_with_what_is_around_it():
    heard: list[str] = []
    doing.say("nobody listens")
    with doing.heard(heard.append):
        doing.say("thinking")
        with doing.within("evaluating, 0 of 4 pictures"):
            doing.say("drawing, step 1 of 2")
    doing.say("nobody listens any more")
    assert heard == ["thinking", "evaluating, 0 of 4 pictures: drawing, step 1 of 2"]


@pytest.mark.parametrize("terminal", [True, False])
def test_the_terminal_moves_inside_an_iteration_and_a_file_does_not(terminal):
    output, now = io.StringIO(), [0.0]
    console = Console(file=output, force_terminal=terminal, width=100)
    with Progress("x", 4, console=console, clock=lambda: now[0]) as progress:
        progress.update({"iteration": 0, "reward_mean": 0.5})
        now[0] += 2.0
        doing.say("updating, micro-batch 1 of 2")
        first = output.getvalue()
        now[0] += 0.5 / PER_SECOND
        doing.say("updating, micro-batch 2 of 2")  # too soon after the last drawing
        assert output.getvalue() == first
    assert ("now: updating, micro-batch 1 of 2" in first) == terminal
    assert "micro-batch" not in output.getvalue()[len(first) :]


def test_a_run_says_what_it_does(tmp_path):
    said: list[str] = []
    trainer = tiny_runs.trainer_of(tmp_path)
    with doing.heard(said.append):
        trainer.iterate(0)
    begins = [text.split(",")[0].split(" samples")[0] for text in said]
    for what in ("reading", "thinking", "drawing", "scoring", "asking the reference", "updating"):
        assert any(text.startswith(what) for text in begins), what
