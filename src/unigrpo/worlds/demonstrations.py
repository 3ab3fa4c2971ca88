"""Supervised data of an embedded world, made so that the model that learns from it leaves room for reinforcement.

A share of the plans breaks the prompt (the picture still follows the plan) and a share of the pictures misses its plan,
so reasoning and drawing both have something to gain. A world says what a plan is (:class:`Teacher`); all else is here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, Literal, TypeVar, get_args

import torch
from torch import Tensor

from unigrpo import seeds
from unigrpo.policy import Policy
from unigrpo.ranges import check_shares
from unigrpo.trajectory import Image, Prompt, Segment, Text, Trajectory, View, without_prompt

Looking = Literal["look", "edit", "look_only", "question"]
Form = Literal["think", "no_think", "unconditional", "dense", "plan_only"] | Looking
LOOKING: tuple[Looking, ...] = get_args(Looking)
"""Forms in which a picture is looked at, which a world has where its teacher says so (shapes)."""
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
            made.append(self.demonstration(form, self.prompt(seed, iteration * n + index), mix, draws))
        return made

    def demonstration(
        self, form: Form, prompt: Prompt, mix: DemonstrationMix, draws: random.Random
    ) -> Demonstration[Plan]:
        """One demonstration of a form, for a training prompt; ValueError for one in which a picture is looked at."""
        if form in LOOKING:
            raise ValueError(
                f"the {self.name} world has no demonstrations of the form {form}: set data.mix.{form} to 0"
            )
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
        """Demonstrations as trajectories with targets: the plan (where there is a prompt) and the picture's latents.

        A picture that is looked at comes as LOOK gives it in a rollout: 8 bit, as latents and as seen.
        """
        pictures = [item.picture for item in demonstrations if item.picture is not None]
        latents = iter(policy.encode_image(self.render(pictures)) if pictures else [])
        shown = [picture for item in demonstrations for picture in item.looked_at]
        looks = iter(policy.look_segments(torch.stack(shown)) if shown else [])
        made = []
        for index, item in enumerate(demonstrations):
            prompt = item.prompt or Prompt(index, "", {})
            seen = [next(looks) for _ in item.looked_at]
            image = () if item.picture is None else (Image(next(latents), policy.spec.grid, target=True),)
            before = self._looking(policy, item, seen) if item.form in LOOKING else self._given(policy, item)
            made.append(Trajectory(prompt, 0, (*before, *image)))
        return made

    def _looking(
        self, policy: Policy, item: Demonstration[Plan], looks: Sequence[tuple[Segment, ...]]
    ) -> tuple[Segment, ...]:
        """What stands before the picture (if any) where one is looked at first; what is said of it is a target.

        looks: what the model sees of the source, if there is one, and of the picture that is looked at.
        """
        prompt, said = item.prompt or Prompt(0, ""), Text(policy.encode_text(item.said), target=True)
        asked = policy.prompt_segments(prompt, think=item.form != "question")
        *given, look = looks
        if item.form == "question":  # as question_segments has it: seen alone, where there is a vision tower
            seen = [segment for segment in look if isinstance(segment, View)]
            return (*(seen or look), *asked, said)
        if item.form == "edit":
            return (*asked[:-1], *look, asked[-1], said)
        first = () if item.plan is None else (Text(policy.encode_text(self.write(item.plan))),)
        return (*asked[:-1], *(segment for segments in given for segment in segments), asked[-1], *first, *look, said)

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
    "look": prompt, first plan, the picture ``shown`` for it, what is ``said`` of it, and the next picture; "look_only":
    the same without the next picture; both may begin with a picture ``source`` that the prompt edits. "edit": the
    picture shown, the prompt, the plan as it is said, and the picture.
    "question": the picture shown, the question as prompt, and its answer. ``source`` and ``shown`` are uint8 [3, H, W].
    """

    prompt: Prompt | None
    plan: Plan | None
    picture: Plan | None
    form: Form = "think"
    system: bool = True
    shown: Tensor | None = None
    said: str = ""
    source: Tensor | None = None

    @property
    def looked_at(self) -> tuple[Tensor, ...]:
        """The pictures that are given or looked at, in order."""
        return tuple(picture for picture in (self.source, self.shown) if picture is not None)


@dataclass(frozen=True)
class DemonstrationMix:
    """Shares in [0, 1]; the defaults are a start, not a finding (the paper has no such data).

    ``dense``, ``unconditional``, ``no_think`` and ``plan_only`` are shares of all demonstrations (their sum <= 1); the
    rest thinks and draws. ``bad_plan`` of the plans of that rest and of plan_only break the prompt, and ``mismatch`` of
    the pictures of that rest miss the plan in one part. ``unsorted`` of all plans are in random order, the others
    in the order of their places. ``look``, ``edit``, ``look_only`` and ``question`` are shares of all demonstrations
    too (0 in a world that has none): of the pictures that are looked at ``misseen`` are described as if they showed
    something else, and of the pictures that follow ``bad_revision`` miss their plan. ``look_edits`` of look and
    look_only are of an edit that was drawn.
    """

    bad_plan: float = 0.35
    mismatch: float = 0.1
    no_think: float = 0.1
    unconditional: float = 0.1
    dense: float = 0.0
    unsorted: float = 0.0
    plan_only: float = 0.0
    look: float = 0.0
    edit: float = 0.0
    look_only: float = 0.0
    question: float = 0.0
    misseen: float = 0.0
    bad_revision: float = 0.0
    look_edits: float = 0.0

    def __post_init__(self) -> None:
        for name, share in asdict(self).items():
            if not 0 <= share <= 1:
                raise ValueError(f"demonstration mix: {name} is a share and must be in [0, 1], not {share}")
        whole = {"dense": self.dense, "unconditional": self.unconditional, "no_think": self.no_think}
        looking: dict[str, float] = {form: getattr(self, form) for form in LOOKING if getattr(self, form) > 0}
        check_shares("demonstration mix", {**whole, "plan_only": self.plan_only, **looking})


def _form(share: float, mix: DemonstrationMix) -> Form:
    """Which form the point ``share`` in [0, 1) falls on; plan_only last, so that a batch has its pictures first."""
    if share >= 1 - mix.plan_only:
        return "plan_only"
    start = 1 - mix.plan_only
    looking: tuple[tuple[Form, float], ...] = (
        ("question", mix.question),
        ("look_only", mix.look_only),
        ("edit", mix.edit),
        ("look", mix.look),
    )
    for form, size in looking:
        start -= size
        if size and share >= start:
            return form
    if share < mix.dense:
        return "dense"
    if share < mix.dense + mix.unconditional:
        return "unconditional"
    return "no_think" if share < mix.dense + mix.unconditional + mix.no_think else "think"
