"""Numbers that are not finite: what they came from is kept in the run's folder, and keeping it never ends a run."""

import errno
import math
import os
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import tiny_runs
from unigrpo import suspects
from unigrpo.objectives.advantage import Advantage
from unigrpo.ranges import NotFiniteError
from unigrpo.reports import runlog
from unigrpo.rewards import registry
from unigrpo.rewards.protocol import RewardOutput
from unigrpo.rollout import sample
from unigrpo.training import fault_files
from unigrpo.training.fault_files import FaultFiles
from unigrpo.training.optimizer import NotFinite


def events(run_dir):
    """Every whole event of a run: (its folder, what its file says)."""
    return [(path.parent, runlog.read_json(path)) for path in sorted(run_dir.glob("faults/*/event.json"))]


def one_event(run_dir, kind, iteration):
    ((folder, event),) = events(run_dir)
    assert (event["kind"], event["iteration"], event["rank"]) == (kind, iteration, 0)
    assert folder.name == f"iteration-{iteration:06d}-rank-0-1-{kind}"
    return folder, event


def keys(event):
    return [(kept["position"], kept["sample"]) for kept in event["kept"]]


def with_source(trainer, change):
    """Let ``change`` have every iteration's trajectories before they are trained on."""
    collect = trainer.parts.source.collect

    def changed(policy, iteration, clock):
        collected = collect(policy, iteration, clock)
        return replace(collected, trajectories=change(list(collected.trajectories), iteration))

    trainer.parts.source = type("Source", (), {"collect": staticmethod(changed)})()


def test_a_reward_of_nan_that_ends_the_run_leaves_its_sample(tmp_path, monkeypatch):
    verifier = registry.build("shapes/verifier")

    def spoiled(images, prompts, metadata, thinking):
        output = verifier(images, prompts, metadata, thinking)
        values = [math.nan if place == 4 else value for place, value in enumerate(output.values)]
        return RewardOutput(values, output.parts)

    monkeypatch.setitem(registry._FACTORIES, "tests/spoiled", lambda: spoiled)
    trainer = tiny_runs.trainer_of(tmp_path, reward__train="[{name: tests/spoiled}]")
    with pytest.raises(ValueError, match="gave nan for picture 4"):
        tiny_runs.train(trainer)
    folder, event = one_event(tmp_path, "reward", 1)
    (kept,) = event["kept"]
    assert (kept["position"], kept["sample"]) == (1, 1) and "gave nan" in kept["failure"]
    assert kept["thinking"] and kept["prompt"]
    with Image.open(folder / kept["picture"]) as picture:
        assert picture.size == (32, 32)
    tensors = load_file(folder / "tensors.safetensors")
    latents = [value for name, value in tensors.items() if name.startswith("1-1/") and name.endswith("latents")]
    assert len(latents) == 1 and latents[0].isfinite().all()


def test_latents_that_are_not_finite_are_kept_as_they_are(tmp_path, monkeypatch):
    whole = sample.rollout

    def spoiled(*arguments, **options):
        made = whole(*arguments, **options)
        made[2].images[-1].latents[3, 1] = math.nan
        return made

    trainer = tiny_runs.trainer_of(tmp_path)
    trainer.recorder.start("")
    monkeypatch.setattr(sample, "rollout", spoiled)
    trainer._evaluate = lambda when, progress: None
    with pytest.raises(NotFiniteError, match="the model drew numbers that are not finite"):
        trainer.run(tiny_runs.Silent())
    folder, event = one_event(tmp_path, "rollout", 1)
    assert keys(event) == [(0, 2)] and event["kept"][0]["picture"] is None
    (latents,) = [v for n, v in load_file(folder / "tensors.safetensors").items() if n.endswith("latents")]
    assert (~latents.isfinite()).nonzero().tolist() == [[3, 1]]


def test_a_loss_of_nan_names_the_trajectory_whose_own_it_is_first(tmp_path):
    trainer = tiny_runs.trainer_of(tmp_path, optimizer__micro_batch=6)

    def spoil(trajectories, iteration):
        if iteration == 1:
            trajectories[4] = trajectories[4].with_advantages(math.nan, 0.0)
        return trajectories

    with_source(trainer, spoil)
    with pytest.raises(NotFinite, match="the text loss is nan"):
        tiny_runs.train(trainer)
    folder, event = one_event(tmp_path, "loss", 2)
    assert event["trajectories"] == 6 and len(event["kept"]) == 6
    assert event["kept"][0]["advantage_thinking"] == "nan"
    assert all((folder / kept["picture"]).is_file() for kept in event["kept"])


def test_a_gradient_of_nan_names_the_trajectory_at_which_it_arrived_first(tmp_path, monkeypatch):
    trainer = tiny_runs.trainer_of(tmp_path, optimizer__ppo_epochs=1, optimizer__micro_batch=4)
    method, seen = trainer.parts.method, []

    class Spoiled(type(method)):
        def losses(self, trajectories, answers, queries, **more):
            found = super().losses(trajectories, answers, queries, **more)
            seen.append([(t.prompt.position, t.sample) for t in trajectories])
            if len(seen) != 2:  # the second micro-batch, of two rows
                return found
            root = (answers[1].log_probs * 0.0).sum().sqrt()  # 0, with a gradient of 0 / 0
            return replace(found, text_loss=found.text_loss + torch.stack([torch.zeros_like(root), root]))

    trainer.parts.method = Spoiled(**vars(method))
    with pytest.raises(NotFinite, match="the gradient of the reasoning parameters is nan"):
        tiny_runs.train(trainer)
    _, event = one_event(tmp_path, "gradient", 1)
    assert event["trajectories"] == 6 and keys(event)[0] == seen[1][1]


def test_advantages_that_overflow_name_what_was_compared(tmp_path, monkeypatch):
    trainer = tiny_runs.trainer_of(tmp_path)
    source = trainer.parts.source
    scored = type(source)._scored_meanwhile

    def huge(self, made, clock):
        pictures, trajectories = scored(self, made, clock)
        return pictures, [replace(t, reward=(-1) ** n * 1e308) for n, t in enumerate(trajectories)]

    monkeypatch.setattr(type(source), "_scored_meanwhile", huge)
    trainer.parts.source = replace(source, advantage=Advantage(), shares=())
    with pytest.raises(NotFiniteError, match="their spread overflows"):
        tiny_runs.train(trainer)
    _, event = one_event(tmp_path, "advantage", 1)
    assert event["trajectories"] == 6


def test_a_full_disk_changes_nothing_but_a_word(tmp_path, monkeypatch):
    """The event's folder is gone again, and the error that a person reads is the run's own."""
    trainer = tiny_runs.trainer_of(tmp_path)

    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(fault_files, "write_bytes_atomic", full)
    with_source(trainer, lambda trajectories, iteration: [t.with_advantages(math.nan, 0.0) for t in trajectories])
    progress, said = tiny_runs.Silent(), []
    progress.note = said.append
    trainer.recorder.start("")
    with pytest.raises(NotFinite, match="the text loss is nan"):
        trainer.run(progress)
    assert not (tmp_path / "faults").exists()
    assert [line for line in said if "could not be saved" in line and "No space left on device" in line]


def test_events_and_trajectories_are_bounded_and_said_once(tmp_path, monkeypatch):
    monkeypatch.setattr(fault_files, "MOST_EVENTS", 3)
    trainer = tiny_runs.trainer_of(tmp_path)
    made = trainer.parts.source.collect(trainer.parts.policy, 0, fault_files_clock()).samples
    said = []
    for rank in (0, 1):
        files = FaultFiles(tmp_path, trainer.parts.policy, rank)
        files.say = said.append
        with suspects.kept(files.keep):
            for _ in range(2):
                suspects.note("loss", "the text loss is nan", made * 5)
    suspects.note("loss", "nobody listens", made)
    names = [folder.name for folder, _ in events(tmp_path)]
    assert names == [f"iteration-000001-rank-{where}-loss" for where in ("0-1", "0-2", "1-1")]
    assert all(event["trajectories"] == 30 and len(event["kept"]) == 16 for _, event in events(tmp_path))
    assert len(said) == 2 and "16 of 30 trajectories" in said[0] and "first 3 such events" in said[0]


def fault_files_clock():
    from unigrpo.training.clock import Clock

    return Clock()
