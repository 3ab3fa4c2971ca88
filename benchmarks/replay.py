"""What packing is worth: the demo's 96 trajectories scored in one forward, against separate passes, in CPU seconds.

    OMP_NUM_THREADS=1 python benchmarks/replay.py [--model builtin:shapes-sft] [--repeat 3] [--quick]

Packed: one forward over [prompts | thinking | image at each of K window steps]: a prompt is read once per group, the
thinking once for all steps, and the padding of words is left out. Separate: one text pass, then K passes over context +
image, each batched over all rows, padded, and without sharing anything. Both use the method's losses and the same
backward passes (two with the recipe's gradient flag, one with gradients through the context); their gradients are
compared once, as relative L2 per tensor.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from unigrpo import build, seeds
from unigrpo.models.bagel_files.pretrained import Bagel
from unigrpo.objectives.methods import UniGRPO
from unigrpo.policy import Replayed, ReplayItem, VelocityQuery
from unigrpo.recipe import PromptData, load_recipe
from unigrpo.rollout.engine import RandomKeys, rollout
from unigrpo.rollout.episode import single_round
from unigrpo.training.gradients import backward
from unigrpo.training.update import Batch, annotate_reference, replay
from unigrpo.trajectory import Segment, Text

RECIPE, GOAL, SAME = "shapes/unigrpo", 1.8, 1e-4


@dataclass(frozen=True)
class Case:
    """A model, its method, and the trajectories to learn from."""

    policy: Bagel
    method: UniGRPO
    batch: Batch
    temperature: float


def demo(model: str, quick: bool) -> Case:
    """The first iteration of the demo, with random advantages (a weak model's rewards may all be equal)."""
    recipe = load_recipe(RECIPE)
    data = recipe.data
    assert isinstance(data, PromptData)
    policy = build.policy(replace(recipe.model, path=model))
    assert isinstance(policy, Bagel)
    method = recipe.method
    number, group = (2, 2) if quick else (data.prompts_per_iteration, data.group_size)
    prompts = build.prompts(data.prompts, recipe.seed).batch(0, number)
    assert isinstance(method, UniGRPO)
    sampling, episode = build.training_sampling(recipe), single_round(think=recipe.rollout.think)
    sampled = rollout(policy, episode, prompts, sampling, group_size=group, keys=RandomKeys(recipe.seed, 0))
    generator = seeds.generator(recipe.seed, 0, 0, 0, "replay benchmark")
    advantages = torch.randn(len(sampled), generator=generator).tolist()
    ready = [t.with_advantages(a, a) for t, a in zip(sampled, advantages, strict=True)]
    batch = Batch(ready, [method.queries(t, generator, shift=recipe.rollout.shift) for t in ready])
    frozen = annotate_reference(policy, batch, micro_batch=len(batch), temperature=recipe.rollout.temperature)
    return Case(policy, method, frozen, recipe.rollout.temperature)


def packed(case: Case) -> list[Replayed]:
    """One forward."""
    return replay(case.policy, case.batch, case.temperature)


def separate(case: Case) -> list[Replayed]:
    """One plain forward over the texts, and one over context + image for each of the K window steps."""
    trajectories, draws = case.batch.trajectories, [row[0] for row in case.batch.queries]
    plain = partial(case.policy.replay, plain=True)
    said = plain([ReplayItem(t.segments) for t in trajectories], temperature=case.temperature)
    contexts = [tuple(unscored(s) for s in t.segments) for t in trajectories]
    passes: list[list[Tensor]] = []
    for k in range(len(draws[0].t)):
        queries = [VelocityQuery(d.segment, d.x[k : k + 1], d.t[k : k + 1]) for d in draws]
        answers = plain([ReplayItem(c, (q,)) for c, q in zip(contexts, queries, strict=True)])
        passes.append([answer.velocities[0] for answer in answers])
    velocities = [torch.cat(parts) for parts in zip(*passes, strict=True)]
    return [replace(answer, velocities=(v,)) for answer, v in zip(said, velocities, strict=True)]


def unscored(segment: Segment) -> Segment:
    """The same text as given context, so that only the text pass pays for its log-probs."""
    return replace(segment, log_probs=None, target=False) if isinstance(segment, Text) else segment


def learn(case: Case, way: Callable[[Case], list[Replayed]]) -> None:
    """Forward, losses and both backward passes of one update."""
    case.policy.model.zero_grad(set_to_none=True)
    losses = case.method.losses(case.batch.trajectories, way(case), case.batch.queries)
    backward(case.policy, case.method, losses, len(case.batch))


def cpu_seconds(function: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def gradients(case: Case, way: Callable[[Case], list[Replayed]]) -> dict[str, Tensor]:
    """The gradient of one update."""
    learn(case, way)
    return {n: p.grad.clone() for n, p in case.policy.model.named_parameters() if p.grad is not None}


def worst_difference(case: Case) -> float:
    """Largest relative L2 difference of a tensor's gradient between the two ways; RuntimeError above ``SAME``."""
    ours, theirs = gradients(case, packed), gradients(case, separate)
    if set(ours) != set(theirs):
        raise RuntimeError(f"different parameters got a gradient: {sorted(set(ours) ^ set(theirs))}")
    floor = 1e-6 * max(float(g.norm()) for g in theirs.values())  # a gradient of rounding noise has no direction
    errors = {n: float((ours[n] - theirs[n]).norm() / theirs[n].norm().clamp_min(floor)) for n in theirs}
    worst = max(errors, key=lambda name: errors[name])
    if errors[worst] > SAME:
        raise RuntimeError(f"the gradients of {worst} differ by {errors[worst]:.2g}: packing changed the mathematics")
    return errors[worst]


def measure(case: Case, repeat: int) -> tuple[float, float]:
    """Median CPU seconds of an update's gradient, packed and in separate passes, measured in turn."""
    ways = (packed, separate)
    pairs = [[cpu_seconds(lambda way=way: learn(case, way)) for way in ways] for _ in range(repeat)]
    one, many = (statistics.median(column) for column in zip(*pairs, strict=True))
    return one, many


def main() -> None:
    """Measure with the recipe's gradient flag and with gradients through the context, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:shapes-sft")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="the same code in seconds: its figures mean nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    case, repeat = demo(arguments.model, arguments.quick), 1 if arguments.quick else arguments.repeat
    through = replace(case, method=replace(case.method, image_grad_through_context=True))
    difference = max(worst_difference(case), worst_difference(through))
    one, many = measure(case, repeat)
    one_through, many_through = measure(through, repeat)
    tokens = statistics.fmean(t.sampled_texts[0].num_actions for t in case.batch.trajectories)
    count, steps = len(case.batch), len(case.batch.queries[0][0].t)
    print(
        f"{count} trajectories ({tokens:.1f} tokens of thinking), {steps} window steps, "
        f"forward and backward: "
        f"{one:.3f} CPU s packed, {many:.3f} in {1 + steps} separate passes: {many / one:.2f} times (goal {GOAL:g}); "
        f"with image gradients through the context {one_through:.3f}, {many_through:.3f}: "
        f"{many_through / one_through:.2f} times; "
        f"gradients agree to {difference:.1g}"
    )
    figures = {
        "benchmark": "replay",
        "model": arguments.model,
        "trajectories": count,
        "window_steps": steps,
        "mean_think_tokens": tokens,
        "image_grad_through_context": case.method.image_grad_through_context,
        "repeat": repeat,
        "packed_cpu_s": one,
        "separate_cpu_s": many,
        "ratio": many / one,
        "goal": GOAL,
        "packed_cpu_s_through_context": one_through,
        "separate_cpu_s_through_context": many_through,
        "ratio_through_context": many_through / one_through,
        "worst_gradient_difference": difference,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
