"""How many threads a command computes with: what the user set, else what a run began with, else what is measured."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from unigrpo import output, threads
from unigrpo.plurals import counted
from unigrpo.recipe import stage_folders
from unigrpo.reports import runlog
from unigrpo.runs import measuring

_chosen = {"by": "torch's own choice"}


def settle(begun: int | None = None) -> str:
    """Set the number of threads, once it is clear that there is something to compute; a line for the user, or none.

    ``begun``: of the run that is gone on with, whose sums would round otherwise with another number. Nothing changes in
    a program or notebook that calls the command, where a variable says how many, among several ranks, or on a GPU.
    """
    if threads.set_in(threads.COUNTS, os.environ) or not threads.own() or output.launched():
        return ""
    if torch.cuda.is_available():
        return ""
    if begun is not None:
        torch.set_num_threads(begun)
        _chosen["by"] = "as the run began"
        return few(begun, measuring.cores())
    found = measuring.by_threads(torch.get_num_threads())
    count = measuring.fastest(found)
    torch.set_num_threads(count)
    compared = ", ".join(f"{n}: {rate / found[1]:.2f}" for n, rate in found.items() if n > 1)
    _chosen["by"] = f"measured, of the work of 1 thread by {compared}" if compared else "one core"
    return f"{counted(count, 'thread')} ({_chosen['by']}; OMP_NUM_THREADS sets another number)"


def few(count: int, cores: int) -> str:
    """What to say of a run that began with more threads than there are cores; nothing of others."""
    if count <= cores:
        return ""
    here = counted(cores, "core")
    return (
        f"{count} threads, as the run began, on {here}: slower, but the same numbers; OMP_NUM_THREADS={cores} is "
        "faster and rounds otherwise"
    )


def facts() -> dict[str, Any]:
    """Who chose the number of threads, and how they wait: for the run folder."""
    return {
        "threads_chosen": threads.set_in(threads.COUNTS, os.environ) or _chosen["by"],
        "threads_wait": threads.set_in(threads.WAITING, os.environ) or "the library's default",
    }


def began_with(run_dir: Path) -> int | None:
    """The number of threads that a run (of stages: its first one) began with; None where it does not say."""
    for folder in (run_dir, *stage_folders(run_dir)):
        count = runlog.read_json(folder / runlog.ENVIRONMENT).get("threads")
        if isinstance(count, int) and count >= 1:
            return count
    return None
