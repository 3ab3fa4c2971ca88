"""The verb ``train``: a new run, a resumed one, one of several stages, or what one would cost."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unigrpo import build, options, output
from unigrpo.evaluation.evaluator import describe_comparison
from unigrpo.files import write_text_atomic
from unigrpo.ranges import ConfigError
from unigrpo.recipe import Recipe, StagedRecipe, is_recipe_file, keys_figures, keys_listing, load_experiment, to_yaml
from unigrpo.reports import runlog
from unigrpo.reports.html import write_report
from unigrpo.reports.pace import Schedule
from unigrpo.reports.progress import Progress
from unigrpo.runs import inputs, own_rewards, stages
from unigrpo.runs.folders import begun_run, new_run, run_folder, usable
from unigrpo.runs.locks import LOCK, hold
from unigrpo.runs.signals import exit_code, stoppable
from unigrpo.training import checkpoint
from unigrpo.training.trainer import RunComponents, Stop, Trainer

ITERATIONS = re.compile(r"--(stages\.[^.]+\.)?iterations")


def run(verb: options.Train, overrides: Sequence[str]) -> int:
    """Train, or print what would be trained."""
    if verb.resume and (verb.keys or verb.dry_run):
        asked = resumed_recipe(verb, overrides)
        return list_keys(asked) if verb.keys else planned(asked, verb)
    if verb.resume:
        with begun_run(verb.out) as run_dir:
            return begin(resumed_recipe(verb, overrides), verb, run_dir)
    own_rewards.recall(None)
    asked = load_experiment(verb.recipe, overrides)
    if verb.keys:
        return list_keys(asked)
    if verb.dry_run:
        return planned(asked, verb)
    with new_run(verb.out, asked.name) as run_dir:
        return begin(asked, verb, run_dir)


def begin(asked: Recipe | StagedRecipe, verb: options.Train, run_dir: Path) -> int:
    """Train in a folder that is this process's alone."""
    if isinstance(asked, StagedRecipe):
        return train_stages(asked, verb, run_dir)
    return train_one(asked, verb, run_dir)


def train_one(recipe: Recipe, verb: options.Train, run_dir: Path) -> int:
    """A run of a plain recipe."""
    if verb.resume and (finished := checkpoint.finished(run_dir)) > recipe.iterations:
        raise ConfigError(
            f"--iterations {recipe.iterations}: {run_dir} has {finished} finished iterations; ask for more"
        )
    build.check_data([recipe])
    recipe = build.started(recipe)
    parts = build.parts(recipe)
    trainer = Trainer(recipe, parts, run_dir, Stop())
    start = trainer.resume() if verb.resume else 0
    trainer.recorder.start(to_yaml(recipe), facts_of(recipe, recipe))
    finished = run_trainer(trainer, start, to_go_on(verb, recipe.name, run_dir))
    return 0 if finished else exit_code(trainer.stop)


def train_stages(staged: StagedRecipe, verb: options.Train, run_dir: Path) -> int:
    """One run after the other; a resumed one goes on with the first stage that is not finished."""
    stages.check_names(staged)
    if verb.resume:
        stages.check_iterations(staged, run_dir)
    stages.check_data(staged, run_dir if verb.resume else None)
    staged, stop, count = stages.started(staged), Stop(), len(staged.stages)
    for number, name in enumerate(staged.names):
        if verb.resume and stages.finished(staged, number, run_dir):
            print(f"stage {number + 1} of {count}, {name}: finished before")
            if not (report := staged.folders(run_dir)[number] / runlog.REPORT).is_file():
                write_report(report.parent)
            continue
        print(f"stage {number + 1} of {count}, {name}", flush=True)
        if not train_stage(staged, number, verb, run_dir, stop):
            return exit_code(stop)
        if stop.requested and number + 1 < count:
            print(f"stopped after stage {name}; to go on: {to_go_on(verb, staged.name, run_dir)}")
            return exit_code(stop)
    output.result(f"all {count} stages are finished: {run_dir}", run=str(run_dir))
    return 0


def train_stage(staged: StagedRecipe, number: int, verb: options.Train, run_dir: Path, stop: Stop) -> bool:
    """Begin one stage (from 0), or go on with it; return whether it is finished.

    Nothing is written before the first stage's model is there. What a stage is made of lives in this function alone,
    so that the next one finds its memory free.
    """
    recipe, folder = stages.ready(staged, number, run_dir), staged.folders(run_dir)[number]
    parts = parts_of_stage(recipe, verb, staged.name, run_dir)
    write_text_atomic(run_dir / runlog.RECIPE, staged.to_yaml())
    usable(folder)
    with hold(folder / LOCK):  # somebody may be going on with this stage by itself
        trainer = Trainer(recipe, parts, folder, stop)
        start = trainer.resume()  # of a new stage: 0
        trainer.recorder.start(to_yaml(recipe), facts_of(recipe, staged))
        return run_trainer(trainer, start, to_go_on(verb, staged.name, run_dir))


def parts_of_stage(recipe: Recipe, verb: options.Train, name: str, run_dir: Path) -> RunComponents:
    """Load what a stage is made of; where that fails in a run under way (of the recipe ``name``), say how to go on."""
    try:
        return build.parts(recipe)
    except (Exception, KeyboardInterrupt):
        if stages.begun(run_dir):
            print(f"stopped before training {recipe.name}; to go on: {to_go_on(verb, name, run_dir)}")
        raise


def list_keys(asked: Recipe | StagedRecipe) -> int:
    """Print every key of a recipe, explained; of several stages, of each."""
    stages = asked.stages if isinstance(asked, StagedRecipe) else (asked,)
    lines, figures = [], []
    for number, recipe in enumerate(stages, start=1):
        if isinstance(asked, StagedRecipe):
            lines.append(f"# stage {number} of {len(stages)}")
        lines += keys_listing(recipe)
        figures.append({"name": recipe.name, "keys": keys_figures(recipe)})
    output.result("\n".join(lines), stages=figures)
    return 0


def planned(asked: Recipe | StagedRecipe, verb: options.Train) -> int:
    """Check what is here, and print the recipe and what an iteration of it costs; of several stages, of each."""
    from unigrpo.tools.planning.dry_run import dry_run

    text, figures = dry_run(asked, tflops=verb.tflops, mfu=verb.mfu)
    output.result(text, **figures)
    return 0


def facts_of(recipe: Recipe, asked: Recipe | StagedRecipe) -> dict[str, Any]:
    """What a run keeps of its origins: its files, and the rewards of the user's own of all stages."""
    return {**own_rewards.facts(asked), "inputs": inputs.recorded(recipe)}


def to_go_on(verb: options.Train, name: str, run_dir: Path) -> str:
    """How to resume a run, from any working folder; ``name`` is its recipe's."""
    run_dir = run_dir.resolve()
    recipe = verb.recipe if verb.recipe == name else str(run_dir / runlog.RECIPE)
    argv = ["train", recipe, "--out", str(run_dir), "--resume"]
    return own_rewards.to_go_on(shlex.join([program(), *argv]), argv, run_dir)


def resumed_recipe(verb: options.Train, overrides: Sequence[str]) -> Recipe | StagedRecipe:
    """The recipe of the run in --out; overrides may only change ``iterations``, and name files that have moved."""
    run_dir = run_folder(verb.out)
    names = [word.split("=")[0] for word in overrides if word.startswith("--")]
    if other := [name for name in names if not (ITERATIONS.fullmatch(name) or inputs.MOVABLE.fullmatch(name))]:
        raise ConfigError(
            f"{other[0]} with --resume: the recipe of the run in {run_dir} holds, and only --iterations may change "
            "(and the place of a file that has moved); leave it out, or start a new run"
        )
    path = run_dir / runlog.RECIPE
    begun, asked = load_experiment(path), load_experiment(path, overrides)
    if asked.name != verb.recipe and not is_recipe_file(verb.recipe):
        raise ConfigError(
            f"{run_dir} is a run of {asked.name}, not of {verb.recipe}: name that recipe, or another --out"
        )
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


def run_trainer(trainer: Trainer, start: int, again: str) -> bool:
    """Run to the end (True) or until stopped, with progress, and write the report; ``again`` is how to go on."""
    began = time.perf_counter()
    recipe = trainer.recipe
    with Progress(recipe.name, recipe.iterations, start=start, schedule=schedule(recipe)) as progress:
        progress.note(f"run folder: {trainer.run_dir}" + (f" (resumed after {start} iterations)" if start else ""))
        try:
            with stoppable(trainer, progress):
                finished = trainer.run(progress)
        except (Exception, KeyboardInterrupt) as error:
            how = "at once" if isinstance(error, KeyboardInterrupt) else "by an error"
            progress.note(f"stopped {how} after {trainer.done} finished iterations; to go on: {again}")
            raise
    report = write_report(trainer.run_dir)
    if not finished:
        saved = f"saved after {trainer.done} iterations; to go on: {again}"
        output.result(saved, run=str(trainer.run_dir), finished=False, iterations=trainer.done, resume=again)
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


def program() -> str:
    """How this program was called, so that what it prints can be pasted."""
    called = Path(sys.argv[0])
    found = called.name != "unigrpo" or shutil.which("unigrpo") == str(called)
    return "unigrpo" if found else str(called.absolute())


def print_comparison(run_dir: Path, *, held_out: bool) -> None:
    """Print before, after and the paired difference with its 95 % interval, or why there is none."""
    summary = runlog.read_json(run_dir / runlog.SUMMARY)
    if lines := describe_comparison(summary):
        kind = "held-out pictures" if held_out else "pictures"
        print(f"{summary['after']['n']} {kind}, the same prompts and draws before and after:")
        print("\n".join(f"  {line}" for line in lines))
