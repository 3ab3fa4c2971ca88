"""The verb ``train``: a new run, a resumed one, or what one would cost."""

from __future__ import annotations

import contextlib
import itertools
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from unigrpo import cli, config, resolve
from unigrpo.config import ConfigError, Recipe
from unigrpo.evaluation.evaluator import describe_comparison
from unigrpo.reports import runlog
from unigrpo.reports.html import write_report
from unigrpo.reports.progress import Progress
from unigrpo.training import checkpoint
from unigrpo.training.trainer import Stop, Trainer
from unigrpo.verbs.folders import must_be_new, usable


def train(verb: cli.Train, overrides: Sequence[str]) -> int:
    """Train, or print what would be trained."""
    if verb.resume:
        recipe, run_dir = resumed_recipe(verb, overrides)
    else:
        recipe, run_dir = config.load_recipe(verb.recipe, overrides), verb.out
    if verb.dry_run:
        print(config.to_yaml(recipe))
        print("\n".join(config.batch_arithmetic(recipe)))
        print("\n".join(costs(recipe, verb)))
        return 0
    if not verb.resume and run_dir is not None:
        if (run_dir / runlog.RECIPE).is_file():
            raise ConfigError(f"{run_dir} already holds a run: add --resume to go on with it, or name another --out")
        must_be_new(run_dir)
    if verb.resume and run_dir is not None and (finished := checkpoint.finished(run_dir)) > recipe.iterations:
        raise ConfigError(
            f"--iterations {recipe.iterations}: {run_dir} has {finished} finished iterations; ask for more"
        )
    parts = resolve.parts(recipe)
    if run_dir is not None:
        usable(run_dir)
    trainer = Trainer(recipe, parts, run_dir or new_folder(recipe), Stop())
    start = trainer.resume() if verb.resume else 0
    trainer.recorder.start(config.to_yaml(recipe))
    return run_trainer(trainer, verb, start)


def costs(recipe: Recipe, verb: cli.Train) -> list[str]:
    """Parameters, memory, FLOPs and time of an iteration (docs/scaling.md)."""
    if not 0 < verb.mfu <= 1 or not verb.tflops > 0:
        raise ConfigError(f"--tflops {verb.tflops} --mfu {verb.mfu}: give a speed above 0 and a share in (0, 1]")
    sizes, assumed = resolve.sizes(recipe.model)
    note = [] if assumed is None else [assumed]
    return ["", *note, *config.scaling_report(recipe, sizes, tflops=verb.tflops, mfu=verb.mfu)]


def new_folder(recipe: Recipe) -> Path:
    """Make runs/<recipe>-<time>; runs that start in the same second get numbers."""
    first = Path("runs") / f"{recipe.name.replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in itertools.count(1):
        folder = first if number == 1 else first.with_name(f"{first.name}-{number}")
        if not folder.exists():
            with contextlib.suppress(FileExistsError):  # another run was quicker
                folder.mkdir(parents=True)
                return folder
    raise AssertionError("unreachable")


def resumed_recipe(verb: cli.Train, overrides: Sequence[str]) -> tuple[Recipe, Path]:
    """The recipe of the run in --out; of all overrides only ``iterations`` may change it."""
    if verb.out is None:
        raise ConfigError("--resume needs --out, the folder of the run to go on with")
    path = verb.out / runlog.RECIPE
    if not path.is_file():
        raise ConfigError(f"{verb.out} is not a run folder (it has no {runlog.RECIPE}): nothing to resume")
    other = [o for o in overrides if o.startswith("--") and o.lstrip("-").split("=")[0] != "iterations"]
    if other:
        raise ConfigError(
            f"{other[0]} with --resume: the recipe of the run in {verb.out} holds, and only --iterations may change; "
            "leave it out, or start a new run"
        )
    recipe = config.load_recipe(path, overrides)
    if recipe.name != verb.recipe and not verb.recipe.endswith((".yaml", ".yml")):
        raise ConfigError(
            f"{verb.out} is a run of {recipe.name}, not of {verb.recipe}: name that recipe, or another --out"
        )
    return recipe, verb.out


def run_trainer(trainer: Trainer, verb: cli.Train, start: int) -> int:
    """Run to the end or to Ctrl-C, with progress, and write the report."""
    again = shlex.join([program(), "train", verb.recipe, "--out", str(trainer.run_dir), "--resume"])
    began = time.perf_counter()
    with Progress(trainer.recipe.name, trainer.recipe.iterations, start=start) as progress:
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
