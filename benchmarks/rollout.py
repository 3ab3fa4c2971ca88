"""What batching is worth: the demo's 96 rollouts together against one by one, in CPU seconds.

    OMP_NUM_THREADS=1 python benchmarks/rollout.py [--model builtin:shapes-sft] [--repeat 3] [--quick]

Both ways take the recipe's sampling settings and the same draws; one by one is a call per sample, with its own prefill.
First both are run once and compared: the same ids, but for draws within 1e-5 of a boundary, and latents to rounding.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from unigrpo import build
from unigrpo.models.bagel_files.pretrained import Bagel
from unigrpo.recipe import PromptData, Recipe, load_recipe
from unigrpo.rollout.engine import RandomKeys, rollout
from unigrpo.rollout.episode import single_round
from unigrpo.trajectory import Prompt, Trajectory

RECIPE, GOAL = "shapes/unigrpo", 6.0
SAME = 1e-4  # a trained model's latents are of order 1, and rounding grows a little over the steps


def demo(model: str) -> tuple[Bagel, Recipe, list[Prompt]]:
    """The model, the recipe, and the prompts of its first iteration."""
    recipe = load_recipe(RECIPE)
    assert isinstance(recipe.data, PromptData)
    prompts = build.prompts(recipe.data.prompts, recipe.seed).batch(0, recipe.data.prompts_per_iteration)
    policy = build.policy(replace(recipe.model, path=model))
    assert isinstance(policy, Bagel)
    return policy, recipe, prompts


def cpu_seconds(function: Callable[[], list[Trajectory]]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def differing(together: list[Trajectory], alone: list[Trajectory]) -> int:
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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:shapes-sft")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="the same code in seconds: its figures mean nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    policy, recipe, prompts = demo(arguments.model)
    assert isinstance(recipe.data, PromptData)
    group, repeat = recipe.data.group_size, arguments.repeat
    if arguments.quick:
        prompts, group, repeat = prompts[:2], 2, 1
    sampling, episode = build.training_sampling(recipe), single_round(think=recipe.rollout.think)
    draws = RandomKeys(recipe.seed, 0)

    def together() -> list[Trajectory]:
        return rollout(policy, episode, prompts, sampling, group_size=group, keys=draws)

    def one_by_one() -> list[Trajectory]:
        samples = [(prompt, s) for prompt in prompts for s in range(group)]
        return [
            rollout(policy, episode, [prompt], sampling, group_size=1, keys=draws, first_sample=s)[0]
            for prompt, s in samples
        ]

    sampled = together()
    other = differing(sampled, one_by_one())
    pairs = [(cpu_seconds(together), cpu_seconds(one_by_one)) for _ in range(repeat)]
    batched, single = (statistics.median(column) for column in zip(*pairs, strict=True))
    tokens = statistics.fmean(t.sampled_texts[0].num_actions for t in sampled)
    count, ratio = len(sampled), single / batched
    print(
        f"{count} rollouts ({tokens:.1f} tokens of thinking, {sampling.num_points - 1} denoising steps): "
        f"{batched:.2f} CPU s together, {single:.2f} one by one: {ratio:.1f} times (goal {GOAL:g})"
    )
    figures = {
        "benchmark": "rollout",
        "model": arguments.model,
        "rollouts": count,
        "repeat": repeat,
        "batched_cpu_s": batched,
        "single_cpu_s": single,
        "ratio": ratio,
        "goal": GOAL,
        "mean_think_tokens": tokens,
        "rows_with_other_ids": other,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
