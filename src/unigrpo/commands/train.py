"""The verb ``train``: a new run, a resumed one, one of several stages (``runs.training``), or what one would cost."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from unigrpo import options, output
from unigrpo.recipe import Recipe, StagedRecipe, keys_figures, keys_listing, load_experiment
from unigrpo.reports import runlog
from unigrpo.runs import own_rewards
from unigrpo.runs.folders import begun_run, new_run
from unigrpo.runs.signals import exit_code
from unigrpo.runs.training import Going, begin, resumed_recipe


def run(verb: options.Train, overrides: Sequence[str]) -> int:
    """Train, or print what would be trained."""
    if verb.resume and (verb.keys or verb.dry_run):
        asked = resumed_recipe(verb.out, verb.recipe, overrides)
        return list_keys(asked) if verb.keys else planned(asked, verb)
    if verb.resume:
        with begun_run(verb.out) as run_dir:
            return train(resumed_recipe(verb.out, verb.recipe, overrides), verb, run_dir)
    own_rewards.recall(None)
    asked = load_experiment(verb.recipe, overrides)
    if verb.keys:
        return list_keys(asked)
    if verb.dry_run:
        return planned(asked, verb)
    with new_run(verb.out, asked.name) as run_dir:
        return train(asked, verb, run_dir)


def train(asked: Recipe | StagedRecipe, verb: options.Train, run_dir: Path) -> int:
    """Train in a folder that is this process's alone; the exit code says who stopped it."""
    going = Going(verb.resume, lambda name, folder: to_go_on(verb, name, folder))
    return 0 if begin(asked, run_dir, going) else exit_code(going.stop)


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


def to_go_on(verb: options.Train, name: str, run_dir: Path) -> str:
    """How to resume a run, from any working folder; ``name`` is its recipe's."""
    run_dir = run_dir.resolve()
    recipe = verb.recipe if verb.recipe == name else str(run_dir / runlog.RECIPE)
    argv = ["train", recipe, "--out", str(run_dir), "--resume"]
    return own_rewards.to_go_on(shlex.join([program(), *argv]), argv, run_dir)


def program() -> str:
    """How this program was called, so that what it prints can be pasted."""
    called = Path(sys.argv[0])
    found = called.name != "unigrpo" or shutil.which("unigrpo") == str(called)
    return "unigrpo" if found else str(called.absolute())
