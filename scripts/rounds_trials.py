"""What was tried to put two rounds of training above one, at equally many pictures (scripts/study_rounds.py).

A trial is some runs from one base: one round with twice the rollouts, and others of two rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from study import make

BASE, BASE_RECIPE = "builtin:shapes-rounds", "shapes/rounds-sft"
Keys = Mapping[str, str]
SHORT = {"iterations": "40", "eval.every": "40", "eval.compare-samples": "1"}
"""Keys of all runs."""
PAIR: Mapping[str, Keys] = {
    "two rounds": {"method.advantage.credit": "improvement"},
    "one round": {
        "rollout.rounds": "1",
        "method.advantage.credit": "terminal",
        "data.group-size": "12",
        "eval.rounds": "2",
    },
}
ONE, STOPPING = "one round", "two rounds that may stop, ten samples"
MAY_STOP: Keys = {**PAIR["two rounds"], "rollout.stop": "said", "rollout.stop-words": "[fine]"}
STOPS: Keys = {**MAY_STOP, "data.group-size": "10"}
"""About as many pictures as six samples of two rounds; what they are is in the table of the page."""


@dataclass(frozen=True)
class Trial:
    """start: a shipped base; base: keys that train another one from it; runs: keys of its runs, by their names."""

    start: str = BASE
    base: Keys = field(default_factory=dict)
    runs: Mapping[str, Keys] = field(default_factory=lambda: dict(PAIR))


def words_alone(credit: str) -> Keys:
    """The thinkings are trained, and the drawing stays as it is."""
    method = f"{{name: text_grpo, text: {{clip_range: 0.2, kl_weight: 0.1}}, advantage: {{credit: {credit}}}}}"
    return {"method": method, "optimizer.lr-denoising": "0"}


def _words() -> dict[str, Keys]:
    found: dict[str, Keys] = {}
    for name, keys in PAIR.items():
        rest = {key: value for key, value in keys.items() if key != "method.advantage.credit"}
        found[name] = {**rest, **words_alone(keys["method.advantage.credit"])}
    return found


TRIALS: dict[str, Trial] = {
    "better sight: a base trained for 8,000 iterations in place of 3,000": Trial(
        base={"iterations": "5000", "seed": "3", "eval.every": "1000"}, runs={**PAIR, STOPPING: STOPS}
    ),
    "more critiques: builtin:shapes-edits, 3,000 iterations more, half of them looks": Trial(
        start="builtin:shapes-edits"
    ),
    "words alone: the drawing is not trained": Trial(runs=_words()),
}


def slug(name: str) -> str:
    """A name as part of a folder's."""
    return "".join(c if c.isalnum() else "-" for c in name.split(":")[0])


def measured_how(keys: Keys) -> tuple[str, ...]:
    """How a model of these keys is measured: it may stop where it was trained to."""
    return ("--stop",) if keys.get("rollout.stop") == "said" else ()


def base_of(work: Path, name: str) -> Path:
    """Where the base of a trial is trained and measured."""
    return work / f"base-{slug(name)}"


def run_of(work: Path, name: str, side: str, seed: int) -> Path:
    """Where one run of a trial lies."""
    return work / f"trial-{slug(name)}--{slug(side)}-seed{seed}"


def base_model(work: Path, name: str) -> str:
    """What the runs of a trial begin from."""
    return str(base_of(work, name)) if TRIALS[name].base else TRIALS[name].start


def train_base(work: Path, name: str) -> None:
    """Train the base of a trial, where it has one of its own."""
    if keys := dict(TRIALS[name].base):
        seed = int(keys.pop("seed"))
        make(base_of(work, name), BASE_RECIPE, {"model.path": TRIALS[name].start, **keys}, seed)


def train_one(work: Path, name: str, side: str, seed: int, recipe: str) -> Path:
    """Train one side of a trial with one seed; its folder."""
    run, start = run_of(work, name, side, seed), {"model.path": base_model(work, name)}
    make(run, recipe, {**SHORT, **start, **TRIALS[name].runs[side]}, seed)
    return run
