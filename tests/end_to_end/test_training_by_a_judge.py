"""A tiny training whose reward is judge/exam, with a judge that fails now and then, heals, or stays away."""

import json
import sys
from pathlib import Path

import pytest

import tiny_runs
from unigrpo.reports.runlog import read_metrics
from unigrpo.rewards import judge_endpoint

sys.path.append(str(Path(__file__).parents[1] / "rewards"))
import fault_server as faults

NAME = "unigrpo.rewards.judge:JudgeExam"
NO_ARGS = {}
EXAM = ["Is it red?", {"question": "Is it blue?", "expected": "no"}]
PASSES = (
    faults.status(429, [("Retry-After", "0.02")]), faults.status(500), faults.page, faults.error_as_success,
    faults.dropped, faults.cut,
)  # fmt: skip
SAYS_NOTHING = (faults.no_choices, faults.says(None), faults.says("It depends."))  # asked once more, and no third time


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(judge_endpoint, "backoff", lambda attempt: 0.01)
    judge_endpoint._endpoint.cache_clear()


def prompts(folder):
    """Prompts of the shapes world that hold an exam."""
    rows = [{"prompt": f"a {colour} square", "points": EXAM} for colour in ("red", "blue", "green", "yellow")]
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(folder, server, **args):
    """Of a run of two iterations with the judge at ``server``."""
    folder.mkdir()
    judge = {"url": server.url, "model": faults.MODEL, "retries": 20, "read_s": 2.0, **args}
    named = json.dumps([{"name": NAME, "args": judge}])
    few = {"iterations": 2, "eval__limit": 2, "eval__compare_limit": 2, "data__prompts": (path := prompts(folder))}
    return few | {"eval__prompts": path, "reward__train": named, "reward__validation": named}


def by_command(folder, server, args=NO_ARGS, **other):
    """Train by the command line; the exit code."""
    words = tiny_runs.overrides(**settings(folder, server, **args), **other)
    return tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", folder / "run", *words)


def test_faults_that_heal_change_no_bit_of_a_run(tmp_path):
    silent = set()

    def fault(nth, question):
        asked = str(server.requests[nth - 1]["messages"][0])
        if nth % 4 == 0 and asked not in silent:
            silent.add(asked)
            return SAYS_NOTHING[nth // 4 % 3]
        return PASSES[nth // 3 % 6] if nth % 3 == 0 else None

    for name, happens in (("calm", lambda nth, question: None), ("rough", fault)):
        with faults.running(happens) as server:
            tiny_runs.train(tiny_runs.trainer_of(tmp_path / name / "run", **settings(tmp_path / name, server)))
            asked = len(server.requests)
    assert len(silent) >= 5 and asked >= 60
    tiny_runs.assert_same_run(tmp_path / "calm/run", tmp_path / "rough/run")


def test_samples_without_an_answer_are_left_out_and_never_zero(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_JUDGE_KEY", key := "sk-secret-0123456789")
    refuse = faults.status(400, message=f"too dark for {key}")
    with faults.running(lambda nth, question: refuse if nth % 11 == 9 else None) as server:
        more = {"reward__on_error": "drop_sample", "reward__max_failed_share": 0.6}
        assert by_command(tmp_path / "some", server, {"key_env": "MY_JUDGE_KEY"}, **more) == 0
    run = tmp_path / "some/run"
    lines = [line for line in read_metrics(run) if "reward_mean" in line]
    assert any(line.get("failed_share", 0) > 0 for line in lines) and all(line["reward_mean"] > 0.1 for line in lines)
    samples = [json.loads(row) for file in run.glob("samples/*.jsonl") for row in file.read_text().splitlines()]
    failed = [sample for sample in samples if sample.get("failure")]
    assert failed and all(sample["reward"] is None for sample in failed)
    assert any(
        "no answer; 'Is it" in sample["failure"] and "too dark for ***" in sample["failure"] for sample in failed
    )
    assert not any(key in file.read_bytes().decode(errors="ignore") for file in run.rglob("*") if file.is_file())


def test_a_judge_that_goes_away_ends_the_run_with_a_checkpoint_and_a_sentence(tmp_path, capsys):
    more = {"reward__on_error": "drop_sample", "eval__every": 2}
    with faults.running(lambda nth, question: faults.status(503) if nth > 24 else None) as server:
        assert by_command(tmp_path / "gone", server, {"deadline_s": 0.5}, **more) == 2
    said = capsys.readouterr().err
    assert "6 of 6 pictures could not be scored (100%), more than reward.max_failed_share = 0.2" in said
    assert "status 503: no luck" in said and [path.name for path in (tmp_path / "gone/run/checkpoints").iterdir()] == [
        "iteration-000001"
    ]
