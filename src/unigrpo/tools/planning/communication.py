"""What ranks send each other in an iteration, in bytes of one rank (docs/scaling.md derives every formula).

A ring over n ranks sends (n - 1) / n of what is gathered, or reduced and scattered, and twice that of what is reduced
to all. Tests compare these formulas with the bytes of collectives on CPU ranks (tests/test_communication.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from unigrpo.costs.sizes import EXPERTS
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


def layers_bytes(work: Workload) -> float:
    """All layers of both experts with their adapters, as they are gathered: in the computation's dtype."""
    s = work.sizes
    adapters = sum(s.adapter(work.rank) for expert in EXPERTS if work.training(expert) == "lora")
    return work.compute * (2 * s.layers * s.layer_parameters + adapters)


def root_bytes(work: Workload) -> float:
    """What belongs to no layer (embeddings, heads, norms, tables, tower), gathered in the dtype that it is held in."""
    s = work.sizes
    rest = s.model_parameters - 2 * s.layers * s.layer_parameters
    full = sum(s.expert(e) - s.layers * s.layer_parameters for e in EXPERTS if work.training(e) == "full")
    return memory.FP32 * full + work.compute * (rest - full)


def doors(work: Workload) -> int:
    """Heads that a replay enters after its forward: the text's, where words are scored, and the velocities'."""
    return bool(work.actions) + bool(work.copies)


def forward_gathers(work: Workload, entries: int = 1) -> float:
    """Bytes that all have after a replay's forward: each layer at every entry, the root once and for each head."""
    return entries * layers_bytes(work) + (1 + doors(work)) * root_bytes(work)


def backward_passes(work: Workload) -> int:
    """Backward passes of a micro-batch: without ``image_grad_through_context`` one for each loss."""
    both = work.text_trains and bool(work.actions) and work.denoising != "frozen" and bool(work.copies)
    return 2 if both and not work.through_context else 1


def backward_gathers(work: Workload, entries: int = 1) -> float:
    """Bytes that all have after the backward passes: each gathers the layers, its head and the root once more.

    entries: how often a forward enters a layer with what gradients pass through; of two passes the text's has one less,
    where the images' entry is their own.
    """
    passes = backward_passes(work)
    layers = entries + (max(1, entries - 1) if passes == 2 else 0)
    return layers * layers_bytes(work) + (2 * passes if passes == 2 else 1 + doors_trained(work)) * root_bytes(work)


def doors_trained(work: Workload) -> int:
    """Heads through which a loss goes back."""
    return int(work.text_trains and bool(work.actions)) + int(work.denoising != "frozen" and bool(work.copies))


def traffic(work: Workload, cost: Compute) -> Traffic:
    """The bytes of one rank in one iteration, that a layout asks for."""
    layout = work.layout
    if layout.gpus == 1:
        return Traffic(0.0, 0.0, 0.0, 0.0)
    if layout.mode == "replicate":
        return Traffic(0.0, cost.updates * reduced(layout.gpus, memory.FP32 * memory.trained(work)), 0.0, 0.0)
    replays = work.passes * cost.replays
    weights = (cost.scored + replays) * forward_gathers(work) + replays * backward_gathers(work)
    gradients = replays * backward_passes(work) * memory.FP32 * memory.trained(work)
    replicas = reduced(layout.replicas, gradients / layout.shards)
    return Traffic(gathered(layout.shards, weights), gathered(layout.shards, gradients), replicas, _rollout(work, cost))


def _rollout(work: Workload, cost: Compute) -> float:
    """Weights for drawing: in lockstep all of them at every forward, else what is trained, once, for a copy.

    The copy has the rest already, and its layers come as they compute.
    """
    if work.supervised:
        return 0.0
    if work.layout.has_replica:
        outside = memory.trained_outside(work)
        layers = memory.trained(work) - outside
        return gathered(work.shards, work.compute * layers + memory.FP32 * outside)
    steps = cost.think_steps * bool(work.actions) + cost.draw_steps * work.branches
    steps += work.looks
    forwards = steps * (layers_bytes(work) + 2 * root_bytes(work)) + layers_bytes(work) + root_bytes(work)
    return gathered(work.shards, cost.portions * forwards)
