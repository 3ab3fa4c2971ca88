"""What ``parallel.mode: auto`` chooses, by the dry run's memory model: all weights on every rank where they fit."""

from __future__ import annotations

from dataclasses import replace

from unigrpo.build import families
from unigrpo.recipe import Recipe
from unigrpo.tools.planning.layouts import USABLE
from unigrpo.tools.planning.model_sizes import sizes
from unigrpo.tools.planning.scaling import GIGA, estimate


def chosen(recipe: Recipe, gpu_bytes: int | None) -> tuple[str, str]:
    """The mode, and why, in a few words; ``gpu_bytes``: the memory of one GPU (None: the ranks compute on CPUs)."""
    mode = recipe.parallel.mode
    if mode != "auto":
        return mode, "as the recipe says"
    if gpu_bytes is None:
        return "replicate", "auto, and on CPUs every rank holds all weights"
    if families.is_own(recipe.model.path):
        return "replicate", "auto, and what a model of your own costs is not known"
    found, _ = sizes(recipe.model)
    needed, there = estimate(recipe, found).memory.peak, USABLE * gpu_bytes
    said = f"auto: all weights on every rank need {needed / GIGA:.0f} GB of the {there / GIGA:.0f} GB that a GPU has"
    if needed <= there:
        return "replicate", said
    try:
        replace(recipe, parallel=replace(recipe.parallel, mode="shard"))
    except ValueError as error:
        return "replicate", f"{said}, but they cannot be shared out ({error})"
    return "shard", said
