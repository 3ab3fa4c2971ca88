"""How many threads, and whether several ranks, are fastest on the CPUs at hand: measured, for machines differ.

Threads of one process wait for each other in every operation, ranks only for their gradients; cores that share their
arithmetic units, or that others use too, gain little by either.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from unigrpo.plurals import counted
from unigrpo.threads import COUNTS, set_in

SECONDS = 0.3
"""Of each number of threads, and of ranks."""
ROUNDS = 4
"""The parts in which it is measured, in turns, so that what others do meanwhile meets all alike."""
MOST = 8
"""Ranks and threads that are thought of: small models have no work for more."""
WORTH = 1.1
"""How much faster more threads or ranks must be than fewer, which leave room for others."""


@dataclass(frozen=True)
class Rates:
    """How often a second some work is done, by one process of ``threads`` threads and by ``ranks`` ranks."""

    threads: int
    by_threads: float
    ranks: int
    by_ranks: float

    @property
    def chosen(self) -> int:
        """The number of ranks that is faster."""
        return self.ranks if self.by_ranks > WORTH * self.by_threads else 1

    def __str__(self) -> str:
        many = f"{self.ranks} ranks of one thread do {self.by_ranks / self.by_threads:.2f} times the work"
        said = f"{many} of one process of {counted(self.threads, 'thread')} here"
        return f"{said}: {f'{self.ranks} ranks' if self.chosen > 1 else 'one process'}"


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def rates(most: int) -> Rates | None:
    """Measure, in about a second; None where there is one core, or nobody to share with, or no way to find out.

    Ranks are forked before this process has started any thread of torch's, so that they have none to miss.
    """
    ranks, threads = min(cores(), MOST, most), torch.get_num_threads()
    if ranks < 2 or sys.platform == "win32":
        return None
    torch.set_num_threads(1)
    try:
        by_ranks = _by_ranks(ranks)
    finally:
        torch.set_num_threads(threads)
    found = by_threads(threads)
    best = max(found) if set_in(COUNTS, os.environ) else fastest(found)
    return Rates(best, found[best], ranks, by_ranks)


@functools.cache
def by_threads(most: int) -> Mapping[int, float]:
    """How often a second some work is done by 1, 2, 4 ... ``most`` threads (at most ``MOST``); measured once."""
    most = min(most, MOST)
    counts = sorted({count for count in (1, 2, 4, most) if count <= most})
    before, found = torch.get_num_threads(), dict.fromkeys(counts, 0.0)
    try:
        for _ in range(ROUNDS):
            for count in counts:
                torch.set_num_threads(count)
                work(0.0)  # starts the threads
                found[count] += work(SECONDS / ROUNDS) / ROUNDS
    finally:
        torch.set_num_threads(before)
    return found


def fastest(found: Mapping[int, float]) -> int:
    """The number of threads that is worth it: more where they are faster by ``WORTH`` than any fewer."""
    best = min(found)
    for count in sorted(found):
        if found[count] > WORTH * found[best]:
            best = count
    return best


def work(seconds: float) -> float:
    """Do a layer's arithmetic over and over (at least once), at the sizes of the shapes model; how often a second."""
    x, up, down = torch.ones(512, 128), torch.ones(128, 512) / 512, torch.ones(512, 128) / 512
    start, done = time.perf_counter(), 0
    while True:
        for _ in range(4):
            heads = (torch.nn.functional.silu(x @ up) @ down).view(16, 32, 4, 32).transpose(1, 2).double()
            torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)
        done += 4
        if (passed := time.perf_counter() - start) >= seconds:
            return done / passed


def _by_ranks(ranks: int) -> float:
    """What so many processes do together, each beside the others."""
    readers, pids = [], []
    for _ in range(ranks):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.write(writer, f"{work(SECONDS)}".encode())
            finally:
                os._exit(0)
        os.close(writer)
        readers.append(reader)
        pids.append(pid)
    total = 0.0
    for reader, pid in zip(readers, pids, strict=True):
        with os.fdopen(reader) as pipe:
            said = pipe.read()
        os.waitpid(pid, 0)
        total += float(said or 0.0)
    return total
