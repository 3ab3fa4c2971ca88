"""The verb ``train``: a new run, a resumed one, one of several stages (``runs.training``), or what one would cost."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unigrpo import build, options, output
from unigrpo.plurals import counted
from unigrpo.ranges import ConfigError
from unigrpo.recipe import Recipe, StagedRecipe, keys_figures, keys_listing, load_experiment
from unigrpo.reports import runlog
from unigrpo.runs import own_rewards, ranks, threads
from unigrpo.runs.folders import begun_run, new_run, nothing_yet
from unigrpo.runs.launching import LAUNCHED, MOST_RANKS, end_with_launcher, launch
from unigrpo.runs.signals import exit_code
from unigrpo.runs.training import Going, begin, resumed_recipe
from unigrpo.training.parallel import ONE_PROCESS, World, joined


def run(verb: options.Train, overrides: Sequence[str]) -> int:
    """Train, or print what would be trained."""
    if not (verb.keys or verb.dry_run) and (verb.nproc != 1 or output.launched()):
        return among_ranks(verb, overrides) if output.launched() else launch_ranks(verb, overrides)
    verb = settled(verb)
    if verb.resume and (verb.keys or verb.dry_run):
        asked = asked_for(verb, overrides)
        return list_keys(asked) if verb.keys else planned(asked, verb)
    if verb.resume:
        with begun_run(verb.out) as run_dir:
            return train(asked_for(verb, overrides), verb, run_dir)
    own_rewards.recall(None)
    asked = load_experiment(verb.recipe, overrides)
    if verb.keys:
        return list_keys(asked)
    if verb.dry_run:
        return planned(asked, verb)
    with new_run(verb.out, asked.name) as run_dir:
        return train(asked, verb, run_dir)


def settled(verb: options.Train) -> options.Train:
    """Of ``--resume``: whether there is a run to go on with, or one to start, which is said."""
    if not verb.resume or not nothing_yet(verb.out):
        return verb
    print(f"--resume: {verb.out} holds no run yet, so a new one starts there")
    return replace(verb, resume=False)


def asked_for(verb: options.Train, overrides: Sequence[str]) -> Recipe | StagedRecipe:
    """The recipe that is meant, new or resumed, which is said once it can be read."""
    if verb.resume:
        asked = resumed_recipe(verb.out, verb.recipe, overrides)
        print(f"--resume: going on with the run in {verb.out}")
        return asked
    own_rewards.recall(None)
    return load_experiment(verb.recipe, overrides)


def launch_ranks(verb: options.Train, overrides: Sequence[str]) -> int:
    """Start ``--nproc`` processes of this very command, after what can be known now is checked."""
    if not 0 <= verb.nproc <= MOST_RANKS:
        raise ConfigError(
            f"--nproc {verb.nproc}: it must be from 1 to {MOST_RANKS}, or 0 for as many as are faster on this machine"
        )
    with contextlib.redirect_stdout(output.SafeStream(None)):  # rank 0 says it again
        asked = asked_for(settled(verb), overrides)
    count, why = (verb.nproc, "") if verb.nproc else ranks.faster(asked)
    print(why, end="\n" if why else "")
    if count == 1:
        return run(replace(verb, nproc=1), overrides)
    ranks.check(asked, count, count)
    words = ["train", verb.recipe, *overrides]
    words += ["--out", str(verb.out)] if verb.out is not None else []
    flags = (("--resume", verb.resume), ("--quiet", verb.quiet), ("--json", verb.json))
    return launch([*words, *(flag for flag, on in flags if on)], count)


def among_ranks(verb: options.Train, overrides: Sequence[str]) -> int:
    """Train as one of the processes of a job: rank 0 holds the folder, writes and speaks."""
    end_with_launcher()
    verb = settled(verb)
    try:
        asked = asked_for(verb, overrides)
        size, here = ranks.counted()
        first = ranks.check(asked, size, here)
    except ValueError as error:
        raise error if output.rank() == 0 else output.Told(str(error)) from error
    cuda, wait = build.device_of(first.model).type == "cuda", first.parallel.timeout_s
    with joined(cuda=cuda, timeout_s=wait) as world, contextlib.ExitStack() as held:
        world, run_dir = in_its_mode(world, first, cuda=cuda), None
        with world.together():
            if world.first:
                run_dir = held.enter_context(begun_run(verb.out) if verb.resume else new_run(verb.out, asked.name))
        run_dir = world.told(run_dir)
        assert run_dir is not None
        return train(asked, verb, run_dir, world)


def in_its_mode(world: World, recipe: Recipe, *, cuda: bool) -> World:
    """The ranks with the mode that they take together, which is said: it must fit into the smallest of their GPUs."""
    import torch

    from unigrpo.tools.planning.modes import chosen

    smallest = min(world.gather(torch.cuda.get_device_properties().total_memory)) if cuda else None
    taken = chosen(recipe, world.size, smallest)
    print(f"{counted(world.size, 'rank')}, parallel.mode {taken.mode}: {taken.reason}")
    return replace(world, sharded=taken.mode == "shard")


def train(asked: Recipe | StagedRecipe, verb: options.Train, run_dir: Path, world: World = ONE_PROCESS) -> int:
    """Train in a folder that is this process's alone (of ranks, the first's); the exit code says who stopped it."""
    if note := threads.settle(threads.began_with(run_dir) if verb.resume else None):
        print(note)
    going = Going(verb.resume, lambda name, folder: to_go_on(verb, name, folder), world=world, alone=True)
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
    if output.launched() and os.environ.get(LAUNCHED):
        argv += ["--nproc", os.environ["WORLD_SIZE"]]
    return own_rewards.to_go_on(shlex.join([program(), *argv]), argv, run_dir)


def program() -> str:
    """How this program was called, so that what it prints can be pasted."""
    called = Path(sys.argv[0])
    found = called.name != "unigrpo" or shutil.which("unigrpo") == str(called)
    return "unigrpo" if found else str(called.absolute())
