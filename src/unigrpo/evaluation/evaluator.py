"""Draw for a fixed list of prompts, judge every picture, and sum up; the same prompts and draws every time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unigrpo import doing
from unigrpo.evaluation.statistics import judged_difference, mean
from unigrpo.evaluation.suites import category_of as category_of
from unigrpo.plurals import counted
from unigrpo.policy import Policy
from unigrpo.rewards.composite import CompositeReward
from unigrpo.rewards.protocol import RewardInput, metadata_of
from unigrpo.rollout.engine import RandomKeys, Sampling
from unigrpo.rollout.episode import Episode, single_round
from unigrpo.rollout.sample import Drawn, sample
from unigrpo.trajectory import Prompt, Trajectory

EVALUATION_ITERATION = -1
"""The iteration that keys an evaluation's draws: never one of training, and the same before, during and after."""

Judge = Callable[[Tensor, Sequence[Prompt], Sequence[str | None]], list[dict[str, Any]]]
"""(images float32 [B, 3, H, W] in [0, 1], prompts, thinking) -> one record per picture: category, correct, exam,
reward, points, parsable, plan_right, follow (None where they do not apply, or nobody knows)."""

MEASURES = {
    "score": "score",
    "plan_right": "plan right",
    "follow": "picture follows plan",
    "parsable": "plan parsable",
    "exam_score": "exam score",
    "changed": "change done",
    "kept": "rest kept",
}
"""Figures of a summary that depend on a judge, by their names for people."""
SHORT = {
    "score": "score",
    "exam_score": "exam score",
    "plan_right": "plan right",
    "follow": "follows plan",
    "parsable": "plan parsable",
    "changed": "change done",
    "kept": "rest kept",
}
"""The same, for a column."""
OF_EDITS = ("changed", "kept")
"""Figures that only judged edits have, each the mean of what records say: what must change, and what must stay."""


@dataclass(frozen=True)
class Evaluation:
    """One record per picture, and the pictures uint8 [N, 3, H, W], in the order of the records.

    sources: the pictures uint8 [3, H, W] that came with a prompt, by its position, where there are any. failures: why
    the reward could not score a picture, or None, one each (nothing without a reward). earlier: of some records (by
    index) the drawings before the last one, uint8 [k, 3, H, W].
    """

    records: list[dict[str, Any]]
    pictures: Tensor
    sources: Mapping[int, Sequence[Tensor]] = field(default_factory=dict)
    failures: Sequence[str | None] = ()
    earlier: Mapping[int, Tensor] = field(default_factory=dict)


@torch.no_grad()
def evaluate(
    policy: Policy,
    prompts: Sequence[Prompt],
    judge: Judge,
    sampling: Sampling,
    *,
    samples: int,
    seed: int,
    think: bool = True,
    episode: Episode | None = None,
    reward: CompositeReward | None = None,
    batch: int = 192,
    part: bool = False,
) -> Evaluation:
    """Draw ``samples`` pictures per prompt, at most ``batch`` at a time, and judge them.

    ``episode``: the turns of a sample (None: one round, with thinking or without). Of several rounds every picture is
    judged; a record is of the last one, and holds the others under ``rounds`` (:func:`records_of`).
    ``reward`` gives the records' reward in place of the judge's own (a recipe's ``reward.validation``); RewardFault
    where too many pictures could not be scored. part: these are some of an evaluation's prompts, and whoever has the
    others too asks that of all together.
    """
    records: list[dict[str, Any]] = []
    earlier: dict[int, Tensor] = {}
    failed: list[str | None] = []
    height, width = policy.spec.image_size
    # made at once and filled: putting parts together at the end would hold all pictures twice
    pictures = torch.empty((len(prompts) * samples, 3, height, width), dtype=torch.uint8)
    total = len(prompts) * samples
    drawing = sample(
        policy,
        single_round(think=think) if episode is None else episode,
        prompts,
        sampling,
        RandomKeys(seed, EVALUATION_ITERATION),
        samples=samples,
        batch=batch,
    )
    for drawn in _told(drawing, total):
        verdicts, failures = judged(drawn, judge, reward)
        failed += failures
        pictures[len(records) : len(records) + len(drawn.trajectories)] = drawn.pictures
        if len(earlier) < SHOWN:
            earlier |= {len(records) + row: shown for row, shown in looked_at(drawn.trajectories).items()}
        records += records_of(drawn, verdicts)
    if reward is not None and not part:
        reward.check_failures(failed)
    return Evaluation(records, pictures, {p.position: p.images for p in prompts if p.images}, failed, earlier)


def judged(drawn: Drawn, judge: Judge, reward: CompositeReward | None) -> tuple[list[dict[str, Any]], list[str | None]]:
    """The verdict of every drawing, and why the reward could not score it (nothing without a reward)."""
    every = drawn.every
    images, asked = every.pictures.float() / 255.0, [drawn.trajectories[row].prompt for row in every.owners]
    verdicts = judge(images, asked, every.thinking)
    if reward is None:
        return verdicts, []
    scored = reward(RewardInput(images, [p.text for p in asked], metadata_of(asked), every.thinking))
    own = [None if i in scored.failures else float(scored.values[i]) for i in range(len(asked))]
    verdicts = [{**verdict, "reward": value} for verdict, value in zip(verdicts, own, strict=True)]
    return verdicts, [scored.failures.get(i) for i in range(len(asked))]


def records_of(drawn: Drawn, verdicts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A record per trajectory: its last drawing's verdict; of several rounds, what was thought and found in each.

    The last of ``rounds`` is a thinking alone where that ended the sample.
    """
    records, at = [], 0
    for trajectory, thoughts, text in zip(drawn.trajectories, drawn.thoughts, drawn.thinking, strict=True):
        own = verdicts[at : at + len(trajectory.drawings)]
        at += len(own)
        who = {"position": trajectory.prompt.position, "sample": trajectory.sample}
        record = {**who, "prompt": trajectory.prompt.text, "thinking": text, **own[-1]}
        if len(thoughts) > 1:
            rows = zip_longest(thoughts, own, fillvalue=dict[str, Any]())
            record["rounds"] = [{"thinking": thought, **verdict} for thought, verdict in rows]
        records.append(record)
    return records


SHOWN = 24
"""Samples of an evaluation whose earlier pictures are kept: as many as a sheet shows."""


def looked_at(trajectories: Sequence[Trajectory]) -> dict[int, Tensor]:
    """The drawings before the last, uint8 [k, 3, H, W], of those first samples (by row) that have any."""
    return {row: torch.stack(t.looked_at) for row, t in enumerate(trajectories) if t.sample == 0 and t.looked_at}


def _told(drawing: Iterator[Drawn], total: int) -> Iterator[Drawn]:
    """The same, saying how many pictures there are already while the next ones are drawn."""
    done = 0
    while True:
        with doing.within(f"evaluating, {done:,} of {counted(total, 'picture', ',')}"):
            drawn = next(drawing, None)
        if drawn is None:
            return
        done += len(drawn.trajectories)
        yield drawn


def unjudged(images: Tensor, prompts: Sequence[Prompt], thinking: Sequence[str | None]) -> list[dict[str, Any]]:
    """The judge of prompts that no rules can judge: nothing is known of a picture but what its reward says.

    The category is the metadata's ``category``, or GenEval's ``tag``, else "all".
    """
    unknown = ("correct", "exam", "reward", "points", "parsable", "plan_right", "follow")
    return [{"category": category_of(prompt), **dict.fromkeys(unknown)} for prompt in prompts]


def summarise(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of an evaluation; None where no picture says anything.

    score: mean over categories of the share of correct pictures; exam_score: mean share of requirements met;
    plan_right, follow, parsable: shares (follow over parsable plans; None without thinking); n: pictures;
    by_category: shares of correct pictures. Where nothing is judged, by_category is empty, and reward_by_category is
    there in its place if there is more than one category. Edits also have changed and kept (means).
    """
    by_category = _by_category(records, "correct")
    figures = {
        "score": mean(list(by_category.values())),
        "exam_score": mean([r["exam"] for r in records]),
        "reward": mean([r["reward"] for r in records]),
        "plan_right": mean([r["plan_right"] for r in records]),
        "follow": mean([r["follow"] for r in records]),
        "parsable": mean([r["parsable"] for r in records]),
        "by_category": by_category,
        "n": len(records),
        **{name: mean([r.get(name) for r in records]) for name in _known(records)},
    }
    figures |= of_rounds(records)
    rewards = {} if by_category else _by_category(records, "reward")
    return {**figures, "reward_by_category": rewards} if len(rewards) > 1 else figures


def of_rounds(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of samples with several rounds the mean number of pictures, figures of the first ones, and what was gained.

    rounds; score_first, reward_first; revision: score (or else reward) less that of first pictures. {} for one round.
    """
    if not any("rounds" in record for record in records):
        return {}
    first = [{**record, **record["rounds"][0]} if "rounds" in record else record for record in records]
    drawn = [sum("category" in one for one in record["rounds"]) if "rounds" in record else 1 for record in records]
    (score, reward), (last_score, last_reward) = (
        (mean(list(_by_category(some, "correct").values())), mean([record["reward"] for record in some]))
        for some in (first, records)
    )
    start, last = (reward, last_reward) if score is None else (score, last_score)
    revision = None if last is None or start is None else last - start
    return {"rounds": sum(drawn) / len(drawn), "score_first": score, "reward_first": reward, "revision": revision}


def _known(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The figures of edits that some record has."""
    return [name for name in OF_EDITS if any(record.get(name) is not None for record in records)]


def _by_category(records: Sequence[dict[str, Any]], key: str) -> dict[str, float]:
    """Mean of a figure in every category where it is known."""
    categories: dict[str, list[Any]] = {}
    for record in records:
        categories.setdefault(record["category"], []).append(record[key])
    means = {name: mean(values) for name, values in categories.items()}
    return {name: mean for name, mean in means.items() if mean is not None}


def describe_summary(summary: Mapping[str, Any]) -> str:
    """One line of plain words for an evaluation: what is known of it; the reward where there is no score.

    Of several rounds it is of the last pictures; what the first ones were worth stands beside it.
    """
    named = MEASURES if summary.get("score") is not None else {"reward": "reward", **MEASURES}
    parts = [f"{name} {summary[key]:.3f}" for key, name in named.items() if summary.get(key) is not None]
    parts.append(counted(summary["n"], "picture"))
    key = "score_first" if summary.get("score_first") is not None else "reward_first"
    if summary.get(key) is not None:
        name = key.removesuffix("_first")
        parts.append(
            f"each the last of {summary['rounds']:.2f} on average; {name} of the first ones {summary[key]:.3f}"
        )
    return ", ".join(parts)


def describe_comparison(summary: Mapping[str, Any]) -> list[str]:
    """A line for every measure of ``before`` and ``after`` with its paired difference; [] without both.

    The reward is shown where there is no score.
    """
    paired = summary.get("paired") or {}
    named = SHORT if "score" in paired else {"reward": "reward", **SHORT}
    lines = []
    for key, name in named.items():
        entry = paired.get(key)
        if entry is None or entry["difference"] is None:
            continue
        lines.append(
            f"{name:13} {summary['before'][key]:.3f} -> {summary['after'][key]:.3f}   "
            f"difference {entry['difference']:+.3f} ({describe_interval(entry)})"
        )
    return lines


def describe_interval(entry: Mapping[str, Any]) -> str:
    """The interval of a paired difference in words, or why there is none."""
    if entry["low"] is None or entry["high"] is None:
        return f"no interval: {entry['why']}" if entry.get("why") else "no interval"
    return f"95 % interval {entry['low']:+.3f} to {entry['high']:+.3f}"


def compare(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Differences after - before of all that both sides know; 95 % bootstrap intervals over prompts, or why not.

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
        ("reward", "reward", None),
        ("plan_right", "plan_right", None),
        ("follow", "follow", None),
        ("parsable", "parsable", None),
        *((name, name, None) for name in _known(before)),
    ):
        sides = [np.array([_number(r.get(key)) for r in side]) for side in (before, after)]
        if not any(np.isnan(side).all() for side in sides):
            result[name] = judged_difference(sides[0], sides[1], clusters, strata=strata)
    return result


def _number(value: Any) -> float:
    return np.nan if value is None else float(value)
