"""What the dry run says of a recipe, as numbers for programs (``train --dry-run --json``)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from unigrpo.costs.sizes import ModelSizes
from unigrpo.recipe.schema import Recipe
from unigrpo.tools.planning.scaling import estimate


def scaling_figures(recipe: Recipe, sizes: ModelSizes, *, tflops: float, mfu: float) -> dict[str, Any]:
    """What an iteration costs one GPU: parameters, forwards per picture, bytes by part, FLOPs and seconds by phase."""
    one = estimate(recipe, sizes)
    phases = ("prefill", "think", "draw", "look", "decode", "score", "update", "total")
    return {
        "parameters": sizes.model_parameters,
        "autoencoder_parameters": sizes.autoencoder_parameters,
        "rows": one.work.rows,
        "rounds": one.work.rounds,
        "forwards_per_picture": one.work.steps * one.work.branches,
        "memory_bytes": {**asdict(one.memory), "peak": one.memory.peak},
        "flops": {phase: getattr(one.compute, phase) for phase in phases},
        "seconds": one.seconds(tflops=tflops, mfu=mfu),
    }
