"""From the name of a suite and who is to examine to a suite: the one place that knows both by name.

An examiner is made before a model is loaded, so a judge that cannot be reached, or a missing file, is told at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from unigrpo.build import data, rewards
from unigrpo.build.examiners import Nobody, OwnDetector, WithReward, WorldRules
from unigrpo.build.trial import try_reward
from unigrpo.build.worlds import EMBEDDED, named
from unigrpo.evaluation import detectors, exam, geneval, geneval2, ocr, tiif, wise
from unigrpo.evaluation.suites import Examiner, Suite, category_of
from unigrpo.loading import reference
from unigrpo.ranges import ConfigError, did_you_mean
from unigrpo.recipe import Model, Scorer
from unigrpo.rewards.judge_points import points_of
from unigrpo.trajectory import Prompt

STREAM = 504
"""Prompts of a list without end, and of one's own, unless more or fewer are asked for."""
OFFICIAL = "GenEval"
"""What a score may be called where detector and prompts are GenEval's own."""
OWN_LISTS = ("exam", "ocr")
"""Suites whose prompts ship with the package, and have no path."""
A_DETECTOR = 'a detector: --detector "{name: mask2former-mmdet, weights: PATH, clip: PATH}" (docs/geneval-detectors.md)'
OF_SUITES = ("any_judge", "edition", "batch")
"""Arguments of --judge that are the suite's, not the judge's."""


@dataclass(frozen=True)
class Examining:
    """Who is to examine, as it was asked for: arguments of a judge or a detector, rewards.

    model: the one that draws, which bagel/self begins from. ``on``: False where pictures are only drawn.
    """

    judge: Mapping[str, Any] | None = None
    detector: Mapping[str, Any] | None = None
    scorers: Sequence[Scorer] = ()
    model: Model | None = None
    on: bool = True

    def only(self, suite: str, *kinds: str) -> None:
        """ConfigError where something is given that the suite has no use for."""
        given = {"judge": self.judge is not None, "detector": self.detector is not None, "reward": bool(self.scorers)}
        for kind, there in given.items():
            if there and kind not in kinds:
                raise ConfigError(f"--suite {suite} has no use for a {kind}: leave out --{kind}")


def evaluation_suite(name: str, limit: int | None, by: Examining) -> Suite:
    """The suite of a name; ConfigError says what it needs to be examined."""
    head, _, path = name.partition(":")
    _check_name(name, head)
    if head in MAKERS and not (head == "geneval" and path in ("train", "fixed")):
        return MAKERS[head](name, path, by, limit).limited(limit)
    return of_prompts(data.suite(name), limit, by)


def _check_name(name: str, head: str) -> None:
    """ConfigError for a misspelt suite, with the one that was meant."""
    if head in MAKERS or head in EMBEDDED or Path(head).suffix or Path(name).exists():
        return
    if near := did_you_mean(head, [*MAKERS, *EMBEDDED]):
        raise ConfigError(
            f"--suite {name} is none{near}: give {', '.join([*EMBEDDED, 'geneval', *OWN_LISTS])}, geneval:PATH, "
            "tiif:PATH, geneval2:PATH, wise:PATH, or a file of prompts"
        )


def of_prompts(suite: data.Suite, limit: int | None, by: Examining) -> Suite:
    """The suite of a world's prompts, or of one's own, which a reward or a judge examines."""
    prompts, world = suite.prompts(limit or STREAM), named(suite.name) if suite.judged else None
    by.only(suite.name, "reward", *(() if world is not None else ("judge",)))
    if not by.on:
        return Suite(suite.name, prompts, Nobody())
    if world is not None:
        rules = WorldRules(world)
        return Suite(suite.name, prompts, rules if not by.scorers else _with_reward(by, rules), further=world.further)
    if by.scorers:
        by.only(suite.name, "reward")
        return Suite(suite.name, prompts, _with_reward(by), "reward", "pictures")
    if by.judge is not None:
        return _examined(suite.name, prompts, by.judge)
    if suite.name == "geneval":
        raise ConfigError(
            f"--suite geneval needs {A_DETECTOR}, or a reward, such as --reward image/jpeg-compressibility"
        )
    raise ConfigError(
        f"--suite {suite.name} has no judge of its own: name a reward, such as --reward image/jpeg-compressibility"
        + (", or --judge where its prompts have points" if suite.rows is not None else "")
    )


def _with_reward(by: Examining, rules: Examiner | None = None) -> WithReward:
    return WithReward(rewards.reward(by.scorers, "drop_sample", 1.0, by.model), by.scorers, rules)


def _examined(name: str, prompts: Sequence[Prompt], judge: Mapping[str, Any]) -> Suite:
    """Prompts of one's own whose points a judge is asked; ConfigError names a prompt without."""
    for prompt in prompts:
        points_of(prompt.text, prompt.metadata)
    own = [replace(p, metadata={**p.metadata, "category": category_of(p)}) for p in prompts]
    return Suite(name, own, exam.ExamExaminer(**_arguments(judge)), "exam", "pictures", exam.figures)


def _arguments(judge: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an examiner: the judge's under ``judge``, those of the suite beside it."""
    own = {key: value for key, value in judge.items() if key in OF_SUITES}
    return {"judge": {key: value for key, value in judge.items() if key not in OF_SUITES}, **own}


def try_suite(suite: Suite, size: tuple[int, int], *, think: bool) -> None:
    """Try the reward of a suite on one picture of noise, so that its faults are told before anything is drawn."""
    if isinstance(suite.examiner, WithReward) and suite.prompts:
        strict = replace(suite.examiner.reward, on_error="raise")
        try_reward(strict, suite.prompts[0], size, think=think)


# Suites by name


def _geneval(name: str, path: str, by: Examining, limit: int | None) -> Suite:
    """GenEval's rules over a detector, on our own list or on the official file."""
    by.only(name, "detector", "reward")
    if by.detector is None and by.on and not path:
        return of_prompts(data.suite(name), limit, by)  # which a reward may judge
    prompts = geneval.read_prompts(path) if path else data.suite(name).prompts(limit or STREAM)
    variant = geneval.variant(prompts) if path else "our own list in the manner of GenEval, not its 553 prompts"
    if not by.on:
        return Suite(name, prompts, Nobody(), variant=_variant(variant))
    if by.detector is None:
        raise ConfigError(f"--suite {name} needs {A_DETECTOR}, or --draw-only")
    rules = geneval.Geneval(detector=_detector(by.detector))
    examiner = _with_reward(by, rules) if by.scorers else rules
    note = _note(rules.about["detector"])
    paper: Any = "geneval"
    return Suite(name, prompts, examiner, further=geneval.figures, variant=_variant(variant), note=note, paper=paper)


def _variant(told: str) -> str:
    """How a result calls the wording of GenEval's prompts."""
    known = {
        "official": "as written",
        "rewritten": "GenEval's tasks in other words (rewritten prompts)",
        "other prompts": "not GenEval's 553, so no published score compares",
    }
    return known.get(told, told)


def _note(detector: Mapping[str, Any]) -> str:
    """What readers of a score by another detector must know; "" for GenEval's own."""
    called = detector.get("called")
    if called == OFFICIAL:
        return ""
    what = f"detector {detector.get('name')}" if called is None else str(called)
    return f"This is no GenEval score: the pictures were examined by GenEval's rules over another detector ({what})."


def _detector(given: Mapping[str, Any]) -> Any:
    name = given.get("name")
    if isinstance(name, str) and reference(name) is not None:
        return OwnDetector(name, {key: value for key, value in given.items() if key != "name"})
    return detectors.detector(given)


def _exam(name: str, path: str, by: Examining, limit: int | None) -> Suite:
    """Our own 150 prompts with points."""
    _has_no_path(name, path)
    suite = _judged(name, exam.prompts(), exam, by, lambda given: exam.ExamExaminer(**given))
    note = "TA-style: prompts and questions are this package's own, not the paper's, which are not published."
    return replace(suite, note=note, paper="exam")


def _ocr(name: str, path: str, by: Examining, limit: int | None) -> Suite:
    """Our own prompts of words, read by rapidocr."""
    _has_no_path(name, path)
    by.only(name)
    examiner = ocr.OcrExaminer() if by.on else Nobody()
    return Suite(name, ocr.prompts(), examiner, ocr.HEADLINE, ocr.AVERAGE, ocr.figures)


def _tiif(name: str, path: str, by: Examining, limit: int | None) -> Suite:
    """TIIF-Bench of the user's clone."""
    _needs_path(name, path, "data/testmini_prompts of a clone of TIIF-Bench")
    suite = _judged(name, tiif.prompts(path), tiif, by, lambda given: tiif.TiifExaminer(path=path, **given))
    own = (
        "The headline is a mean over all types; TIIF-Bench's own overall, short and long, is among the further figures."
    )
    return replace(suite, note=f"{suite.note} {own}".strip())


def _geneval2(name: str, path: str, by: Examining, limit: int | None) -> Suite:
    """GenEval 2 of the user's copy."""
    _needs_path(name, path, "its geneval2_data.jsonl")
    return _judged(name, geneval2.prompts(path), geneval2, by, lambda g: geneval2.GenEval2Examiner(path=path, **g))


def _wise(name: str, path: str, by: Examining, limit: int | None) -> Suite:
    """WISE of the user's clone; its overall weighs categories by their prompts, as a mean over pictures does."""
    _needs_path(name, path, "a clone of WISE")
    edition = (by.judge or {}).get("edition")
    found = wise.prompts(path, edition=edition)
    return replace(
        _judged(name, found, wise, by, lambda given: wise.WiseExaminer(path=path, **given)), average="pictures"
    )


def _needs_path(name: str, path: str, what: str) -> None:
    if not path:
        raise ConfigError(f"--suite {name} reads the official prompts, which do not ship: write {name}:PATH of {what}")


def _has_no_path(name: str, path: str) -> None:
    if path:
        own = name.partition(":")[0]
        raise ConfigError(
            f"--suite {name}: {own} is this package's own list and reads no file: write it without :{path}, or a file "
            "of prompts by its name alone"
        )


def _judged(
    name: str, prompts: Sequence[Prompt], suite: ModuleType, by: Examining, make: Callable[[dict[str, Any]], Examiner]
) -> Suite:
    """A suite that a judge answers."""
    by.only(name, "judge")
    if by.on and by.judge is None:
        raise ConfigError(
            f'--suite {name} needs a judge: --judge "{{url: http://127.0.0.1:8000/v1, model: NAME}}", or --draw-only'
        )
    examiner = make(_arguments(by.judge)) if by.on and by.judge is not None else Nobody()
    called = str(examiner.about.get("name", ""))
    note = f"The result is called {called}." if "(" in called else ""
    return Suite(name, prompts, examiner, suite.HEADLINE, suite.AVERAGE, suite.figures, note=note)


MAKERS: dict[str, Callable[[str, str, Examining, int | None], Suite]] = {
    "geneval": _geneval,
    "exam": _exam,
    "ocr": _ocr,
    "tiif": _tiif,
    "geneval2": _geneval2,
    "wise": _wise,
}
