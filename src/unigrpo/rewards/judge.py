"""Rewards by a judge: an image-text model behind an OpenAI-compatible chat endpoint is asked questions about a picture.

``judge/exam`` asks the points of each prompt, as TIFA (2303.11897), DSG (2310.18235) and the paper's text alignment do;
``judge/score`` asks one question of one's own (docs/rewards-judge.md).
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor

from unigrpo.ranges import ConfigError, Range, check_numbers, shown
from unigrpo.rewards.awaiting import wait_for
from unigrpo.rewards.judge_asking import Asker, Chat, Picture, pictures
from unigrpo.rewards.judge_cache import Cache
from unigrpo.rewards.judge_endpoint import Batch, NoAnswer, Service, endpoint
from unigrpo.rewards.judge_points import EXAM, Grade, Point, grade, points_of
from unigrpo.rewards.judge_probe import probe
from unigrpo.rewards.protocol import SOURCES, RewardOutput

RANGES = {
    "concurrency": Range(1, 1024),
    "retries": Range(0, 100),
    "connect_s": Range(0, 3600, open_low=True),
    "read_s": Range(0, 86_400, open_low=True),
    "deadline_s": Range(0, 86_400, open_low=True),
    "max_tokens": Range(1, 1_000_000),
    "top_logprobs": Range(0, 100),
}
WHOLE = ("concurrency", "retries", "max_tokens", "top_logprobs")
SCORE = "judge/score"
OF_REQUESTS = ("model", "messages", "max_tokens", "temperature", "stream", "n", "logprobs", "top_logprobs")


@dataclass(kw_only=True, eq=False)
class Judge:
    """What every judge takes: where it answers, how it is asked, and what is remembered.

    url: of the service, such as http://127.0.0.1:8000/v1; model: as the service calls it; key_env: the NAME of the
    environment variable with its key (None: it needs none); concurrency: requests at a time; retries: further tries of
    a request; connect_s, read_s: of one try; deadline_s: of one call of the reward; max_tokens: of an answer, thinking
    included; top_logprobs: alternatives of the answer's word (0: none, and answers have no shades); extra: further
    fields of a request; cache: a file for answers; probe: try the judge when it is built; sources: show the pictures
    that the prompt gave (edits) before the one that is judged.
    """

    url: str
    model: str
    key_env: str | None = None
    concurrency: int = 32
    retries: int = 5
    connect_s: float = 5.0
    read_s: float = 60.0
    deadline_s: float = 300.0
    max_tokens: int = 16
    top_logprobs: int = 20
    extra: Mapping[str, Any] = field(default_factory=dict)
    cache: str | None = None
    probe: bool = True
    sources: bool = False
    name: ClassVar[str] = "judge"

    def __post_init__(self) -> None:
        self._check()
        service = Service(self.url.rstrip("/"), self.key_env, self.concurrency, self.connect_s, self.read_s)
        cache = None if self.cache is None else Cache(self.cache)
        self._asker = Asker(endpoint(service), self.model, self.parameters(), cache)
        if self.probe:
            wait_for(self._probe())

    def _check(self) -> None:
        """ConfigError for what cannot work."""
        check_numbers(asdict(self), RANGES, whole=WHOLE, where=f"{self.name}: ")
        for key in ("url", "model"):
            if not isinstance(text := asdict(self)[key], str) or not text.strip():
                raise ConfigError(f"{self.name}: {key} is {shown(text)}: write the service's address and its model")
        for key in ("key_env", "cache"):
            if not isinstance(text := asdict(self)[key], str | None) or text == "":
                raise ConfigError(f"{self.name}: {key} is no text: write one, or null")
        for key in ("probe", "sources"):
            if not isinstance(flag := asdict(self)[key], bool):
                raise ConfigError(f"{self.name}: {key} is {shown(flag)}: write true or false")
        self._check_extra()

    def _check_extra(self) -> None:
        where = f"{self.name}: extra"
        if not isinstance(self.extra, Mapping) or not all(isinstance(key, str) for key in self.extra):
            raise ConfigError(f"{where} has {shown(self.extra)}: write further fields of a request, by name")
        if taken := [key for key in self.extra if key in OF_REQUESTS]:
            raise ConfigError(f"{where} has {taken[0]!r}, which the judge sets itself: leave it out")
        try:
            json.dumps(self.extra, allow_nan=False)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{where} cannot be written as JSON ({error}): write texts, numbers and lists") from None

    def parameters(self) -> dict[str, Any]:
        """Those of every request, which the key of the cache holds, too."""
        plain: dict[str, Any] = {"temperature": 0, "max_tokens": self.max_tokens}
        if self.shades:
            plain |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        return plain | dict(self.extra)

    @property
    def lists(self) -> bool:
        """Whether all questions about a picture are asked in one request."""
        return False

    @property
    def shades(self) -> bool:
        """Whether answers have shades between yes and no."""
        return self.top_logprobs > 0 and not self.lists

    async def _probe(self) -> None:
        done, this = self._asker.endpoint.probed, f"{self.model} {self.parameters()} {self.lists}"
        if this not in done:  # once in a process: a run builds its rewards twice
            await probe(self.name, self._asker, shades=self.shades, lists=self.lists)
            done.add(this)

    def _shown(self, images: Tensor, metadata: Sequence[Mapping[str, Any]]) -> list[Picture]:
        """The pictures as the judge is shown them: with those of their prompts before them, if ``sources``."""
        return pictures(images, [row.get(SOURCES, ()) for row in metadata] if self.sources else ())

    def _batch(self) -> Batch:
        return Batch.within(self.deadline_s, self.retries)


@dataclass(frozen=True)
class Examined:
    """One picture's exam: P(yes) of each point, or why it has none; the marks, or why there are none."""

    points: Sequence[Point]
    answers: Sequence[float | NoAnswer]
    grade: Grade | None
    failure: str | None


@dataclass(kw_only=True, eq=False)
class JudgeExam(Judge):
    """A judge answers the exam points of each prompt (metadata key points); the mean over points of P(right answer).

    mode: points asks one question a request; batch all of a picture in one, whose answers have no shades. Parts: soft,
    hard (answers as yes or no), geometric (mean of the soft ones, 2605.12495), all (every point right).
    """

    mode: Literal["points", "batch"] = "points"
    name: ClassVar[str] = EXAM

    def _check(self) -> None:
        if self.mode not in ("points", "batch"):
            raise ConfigError(f"{self.name}: mode is {shown(self.mode)}: write points or batch")
        super()._check()

    @property
    def lists(self) -> bool:
        """Whether all questions about a picture are asked in one request."""
        return self.mode == "batch"

    async def __call__(
        self,
        images: Tensor,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
        thinking: Sequence[str | None],
    ) -> RewardOutput:
        """Examine pictures float [B, 3, H, W]; one with a point that has no answer is in ``errors``."""
        sat = await self.examined(self._shown(images, metadata), prompts, metadata)
        parts: dict[str, list[float]] = {"soft": [], "hard": [], "geometric": [], "all": []}
        for one in sat:
            for part, numbers in parts.items():
                numbers.append(math.nan if one.grade is None else asdict(one.grade)[part])
        errors = {index: one.failure for index, one in enumerate(sat) if one.failure is not None}
        return RewardOutput(parts["soft"], parts, errors)

    async def examined(
        self, shown: Sequence[Picture], prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> list[Examined]:
        """Examine pictures of any sizes; each with what was said of its points."""
        exams = [_exam(prompt, about) for prompt, about in zip(prompts, metadata, strict=True)]
        batch = self._batch()
        asked = zip(shown, exams, strict=True)
        answers = await together(self._answers(picture, exam.points, batch) for picture, exam in asked)
        return [_examined(exam, said) for exam, said in zip(exams, answers, strict=True)]

    async def _answers(self, picture: Picture, points: Sequence[Point], batch: Batch) -> list[float | NoAnswer]:
        """P(yes) of every point, or why it has none."""
        questions = [point.question for point in points]
        if self.mode == "points" or not points:
            return await together(_or_why(self._asker.one(picture, q, batch)) for q in questions)
        answers = await _or_why(self._asker.many(picture, questions, batch))
        return [answers] * len(points) if isinstance(answers, NoAnswer) else list(answers)


@dataclass(kw_only=True, eq=False)
class JudgeScore(Judge):
    """A judge answers one question about each picture; P(yes) / (P(yes) + P(no)).

    question: {prompt} in it stands for the prompt. Parts: soft, hard.
    """

    question: str = "Does the picture show exactly what this text asks for: {prompt}"
    name: ClassVar[str] = SCORE

    def _check(self) -> None:
        if not isinstance(self.question, str) or not self.question.strip():
            raise ConfigError(f"{self.name}: question is {shown(self.question)}: write one that yes or no answers")
        super()._check()

    async def __call__(
        self,
        images: Tensor,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
        thinking: Sequence[str | None],
    ) -> RewardOutput:
        """Ask about pictures float [B, 3, H, W]; one without an answer is in ``errors``."""
        batch = self._batch()
        questions = [self.question.replace("{prompt}", prompt) for prompt in prompts]
        asked = zip(self._shown(images, metadata), questions, strict=True)
        answers = await together(_or_why(self._asker.one(picture, q, batch)) for picture, q in asked)
        errors = {index: str(answer) for index, answer in enumerate(answers) if isinstance(answer, NoAnswer)}
        soft = [answer if isinstance(answer, float) else math.nan for answer in answers]
        hard = [math.nan if math.isnan(answer) else float(answer > 0.5) for answer in soft]
        return RewardOutput(soft, {"soft": soft, "hard": hard}, errors)


@dataclass(kw_only=True, eq=False)
class JudgeReader(Judge):
    """A judge that is asked in words of the caller's own, as benchmarks of others do; for evaluations, no reward."""

    async def read(self, asked: Sequence[tuple[Picture, Chat]]) -> list[list[float] | NoAnswer]:
        """The answer to each, or why there is none; all within ``deadline_s``."""
        batch = self._batch()
        return await together(_or_why(self._asker.read(picture, chat, batch)) for picture, chat in asked)


async def together(asked: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """What all of them give, in order; where one raises, the others are not left asking."""
    tasks = [asyncio.ensure_future(one) for one in asked]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _or_why(answer: Any) -> Any:
    """What an awaitable gives, or the NoAnswer that it raises."""
    try:
        return await answer
    except NoAnswer as error:
        return error


@dataclass(frozen=True)
class _Exam:
    """The points of a prompt, or why there are none."""

    points: Sequence[Point] = ()
    fault: str | None = None


def _exam(prompt: str, metadata: Mapping[str, Any]) -> _Exam:
    try:
        return _Exam(points_of(prompt, metadata))
    except ConfigError as error:
        return _Exam(fault=str(error))


def _examined(exam: _Exam, said: Sequence[float | NoAnswer]) -> Examined:
    failure = exam.fault or _lack(exam.points, said)
    marks = None if failure else grade(exam.points, [yes for yes in said if isinstance(yes, float)])
    return Examined(exam.points, said, marks, failure)


def _lack(points: Sequence[Point], said: Sequence[float | NoAnswer]) -> str | None:
    """Why a picture has no mark: the first of its points without an answer; None where all have one."""
    missing = [(point, answer) for point, answer in zip(points, said, strict=True) if isinstance(answer, NoAnswer)]
    if not missing:
        return None
    point, why = missing[0]
    return f"{len(missing)} of {len(points)} points have no answer; {point.question!r}: {why}"
