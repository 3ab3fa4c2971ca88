"""Section ``scaling``: how cost grows with what is asked for, and what finished rows cost the others."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

from speed import bench256
from speed.bench256 import Size
from speed.case import Rolled
from speed.counting import Figures, Phases, flop_counter, medians, slope

BASE = Size(groups=4, group=8)
AXES: dict[str, tuple[str, tuple[int, ...], tuple[str, ...]]] = {
    "group_size": ("group", (8, 16, 32), ("prefill", "think", "draw")),
    "prompts": ("groups", (4, 8, 16), ("prefill", "think", "draw")),
    "thinking_length": ("words", (32, 64, 128), ("think",)),
    "image_tokens": ("image_tokens", (64, 144, 256), ("draw",)),
    "steps": ("steps", (5, 10, 20), ("draw",)),
}
"""What grows, the field of a size, its values, and the phases that pay for it; from as many rows on as fill a product
(of 8 rows a call costs as much as of 16, and the exponents are .8)."""


def scaling(api: ModuleType, quick: bool) -> Figures:
    """The exponent of CPU seconds over each axis, beside that of the counted FLOPs; and the cost of finished rows."""
    found: Figures = {}
    for name, (field, values, phases) in AXES.items():
        sizes = [replace(BASE.small() if quick else BASE, **{field: value}) for value in values]
        costs = [cost(api, size, phases, 1 if quick else 3) for size in sizes]
        found[f"{name}.exponent"] = slope([(v, cpu) for v, (cpu, _) in zip(values, costs, strict=True)])
        found[f"{name}.exponent_of_flops"] = slope([(v, flops) for v, (_, flops) in zip(values, costs, strict=True)])
    return found | finished(api, quick)


def cost(api: ModuleType, size: Size, phases: tuple[str, ...], repeat: int) -> tuple[float, float]:
    """CPU seconds of some phases of a rollout (median), and their counted FLOPs."""
    policy = bench256.policy_of(api, size)
    with flop_counter() as counter:
        flops = measured(api, policy, size, Phases(counter)).counted
    rows = [measured(api, policy, size, Phases()).cpu for _ in range(repeat)]
    cpu = medians(rows)
    return sum(cpu[name] for name in phases), sum(flops[name] for name in phases)


def measured(api: ModuleType, policy: Any, size: Size, phases: Phases) -> Phases:
    """One rollout."""
    api.rolled(policy, bench256.prompts_of(size), bench256.sampling_of(api, size), Rolled(size.group, on_phase=phases))
    phases.end()
    return phases


def finished(api: ModuleType, quick: bool) -> Figures:
    """Thinking of 8 rows beside 24 that end after 2 of 64 words, against the 8 alone: CPU seconds of a word's step."""
    size = Size(groups=1, group=32, words=64, steps=2)
    size = replace(size.small(), words=24) if quick else size
    alone = replace(size, group=8)
    ends = {row: 2 for row in range(8, size.group)}
    pairs = []
    beside, lonely = bench256.policy_of(api, size, ends), bench256.policy_of(api, alone)
    for _ in range(2 if quick else 6):
        pairs.append({
            "beside": measured(api, beside, size, Phases()).cpu["think"],
            "alone": measured(api, lonely, alone, Phases()).cpu["think"],
        })  # fmt: skip
    cpu = medians(pairs[1:])
    return {
        "word_beside_finished_cpu_s": cpu["beside"] / size.words,
        "word_alone_cpu_s": cpu["alone"] / size.words,
        "finished_rows_cost": cpu["beside"] / cpu["alone"],
    }
