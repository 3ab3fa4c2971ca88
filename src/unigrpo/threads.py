"""Threads of a command in a process of its own: decided before torch starts (this module does not import it).

Threads that have nothing to do must sleep: by default they spin, and beside another busy process an operation then
waits for a thread that waits for a core (26 s for an iteration that takes 1 s). How many there are is measured later
(``runs.measuring``), for no environment variable can say so before.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from unigrpo.ranges import ConfigError

COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Who sets one of these has decided how many threads there are."""
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Who sets one of these has decided how they wait."""
_process = {"own": False}


def prepare() -> None:
    """Say that this process is the command's own; its threads sleep while they wait, unless somebody has decided."""
    _process["own"] = True
    if "torch" not in sys.modules and not set_in(WAITING, os.environ):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def check(environment: Mapping[str, str]) -> None:
    """ConfigError for a number of threads that is none: the library would take all cores, with a line of its own."""
    for name in COUNTS:
        value = environment.get(name, "")
        if value and not all(part.strip().isdecimal() and int(part) for part in value.split(",")):
            raise ConfigError(f"{name} = {value!r} is no number of threads: set it to 1 or more, or unset it")


def own() -> bool:
    """Whether the number of threads may be changed here: not in a program or notebook that calls the command."""
    return _process["own"]


def set_in(names: tuple[str, ...], environment: Mapping[str, str]) -> str:
    """The first of some variables that is set, as NAME=VALUE; empty where none is."""
    return next((f"{name}={environment[name]}" for name in names if environment.get(name)), "")
