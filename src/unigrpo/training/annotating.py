"""What stays the same over an iteration's epochs: the reference's answers, and old values from a replay.

Replays are cut into the very micro-batches that are trained on, because other shapes would round otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unigrpo.flow import log_ratio_norm
from unigrpo.objectives.flow_grpo import replay_transition
from unigrpo.policy import Policy, Scorer
from unigrpo.recipe import Recipe
from unigrpo.training.components import RunComponents
from unigrpo.training.replay import NO_RANKS, Batch, Ranks, minibatches
from unigrpo.trajectory import Behaviour, FlowPath, Image, Reference, Segment, Text, Trajectory


@dataclass(frozen=True)
class Asked:
    """What a method needs to know before the first update: of whom, and in which pieces.

    reference: the frozen start (None: not needed); behaviour: the policy's own velocities; rounds: old values are taken
    from a replay (below fp32). minibatches, micro_batch, temperature: as in the update.
    """

    policy: Policy
    reference: Scorer | None
    behaviour: bool
    rounds: bool
    minibatches: int
    micro_batch: int
    temperature: float


def asked_of(recipe: Recipe, parts: RunComponents) -> Asked:
    """What the method of a recipe asks in its run; ValueError where it needs a reference and the run has none."""
    method = parts.method
    if method.needs_reference and parts.reference is None:
        raise ValueError("this method regularises towards a reference, but the run was built without one")
    return Asked(
        parts.policy,
        parts.reference if method.needs_reference else None,
        behaviour=method.needs_behaviour_velocity,
        rounds=parts.compute_dtype != torch.float32 and method.needs_old_values,
        minibatches=recipe.optimizer.minibatches,
        micro_batch=recipe.optimizer.micro_batch,
        temperature=recipe.rollout.temperature,
    )


def annotated(
    asked: Asked, batch: Batch, ranks: Ranks = NO_RANKS, everybody: Sequence[Trajectory] = ()
) -> tuple[Batch, dict[str, float]]:
    """A batch with all of it, and how far the rollout and its replay are apart in low precision ({}: nothing rounds).

    ``everybody``: the trajectories of all ranks that are trained on, where there are several.
    """
    world, ready, gap = ranks.world, Batch([], []), {"text": 0.0, "image": 0.0}
    size, temperature = asked.micro_batch, asked.temperature
    with nullcontext() if world.sharded else world.together():
        for part in minibatches(batch, asked.minibatches, everybody):
            if asked.reference is not None:
                part = annotate_reference(asked.reference, part, micro_batch=size, temperature=temperature, ranks=ranks)
            if asked.behaviour:
                part = annotate_behaviour(asked.policy, part, micro_batch=size, temperature=temperature, ranks=ranks)
            if asked.rounds:
                part, apart = rescore(asked.policy, part, micro_batch=size, temperature=temperature, ranks=ranks)
                gap = {kind: max(gap[kind], apart[kind]) for kind in gap}
            ready = Batch(ready.trajectories + part.trajectories, ready.queries + part.queries)
    if not asked.rounds:
        return ready, {}
    return ready, {kind: max(said[kind] for said in world.gather(gap)) for kind in gap}


@torch.no_grad()
def annotate_reference(
    reference: Scorer, batch: Batch, *, micro_batch: int, temperature: float, ranks: Ranks = NO_RANKS
) -> Batch:
    """Add what the frozen start checkpoint says, with its own weights throughout: v_ref at the queries, log-probs."""
    ready = []
    for part, answers in ranks.replays(reference, batch, micro_batch, temperature):
        for trajectory, answer in zip(part.trajectories, answers, strict=True):
            velocity = torch.cat(answer.velocities) if answer.velocities else None
            ready.append(replace(trajectory, reference=Reference(velocity, answer.log_probs)))
    return Batch(ready, batch.queries)


@torch.no_grad()
def annotate_behaviour(
    policy: Scorer, batch: Batch, *, micro_batch: int, temperature: float, ranks: Ranks = NO_RANKS
) -> Batch:
    """Add what the weights before the update say at the queries, from the micro-batches that will be trained on."""
    ready = []
    for part, answers in ranks.replays(policy, batch, micro_batch, temperature):
        for trajectory, queries, answer in zip(part.trajectories, part.queries, answers, strict=True):
            if queries:
                behaviour = Behaviour(torch.cat([query.x for query in queries]), torch.cat(answer.velocities))
                trajectory = replace(trajectory, behaviour=behaviour)
            ready.append(trajectory)
    return Batch(ready, batch.queries)


@torch.no_grad()
def rescore(
    policy: Scorer, batch: Batch, *, micro_batch: int, temperature: float, ranks: Ranks = NO_RANKS
) -> tuple[Batch, dict[str, float]]:
    """Replace the rollout's old log-probs and means by those of a replay (for compute below fp32).

    Also returns the gap between the two, max |log ratio| of "text" and "image", which is rounding and never trained on.
    """
    ready: list[Trajectory] = []
    gap = {"text": 0.0, "image": 0.0}
    for part, answers in ranks.replays(policy, batch, micro_batch, temperature):
        for trajectory, answer in zip(part.trajectories, answers, strict=True):
            log_probs, velocities = answer.log_probs, list(answer.velocities)
            segments: list[Segment] = []
            for segment in trajectory.segments:
                if isinstance(segment, Text) and segment.log_probs is not None:
                    again, log_probs = log_probs[: segment.num_actions], log_probs[segment.num_actions :]
                    gap["text"] = max(gap["text"], float((again.cpu() - segment.log_probs.cpu()).abs().max()))
                    segment = replace(segment, log_probs=again)
                elif isinstance(segment, Image) and segment.path is not None and velocities:
                    path = segment.path
                    mean, _ = replay_transition([velocities.pop(0)], path)
                    gap["image"] = max(gap["image"], _image_gap(path, mean))
                    segment = replace(segment, path=replace(path, mean=mean))
                segments.append(segment)
            ready.append(replace(trajectory, segments=tuple(segments)))
    return Batch(ready, batch.queries), gap


def _image_gap(path: FlowPath, mean: Tensor) -> float:
    return float(log_ratio_norm(path.x_next.double(), mean.double(), path.mean.double(), path.std.double()).abs().max())
