"""GenEval: its prompt file, pictures examined by a detector and the rules, and the figures of its summary.

Source: GenEval (arXiv 2310.11513); docs/geneval.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from unigrpo.evaluation import geneval_rules as rules
from unigrpo.evaluation.detectors import Detector
from unigrpo.evaluation.geneval_metadata import EXAMPLE, Asked, check
from unigrpo.evaluation.geneval_rules import DetectionError, Found, judge, kept, uncoloured
from unigrpo.evaluation.statistics import mean
from unigrpo.geneval_names import TAGS
from unigrpo.ranges import ConfigError, shown
from unigrpo.trajectory import Prompt

METADATA = ("tag", "include", "exclude")
_ASKED = "10ac1eb1892e645c"
_WORDED = "55cc214a81ab0201"


class Geneval:
    """Examines pictures by GenEval's rules; only with the official detector may their score be called GenEval.

    Prompts must have GenEval's metadata (ConfigError). A picture whose detections cannot be judged has no answer, and
    ``failed`` says why. ``detail``: the metadata that were ``asked``, and ``found``, by class, the detections that
    count as ``[x0, y0, x1, y1, score, color]``, the most confident first: enough to judge again by the rules.
    """

    def __init__(self, *, detector: Detector) -> None:
        self._detector = detector
        self.about: Mapping[str, Any] = {
            "rules": "geneval",
            "threshold": rules.THRESHOLD,
            "counting_threshold": rules.COUNTING_THRESHOLD,
            "max_objects": rules.MAX_OBJECTS,
            "detector": dict(detector.about),
        }

    def __call__(
        self, pictures: Sequence[Tensor], prompts: Sequence[Prompt], thinking: Sequence[str | None]
    ) -> list[dict[str, Any]]:
        """Records of pictures uint8 [3, H, W], which need not be of one size."""
        return [self._record(picture, prompt) for picture, prompt in zip(pictures, prompts, strict=True)]

    def _record(self, picture: Tensor, prompt: Prompt) -> dict[str, Any]:
        try:
            asked = check(prompt.metadata)
        except ConfigError as error:
            raise ConfigError(f"the prompt {shown(prompt.text)}: {error}") from error
        about = {"prompt": prompt.text, **{key: prompt.metadata[key] for key in METADATA if key in prompt.metadata}}
        answer = {"category": asked.tag, "correct": None, "exam": None, "reasons": [], "failed": None, "values": {}}
        try:
            correct, reasons, found = self._judged(picture, prompt, asked)
        except DetectionError as error:
            return {**answer, "failed": str(error), "detail": {"asked": about, "found": None}}
        return {**answer, "correct": correct, "reasons": reasons, "detail": {"asked": about, "found": _short(found)}}

    def _judged(
        self, picture: Tensor, prompt: Prompt, asked: Asked
    ) -> tuple[bool, list[str], Mapping[str, Sequence[Found]]]:
        """The verdict on one picture, and what of its detections counts."""
        detections = self._detector(picture, asked.coloured)
        found = kept(asked.tag, detections)
        if (name := uncoloured(asked, found)) is not None:
            raise DetectionError(f"the detector gave a {name} without a colour, and its colour is asked for")
        verdict = judge(prompt.metadata, detections)
        return verdict.correct, verdict.reasons, found


def _short(found: Mapping[str, Sequence[Found]]) -> dict[str, list[list[float | str | None]]]:
    return {name: [[*one.box, one.score, one.colour] for one in group] for name, group in found.items()}


def figures(records: Sequence[Mapping[str, Any]]) -> dict[str, float | int | None]:
    """The figures of GenEval's summary, from records of :class:`Geneval`; None where no picture says anything.

    A mean by category, ``overall`` (the mean of these: each counts the same, however many prompts it has),
    ``correct_images``, and ``correct_prompts``, the share of prompts with at least one correct picture, which grows
    with the number of pictures; ``images`` and ``prompts`` that have an answer, and ``failed``: pictures without one,
    which count in none of the shares.
    """
    known = [record for record in records if record["correct"] is not None]
    by_tag: dict[str, list[bool]] = {}
    by_prompt: dict[str, list[bool]] = {}
    for record in known:
        by_tag.setdefault(record["category"], []).append(record["correct"])
        by_prompt.setdefault(json.dumps(record["detail"]["asked"], sort_keys=True), []).append(record["correct"])
    means = {tag: mean(by_tag.get(tag, [])) for tag in TAGS}
    return {
        "overall": mean(list(means.values())),
        **means,
        "correct_images": mean([record["correct"] for record in known]),
        "correct_prompts": mean([any(group) for group in by_prompt.values()]),
        "images": len(known),
        "prompts": len(by_prompt),
        "failed": len(records) - len(known),
    }


def read_prompts(path: Path | str) -> list[Prompt]:
    """The prompts of a file such as GenEval's ``evaluation_metadata.jsonl``, in its order; every line is checked.

    Their metadata have ``category`` = ``tag`` besides what the line holds. ConfigError names the file and the line.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as GenEval's evaluation_metadata.jsonl: {error}") from error
    prompts = [_line(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise ConfigError(f"{path} holds no prompts: a line of GenEval's prompt file is such as {EXAMPLE}")
    return [Prompt(position, text, metadata) for position, (text, metadata) in enumerate(prompts)]


def _line(line: str, where: str) -> tuple[str, dict[str, Any]]:
    """The text and the metadata of one line."""
    try:
        written = json.loads(line)
        asked = check(written)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where} is no JSON ({error}): it must be a line such as {EXAMPLE}") from error
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    text = written.get("prompt")
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"{where}: prompt = {shown(text)} must be the words to draw by")
    return text, {**{key: value for key, value in written.items() if key != "prompt"}, "category": asked.tag}


def variant(prompts: Sequence[Prompt]) -> Literal["official", "rewritten", "other prompts"]:
    """Which list this is: GenEval's own 553 prompts, the same tasks in other words (BAGEL's long prompts), or another.

    Scores of different variants are not comparable.
    """
    tasks = [{key: p.metadata.get(key) for key in METADATA} for p in prompts]
    if _hash(tasks) != _ASKED:
        return "other prompts"
    return "official" if _hash([p.text for p in prompts]) == _WORDED else "rewritten"


def _hash(things: Any) -> str:
    return hashlib.sha256(json.dumps(things, sort_keys=True).encode()).hexdigest()[:16]
