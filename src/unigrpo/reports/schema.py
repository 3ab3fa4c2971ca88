"""What the files of a run folder may hold: the types of their keys, for readers that say what is wrong, and where.

A schema names the keys that somebody computes with; keys that it does not name may hold anything. Every key may be
missing but those that are listed as needed. A dotted key is one of an object inside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Kind:
    """A type of values: in words for people, and as a test."""

    words: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class Schema:
    """The kinds of keys, and the keys that must be there."""

    kinds: Mapping[str, Kind]
    needed: Sequence[str] = ()
    inner: Mapping[str, Kind] = field(default_factory=dict)
    """Kinds of dotted keys, which the kind of the object around them does not look at."""


def _number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _flat(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_number, value.values()))


def _compared(value: Any) -> bool:
    ends = ("difference", "low", "high")
    return isinstance(value, dict) and all(
        isinstance(part, dict) and all(_number(part.get(end)) for end in ends) for part in value.values()
    )


def _alarms(value: Any) -> bool:
    texts = ("kind", "name", "title", "words")
    return isinstance(value, list) and all(
        isinstance(item, dict)
        and all(isinstance(item.get(key), str) for key in texts)
        and all(_number(item.get(key)) for key in ("value", "start", "limit", "iteration"))
        for item in value
    )


NUMBER = Kind("a number or null", _number)
COUNT = Kind("a whole number from 0", lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 0)
FLAG = Kind("true, false or null", lambda v: v is None or isinstance(v, bool))
TEXT = Kind("text", lambda v: isinstance(v, str))
WORDS = Kind("text or null", lambda v: v is None or isinstance(v, str))
TEXTS = Kind("a list of texts", lambda v: isinstance(v, list) and all(isinstance(item, str) for item in v))
OBJECT = Kind("an object", lambda v: isinstance(v, dict))
OBJECTS = Kind("a list of objects", lambda v: isinstance(v, list) and all(isinstance(item, dict) for item in v))
NUMBERS = Kind("an object of numbers", _flat)
ROWS = Kind("a list of objects of numbers", lambda v: isinstance(v, list) and all(map(_flat, v)))
ALARMS = Kind("a list of alarms, each with a kind, a name, a title and words", _alarms)
BANDS = Kind("an object of bands, each of numbers", lambda v: isinstance(v, dict) and all(map(_flat, v.values())))
COMPARED = Kind("an object of differences, each with low and high", _compared)


def _evaluated(where: str) -> dict[str, Kind]:
    """The figures of an evaluation, as keys inside an object."""
    names = ("score", "exam_score", "reward", "plan_right", "follow", "parsable", "changed", "kept")
    kinds = dict.fromkeys((*names, "rounds", "score_first", "reward_first", "revision"), NUMBER)
    kinds |= {"n": COUNT} | dict.fromkeys(("by_category", "reward_by_category", "canaries"), NUMBERS)
    return {f"{where}.{key}": kind for key, kind in kinds.items()}


_SINGLE = [
    "reward_mean",
    "reward_std",
    "reward_group_std",
    "zero_variance_share",
    "advantage_std",
    "think_length",
    "think_cut_share",
    "advantage_std_thinking",
    "failed_share",
    "samples_per_second",
    "rounds",
    "score_first",
    "score_last",
    "revision",
    "flops",
    "utilization",
]
_FLAT = [
    "reward_by_category",
    "reward_parts",
    "reward_values",
    "text",
    "image",
    "loss",
    "first_update",
    "rollout_gap",
    "grad_norm",
    "lr",
    "canaries",
    "seconds",
]
METRICS = Schema(
    {
        "iteration": COUNT,
        **dict.fromkeys(_SINGLE, NUMBER),
        **dict.fromkeys(_FLAT, NUMBERS),
        "flow": OBJECT,
        "by_round": ROWS,
        "validation": OBJECT,
        "no_signal": TEXTS,
        "failures": TEXTS,
        "alarms": ALARMS,
    },
    needed=("iteration",),
    inner={
        "flow.steps": ROWS,
        **dict.fromkeys(("flow.mse", "flow.latent_kl", "flow.ratio_mean", "flow.clip_fraction"), NUMBER),
        **_evaluated("validation"),
    },
)
SUMMARY = Schema(
    {"before": OBJECT, "after": OBJECT, "paired": COMPARED, "bands": BANDS, "alarms": ALARMS, "stopped": OBJECT},
    inner={
        **_evaluated("before"),
        **_evaluated("after"),
        "stopped.iterations": COUNT,
        "stopped.why": TEXT,
        "stopped.diverged": FLAG,
    },
)
ENVIRONMENT = Schema({"resumed": OBJECTS, "inputs": OBJECT})
RECORD = Schema(
    {
        "position": COUNT,
        "sample": COUNT,
        "prompt": TEXT,
        "thinking": WORDS,
        "category": TEXT,
        **dict.fromkeys(("reward", "exam", "advantage", "advantage_thinking", "changed", "kept"), NUMBER),
        "values": NUMBERS,
        "failure": WORDS,
        "rounds": OBJECTS,
        **dict.fromkeys(("correct", "parsable", "plan_right", "follow"), FLAG),
    }
)
VALIDATION = Schema(
    {
        "iteration": Kind("a whole number", lambda v: isinstance(v, int)),
        "position": Kind(
            "a list of whole numbers", lambda v: isinstance(v, list) and all(isinstance(item, int) for item in v)
        ),
    },
    needed=("iteration", "position"),
)
TRAINING_STATE = Schema({"done": COUNT, "recipe": TEXT, "reference": WORDS, "shards": TEXTS}, needed=("done",))
ANYTHING = Schema({})

_PLACES = {
    "metrics.jsonl": METRICS,
    "environment.json": ENVIRONMENT,
    "evaluations/summary.json": SUMMARY,
    "evaluations/before.jsonl": RECORD,
    "evaluations/after.jsonl": RECORD,
    "evaluations/validations.jsonl": VALIDATION,
}


def schema_of(path: Path) -> Schema:
    """The schema of a file by its place in a run folder; of any other file, one that allows everything."""
    inner = f"{path.parent.name}/{path.name}"
    return _PLACES.get(inner) or _PLACES.get(path.name) or (RECORD if path.parent.name == "samples" else ANYTHING)


def check(record: Json, schema: Schema, where: str, advice: str) -> None:
    """ValueError names the first key of a record that is missing or of another type."""
    for key in schema.needed:
        if key not in record:
            raise ValueError(f"{where} has no {key}: {advice}")
    for key, kind in schema.kinds.items():
        if key in record and not kind.holds(record[key]):
            raise _wrong(where, key, record[key], kind, advice)
    for dotted, kind in schema.inner.items():
        outer, key = dotted.split(".")
        if key in record.get(outer, {}) and not kind.holds(record[outer][key]):
            raise _wrong(where, dotted, record[outer][key], kind, advice)


def _wrong(where: str, key: str, value: Any, kind: Kind, advice: str) -> ValueError:
    shown = repr(value)
    shown = shown if len(shown) <= 40 else shown[:40] + "..."
    return ValueError(f"{where}: {key} is {shown}, not {kind.words}: {advice}")
