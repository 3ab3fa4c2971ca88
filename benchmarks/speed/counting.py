"""Seconds of CPU and wall, counted FLOPs, the matmul peak, and bytes that are allocated."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

Figures = dict[str, float]


@dataclass
class Phases:
    """CPU and wall seconds from each named mark to the next; with ``flops`` running, what it counted in between."""

    flops: FlopCounterMode | None = None
    cpu: Figures = field(default_factory=dict)
    wall: Figures = field(default_factory=dict)
    counted: Figures = field(default_factory=dict)
    _under_way: tuple[str, float, float, float] | None = None

    def __call__(self, name: str) -> None:
        """A phase begins, and the one before it ends."""
        self.end()
        self._under_way = (name, time.process_time(), time.perf_counter(), self._total())

    def end(self) -> None:
        """The last phase ends."""
        if self._under_way is None:
            return
        name, cpu, wall, flops = self._under_way
        self._under_way = None
        for kept, passed in (
            (self.cpu, time.process_time() - cpu),
            (self.wall, time.perf_counter() - wall),
            (self.counted, self._total() - flops),
        ):
            kept[name] = kept.get(name, 0.0) + passed

    def _total(self) -> float:
        return float(self.flops.get_total_flops()) if self.flops is not None else 0.0


def seconds(action: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall seconds of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    action()
    return time.process_time() - cpu, time.perf_counter() - wall


def medians(rows: list[Figures]) -> Figures:
    """The median of every figure over repeated measurements."""
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def slope(points: list[tuple[float, float]]) -> float:
    """The exponent p of y ~ x^p, by least squares over the logarithms of (x, y)."""
    xs, ys = (torch.tensor(column, dtype=torch.float64).log() for column in zip(*points, strict=True))
    xs, ys = xs - xs.mean(), ys - ys.mean()
    return float((xs * ys).sum() / (xs * xs).sum())


# FLOPs


def attention_flops(q: Any, k: Any, v: Any, *_: object, out_shape: object = None, **__: object) -> int:
    """Of scaled_dot_product_attention on a CPU, by shapes [B, H, S, D]: two products, which torch does not count."""
    rows, heads, length, size = q
    return 2 * rows * heads * length * k[-2] * (size + v[-1])


def attention_backward_flops(grad: Any, q: Any, k: Any, v: Any, *_: object, out_shape: object = None, **__: Any) -> int:
    """Of its backward: five products, one of them again."""
    rows, heads, length, size = q
    return 2 * rows * heads * length * k[-2] * (3 * size + 2 * v[-1])


def flop_counter() -> FlopCounterMode:
    """A counter that knows attention on CPUs, too."""
    aten = torch.ops.aten
    known = {
        aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
    }
    return FlopCounterMode(display=False, custom_mapping=known)


def flops_of(action: Callable[[], object]) -> float:
    """FLOPs of one call, counted by torch."""
    with flop_counter() as counter:
        action()
    return float(counter.get_total_flops())


def matmul_peak(rows: int, hidden: int, inner: int, lasting: float = 0.4) -> float:
    """GFLOP/s of CPU time that fp32 products reach at best: [rows, hidden] by [hidden, inner], and back."""
    x, y = torch.randn(rows, hidden), torch.empty(rows, inner)
    up, down, back = torch.randn(hidden, inner), torch.randn(inner, hidden), torch.empty(rows, hidden)
    work, best, until = 4.0 * rows * hidden * inner, 0.0, time.perf_counter() + lasting
    each = max(1, round(2e9 / work))

    def both() -> None:
        for _ in range(each):
            torch.mm(x, up, out=y)
            torch.mm(y, down, out=back)

    both()
    while best == 0.0 or time.perf_counter() < until:  # once at least, however busy the machine is
        best = max(best, each * work / seconds(both)[0] / 1e9)
    return best


# Bytes


def peak_bytes(action: Callable[[], object]) -> int:
    """The most bytes that tensors made inside took at one time on the CPU, by torch's own record of allocations."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        action()
    assert found.profiler is not None and found.profiler.kineto_results is not None
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
        most = max(most, held)
    return most
