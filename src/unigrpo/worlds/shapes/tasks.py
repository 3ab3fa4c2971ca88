"""The shapes world as tasks for a policy: supervised trajectories, the training reward, and the evaluation's judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from unigrpo.policy import Policy
from unigrpo.trajectory import Prompt, Trajectory
from unigrpo.worlds.demonstrations import Demonstration
from unigrpo.worlds.shapes.critiques import Rethinking, applied, content, critique_right, parse_rethinking
from unigrpo.worlds.shapes.demonstrations import TEACHER
from unigrpo.worlds.shapes.planner import parse_plan, plan_satisfies
from unigrpo.worlds.shapes.scenes import Scene
from unigrpo.worlds.shapes.verifier import RewardWeights, follows, read_scenes, verify

DEFAULT_WEIGHTS = RewardWeights()


def supervised_trajectories(policy: Policy, demonstrations: Sequence[Demonstration[Scene]]) -> list[Trajectory]:
    """Demonstrations as trajectories with targets: the plan (where there is a prompt) and the picture's latents."""
    return TEACHER.trajectories(policy, demonstrations)


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


def read_thinking(text: str) -> Rethinking | None:
    """What a thinking says, of any round: a plan alone, a critique with a plan, or "fine"; None where it is neither."""
    plan = parse_plan(text)
    return parse_rethinking(text) if plan is None else Rethinking((), plan)


def _satisfies(plan: Scene | None, metadata: Mapping[str, Any]) -> bool:
    return plan is not None and plan_satisfies(plan, metadata)


def judge_look(
    looked_at: Tensor, prompts: Sequence[Prompt], thinking: Sequence[str | None]
) -> list[dict[str, bool | None]]:
    """What is to be said of a second thinking: one record per picture [B, 3, 32, 32] that it is about.

    needed: the picture lacks something, or has too much; fine: it says "fine"; critique_right: all that it says is true
    of the picture, and the picture so changed is what the prompt asks for; plan_follows: the new plan is the picture
    with that done. All None without thinking; of an unparsable one the critique is wrong. A plan without a critique
    says nothing: both are None.
    """
    records = []
    for reading, prompt, text in zip(read_scenes(looked_at), prompts, thinking, strict=True):
        needed = not content(reading.scene, prompt.metadata)
        said = None if text is None else parse_rethinking(text)
        silent = text is None or (said is None and parse_plan(text) is not None)
        right = said is not None and critique_right(said.remarks, reading.scene, prompt.metadata)
        records.append(
            {
                "needed": needed,
                "fine": None if text is None else said is not None and said.plan is None,
                "critique_right": None if silent else right,
                "plan_follows": None if said is None or said.plan is None else _done(said, reading.scene),
            }
        )
    return records


def _done(said: Rethinking, scene: Scene) -> bool:
    """Whether the plan is the scene with all that was said done."""
    changed = applied(scene, said.remarks)
    return changed is not None and said.plan is not None and said.plan.same_picture(changed)


def judge_pictures(images: Tensor, prompts: Sequence[Prompt], thinking: Sequence[str | None]) -> list[dict[str, Any]]:
    """One record per picture for the evaluation.

    plan_right: the parsed plan satisfies the prompt (an unparsable plan is wrong); follow: the picture shows exactly
    the plan's objects at their cells (None for an unparsable plan, or without thinking). The thinking may have a
    critique before its plan; of one that says "fine", and so leaves the plan as it was, neither is known.
    """
    records = []
    for verdict, prompt, text in zip(verify(images, [p.metadata for p in prompts]), prompts, thinking, strict=True):
        read = None if text is None else read_thinking(text)
        plan, fine = (None, False) if read is None else (read.plan, read.plan is None)
        records.append(
            {
                "category": prompt.metadata["category"],
                "correct": verdict.correct,
                "exam": verdict.exam,
                "reward": verdict.reward,
                "points": [[question, met] for question, met in verdict.points],
                "parsable": None if text is None else read is not None,
                "plan_right": None if text is None or fine else _satisfies(plan, prompt.metadata),
                "follow": None if plan is None else follows(verdict.reading, plan),
            }
        )
    return records
