"""One update of the micro model: first ratios 1, packed = separate, and a checkpoint that comes back bit for bit."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unigrpo import build, seeds
from unigrpo.plurals import counted
from unigrpo.policy import Policy, Replayed
from unigrpo.recipe import Recipe, load_recipe
from unigrpo.tools.doctor.finding import Finding, first_line
from unigrpo.training.clock import Clock
from unigrpo.training.replay import Batch, replay
from unigrpo.training.trainer import Trainer

RECIPE = "shapes/unigrpo"
SMALL = {
    "iterations": 1,
    "data.prompts_per_iteration": 2,
    "data.group_size": 3,
    "rollout.num_points": 5,
    "rollout.window": [0, 3],
    "rollout.window_size": 2,
    "optimizer.micro_batch": 6,
    "model.device": "cpu",
}
APART = 1e-4
"""Most that one sequence may differ in a batch and alone: log-probs of words, and velocities of about 1."""
REPORT = (
    "this torch computes otherwise than the tests allow: try OMP_NUM_THREADS=1, another torch, and report it with the "
    "output of unigrpo doctor --json"
)


@dataclass
class Trial:
    """A tiny run in a folder of its own, and the line of its one iteration once that is made."""

    recipe: Recipe
    trainer: Trainer
    folder: Path
    line: dict[str, Any] | None = None

    @classmethod
    def begin(cls, folder: Path) -> Trial:
        """Build the run."""
        recipe = load_recipe(RECIPE, [f"--{key}={value}" for key, value in SMALL.items()])
        return cls(recipe, Trainer(recipe, build.parts(recipe), folder), folder)

    @property
    def policy(self) -> Policy:
        """The model that is trained."""
        return self.trainer.parts.policy


def packed_is_separate(trial: Trial) -> Finding:
    """A replay of six samples at once says what six replays of one say."""
    parts, recipe = trial.trainer.parts, trial.recipe
    rows = parts.source.collect(parts.policy, 0, Clock()).trajectories
    queries = [
        recipe.method.queries(
            row, seeds.generator(recipe.seed, 0, row.prompt.position, row.sample, "draws"), shift=recipe.rollout.shift
        )
        for row in rows
    ]
    with torch.no_grad():
        batch = Batch(rows, queries)
        together = replay(parts.policy, batch, recipe.rollout.temperature)
        alone = [replay(parts.policy, one, recipe.rollout.temperature)[0] for one in batch.pieces(1)]
    apart = _largest([_apart(a, b) for a, b in zip(together, alone, strict=True)])
    said = f"{counted(len(rows), 'sample')} replayed together and one by one differ by {apart:.1g} (allowed {APART:g})"
    figures = {"difference": apart}
    if not apart <= APART:
        return Finding("packed = separate", "failed", said, REPORT, figures)
    return Finding("packed = separate", "ok", said, "", figures)


def _apart(a: Replayed, b: Replayed) -> float:
    pairs = [(a.log_probs, b.log_probs), *zip(a.velocities, b.velocities, strict=True)]
    return _largest([float((x - y).detach().abs().max()) for x, y in pairs if x.numel()])


def _largest(numbers: Sequence[float]) -> float:
    """The largest; NaN where any is (Python's ``max`` may lose it)."""
    return float(torch.tensor([0.0, *numbers], dtype=torch.float64).max())


def first_ratio_is_one(trial: Trial) -> Finding:
    """An iteration: rollout, replay, update. The trainer refuses a first update whose ratios are not 1."""
    trial.line = trial.trainer.iterate(0)
    first = trial.line["first_update"]
    said = ", ".join(f"{name.removesuffix('_log_ratio_max')} {value:.1g}" for name, value in first.items())
    return Finding("first ratio 1", "ok", f"largest |log ratio| of the first update: {said}", "", first)


def checkpoint_comes_back(trial: Trial) -> Finding:
    """Weights and optimizer of the trained run, saved and read into a new one, are the same bits."""
    trainer = trial.trainer
    if trial.line is not None:
        trainer.recorder.metrics(trial.line)
        trainer.done = 1
    trainer.save()
    again = Trainer(trial.recipe, build.parts(trial.recipe), trial.folder)
    with contextlib.redirect_stdout(io.StringIO()):
        done = again.resume()
    wrong = [] if done == trainer.done else [counted(done, "iteration")]
    ours, theirs = _state(trainer), _state(again)
    wrong += [name for name in ours if name not in theirs or not torch.equal(ours[name], theirs[name])]
    wrong += [name for name in theirs if name not in ours]
    if wrong:
        said = f"{len(wrong)} of {counted(len(ours), 'tensor')} came back changed, such as {wrong[0]}"
        return Finding("checkpoint", "failed", said, "do not train onto this disk: it changes what is written", {})
    size = sum(path.stat().st_size for path in trial.folder.rglob("*") if path.is_file())
    said = f"saved and read back, {counted(len(ours), 'tensor')} bit for bit ({size / 1e6:.1f} MB)"
    return Finding("checkpoint", "ok", said, "", {"tensors": len(ours), "bytes": size})


def _state(trainer: Trainer) -> dict[str, Tensor]:
    weights = {f"weights.{name}": p.detach() for name, p in trainer.parts.policy.module.named_parameters()}
    return weights | {f"optimizer.{name}": tensor for name, tensor in trainer.optimizer.state().items()}


Step = tuple[str, Callable[[Trial], Finding], str]
STEPS: tuple[Step, ...] = (
    ("packed = separate", packed_is_separate, REPORT),
    ("first ratio 1", first_ratio_is_one, REPORT),
    ("checkpoint", checkpoint_comes_back, "set TMPDIR to a folder with room that you may write to"),
)


def self_test(begin: Callable[[Path], Trial] = Trial.begin) -> list[Finding]:
    """Run all steps in a temporary folder; one that raises has failed, and the next is tried."""
    names = [name for name, _, _ in STEPS]
    try:
        with tempfile.TemporaryDirectory(prefix="unigrpo-doctor-") as folder:
            try:
                trial = begin(Path(folder))
            except Exception as error:
                return [Finding(name, "failed", f"no micro model: {first_line(error)}", REPORT, {}) for name in names]
            return [_tried(step, trial) for step in STEPS]
    except OSError as error:
        said = f"no temporary folder: {first_line(error)}"
        return [Finding(name, "failed", said, "set TMPDIR to a folder that you may write to", {}) for name in names]


def _tried(step: Step, trial: Trial) -> Finding:
    name, check, todo = step
    try:
        return check(trial)
    except Exception as error:
        return Finding(name, "failed", first_line(error), todo, {})
