"""How many FLOPs a second this machine's matrix products reach at best: stated by the maker, or measured."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch

STATED = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Dense bfloat16 products with sums in fp32, by the maker's data sheet, for names that hold these words; the first."""
LASTING = 0.2  # seconds that a measurement takes
SIDES = {"cuda": 8192, "cpu": 1024}


@dataclass(frozen=True)
class Peak:
    """FLOPs a second, whether that is ``stated`` or ``measured``, of which device and in which dtype."""

    flops: float
    source: Literal["stated", "measured"]
    device: str
    dtype: str


@cache
def peak_of(kind: str, dtype: torch.dtype) -> Peak:
    """The peak of a ``cuda`` or ``cpu`` device: of a known GPU in bfloat16 as its maker states it, else measured.

    Measured once in a process: the best of square products within 0.2 s (one at least).
    """
    name = torch.cuda.get_device_name() if kind == "cuda" else "CPU"
    said = str(dtype).removeprefix("torch.")
    if dtype == torch.bfloat16 and (known := stated(name)) is not None:
        return Peak(known, "stated", name, said)
    return Peak(_measured(kind, dtype), "measured", name, said)


def stated(name: str) -> float | None:
    """What the maker of a GPU states; None for one that is not in the table."""
    words = set(name.replace("-", " ").split())
    return next((flops for known, flops in STATED.items() if set(known.split()) <= words), None)


def _measured(kind: str, dtype: torch.dtype) -> float:
    side = SIDES[kind]
    x = torch.full((side, side), 0.5, device=kind, dtype=dtype)
    out, best, until = torch.empty_like(x), 0.0, time.perf_counter() + LASTING
    torch.mm(x, x, out=out)
    while best == 0.0 or time.perf_counter() < until:
        _wait(kind)
        began = time.perf_counter()
        torch.mm(x, x, out=out)
        _wait(kind)
        best = max(best, 2.0 * side**3 / (time.perf_counter() - began))
    return best


def _wait(kind: str) -> None:
    if kind == "cuda":
        torch.cuda.synchronize()
