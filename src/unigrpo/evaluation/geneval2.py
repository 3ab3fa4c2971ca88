"""``geneval2``: GenEval 2 (2512.16853), read from the user's ``geneval2_data.jsonl`` (CC BY-NC 4.0: never shipped).

Every prompt has a list of questions with their answers (``vqa_list``), for which a judge is asked; Soft-TIFA takes
p_i = P(right answer i), over all words that the judge could have begun with, and

    AM = (p_1 + ... + p_n) / n        GM = (p_1 ... p_n)^(1/n)

of a picture, averaged over pictures. Source: the paper, and evaluation.py of facebookresearch/GenEval2 (a6e82d2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unigrpo.evaluation.judged import (
    BATCH,
    Judged,
    about_judge,
    check_judge,
    judge_of,
    record,
    template_of,
    version_of,
)
from unigrpo.evaluation.official import Row, digests, lines_of, script
from unigrpo.evaluation.statistics import mean
from unigrpo.plurals import counted
from unigrpo.ranges import ConfigError, shown
from unigrpo.rewards.judge import JudgeReader
from unigrpo.rewards.judge_asking import Chat, Picture
from unigrpo.rewards.judge_endpoint import NoAnswer
from unigrpo.trajectory import Prompt

NAME = "geneval2"
HEADLINE, AVERAGE = "exam", "pictures"
JUDGES = ("Qwen3-VL-8B-Instruct",)
FILE = "geneval2_data.jsonl"
SCRIPT, FUNCTION = "evaluation.py", "soft_tifa"
OWN = "{} Give a single word as the answer."
"""How we ask where the official script is not beside the prompts; results then compare with no published ones."""
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
SKILLS = ("object", "attribute", "count", "position", "verb")
KEYS = ("prompt", "atom_count", "vqa_list", "skills")
VALUES = ("soft_tifa_am", "soft_tifa_gm", "soft_tifa_gm_at_most", "tifa", "unlisted")
WITHOUT = "without its questions GenEval 2 would silently be another metric (VQAScore of the whole prompt)"


def prompts(path: str) -> list[Prompt]:
    """The prompts of the official file (or of the folder that holds it), in its order."""
    rows = lines_of(_file(path))
    found = [_prompt(place, row) for place, row in enumerate(rows)]
    seen: dict[str, str] = {}
    for row, prompt in zip(rows, found, strict=True):
        if prompt.text in seen:
            raise ConfigError(f"{row.where} has the prompt of {seen[prompt.text]} again: get the official file")
        seen[prompt.text] = row.where
    return found


def version(path: str) -> str:
    """The hash of the prompts and their questions."""
    return version_of(prompts(path))


def _file(path: str) -> Path:
    place = Path(path).expanduser()
    return place / FILE if place.is_dir() else place


def _prompt(place: int, row: Row) -> Prompt:
    """A row as a prompt; ConfigError names the row and what is wrong with it."""
    if unknown := [key for key in row.written if key not in KEYS]:
        raise ConfigError(f"{row.where} has {shown(unknown[0])}, unknown to GenEval 2's format ({', '.join(KEYS)})")
    text = row.words("prompt")
    pairs = [_pair(row, number, item) for number, item in enumerate(row.several("vqa_list", WITHOUT), 1)]
    metadata: dict[str, Any] = {"category": "all", "vqa_list": pairs}
    if (atoms := row.written.get("atom_count")) is not None:
        if isinstance(atoms, bool) or not isinstance(atoms, int) or atoms < 1:
            raise ConfigError(f"{row.where}: atom_count is {shown(atoms)}, no number of atoms: get the official file")
        metadata |= {"category": f"{atoms} atoms", "atom_count": atoms}
    if (skills := row.written.get("skills")) is not None:
        if not isinstance(skills, list) or len(skills) != len(pairs) or not set(map(str, skills)) <= set(SKILLS):
            raise ConfigError(
                f"{row.where}: skills is {shown(skills)}: it must have one of {', '.join(SKILLS)} for each of its "
                f"{len(pairs)} questions; get the official file"
            )
        metadata["skills"] = list(skills)
    return Prompt(place, text, metadata)


def _pair(row: Row, number: int, item: Any) -> list[str]:
    """A question and its answer, which is Yes, or a number in letters where it asks how many."""
    where = f"{row.where}, vqa_list, number {number}"
    pair = isinstance(item, list) and len(item) == 2 and all(isinstance(text, str) and text.strip() for text in item)
    if not pair:
        raise ConfigError(f"{where} is {shown(item)}, no pair of question and answer: get the official file")
    question, answer = item
    allowed = NUMBERS[1:] if _counts(question) else ("Yes",)
    if answer not in allowed:
        raise ConfigError(
            f"{where}: {shown(question)} has the answer {shown(answer)}, and the official scores know only "
            f"{', '.join(allowed)}: get the official file"
        )
    return [question, answer]


def _counts(question: str) -> bool:
    return question.startswith("How many")


def variants(question: str, answer: str) -> list[str]:
    """The first tokens that count as the answer, as the official script has them; the number's digits, too."""
    if _counts(question):
        digits = str(NUMBERS.index(answer))
        return [answer, answer.capitalize(), f" {answer}", f" {answer.capitalize()}", digits, f" {digits}"]
    return ["Yes", "yes", " yes", " Yes"]


def read_answer(question: str, answer: str, tokens: Sequence[Any]) -> list[float] | None:
    """[P(answer), 1 if it is the likeliest first token, at most P(answer)] from a reply's log probabilities.

    None where there are no log probabilities, or where no alternative is an answer of any kind (yes, no, a number).
    A right answer that is not among the alternatives has P = 0, and at most the least that is.
    """
    first = tokens[0] if tokens else None
    listed = first.get("top_logprobs") if isinstance(first, Mapping) else None
    masses = _masses(listed if isinstance(listed, list) else [])
    kinds = {*NUMBERS, *map(str, range(11)), "none"} if _counts(question) else {"yes", "no"}
    if not isinstance(first, Mapping) or not any(token.strip().casefold() in kinds for token in masses):
        return None
    right = variants(question, answer)
    mass = min(1.0, math.fsum(masses.get(token, 0.0) for token in right))
    most = mass if mass > 0.0 else min(masses.values())
    likeliest = max(masses, key=lambda token: masses[token])
    hard = likeliest.strip().casefold() in {token.strip().casefold() for token in right}
    return [mass, float(hard), most]


def _masses(listed: Sequence[Any]) -> dict[str, float]:
    """Probabilities by token, a byte-level mark of a space read as one."""
    found: dict[str, float] = {}
    for choice in listed:
        token, logprob = (choice.get("token"), choice.get("logprob")) if isinstance(choice, Mapping) else (None, None)
        if isinstance(token, str) and isinstance(logprob, int | float) and logprob == logprob:
            found.setdefault(token.replace("Ġ", " ").replace("▁", " "), math.exp(max(min(logprob, 0.0), -10_000.0)))
    return found


def figures(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Soft-TIFA AM and GM, AM by skill, GM by atomicity (as the official analysis), TIFA; how many have no answer."""
    answered = [one for one in records if one["failed"] is None]
    by_skill: dict[str, list[float | None]] = {}
    by_atoms: dict[str, list[float | None]] = {}
    for one in answered:
        for skill, p in zip(one["detail"].get("skills", ()), one["detail"]["p"], strict=False):
            by_skill.setdefault(skill, []).append(p)
        by_atoms.setdefault(one["category"], []).append(one["values"]["soft_tifa_gm"])
    return {
        **{name: mean([one["values"][name] for one in answered]) for name in VALUES[:4]},
        "am_by_skill": {skill: mean(ps) for skill, ps in sorted(by_skill.items())},
        "gm_by_atoms": {atoms: mean(gms) for atoms, gms in sorted(by_atoms.items(), key=lambda item: _number(item[0]))},
        "unlisted": sum(one["values"]["unlisted"] for one in answered),
        "unanswered": len(records) - len(answered),
    }


def _number(category: str) -> int:
    return int(category.split()[0]) if category[0].isdigit() else 0


class GenEval2Examiner(Judged):
    """Asks a judge the questions of GenEval 2; exam is Soft-TIFA AM, correct is all answers likeliest."""

    def __init__(self, *, judge: Mapping[str, Any], path: str, any_judge: bool = False, batch: int = BATCH) -> None:
        """judge: url, model, key_env, ...; it must give log probabilities. path: the official file, beside which the
        official script is looked for; any_judge: take another model than the official one, which the name then says.
        """
        self._judge = judge_of(JudgeReader, NAME, judge, max_tokens=1)
        if not self._judge.shades:
            raise ConfigError(f"{NAME}: top_logprobs: 0 leaves no probabilities of answers, which Soft-TIFA is made of")
        other = check_judge(NAME, self._judge.model, JUDGES, any_judge=any_judge)
        found = script(Path(path).expanduser(), SCRIPT)
        self.template = OWN if found is None else found.formatted(FUNCTION)
        if "{}" not in self.template:
            raise ConfigError(f"{NAME}: the template {shown(self.template)} has no place for the question")
        template, wording = template_of(found and SCRIPT, self.template)
        about = about_judge(NAME, self._judge, template, [other, wording])
        super().__init__({**about, "files": digests([_file(path)])}, batch, "vqa_list")

    async def examine(self, pictures: Sequence[Picture], prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        """The records of one batch."""
        pairs = [prompt.metadata["vqa_list"] for prompt in prompts]
        asked = [(picture, self.chat(*pair)) for picture, own in zip(pictures, pairs, strict=True) for pair in own]
        answers = iter(await self._judge.read(asked))
        return [_record(prompt, [next(answers) for _ in own]) for prompt, own in zip(prompts, pairs, strict=True)]

    def chat(self, question: str, answer: str) -> Chat:
        """One question as it is asked."""
        return Chat(
            words=self.template.replace("{}", question),
            read=lambda text, tokens: read_answer(question, answer, tokens),
            kind=f"geneval2 1 {answer}",
            wanted="log probabilities of an answer",
            again="That is not an answer. Answer in one word.",
        )


def _record(prompt: Prompt, answers: Sequence[list[float] | NoAnswer]) -> dict[str, Any]:
    pairs = prompt.metadata["vqa_list"]
    values: dict[str, float | None] = dict.fromkeys(VALUES)
    detail = {
        "skills": prompt.metadata.get("skills", []),
        "p": [None if isinstance(a, NoAnswer) else a[0] for a in answers],
    }
    missing = [(pair[0], a) for pair, a in zip(pairs, answers, strict=True) if isinstance(a, NoAnswer)]
    if missing:
        (question, why), count = missing[0], f"{len(missing)} of {counted(len(pairs), 'question')} have no answer"
        failed = f"{count}; {question!r}: {why}"
        return record(prompt, correct=None, exam=None, values=values, failed=failed, detail=detail)
    said = [answer for answer in answers if not isinstance(answer, NoAnswer)]
    p, hard, most = ([answer[place] for answer in said] for place in range(3))
    marks = {
        "soft_tifa_am": math.fsum(p) / len(p),
        "soft_tifa_gm": geometric_mean(p),
        "soft_tifa_gm_at_most": geometric_mean(most),
        "tifa": math.fsum(hard) / len(hard),
        "unlisted": float(sum(x == 0.0 for x in p)),
    }
    wrong = [f"{q} (should be {a})" for (q, a), right in zip(pairs, hard, strict=True) if not right]
    exam = marks["soft_tifa_am"]
    return record(prompt, correct=not wrong, exam=exam, values=marks, reasons=wrong, detail=detail)


def geometric_mean(numbers: Sequence[float]) -> float:
    """(x_1 ... x_n)^(1/n); 0 where one is 0."""
    return math.exp(math.fsum(map(math.log, numbers)) / len(numbers)) if min(numbers) > 0.0 else 0.0
