"""Supervised data of the shapes world, made so that the model that learns from it leaves room for reinforcement.

A share of the plans breaks the prompt (the picture still follows the plan) and a share of the pictures misses its plan,
so reasoning and drawing both have something to gain.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import Literal

from unigrpo import seeds
from unigrpo.ranges import check_shares
from unigrpo.trajectory import Prompt
from unigrpo.worlds.shapes.planner import corrupt_scene, random_scene, sample_scene, slip
from unigrpo.worlds.shapes.prompts import PromptStream
from unigrpo.worlds.shapes.scenes import Scene

Form = Literal["think", "no_think", "unconditional", "dense", "plan_only"]


@dataclass(frozen=True)
class Demonstration:
    """One example: what stands before the picture, and the picture.

    form "think": prompt, plan, picture. "no_think": prompt and a picture that satisfies it, plan None.
    "unconditional": prompt and plan None; ``system`` tells which of the two contexts of the guidance it trains.
    "plan_only": prompt and plan without a picture (cheap: an image costs more tokens than the words).
    "dense": plan and picture without a prompt. ``system``: whether the system words come first (with thinking: yes).
    """

    prompt: Prompt | None
    plan: Scene | None
    picture: Scene | None
    form: Form = "think"
    system: bool = True


@dataclass(frozen=True)
class DemonstrationMix:
    """Shares in [0, 1]; the defaults are a start, not a finding (the paper has no such data).

    ``dense``, ``unconditional``, ``no_think`` and ``plan_only`` are shares of all demonstrations (their sum <= 1); the
    rest thinks and draws. ``bad_plan`` of the plans of that rest and of plan_only break the prompt, and ``mismatch`` of
    the pictures of that rest miss the plan in one object. ``unsorted`` of all plans are in random order, the others
    row-major.
    """

    bad_plan: float = 0.35
    mismatch: float = 0.1
    no_think: float = 0.1
    unconditional: float = 0.1
    dense: float = 0.0
    unsorted: float = 0.0
    plan_only: float = 0.0

    def __post_init__(self) -> None:
        for name, share in asdict(self).items():
            if not 0 <= share <= 1:
                raise ValueError(f"demonstration mix: {name} is a share and must be in [0, 1], not {share}")
        whole = {"dense": self.dense, "unconditional": self.unconditional, "no_think": self.no_think}
        check_shares("demonstration mix", {**whole, "plan_only": self.plan_only})


def _form(share: float, mix: DemonstrationMix) -> Form:
    """Which form the point ``share`` in [0, 1) falls on; plan_only last, so that a batch has its pictures first."""
    if share >= 1 - mix.plan_only:
        return "plan_only"
    if share < mix.dense:
        return "dense"
    if share < mix.dense + mix.unconditional:
        return "unconditional"
    return "no_think" if share < mix.dense + mix.unconditional + mix.no_think else "think"


def _demonstration(form: Form, prompt: Prompt, mix: DemonstrationMix, draws: random.Random) -> Demonstration:
    if form == "dense":
        scene = random_scene(draws, unsorted=mix.unsorted)
        return Demonstration(None, scene, scene, form)
    scene = sample_scene(prompt.metadata, draws, mix.unsorted)
    if form == "unconditional":
        return Demonstration(None, None, scene, form, system=draws.random() < 0.5)
    if form == "no_think":
        return Demonstration(prompt, None, scene, form, system=False)
    if draws.random() < mix.bad_plan:
        scene = corrupt_scene(scene, prompt.metadata, draws)
    if form == "plan_only":
        return Demonstration(prompt, scene, None, form)
    picture = slip(scene, draws) if draws.random() < mix.mismatch else scene
    return Demonstration(prompt, scene, picture, form)


def demonstrations(seed: int, iteration: int, n: int, mix: DemonstrationMix) -> list[Demonstration]:
    """n demonstrations for one step of supervised training, from the prompts of the train split.

    The four forms have their shares in every batch (systematic sampling: one random offset, then steps of 1/n); all
    other draws are keyed by (seed, iteration, position in the batch).
    """
    stream = PromptStream("train", seed)
    offset = random.Random(seeds.key(seed, iteration, 0, 0, "shapes demonstration forms")).random()
    made = []
    for index in range(n):
        draws = random.Random(seeds.key(seed, iteration, index, 0, "shapes demonstration"))
        form = _form((index + offset) / n, mix)
        made.append(_demonstration(form, stream.at(iteration * n + index), mix, draws))
    return made
