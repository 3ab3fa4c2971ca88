"""The verb ``train``: a new run, a resumed one, one of several stages, or what one would cost."""

from __future__ import annotations

import contextlib
import itertools
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from unigrpo import cli, config, resolve
from unigrpo.config import ConfigError, Recipe, StagedRecipe
from unigrpo.evaluation.evaluator import describe_comparison
from unigrpo.reports import runlog
from unigrpo.reports.html import write_report
from unigrpo.reports.progress import Progress
from unigrpo.training import checkpoint
from unigrpo.training.trainer import Parts, Stop, Trainer
from unigrpo.verbs import own_rewards, stages
from unigrpo.verbs.folders import must_be_new, usable

ITERATIONS = re.compile(r"--(stages\.[^.]+\.)?iterations")


def train(verb: cli.Train, overrides: Sequence[str]) -> int:
    """Train, or print what would be trained."""
    if verb.resume:
        asked, run_dir = resumed_recipe(verb, overrides)
        own_rewards.recall(run_dir)
    else:
        own_rewards.recall(None)
        asked, run_dir = config.load_experiment(verb.recipe, overrides), verb.out
    if verb.dry_run:
        return dry_run(asked, verb)
    if not verb.resume and run_dir is not None:
        if (run_dir / runlog.RECIPE).is_file():
            raise ConfigError(f"{run_dir} already holds a run: add --resume to go on with it, or name another --out")
        must_be_new(run_dir)
    if isinstance(asked, StagedRecipe):
        return train_stages(asked, verb, run_dir)
    return train_one(asked, verb, run_dir)


def train_one(recipe: Recipe, verb: cli.Train, run_dir: Path | None) -> int:
    """A run of a plain recipe."""
    if verb.resume and run_dir is not None and (finished := checkpoint.finished(run_dir)) > recipe.iterations:
        raise ConfigError(
            f"--iterations {recipe.iterations}: {run_dir} has {finished} finished iterations; ask for more"
        )
    parts = resolve.parts(recipe)
    run_dir = run_dir or new_folder(recipe)
    usable(run_dir)
    trainer = Trainer(recipe, parts, run_dir, Stop())
    start = trainer.resume() if verb.resume else 0
    trainer.recorder.start(config.to_yaml(recipe), own_rewards.facts(recipe))
    return run_trainer(trainer, start, to_go_on(verb, run_dir))


def train_stages(staged: StagedRecipe, verb: cli.Train, run_dir: Path | None) -> int:
    """One run after the other; a resumed one goes on with the first stage that is not finished."""
    stages.check_names(staged)
    if verb.resume and run_dir is not None:
        stages.check_iterations(staged, run_dir)
    stop, count = Stop(), len(staged.stages)
    for number, name in enumerate(staged.names):
        if verb.resume and run_dir is not None and stages.finished(staged, number, run_dir):
            print(f"stage {number + 1} of {count}, {name}: finished before")
            if not (report := staged.folders(run_dir)[number] / runlog.REPORT).is_file():
                write_report(report.parent)
            continue
        print(f"stage {number + 1} of {count}, {name}", flush=True)
        code, run_dir = train_stage(staged, number, verb, run_dir, stop)
        if code == 0 and stop.requested and number + 1 < count:
            print(f"stopped after stage {name}; to go on: {to_go_on(verb, run_dir)}")
            code = 130
        if code:
            return code
    print(f"all {count} stages are finished: {run_dir}")
    return 0


def train_stage(
    staged: StagedRecipe, number: int, verb: cli.Train, run_dir: Path | None, stop: Stop
) -> tuple[int, Path]:
    """Begin one stage (from 0), or go on with it; return the exit code and the folder of the whole run.

    Nothing is written before the first stage's model is there. What a stage is made of lives in this function alone,
    so that the next one finds its memory free.
    """
    recipe = stages.ready(staged, number, run_dir)
    parts = parts_of_stage(recipe, verb, run_dir)
    run_dir = run_dir or new_folder(staged)
    usable(run_dir)
    runlog.write_text_atomic(run_dir / runlog.RECIPE, staged.to_yaml())
    trainer = Trainer(recipe, parts, staged.folders(run_dir)[number], stop)
    start = trainer.resume()  # of a new stage: 0
    trainer.recorder.start(config.to_yaml(recipe), own_rewards.facts(staged))
    return run_trainer(trainer, start, to_go_on(verb, run_dir)), run_dir


def parts_of_stage(recipe: Recipe, verb: cli.Train, run_dir: Path | None) -> Parts:
    """Load what a stage is made of; where that fails in a run under way, say how to go on."""
    try:
        return resolve.parts(recipe)
    except (Exception, KeyboardInterrupt):
        if run_dir is not None and (run_dir / runlog.RECIPE).is_file():
            print(f"stopped before training {recipe.name}; to go on: {to_go_on(verb, run_dir)}")
        raise


def dry_run(asked: Recipe | StagedRecipe, verb: cli.Train) -> int:
    """Print the recipe and what an iteration of it costs; of several stages, of each."""
    recipes = asked.stages if isinstance(asked, StagedRecipe) else (asked,)
    for number, recipe in enumerate(recipes, start=1):
        if isinstance(asked, StagedRecipe):
            print(f"# stage {number} of {len(recipes)}")
        resolve.check_rewards(recipe)
        print(config.to_yaml(recipe))
        print("\n".join(config.batch_arithmetic(recipe)))
        sized = replace(recipe, model=replace(recipe.model, path=recipes[0].model.path))  # all are of the same size
        print("\n".join(costs(sized, verb)), end="\n" if recipe is recipes[-1] else "\n\n")
    return 0


def to_go_on(verb: cli.Train, run_dir: Path) -> str:
    """The command that resumes a run."""
    argv = ["train", verb.recipe, "--out", str(run_dir), "--resume"]
    return own_rewards.to_go_on(shlex.join([program(), *argv]), argv, run_dir)


def costs(recipe: Recipe, verb: cli.Train) -> list[str]:
    """Parameters, memory, FLOPs and time of an iteration (docs/scaling.md)."""
    if not 0 < verb.mfu <= 1 or not verb.tflops > 0:
        raise ConfigError(f"--tflops {verb.tflops} --mfu {verb.mfu}: give a speed above 0 and a share in (0, 1]")
    sizes, assumed = resolve.sizes(recipe.model)
    note = [] if assumed is None else [assumed]
    return ["", *note, *config.scaling_report(recipe, sizes, tflops=verb.tflops, mfu=verb.mfu)]


def new_folder(recipe: Recipe | StagedRecipe) -> Path:
    """Make runs/<recipe>-<time>; runs that start in the same second get numbers."""
    first = Path("runs") / f"{recipe.name.replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in itertools.count(1):
        folder = first if number == 1 else first.with_name(f"{first.name}-{number}")
        if not folder.exists():
            with contextlib.suppress(FileExistsError):  # another run was quicker
                folder.mkdir(parents=True)
                return folder
    raise AssertionError("unreachable")


def resumed_recipe(verb: cli.Train, overrides: Sequence[str]) -> tuple[Recipe | StagedRecipe, Path]:
    """The recipe of the run in --out; of all overrides only ``iterations`` (also of a stage) may change it."""
    if verb.out is None:
        raise ConfigError("--resume needs --out, the folder of the run to go on with")
    path = verb.out / runlog.RECIPE
    if not path.is_file():
        raise ConfigError(f"{verb.out} is not a run folder (it has no {runlog.RECIPE}): nothing to resume")
    other = [o for o in overrides if o.startswith("--") and not ITERATIONS.fullmatch(o.split("=")[0])]
    if other:
        raise ConfigError(
            f"{other[0]} with --resume: the recipe of the run in {verb.out} holds, and only --iterations may change; "
            "leave it out, or start a new run"
        )
    recipe = config.load_experiment(path, overrides)
    if recipe.name != verb.recipe and not verb.recipe.endswith((".yaml", ".yml")):
        raise ConfigError(
            f"{verb.out} is a run of {recipe.name}, not of {verb.recipe}: name that recipe, or another --out"
        )
    return recipe, verb.out


def run_trainer(trainer: Trainer, start: int, again: str) -> int:
    """Run to the end or to Ctrl-C, with progress, and write the report; ``again`` is the command that goes on."""
    began = time.perf_counter()
    recipe = trainer.recipe
    with Progress(recipe.name, recipe.iterations, start=start, validate_every=recipe.eval.every) as progress:
        progress.note(f"run folder: {trainer.run_dir}" + (f" (resumed after {start} iterations)" if start else ""))
        previous = signal.signal(signal.SIGINT, stop_handler(trainer.stop, progress))
        try:
            finished = trainer.run(progress)
        except (Exception, KeyboardInterrupt) as error:
            how = "at once" if isinstance(error, KeyboardInterrupt) else "by an error"
            progress.note(f"stopped {how} after {trainer.done} finished iterations; to go on: {again}")
            raise
        finally:
            signal.signal(signal.SIGINT, previous)
    report = write_report(trainer.run_dir)
    if not finished:
        print(f"saved after {trainer.done} iterations; to go on: {again}")
        return 130
    print(f"finished in {time.perf_counter() - began:.0f} s, {trainer.trained_seconds:.0f} s of it training")
    print_comparison(trainer.run_dir)
    print(f"report: {report}")
    return 0


def program() -> str:
    """How this program was called, so that what it prints can be pasted."""
    called = Path(sys.argv[0])
    return "unigrpo" if called.name != "unigrpo" or shutil.which("unigrpo") == str(called) else str(called)


def stop_handler(stop: Stop, progress: Progress):
    """The first Ctrl-C ends the run after the iteration under way; the second at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        progress.note("stopping as soon as the step under way is finished, and saving (Ctrl-C again to stop at once)")

    return handle


def print_comparison(run_dir: Path) -> None:
    """Print before, after and the paired difference with its 95 % interval."""
    summary = runlog.read_json(run_dir / runlog.SUMMARY)
    if lines := describe_comparison(summary):
        kind = "pictures" if summary["after"]["score"] is None else "held-out pictures"
        print(f"{summary['after']['n']} {kind}, the same prompts and draws before and after:")
        print("\n".join(f"  {line}" for line in lines))
