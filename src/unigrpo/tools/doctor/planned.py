"""What ``parallel.mode: auto`` would choose on this machine, for the smallest and the largest shipped recipes."""

from __future__ import annotations

from unigrpo.plurals import counted
from unigrpo.recipe import load_recipe
from unigrpo.tools.doctor.finding import Finding
from unigrpo.tools.planning.modes import Chosen, chosen
from unigrpo.tools.planning.workload import Layout

RECIPES = ("shapes/unigrpo", "bagel/unigrpo-lora-1gpu", "bagel/unigrpo")


def check_plan(gpus: int, capacity: float | None) -> list[Finding]:
    """One line of every recipe: what auto chooses on ``gpus`` GPUs of ``capacity`` bytes (None: on the CPU).

    A note where a recipe does not fit: that is no fault of the machine.
    """
    found = []
    for name in RECIPES:
        recipe = load_recipe(name)
        if capacity is None and name != RECIPES[0]:
            found.append(
                Finding(f"auto: {name}", "note", "BAGEL-7B needs a GPU: unigrpo doctor --gpus 8 plans for some")
            )
            continue
        found.append(_finding(name, gpus, chosen(recipe, gpus, capacity)))
    return found


def _finding(name: str, gpus: int, taken: Chosen) -> Finding:
    choice = taken.choice
    assert choice is not None  # the recipes that ship say auto, and their models are known
    figures = {"gpus": gpus, "peak_bytes": choice.peak, "mode": choice.layout and taken.mode}
    if choice.layout is None:
        return Finding(f"auto: {name}", "note", choice.reason, "", figures)
    where = counted(gpus, "GPU") if choice.peak is not None else "CPU ranks"
    keys = further(choice.layout)
    figures["keys"] = keys
    said = f"{taken.mode} on {where}: {choice.reason}"
    also = ", ".join(f"{key} {value}" for key, value in keys.items())
    todo = f"auto sets the mode alone: on such a machine set {also}, too" if keys else ""
    return Finding(f"auto: {name}", "ok", said, todo, figures)


def further(layout: Layout) -> dict[str, int | str | bool]:
    """The keys of a recipe that a layout needs beside its mode."""
    plain, keys = Layout(layout.gpus, layout.mode), {}
    if layout.replicas != plain.replicas:
        keys["parallel.replicas"] = layout.replicas
    if layout.rollout != plain.rollout:
        keys["parallel.rollout_weights"] = layout.rollout
    if layout.offload != plain.offload:
        keys["parallel.cpu_offload"] = layout.offload
    return keys
