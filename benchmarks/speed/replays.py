"""Sections ``replay`` (packed against separate passes) and ``memory`` (of a replay, by allocation).

Packed: one forward over [prompts | thinking | image at each of K window steps]: a prompt is read once per group, the
thinking once for all steps, and the padding of words is left out. Separate: one text pass, then K passes over context +
image, each batched over all rows, padded, and without sharing anything. Both use the method's losses and the same
backward passes (two with the recipe's gradient flag, one with gradients through the context).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from speed import bench256
from speed.bench256 import Size
from speed.case import Case, Rolled
from speed.counting import Figures, flops_of, medians, peak_bytes, seconds
from unigrpo.policy import ReplayItem, VelocityQuery
from unigrpo.training.update import replay as replayed
from unigrpo.trajectory import Segment, Text

SAME = 1e-4
Way = Callable[[Case], list[Any]]


def replay(api: ModuleType, quick: bool) -> Figures:
    """Forward and backward of the demo's 96 trajectories; gradients agree, or RuntimeError."""
    case = demo(api, quick)
    through = replace(case, method=replace(case.method, image_grad_through_context=True))
    found: Figures = {"trajectories": len(case.batch), "window_steps": len(case.queries[0].t)}
    found["words"] = statistics.fmean(t.sampled_texts[0].num_actions for t in case.batch.trajectories)
    for name, one in (("recipe", case), ("through_context", through)):
        found |= {f"{name}.{key}": value for key, value in compared(api, one, 1 if quick else 3).items()}
    return found


def demo(api: ModuleType, quick: bool) -> Case:
    """The first iteration of the demo."""
    recipe = api.load_recipe("shapes/unigrpo")
    policy = api.policy_of(recipe, "builtin:shapes-sft")
    prompts, group = api.prompts_of(recipe, 2 if quick else None), 2 if quick else recipe.data.group_size
    sampled = api.rolled(policy, prompts, api.sampling_of(recipe), Rolled(group, recipe.seed))
    return api.made_ready(recipe, policy, sampled)


def compared(api: ModuleType, case: Case, repeat: int) -> Figures:
    """Median seconds of both ways, measured in turn, and how far their gradients are apart."""
    found: Figures = {"gradients_apart": worst_difference(api, case)}
    rows = []
    for _ in range(repeat):
        one, many = (seconds(partial(learn, api, case, way)) for way in (packed, separate))
        rows.append({
            "packed_cpu_s": one[0], "packed_wall_s": one[1], "separate_cpu_s": many[0], "separate_wall_s": many[1]
        })  # fmt: skip
    found |= medians(rows)
    found["packed_gflop"] = flops_of(partial(learn, api, case, packed)) / 1e9
    found["packed_gflops"] = found["packed_gflop"] / found["packed_cpu_s"]
    found["times_faster"] = found["separate_cpu_s"] / found["packed_cpu_s"]
    return found


def learn(api: ModuleType, case: Case, way: Way) -> None:
    """Forward, losses and all backward passes of one update."""
    case.policy.model.zero_grad(set_to_none=True)
    api.learned(case, way(case))


def packed(case: Case) -> list[Any]:
    """One forward."""
    return replayed(case.policy, case.batch, case.temperature)


def separate(case: Case) -> list[Any]:
    """One plain forward over the texts, and one over context + image for each of the K window steps."""
    trajectories = case.batch.trajectories
    plain = partial(case.policy.replay, plain=True)
    said = plain([ReplayItem(t.segments) for t in trajectories], temperature=case.temperature)
    contexts = [tuple(unscored(s) for s in t.segments) for t in trajectories]
    passes: list[list[Tensor]] = []
    for k in range(len(case.queries[0].t)):
        queries = [VelocityQuery(q.segment, q.x[k : k + 1], q.t[k : k + 1]) for q in case.queries]
        answers = plain([ReplayItem(c, (q,)) for c, q in zip(contexts, queries, strict=True)])
        passes.append([answer.velocities[0] for answer in answers])
    velocities = [torch.cat(parts) for parts in zip(*passes, strict=True)]
    return [replace(answer, velocities=(v,)) for answer, v in zip(said, velocities, strict=True)]


def unscored(segment: Segment) -> Segment:
    """The same text as given context, so that only the text pass pays for its log-probs."""
    return replace(segment, log_probs=None, target=False) if isinstance(segment, Text) else segment


def gradients(api: ModuleType, case: Case, way: Way) -> dict[str, Tensor]:
    """The gradient of one update."""
    learn(api, case, way)
    return {n: p.grad.clone() for n, p in case.policy.model.named_parameters() if p.grad is not None}


def worst_difference(api: ModuleType, case: Case) -> float:
    """Largest relative L2 difference of a tensor's gradient between the two ways; RuntimeError above ``SAME``."""
    ours, theirs = gradients(api, case, packed), gradients(api, case, separate)
    if set(ours) != set(theirs):
        raise RuntimeError(f"different parameters got a gradient: {sorted(set(ours) ^ set(theirs))}")
    floor = 1e-6 * max(float(g.norm()) for g in theirs.values())  # a gradient of rounding noise has no direction
    errors = {n: float((ours[n] - theirs[n]).norm() / theirs[n].norm().clamp_min(floor)) for n in theirs}
    worst = max(errors, key=lambda name: errors[name])
    if errors[worst] > SAME:
        raise RuntimeError(f"the gradients of {worst} differ by {errors[worst]:.2g}: packing changed the mathematics")
    return errors[worst]


def memory(api: ModuleType, quick: bool) -> Figures:
    """Peak bytes of a replay, forward and backward, with K pictures to score after one thinking (K = 1, 2, 4).

    growth: how the peak grows from K = 1 to 4, over how tokens do; 1 where it grows with tokens and above it where each
    picture has a copy of its context (which is long here: 240 words before 16 latent tokens).
    """
    found: Figures = {}
    counts: list[int] = []
    for drawings in (1, 2, 4):
        size = Size(groups=1, group=4, words=240, image_tokens=16, steps=6, window=drawings)
        size = replace(size.small(), words=60) if quick else size
        policy = bench256.policy_of(api, size)
        sampled = api.rolled(policy, bench256.prompts_of(size), bench256.sampling_of(api, size), Rolled(size.group))
        case = api.made_ready(api.load_recipe("shapes/unigrpo"), policy, sampled)
        policy.model.requires_grad_(True)
        learn(api, case, packed)
        found[f"peak_mb_k{drawings}"] = peak_bytes(partial(learn, api, case, packed)) / 1e6
        shared, own = bench256.SYSTEM + bench256.WORDS, size.words + 2 + drawings * (size.image_tokens + 2)
        counts.append(shared + size.group * own)
        found[f"tokens_k{drawings}"] = counts[-1]
    found["growth"] = found["peak_mb_k4"] / found["peak_mb_k1"] / (counts[-1] / counts[0])
    return found
