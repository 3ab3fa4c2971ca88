"""``exam``: 150 prompts of our own, each with 2 to 6 questions that a judge answers by yes or no.

It is TA-*style*: the paper judges its text alignment (TA) by points, too, and its 150 prompts are not published; these
were written for this package. Marks: docs/rewards-judge.md, after TIFA (2303.11897) and DSG (2310.18235).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from typing import Any

from unigrpo.evaluation.judged import BATCH, Judged, about_judge, digest_of, judge_of, record, version_of
from unigrpo.evaluation.statistics import mean
from unigrpo.files import parse_json_object
from unigrpo.rewards import judge_asking
from unigrpo.rewards.judge import Examined, JudgeExam
from unigrpo.rewards.judge_asking import Picture
from unigrpo.trajectory import Prompt

NAME = "exam"
FILE = "exam.jsonl"
HEADLINE, AVERAGE = "exam", "pictures"
MARKS = ("soft", "hard", "geometric", "all")


def prompts() -> list[Prompt]:
    """The 150 prompts; their metadata holds category and points."""
    lines = (resources.files("unigrpo") / "assets" / FILE).read_text(encoding="utf-8").splitlines()
    rows = [parse_json_object(line, f"{FILE}, line {number}") for number, line in enumerate(lines, 1)]
    return [
        Prompt(place, row["prompt"], {key: value for key, value in row.items() if key != "prompt"})
        for place, row in enumerate(rows)
    ]


def version() -> str:
    """The hash of the prompts and their points."""
    return version_of(prompts())


def figures(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The means of all marks over the pictures that have them, and how many have none."""
    marks = {mark: mean([one["values"][mark] for one in records]) for mark in MARKS}
    return {**marks, "unanswered": sum(one["failed"] is not None for one in records)}


class ExamExaminer(Judged):
    """Asks the points of each prompt (metadata key points); exam is the soft mark, correct is every point right."""

    def __init__(self, *, judge: Mapping[str, Any], batch: int = BATCH) -> None:
        """judge: arguments of ``judge/exam`` (url, model, key_env, mode, ...); batch: pictures asked about together."""
        self._judge = judge_of(JudgeExam, NAME, judge)
        words = [judge_asking.ONE, judge_asking.AGAIN, judge_asking.MANY, judge_asking.AGAIN_MANY]
        template = {"source": "unigrpo", "version": judge_asking.VERSION, "sha256": digest_of(words)}
        about = {**about_judge(NAME, self._judge, template, []), "mode": self._judge.mode}
        super().__init__(about, batch, "points")

    async def examine(self, pictures: Sequence[Picture], prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        """The records of one batch."""
        texts, metadata = [prompt.text for prompt in prompts], [prompt.metadata for prompt in prompts]
        sat = await self._judge.examined(pictures, texts, metadata)
        return [_record(prompt, one) for prompt, one in zip(prompts, sat, strict=True)]


def _record(prompt: Prompt, sat: Examined) -> dict[str, Any]:
    """What is known of one picture; the reasons are the questions that it failed, with their right answer."""
    said = [yes if isinstance(yes, float) else None for yes in sat.answers]
    detail = {"yes": {point.id: yes for point, yes in zip(sat.points, said, strict=True)}}
    if sat.grade is None:
        values: dict[str, float | None] = dict.fromkeys(MARKS)
        return record(prompt, correct=None, exam=None, values=values, failed=sat.failure, detail=detail)
    wrong = [p for p, yes in zip(sat.points, said, strict=True) if yes is not None and (yes > 0.5) != p.expected]
    return record(
        prompt,
        correct=sat.grade.all == 1.0,
        exam=sat.grade.soft,
        values=asdict(sat.grade),
        reasons=[f"{point.question} (should be {'yes' if point.expected else 'no'})" for point in wrong],
        detail=detail,
    )
