"""Several processes of one job (``train --nproc``, torchrun): what can work is known before weights are read."""

from __future__ import annotations

import os

import torch

from unigrpo import build, plurals
from unigrpo.ranges import ConfigError
from unigrpo.recipe import PromptData, Recipe, StagedRecipe
from unigrpo.runs.measuring import rates


def counted() -> tuple[int, int]:
    """How many ranks torchrun has started, and how many of them on this machine."""
    size = int(os.environ["WORLD_SIZE"])
    here = os.environ.get("LOCAL_WORLD_SIZE", "")
    return size, int(here) if here.isdigit() else size


def check(asked: Recipe | StagedRecipe, size: int, here: int) -> Recipe:
    """Refuse a job of ``size`` ranks (``here`` on this machine) that cannot work; return the first stage's recipe."""
    recipes = asked.stages if isinstance(asked, StagedRecipe) else (asked,)
    for recipe in recipes:
        check_one(recipe, size, here)
    return recipes[0]


def faster(asked: Recipe | StagedRecipe) -> tuple[int, str]:
    """As many ranks as are faster on this machine, and why, in one line: a rank a GPU, or what a measurement says."""
    recipes = asked.stages if isinstance(asked, StagedRecipe) else (asked,)
    most = min(units(recipe)[0] for recipe in recipes)
    if build.device_of(recipes[0].model).type == "cuda":
        gpus = min(most, torch.cuda.device_count())
        return gpus, f"{plurals.counted(gpus, 'rank')}: one for each GPU of this machine"
    measured = rates(most)
    return (1, "one process: there is one core") if measured is None else (measured.chosen, str(measured))


def check_one(recipe: Recipe, size: int, here: int) -> None:
    """The same of one recipe: every rank needs something to do, a GPU of its own, and a place in the mesh."""
    most, what = units(recipe)
    if size > most:
        raise ConfigError(
            f"{size} ranks, but {recipe.name} has {most} {what}: a rank would have nothing to do; use at most {most}"
        )
    if build.device_of(recipe.model).type == "cuda" and here > (gpus := torch.cuda.device_count()):
        raise ConfigError(
            f"{here} ranks on this machine, which has {plurals.counted(gpus, 'GPU')}: each rank needs one of its own; "
            f"use --nproc {gpus}, or set model.device to cpu"
        )
    replicas = recipe.parallel.replicas
    if size % replicas or (replicas > 1 and replicas == size):
        raise ConfigError(
            f"parallel.replicas = {replicas} with {size} ranks: the ranks are divided into so many groups of equal "
            "size, two or more in each; change either"
        )


def units(recipe: Recipe) -> tuple[int, str]:
    """What the ranks divide among themselves: at least how many, and what they are."""
    if not isinstance(recipe.data, PromptData):
        return recipe.data.batch_size, "demonstrations in a step (data.batch_size)"
    data, each = recipe.data, recipe.rollout.images_per_thinking if recipe.rollout.think else 1
    groups = data.prompts_per_iteration // recipe.optimizer.minibatches
    if each == 1:
        what = "samples in a minibatch (prompts_per_iteration x group_size / minibatches)"
    else:
        what = "thoughts in a minibatch (prompts_per_iteration x group_size / minibatches / images_per_thinking)"
    return groups * data.group_size // each, what
