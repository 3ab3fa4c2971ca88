"""``wise``: WISE (2503.07265), prompts that need knowledge, in two editions which compare with nothing but themselves.

verified (2026-04, the default of PKU-YuanGroup/WISE since): Qwen3.5-35B-A3B says 0 or 1 of a picture. legacy:
gpt-4o-2024-05-13 gives consistency, realism and aesthetic quality, 0 to 2 each, and

    WiScore = (0.7 consistency + 0.2 realism + 0.1 aesthetic quality) / 2

Both: overall = a weighted mean over six categories, which go by ``prompt_id``, in other ranges and with other weights.
The files are the user's (they have no licence). Source: the repository at eb51174.
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
    judge_of,
    record,
    template_of,
    version_of,
)
from unigrpo.evaluation.official import Row, digests, list_of, script
from unigrpo.evaluation.statistics import mean
from unigrpo.evaluation.wise_editions import (
    ASKED,
    CATEGORIES,
    EDITIONS,
    FILES,
    KEYS,
    NAMED,
    SCORES,
    VERIFIED,
    Edition,
    Which,
    read_score,
    read_scores,
)
from unigrpo.ranges import ConfigError, shown
from unigrpo.rewards.judge import JudgeReader
from unigrpo.rewards.judge_asking import Chat, Picture
from unigrpo.rewards.judge_endpoint import NoAnswer
from unigrpo.trajectory import Prompt

NAME = "wise"
HEADLINE, AVERAGE = "exam", "categories"


def prompts(path: str, *, edition: Which | None = None) -> list[Prompt]:
    """The prompts of a clone, of a folder of official files, or of one file, in the order of their ids.

    edition: which one the files are of, where neither their names nor their ids tell.
    """
    files = _files(path)
    rows = [row for file in files for row in list_of(file)]
    chosen = edition_of(path, edition, rows)
    found: dict[int, Prompt] = {}
    for row in rows:
        number, metadata = _metadata(row, chosen)
        if number in found:
            raise ConfigError(
                f"{row.where}: the prompt_id {number} is there twice: name one edition's files, once each"
            )
        found[number] = Prompt(number, row.words("Prompt"), metadata)
    return [Prompt(place, found[n].text, found[n].metadata) for place, n in enumerate(sorted(found))]


def version(path: str, *, edition: Which | None = None) -> str:
    """The hash of the prompts and their explanations."""
    return version_of(prompts(path, edition=edition))


def _files(path: str) -> list[Path]:
    """The files that a path means: itself, or the official ones in it (the verified edition first)."""
    place = Path(path).expanduser()
    if not place.is_dir():
        return [place]
    for edition in EDITIONS:
        for folder in (place / edition.folder, place / Path(edition.folder).name, place):
            found = [folder / f"{name}{edition.suffix}" for name in FILES]
            if all(file.is_file() for file in found):
                return found
    listed = ", ".join(f"{name}{VERIFIED.suffix}" for name in FILES)
    raise ConfigError(f"{NAME}: {path} does not hold the official files ({listed}): name a clone of WISE, or one file")


def edition_of(path: str, edition: str | None, rows: Sequence[Row]) -> Edition:
    """The edition that rows are of: the one that is given, or that the files' names or the rows' ids tell."""
    if edition is not None:
        if edition not in (known := [one.name for one in EDITIONS]):
            raise ConfigError(f"{NAME}: edition is {shown(edition)}: write {' or '.join(known)}")
        return next(one for one in EDITIONS if one.name == edition)
    fitting = [one for one in EDITIONS if all(_fault(row, one) is None for row in rows)]
    if len(fitting) == 1:
        return fitting[0]
    named = {one.name: one for one in EDITIONS for file in _files(path) if one.names(file.stem)}
    if len(named) == 1:
        return next(iter(named.values()))
    if fitting:
        raise ConfigError(
            f"{NAME}: {path} may be of either edition, and their judges and scores differ: keep the file's official "
            "name (such as cultural_common_sense_verified.json), or say edition: verified or legacy"
        )
    faults = [fault for row in rows if (fault := _fault(row, VERIFIED)) is not None]
    raise ConfigError(f"{faults[0]}, nor do all rows fit the legacy edition: get the official files of one edition")


def _fault(row: Row, edition: Edition) -> str | None:
    """Why a row is none of an edition: an id that none has, or one of another category."""
    number = row.written.get("prompt_id")
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= edition.ends[-1]:
        return f"{row.where}: prompt_id is {shown(number)}, no whole number from 1 to {edition.ends[-1]}"
    said = NAMED.get(str(row.written.get("Category")).lower())
    if said is not None and said != edition.category(number):
        return (
            f"{row.where}: prompt_id {number} is {said}, but {edition.category(number)} in the {edition.name} edition"
        )
    return None


def _metadata(row: Row, edition: Edition) -> tuple[int, dict[str, Any]]:
    """Id and metadata of a row; ConfigError names the row and what is wrong with it."""
    if unknown := [key for key in row.written if key not in KEYS]:
        raise ConfigError(f"{row.where} has {shown(unknown[0])}, unknown to WISE's format ({', '.join(KEYS)})")
    if fault := _fault(row, edition):
        raise ConfigError(f"{fault}: get the official files of one edition")
    explanation = row.words("Explanation", "what the judge goes by")
    number = row.written["prompt_id"]
    about = {"edition": edition.name, "prompt_id": number, "explanation": explanation}
    return number, {"category": edition.category(number), "subcategory": row.written.get("Subcategory"), **about}


def figures(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean score by category, and the weighted overall: None unless all six categories are there."""
    of: dict[str, list[float | None]] = {name: [] for name in CATEGORIES}
    for one in records:
        of[one["category"]].append(one["exam"])
    means = {name: mean(scores) for name, scores in of.items()}
    editions = {one["detail"]["edition"] for one in records}
    known = [one for one in means.values() if one is not None]
    overall = None
    if len(editions) == 1 and len(known) == len(CATEGORIES):
        (edition,) = [one for one in EDITIONS if one.name in editions]
        overall = sum(weight * value for weight, value in zip(edition.weights, known, strict=True))
    return {"overall": overall, **means, "unanswered": sum(one["failed"] is not None for one in records)}


class WiseExaminer(Judged):
    """Asks a judge what a picture is worth by prompt and explanation; exam is the (Wi)score.

    correct is a score of 1 in the verified edition, and consistency 2 in the legacy one.
    """

    def __init__(
        self,
        *,
        judge: Mapping[str, Any],
        path: str,
        edition: Which | None = None,
        any_judge: bool = False,
        batch: int = BATCH,
    ) -> None:
        """judge: url, model, key_env, ...; path: clone, folder or file, beside which the official script is looked for;
        edition: see :func:`prompts`; any_judge: take another model than the edition's, which the name then says.
        """
        files = _files(path)
        own = edition_of(path, edition, [row for file in files for row in list_of(file)])
        suite = f"{NAME}-{own.name}"
        usual = {"max_tokens": own.max_tokens, "top_logprobs": 0, "extra": own.extra}
        self._judge, self.edition = judge_of(JudgeReader, suite, judge, **usual), own
        other = check_judge(suite, self._judge.model, own.judges, any_judge=any_judge)
        found = script(files[0], own.script)
        self.template = own.own if found is None else found.said(ASKED, "user")
        self.system = None if found is None else found.said(ASKED, "system")
        if missing := [key for key in ("{Prompt}", "{Explanation}") if key not in self.template]:
            raise ConfigError(f"{suite}: the template has no place for {missing[0]}: get the official script")
        template, wording = template_of(found and own.script, [self.system, self.template])
        changed = "rewritten prompts" if any("_rewrite" in file.name for file in files) else None
        about = about_judge(suite, self._judge, template, [changed, other, wording])
        super().__init__({**about, "edition": own.name, "files": digests(files)}, batch, "edition", "explanation")

    async def examine(self, pictures: Sequence[Picture], prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        """The records of one batch."""
        for prompt in prompts:
            if prompt.metadata["edition"] != self.edition.name:
                raise ConfigError(
                    f"{NAME}: the prompt {shown(prompt.text)} is of the {prompt.metadata['edition']} edition, and the "
                    f"judge of the {self.edition.name} one: score pictures with the files that they were drawn for"
                )
        answers = await self._judge.read([(pic, self.chat(p)) for pic, p in zip(pictures, prompts, strict=True)])
        return [_record(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]

    def chat(self, prompt: Prompt) -> Chat:
        """One prompt as it is asked about."""
        row = {"Prompt": prompt.text, "Explanation": prompt.metadata["explanation"]}
        verified = self.edition is VERIFIED
        return Chat(
            words=re.sub(r"\{(Prompt|Explanation)\}", lambda match: row[match[1]], self.template),
            read=read_score if verified else read_scores,
            kind=f"wise 1 {self.edition.name}",
            wanted="a score of 0 or 1" if verified else "three scores from 0 to 2",
            again="That is no score in the form that was asked for. Answer in that form, with nothing else.",
            system=self.system,
            first=False,
        )


def _record(prompt: Prompt, answer: list[float] | NoAnswer) -> dict[str, Any]:
    edition, names = prompt.metadata["edition"], tuple(SCORES) if prompt.metadata["edition"] == "legacy" else ("score",)
    detail = {"edition": edition, "prompt_id": prompt.metadata["prompt_id"]}
    if isinstance(answer, NoAnswer):
        values: dict[str, float | None] = dict.fromkeys(names)
        return record(prompt, correct=None, exam=None, values=values, failed=str(answer), detail=detail)
    scores = {name: half * (2 if edition == "legacy" else 1) for name, half in zip(names, answer, strict=True)}
    low = [f"{name} {score:g} of {2 if edition == 'legacy' else 1}" for name, score in scores.items()]
    exam = sum(SCORES[name] * scores[name] for name in names) / 20 if edition == "legacy" else scores["score"]
    correct = answer[0] == 1.0
    reasons = [line for line, half in zip(low, answer, strict=True) if half < 1.0]
    return record(prompt, correct=correct, exam=exam, values=scores, reasons=reasons, detail=detail)
