"""Draw for a fixed list of prompts, judge every picture, and sum up; the same prompts and draws every time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unigrpo.evaluation.statistics import paired_difference
from unigrpo.policy import Policy
from unigrpo.rewards.protocol import RewardInput, RewardOutput
from unigrpo.rollout.engine import Draws, Sampling, rollout
from unigrpo.rollout.episode import single_round
from unigrpo.rollout.outcome import decode_pictures, thinking_of
from unigrpo.trajectory import Prompt

EVALUATION_ITERATION = -1
"""The iteration that keys an evaluation's draws: never one of training, and the same before, during and after."""

Judge = Callable[[Tensor, Sequence[Prompt], Sequence[str | None]], list[dict[str, Any]]]
"""(images float32 [B, 3, H, W] in [0, 1], prompts, thinking) -> one record per picture: category, correct, exam,
reward, points, parsable, plan_right, follow (None where they do not apply)."""

Reward = Callable[[RewardInput], RewardOutput]


@dataclass(frozen=True)
class Evaluation:
    """One record per picture, and the pictures uint8 [N, 3, H, W], in the order of the records."""

    records: list[dict[str, Any]]
    pictures: Tensor


@torch.no_grad()
def evaluate(
    policy: Policy,
    prompts: Sequence[Prompt],
    judge: Judge,
    sampling: Sampling,
    *,
    samples: int,
    seed: int,
    think: bool,
    reward: Reward | None = None,
    batch: int = 192,
) -> Evaluation:
    """Draw ``samples`` pictures per prompt (about ``batch`` at a time) and judge them.

    ``reward`` gives the records' reward in place of the judge's own (a recipe's ``reward.validation``).
    """
    per_call = max(1, batch // samples)
    records: list[dict[str, Any]] = []
    pictures: list[Tensor] = []
    for start in range(0, len(prompts), per_call):
        some = prompts[start : start + per_call]
        draws = Draws(seed, EVALUATION_ITERATION)
        drawn = rollout(policy, single_round(think=think), some, sampling, group_size=samples, draws=draws)
        bytes_ = decode_pictures(policy, drawn)
        thinking = [thinking_of(policy, t) for t in drawn]
        images, asked = bytes_.float() / 255.0, [t.prompt for t in drawn]
        verdicts = judge(images, asked, thinking)
        if reward is not None:
            given = RewardInput(images, [p.text for p in asked], [p.metadata for p in asked], thinking)
            values = reward(given).values
            verdicts = [{**verdict, "reward": float(v)} for verdict, v in zip(verdicts, values, strict=True)]
        for trajectory, text, verdict in zip(drawn, thinking, verdicts, strict=True):
            who = {"position": trajectory.prompt.position, "sample": trajectory.sample}
            records.append({**who, "prompt": trajectory.prompt.text, "thinking": text, **verdict})
        pictures.append(bytes_)
    return Evaluation(records, torch.cat(pictures))


def _mean(values: Sequence[Any]) -> float | None:
    known = [float(v) for v in values if v is not None]
    return sum(known) / len(known) if known else None


def summarise(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of an evaluation (design: Words).

    score: mean over categories of the share of correct pictures; exam_score: mean share of requirements met;
    plan_right, follow, parsable: shares (follow over parsable plans; None without thinking); n: pictures.
    """
    categories: dict[str, list[Any]] = {}
    for record in records:
        categories.setdefault(record["category"], []).append(record["correct"])
    by_category = {name: _mean(values) for name, values in categories.items()}
    return {
        "score": _mean(list(by_category.values())),
        "exam_score": _mean([r["exam"] for r in records]),
        "reward": _mean([r["reward"] for r in records]),
        "plan_right": _mean([r["plan_right"] for r in records]),
        "follow": _mean([r["follow"] for r in records]),
        "parsable": _mean([r["parsable"] for r in records]),
        "by_category": by_category,
        "n": len(records),
    }


def compare(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Differences after - before of score, exam score, plan right and follow; 95 % bootstrap intervals over prompts.

    Both sides must be the same prompts and samples in the same order (ValueError otherwise).
    """
    if [(r["position"], r["sample"], r["prompt"]) for r in before] != [
        (r["position"], r["sample"], r["prompt"]) for r in after
    ]:
        raise ValueError(
            "before and after were evaluated on different prompts: a paired comparison needs the same ones"
        )
    clusters = [r["position"] for r in before]
    categories = [r["category"] for r in before]
    result = {}
    for name, key, strata in (
        ("score", "correct", categories),
        ("exam_score", "exam", None),
        ("plan_right", "plan_right", None),
        ("follow", "follow", None),
        ("parsable", "parsable", None),
    ):
        sides = [np.array([np.nan if r[key] is None else float(r[key]) for r in side]) for side in (before, after)]
        if not any(np.isnan(side).all() for side in sides):
            result[name] = paired_difference(sides[0], sides[1], clusters, strata=strata)
    return result
