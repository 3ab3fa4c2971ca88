"""Checks of the machine: cores and threads, memory, disks, terminal. Each is a verdict on facts that are given."""

from __future__ import annotations

import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from unigrpo.plurals import counted
from unigrpo.tools.doctor import limits
from unigrpo.tools.doctor.finding import Finding, gigabytes

LEAST_MEMORY, LEAST_DISK, SOME_DISK = 1.5e9, 0.5e9, 5e9
"""Bytes that the micro models need; below ``SOME_DISK`` a note is made."""


@dataclass(frozen=True)
class Threads:
    """Facts about cores: of the machine, those that may be used, torch's threads, settings of OpenMP, load of a minute.

    quota: cores that a control group grants (None: no limit).
    """

    cores: int
    affinity: int
    quota: float | None
    torch: int
    settings: Mapping[str, str]
    load: float | None

    @property
    def usable(self) -> int:
        """Cores that work at the same time."""
        return self.affinity if self.quota is None else max(1, min(self.affinity, math.ceil(self.quota - 0.01)))


def threads_here() -> Threads:
    """The facts of this process."""
    import torch

    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS", "KMP_AFFINITY", "GOMP_CPU_AFFINITY")
    load = os.getloadavg()[0] if sys.platform != "win32" else None
    settings = {name: os.environ[name] for name in names if name in os.environ}
    return Threads(os.cpu_count() or 1, limits.affinity(), limits.cpu_quota(), torch.get_num_threads(), settings, load)


def check_threads(facts: Threads) -> Finding:
    """Failed where there are more threads than cores; a note where others are at work beside several threads.

    Threads of OpenMP that wait for each other do so by spinning: two of them on contended cores were 24 times slower
    than one (docs/doctor.md#threads).
    """
    usable, count = facts.usable, facts.torch
    set_to = "".join(f", {name}={value}" for name, value in facts.settings.items())
    quota = "" if facts.quota is None else f" (a control group grants {facts.quota:g})"
    load = "" if facts.load is None else f", load {facts.load:.1f}"
    said = f"{counted(count, 'thread')} on {usable} of {facts.cores} cores{quota}{load}{set_to}"
    figures = {
        "cores": facts.cores,
        "affinity": facts.affinity,
        "quota": facts.quota,
        "usable": usable,
        "torch_threads": count,
        "load": facts.load,
        "settings": dict(facts.settings),
    }
    if count > usable:
        todo = f"export OMP_NUM_THREADS={usable}: more threads than cores wait for each other"
        return Finding("threads", "failed", said, todo, figures)
    if count > 1 and facts.load is not None and facts.load > facts.cores:
        todo = "others are at work here: runs measure how many are worth it; OMP_NUM_THREADS=1 is safe"
        return Finding("threads", "note", said, todo, figures)
    return Finding("threads", "ok", said, "", figures)


def check_memory(free: int | None) -> Finding:
    """Failed where the micro models would not fit."""
    if free is None:
        return Finding("memory", "note", "this system does not say how much is free", "", {"free_bytes": None})
    said, figures = f"{gigabytes(free)} free", {"free_bytes": free}
    if free < LEAST_MEMORY:
        todo = f"end something, or raise the container's limit: the smallest run takes {gigabytes(LEAST_MEMORY)}"
        return Finding("memory", "failed", said, todo, figures)
    return Finding("memory", "ok", said, "", figures)


def disks_here() -> dict[str, int]:
    """Free bytes where things are written: runs (this folder), temporary files, shared memory, downloaded models."""
    places = {"here": Path.cwd(), "temporary files": Path(tempfile.gettempdir())}
    if Path("/dev/shm").is_dir():
        places["/dev/shm"] = Path("/dev/shm")
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    places["models"] = next((folder for folder in (home, *home.parents) if folder.is_dir()), Path("/"))
    return {name: shutil.disk_usage(path).free for name, path in places.items()}


def check_disk(free: Mapping[str, int], *, gpus: int = 0) -> Finding:
    """Failed where a run has no room for its folder or its temporary files, or NCCL none in shared memory."""
    said = ", ".join(f"{name} {gigabytes(count)}" for name, count in free.items()) + " free"
    figures = {"free_bytes": dict(free)}
    for name in ("here", "temporary files"):
        if free[name] < LEAST_DISK:
            where = "run from another folder" if name == "here" else "set TMPDIR to another folder"
            return Finding("disk", "failed", said, f"make room ({name}), or {where}", figures)
    if gpus > 1 and free.get("/dev/shm", LEAST_DISK) < LEAST_DISK:
        todo = "NCCL talks through /dev/shm: start the container with --shm-size 8g or --ipc host"
        return Finding("disk", "failed", said, todo, figures)
    if free["here"] < SOME_DISK:
        return Finding(
            "disk", "note", said, "a run of BAGEL keeps several checkpoints: point --out at more room", figures
        )
    return Finding("disk", "ok", said, "", figures)


def check_writing(folder: Path, sync: Callable[[int], None] = os.fsync) -> Finding:
    """Failed where this folder takes no file, or does not keep it when asked to (checkpoints are flushed)."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".unigrpo-doctor-") as file:
            file.write(b"a few bytes")
            file.flush()
            sync(file.fileno())
    except OSError as error:
        said = f"{folder}: {error.strerror or error}"
        return Finding("writing", "failed", said, "run from a folder that you may write to, or give --out one", {})
    return Finding("writing", "ok", f"{folder} takes files", "", {})


def check_terminal(encoding: str, file_names: str, *, is_terminal: bool, columns: int) -> Finding:
    """A note where letters or file names cannot be written as they are."""
    kind = f"a terminal of {columns} columns" if is_terminal else "not a terminal: no live progress"
    said = f"{encoding}, {kind}; file names {file_names}"
    figures = {"encoding": encoding, "file_names": file_names, "terminal": is_terminal, "columns": columns}
    narrow = [name for name in (encoding, file_names) if name.lower().replace("-", "") != "utf8"]
    if narrow:
        todo = "export LANG=C.UTF-8 (or PYTHONUTF8=1): letters that are not in it are written as escapes"
        return Finding("terminal", "note", said, todo, figures)
    return Finding("terminal", "ok", said, "", figures)
