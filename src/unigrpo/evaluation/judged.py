"""What the suites that a judge answers have in common: batches, records, and what a result says of its judge."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

from unigrpo import version as versions
from unigrpo.evaluation.suites import answer, no_answer
from unigrpo.plurals import counted
from unigrpo.ranges import ConfigError, did_you_mean, shown
from unigrpo.rewards.awaiting import wait_for
from unigrpo.rewards.judge import Judge
from unigrpo.rewards.judge_asking import Picture
from unigrpo.trajectory import Prompt

BATCH = 16
"""Pictures whose questions are asked together; no more of them are held as requests at a time."""
J = TypeVar("J", bound=Judge)


def version_of(prompts: Sequence[Prompt]) -> str:
    """The sha256 of prompts: their positions, words and metadata."""
    plain = [[prompt.position, prompt.text, dict(prompt.metadata)] for prompt in prompts]
    return digest_of(plain)


def digest_of(plain: Any) -> str:
    """The sha256 of plain data, such as the words of a template."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def judge_of(kind: type[J], suite: str, given: Mapping[str, Any], **usual: Any) -> J:
    """A judge from what a user gives, over what is usual in a suite; ConfigError names what is no argument of it."""
    names = [field.name for field in dataclasses.fields(kind) if field.init]
    if not isinstance(given, Mapping):
        raise ConfigError(f'{suite}: judge is {shown(given)}: write its arguments, such as "{{url: ..., model: ...}}"')
    for key in given:
        if key not in names:
            near = did_you_mean(str(key), names)
            raise ConfigError(f"{suite}: a judge has no argument {shown(key)}{near}; it has: {', '.join(names)}")
    for key in ("url", "model"):
        if key not in given:
            raise ConfigError(
                f"{suite}: the judge has no {key}: write url (of its service) and model (as listed there)"
            )
    return kind(**{**usual, **given})


def same_model(model: str, official: Sequence[str]) -> bool:
    """Whether a service's name of a model is one of the official ones, whatever folder or owner stands before it."""
    plain = model.rstrip("/").rsplit("/", 1)[-1].casefold()
    return plain in [name.casefold() for name in official]


def check_judge(suite: str, model: str, official: Sequence[str], *, any_judge: bool) -> str | None:
    """None for the official judge of a suite; what its result is called else, or ConfigError unless ``any_judge``."""
    if not isinstance(any_judge, bool):
        raise ConfigError(f"{suite}: any_judge is {shown(any_judge)}: write true or false")
    if same_model(model, official):
        return None
    wanted = " or ".join(official)
    if not any_judge:
        raise ConfigError(
            f"{suite} is judged by {wanted}, and {shown(model)} is another judge, whose results compare with nothing "
            "that is published: serve that model, or set any_judge: true and the result's name will say so"
        )
    return f"judge {model}, not {wanted}"


def about_judge(suite: str, judge: Judge, template: Mapping[str, Any], remarks: Sequence[str | None]) -> dict[str, Any]:
    """What a result says of its judge: everything that changes answers. Neither the key nor the service's address.

    The address is no part of it: the same model at another address gives comparable answers. ``remarks`` become part of
    the name of the result.
    """
    said = [remark for remark in remarks if remark]
    return {
        "suite": suite,
        "name": f"{suite} ({'; '.join(said)})" if said else suite,
        "judge": judge.model,
        "template": dict(template),
        "parameters": judge.parameters(),
        "packages": {package: versions.of(package) for package in ("unigrpo", "httpx2")},
    }


def record(
    prompt: Prompt,
    *,
    correct: bool | None,
    exam: float | None,
    values: Mapping[str, float | None],
    reasons: Sequence[str] = (),
    failed: str | None = None,
    detail: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What is known of one picture; where there is no answer, correct, exam and the values are None, never 0."""
    category, kept = str(prompt.metadata["category"]), dict(detail or {})
    if failed is not None:
        return {**no_answer(category, failed, detail=kept), "values": dict.fromkeys(values)}
    return answer(category, correct=correct, exam=exam, reasons=reasons, values=values, detail=kept)


def template_of(official: str | None, words: Any, asks: str = "question") -> tuple[dict[str, str], str | None]:
    """What was asked with, as a result names it, and a note where these are our own words.

    official: the name of the benchmark's script that they were read from; None: they are ours.
    """
    source = "unigrpo, version 1" if official is None else f"official {official}"
    note = f"our own wording of the {asks}" if official is None else None
    return {"source": source, "sha256": digest_of(words)}, note


class Judged(ABC):
    """An examiner that asks a judge about a batch of pictures at a time, on the one event loop of all rewards."""

    def __init__(self, about: Mapping[str, Any], batch: int, *needs: str) -> None:
        """about: what results say of it; batch: pictures at a time; needs: keys of the metadata of every prompt."""
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise ConfigError(
                f"{about['suite']}: batch is {shown(batch)}: write how many pictures, a whole number >= 1"
            )
        self.about, self.batch, self.needs = about, batch, ("category", *needs)

    def __call__(
        self, pictures: Sequence[Tensor], prompts: Sequence[Prompt], thinking: Sequence[str | None]
    ) -> list[dict[str, Any]]:
        """One record for each picture uint8 [3, H, W], which may differ in size and are looked at batch by batch."""
        if len(pictures) != len(prompts):
            raise ValueError(
                f"{counted(len(pictures), 'picture')} and {counted(len(prompts), 'prompt')}: "
                "every picture needs its own"
            )
        self._check(prompts)
        records: list[dict[str, Any]] = []
        for start in range(0, len(prompts), self.batch):
            places = range(start, min(start + self.batch, len(prompts)))
            batch = [as_picture(pictures[place]) for place in places]
            records += wait_for(self.examine(batch, [prompts[place] for place in places]))
        return records

    def _check(self, prompts: Sequence[Prompt]) -> None:
        """ConfigError for the first prompt without what is to be asked of its picture, before any is asked about."""
        for prompt in prompts:
            if missing := [key for key in self.needs if key not in prompt.metadata]:
                raise ConfigError(
                    f"{self.about['suite']}: the metadata of the prompt {shown(prompt.text)} have no {missing[0]}, so "
                    "its picture cannot be judged by this suite: take the prompts from the suite's own files"
                )

    @abstractmethod
    async def examine(self, pictures: Sequence[Picture], prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        """The records of one batch."""


def as_picture(pixels: Tensor) -> Picture:
    """One picture uint8 [3, H, W] as a judge is shown it."""
    if pixels.ndim != 3 or pixels.shape[0] != 3 or str(pixels.dtype) != "torch.uint8":
        raise ValueError(f"a judge is shown pictures uint8 [3, H, W], not {pixels.dtype} {list(pixels.shape)}")
    return Picture(pixels.permute(1, 2, 0).cpu().contiguous().numpy())
