"""Faults that are put in on purpose (the table of docs/faults.md): what is left, and that the run goes on from it."""

import errno
import math
import os
import re
import sys
import time
from pathlib import Path

import pytest
import torch

import tiny_runs
from unigrpo.reports import runlog
from unigrpo.rewards import registry
from unigrpo.rewards.protocol import RewardOutput
from unigrpo.training import checkpoint

ROOT = Path(__file__).parents[2]


def test_the_table_names_tests_that_are_there():
    named = re.findall(r"`(tests/\S+\.py)::(\w+)`", (ROOT / "docs" / "faults.md").read_text())
    assert len(named) > 10
    assert [test for path, test in named if f"def {test}(" not in (ROOT / path).read_text()] == []


def test_one_nan_reward_in_a_hundred_is_counted_and_left_out(tmp_path, monkeypatch, quick):
    """Of 100 samples of two iterations one is not a number: the other 99 are trained on, and it is a zero nowhere."""
    verifier, seen = registry.build("shapes/verifier"), [0]

    def spoiled(images, prompts, metadata, thinking):
        output = verifier(images, prompts, metadata, thinking)
        places = range(seen[0], seen[0] + len(prompts))
        seen[0] += len(prompts)
        values = [math.nan if place == 40 else v for place, v in zip(places, output.values, strict=True)]
        return RewardOutput(values, output.parts)

    monkeypatch.setitem(registry._FACTORIES, "tests/one-in-a-hundred", lambda: spoiled)
    words = tiny_runs.overrides(
        reward__train="[{name: tests/one-in-a-hundred}]",
        reward__on_error="drop_sample",
        data__group_size=25,
        iterations=2,
        optimizer__micro_batch=25,
        optimizer__ppo_epochs=1,
    )
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", tmp_path, *words) == 0
    lines = runlog.read_metrics(tmp_path)
    assert [line.get("failed_share", 0.0) for line in lines] == [1 / 50, 0.0]
    (said,) = lines[0]["failures"]
    assert said.startswith("1 of 50: reward 'tests/one-in-a-hundred' gave nan")
    (event,) = (tmp_path / "faults").glob("*/event.json")  # and what it came from can be looked at
    (kept,) = runlog.read_json(event)["kept"]
    assert kept["failure"].startswith("reward 'tests/one-in-a-hundred' gave nan") and kept["reward"] is None
    assert kept["values"] == {"tests/one-in-a-hundred": "nan"} and (event.parent / kept["picture"]).is_file()
    state = tiny_runs.final_state(tmp_path)
    assert int(state["done"]) == 2 and all(torch.isfinite(t).all() for t in state.values() if t.is_floating_point())


@pytest.mark.parametrize("left", [0, 100_000])
def test_a_full_disk_leaves_nothing_half_made_and_is_gone_on_from(tmp_path, monkeypatch, quick, capsys, left):
    """The third checkpoint finds no room, at its first file or in the middle of one."""
    whole = Path.write_bytes
    run_dir = tmp_path / "run"

    def write_bytes(path, data):
        if path.parent.name.endswith("iteration-000003"):
            whole(path, data[:left])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write_bytes)
        words = tiny_runs.overrides()
        assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", run_dir, *words) == 2
    shown = capsys.readouterr()
    assert "No space left on device" in shown.err and "iteration-000003" in shown.err and "make room there" in shown.err
    assert "Traceback" not in shown.err and "to go on: unigrpo train" in shown.out.replace(str(sys.argv[0]), "unigrpo")
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["iteration-000001", "iteration-000002"]
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", run_dir, "--resume") == 0
    tiny_runs.assert_same_run(run_dir, tiny_runs.finished_run())


def test_a_checkpoint_without_its_marker_is_none(tmp_path, quick):
    """The one before it serves, and what came after is done again, bit for bit."""
    run_dir = tiny_runs.copied_run(tmp_path / "run")
    (checkpoint.complete(run_dir)[-1] / checkpoint.STATE_JSON).unlink()
    assert checkpoint.finished(run_dir) == 3
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", run_dir, "--resume") == 0
    assert checkpoint.finished(run_dir) == 4
    tiny_runs.assert_same_run(run_dir, tiny_runs.finished_run())


def test_a_clock_that_is_set_back_changes_nothing(tmp_path, monkeypatch):
    """A day with every look; files and checkpoints are ordered by their numbers."""
    now = [time.time()]

    def earlier():
        now[0] -= 86_400
        return now[0]

    monkeypatch.setattr(time, "time", earlier)
    stopping = tiny_runs.trainer_of(tmp_path, checkpoint__every=1, checkpoint__minutes=1)

    def after(line):
        stopping.stop.requested = line["iteration"] == 1
        for folder in checkpoint.complete(tmp_path):
            os.utime(folder, (earlier(), earlier()))

    assert not tiny_runs.train(stopping, after)
    resumed = tiny_runs.trainer_of(tmp_path)
    assert resumed.resume() == 2 and tiny_runs.train(resumed)
    tiny_runs.assert_same_run(tmp_path, tiny_runs.finished_run())


@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_kills_at_random_moments_lose_nothing(tmp_path, kills):
    """A short version of ``python scripts/chaos.py``, of a run of two ranks."""
    import rank_runs

    words = [str(ROOT / "scripts" / "chaos.py"), "--kills", str(kills), "--seed", "5"]
    words += ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "chaos.json")]
    code, out, err = rank_runs._finished(words, 300, rank_runs.environment())
    assert code == 0, out + err
    result = runlog.read_json(tmp_path / "chaos.json")
    assert result["kills"] == kills and result["metric_lines_equal"] and not result["tensors_that_differ"]
