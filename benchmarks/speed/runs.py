"""Sections ``ranks`` and ``threads``: whole runs of the command, in wall seconds."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from speed.counting import Figures
from speed.iterations import SMALL

EVALUATION = ["--eval.limit", "2", "--eval.compare-limit", "2", "--eval.compare-samples", "1", "--eval.every", "1000"]
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY")
WAYS = {"one": (1, "1"), "ranks": (2, "1"), "threads": (1, "2")}
"""Ranks, and threads of each."""


def trained(words: Sequence[str], threads: str | None, iterations: int) -> tuple[float, dict[str, Any]]:
    """Wall seconds of the median iteration of a run (the first one, which warms up, does not count), and its facts."""
    kept = {name: value for name, value in os.environ.items() if name not in THREADS}
    environment = kept | ({"OMP_NUM_THREADS": threads} if threads is not None else {})
    with tempfile.TemporaryDirectory(prefix="unigrpo-bench-") as place:
        folder = Path(place) / "run"
        command = [sys.executable, "-m", "unigrpo", "train", "shapes/unigrpo", "--out", str(folder)]
        command += [*words, "--iterations", str(iterations), *EVALUATION]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        facts = json.loads((folder / "environment.json").read_text())
    return statistics.median(line["seconds"]["total"] for line in lines[1:]), facts


def ranks(api: ModuleType, quick: bool) -> Figures:
    """An iteration with ``--nproc 2`` against one process with one thread (the goal: 0.60), and with two threads."""
    small, iterations = (SMALL, 2) if quick else ([], 4)
    found: Figures = {}
    for way, (count, threads) in WAYS.items():
        found[f"{way}_wall_s"], _ = trained(["--nproc", str(count), *small], threads, iterations)
    found["ranks_of_one"] = found["ranks_wall_s"] / found["one_wall_s"]
    return found


def threads(api: ModuleType, quick: bool) -> Figures:
    """An iteration as the command does it unasked: alone, and beside one busy process for each core (goal: 2.5).

    one, two: with so many threads by OMP_NUM_THREADS, alone.
    """
    small, iterations = (SMALL, 3) if quick else ([], 6)
    found: Figures = {}
    found["quiet_wall_s"], facts = trained(small, None, iterations)
    found["quiet_threads"] = facts["threads"]
    with busy(os.cpu_count() or 1):
        found["busy_wall_s"], facts = trained(small, None, iterations)
    found["busy_threads"] = facts["threads"]
    found["busy_of_quiet"] = found["busy_wall_s"] / found["quiet_wall_s"]
    for name, count in (("one", "1"), ("two", "2")):
        found[f"{name}_wall_s"], _ = trained(small, count, iterations)
    found["quiet_of_better"] = found["quiet_wall_s"] / min(found["one_wall_s"], found["two_wall_s"])
    return found


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Inside, so many processes do nothing but keep a core busy."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()
