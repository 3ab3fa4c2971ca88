"""The words world's judge of evaluations: what an OCR reads is compared with the prompt and with the plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from unigrpo.trajectory import Prompt
from unigrpo.worlds.words.planner import parse_plan, plan_satisfies
from unigrpo.worlds.words.prompts import wanted

Read = Callable[[Tensor], Sequence[str]]
"""Pictures float [B, 3, 16, 48] in [0, 1] -> what each says, in capitals and without spaces."""


def judge_pictures(
    read: Read, images: Tensor, prompts: Sequence[Prompt], thinking: Sequence[str | None]
) -> list[dict[str, Any]]:
    """One record per picture for the evaluation.

    correct: the picture says the word, and no more; exam: the share of points met, one for every letter at its place in
    what is read and one for the length; reward: the same; plan_right: the plan says the word (an unparsable plan is
    wrong); follow: the picture says what the plan says (None for an unparsable plan, or without thinking).
    """
    records = []
    for said, prompt, text in zip(read(images), prompts, thinking, strict=True):
        word, plan = wanted(prompt.metadata), None if text is None else parse_plan(text)
        points = [(f"letter {i + 1} is {letter}", said[i : i + 1] == letter) for i, letter in enumerate(word)]
        points.append((f"{len(word)} letters", len(said) == len(word)))
        exam = sum(met for _, met in points) / len(points)
        records.append(
            {
                "category": prompt.metadata["category"],
                "correct": said == word,
                "exam": exam,
                "reward": exam,
                "points": [[question, met] for question, met in points],
                "read": said,
                "parsable": None if text is None else plan is not None,
                "plan_right": None if text is None else plan is not None and plan_satisfies(plan, prompt.metadata),
                "follow": None if plan is None else said == plan.says,
            }
        )
    return records
