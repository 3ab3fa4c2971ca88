"""What is logged of an iteration's trajectories: rewards, advantages, lengths of thinking, and what failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from unigrpo.objectives.advantage import advantage_statistics
from unigrpo.rewards.answers import commonest
from unigrpo.trajectory import Image, Text, Trajectory


def failures(scored: Sequence[Trajectory]) -> dict[str, Any]:
    """The share of samples that could not be scored, and the commonest reasons; nothing where all could."""
    found = [t.failure for t in scored if t.failure is not None]
    if not found:
        return {}
    reasons = [f"{count} of {len(scored)}: {reason}" for reason, count in commonest(found, 3)]
    return {"failed_share": len(found) / len(scored), "failures": reasons}


def describe(trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    """Reward and advantage figures of an iteration, and how long the thinking was."""
    rewards = [t.reward or 0.0 for t in trajectories]
    thinking, drawing = (_advantages(trajectories, kind) for kind in (Text, Image))
    advantages = drawing or thinking
    figures = advantage_statistics(rewards, advantages, [t.prompt.position for t in trajectories])
    metrics: dict[str, Any] = {
        "reward_mean": figures["reward_mean"],
        "reward_std": figures["reward_std"],
        "reward_group_std": figures["reward_group_std"],
        "zero_variance_share": figures["zero_std_ratio"],
        "advantage_std": figures["advantage_std"],
    }
    if thinking and thinking != drawing:
        metrics["advantage_std_thinking"] = float(torch.tensor(thinking, dtype=torch.float64).std(correction=0))
    categories = [t.prompt.metadata.get("category") for t in trajectories]
    if all(isinstance(c, str) for c in categories):
        metrics["reward_by_category"] = mean_by(categories, rewards)
    for key, rows in (
        ("reward_values", [t.values for t in trajectories]),
        ("reward_parts", [t.verdict for t in trajectories]),
    ):
        if means := _means(rows):
            metrics[key] = means
    metrics |= of_rounds(trajectories)
    texts = [text for t in trajectories for text in t.sampled_texts]
    if texts:
        metrics["think_length"] = sum(text.num_actions for text in texts) / len(texts)
        metrics["think_cut_share"] = sum(not text.ended for text in texts) / len(texts)
    return metrics


def of_rounds(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Of samples with several rounds: how many drawings they have, what the first and the last are worth, and the
    difference; nothing where all have one round."""
    if all(len(t.rounds) < 2 for t in trajectories):
        return {}
    first, last = (_mean([t.scores[at].reward or 0.0 for t in trajectories]) for at in (0, -1))
    drawings = _mean([float(len(t.drawings)) for t in trajectories])
    return {"rounds": drawings, "score_first": first, "score_last": last, "revision": last - first}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every name over the rows that have it: a reward may name other parts in another portion."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: sum(column) / len(column) for name, column in columns.items()}


def _advantages(trajectories: Sequence[Trajectory], kind: type[Text | Image]) -> list[float]:
    """The advantages of what was sampled, of one kind of segment."""
    found = (s.advantage for t in trajectories for s in t.segments if isinstance(s, kind))
    return [advantage for advantage in found if advantage is not None]


def mean_by(labels: Sequence[Any], values: Sequence[float]) -> dict[str, float]:
    """Mean of the values of each label, labels sorted."""
    groups: dict[str, list[float]] = {}
    for label, value in zip(labels, values, strict=True):
        groups.setdefault(str(label), []).append(value)
    return {label: sum(group) / len(group) for label, group in sorted(groups.items())}
