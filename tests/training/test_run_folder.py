"""A run folder belongs to one process at a time, and one that was killed as it began is a new one."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys

import pytest

import tiny_runs
from unigrpo.ranges import ConfigError
from unigrpo.reports import runlog
from unigrpo.runs import folders, locks
from unigrpo.runs import training as train_command
from unigrpo.training import checkpoint


def ended():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def named(path, pid, host=None):
    path.write_text(json.dumps({"pid": pid, "host": host or socket.gethostname(), "since": "2026-01-01T00:00:00"}))


# ---------------------------------------------------------------- one process


def test_a_living_run_lets_no_other_in(tmp_path, quick, monkeypatch, capsys):
    """Neither a second training nor a resume: both would write into the same metrics and checkpoints."""
    run_dir, words, codes = tmp_path / "run", tiny_runs.overrides(iterations=2, eval__every=25), []

    def update(self, line):
        if line["iteration"] == 0:
            for again in ((*words, "--seed", "1"), ("--resume",)):
                codes.append(tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", run_dir, *again))

    monkeypatch.setattr(train_command.Progress, "update", update)
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", run_dir, *words) == 0
    assert codes == [2, 2]
    said = f"{run_dir} is in use: process {os.getpid()} on {socket.gethostname()} (since 20"
    assert capsys.readouterr().err.count(said) == 2
    assert [line["iteration"] for line in runlog.read_metrics(run_dir)] == [0, 1]
    assert not (run_dir / locks.LOCK).exists()


def test_another_process_is_kept_out_too(tmp_path):
    code = "import sys, pathlib; from unigrpo.runs.locks import hold\nwith hold(pathlib.Path(sys.argv[1])): pass"
    with locks.hold(tmp_path / locks.LOCK):
        done = subprocess.run([sys.executable, "-c", code, tmp_path / locks.LOCK], capture_output=True, text=True)
    assert done.returncode == 1 and f"process {os.getpid()} on" in done.stderr.splitlines()[-1]
    assert not (tmp_path / locks.LOCK).exists()


def test_a_lock_of_the_dead_is_taken_over_with_a_note(tmp_path, quick, capsys):
    run_dir, pid = tiny_runs.copied_run(tmp_path / "run"), ended()
    named(run_dir / locks.LOCK, pid)
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", run_dir, "--resume") == 0
    assert f"was left by process {pid} on {socket.gethostname()}" in capsys.readouterr().out
    assert not (run_dir / locks.LOCK).exists()


def test_a_lock_of_another_machine_is_taken_over_with_a_warning(tmp_path):
    said = []
    named(tmp_path / locks.LOCK, 1, "elsewhere")
    with locks.hold(tmp_path / locks.LOCK, say=said.append):
        assert "process 1 on elsewhere" in said[0] and "if it still runs there, stop one of the two" in said[0]


def test_a_child_that_outlives_its_parent_holds_on(tmp_path):
    pid = ended()
    named(tmp_path / locks.LOCK, pid)
    with open(tmp_path / locks.LOCK) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with (
            pytest.raises(locks.Held, match=f"a child of process {pid} .* is gone itself"),
            locks.hold(tmp_path / locks.LOCK),
        ):
            pass
    assert (tmp_path / locks.LOCK).exists()


def test_a_forked_child_does_not_end_the_lock_of_its_parent(tmp_path):
    held = locks.hold(tmp_path / locks.LOCK)
    held.__enter__()
    child = os.fork()
    if child == 0:  # leaves the block as its parent will
        held.__exit__(None, None, None)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0 and (tmp_path / locks.LOCK).exists()
    held.__exit__(None, None, None)
    assert not (tmp_path / locks.LOCK).exists()


def test_a_lock_file_that_was_removed_in_between_is_made_again(tmp_path, monkeypatch):
    same, answers = locks._same, [False]
    monkeypatch.setattr(locks, "_same", lambda *given: answers.pop() if answers else same(*given))
    with locks.hold(tmp_path / locks.LOCK), pytest.raises(locks.Held), locks.hold(tmp_path / locks.LOCK):
        pass


def test_without_locks_of_the_system_the_name_has_to_do(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", none)
    said = []
    with locks.hold(tmp_path / locks.LOCK, say=said.append):
        assert "there are no file locks" in said[0]
    named(tmp_path / locks.LOCK, os.getppid())
    with pytest.raises(locks.Held), locks.hold(tmp_path / locks.LOCK, say=said.append):
        pass


@pytest.mark.parametrize("name", ["made/run", None])
def test_a_new_folder_is_gone_again_where_nothing_was_written(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    out = None if name is None else tmp_path / name
    with pytest.raises(ConfigError), folders.new_run(out, "a/recipe") as made:
        assert made.is_dir() and [path.name for path in made.iterdir()] == [locks.LOCK]
        raise ConfigError("no such prompts")
    assert tiny_runs.listed(tmp_path) == []


# ---------------------------------------------------------------- what the killed leave


def test_killed_before_the_recipe_was_whole_is_a_new_run(tmp_path, capsys):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    named(run_dir / locks.LOCK, ended())
    (run_dir / f".recipe.yaml.{ended()}.0123abcd.tmp").write_text("name: shap")
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", run_dir, "--resume", "--model.path", tmp_path) == 2
    assert f"--resume: {run_dir} holds no run yet, so a new one starts there" in capsys.readouterr().out
    with folders.new_run(run_dir, "any") as made:
        assert [path.name for path in made.iterdir()] == [locks.LOCK]
    (run_dir / ".notes").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"), folders.new_run(run_dir, "any"):
        pass


def test_resuming_clears_what_killed_processes_left(tmp_path):
    run_dir = tiny_runs.copied_run(tmp_path / "run")
    pid = ended()
    for folder in ("", "evaluations", "samples", "checkpoints"):
        (run_dir / folder / f".x.json.{pid}.0123abcd.tmp").write_text("half")
    half = run_dir / "checkpoints" / f"{checkpoint.PARTIAL}iteration-000009"
    half.mkdir()
    (half / "model.safetensors").write_text("half")
    with folders.begun_run(run_dir):
        pass
    assert tiny_runs.listed(run_dir) == tiny_runs.listed(tiny_runs.finished_run())


def test_a_hole_in_the_metrics_is_found_before_a_model_is_loaded(tmp_path, monkeypatch, capsys):
    """And doing as the message says gives the same run again."""
    run_dir = tiny_runs.copied_run(tmp_path / "run")
    metrics = run_dir / runlog.METRICS
    metrics.write_bytes(metrics.read_bytes()[:-30])
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(train_command.build, "parts", None)
        assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", run_dir, "--resume") == 2
    said = capsys.readouterr().err
    assert "first for iteration 3" in said and "remove all folders above iteration-000003" in said
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before
    for path in (run_dir / "checkpoints" / "iteration-000004").iterdir():
        path.unlink()
    (run_dir / "checkpoints" / "iteration-000004").rmdir()
    trainer = tiny_runs.trainer_of(run_dir)
    assert trainer.resume() == 3 and tiny_runs.train(trainer)
    tiny_runs.assert_same_run(run_dir, tiny_runs.finished_run())


# ---------------------------------------------------------------- several processes of one job


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "a red circle"),
        ("export", "MODEL", "out"),
        ("report", "run"),
        ("make-tiny-bagel", "tiny"),
        ("reproduce", "table1"),
    ],
    ids=lambda words: " ".join(words[:1] + words[4:]),
)
def test_torchrun_is_for_training_alone(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    words = [str(tiny_runs.model_folder()) if word == "MODEL" else word for word in words]
    assert tiny_runs.unigrpo(*words) == 2
    assert f"WORLD_SIZE is 2 (torchrun): unigrpo {words[0]} works in one process" in capsys.readouterr().err
    assert tiny_runs.listed(tmp_path) == []


def test_a_torchrun_of_one_process_is_none(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert tiny_runs.unigrpo("recipes") == 0
