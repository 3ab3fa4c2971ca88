"""The folders of a run of several stages: which are finished, what the next one starts from, their reports.

The folder of the whole holds recipe.yaml, as it was given, and an ordinary run folder for each stage: 1-NAME, 2-NAME.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from unigrpo import build
from unigrpo.plurals import counted
from unigrpo.ranges import ConfigError
from unigrpo.recipe import Recipe, StagedRecipe, staged_recipe, with_overrides
from unigrpo.reports import runlog
from unigrpo.training import checkpoint
from unigrpo.training.parallel import World


def check_names(staged: StagedRecipe, world: World) -> None:
    """Resolve the names in every stage and try its rewards, so that a fault is told now and not hours later.

    Also whether the ranks of the run draw prompts together that look at each other's pictures.
    """
    size = build.drawn_size(staged.stages[0])  # all stages train the same model
    for recipe in staged.stages:
        try:
            source, suite = build.source(recipe), build.suite(recipe.eval.prompts)
            rewards = build.check_rewards(recipe)
            build.check_shares(recipe, world)
            if size is not None:
                build.try_rewards(recipe, rewards, source, suite, size)
        except ValueError as error:
            raise ConfigError(f"{recipe.name}: {error}") from error


def check_data(staged: StagedRecipe, run_dir: Path | None) -> None:
    """Look at every row of all stages that are still to be run, with the words of the model that comes first."""
    done = [] if run_dir is None else [finished(staged, number, run_dir) for number in range(len(staged.stages))]
    first = next((number for number in range(len(staged.stages)) if number >= len(done) or not done[number]), None)
    if first is not None:
        build.check_data([ready(staged, first, run_dir), *staged.stages[first + 1 :]])


def begun(folder: Path) -> bool:
    """Whether a stage has left anything in its folder."""
    return (folder / runlog.RECIPE).is_file()


def finished(staged: StagedRecipe, number: int, run_dir: Path) -> bool:
    """Whether a stage (from 0) is complete: trained and evaluated, or the one after it has begun."""
    folders = staged.folders(run_dir)
    if any(begun(folder) for folder in folders[number + 1 :]):
        return True
    trained = checkpoint.finished(folders[number]) == staged.stages[number].iterations
    return trained and "after" in runlog.read_json(folders[number] / runlog.SUMMARY)


def check_iterations(staged: StagedRecipe, run_dir: Path) -> None:
    """Refuse iterations that the run can no longer have: fewer than are done, or others where a stage went on."""
    folders = staged.folders(run_dir)
    for number, (name, recipe, folder) in enumerate(zip(staged.names, staged.stages, folders, strict=True)):
        if any(begun(later) for later in folders[number + 1 :]):
            done = len(runlog.read_metrics(folder))  # its checkpoints may have been removed to save space
            if done != recipe.iterations:
                raise ConfigError(
                    f"stage {name}: iterations = {recipe.iterations}, but {run_dir} went on from it after {done}: "
                    f"leave them at {done}, or start a new run"
                )
        elif (done := checkpoint.finished(folder)) > recipe.iterations:
            raise ConfigError(
                f"stage {name}: iterations = {recipe.iterations}, but {run_dir} has "
                f"{counted(done, 'finished iteration')} of it; "
                "ask for more"
            )


def ready(staged: StagedRecipe, number: int, run_dir: Path | None) -> Recipe:
    """The recipe of a stage (from 0) with a folder as its start: the last checkpoint of the stage before.

    It also runs where the first stage does: ``device: auto`` would mean something else for a folder than for a shipped
    model. ConfigError where that checkpoint is gone.
    """
    recipe = staged.stages[number]
    if number == 0 or run_dir is None:
        return recipe
    before = staged.folders(run_dir)[number - 1]
    start = checkpoint.folder_of(before, staged.stages[number - 1].iterations)
    if start not in checkpoint.complete(before):
        raise ConfigError(
            f"stage {staged.names[number]} starts from {start}, which is not there: put it back, or start a new run"
        )
    device = recipe.model.device
    if device == "auto":
        device = "cpu" if build.device_of(staged.stages[0].model).type == "cpu" else "cuda"
    return replace(recipe, model=replace(recipe.model, path=str(start.resolve()), device=device))


def started(staged: StagedRecipe) -> StagedRecipe:
    """The recipe with one checkpoint as the start of its first stage where it names a run, whose newest changes."""
    return starting_at(staged, build.started(staged.stages[0]).model.path)


def starting_at(staged: StagedRecipe, path: str) -> StagedRecipe:
    """The recipe whose first stage starts from the model ``path``."""
    if path == staged.stages[0].model.path:
        return staged
    return staged_recipe(with_overrides(staged.written, [f"--stages.1.model.path={path}"]))
