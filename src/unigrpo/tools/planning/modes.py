"""What ``parallel.mode: auto`` chooses, and why: one function decides for train, for the dry run and for doctor."""

from __future__ import annotations

from dataclasses import dataclass, replace

from unigrpo.build import families
from unigrpo.costs.sizes import ModelSizes
from unigrpo.recipe import Recipe
from unigrpo.tools.planning.layouts import Choice, Mode, choose, layouts
from unigrpo.tools.planning.model_sizes import sizes
from unigrpo.tools.planning.scaling import estimate
from unigrpo.tools.planning.workload import Layout


@dataclass(frozen=True)
class Chosen:
    """The mode that a run takes, why in one line, and what it rests on (None: nothing was computed)."""

    mode: Mode
    reason: str
    choice: Choice | None = None


def chosen(recipe: Recipe, gpus: int, gpu_bytes: float | None) -> Chosen:
    """The mode of a recipe on so many GPUs of ``gpu_bytes`` each (None: the ranks compute on CPUs)."""
    mode = recipe.parallel.mode
    if mode != "auto":
        return Chosen(mode, "as the recipe says")
    if gpu_bytes is None:
        return Chosen("replicate", "auto, and on CPUs every rank holds all weights", choose(gpus, None, _unknown))
    if families.is_own(recipe.model.path):
        return Chosen("replicate", "auto, and what a model of your own costs is not known")
    return chosen_for(recipe, sizes(recipe.model)[0], gpus, gpu_bytes)


def chosen_for(recipe: Recipe, found: ModelSizes, gpus: int, gpu_bytes: float) -> Chosen:
    """The same of ``auto`` for a model of known sizes: the first layout that fits; where none does, the smallest."""
    ways, refused = ways_of(recipe, gpus)
    choice = choose(gpus, gpu_bytes, lambda layout: estimate(recipe, found, layout).memory.peak, ways)
    also = f", and the weights cannot be shared out ({refused})" if refused and choice.layout is None else ""
    mode = ways[-1].mode if choice.layout is None else choice.layout.mode
    return Chosen(mode, f"auto: {choice.reason}{also}", choice)


def ways_of(recipe: Recipe, gpus: int) -> tuple[list[Layout], str]:
    """The layouts that a recipe's ``auto`` may take, and why its weights cannot be shared out ("" if they can).

    Where the recipe says how to share out (replicas, rollout_weights, cpu_offload), that way is tried first.
    """
    parallel, ways = recipe.parallel, layouts(gpus)
    try:
        replace(recipe, parallel=replace(parallel, mode="shard"))
    except ValueError as error:
        return ways[:1], str(error)
    own = Layout(gpus, "shard", parallel.replicas, parallel.rollout_weights, parallel.cpu_offload)
    if gpus > 1 and own != Layout(gpus, "shard") and gpus % parallel.replicas == 0 and parallel.replicas < gpus:
        ways = [ways[0], own, *(way for way in ways[1:] if way != own)]
    return ways, ""


def _unknown(layout: Layout) -> float:
    raise AssertionError("on CPUs nothing is computed")
