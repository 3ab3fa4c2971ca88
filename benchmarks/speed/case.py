"""What the two adapters (``now``, ``before``) and the measurements hand to each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rolled:
    """How to roll out: samples of a prompt, the run's seed, who is told of a phase, and the first sample's number."""

    group: int
    seed: int = 0
    on_phase: Callable[[str], None] = lambda phase: None
    first_sample: int = 0


@dataclass(frozen=True)
class Case:
    """A model, its method, and the trajectories to learn from; ``queries``: of each one, of its picture.

    The types are those of the revision that is measured.
    """

    policy: Any
    method: Any
    batch: Any
    queries: list[Any]
    temperature: float
