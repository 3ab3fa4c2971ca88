"""What ``train --dry-run`` says: is all that the run needs here, and what does an iteration cost?"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch

from unigrpo import build
from unigrpo.build import families
from unigrpo.ranges import ConfigError
from unigrpo.recipe import Recipe, StagedRecipe, to_yaml
from unigrpo.tools.planning.arithmetic import batch_arithmetic
from unigrpo.tools.planning.figures import scaling_figures
from unigrpo.tools.planning.model_sizes import sizes
from unigrpo.tools.planning.modes import chosen
from unigrpo.tools.planning.scaling import GPUS, scaling_report

H100 = 80e9
"""The memory of the GPUs that are planned for where this machine has none."""


def dry_run(asked: Recipe | StagedRecipe, *, tflops: float, mfu: float) -> tuple[str, dict[str, Any]]:
    """Check what is here; return the recipe and what an iteration of it costs, in words and figures.

    Of several stages, of each. ConfigError for a speed that no machine has, and for whatever the run would refuse.
    """
    if not 0 < mfu <= 1 or not 0 < tflops <= 1e6:
        raise ConfigError(f"--tflops {tflops} --mfu {mfu}: give a speed above 0 and at most 1e6, and a share in (0, 1]")
    recipes = asked.stages if isinstance(asked, StagedRecipe) else (asked,)
    notes, text, figures = build.check_here(recipes), [], []
    for number, recipe in enumerate(recipes, start=1):
        if isinstance(asked, StagedRecipe):
            text.append(f"# stage {number} of {len(recipes)}")
        build.check_rewards(recipe)
        sized = replace(recipe, model=replace(recipe.model, path=recipes[0].model.path))  # all are of the same size
        lines, cost = costs(sized, tflops=tflops, mfu=mfu)
        text += [to_yaml(recipe), *batch_arithmetic(recipe), "", *lines, *([] if recipe is recipes[-1] else [""])]
        figures.append({"recipe": asdict(recipe), **cost})
    text += [f"\nnote: {note}" for note in notes]
    return "\n".join(text), {"stages": figures, "notes": notes, "tflops": tflops, "mfu": mfu}


def costs(recipe: Recipe, *, tflops: float, mfu: float) -> tuple[list[str], dict[str, Any]]:
    """Parameters, memory, FLOPs and time of an iteration (docs/scaling.md); nothing of a model of one's own."""
    if families.is_own(recipe.model.path):
        return [f"model.path {recipe.model.path} is a model of your own: what it costs is not known here"], {}
    found, assumed = sizes(recipe.model)
    report = scaling_report(recipe, found, tflops=tflops, mfu=mfu)
    line, modes = auto_line(
        recipe, torch.cuda.get_device_properties().total_memory if torch.cuda.is_available() else H100
    )
    figures = {**scaling_figures(recipe, found, tflops=tflops, mfu=mfu), "auto": modes}
    return [*([] if assumed is None else [assumed]), *report, line], figures


def auto_line(recipe: Recipe, gpu_bytes: float) -> tuple[str, dict[str, Any]]:
    """The mode that a run takes on GPUs of so many bytes, by their number: in a line, and as figures."""
    taken = {count: chosen(recipe, count, gpu_bytes) for count in GPUS}
    by_mode: dict[str, list[int]] = {}
    for count, one in taken.items():
        fits = one.choice is None or one.choice.layout is not None
        by_mode.setdefault(one.mode if fits else f"{one.mode} (does not fit)", []).append(count)
    said = "; ".join(f"{mode} on {', '.join(map(str, counts))}" for mode, counts in by_mode.items())
    line = f"parallel.mode {recipe.parallel.mode} on GPUs of {gpu_bytes / 1e9:.0f} GB, by GPUs: {said}"
    return line, {"gpu_bytes": gpu_bytes, "modes": {count: one.mode for count, one in taken.items()}}
