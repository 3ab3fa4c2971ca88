"""What ranks send each other in an iteration, in bytes of one rank (docs/scaling.md derives every formula).

A ring over n ranks sends (n - 1) / n of what is gathered, or reduced and scattered, and twice that of what is reduced
to all. Tests compare these formulas with the bytes of collectives on CPU ranks (tests/test_communication.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from unigrpo.tools.planning import memory
from unigrpo.tools.planning.compute import Compute
from unigrpo.tools.planning.workload import Layout, Workload

NODE = 8
"""GPUs of a node."""
WITHIN, BETWEEN = 300.0, 40.0
"""GB/s that a GPU is taken to send within a node (an H100's NVLink: at most 450), and to another (400 Gbit/s: 50)."""


def gathered(count: int, size: float) -> float:
    """Bytes that one of ``count`` ranks sends so that all have ``size`` bytes, or that each has its share of a sum."""
    return (count - 1) / count * size


def reduced(count: int, size: float) -> float:
    """Bytes that one of ``count`` ranks sends so that all have the sum of ``size`` bytes."""
    return 2 * gathered(count, size)


@dataclass(frozen=True)
class Traffic:
    """Bytes that one rank sends in an iteration.

    weights: gathered in replays; gradients: reduced and scattered (shard), or reduced to all (replicate); replicas:
    reduced between replicas (HSDP); rollout: weights for drawing, once, or in lockstep at every forward.
    """

    weights: float
    gradients: float
    replicas: float
    rollout: float

    @property
    def total(self) -> float:
        """All bytes."""
        return self.weights + self.gradients + self.replicas + self.rollout

    def seconds(self, layout: Layout, *, within: float = WITHIN, between: float = BETWEEN) -> float:
        """Seconds if nothing is computed meanwhile: within a node where a group fits into one, else between nodes."""
        group = layout.shards if layout.mode == "shard" else layout.gpus
        own = within if group <= NODE else between
        replicas = within if layout.gpus <= NODE else between
        return (self.weights + self.gradients + self.rollout) / (own * 1e9) + self.replicas / (replicas * 1e9)


def forward_gathers(work: Workload, calls: int) -> float:
    """Bytes of weights that a forward gathers: each layer once for every block that it reads, the rest once."""
    s = work.sizes
    layers = 2 * s.layers * s.layer_parameters
    rest = s.model_parameters - layers
    adapters = sum(s.adapter(work.rank) for expert in ("reasoning", "denoising") if work.training(expert) == "lora")
    return work.compute * (calls * (layers + adapters) + rest)


def passes_of(work: Workload) -> list[tuple[int, float]]:
    """The backward passes of a micro-batch: blocks that each reads, and how many numbers it has gradients of.

    Without ``image_grad_through_context`` the image's loss goes back by itself, into both experts (and what it gives
    the reasoning weights is thrown away), and then the text's.
    """
    blocks = [block for block in work.blocks() if block.flows]
    texts = len(blocks) - any(block.gen for block in blocks)
    whole = float(memory.trained(work))
    if work.through_context or not (work.text_trains and texts and work.denoising != "frozen" and work.copies):
        return [(len(blocks), whole)]
    kind, s = work.reasoning, work.sizes
    reasoning = float(s.expert("reasoning") if kind == "full" else s.adapter(work.rank))
    return [(len(blocks), whole), (texts, reasoning)]


def traffic(work: Workload, cost: Compute) -> Traffic:
    """The bytes of one rank in one iteration, that a layout asks for."""
    layout = work.layout
    if layout.gpus == 1:
        return Traffic(0.0, 0.0, 0.0, 0.0)
    if layout.mode == "replicate":
        return Traffic(0.0, cost.updates * reduced(layout.gpus, memory.FP32 * memory.trained(work)), 0.0, 0.0)
    shards, passes = layout.shards, passes_of(work)
    calls = len(work.blocks())
    replays = work.passes * cost.replays
    weights = (cost.scored + replays) * forward_gathers(work, calls)
    weights += replays * sum(forward_gathers(work, count) for count, _ in passes)
    gradients = replays * sum(memory.FP32 * numbers for _, numbers in passes)
    replicas = reduced(layout.replicas, gradients / shards)
    return Traffic(gathered(shards, weights), gathered(shards, gradients), replicas, _rollout(work, cost))


def _rollout(work: Workload, cost: Compute) -> float:
    """Weights for drawing: a whole copy once, or all that a forward gathers, at every forward of every portion."""
    if work.supervised:
        return 0.0
    if work.layout.has_replica:
        return gathered(work.shards, memory.copied(work))
    forwards = cost.portions * (1 + cost.think_steps * bool(work.actions) + cost.draw_steps * work.branches)
    return gathered(work.shards, forwards * forward_gathers(work, 1))
