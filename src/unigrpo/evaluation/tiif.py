"""``tiif``: TIIF-Bench (2506.02161), read from the user's clone of A113N-W3I/TIIF-Bench (no licence: not shipped).

A folder ``data/testmini_prompts`` (or ``data/test_prompts``) holds the prompts of 39 types, each short and long, and
``..._eval_prompts`` beside it the yes/no questions, tied to the prompts by nothing but their order. All questions of a
picture are asked in one request, one line for each answer. Accuracy of a type and length = right answers / questions;
a group = mean of its types; overall = mean of nine groups. Source: eval/ of the repository (3aae750).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unigrpo.evaluation.judged import (
    BATCH,
    Judged,
    about_judge,
    check_judge,
    digest_of,
    judge_of,
    record,
    template_of,
    version_of,
)
from unigrpo.evaluation.official import Row, lines_of, script
from unigrpo.evaluation.statistics import mean
from unigrpo.plurals import counted
from unigrpo.ranges import ConfigError, shown
from unigrpo.rewards.judge import JudgeReader
from unigrpo.rewards.judge_asking import Chat, Picture
from unigrpo.rewards.judge_endpoint import NoAnswer
from unigrpo.trajectory import Prompt

NAME = "tiif"
HEADLINE, AVERAGE = "exam", "categories"
JUDGES = ("gpt-4o", "Qwen2.5-VL-72B-Instruct")
"""Those that the repository has results of; which one it was is part of the result."""
PROMPTS, QUESTIONS = "_prompts", "_eval_prompts"
SUITES = ("testmini", "test")
LENGTHS = ("short", "long")
SCRIPT, TEMPLATES, HOLE = "eval/eval_with_vlm.py", ("raw_prompt", "raw_prompt_1", "raw_prompt_2"), "##YNQuestions##"
OWN = (
    "Look carefully at the picture and answer these questions about it.\n##YNQuestions##\n"
    "Write one line for every question, in their order, that begins with yes or no and then gives the reason. "
    "Write nothing else."
)
"""How we ask where the official script is not above the prompts; results then compare with no published ones."""
GROUPS = {
    "basic/attribute": ("shape+color", "color+texture", "texture+color", "shape+texture"),
    "basic/relation": ("2d_spatial_relation", "3d_spatial_relation", "action+2d", "action+3d"),
    "basic/reasoning": ("numeracy", "negation", "differentiation", "comparison"),
    "advanced/attribute+relation": tuple(f"{a}+{b}" for a in ("action",) for b in ("color", "texture"))
    + tuple(f"{a}+{b}" for a in ("color", "shape", "texture") for b in ("2d", "3d")),
    "advanced/attribute+reasoning": tuple(
        f"{a}+{b}" for a in ("numeracy", "comparison", "differentiation", "negation") for b in ("color", "texture")
    ),
    "advanced/relation+reasoning": tuple(
        f"{a}+{b}" for a in ("numeracy", "comparison", "differentiation", "negation") for b in ("2d", "3d")
    ),
    "advanced/text": ("text",),
    "advanced/style": ("style",),
    "real_world": ("real_world",),
}
"""The nine groups of types whose mean is the overall score."""
TYPES = frozenset(kind for kinds in GROUPS.values() for kind in kinds)
WITHOUT = "there is nothing to ask of its pictures"
COMMON = frozenset(
    re.findall("[a-z]+", "the and image there any are does has have its this that with which style text")
)


def prompts(path: str) -> list[Prompt]:
    """The prompts of a folder or of one file in it, every row short and then long, with their questions."""
    found: list[Prompt] = []
    for asked, questions in _pairs(path):
        for row, exam in _rows(asked, questions):
            kind, metadata = row.words("type"), _metadata(row, exam)
            for length in LENGTHS:
                text = row.words(f"{length}_description")
                found.append(Prompt(len(found), text, {"category": kind, "length": length, **metadata}))
    return found


def version(path: str) -> str:
    """The hash of the prompts and their questions."""
    return version_of(prompts(path))


def _pairs(path: str) -> list[tuple[Path, Path]]:
    """The files of prompts that a path means, each with that of its questions; ConfigError where one has none."""
    place = Path(path).expanduser()
    folder = place if place.is_dir() else place.parent
    if not folder.name.endswith(PROMPTS) or folder.name.endswith(QUESTIONS):
        known = " or ".join(f"data/{suite}{PROMPTS}" for suite in SUITES)
        raise ConfigError(f"{NAME}: {path} is no folder of prompts of TIIF-Bench: name {known} in a clone of it")
    files = sorted(place.glob(f"*{PROMPTS}.jsonl")) if place.is_dir() else [place]
    if not files:
        raise ConfigError(f"{NAME}: {path} holds no file *{PROMPTS}.jsonl: name data/testmini_prompts of a clone")
    beside = folder.with_name(folder.name.removesuffix(PROMPTS) + QUESTIONS)
    pairs = [(file, beside / f"{file.stem.removesuffix(PROMPTS)}{QUESTIONS}.jsonl") for file in files]
    for file, questions in pairs:
        if not questions.is_file():
            raise ConfigError(
                f"{NAME}: {file} has no question list: {questions} is not there; get it from the repository"
            )
    return pairs


def _rows(asked: Path, questions: Path) -> list[tuple[Row, Row]]:
    """Rows of prompts with those of their questions."""
    left, right = lines_of(asked), lines_of(questions)
    if len(left) != len(right):
        raise ConfigError(
            f"{asked} has {len(left)} prompts and {questions} {len(right)} lists of questions, which belong together "
            "by their order: get both from one version of the repository"
        )
    return list(zip(left, right, strict=True))


def _metadata(row: Row, exam: Row) -> dict[str, Any]:
    """Questions and answers of a row."""
    kind, other = row.words("type"), exam.words("type")
    if kind not in TYPES or other != kind:
        raise ConfigError(
            f"{exam.where}: type {shown(other)} for a prompt of type {shown(kind)}: get the official files"
        )
    questions = exam.several("yn_question_list", WITHOUT)
    answers = exam.several("yn_answer_list", "its questions have no right answers")
    if len(questions) != len(answers):
        raise ConfigError(
            f"{exam.where} has {counted(len(questions), 'question')} and {counted(len(answers), 'answer')}: get the "
            "official file"
        )
    if wrong := [q for q in questions if not isinstance(q, str) or not q.strip()]:
        raise ConfigError(f"{exam.where}: {shown(wrong[0])} is no question: get the official file")
    if wrong := [a for a in answers if not isinstance(a, str) or a.strip().lower() not in ("yes", "no")]:
        raise ConfigError(f"{exam.where}: the answer {shown(wrong[0])} is neither yes nor no: get the official file")
    return {"questions": [q.strip() for q in questions], "answers": [a.strip().lower() for a in answers]}


def strangers(prompts: Sequence[Prompt]) -> dict[str, int]:
    """By type, how many prompts share no word with any of their questions: lists that may belong to other rows.

    They are asked all the same, as the official evaluation does. Styles, whose questions name nothing else, are not
    looked at.
    """
    found: dict[str, int] = {}
    for prompt in (one for one in prompts if one.metadata["category"] != "style"):
        asked = _words(" ".join(prompt.metadata["questions"])) - COMMON
        if prompt.metadata["length"] == "long" and asked and not asked & _words(prompt.text):
            found[prompt.metadata["category"]] = found.get(prompt.metadata["category"], 0) + 1
    return found


def _words(text: str) -> set[str]:
    return {word.rstrip("s") for word in re.findall(r"[a-z]{3,}", text.lower())}


def read_lines(text: str, count: int) -> list[float] | None:
    """1 for yes and 0 for no of each line that begins with one; None where these are not exactly ``count``."""
    said = [re.match(r"(yes|no)\b", line.strip(), re.IGNORECASE) for line in text.splitlines()]
    answers = [float(match[1].lower() == "yes") for match in said if match]
    return answers if len(answers) == count else None


def figures(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Accuracy by group and length, and overall of each length; None where a group was not asked or answered."""
    counts: dict[tuple[str, str], list[int]] = {}
    for one in records:
        if one["failed"] is None:
            total = counts.setdefault((one["category"], one["detail"]["length"]), [0, 0])
            total[0] += one["detail"]["right"]
            total[1] += one["detail"]["questions"]
    result: dict[str, Any] = {}
    for length in LENGTHS:
        shares = {kind: right / total for (kind, way), (right, total) in counts.items() if way == length}
        groups = {name: mean([shares.get(kind) for kind in kinds]) for name, kinds in GROUPS.items()}
        result |= {f"{name} ({length})": share for name, share in groups.items()}
        result[f"overall ({length})"] = mean(list(groups.values()))
    return {**result, "unanswered": sum(one["failed"] is not None for one in records)}


class TiifExaminer(Judged):
    """Asks a judge all questions of a picture at once; exam is the share of right answers, correct is all of them."""

    def __init__(self, *, judge: Mapping[str, Any], path: str, any_judge: bool = False, batch: int = BATCH) -> None:
        """judge: url, model, key_env, ...; path: the folder of prompts in a clone, above which the official script is
        looked for; any_judge: take another model than the official ones, which the name then says.
        """
        self._judge = judge_of(JudgeReader, NAME, judge, max_tokens=2048, top_logprobs=0)
        other = check_judge(NAME, self._judge.model, JUDGES, any_judge=any_judge)
        found = script(Path(path).expanduser(), SCRIPT)
        self.templates = [OWN] if found is None else [found.assigned(name) for name in TEMPLATES]
        if missing := [text for text in self.templates if HOLE not in text]:
            raise ConfigError(f"{NAME}: the template {shown(missing[0])} has no place for questions ({HOLE})")
        self.system = None if found is None else found.said("generate_with_prompt", "system")
        template, wording = template_of(found and SCRIPT, [self.system, self.templates], "questions")
        official = (
            "temperature 1 and one of three templates at random; here temperature 0, and the template is drawn from "
            "the hash of the questions"
        )
        suspects = strangers(prompts(path))
        about = {**about_judge(NAME, self._judge, template, [other, wording]), "official": official}
        about |= {"questions_without_a_word_of_their_prompt": suspects}
        super().__init__(about, batch, "questions", "answers", "length")

    async def examine(self, pictures: Sequence[Picture], prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        """The records of one batch."""
        asked = [(picture, self.chat(p.metadata["questions"])) for picture, p in zip(pictures, prompts, strict=True)]
        answers = await self._judge.read(asked)
        return [_record(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]

    def chat(self, questions: Sequence[str]) -> Chat:
        """The questions of a picture as they are asked."""
        listed, count = "\n".join(questions), len(questions)
        template = self.templates[int(digest_of(list(questions)), 16) % len(self.templates)]
        return Chat(
            words=template.replace(HOLE, listed),
            read=lambda text, tokens: read_lines(text, count),
            kind=f"tiif 1 {count}",
            wanted=f"{count} lines that begin with yes or no",
            again=f"These are not {count} answers. Write {count} lines, each beginning with yes or no, no more.",
            system=self.system,
            first=False,
        )


def _record(prompt: Prompt, answers: list[float] | NoAnswer) -> dict[str, Any]:
    questions, expected = prompt.metadata["questions"], prompt.metadata["answers"]
    detail: dict[str, Any] = {"length": prompt.metadata["length"], "questions": len(questions)}
    if isinstance(answers, NoAnswer):
        return record(prompt, correct=None, exam=None, values={}, failed=str(answers), detail=detail)
    right = [(yes > 0.5) == (answer == "yes") for yes, answer in zip(answers, expected, strict=True)]
    wrong = [f"{q} (should be {a})" for q, a, good in zip(questions, expected, right, strict=True) if not good]
    detail |= {"right": sum(right), "yes": answers}
    return record(prompt, correct=all(right), exam=sum(right) / len(right), values={}, reasons=wrong, detail=detail)
