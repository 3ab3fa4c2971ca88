"""What differs between WISE's two editions (docs/judged-suites.md#wise): judge, categories, weights, words, scores."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

CATEGORIES = ("CULTURE", "TIME", "SPACE", "BIOLOGY", "PHYSICS", "CHEMISTRY")
NAMED = {
    "cultural knowledge": "CULTURE",
    "time": "TIME",
    "space": "SPACE",
    "biology": "BIOLOGY",
    "physical knowledge": "PHYSICS",
    "chemistry": "CHEMISTRY",
}
"""The categories as the files name them, in small letters."""
KEYS = ("Prompt", "Explanation", "Category", "Subcategory", "prompt_id")
SCORES = {"consistency": 7, "realism": 2, "aesthetic quality": 1}
"""The three scores of the legacy edition, with their weights in tenths."""
FILES = ("cultural_common_sense", "spatio-temporal_reasoning", "natural_science")
ASKED = "build_evaluation_messages"
Which = Literal["verified", "legacy"]


@dataclass(frozen=True)
class Edition:
    """What differs: the judge, where categories end (by id), their weights, the script, and its request."""

    name: Which
    judges: tuple[str, ...]
    ends: tuple[int, ...]
    weights: tuple[float, ...]
    script: str
    folder: str
    suffix: str
    max_tokens: int
    extra: Mapping[str, Any]
    own: str

    def category(self, number: int) -> str:
        """The category of a prompt_id in 1..1000."""
        return next(name for name, end in zip(CATEGORIES, self.ends, strict=True) if number <= end)

    def names(self, stem: str) -> bool:
        """Whether a file of this name, without its ending, is one of this edition's official files."""
        if self.name == "verified":
            return stem == "merge" or stem in [f"{name}_verified" for name in FILES]
        return stem.removesuffix("_rewrite") in FILES


VERIFIED = Edition(
    name="verified",
    judges=("Qwen3.5-35B-A3B",),
    ends=(400, 520, 640, 760, 880, 1000),
    weights=(0.4, 0.12, 0.12, 0.12, 0.12, 0.12),
    script="vllm_eval.py",
    folder="data_verified",
    suffix="_verified.json",
    max_tokens=500,
    extra={"chat_template_kwargs": {"enable_thinking": False}},
    own=(
        "A picture was drawn for a prompt that takes knowledge to understand. Prompt: {Prompt}\n"
        "What a right picture shows: {Explanation}\n"
        "Judge by what is visible. The score is 1 if the picture clearly shows what the prompt means by this "
        "explanation and has no faults that keep it from being recognised; beauty and style do not count. In every "
        'other case, and in doubt, it is 0. Answer with one line and nothing else: "Score: 1" or "Score: 0".'
    ),
)
LEGACY = Edition(
    name="legacy",
    judges=("gpt-4o-2024-05-13",),
    ends=(400, 567, 700, 800, 900, 1000),
    weights=(0.4, 0.167, 0.133, 0.1, 0.1, 0.1),
    script="gpt_eval.py",
    folder="WISE_legacy/data",
    suffix=".json",
    max_tokens=2000,
    extra={},
    own=(
        "A picture was drawn for a prompt that takes knowledge to understand. Prompt: {Prompt}\n"
        "What a right picture shows: {Explanation}\n"
        "Judge it strictly, with three whole numbers from 0 (fails) over 1 (in part) to 2 (without any fault): "
        "consistency with prompt and explanation, realism, and aesthetic quality. Answer with three lines and nothing "
        "else, such as\nConsistency: 1\nRealism: 0\nAesthetic Quality: 1"
    ),
)
EDITIONS = (VERIFIED, LEGACY)


def read_score(text: str, tokens: Sequence[Any] = ()) -> list[float] | None:
    """0 or 1 from "Score: 1", or from a line that is nothing else; None for none, or for several that differ."""
    found = re.findall(r"\bscore\W{0,8}?([01])\b", text, re.IGNORECASE)
    found = found or re.findall(r"^\s*([01])\s*$", text, re.MULTILINE)
    return [float(found[0])] if len(set(found)) == 1 else None


def read_scores(text: str, tokens: Sequence[Any] = ()) -> list[float] | None:
    """Halves of the three scores (0, 0.5, 1), by their names or from three lines of one number each.

    None where one is missing or above 2; the official script takes any digit there.
    """
    named = {
        name: re.findall(rf"\b{name.replace(' ', r'[ _]')}\W{{0,8}}?(\d+)\b(?!\.\d)", text, re.IGNORECASE)
        for name in SCORES
    }
    found = [values[0] for values in named.values() if len(set(values)) == 1]
    if not any(named.values()):
        found = re.findall(r"^\s*([0-2])\s*$", text, re.MULTILINE)
    whole = len(found) == len(SCORES) and all(value in ("0", "1", "2") for value in found)
    return [int(value) / 2 for value in found] if whole else None
