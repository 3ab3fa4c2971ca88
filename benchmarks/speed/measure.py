"""Measure one section in this process, and print its figures as a line of JSON (``run.py`` starts this).

python -m speed.measure SECTION now|before [--quick]
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable
from types import ModuleType

import torch

import unigrpo
from speed import iterations, replays, rollouts, runs, scaling
from speed.counting import Figures

SECTIONS: dict[str, Callable[[ModuleType, bool], Figures]] = {
    "rollout": rollouts.rollout,
    "batching": rollouts.batching,
    "replay": replays.replay,
    "iteration": iterations.iteration,
    "ranks": runs.ranks,
    "scaling": scaling.scaling,
    "memory": replays.memory,
    "threads": runs.threads,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("api", choices=("now", "before"))
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    figures = SECTIONS[asked.section](importlib.import_module(f"speed.{asked.api}"), asked.quick)
    print(json.dumps({"package": unigrpo.__file__, "threads": torch.get_num_threads(), "figures": figures}))


if __name__ == "__main__":
    main()
