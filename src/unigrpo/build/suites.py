"""From the name of a suite and who is to examine to a suite: the one place that knows both by name.

An examiner is made before a model is loaded, so a judge that cannot be reached, or a missing file, is told at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from unigrpo import version
from unigrpo.build import data, rewards
from unigrpo.build.trial import try_reward
from unigrpo.build.worlds import EmbeddedWorld, named
from unigrpo.evaluation.suites import Examiner, Record, Suite, answer, category_of, no_answer
from unigrpo.loading import digest, reference
from unigrpo.ranges import ConfigError
from unigrpo.recipe import Model, Scorer
from unigrpo.rewards.composite import CompositeReward
from unigrpo.rewards.protocol import RewardInput, metadata_of
from unigrpo.trajectory import Prompt

STREAM = 504
"""Prompts of a list without end, and of one's own, unless more or fewer are asked for."""


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


def evaluation_suite(name: str, limit: int | None, by: Examining) -> Suite:
    """The suite of a name; ConfigError says what it needs to be examined."""
    head, _, path = name.partition(":")
    if head in MAKERS:
        return MAKERS[head](name, path, limit, by)
    return of_prompts(data.suite(name), limit, by)


def of_prompts(suite: data.Suite, limit: int | None, by: Examining) -> Suite:
    """The suite of a world's prompts, or of one's own, which a reward or a judge examines."""
    prompts = suite.prompts(limit or STREAM)
    world = named(suite.name) if suite.judged else None
    if by.detector is not None:
        raise ConfigError(f"--suite {suite.name} has no use for a detector: leave out --detector")
    if not by.on:
        return Suite(suite.name, prompts, Nobody())
    reward = rewards.reward(by.scorers, "drop_sample", 1.0, by.model) if by.scorers else None
    if world is not None:
        _refuse_judge(suite.name, by)
        rules = WorldRules(world)
        return Suite(suite.name, prompts, rules if reward is None else WithReward(reward, by.scorers, rules))
    if reward is not None:
        _refuse_judge(suite.name, by)
        return Suite(suite.name, prompts, WithReward(reward, by.scorers), "reward", "pictures")
    raise ConfigError(
        f"--suite {suite.name} has no judge of its own: name a reward, such as --reward image/jpeg-compressibility"
    )


def _refuse_judge(name: str, by: Examining) -> None:
    if by.judge is not None:
        who = "the world's own rules examine it" if not by.scorers else "--reward examines it"
        raise ConfigError(f"--suite {name} with --judge: {who}, so leave out --judge")


@dataclass(frozen=True)
class Nobody:
    """Examines nothing: pictures are only drawn."""

    about: Mapping[str, Any] = field(default_factory=dict)

    def __call__(
        self, pictures: Sequence[Tensor], prompts: Sequence[Prompt], thinking: Sequence[str | None]
    ) -> list[Record]:
        """Is never asked."""
        return [no_answer(category_of(prompt), "nobody examined it") for prompt in prompts]


# The worlds' rules, and rewards


@dataclass(frozen=True)
class WorldRules:
    """The rules of an embedded world as an examiner."""

    world: EmbeddedWorld

    def __post_init__(self) -> None:
        self.world.check_judge()

    @property
    def about(self) -> Mapping[str, Any]:
        """The world, and what read its pictures."""
        packages = {name: version.of(name) for name in self.world.packages}
        return {"examiner": f"the rules of the {self.world.name} world", **packages}

    def __call__(
        self, pictures: Sequence[Tensor], prompts: Sequence[Prompt], thinking: Sequence[str | None]
    ) -> list[Record]:
        """Judge pictures of the world's size; another one is no answer."""
        high, wide = self.world.image_size
        fits = [i for i, picture in enumerate(pictures) if picture.shape[1:] == (high, wide)]
        records = [
            no_answer(category_of(p), _odd_size(picture, high, wide))
            for p, picture in zip(prompts, pictures, strict=True)
        ]
        if fits:
            images = torch.stack([pictures[i] for i in fits]).float() / 255.0
            found = self.world.judge(images, [prompts[i] for i in fits], [thinking[i] for i in fits])
            for i, verdict in zip(fits, found, strict=True):
                records[i] = _of_verdict(verdict)
        return records


def _odd_size(picture: Tensor, high: int, wide: int) -> str:
    return f"the picture has {picture.shape[2]} x {picture.shape[1]} pixels, and the rules read {wide} x {high}"


def _of_verdict(verdict: Mapping[str, Any]) -> Record:
    """A world's verdict as an examiner's record."""
    points, named = verdict["points"] or [], ("reward", "plan_right", "follow", "parsable")
    values = {name: None if verdict[name] is None else float(verdict[name]) for name in named}
    return answer(
        verdict["category"],
        correct=verdict["correct"],
        exam=verdict["exam"],
        reasons=[str(question) for question, met in points if not met],
        values={name: value for name, value in values.items() if value is not None},
        detail={"points": points, **{key: verdict[key] for key in ("read",) if key in verdict}},
    )


@dataclass(frozen=True)
class WithReward:
    """Rewards as an examiner, or beside the rules of a world, whose own reward they replace."""

    reward: CompositeReward
    scorers: Sequence[Scorer]
    rules: Examiner | None = None

    @property
    def about(self) -> Mapping[str, Any]:
        """The rewards as they were asked for, one's own with a hash of its file."""
        return {**(self.rules.about if self.rules is not None else {}), "rewards": [_told(s) for s in self.scorers]}

    def __call__(
        self, pictures: Sequence[Tensor], prompts: Sequence[Prompt], thinking: Sequence[str | None]
    ) -> list[Record]:
        """Ask the rewards, of pictures of one size together."""
        if self.rules is None:
            records = [answer(category_of(prompt)) for prompt in prompts]
        else:
            records = self.rules(pictures, prompts, thinking)
        for shape in dict.fromkeys(picture.shape for picture in pictures):
            which = [i for i, picture in enumerate(pictures) if picture.shape == shape]
            images = torch.stack([pictures[i] for i in which]).float() / 255.0
            asked = [prompts[i] for i in which]
            given = RewardInput(images, [p.text for p in asked], metadata_of(asked), [thinking[i] for i in which])
            scored = self.reward(given)
            for place, i in enumerate(which):
                records[i] = self._with(records[i], scored.values[place], scored.failures.get(place))
        return records

    def _with(self, record: Record, value: float, failure: str | None) -> Record:
        if failure is not None or not math.isfinite(value):
            return no_answer(record["category"], failure or "the reward is not finite", detail=record["detail"])
        return {**record, "values": {**record["values"], "reward": float(value)}}


def _told(scorer: Scorer) -> dict[str, Any]:
    place = reference(scorer.name)
    file = {"sha256": digest(place.place)[:16]} if place is not None and place.is_file else {}
    return {"name": scorer.name, "value": scorer.value, "weight": scorer.weight, "args": dict(scorer.args), **file}


def try_suite(suite: Suite, size: tuple[int, int], *, think: bool) -> None:
    """Try the reward of a suite on one picture of noise, so that its faults are told before anything is drawn."""
    if isinstance(suite.examiner, WithReward) and suite.prompts:
        strict = replace(suite.examiner.reward, on_error="raise")
        try_reward(strict, suite.prompts[0], size, think=think)


# Suites by name

Maker = Callable[[str, str, int | None, Examining], Suite]
MAKERS: dict[str, Maker] = {}
