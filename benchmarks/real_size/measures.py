"""What ``bagel_7b.py`` measures, part by part."""

from __future__ import annotations

import math
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import unigrpo.training.trainer as training
from real_size.model import MEAN, Ending, Scale, lengths
from unigrpo.objectives.methods import UniGRPO
from unigrpo.policy import ReplayItem, VelocityQuery
from unigrpo.recipe import Recipe
from unigrpo.reports.curves import ASIDE
from unigrpo.tools.planning import compute
from unigrpo.tools.planning.scaling import BANDWIDTH, Estimate, estimate
from unigrpo.tools.planning.workload import PROMPT_TOKENS
from unigrpo.training.clock import Clock
from unigrpo.training.trainer import Trainer
from unigrpo.trajectory import Image, Text


class SyncedClock(Clock):
    """A clock that waits for the GPU at both ends of a phase, and notes the most memory that it took."""

    peaks: dict[str, float] = {}  # noqa: RUF012 (of the run under way)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a block, with all the work that it started."""
        settle(reset=True)
        with super().phase(name):
            yield
            settle()
        self.peaks[name] = max(self.peaks.get(name, 0.0), taken())


def settle(*, reset: bool = False) -> None:
    """Wait for the GPU; ``reset``: count its memory anew."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        if reset:
            torch.cuda.reset_peak_memory_stats()


def taken() -> float:
    """The most memory that was held since it was counted anew, in GB (on a CPU: by this process, ever)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def seconds_of(action: Callable[[], Any], repeats: int) -> float:
    """The median seconds of an action, after one that warms up."""
    action()
    found = []
    for _ in range(repeats):
        settle()
        began = time.perf_counter()
        action()
        settle()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


# The parts


@dataclass
class Bench:
    """The model with its adapters, and what the parts share."""

    scale: Scale
    recipe: Recipe
    trainer: Trainer
    policy: Ending
    tflops: float
    thinking: int = field(init=False)

    def __post_init__(self) -> None:
        self.thinking = max(4, MEAN // self.scale.shorter)

    def estimate(self, side: int, actions: int | None = None) -> Estimate:
        """What the dry run says of an iteration at this size."""
        recipe = replace(self.recipe, rollout=replace(self.recipe.rollout, image_size=side))
        return estimate(recipe, self.scale.sizes, actions=self.thinking if actions is None else actions)

    def words(self, count: int) -> Tensor:
        """Some ids."""
        return torch.arange(count) % (self.scale.sizes.vocab // 2) + 4

    def speed(self, flop: float, seconds: float) -> dict[str, float]:
        """A measured time as speed."""
        reached = flop / seconds / 1e12
        return {"seconds": seconds, "tflop": flop / 1e12, "tflop_per_s": reached, "mfu": reached / self.tflops}


@torch.no_grad()
def thinking(bench: Bench, batch: int) -> dict[str, Any]:
    """Tokens a second of ``batch`` thinkings decoded together until the longest has ended."""
    policy, cap = bench.policy, bench.recipe.rollout.max_think_tokens
    prompt = [[Text(bench.words(PROMPT_TOKENS - 2))]]

    def think(cap: int) -> list[Text]:
        context = policy.prefill(prompt).expand(batch)
        return policy.think(context, uniforms=torch.full((batch, cap), 0.5), temperature=1.0)[0]

    think(2)  # warms up
    settle(reset=True)
    began = time.perf_counter()
    texts = think(cap)
    settle()
    seconds = time.perf_counter() - began
    counts = [text.num_actions for text in texts]
    tokens, steps = sum(counts), max(counts) + 2
    # a half-full cache of each row, as the dry run counts it
    work = replace(bench.estimate(bench.scale.sides[0], max(counts)).work, drawn=batch, rows=batch)
    floor = compute.bytes_per_step(work) / (BANDWIDTH * 1e9)
    return {
        "batch": batch,
        "tokens": tokens,
        "mean_tokens": tokens / batch,
        "longest": max(counts),
        "seconds": seconds,
        "tokens_per_s": tokens / seconds,
        "ms_per_step": 1e3 * seconds / steps,
        "floor_ms_per_step": 1e3 * floor,
        "peak_gb": taken(),
    }


@torch.no_grad()
def drawing(bench: Bench, side: int, rows: int) -> dict[str, Any]:
    """TFLOP/s of one denoising forward of ``rows`` pictures after prompt and thinking."""
    policy = bench.policy.at_size((side, side))
    context = policy.prefill([[Text(bench.words(PROMPT_TOKENS - 2)), Text(bench.words(bench.thinking))]]).expand(rows)
    x = torch.randn(rows, policy.spec.num_tokens, policy.spec.latent_dim).to(policy.model.device)
    at = torch.full((rows,), 0.5, device=x.device)
    settle(reset=True)
    seconds = seconds_of(lambda: policy.velocity(context, x, at), bench.scale.repeats)
    flop = rows * compute.velocity(bench.estimate(side).work)
    return {"side": side, "rows": rows, **bench.speed(flop, seconds), "peak_gb": taken()}


def replaying(bench: Bench, side: int) -> dict[str, Any]:
    """TFLOP/s of the replay of one sample, forward and both backward passes, into the adapters."""
    policy = bench.policy.at_size((side, side))
    made = bench.estimate(side)
    shape, said = (policy.spec.num_tokens, policy.spec.latent_dim), bench.words(bench.thinking)
    x = torch.randn(made.work.copies, *shape).to(policy.model.device)
    latents = torch.zeros(shape, device=x.device)
    texts = (Text(bench.words(PROMPT_TOKENS - 2)), Text(said, log_probs=torch.zeros(len(said))))
    query = VelocityQuery(2, x, torch.linspace(0.9, 0.5, len(x)))
    item = ReplayItem((*texts, Image(latents, policy.spec.grid)), (query,))

    def replay() -> None:
        (answer,) = policy.replay([item])
        inputs = list(policy.denoising_parameters().values())
        answer.velocities[0].square().mean().backward(inputs=inputs, retain_graph=True)
        answer.log_probs.mean().backward()

    settle(reset=True)
    seconds = seconds_of(replay, bench.scale.repeats)
    for parameter in policy.model.parameters():
        parameter.grad = None
    work = replace(made.work, micro=1)
    flop = compute.replay_forward(work) + compute.replay_backward(work)
    return {"side": side, **bench.speed(flop, seconds), "peak_gb": taken()}


def iterating(bench: Bench) -> dict[str, Any]:
    """A whole iteration as training does it: samples an hour, peaks beside the dry run's, the bf16 gap in clips."""
    SyncedClock.peaks = {}
    with mock.patch.object(training, "Clock", SyncedClock):
        line = bench.trainer.iterate(0)
    seconds = {name: spent for name, spent in line["seconds"].items() if name != "total"}
    total, samples = sum(s for name, s in seconds.items() if name not in ASIDE), bench.scale.prompts * bench.scale.group
    longest = max(lengths(samples, bench.scale.shorter))
    made = bench.estimate(bench.scale.sides[0], longest)
    flop, gap, clip = made.compute.total, line["rollout_gap"], bench.trainer.clip_range or math.inf
    method = bench.recipe.method
    assert isinstance(method, UniGRPO)
    return {
        "samples": samples,
        "think_length": line["think_length"],
        "seconds_by_phase": seconds,
        **bench.speed(flop, total),
        "samples_per_hour": 3600 * samples / total,
        "peak_gb": dict(SyncedClock.peaks),
        "dry_run_peak_gb": {
            "rollout": made.memory.rollout_peak / 1e9,
            "update": made.memory.update_peak / 1e9,
            "step": made.memory.step_peak / 1e9,
        },
        "rollout_gap": gap,
        "gap_in_clips": {"image": gap["image"] / clip, "text": gap["text"] / method.text.clip_range},
        "first_update": line.get("first_update", {}),
    }
