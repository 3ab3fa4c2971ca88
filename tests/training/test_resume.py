"""A run that was stopped, killed or interrupted, and went on, is the run that never was: bit for bit."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import tiny_runs
import unigrpo
from unigrpo.plurals import counted
from unigrpo.reports import runlog
from unigrpo.runs import training as train_command
from unigrpo.training import checkpoint


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """An uninterrupted supervised run with an average of the weights."""
    folder = tmp_path_factory.mktemp("pretrained")
    trainer = tiny_runs.trainer_of(folder, tiny_runs.PRETRAIN)
    assert trainer.average is not None and tiny_runs.train(trainer)
    return folder


def stop_after(trainer, done):
    def after(line):
        trainer.stop.requested = line["iteration"] + 1 >= done

    return after


def go_on(run_dir, recipe, expected):
    """Resume in a new trainer, as a new process would, and train to the end."""
    trainer = tiny_runs.trainer_of(run_dir, recipe, checkpoint__every=25)
    assert trainer.resume() == expected
    assert [line["iteration"] for line in runlog.read_metrics(run_dir)] == list(range(expected))
    assert tiny_runs.train(trainer)


@pytest.mark.parametrize("recipe", [tiny_runs.UNIGRPO, tiny_runs.PRETRAIN])
def test_stopped_and_resumed_equals_uninterrupted(tmp_path, recipe, request):
    whole = request.getfixturevalue("pretrained") if recipe == tiny_runs.PRETRAIN else tiny_runs.finished_run()
    trainer = tiny_runs.trainer_of(tmp_path, recipe, checkpoint__every=25)  # only the stop saves
    assert not tiny_runs.train(trainer, stop_after(trainer, 2))
    assert [folder.name for folder in checkpoint.complete(tmp_path)] == ["iteration-000002"]
    go_on(tmp_path, recipe, expected=2)
    tiny_runs.assert_same_run(tmp_path, whole)
    for name in ("evaluations/before.jsonl", "evaluations/after.jsonl", runlog.SUMMARY):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name


METHODS = {
    "fpo": {"method": "{name: fpo, fpo: {pairs: 2}}"},
    "unifpo": {"method": "{name: unifpo, fpo: {pairs: 2, per_pair: true}}"},
    "nft": {"method": "{name: diffusion_nft, nft: {pairs: 2}}"},
    "refl": {"method": "{name: refl}", "reward__train": "[{name: shapes/preference}]", "rollout__think": False},
    "guided": {"rollout__guidance": 2.0},
    "sliding": {"rollout__window_motion": "sliding", "rollout__window_every": 1},
}


QUICK = ("unifpo", "refl")  # the others have parts of these, or one draw more


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in METHODS]
)
def test_every_method_goes_on_bit_for_bit(tmp_path, name):
    """What is drawn once per trajectory (t, eps, late steps), and where a window slides, follow from the iteration."""
    options = {**METHODS[name], "method__regulariser": "{weight: 0.1}", "iterations": 3, "eval__every": 9}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert tiny_runs.train(tiny_runs.trainer_of(whole, **options))
    trainer = tiny_runs.trainer_of(cut, checkpoint__every=25, **options)
    assert not tiny_runs.train(trainer, stop_after(trainer, 2))
    trainer = tiny_runs.trainer_of(cut, checkpoint__every=25, **options)
    assert trainer.resume() == 2 and tiny_runs.train(trainer)
    tiny_runs.assert_same_run(cut, whole)


def test_what_was_done_after_the_last_checkpoint_is_done_again(tmp_path):
    def crash(line):
        if line["iteration"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny_runs.train(tiny_runs.trainer_of(tmp_path, checkpoint__every=2), crash)
    assert len(runlog.read_metrics(tmp_path)) == 3
    with open(tmp_path / runlog.METRICS, "ab") as file:
        file.write(b'{"iteration": 3, "rew')  # a line that a crash tore
    half = tmp_path / "checkpoints" / ".partial-iteration-000003"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    go_on(tmp_path, tiny_runs.UNIGRPO, expected=2)
    assert not half.exists()
    tiny_runs.assert_same_run(tmp_path, tiny_runs.finished_run())


def test_a_run_without_a_checkpoint_starts_again(tmp_path):
    def crash(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny_runs.train(tiny_runs.trainer_of(tmp_path, checkpoint__every=25), crash)
    assert len(runlog.read_metrics(tmp_path)) == 1
    go_on(tmp_path, tiny_runs.UNIGRPO, expected=0)
    tiny_runs.assert_same_run(tmp_path, tiny_runs.finished_run())


# ---------------------------------------------------------------- what cannot be resumed


def spoil(path):
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize("name", ["model.safetensors", checkpoint.STATE_TENSORS])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_serves(tmp_path, name):
    run_dir = tiny_runs.copied_run(tmp_path / "run")
    newest = checkpoint.complete(run_dir)[-1]
    spoil(newest / name)
    trainer = tiny_runs.trainer_of(run_dir)
    with pytest.raises(ValueError, match=r"is damaged .* remove this folder and resume from the one before it"):
        trainer.resume()
    assert len(runlog.read_metrics(run_dir)) == tiny_runs.ITERATIONS
    for path in newest.iterdir():  # as the message says
        path.unlink()
    newest.rmdir()
    go_on(run_dir, tiny_runs.UNIGRPO, expected=3)
    tiny_runs.assert_same_run(run_dir, tiny_runs.finished_run())


def test_another_reference_is_noticed(tmp_path):
    run_dir = tiny_runs.copied_run(tmp_path / "run")
    trainer = tiny_runs.trainer_of(run_dir)
    with torch.no_grad():
        next(trainer.parts.reference.model.parameters()).add_(1e-3)
    with pytest.raises(ValueError, match=r"the reference model of .* is not the one it was started with"):
        trainer.resume()


# ---------------------------------------------------------------- by the command line


def test_more_iterations_may_be_asked_for(tmp_path, quick, capsys):
    run_dir = tmp_path / "run"
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", run_dir, *tiny_runs.overrides(iterations=2)) == 0
    early = runlog.read_json(run_dir / runlog.SUMMARY)
    again = ("train", tiny_runs.UNIGRPO, "--out", run_dir, "--resume")
    assert tiny_runs.unigrpo(*again, "--iterations", tiny_runs.ITERATIONS) == 0
    assert "(resumed after 2 iterations)" in capsys.readouterr().out
    tiny_runs.assert_same_run(run_dir, tiny_runs.finished_run())
    late = runlog.read_json(run_dir / runlog.SUMMARY)
    assert late == runlog.read_json(
        tiny_runs.finished_run() / runlog.SUMMARY
    )  # evaluated anew, after the last iteration
    assert late["after"] != early["after"] and late["before"] == early["before"]


def test_fewer_iterations_than_were_done_are_refused(tmp_path, capsys):
    run_dir = tiny_runs.copied_run(tmp_path / "run")
    before = (run_dir / runlog.RECIPE).read_text()
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", run_dir, "--resume", "--iterations=2") == 2
    assert "has 4 finished iterations; ask for more" in capsys.readouterr().err
    assert (run_dir / runlog.RECIPE).read_text() == before


@pytest.mark.parametrize("word", ["--seed", "--optimizer.lr-reasoning", "--method.lambda_flow=0.5", "--model"])
def test_no_other_override_may(tmp_path, word, capsys):
    run_dir = tiny_runs.copied_run(tmp_path / "run")
    value = () if "=" in word else ("1",)
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", run_dir, "--resume", word, *value) == 2
    message = capsys.readouterr().err
    assert word.split("=")[0] in message and "only --iterations may change" in message
    assert tiny_runs.listed(run_dir) == tiny_runs.listed(tiny_runs.finished_run())


def test_one_line_of_a_job_script_starts_and_goes_on(tmp_path, quick, capsys):
    """The same command, with its overrides, in a folder that is not there, and again in the one it has made."""
    run_dir, words = tmp_path / "job" / "run", tiny_runs.overrides()
    line = ("train", tiny_runs.UNIGRPO, "--out", run_dir, "--resume", *words)
    half = [str(2 if before == "--iterations" else word) for before, word in zip(["", *words], words, strict=False)]
    assert tiny_runs.unigrpo(*line[:5], *half) == 0
    out = capsys.readouterr().out
    assert out.count(f"--resume: {run_dir} holds no run yet, so a new one starts there") == 1 and "going on" not in out
    assert tiny_runs.unigrpo(*line) == 0
    out = capsys.readouterr().out
    assert out.count(f"--resume: going on with the run in {run_dir}") == 1 and "holds no run yet" not in out
    assert "(resumed after 2 iterations)" in out
    assert [line["iteration"] for line in runlog.read_metrics(run_dir)] == [0, 1, 2, 3]
    tiny_runs.assert_same_run(run_dir, tiny_runs.finished_run())


def test_a_folder_that_holds_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", tmp_path, "--resume") == 2
    assert "is not a run folder (it has no recipe.yaml)" in capsys.readouterr().err
    assert tiny_runs.listed(tmp_path) == ["notes.txt"]


def test_overrides_that_say_what_the_run_has_are_no_change(tmp_path):
    path = tiny_runs.finished_run() / runlog.RECIPE
    assert train_command.changing(path, ["--eval.limit", "6", "--data.group_size=3", "--iterations", "9"]) is None
    assert train_command.changing(path, ["--eval.limit", "6", "--data.group_size=4"]) == "--data.group_size"
    assert train_command.changing(path, ["--eval.limit", "six"]) == "--eval.limit"


def interrupt(times):
    """A progress that gets Ctrl-C while the second iteration is shown."""

    def update(self, line):
        if line["iteration"] == 1:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    return update


def test_ctrl_c_finishes_the_iteration_and_says_how_to_go_on(tmp_path, quick, monkeypatch, capsys):
    run_dir = tmp_path / "a run"  # a name that a shell would split
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(train_command.Progress, "update", interrupt(1))
        words = ("train", tiny_runs.UNIGRPO, "--out", run_dir, *tiny_runs.overrides(checkpoint__every=25))
        assert tiny_runs.unigrpo(*words) == 130
    assert signal.getsignal(signal.SIGINT) is handler
    out = capsys.readouterr().out
    assert "stopping as soon as the step under way is finished, and saving (Ctrl-C again to stop at once;" in out
    (said,) = [line for line in out.splitlines() if line.startswith("saved after 2 iterations; to go on: ")]
    command = shlex.split(said.partition(": ")[2])
    assert command[0] == "unigrpo"
    assert tiny_runs.unigrpo(*command[1:]) == 0
    tiny_runs.assert_same_run(run_dir, tiny_runs.finished_run())


def test_a_second_ctrl_c_stops_at_once(tmp_path, quick, monkeypatch, capsys):
    monkeypatch.setattr(train_command.Progress, "update", interrupt(2))
    words = ("train", tiny_runs.UNIGRPO, "--out", tmp_path, *tiny_runs.overrides())
    assert tiny_runs.unigrpo(*words) == 130
    shown = capsys.readouterr()
    lost = "1 finished iteration since the last checkpoint"
    assert f"(Ctrl-C again to stop at once; that would throw away {lost})" in shown.out
    _, said_before, rest = shown.out.partition(f"stopping at once: {lost} is thrown away\n")
    assert said_before and "stopped at once after 2 finished iterations; to go on: unigrpo train" in rest
    assert [folder.name for folder in checkpoint.complete(tmp_path)] == ["iteration-000001"]


# ---------------------------------------------------------------- as another process


def started(run_dir, *more):
    """Start the command line as a process of its own and wait for its first checkpoint."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(unigrpo.__file__).parents[1]),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),  # other threads, other sums
    }
    command = [sys.executable, "-m", "unigrpo", "train", tiny_runs.UNIGRPO, "--out", str(run_dir)]
    process = subprocess.Popen(
        [*command, *tiny_runs.overrides()],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=run_dir.parent,
    )
    first = checkpoint.folder_of(run_dir, 1)
    deadline = time.monotonic() + 120
    while not first.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    return process


def test_a_killed_run_goes_on(tmp_path, quick):
    run_dir = tmp_path / "run"
    process = started(run_dir)
    process.kill()
    out, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, out + err
    assert "after" not in json.loads((run_dir / runlog.SUMMARY).read_text())
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", run_dir, "--resume") == 0
    tiny_runs.assert_same_run(run_dir, tiny_runs.finished_run())


@pytest.mark.slow  # the same as above, by a real signal to another process
def test_an_interrupted_process_goes_on(tmp_path, quick):
    run_dir = tmp_path / "run"
    process = started(run_dir)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, out + err
    assert "Traceback" not in err
    done = checkpoint.load(checkpoint.complete(run_dir)[-1]).done
    assert 1 <= done < tiny_runs.ITERATIONS and len(runlog.read_metrics(run_dir)) == done
    saved = f"saved after {counted(done, 'iteration')}; to go on"
    assert f"{saved}: unigrpo train {tiny_runs.UNIGRPO} --out {run_dir} --resume" in out
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", run_dir, "--resume") == 0
    tiny_runs.assert_same_run(run_dir, tiny_runs.finished_run())
