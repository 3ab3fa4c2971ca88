"""Examiners of what ships with the package: the rules of the embedded worlds, rewards, and detectors of one's own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from unigrpo import version
from unigrpo.build.worlds import EmbeddedWorld, reads
from unigrpo.evaluation.suites import Examiner, Record, answer, category_of, no_answer
from unigrpo.loading import digest, load, reference
from unigrpo.ranges import ConfigError
from unigrpo.recipe import Scorer
from unigrpo.rewards.composite import CompositeReward
from unigrpo.rewards.protocol import RewardInput, metadata_of
from unigrpo.trajectory import Prompt


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
        """Judge pictures of a size that the world's rules read; another one is no answer."""
        high, wide = self.world.image_size
        records = [
            no_answer(category_of(p), _odd_size(picture, high, wide))
            for p, picture in zip(prompts, pictures, strict=True)
        ]
        sizes: dict[tuple[int, int], list[int]] = {}
        for i, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True)):
            if reads(self.world, prompt, size := (picture.shape[1], picture.shape[2])):
                sizes.setdefault(size, []).append(i)
        for fits in sizes.values():
            images = torch.stack([pictures[i] for i in fits]).float() / 255.0
            found = self.world.judge(images, [prompts[i] for i in fits], [thinking[i] for i in fits])
            for i, verdict in zip(fits, found, strict=True):
                records[i] = _of_verdict(verdict)
        return records


def _odd_size(picture: Tensor, high: int, wide: int) -> str:
    return f"the picture has {picture.shape[2]} x {picture.shape[1]} pixels, and the rules read {wide} x {high}"


def _of_verdict(verdict: Mapping[str, Any]) -> Record:
    """A world's verdict as an examiner's record."""
    points, named = verdict["points"] or [], ("reward", "plan_right", "follow", "parsable", "changed", "kept")
    values = {name: None if verdict.get(name) is None else float(verdict[name]) for name in named}
    return answer(
        verdict["category"],
        correct=verdict["correct"],
        exam=verdict["exam"],
        reasons=[str(question) for question, met in points if not met],
        values={name: value for name, value in values.items() if value is not None},
        detail={"points": points, **{key: verdict[key] for key in ("read", "shown", "source") if key in verdict}},
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


# Detectors


@runtime_checkable
class _Says(Protocol):
    """Says of itself what results must tell."""

    @property
    def about(self) -> Mapping[str, Any]: ...


def _says(thing: object, name: str) -> dict[str, Any]:
    """What a detector says of itself; its score is never called GenEval, which only the official one's is."""
    own = thing.about if isinstance(thing, _Says) else {}
    if not isinstance(own, Mapping):
        raise ConfigError(f"detector {name!r}: its about is {own!r:.60}, and goes into the result: make it a dict")
    return {key: value for key, value in own.items() if (key, value) != ("called", "GenEval")}


class OwnDetector:
    """A detector of one's own, ``path/file.py:thing`` or ``package.module:thing``, made with its arguments.

    about: its name, a hash of its file, its arguments, and what it says of itself.
    """

    def __init__(self, name: str, args: Mapping[str, Any]) -> None:
        """ConfigError where there is no such thing, or it does not take these arguments."""
        place = reference(name)
        assert place is not None
        made = load(name, place, "detector")
        try:
            self._thing = made(**args)
        except TypeError as error:
            raise ConfigError(f"detector {name!r} cannot be made of these arguments: {error}") from error
        if not callable(self._thing):
            raise ConfigError(f"detector {name!r} makes {self._thing!r:.60}, which cannot be called with a picture")
        file = {"sha256": digest(place.place)[:16]} if place.is_file else {}
        own = _says(self._thing, name)
        self.about: Mapping[str, Any] = {"name": place.label, **file, "args": dict(args), **own}

    def __call__(self, picture: Tensor, wanted: Sequence[str]) -> list[dict[str, Any]]:
        """What it finds in a picture uint8 [3, H, W]."""
        return list(self._thing(picture, wanted))
