"""The words world by the command line: a run, an evaluation and a picture, with the real OCR."""

from __future__ import annotations

import pytest

from unigrpo import cli
from unigrpo.build import worlds
from unigrpo.reports import runlog

SMALL = ["--iterations", "2", "--data.prompts-per-iteration", "3", "--data.group-size", "3", "--checkpoint.every", "2"]
SMALL += ["--eval.limit", "6", "--eval.compare-limit", "6", "--eval.compare-samples", "1", "--eval.every", "1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("words") / "run"
    assert cli.main(["train", "words/unigrpo", "--out", str(folder), *SMALL]) == 0
    return folder


def test_both_halves_are_trained_by_what_the_ocr_reads(run):
    first, second = runlog.read_metrics(run)
    assert first["first_update"]["text_log_ratio_max"] <= 1e-5
    assert first["first_update"]["image_log_ratio_max"] <= 1e-7
    assert set(first["reward_parts"]) == {"similarity", "exact"}
    assert first["reward_mean"] == pytest.approx(first["reward_parts"]["similarity"])
    assert second["grad_norm"]["reasoning"] > 0 and second["grad_norm"]["denoising"] > 0


def test_its_evaluations_say_what_was_read(run):
    for record in runlog.read_records(runlog.evaluation_file(run, "after", "jsonl")):
        word = record["prompt"].split()[-1]
        assert record["correct"] == (record["read"] == word)
        assert len(record["points"]) == len(word) + 1
    summary = runlog.read_json(run / runlog.SUMMARY)
    assert set(summary["before"]["by_category"]) == {"two letters", "three letters", "four letters"}


def test_a_model_is_judged_and_draws_what_a_person_writes(run, tmp_path, capsys):
    assert cli.main(["eval", "--model", str(run), "--suite", "words", "--limit", "3", "--samples", "1"]) == 0
    assert "plan right" in capsys.readouterr().out
    assert cli.main(["generate", 'Write the word "cab"!', "--model", str(run), "--out", str(tmp_path / "a.png")]) == 0
    said = capsys.readouterr().out
    assert "\nright  <think> " in said or "\nwrong  <think> " in said
    assert (tmp_path / "a.png").is_file()


def test_without_the_ocr_a_picture_is_drawn_and_not_judged(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(worlds, "find_spec", lambda name: None)
    assert cli.main(["generate", "write CAB", "--model", str(run), "--out", str(tmp_path / "a.png")]) == 0
    said = capsys.readouterr().out
    assert "\n<think> " in said and "right" not in said and "wrong" not in said


def test_a_prompt_that_the_world_does_not_know_is_explained(run, tmp_path, capsys):
    code = cli.main(["generate", "paint a zoo", "--model", str(run), "--out", str(tmp_path / "a.png")])
    assert code != 0 and "the world has no such sentence" in capsys.readouterr().err
