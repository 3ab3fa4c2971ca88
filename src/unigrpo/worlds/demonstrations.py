"""Supervised data of an embedded world, made so that the model that learns from it leaves room for reinforcement.

A share of the plans breaks the prompt (the picture still follows the plan) and a share of the pictures misses its plan,
so reasoning and drawing both have something to gain. A world says what a plan is (:class:`Teacher`); all else is here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, Literal, TypeVar

from torch import Tensor

from unigrpo import seeds
from unigrpo.policy import Policy
from unigrpo.ranges import check_shares
from unigrpo.trajectory import Image, Prompt, Segment, Text, Trajectory, without_prompt

Form = Literal["think", "no_think", "unconditional", "dense", "plan_only"]
Plan = TypeVar("Plan")
"""What a plan describes, and so a picture shows: a scene of shapes, a sign with letters."""


@dataclass(frozen=True)
class Teacher(Generic[Plan]):
    """What a world shows to its pupils.

    name: keys its draws; prompt: the training prompt of (seed, position); sample: a plan that satisfies a prompt's
    metadata (with a probability, its parts in random order); dense: a plan without a prompt; corrupt: the plan with one
    mistake, so that it breaks the prompt; slip: what a picture shows that misses the plan; write: the plan as the model
    thinks it; render: float32 [B, 3, H, W] in [0, 1].
    """

    name: str
    prompt: Callable[[int, int], Prompt]
    sample: Callable[[Mapping[str, Any], random.Random, float], Plan]
    dense: Callable[[random.Random, float], Plan]
    corrupt: Callable[[Plan, Mapping[str, Any], random.Random], Plan]
    slip: Callable[[Plan, random.Random], Plan]
    write: Callable[[Plan], str]
    render: Callable[[Sequence[Plan]], Tensor]

    def batch(self, seed: int, iteration: int, n: int, mix: DemonstrationMix) -> list[Demonstration[Plan]]:
        """n demonstrations for one step of supervised training, from the prompts of the train split.

        The forms have their shares in every batch (systematic sampling: one random offset, then steps of 1/n); all
        other draws are keyed by (seed, iteration, position in the batch).
        """
        offset = random.Random(seeds.key(seed, iteration, 0, 0, f"{self.name} demonstration forms")).random()
        made = []
        for index in range(n):
            draws = random.Random(seeds.key(seed, iteration, index, 0, f"{self.name} demonstration"))
            form = _form((index + offset) / n, mix)
            made.append(self._demonstration(form, self.prompt(seed, iteration * n + index), mix, draws))
        return made

    def _demonstration(
        self, form: Form, prompt: Prompt, mix: DemonstrationMix, draws: random.Random
    ) -> Demonstration[Plan]:
        if form == "dense":
            plan = self.dense(draws, mix.unsorted)
            return Demonstration(None, plan, plan, form)
        plan = self.sample(prompt.metadata, draws, mix.unsorted)
        if form == "unconditional":
            return Demonstration(None, None, plan, form, system=draws.random() < 0.5)
        if form == "no_think":
            return Demonstration(prompt, None, plan, form, system=False)
        if draws.random() < mix.bad_plan:
            plan = self.corrupt(plan, prompt.metadata, draws)
        if form == "plan_only":
            return Demonstration(prompt, plan, None, form)
        picture = self.slip(plan, draws) if draws.random() < mix.mismatch else plan
        return Demonstration(prompt, plan, picture, form)

    def trajectories(self, policy: Policy, demonstrations: Sequence[Demonstration[Plan]]) -> list[Trajectory]:
        """Demonstrations as trajectories with targets: the plan (where there is a prompt) and the picture's latents."""
        pictures = [item.picture for item in demonstrations if item.picture is not None]
        latents = iter(policy.encode_image(self.render(pictures)) if pictures else [])
        made = []
        for index, item in enumerate(demonstrations):
            prompt = item.prompt or Prompt(index, "", {})
            image = () if item.picture is None else (Image(next(latents), policy.spec.grid, target=True),)
            made.append(Trajectory(prompt, 0, (*self._given(policy, item), *image)))
        return made

    def _given(self, policy: Policy, item: Demonstration[Plan]) -> tuple[Segment, ...]:
        """What stands before the picture, as the policy would see it at sampling time; a prompted plan is a target."""
        think = item.plan is not None or (item.prompt is None and item.system)
        before = policy.prompt_segments(item.prompt or Prompt(0, ""), think=think)
        if item.prompt is None:
            before = without_prompt(before)
        if item.plan is None:
            return before
        ids = policy.encode_text(self.write(item.plan))
        return (*before, Text(ids, target=item.form in ("think", "plan_only")))


@dataclass(frozen=True)
class Demonstration(Generic[Plan]):
    """One example: what stands before the picture, and the picture.

    form "think": prompt, plan, picture. "no_think": prompt and a picture that satisfies it, plan None.
    "unconditional": prompt and plan None; ``system`` tells which of the two contexts of the guidance it trains.
    "plan_only": prompt and plan without a picture (cheap: an image costs more tokens than the words).
    "dense": plan and picture without a prompt. ``system``: whether the system words come first (with thinking: yes).
    """

    prompt: Prompt | None
    plan: Plan | None
    picture: Plan | None
    form: Form = "think"
    system: bool = True


@dataclass(frozen=True)
class DemonstrationMix:
    """Shares in [0, 1]; the defaults are a start, not a finding (the paper has no such data).

    ``dense``, ``unconditional``, ``no_think`` and ``plan_only`` are shares of all demonstrations (their sum <= 1); the
    rest thinks and draws. ``bad_plan`` of the plans of that rest and of plan_only break the prompt, and ``mismatch`` of
    the pictures of that rest miss the plan in one part. ``unsorted`` of all plans are in random order, the others
    in the order of their places.
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
