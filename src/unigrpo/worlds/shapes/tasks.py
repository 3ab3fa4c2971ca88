"""The shapes world as tasks for a policy: supervised trajectories, the training reward, and the evaluation's judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from unigrpo.policy import Policy
from unigrpo.trajectory import Prompt, Trajectory
from unigrpo.worlds.demonstrations import Demonstration
from unigrpo.worlds.shapes.critiques import Rethinking, parse_rethinking
from unigrpo.worlds.shapes.demonstrations import TEACHER
from unigrpo.worlds.shapes.edit_verifier import EditVerdict, verify_edits
from unigrpo.worlds.shapes.edits import edit_of, is_edit, judged
from unigrpo.worlds.shapes.planner import listed, parse_plan
from unigrpo.worlds.shapes.renderer import IMAGE_SIZE
from unigrpo.worlds.shapes.scenes import Scene
from unigrpo.worlds.shapes.verifier import RewardWeights, Verdict, follows, verify

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


def edit_reward(
    images: Tensor, metadata: Sequence[Mapping[str, Any]], weights: RewardWeights = DEFAULT_WEIGHTS
) -> tuple[list[float], dict[str, list[float]]]:
    """The training reward of edited pictures [B, 3, 32, 32], and its parts by name."""
    verdicts = verify_edits(images, metadata, weights)
    parts = {
        "correct": [float(v.correct) for v in verdicts],
        "exam": [v.exam for v in verdicts],
        "changed": [v.changed for v in verdicts],
        "kept": [v.kept for v in verdicts],
    }
    return [v.reward for v in verdicts], parts


def read_thinking(text: str) -> Rethinking | None:
    """What a thinking says, of any round: a plan alone, a critique with a plan, or "fine"; None where it is neither."""
    plan = parse_plan(text)
    return parse_rethinking(text) if plan is None else Rethinking((), plan)


def judge_pictures(images: Tensor, prompts: Sequence[Prompt], thinking: Sequence[str | None]) -> list[dict[str, Any]]:
    """One record per picture for the evaluation, by the verifier of prompts or, where a prompt is one, of edits.

    plan_right: the parsed plan satisfies the prompt (an unparsable plan is wrong); follow: the picture shows exactly
    the plan's objects at their cells (None for an unparsable plan, or without thinking). The thinking may have a
    critique before its plan; of one that says "fine", and so leaves the plan as it was, neither is known. shown: the
    objects that are read from the picture, in the words of a plan. Of edits also ``changed``, ``kept`` and ``source``,
    the objects of the picture that was given. Models that draw larger pictures think in prose: nothing is said of their
    plans.
    """
    drawn = [i for i, prompt in enumerate(prompts) if not is_edit(prompt.metadata)]
    edited = [i for i, prompt in enumerate(prompts) if is_edit(prompt.metadata)]
    verdicts: dict[int, Verdict | EditVerdict] = {}
    for which, verifier in ((drawn, verify), (edited, verify_edits)):
        if not which:
            continue
        verdicts |= zip(which, verifier(images[which], [prompts[i].metadata for i in which]), strict=True)
    plans = thinking if images.shape[-1] == IMAGE_SIZE else [None] * len(prompts)
    return [_record(verdicts[i], prompt.metadata, plans[i]) for i, prompt in enumerate(prompts)]


def _record(verdict: Verdict | EditVerdict, metadata: Mapping[str, Any], text: str | None) -> dict[str, Any]:
    read = None if text is None else read_thinking(text)
    plan, fine = (None, False) if read is None else (read.plan, read.plan is None)
    return {
        "category": metadata["category"],
        "correct": verdict.correct,
        "exam": verdict.exam,
        "reward": verdict.reward,
        "points": [[question, met] for question, met in verdict.points],
        "parsable": None if text is None else read is not None,
        "plan_right": None if text is None or fine else plan is not None and judged(plan, metadata).correct,
        "follow": None if plan is None else follows(verdict.reading, plan),
        "shown": listed(verdict.reading.scene),
        **(_of_edit(verdict, metadata) if isinstance(verdict, EditVerdict) else {}),
    }


def _of_edit(verdict: EditVerdict, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The two halves of an edit's verdict, and the objects of the picture that it began with."""
    return {"changed": verdict.changed, "kept": verdict.kept, "source": listed(edit_of(metadata).source)}
