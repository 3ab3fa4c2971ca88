"""The two sides that are compared: this tree, and a git worktree of another revision that is gone when it is over."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[2]
ABSENT_BEFORE = frozenset({"ranks"})
"""Sections of what packages without ``build`` cannot do."""


class Failed(RuntimeError):
    """A measurement that did not come to an end."""


@dataclass(frozen=True)
class Side:
    """A source tree: its name in the table, its ``src``, and which adapter knows it."""

    name: str
    source: Path

    @property
    def api(self) -> str:
        """``now``, or ``before`` for a tree in which ``resolve`` does what ``build`` does today."""
        return "now" if (self.source / "unigrpo" / "build").is_dir() else "before"

    def has(self, section: str) -> bool:
        """Whether there is something to measure."""
        return self.api == "now" or section not in ABSENT_BEFORE

    def measured(self, section: str, *, threads: int, quick: bool) -> dict[str, float]:
        """The figures of a section, from a process of its own."""
        command = [sys.executable, "-m", "speed.measure", section, self.api, *(["--quick"] if quick else [])]
        path = os.pathsep.join((str(self.source), str(ROOT / "benchmarks")))
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=self.source)
        if done.returncode:
            raise Failed(f"{section} of {self.name}: exit code {done.returncode}\n{done.stderr.strip()[-2000:]}")
        said = json.loads(done.stdout.strip().splitlines()[-1])
        if not Path(said["package"]).is_relative_to(self.source):
            raise Failed(f"{section} of {self.name}: {said['package']} was measured, which is not in {self.source}")
        return said["figures"]


OURS = Side("now", ROOT / "src")


@contextmanager
def against(revision: str | None) -> Iterator[Side | None]:
    """The tree of another revision; it is removed whatever happens, also by Ctrl-C and SIGTERM."""
    if revision is None:
        yield None
        return
    found = git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}", check=False)
    if not found:
        raise ValueError(f"--against {revision}: this repository has no such revision (git log names those it has)")

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    with tempfile.TemporaryDirectory(prefix="unigrpo-against-") as place:
        tree = Path(place).resolve() / "tree"
        try:
            git("worktree", "add", "--quiet", "--detach", str(tree), found)
            yield Side(found[:7], tree / "src")
        finally:
            git("worktree", "remove", "--force", str(tree), check=False)
            git("worktree", "prune")
            signal.signal(signal.SIGTERM, before)


def git(*words: str, check: bool = True) -> str:
    """What git says; Failed where it fails, unless that is no matter."""
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise Failed(f"git {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()


def compared(section: str, sides: Sequence[Side], *, repeat: int, threads: int, quick: bool) -> dict[str, Any]:
    """Medians over ``repeat`` processes of each side, in turns; ratios of what is in seconds, ours over theirs."""
    found: dict[str, list[dict[str, float]]] = {side.name: [] for side in sides if side.has(section)}
    for _ in range(repeat):
        for side in sides:
            if side.has(section):
                found[side.name].append(side.measured(section, threads=threads, quick=quick))
    figures = {name: median(rows) for name, rows in found.items()}
    result: dict[str, Any] = {"figures": figures, "samples": found}
    result["absent"] = [side.name for side in sides if not side.has(section)]
    if len(figures) > 1:
        result["ratios"] = ratios(*figures.values())
    return result


def median(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of every figure."""
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def ratios(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, float]:
    """Of all seconds and bytes that both have."""
    measured = [name for name in ours if name.endswith("_s") or name.rpartition(".")[2].startswith("peak_mb")]
    return {name: ours[name] / theirs[name] for name in measured if theirs.get(name)}
