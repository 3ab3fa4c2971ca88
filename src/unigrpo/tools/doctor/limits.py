"""What this process may really use of the machine: cores and memory, by affinity and by control groups (Linux).

``root`` is where the system's own files are looked for: tests put others there.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path("/")


def affinity() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def cpu_quota(root: Path = ROOT) -> float | None:
    """Cores that a control group grants (cgroup v2: cpu.max, v1: cfs_quota_us); None without a limit.

    The least of the group's own limit and those of all groups around it.
    """
    found: list[float] = []
    for folder in _groups(root, "cpu"):
        if (words := _read(folder / "cpu.max").split()) and words[0].isdigit():
            found.append(int(words[0]) / int(words[1]))
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):  # -1: no limit
            found.append(int(quota) / int(period))
    return min(found, default=None)


def free_memory(root: Path = ROOT) -> int | None:
    """Bytes that can be had without swapping: what the kernel says, or what is left of a control group's limit."""
    lines = (line.split() for line in _read(root / "proc/meminfo").splitlines())
    kernel = next((int(words[1]) * 1024 for words in lines if words[:1] == ["MemAvailable:"]), None)
    found = [] if kernel is None else [kernel]
    for folder in _groups(root, "memory"):
        for most, now in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            limit, used = _read(folder / most), _read(folder / now)
            if limit.isdigit() and used.isdigit() and int(limit) < 2**60:  # v1 writes a huge number for no limit
                found.append(max(0, int(limit) - int(used)) + _cached(folder))
    return min(found, default=None)


def _cached(folder: Path) -> int:
    """Bytes of files in a group's memory, which are given back where they are needed."""
    lines = (line.split() for line in _read(folder / "memory.stat").splitlines())
    return sum(int(words[1]) for words in lines if words[:1] in (["inactive_file"], ["active_file"]))


def _groups(root: Path, controller: str) -> list[Path]:
    """The folders of this process's control group of a controller and of all groups around it."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds == "":  # version 2, one tree for all
            mount = root / "sys/fs/cgroup"
        elif controller in kinds.split(","):
            mount = root / "sys/fs/cgroup" / controller
        else:
            continue
        parts = Path(path).relative_to("/").parts
        folders = [mount.joinpath(*parts[:count]) for count in range(len(parts) + 1)]
        if any(folder.is_dir() and any(folder.iterdir()) for folder in folders if folder.is_dir()):
            return [folder for folder in folders if folder.is_dir()]
    return [root / "sys/fs/cgroup"] if (root / "sys/fs/cgroup/cpu.max").is_file() else []


def _read(path: Path) -> str:
    """A small file of the system, or nothing."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
