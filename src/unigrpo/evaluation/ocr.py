"""``ocr``: 60 prompts of our own that ask for words in the picture, read by rapidocr; no judge is asked.

exam is max(0, 1 - d / |words|) with the edit distance d (Flow-GRPO, 2505.05470; docs/rewards-ocr.md), correct is that
the picture says the words and no more; case and white space do not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from torch import Tensor

from unigrpo import version as versions
from unigrpo.evaluation.judged import record, version_of
from unigrpo.evaluation.statistics import mean
from unigrpo.files import parse_json_object
from unigrpo.plurals import counted
from unigrpo.rewards.ocr import PACKAGES, OcrText, closeness, plain, wanted_word
from unigrpo.trajectory import Prompt

NAME = "ocr"
FILE = "ocr.jsonl"
HEADLINE, AVERAGE = "correct", "categories"
VALUES = ("exact", "similarity", "contained")


def prompts() -> list[Prompt]:
    """The 60 prompts; their metadata holds category and word."""
    lines = (resources.files("unigrpo") / "assets" / FILE).read_text(encoding="utf-8").splitlines()
    rows = [parse_json_object(line, f"{FILE}, line {number}") for number, line in enumerate(lines, 1)]
    return [
        Prompt(place, row["prompt"], {"category": row["category"], "word": row["word"]})
        for place, row in enumerate(rows)
    ]


def version() -> str:
    """The hash of the prompts and their words."""
    return version_of(prompts())


def figures(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The means of all values over the pictures that could be read, and how many could not."""
    means = {name: mean([one["values"][name] for one in records]) for name in VALUES}
    return {**means, "unanswered": sum(one["failed"] is not None for one in records)}


class OcrExaminer:
    """Reads pictures one by one; a value ``contained`` is the similarity that Flow-GRPO trains on, 1 for any text that
    holds the words among others.
    """

    def __init__(self, *, detect: bool = True, upscale: float = 1.0, threads: int = 0) -> None:
        """detect: find lines of text first (False: a picture is one line); upscale: enlarge before reading; threads: of
        the reader, 0 is as many as torch has.
        """
        self._reader = OcrText(detect=detect, upscale=upscale, threads=threads)
        self.about: Mapping[str, Any] = {
            "suite": NAME,
            "name": NAME,
            "reader": "rapidocr",
            "parameters": {"detect": detect, "upscale": upscale},
            "packages": {package: versions.of(package) for package in ("unigrpo", *PACKAGES)},
        }

    def __call__(
        self, pictures: Sequence[Tensor], prompts: Sequence[Prompt], thinking: Sequence[str | None]
    ) -> list[dict[str, Any]]:
        """One record for each picture uint8 [3, H, W]."""
        if len(pictures) != len(prompts):
            raise ValueError(
                f"{counted(len(pictures), 'picture')} and {counted(len(prompts), 'prompt')}: "
                "every picture needs its own"
            )
        return [self._record(pictures[place], prompt) for place, prompt in enumerate(prompts)]

    def _record(self, picture: Tensor, prompt: Prompt) -> dict[str, Any]:
        word = wanted_word(prompt.text, prompt.metadata)
        nothing: dict[str, float | None] = dict.fromkeys(VALUES)
        if word is None or not plain(word):
            why = "its prompt names no words: give metadata the key word, or put them in double quotes"
            return record(prompt, correct=None, exam=None, values=nothing, failed=why)
        (read,) = self._reader.read(picture[None].float() / 255.0)
        said, wanted = plain(read), plain(word)
        values = {
            "exact": float(said == wanted),
            "similarity": closeness(said, wanted),
            "contained": closeness(said, wanted, contained=True),
        }
        wrong = [] if said == wanted else [f"reads {read!r} for {word!r}"]
        exam, correct = values["similarity"], said == wanted
        return record(prompt, correct=correct, exam=exam, values=values, reasons=wrong, detail={"read": read})
