"""Rewards by name: those that ship, and those of a recipe as one weighted sum."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Literal

from torch import Tensor

from unigrpo.build.worlds import EDIT, PREFERENCE, READER, VERIFIER, check_pictures
from unigrpo.loading import reference
from unigrpo.ranges import ConfigError
from unigrpo.recipe import Model, Scorer
from unigrpo.rewards import registry
from unigrpo.rewards.composite import CompositeReward, WeightedReward
from unigrpo.rewards.ocr import PACKAGES as _OCR
from unigrpo.rewards.protocol import DifferentiableReward, RewardOutput
from unigrpo.worlds.shapes import IMAGE_SIZE, RewardWeights, tasks
from unigrpo.worlds.shapes.edit_verifier import is_multiple
from unigrpo.worlds.shapes.preference import load_preference

SELF = "bagel/self"


@dataclass(frozen=True)
class Shipped:
    """A reward of this package: where it is (imported when it is asked for), and what it takes and gives.

    extra: that brings ``packages``; gradient: whether it reaches the pixels.
    """

    place: str
    about: str
    gradient: bool = False
    extra: str | None = None
    packages: tuple[str, ...] = ()

    @property
    def lacks(self) -> list[str]:
        """Packages that are not installed."""
        return [package for package in self.packages if find_spec(package) is None]


_HERE, _REWARDS = "unigrpo.build.rewards", "unigrpo.rewards"
SHIPPED: Mapping[str, Shipped] = {
    VERIFIER: Shipped(f"{_HERE}:shapes_verifier", "the shapes world by its rules: the share of what was asked, 0 to 1"),
    EDIT: Shipped(f"{_HERE}:shapes_edit", "edits of the shapes world: what must change times what must stay, 0 to 1"),
    PREFERENCE: Shipped(f"{_HERE}:ShapesPreference", "a small learned judge of the shapes world", gradient=True),
    READER: Shipped(
        "unigrpo.build.worlds:line_reader", "ocr/text on the one line of the words world", False, "ocr", _OCR
    ),
    "ocr/text": Shipped(
        f"{_REWARDS}.ocr:OcrText", "does the picture say the wanted word? 1 - edits / letters", False, "ocr", _OCR
    ),
    "clip/score": Shipped(
        f"{_REWARDS}.clip:ClipScore", "CLIP: how well picture and prompt agree", True, "clip", ("transformers",)
    ),
    "clip/pickscore": Shipped(
        f"{_REWARDS}.clip:PickScore", "PickScore: what people would choose", True, "clip", ("transformers",)
    ),
    "clip/hpsv2": Shipped(
        f"{_REWARDS}.clip:HpsV2", "HPS v2.1: what people would choose", True, "clip", ("transformers",)
    ),
    "clip/aesthetic": Shipped(
        f"{_REWARDS}.clip:Aesthetic",
        "LAION's aesthetic score, 1 to 10; reads no prompt",
        True,
        "clip",
        ("transformers",),
    ),
    "vlm/yes": Shipped(
        f"{_REWARDS}.vlm:VlmYes", "P(yes) of a Qwen-VL that is asked about the picture", True, "vlm", ("transformers",)
    ),
    SELF: Shipped("unigrpo.build.self_reward:BagelSelf", "mean log p(prompt | picture) by a frozen copy of the model"),
    "judge/exam": Shipped(
        f"{_REWARDS}.judge:JudgeExam",
        "a model behind an OpenAI-compatible service marks exam points",
        False,
        "judge",
        ("httpx2",),
    ),
    "judge/score": Shipped(
        f"{_REWARDS}.judge:JudgeScore",
        "such a model answers one question about the picture",
        False,
        "judge",
        ("httpx2",),
    ),
    "remote/http": Shipped(
        f"{_REWARDS}.remote:RemoteHttp",
        "a reward that `unigrpo rewards serve` answers for",
        False,
        "serve",
        ("httpx2",),
    ),
    "geneval_soft": Shipped(
        "unigrpo.evaluation.geneval_soft:GenevalSoft",
        "flow_grpo's reward for GenEval's prompts: a detector's objects, partial credit; not the GenEval score",
        False,
        "geneval",
        ("transformers",),
    ),
    "think/format": Shipped(f"{_REWARDS}.thinking:ThinkFormat", "1 where the thinking has its tags and its pattern"),
    "think/length": Shipped(
        f"{_REWARDS}.thinking:ThinkLength", "up to 1; less where the thinking is too short or long"
    ),
    "image/jpeg-compressibility": Shipped(f"{_REWARDS}.jpeg:compressibility", "-kB as a JPEG: a toy, smooth is good"),
    "image/jpeg-incompressibility": Shipped(
        f"{_REWARDS}.jpeg:incompressibility", "+kB as a JPEG: a toy, noise is good"
    ),
    "imscore:NAME": Shipped(
        f"{_REWARDS}.imscore:Imscore", "a scorer of the package imscore, such as PickScorer", True, None, ("imscore",)
    ),
}
registry.ship({name: shipped.place for name, shipped in SHIPPED.items()})


def shapes_verifier(
    images: Tensor,
    prompts: Sequence[str],
    metadata: Sequence[Mapping[str, Any]],
    thinking: Sequence[str | None],
    *,
    tidy: float = tasks.DEFAULT_WEIGHTS.tidy,
) -> RewardOutput:
    """The shares of what prompts of the shapes world ask for, by its rules.

    tidy: the factor for every object beyond what was asked, in (0, 1]; 1 forgives them, and then they come.
    """
    check_pictures(VERIFIER, images, (IMAGE_SIZE, IMAGE_SIZE))
    values, parts = tasks.graded_reward(images, metadata, _weights(VERIFIER, tidy))
    return RewardOutput(values, parts)


def shapes_edit(
    images: Tensor,
    prompts: Sequence[str],
    metadata: Sequence[Mapping[str, Any]],
    thinking: Sequence[str | None],
    *,
    tidy: float = tasks.DEFAULT_WEIGHTS.tidy,
) -> RewardOutput:
    """How far an edit of the shapes world changed what must change, times how well it kept what must stay.

    tidy: the factor for every object that is new and was not asked for, in (0, 1].
    """
    if not is_multiple(images.shape[-2], images.shape[-1]):
        check_pictures(EDIT, images, (IMAGE_SIZE, IMAGE_SIZE))
    values, parts = tasks.edit_reward(images, metadata, _weights(EDIT, tidy))
    return RewardOutput(values, parts)


def _weights(name: str, tidy: float) -> RewardWeights:
    """The weights of a verifier; ConfigError where tidy is no factor."""
    if not 0 < tidy <= 1:
        raise ConfigError(f"{name}: tidy is the factor for every extra object, so it must be in (0, 1], not {tidy}")
    return replace(tasks.DEFAULT_WEIGHTS, tidy=tidy)


class ShapesPreference(DifferentiableReward):
    """The small reward model of the shapes world."""

    def __init__(self) -> None:
        from unigrpo.build.models import builtin_folder  # here, because models.py needs this package too

        self.model = load_preference(builtin_folder("shapes-preference"))

    def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """The preference score of every picture."""
        return self.model.to(images.device)(images, prompts)


def reward(
    scorers: Sequence[Scorer],
    on_error: Literal["raise", "drop_sample"] = "raise",
    max_failed_share: float = 0.2,
    model: Model | None = None,
) -> CompositeReward:
    """The weighted sum of named rewards; ``model``: the one that draws, which bagel/self begins from."""
    made = zip(labels(scorers), [_with_model(s, model) for s in scorers], strict=True)
    return CompositeReward(
        tuple(WeightedReward(name, registry.build(s.name, s.args), s.weight, s.value, s.timeout_s) for name, s in made),
        on_error,
        max_failed_share,
    )


def _with_model(scorer: Scorer, model: Model | None) -> Scorer:
    if scorer.name != SELF or model is None or model.path.startswith("stage:"):  # of a run that is still to be made
        return scorer
    return replace(scorer, args={"model": model.path, "device": model.device, **scorer.args})


def labels(scorers: Sequence[Scorer]) -> list[str]:
    """What logs call rewards, each differently: a file's without its folder, unless another one would be called so too.

    Of one reward that is there more than once, its value is named too, or its number.
    """
    places = {s.name: reference(s.name) for s in scorers}
    short = {name: name if place is None else place.label for name, place in places.items()}
    shared = Counter(short.values())
    named = [short[s.name] if shared[short[s.name]] == 1 else s.name for s in scorers]
    often = Counter(named)
    told = [f"{n}:{s.value}" if often[n] > 1 and s.value else n for n, s in zip(named, scorers, strict=True)]
    found: list[str] = []
    for label in told:
        number = told[: len(found)].count(label) + 1
        found.append(label if number == 1 else f"{label}-{number}")
    return found
