"""Checkpoints are complete or not there, the newest few are kept, and damage is told in words."""

import os
import stat
from pathlib import Path

import pytest
import torch

from unigrpo.training import checkpoint
from unigrpo.training.checkpoint import STATE_JSON, STATE_TENSORS, TrainingState


def state(done, **facts):
    tensors = {"optimizer/w|step": torch.tensor(3.0), "raw/w": torch.arange(6.0).reshape(2, 3).t()}
    return TrainingState(done, tensors, {"recipe": "test", **facts})


def write_model(folder):
    (folder / "model.txt").write_text("weights")


class Killed(BaseException):
    """A kill at this moment: nothing after it runs."""


def killed(*arguments, **options):
    raise Killed


def names(run_dir):
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_what_was_saved_is_loaded(tmp_path):
    saved = state(7, reference=None)
    folder = checkpoint.save(tmp_path, saved, write_model, keep=2)
    assert folder == tmp_path / "checkpoints" / "iteration-000007"
    assert (folder / "model.txt").read_text() == "weights"
    loaded = checkpoint.load(folder)
    assert (loaded.done, loaded.facts) == (7, {"recipe": "test", "reference": None})
    assert loaded.tensors.keys() == saved.tensors.keys()
    assert all(torch.equal(loaded.tensors[name], saved.tensors[name]) for name in saved.tensors)


def test_a_state_without_tensors(tmp_path):
    """A fault in the very first iteration saves a start without optimizer state."""
    folder = checkpoint.save(tmp_path, TrainingState(0, {}, {}), write_model, keep=1)
    assert checkpoint.load(folder) == TrainingState(0, {}, {})


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_are_kept(tmp_path, keep):
    for done in (1, 2, 9, 10, 11):
        checkpoint.save(tmp_path, state(done), write_model, keep=keep)
    wanted = [f"iteration-{done:06d}" for done in (9, 10, 11)[-keep:]]
    assert names(tmp_path) == wanted == [folder.name for folder in checkpoint.complete(tmp_path)]


def test_checkpoints_are_ordered_by_number_and_others_folders_are_not_read(tmp_path):
    for name in ("iteration-1000000", "iteration-999999", "iteration-old", "iteration-000003-copy"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / STATE_JSON).write_text("{}")
    assert [folder.name for folder in checkpoint.complete(tmp_path)] == ["iteration-999999", "iteration-1000000"]
    assert checkpoint.finished(tmp_path) == 1000000


def test_a_run_without_checkpoints(tmp_path):
    assert checkpoint.complete(tmp_path) == []
    checkpoint.clean(tmp_path)


@pytest.mark.parametrize("moment", ["model", "tensors", "facts", "flush", "rename"])
def test_a_kill_while_saving_leaves_the_older_checkpoint_whole(tmp_path, monkeypatch, moment):
    checkpoint.save(tmp_path, state(1), write_model, keep=1)
    with monkeypatch.context() as patch:
        if moment == "tensors":
            patch.setattr(checkpoint, "serialise", killed)
        elif moment == "facts":
            patch.setattr(checkpoint.json, "dumps", killed)
        elif moment == "flush":
            patch.setattr(checkpoint, "sync", killed)
        elif moment == "rename":
            patch.setattr(checkpoint.os, "replace", killed)
        with pytest.raises(Killed):
            checkpoint.save(tmp_path, state(2), killed if moment == "model" else write_model, keep=1)
    assert [folder.name for folder in checkpoint.complete(tmp_path)] == ["iteration-000001"]
    assert checkpoint.load(checkpoint.complete(tmp_path)[-1]).done == 1
    assert names(tmp_path) == [".partial-iteration-000002", "iteration-000001"]
    checkpoint.clean(tmp_path)
    assert names(tmp_path) == ["iteration-000001"]


def test_what_a_kill_left_is_not_mixed_into_the_next_checkpoint(tmp_path):
    partial = tmp_path / "checkpoints" / ".partial-iteration-000002"
    partial.mkdir(parents=True)
    (partial / "stale.txt").write_text("of a killed run")
    folder = checkpoint.save(tmp_path, state(2), write_model, keep=1)
    assert names(tmp_path) == ["iteration-000002"]
    assert sorted(os.listdir(folder)) == sorted(["model.txt", STATE_JSON, STATE_TENSORS])


def test_saving_again_replaces(tmp_path):
    checkpoint.save(tmp_path, state(2, run="first"), write_model, keep=2)
    folder = checkpoint.save(tmp_path, state(2, run="second"), write_model, keep=2)
    assert checkpoint.load(folder).facts["run"] == "second"
    assert names(tmp_path) == ["iteration-000002"]


def cut(path: Path):
    path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: cut(folder / STATE_TENSORS),
        lambda folder: (folder / STATE_TENSORS).write_bytes(b""),
        lambda folder: (folder / STATE_TENSORS).unlink(),
        lambda folder: (folder / STATE_JSON).write_text('{"done": 3,'),
        lambda folder: (folder / STATE_JSON).write_text("{}"),
        lambda folder: (folder / STATE_JSON).write_text("[3]"),
        lambda folder: (folder / STATE_JSON).write_text('{"done": null}'),
        lambda folder: (folder / STATE_JSON).write_text('{"done": 1e400}'),
        lambda folder: (folder / STATE_JSON).write_text('{"done": 3.7}'),
        lambda folder: (folder / STATE_JSON).write_text('{"done": 4}'),
        lambda folder: (folder / STATE_JSON).write_text('{"done": 3, "reference": {}}'),
        lambda folder: (folder / STATE_JSON).write_text('{"done": 3, "x": ' + "[" * 5000 + "]" * 5000 + "}"),
        lambda folder: (folder / STATE_TENSORS).unlink() or (folder / STATE_TENSORS).mkdir(),
    ],
    ids=[
        "cut tensors",
        "empty tensors",
        "no tensors",
        "cut facts",
        "no count",
        "a list",
        "no number",
        "infinite",
        "no whole number",
        "another number",
        "no text",
        "deep",
        "a folder",
    ],
)
def test_damage_is_a_clear_error(tmp_path, damage):
    folder = checkpoint.save(tmp_path, state(3), write_model, keep=1)
    damage(folder)
    with pytest.raises(ValueError) as caught:
        checkpoint.load(folder)
    assert str(folder) in str(caught.value)
    assert "damaged" in str(caught.value) and "resume from the one before it" in str(caught.value)


def test_others_may_read_what_is_written(tmp_path):
    folder = checkpoint.save(tmp_path, state(1), write_model, keep=1)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert len(set(modes.values())) == 1, modes


def test_prefixes_keep_sets_of_tensors_apart():
    first, second = {"a": torch.ones(1)}, {"a": torch.zeros(1), "b/c": torch.ones(2)}
    together = checkpoint.prefixed("raw", first) | checkpoint.prefixed("raw2", second)
    assert checkpoint.unprefixed("raw", together) == first
    assert checkpoint.unprefixed("raw2", together) == second
