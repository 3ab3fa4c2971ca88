"""Which way to hold the weights fits into the memory of a GPU, and why, in one line: by the dry run's memory model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unigrpo.tools.planning.communication import NODE
from unigrpo.tools.planning.workload import Layout, Mode

__all__ = ["USABLE", "Choice", "Layout", "Mode", "choose", "layouts", "named"]

USABLE = 0.92
"""The share of a GPU's memory that is filled: its allocator, its libraries and fragments need the rest."""


@dataclass(frozen=True)
class Choice:
    """A layout (None: none fits), the most that a GPU then holds (None: not known), and why in one line."""

    layout: Layout | None
    peak: float | None
    reason: str


def layouts(gpus: int) -> list[Layout]:
    """The ways to hold the weights on so many GPUs, from the one that sends least to the one that holds least."""
    found = [Layout(gpus, "replicate")]
    if gpus == 1:
        return found
    if gpus > NODE and gpus % NODE == 0:
        found.append(Layout(gpus, "shard", replicas=gpus // NODE))
    plain = Layout(gpus, "shard")
    return [
        *found,
        plain,
        Layout(gpus, "shard", rollout="sharded"),
        Layout(gpus, "shard", rollout="sharded", offload=True),
    ]


def choose(
    gpus: int, capacity: float | None, peak_of: Callable[[Layout], float], ways: Sequence[Layout] = ()
) -> Choice:
    """The first layout whose peak (bytes, by the memory model) fits into ``USABLE`` of a GPU's ``capacity`` bytes.

    ``capacity`` None: ranks on CPUs, which all hold everything. ways: what is tried (empty: all :func:`layouts`).
    """
    if capacity is None:
        return Choice(Layout(gpus, "replicate"), None, "no GPU: every rank holds the whole model in the CPU's memory")
    tried: list[str] = []
    for layout in ways or layouts(gpus):
        peak = peak_of(layout)
        if peak <= USABLE * capacity:
            fits = f"{named(layout)} takes {peak / 1e9:.1f} of {capacity / 1e9:.0f} GB"
            return Choice(layout, peak, "; ".join([*tried, fits]))
        tried.append(f"{named(layout)} would take {peak / 1e9:.0f} GB")
    last = f"nothing fits into {USABLE:.0%} of {capacity / 1e9:.0f} GB"
    advice = "train adapters (model.lora), draw fewer together (rollout.batch), or take more GPUs"
    return Choice(None, None, f"{last} ({tried[-1]}): {advice}")


def named(layout: Layout) -> str:
    """A layout as the recipe's section ``parallel`` writes it."""
    if layout.mode == "replicate":
        return "replicate"
    keys = [f"replicas {layout.replicas}"] if layout.replicas > 1 else []
    keys += ["rollout_weights sharded"] if layout.rollout == "sharded" else []
    keys += ["cpu_offload"] if layout.offload else []
    return f"shard ({', '.join(keys)})" if keys else "shard"
