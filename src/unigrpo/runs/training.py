"""A run from its recipe to its report, new or resumed, of one stage or of several: for the command and for Python."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unigrpo import build, memory, output
from unigrpo.evaluation.evaluator import describe_comparison
from unigrpo.files import write_text_atomic
from unigrpo.plurals import counted
from unigrpo.ranges import ConfigError
from unigrpo.recipe import Recipe, StagedRecipe, is_recipe_file, load_experiment, to_yaml
from unigrpo.reports import runlog
from unigrpo.reports.html import write_report
from unigrpo.reports.live import LiveReport
from unigrpo.reports.pace import Schedule
from unigrpo.reports.progress import Progress
from unigrpo.runs import inputs, own_rewards, stages, threads
from unigrpo.runs.folders import run_folder, usable
from unigrpo.runs.locks import LOCK, hold
from unigrpo.runs.signals import stoppable
from unigrpo.training import checkpoint
from unigrpo.training.full_memory import LOADING, advice_for
from unigrpo.training.parallel import ONE_PROCESS, World
from unigrpo.training.trainer import RunComponents, Stop, Trainer

ITERATIONS = re.compile(r"--(stages\.[^.]+\.)?(iterations|parallel(\..+)?)|--log")
"""Overrides that a resumed run takes: none of them changes what an iteration does."""


@dataclass(frozen=True)
class Going:
    """How a run goes on: whether it was begun before, how a person resumes it once more, and what asks it to stop.

    ``again``: (name of the recipe, run folder) -> what to type; ``world``: the ranks that do it together;
    ``alone``: nothing else goes on in this process, so that it may be ended.
    """

    resume: bool
    again: Callable[[str, Path], str]
    stop: Stop = field(default_factory=Stop)
    world: World = ONE_PROCESS
    alone: bool = False


def begin(asked: Recipe | StagedRecipe, run_dir: Path, going: Going) -> bool:
    """Train in a folder that is this process's alone; False where it was stopped (and saved) before the end."""
    if isinstance(asked, StagedRecipe):
        return train_stages(asked, run_dir, going)
    return train_one(asked, run_dir, going)


def train_one(recipe: Recipe, run_dir: Path, going: Going) -> bool:
    """A run of a plain recipe."""
    if going.resume and (finished := checkpoint.finished(run_dir)) > recipe.iterations:
        raise ConfigError(
            f"--iterations {recipe.iterations}: {run_dir} has {counted(finished, 'finished iteration')}; ask for more"
        )
    recipe, parts = _made(recipe, going.world)
    trainer = Trainer(recipe, parts, run_dir, going.stop)
    start = trainer.resume() if going.resume else 0
    if going.world.first:  # reads large files
        trainer.recorder.start(to_yaml(recipe), {**facts_of(recipe, recipe), **trainer.effort.facts})
    return run_trainer(trainer, start, going.again(recipe.name, run_dir), going.alone)


def _made(recipe: Recipe, world: World) -> tuple[Recipe, RunComponents]:
    """The recipe with its start fixed, and what its run is made of; rank 0 looks first, for all."""
    with world.together():
        if world.first:
            build.check_data([recipe])
            recipe = build.started(recipe)
    recipe = replace(recipe, model=replace(recipe.model, path=world.told(recipe.model.path)))
    with memory.advised(advice_for(recipe)), memory.phase(LOADING), world.together():
        return recipe, build.parts(recipe, world)


def train_stages(staged: StagedRecipe, run_dir: Path, going: Going) -> bool:
    """One run after the other; a resumed one goes on with the first stage that is not finished."""
    world = going.world
    with world.together():
        if world.first:
            stages.check_names(staged, world)
            if going.resume:
                stages.check_iterations(staged, run_dir)
            stages.check_data(staged, run_dir if going.resume else None)
            staged = stages.started(staged)
    staged, count = stages.starting_at(staged, world.told(staged.stages[0].model.path)), len(staged.stages)
    for number, name in enumerate(staged.names):
        if going.resume and world.told(stages.finished(staged, number, run_dir)):
            print(f"stage {number + 1} of {count}, {name}: finished before")
            if world.first and not (report := staged.folders(run_dir)[number] / runlog.REPORT).is_file():
                write_report(report.parent)
            continue
        print(f"stage {number + 1} of {count}, {name}", flush=True)
        if not train_stage(staged, number, run_dir, going):
            return False
        if going.stop.requested and number + 1 < count:
            print(f"stopped after stage {name}; to go on: {going.again(staged.name, run_dir)}")
            return False
    output.result(f"all {counted(count, 'stage')} are finished: {run_dir}", run=str(run_dir))
    return True


def train_stage(staged: StagedRecipe, number: int, run_dir: Path, going: Going) -> bool:
    """Begin one stage (from 0), or go on with it; return whether it is finished.

    Nothing is written before the first stage's model is there. What a stage is made of lives in this function alone,
    so that the next one finds its memory free.
    """
    recipe, folder = stages.ready(staged, number, run_dir), staged.folders(run_dir)[number]
    parts = parts_of_stage(recipe, staged.name, run_dir, going)
    with going.world.together():
        if going.world.first:
            write_text_atomic(run_dir / runlog.RECIPE, staged.to_yaml())
            usable(folder)
    # somebody may be going on with this stage by itself
    with hold(folder / LOCK) if going.world.first else nullcontext():
        trainer = Trainer(recipe, parts, folder, going.stop)
        start = trainer.resume()  # of a new stage: 0
        if going.world.first:  # reads large files
            trainer.recorder.start(to_yaml(recipe), {**facts_of(recipe, staged), **trainer.effort.facts})
        return run_trainer(trainer, start, going.again(staged.name, run_dir), going.alone)


def parts_of_stage(recipe: Recipe, name: str, run_dir: Path, going: Going) -> RunComponents:
    """Load what a stage is made of; where that fails in a run under way (of the recipe ``name``), say how to go on."""
    try:
        with memory.advised(advice_for(recipe)), memory.phase(LOADING), going.world.together():
            return build.parts(recipe, going.world)
    except (Exception, KeyboardInterrupt):
        if stages.begun(run_dir):
            print(f"stopped before training {recipe.name}; to go on: {going.again(name, run_dir)}")
        raise


def facts_of(recipe: Recipe, asked: Recipe | StagedRecipe) -> dict[str, Any]:
    """What a run keeps of its origins: its files, the rewards of the user's own of all stages, its threads."""
    return {**own_rewards.facts(asked), **threads.facts(), "inputs": inputs.recorded(recipe)}


def resumed_recipe(out: Path | None, named: str, overrides: Sequence[str]) -> Recipe | StagedRecipe:
    """The recipe of the run in a folder, which must be of the recipe ``named`` (or that is a file).

    Overrides may only change ``iterations``, and name files that have moved; others must say what the run has.
    """
    run_dir = run_folder(out)
    path = run_dir / runlog.RECIPE
    if other := changing(path, overrides):
        raise ConfigError(
            f"{other} with --resume: the recipe of the run in {run_dir} holds, and only --iterations may change "
            "(and --parallel.*, --log, and the place of a file that has moved); leave it out, or start a new run"
        )
    begun, asked = load_experiment(path), load_experiment(path, overrides)
    if asked.name != named and not is_recipe_file(named):
        raise ConfigError(f"{run_dir} is a run of {asked.name}, not of {named}: name that recipe, or another --out")
    if isinstance(begun, StagedRecipe) and isinstance(asked, StagedRecipe):
        sides = zip(begun.stages, asked.stages, asked.folders(run_dir), strict=True)
        done = [stages.finished(asked, number, run_dir) for number in range(len(asked.stages))]
        runs = [inputs.Resumed(*side, finished) for side, finished in zip(sides, done, strict=True)]
    else:
        assert isinstance(begun, Recipe) and isinstance(asked, Recipe)
        runs = [inputs.Resumed(begun, asked, run_dir)]
    notes = inputs.check_moved(runs)
    print("\n".join(notes), end="\n" if notes else "")
    own_rewards.recall(run_dir)
    return asked


def changing(path: Path, overrides: Sequence[str]) -> str | None:
    """The first override that would change the recipe in a file, where a resumed run may not; None: none does."""
    given: list[list[str]] = []
    for word in overrides:
        if word.startswith("--") or not given:
            given.append([])
        given[-1].append(word)
    names = [words[0].partition("=")[0] for words in given]
    held = [
        (name, words)
        for name, words in zip(names, given, strict=True)
        if name.startswith("--") and not (ITERATIONS.fullmatch(name) or inputs.MOVABLE.fullmatch(name))
    ]
    if not held or _same(path, [word for _, words in held for word in words]):
        return None
    return next((name for name, words in held if not _same(path, words)), held[0][0])


def _same(path: Path, overrides: Sequence[str]) -> bool:
    """Whether overrides say what a recipe says without them."""
    try:
        return load_experiment(path, overrides) == load_experiment(path)
    except ConfigError:
        return False


def run_trainer(trainer: Trainer, start: int, again: str, alone: bool = False) -> bool:
    """Run to the end (True) or until stopped, with progress, and write the report; ``again`` is how to go on."""
    began = time.perf_counter()
    recipe = trainer.recipe
    first, ranks = trainer.world.first, f", {counted(trainer.world.size, 'rank')}" if trainer.world.many else ""
    with Progress(recipe.name, recipe.iterations, start=start, schedule=schedule(recipe)) as progress:
        resumed = f" (resumed after {counted(start, 'iteration')})" if start else ""
        progress.note(f"run folder: {trainer.run_dir}{resumed}{ranks}")
        if first:
            trainer.milestone = LiveReport(trainer.run_dir, progress.time_left, progress.note).milestone
        try:
            with stoppable(trainer, progress, recipe.checkpoint.stop_within_s if alone else None):
                finished = trainer.run(progress)
        except (Exception, KeyboardInterrupt) as error:
            how = "at once" if isinstance(error, KeyboardInterrupt) else "by an error"
            progress.note(f"stopped {how} after {counted(trainer.done, 'finished iteration')}; to go on: {again}")
            raise
    if not first:
        return finished
    report = write_report(trainer.run_dir)
    if not finished:
        done = trainer.saver.saved or 0
        saved = f"saved after {counted(done, 'iteration')}; to go on: {again}"
        output.result(saved, run=str(trainer.run_dir), finished=False, iterations=done, resume=again)
        return False
    print(f"finished in {time.perf_counter() - began:.0f} s, {trainer.trained_seconds:.0f} s of it training")
    print_comparison(trainer.run_dir, held_out=recipe.eval.prompts.endswith("held-out"))
    done = {"run": str(trainer.run_dir), "finished": True, "iterations": trainer.done, "report": str(report)}
    output.result(f"report: {report}", **done, **runlog.read_json(trainer.run_dir / runlog.SUMMARY))
    return True


def schedule(recipe: Recipe) -> Schedule:
    """What the recipe's runs do beside their iterations."""
    share = recipe.eval.limit / (recipe.eval.compare_limit * recipe.eval.compare_samples)
    return Schedule(recipe.eval.every, recipe.checkpoint.every, share)


def print_comparison(run_dir: Path, *, held_out: bool) -> None:
    """Print before, after and the paired difference with its 95 % interval, or why there is none."""
    summary = runlog.read_json(run_dir / runlog.SUMMARY)
    if lines := describe_comparison(summary):
        kind = "held-out pictures" if held_out else "pictures"
        print(f"{summary['after']['n']} {kind}, the same prompts and draws before and after:")
        print("\n".join(f"  {line}" for line in lines))
