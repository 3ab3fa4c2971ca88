"""From the records of pictures to figures: the headline, every category, further ones, each with its interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unigrpo.evaluation.statistics import judged_difference, judged_interval
from unigrpo.evaluation.suites import UNSEEN, Average, Figures
from unigrpo.plurals import counted

MAX_FAILED_SHARE = 0.2
"""Share of pictures without an answer above which there is no headline: the rest may be the easy ones."""
NAMES = {"correct": "score", "exam": "exam score"}
"""What the figures of :data:`unigrpo.evaluation.suites.KEYS` are called for people; values have their own names."""

Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Measure:
    """A figure of every record: ``key`` is correct, exam or the name of a value; ``average``: what it is a mean of."""

    key: str
    average: Average = "pictures"

    @property
    def name(self) -> str:
        """What it is called for people."""
        return NAMES.get(self.key, self.key.replace("_", " "))

    def of(self, records: Records) -> NDArray[np.float64]:
        """The figure of every record [N]; NaN where it has none."""
        found = [r.get(self.key) if self.key in NAMES else r["values"].get(self.key) for r in records]
        return np.array([np.nan if value is None else float(value) for value in found], dtype=np.float64)

    def strata(self, records: Records) -> list[str] | None:
        """What the mean is taken over first."""
        return [r["category"] for r in records] if self.average == "categories" else None


def measures(records: Records, headline: str, average: Average) -> list[Measure]:
    """All figures that these records have: the headline's first, then those of the contract, then values by name.

    What is right is averaged as the headline is; all others are means over pictures.
    """
    named = dict.fromkeys(["correct", "exam", *(name for r in records for name in r["values"])])
    others = [Measure(key, average if key == "correct" else "pictures") for key in named if key != headline]
    known = [m for m in others if not np.isnan(m.of(records)).all()] if records else []
    return [Measure(headline, average), *known]


def figures(
    records: Records, *, headline: str, average: Average, expected: int | None = None, further: Figures | None = None
) -> dict[str, Any]:
    """Sum up the records of an evaluation; ``expected``: pictures that there should be (None: those that there are).

    headline: the figure that is quoted, with its 95 % interval over prompts, or why there is none. categories: the same
    by category. figures: all that the records know, by name. failed: how many pictures have no answer, and why most of
    them; they count in no figure.
    """
    asked, first = max(len(records), expected or 0), Measure(headline, average)
    failed = [r["failed"] for r in records if r["failed"] is not None]
    seen = [r for r in records if r["detail"] != UNSEEN]
    lacking = len(failed) + asked - len(records)
    quoted = {"name": first.name, "key": headline, "average": average, **_interval(first, records)}
    if asked and lacking > MAX_FAILED_SHARE * asked:
        share = (
            f"{lacking} of {counted(asked, 'picture')} have no answer ({lacking / asked:.0%}), "
            f"more than {MAX_FAILED_SHARE:.0%}"
        )
        quoted |= {"value": None, "low": None, "high": None, "why": f"no headline: {share}"}
    return {
        "headline": quoted,
        "categories": _by_category(first, records),
        "figures": {m.key: {"name": m.name, **_interval(m, records)} for m in measures(records, headline, average)},
        "further": dict(further(seen)) if further is not None and seen else {},
        "pictures": len(records),
        "prompts": len({r["position"] for r in records}),
        "missing": asked - len(records),
        "failed": {"count": len(failed), "reasons": [list(item) for item in Counter(failed).most_common(5)]},
    }


def _interval(measure: Measure, records: Records) -> dict[str, Any]:
    if not records:
        return {"value": None, "low": None, "high": None, "why": "there are no pictures"}
    return judged_interval(measure.of(records), [r["position"] for r in records], strata=measure.strata(records))


def _by_category(measure: Measure, records: Records) -> dict[str, Any]:
    """Every category in the order of its first prompt, with how many prompts, pictures and failed answers it has."""
    found = {}
    for name in dict.fromkeys(r["category"] for r in records):
        own = [r for r in records if r["category"] == name]
        counts = {"prompts": len({r["position"] for r in own}), "pictures": len(own)}
        counts["failed"] = sum(r["failed"] is not None for r in own)
        found[name] = {**_interval(Measure(measure.key), own), **counts}
    return found


def differences(before: Records, after: Records, headline: str, average: Average) -> dict[str, dict[str, Any]]:
    """after - before of every figure that both sides have, paired by prompt and sample, over the pictures of both.

    Each with its 95 % interval over prompts, or why there is none; prompts: those of which both sides know it. {} where
    they share no prompt.
    """
    theirs = {_identity(r): r for r in after}
    pairs = [(r, theirs[_identity(r)]) for r in before if _identity(r) in theirs]
    if not pairs:
        return {}
    left, right = [a for a, _ in pairs], [b for _, b in pairs]
    clusters, found = [r["position"] for r in left], {}
    for measure in measures(left, headline, average):
        sides = measure.of(left), measure.of(right)
        if any(np.isnan(side).all() for side in sides):
            continue
        paired = judged_difference(*sides, clusters, strata=measure.strata(left))
        known = [{c for c, value in zip(clusters, side, strict=True) if not np.isnan(value)} for side in sides]
        counts = {"prompts": len(known[0] & known[1]), "pictures": len(pairs)}
        found[measure.key] = {"name": measure.name, **counts, **paired}
    return found


def _identity(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """What two evaluations have in common where they drew the same prompt."""
    return record["position"], record["prompt"], record["category"], record["sample"]
