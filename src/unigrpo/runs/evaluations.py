"""An evaluation from beginning to end: one of a model, and one of a folder that anybody drew."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unigrpo.evaluation.evaluator import OF_EDITS, of_rounds, summarise
from unigrpo.evaluation.suites import Record, Suite
from unigrpo.files import read_json_object
from unigrpo.policy import Policy
from unigrpo.runs import eval_folder
from unigrpo.runs.eval_ranks import Ranks
from unigrpo.runs.evaluating import Clock, Drawing, begun, draw, plan_of, told_where
from unigrpo.runs.examining import examine, result_of, write_result
from unigrpo.runs.folders import usable
from unigrpo.runs.locks import LOCK, hold

OLD = ("reward", "plan_right", "follow", "parsable", *OF_EDITS)
"""Values of a record that a summary has by name."""


@dataclass(frozen=True)
class Outcome:
    """What came of an evaluation: the result as result.json has it, and one record per picture."""

    result: dict[str, Any]
    records: list[Record]

    @property
    def summary(self) -> dict[str, Any]:
        """The plain figures of :func:`unigrpo.evaluation.evaluator.summarise`, with the settings."""
        flat = [_whole(record) for record in self.records]
        return {**summarise(flat), "settings": self.result["settings"]}


def _whole(record: Record) -> Record:
    """A record as :func:`summarise` takes it, with its rounds where it has several."""
    rounds = {"rounds": [_flat(one) for one in record["rounds"]]} if "rounds" in record else {}
    return _flat(record) | rounds


def _flat(record: Record) -> Record:
    """A record with those values beside its other figures; a thinking without a picture as it is."""
    return {**record, **{name: record["values"].get(name) for name in OLD}} if "values" in record else record


def evaluate(
    policy: Policy,
    suite: Suite,
    drawing: Drawing,
    *,
    model: Mapping[str, Any],
    out: Path,
    ranks: Ranks | None = None,
    examined: bool = True,
) -> Outcome | None:
    """Draw what is missing in the folder ``out`` and examine what has no answer; None where only to draw was asked.

    ``model``: its name and the hash of its weights. On several ranks the first one examines, and the others give None.
    Ctrl-C says what is there.
    """
    here, clock = ranks or Ranks(), Clock()
    with begun(out, plan_of(policy, suite, drawing, model), suite, here):
        try:
            with clock.timed("drawing"):
                draw(policy, suite, drawing, out, here)
            if not examined or not here.first:
                return None
            return _examined(out, out, suite, str(model["name"]), drawing.samples, clock)
        except KeyboardInterrupt:
            print(told_where(out, suite, drawing.samples), file=sys.stderr, flush=True)
            raise


def score(folder: Path, out: Path, suite: Suite, model: str) -> Outcome:
    """Examine a folder of pictures; ``model``: what is known of who drew them, where no eval.json says it."""
    usable(out)
    with hold(out / LOCK):
        return _examined(folder, out, suite, model, drawn_samples(folder), Clock())


def _examined(folder: Path, out: Path, suite: Suite, model: str, samples: int | None, clock: Clock) -> Outcome:
    with clock.timed("examining"):
        records, held = examine(folder, out, suite, samples)
    result = result_of(folder, suite, records, held, clock.seconds, model)
    if rounds := of_rounds([_whole(record) for record in records]):
        result["rounds"] = rounds
    write_result(folder, out, result, records)
    return Outcome(result, records)


def drawn_samples(folder: Path) -> int | None:
    """How many pictures of each prompt a folder should have, where its eval.json says so."""
    path = folder / eval_folder.PLAN
    return read_json_object(path).get("settings", {}).get("samples") if path.is_file() else None
