"""All checks of ``unigrpo doctor``, in order: what is here first, then what it can do."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from unigrpo.tools.doctor import devices, limits, machine, packages, planned
from unigrpo.tools.doctor.finding import Finding, first_line
from unigrpo.tools.doctor.pair import Pair

Check = Callable[[], Finding | Sequence[Finding]]


def examine(
    *, encoding: str, is_terminal: bool, self_test: bool, gpus: int | None, gpu_gb: float | None
) -> list[Finding]:
    """Every finding; ``encoding`` and ``is_terminal`` are of the stream that a person reads.

    ``gpus`` and ``gpu_gb``: what to plan for in place of the GPUs that are here.
    """
    import torch

    here = devices.devices_here()
    count = len(here.gpus)
    capacity = here.memory if gpu_gb is None else gpu_gb * 1e9
    needs = packages.own_requirements()
    columns = shutil.get_terminal_size().columns
    checks: list[tuple[str, Check]] = [
        ("python", packages.check_python),
        ("packages", lambda: packages.check_packages(needs)),
        ("extras", lambda: packages.check_extras(needs)),
        ("devices", lambda: devices.check_devices(here, torch.__version__)),
        ("nccl", lambda: devices.check_nccl(count, devices.nccl_version())),
        ("threads", lambda: machine.check_threads(machine.threads_here())),
        ("memory", lambda: machine.check_memory(limits.free_memory())),
        ("disk", lambda: machine.check_disk(machine.disks_here(), gpus=count)),
        ("writing", lambda: machine.check_writing(Path.cwd())),
        (
            "terminal",
            lambda: machine.check_terminal(
                encoding, sys.getfilesystemencoding(), is_terminal=is_terminal, columns=columns
            ),
        ),
    ]
    if self_test:
        checks += trials(count)
    checks.append(("auto", lambda: planned.check_plan(gpus or max(1, count), capacity)))
    return [finding for name, check in checks for finding in answered(name, check)]


def trials(gpus: int) -> list[tuple[str, Check]]:
    """What is tried. The pair of processes starts now, and is asked last: other things are tried meanwhile."""
    from unigrpo.tools.doctor.selftest import self_test

    pair = Pair()
    return [("matmul", lambda: devices.check_products(gpus)), ("self-test", self_test), ("gloo pair", pair.finding)]


def answered(name: str, check: Check) -> list[Finding]:
    """What a check says; one that raises has failed, and the others go on."""
    try:
        found = check()
    except Exception as error:
        todo = "this check itself could not be made: report it with the output of unigrpo doctor --json"
        return [Finding(name, "failed", first_line(error), todo)]
    return [found] if isinstance(found, Finding) else list(found)
