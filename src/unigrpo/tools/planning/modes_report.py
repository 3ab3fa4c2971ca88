"""The modes side by side for 1 to 512 GPUs: memory, bytes sent, time, and what takes longest (docs/scaling.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from unigrpo.costs.sizes import ModelSizes
from unigrpo.ranges import ConfigError
from unigrpo.recipe.schema import Recipe
from unigrpo.recipe.sections import PromptData
from unigrpo.tools.planning.communication import BETWEEN, WITHIN, Traffic
from unigrpo.tools.planning.layouts import layouts, named
from unigrpo.tools.planning.scaling import BANDWIDTH, Estimate, estimate
from unigrpo.tools.planning.workload import Layout

GPUS = (1, 8, 64, 512)
TFLOPS, MFU = 989.0, 0.4
SIDES = (512, 1024)


@dataclass(frozen=True)
class Row:
    """One layout: its estimate, and seconds of an iteration by what takes them.

    What is sent for replays is taken to go on while they compute, and what is sent for drawing while that computes: of
    each pair the longer one counts, and what sending has beyond computing is ``sending``.
    """

    layout: Layout
    made: Estimate
    thinking: float
    drawing: float
    replays: float
    sending: float

    @property
    def total(self) -> float:
        """Seconds of an iteration."""
        return self.thinking + self.drawing + self.replays + self.sending

    @property
    def longest(self) -> str:
        """What takes longest."""
        parts = {name: vars(self)[name] for name in ("thinking", "drawing", "replays", "sending")}
        return max(parts, key=lambda name: parts[name])


def row(recipe: Recipe, sizes: ModelSizes, layout: Layout) -> Row:
    """The figures of one layout."""
    made = estimate(recipe, sizes, layout)
    s, sent = made.seconds(tflops=TFLOPS, mfu=MFU), made.traffic
    drawing, replays = s["prefill"] + s["draw"] + s["decode"], s["score"] + s["update"]
    for_rollout = Traffic(0.0, 0.0, 0.0, sent.rollout).seconds(layout)
    for_replays = replace(sent, rollout=0.0).seconds(layout)
    sending = max(0.0, for_rollout - s["think"] - drawing) + max(0.0, for_replays - replays)
    return Row(layout, made, s["think"], drawing, replays, sending)


def at_size(recipe: Recipe, side: int) -> Recipe:
    """A recipe that draws at another size."""
    return replace(recipe, rollout=replace(recipe.rollout, image_size=side))


def modes_report(recipe: Recipe, sizes: ModelSizes, gpus: Sequence[int] = GPUS) -> list[str]:
    """A table: of every number of GPUs its layouts (without offload, which moves the same bytes)."""
    if not isinstance(recipe.data, PromptData):
        raise ConfigError("the modes are compared by an iteration of RL: name a recipe that learns from prompts")
    samples = recipe.data.prompts_per_iteration * recipe.data.group_size
    heads = ("peak GB", "GB sent", "thinking", "drawing", "replays", "sending", "s in all", "/GPU-h")
    lines = [f"{'GPUs':>4}  {'parallel':<32}" + "".join(f"{head:>9}" for head in heads) + "  longest"]
    for count in gpus:
        for layout in layouts(count):
            if layout.offload:
                continue
            found = row(recipe, sizes, layout)
            sent = found.made.traffic.total / 1e9
            rate = 3600 * samples / found.total / count
            numbers = (found.made.memory.peak / 1e9, sent, found.thinking, found.drawing, found.replays, found.sending)
            shown = "".join(f"{_number(value):>9}" for value in (*numbers, found.total, rate))
            name = "one process" if count == 1 else named(layout)
            lines.append(f"{count:>4}  {name:<32}{shown}  {found.longest}")
    return lines


ASSUMED = (
    f"computed, not measured: {MFU:.0%} of {TFLOPS:g} TFLOP/s, {BANDWIDTH:g} GB/s of memory, {WITHIN:g} GB/s within a "
    f"node of 8, {BETWEEN:g} between"
)
"""What the times rest on."""


def _number(value: float) -> str:
    if value == 0:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"
