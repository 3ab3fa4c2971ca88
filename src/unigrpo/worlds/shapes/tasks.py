"""The shapes world as tasks for a policy: supervised trajectories, the training reward, and the evaluation's judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from unigrpo.policy import Policy
from unigrpo.trajectory import Image, Prompt, Segment, Text, Trajectory, without_prompt
from unigrpo.worlds.shapes.demonstrations import Demonstration
from unigrpo.worlds.shapes.planner import format_plan, parse_plan, plan_satisfies
from unigrpo.worlds.shapes.renderer import render
from unigrpo.worlds.shapes.verifier import RewardWeights, follows, verify

DEFAULT_WEIGHTS = RewardWeights()


def given_segments(policy: Policy, demonstration: Demonstration) -> tuple[Segment, ...]:
    """What stands before the picture, as the policy would see it at sampling time; a prompted plan is a target."""
    think = demonstration.plan is not None or (demonstration.prompt is None and demonstration.system)
    before = policy.prompt_segments(demonstration.prompt or Prompt(0, ""), think=think)
    if demonstration.prompt is None:
        before = without_prompt(before)
    if demonstration.plan is None:
        return before
    ids = policy.encode_text(format_plan(demonstration.plan))
    return (*before, Text(ids, target=demonstration.form in ("think", "plan_only")))


def supervised_trajectories(policy: Policy, demonstrations: Sequence[Demonstration]) -> list[Trajectory]:
    """Demonstrations as trajectories with targets: the plan (where there is a prompt) and the picture's latents."""
    pictures = [item.picture for item in demonstrations if item.picture is not None]
    latents = iter(policy.encode_image(render(pictures)) if pictures else [])
    made = []
    for index, item in enumerate(demonstrations):
        prompt = item.prompt or Prompt(index, "", {})
        image = () if item.picture is None else (Image(next(latents), policy.spec.grid, target=True),)
        made.append(Trajectory(prompt, 0, (*given_segments(policy, item), *image)))
    return made


def graded_reward(
    images: Tensor,
    metadata: Sequence[Mapping[str, Any]],
    weights: RewardWeights = DEFAULT_WEIGHTS,
) -> tuple[list[float], dict[str, list[float]]]:
    """The training reward of pictures [B, 3, 32, 32], and its parts by name."""
    verdicts = verify(images, metadata, weights)
    parts = {
        "correct": [float(v.correct) for v in verdicts],
        "exam": [v.exam for v in verdicts],
        "evidence": [v.evidence for v in verdicts],
        "clean": [v.cleanness for v in verdicts],
    }
    return [v.reward for v in verdicts], parts


def judge_pictures(images: Tensor, prompts: Sequence[Prompt], thinking: Sequence[str | None]) -> list[dict[str, Any]]:
    """One record per picture for the evaluation.

    plan_right: the parsed plan satisfies the prompt (an unparsable plan is wrong); follow: the picture shows exactly
    the plan's objects at their cells (None for an unparsable plan, or without thinking).
    """
    records = []
    for verdict, prompt, text in zip(verify(images, [p.metadata for p in prompts]), prompts, thinking, strict=True):
        plan = None if text is None else parse_plan(text)
        records.append(
            {
                "category": prompt.metadata["category"],
                "correct": verdict.correct,
                "exam": verdict.exam,
                "reward": verdict.reward,
                "points": [[question, met] for question, met in verdict.points],
                "parsable": None if text is None else plan is not None,
                "plan_right": None if text is None else plan is not None and plan_satisfies(plan, prompt.metadata),
                "follow": None if plan is None else follows(verdict.reading, plan),
            }
        )
    return records
