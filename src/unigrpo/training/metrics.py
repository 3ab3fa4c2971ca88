"""One line of ``metrics.jsonl``: what an iteration did, in names that a person can read."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from unigrpo.training.sources import RolloutBatch
from unigrpo.training.update import Updated

NAMED = ("text/", "flow/", "sft/")
"""Statistics with parts of their own in the line; all others are an image term's."""


NOTHING: Mapping[str, float] = MappingProxyType({})


def metrics_line(
    *,
    iteration: int,
    collected: RolloutBatch,
    updates: Sequence[Updated],
    rates: Mapping[str, float],
    canaries: Mapping[str, float],
    validation: Mapping[str, Any] | None,
    gap: Mapping[str, float],
    no_signal: Sequence[str],
    seconds: Mapping[str, float],
    alarms: Sequence[Mapping[str, Any]] = (),
    compute: Mapping[str, float] = NOTHING,
) -> dict[str, Any]:
    """Put together the line of one iteration; statistics are means over its optimizer steps.

    compute: FLOPs and utilization, where they are known.
    """
    stats = mean_of([u.stats for u in updates])
    line: dict[str, Any] = {"iteration": iteration, **collected.metrics}
    text = text_part(stats, updates, collected.metrics)
    flow = flow_part(stats)
    loss = {name.removeprefix("sft/"): value for name, value in stats.items() if name.startswith("sft/")}
    image = {name.replace("/", "_"): value for name, value in stats.items() if not name.startswith(NAMED)}
    for name, part in (("text", text), ("flow", flow), ("image", image), ("loss", loss)):
        if part:
            line[name] = part
    if rounds := by_round(stats):
        line["by_round"] = rounds
    first = {
        name: updates[0].stats[key]
        for name, key in (
            (f"{'text' if key.startswith('text/') else 'image'}_log_ratio_max", key)
            for key in updates[0].stats
            if key.endswith("/log_ratio_max")
        )
    }
    if first:
        line["first_update"] = first
    if gap:
        line["rollout_gap"] = dict(gap)
    line["grad_norm"] = mean_of([u.grad_norm for u in updates])
    line["lr"] = dict(rates)
    if no_signal:
        line["no_signal"] = list(no_signal)
    if canaries:
        line["canaries"] = dict(canaries)
    if validation is not None:
        line["validation"] = dict(validation)
    if alarms:
        line["alarms"] = [dict(alarm) for alarm in alarms]
    line["seconds"] = {name: round(value, 4) for name, value in seconds.items()}
    spent = seconds["total"] - seconds.get("validation", 0.0)
    line["samples_per_second"] = round(len(collected.samples) / spent, 2)
    return line | dict(compute)


def mean_of(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean by name over the steps; maxima (``..._max``) stay maxima."""
    names = dict.fromkeys(name for row in rows for name in row)
    found = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: max(own) if name.endswith("_max") else sum(own) / len(own) for name, own in found.items()}


def by_round(stats: Mapping[str, float]) -> list[dict[str, float]]:
    """The ratios of each round's texts and pictures; [] where samples have one round."""
    found: list[dict[str, float]] = []
    for turn in itertools.count(1):
        row = {}
        for half in ("text", "flow"):
            if (name := f"{half}/rounds/{turn}/ratio") in stats:
                row |= {f"{half}_ratio_mean": stats[name], f"{half}_ratio_max_abs_log": stats[f"{name}_abs_max"]}
        if not row:
            break
        found.append(row)
    return found


def text_part(stats: Mapping[str, float], updates: Sequence[Updated], collected: Mapping[str, Any]) -> dict[str, float]:
    """Ratios, clipping, KL, entropy and length of the thinking."""
    part = {}
    if "text/ratio" in stats:
        part = {
            "ratio_mean": stats["text/ratio"],
            "ratio_max_abs_log": stats["text/log_ratio_max"],
            "clip_fraction": stats["text/clip_low"] + stats["text/clip_high"],
        }
        if "text/kl" in stats:
            part["kl"] = stats["text/kl"]
    entropies = [u.entropy for u in updates if u.entropy is not None]
    if entropies:
        part["entropy"] = entropies[0]
    if "think_length" in collected:
        part["think_length"] = collected["think_length"]
    return part


def flow_part(stats: Mapping[str, float]) -> dict[str, Any]:
    """Ratios, clipping and distance to the reference of the drawing, overall and per step of the window."""
    part: dict[str, Any] = {}
    for name, key in (("mse", "flow/velocity_mse"), ("latent_kl", "flow/latent_kl"), ("ratio_mean", "flow/ratio")):
        if key in stats:
            part[name] = stats[key]
    if "flow/log_ratio" not in stats:
        return part
    part["ratio_max_abs_log"] = stats["flow/log_ratio_max"]
    part["clip_fraction"] = stats["flow/clip_low"] + stats["flow/clip_high"]
    part["steps"] = []
    for k in range(sum(name.startswith("flow/log_ratio/") for name in stats)):
        step = {
            "step": k,
            "log_ratio_mean": stats[f"flow/log_ratio/{k}"],
            "log_ratio_std": stats[f"flow/log_ratio_std/{k}"],
            "clip_fraction": stats[f"flow/clip_low/{k}"] + stats[f"flow/clip_high/{k}"],
        }
        if f"flow/velocity_mse/{k}" in stats:
            step["mse"] = stats[f"flow/velocity_mse/{k}"]
        part["steps"].append(step)
    return part
