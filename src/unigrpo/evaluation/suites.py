"""A suite: prompts, who examines the pictures, and how the headline is averaged; and what an examiner answers.

Every suite goes one way: draw a folder of pictures, examine them, sum up the records. An examiner knows nothing of the
model that drew, so it can examine anybody's pictures.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Protocol

from torch import Tensor

from unigrpo.plurals import counted
from unigrpo.trajectory import Prompt

Record = dict[str, Any]
Average = Literal["categories", "pictures"]


class Examiner(Protocol):
    """Looks at pictures and says of each what is right with it.

    about: who examines, as plain JSON: detector or judge, model, versions, thresholds, hash of the template. It goes
    into the result, and results that differ in it are never put into one table without a mark.
    """

    @property
    def about(self) -> Mapping[str, Any]:
        """Who examines."""
        ...

    def __call__(
        self, pictures: Sequence[Tensor], prompts: Sequence[Prompt], thinking: Sequence[str | None]
    ) -> list[Record]:
        """Pictures uint8 [3, H, W], not all of one size -> one record for each, as :func:`answer` makes them."""
        ...


def answer(
    category: str,
    *,
    correct: bool | None = None,
    exam: float | None = None,
    reasons: Sequence[str] = (),
    values: Mapping[str, float | None] | None = None,
    detail: Any = None,
) -> Record:
    """The record of a picture that was examined.

    correct: right or wrong; exam: share of its points in [0, 1]; None where the suite has no such figure. reasons: what
    failed, in words. values: further figures by name. detail: what else is worth keeping, as plain JSON.
    """
    return {
        "category": category,
        "correct": correct,
        "exam": exam,
        "reasons": list(reasons),
        "failed": None,
        "values": dict(values or {}),
        "detail": detail,
    }


def no_answer(category: str, why: str, *, detail: Any = None) -> Record:
    """The record of a picture of which nothing is known, and why: it is never counted as wrong."""
    return {**answer(category, detail=detail), "failed": why or "no answer"}


UNSEEN = {"unseen": True}
"""The detail of a picture that could not be read, which no examiner was shown."""
Figures = Callable[[Sequence[Any]], Mapping[str, Any]]
"""Further figures of a suite, from the records of the pictures that its examiner was shown: a pure function."""


@dataclass(frozen=True)
class Suite:
    """What a model is evaluated on.

    name: as on the command line. prompts: all with ``category`` in their metadata. headline: what is averaged,
    ``correct``, ``exam`` or the name of one of the records' ``values``; average: over categories, each with the mean of
    its pictures, or over all pictures. further: more figures. variant: which wording of the prompts it is. note: what
    readers of the figures must know (which detector this is not). paper: the rows of the paper's tables to show beside.
    """

    name: str
    prompts: Sequence[Prompt]
    examiner: Examiner
    headline: str = "correct"
    average: Average = "categories"
    further: Figures | None = None
    variant: str = "as written"
    note: str = ""
    paper: Literal["geneval", "exam"] | None = None

    @cached_property
    def version(self) -> str:
        """A hash of the prompts, with all that is known of them and their pictures."""
        return version_of(self.prompts)

    def limited(self, limit: int | None) -> Suite:
        """The same with the first ``limit`` prompts."""
        return self if limit is None else replace(self, prompts=self.prompts[:limit])


def version_of(prompts: Sequence[Prompt]) -> str:
    """A hash of prompts, the first 16 digits of a SHA-256: their words, metadata and pictures, in order."""
    whole = hashlib.sha256()
    for prompt in prompts:
        whole.update(prompt_hash(prompt).encode())
    return whole.hexdigest()[:16]


def prompt_hash(prompt: Prompt) -> str:
    """A hash of one prompt, its position left out: the same prompt in two suites has one hash."""
    known = {"prompt": prompt.text, "metadata": dict(prompt.metadata)}
    whole = hashlib.sha256(json.dumps(known, sort_keys=True, ensure_ascii=False, default=str).encode())
    for image in prompt.images:
        whole.update(repr(tuple(image.shape)).encode() + image.cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()[:16]


def category_of(prompt: Prompt) -> str:
    """The category of a prompt: its metadata's ``category``, or GenEval's ``tag``, else "all"."""
    return str(prompt.metadata.get("category") or prompt.metadata.get("tag") or "all")


KEYS = ("category", "correct", "exam", "reasons", "failed", "values", "detail")


def checked(records: Sequence[Record], pictures: int, who: str) -> list[Record]:
    """Records as an examiner gave them; ValueError where they are not one for each picture, or not as promised.

    A figure that is not finite is a failed answer, which is never counted as 0.
    """
    if len(records) != pictures:
        raise ValueError(
            f"{who} gave {counted(len(records), 'record')} for {counted(pictures, 'picture')}: it must give "
            "one for each"
        )
    return [_checked(record, who) for record in records]


def _checked(record: Record, who: str) -> Record:
    if missing := [key for key in KEYS if key not in record]:
        raise ValueError(
            f"{who} gave a record without {', '.join(missing)}: records are made by answer() or no_answer()"
        )
    numbers = {"exam": record["exam"], **record["values"]}
    wrong = [name for name, value in numbers.items() if value is not None and not math.isfinite(value)]
    if record["failed"] is None and not wrong:
        return record
    why = record["failed"] or f"{wrong[0]} is {numbers[wrong[0]]}"
    unknown = dict.fromkeys(record["values"])  # by their names, which further figures may ask for
    return {**record, "correct": None, "exam": None, "reasons": [], "failed": str(why), "values": unknown}
