"""Sections ``rollout`` (bench-256), ``batching`` (the demo's rollouts together and one by one)."""

from __future__ import annotations

import statistics
from types import ModuleType
from typing import Any

import torch

from speed import bench256
from speed.bench256 import Size
from speed.case import Rolled
from speed.counting import Figures, Phases, flop_counter, matmul_peak, medians, seconds

SAME = 1e-4  # a trained model's latents are of order 1, and rounding grows a little over the steps
PHASES = ("prefill", "think", "draw")


def rollout(api: ModuleType, quick: bool) -> Figures:
    """One group of 8 and 4 groups of 8: CPU and wall seconds of a rollout, its phases, and what they achieve."""
    found: Figures = {}
    for groups in (1, 4):
        size = Size(groups=groups).small() if quick else Size(groups=groups)
        for name, value in timed(api, size, 1 if quick else 3 if groups > 1 else 7).items():
            found[f"{groups}x{size.group}.{name}"] = value
    return found


def timed(api: ModuleType, size: Size, repeat: int) -> Figures:
    """Seconds of a rollout and of its phases, divided by the number of rollouts; GFLOP/s of CPU time; the peak."""
    policy, sampling, prompts = (
        bench256.policy_of(api, size),
        bench256.sampling_of(api, size),
        bench256.prompts_of(size),
    )

    def once(phases: Phases) -> Phases:
        api.rolled(policy, prompts, sampling, Rolled(size.group, on_phase=phases))
        phases.end()
        return phases

    with flop_counter() as counter:
        counted = once(Phases(counter)).counted
    rows, count = [once(Phases()) for _ in range(repeat)], size.groups * size.group
    cpu, wall = medians([row.cpu for row in rows]), medians([row.wall for row in rows])
    peak = matmul_peak(size.group * size.groups * size.image_tokens, size.hidden, 4 * size.hidden)
    found: Figures = {"cpu_s": sum(cpu.values()) / count, "wall_s": sum(wall.values()) / count}
    found |= {f"{name}_cpu_s": cpu[name] / count for name in PHASES}
    found |= {"gflop": sum(counted.values()) / count / 1e9, "matmul_peak_gflops": peak}
    for name in PHASES:
        found[f"{name}_gflops"] = counted[name] / cpu[name] / 1e9
        found[f"{name}_of_peak"] = found[f"{name}_gflops"] / peak
    return found


def batching(api: ModuleType, quick: bool) -> Figures:
    """The demo's 96 rollouts together against one by one, with the same draws; first both are compared.

    One by one is a call per sample, with its own prefill. RuntimeError where a sample depends on who else is there: the
    same ids, but for draws within 1e-5 of a boundary, and latents to rounding.
    """
    recipe = api.load_recipe("shapes/unigrpo")
    policy, sampling = api.policy_of(recipe, "builtin:shapes-sft"), api.sampling_of(recipe)
    prompts, group = api.prompts_of(recipe, 2 if quick else None), 2 if quick else recipe.data.group_size

    def together() -> list[Any]:
        return api.rolled(policy, prompts, sampling, Rolled(group, recipe.seed))

    def one_by_one() -> list[Any]:
        samples = [(prompt, s) for prompt in prompts for s in range(group)]
        return [api.rolled(policy, [p], sampling, Rolled(1, recipe.seed, first_sample=s))[0] for p, s in samples]

    sampled = together()
    other = differing(sampled, one_by_one())
    batched, single = seconds(together), seconds(one_by_one)
    return {
        "rollouts": len(sampled),
        "words": statistics.fmean(t.sampled_texts[0].num_actions for t in sampled),
        "together_cpu_s": batched[0],
        "together_wall_s": batched[1],
        "one_by_one_cpu_s": single[0],
        "one_by_one_wall_s": single[1],
        "times_faster": single[0] / batched[0],
        "rows_with_other_ids": other,
    }


def differing(together: list[Any], alone: list[Any]) -> int:
    """Rows whose ids differ; the latents of the others must agree to ``SAME`` (RuntimeError)."""
    other = 0
    for a, b in zip(together, alone, strict=True):
        if not torch.equal(a.sampled_texts[0].ids, b.sampled_texts[0].ids):
            other += 1
        elif not torch.allclose(a.images[0].latents, b.images[0].latents, atol=SAME):
            raise RuntimeError(f"sample {a.sample} of prompt {a.prompt.position} depends on who else is in the batch")
    if other > 1:
        raise RuntimeError(f"{other} of {len(together)} rows think something else in a batch")
    return other
