"""One optimizer step: replay in micro-batches, the method's losses, backward, clip, step (docs/math.md#joint)."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unigrpo import doing, suspects
from unigrpo.flow import log_ratio_norm
from unigrpo.objectives.flow_grpo import replay_transition
from unigrpo.objectives.image_terms import LatentReward
from unigrpo.objectives.method import Losses, Method, TargetsPerRow, targets_per_row
from unigrpo.objectives.terms import Statistics, merge, summarize
from unigrpo.policy import Policy, Scorer
from unigrpo.ranges import NotFiniteError
from unigrpo.training.gradients import Reached, backward, backward_sharded
from unigrpo.training.optimizer import ExpertOptimizer, NotFinite, TrainingFault
from unigrpo.training.parallel import World
from unigrpo.training.replay import NO_RANKS, Batch, Ranks, replay
from unigrpo.training.sharing import minibatch_of
from unigrpo.trajectory import Behaviour, FlowPath, Image, Reference, Segment, Text, Trajectory


@dataclass(frozen=True)
class Updated:
    """What one optimizer step reports: loss statistics, gradient norms, mean token entropy."""

    stats: dict[str, float]
    grad_norm: dict[str, float]
    entropy: float | None


def minibatches(batch: Batch, count: int, everybody: Sequence[Trajectory] = ()) -> list[Batch]:
    """Split into ``count`` disjoint sets of whole groups, in order, as even as groups allow; fewer for fewer groups.

    ``everybody``: the trajectories of all ranks, whose groups are split, and of which the batch holds some.
    """
    parts = minibatch_of([t.prompt.position for t in everybody or batch.trajectories], count)
    rows = [(parts[t.prompt.position], t, q) for t, q in zip(batch.trajectories, batch.queries, strict=True)]
    return [
        Batch([t for k, t, _ in rows if k == part], [q for k, _, q in rows if k == part])
        for part in range(max(parts.values()) + 1)
    ]


def update(
    policy: Policy,
    optimizer: ExpertOptimizer,
    method: Method,
    batch: Batch,
    *,
    micro_batch: int,
    temperature: float,
    check: RatioBounds | None = None,
    latent_reward: LatentReward | None = None,
    ranks: Ranks = NO_RANKS,
    before_step: Callable[[], None] | None = None,
) -> Updated:
    """Accumulate the gradient of mean_i loss_i over a minibatch, check it, and step once.

    ``check``: bounds of the first update's log-ratios; beyond them TrainingFault, before anything is changed.
    ``latent_reward``: for methods that follow the reward's gradient. Of several ranks, ``batch`` is this one's part of
    the minibatch; means and norms are of the whole. ``before_step`` is called when all is ready to step, and may raise.
    """
    optimizer.zero_grad()
    world = ranks.world
    count, per_row = targets_of_all(world, batch)
    collected, entropies, reached = [], [], Reached()
    parts = ranks.pieces(batch, micro_batch)
    with nullcontext() if world.sharded else world.together():
        for number, (part, real) in enumerate(parts, start=1):
            doing.say(f"updating, micro-batch {number} of {len(parts)}")
            seen, tokens_seen = accumulate(
                policy,
                method,
                part,
                count,
                temperature=temperature,
                per_row=per_row,
                latent_reward=latent_reward,
                reached=reached if real else None,
                sharded=world.sharded,
            )
            if real:
                collected.append(seen)
                entropies.extend(tokens_seen)
    whole, here = torch.cat(entropies) if entropies else torch.zeros(0), reached
    if not world.many:
        stats, entropy = summarize(merge(collected)), float(whole.mean()) if whole.numel() else None
    else:
        said = world.gather(({name: rows.cpu() for name, rows in merge(collected).items()}, reached.experts()))
        stats, reached = summarize(merge([part for part, _ in said])), Reached.of([part for _, part in said])
        total, tokens = world.sums(float(whole.double().sum()), whole.numel())
        entropy = total / tokens if tokens else None
    if check is not None:
        with named("ratio", batch):
            check.require(stats)
    if before_step is not None:
        before_step()
    world.sum_gradients([p for named in optimizer.parameters.values() for p in named.values()])
    with named("gradient", batch, here.not_finite):
        norms = optimizer.step(learning=reached.experts())
    return Updated(stats, norms, entropy)


@contextmanager
def named(kind: suspects.Kind, part: Batch, rows: Callable[[], Collection[int]] = tuple) -> Iterator[None]:
    """Where something inside is not finite, name the trajectories that it came from: those of ``rows`` first."""
    try:
        yield
    except NotFiniteError as error:
        first = rows()
        order = sorted(range(len(part)), key=lambda row: row not in first)
        suspects.note(kind, str(error), [part.trajectories[row] for row in order])
        raise


def targets_of_all(world: World, batch: Batch) -> tuple[int, TargetsPerRow]:
    """The trajectories of a minibatch on all ranks, and what their supervised losses are divided by."""
    if not world.many:
        return len(batch), targets_per_row(batch.trajectories, batch.queries)
    own = targets_per_row(batch.trajectories, batch.queries) if len(batch) else TargetsPerRow(0.0, 0.0)
    text, image, rows = world.sums(round(own.text * len(batch)), round(own.image * len(batch)), len(batch))
    return int(rows), TargetsPerRow(text / rows, image / rows)


def accumulate(
    policy: Policy,
    method: Method,
    part: Batch,
    count: int,
    *,
    temperature: float,
    per_row: TargetsPerRow,
    latent_reward: LatentReward | None = None,
    reached: Reached | None = None,
    sharded: bool = False,
) -> tuple[Statistics, list[Tensor]]:
    """Add one micro-batch's gradient; return its statistics and entropies. Its graph is gone before the next begins.

    ``reached``: notes where gradients arrive; None: a micro-batch of weight 0, which is there for its collectives.
    """
    answers = replay(policy, part, temperature)
    if reached is not None:
        reached.watch(answers)
    spread = torch.stack([a.spreads.amax() if a.spreads.numel() else a.spreads.new_zeros(()) for a in answers])
    with named("loss", part):
        losses = method.losses(part.trajectories, answers, part.queries, per_row=per_row, latent_reward=latent_reward)
    if reached is None:
        text, image = (None if loss is None else loss * 0.0 for loss in (losses.text_loss, losses.image_loss))
        losses = Losses(text, image, losses.stats)
    with named("loss", part, lambda: not_finite(losses)):
        (backward_sharded if sharded else backward)(policy, method, losses, count)
    return {**losses.stats, "text/spread_max": spread}, [answer.entropies for answer in answers]


def not_finite(losses: Losses) -> set[int]:
    """The rows of a micro-batch whose own loss is not finite."""
    both = [loss.detach() for loss in (losses.text_loss, losses.image_loss) if loss is not None]
    return {row for loss in both for row in (~loss.isfinite()).nonzero()[:, 0].tolist()}


REPLAYED_BOUND = 1e-9
"""Of other ratios (FPO's): old losses come from a replay of the same micro-batches in the same precision, so that
nothing may differ."""
SPREAD = 10.0
"""Nats between the likeliest and the unlikeliest token up to which the bound of text stands as it is.

Two ways to the same logits differ by their magnitude times the rounding: measured in fp32, 2e-7 to 5e-7 of the spread,
from 100 to 152,064 words and at temperatures 1 to 0.01 (which multiply the spread). The bound is 1e-6 of it."""
IMAGE_ROUNDING = 1e-7
"""Of an image log-ratio, where a velocity's rounding reaches it once (``flow_grpo``, "flow/rounding_max")."""


@dataclass(frozen=True)
class RatioBounds:
    """How far from 1 the first update's ratios may be, as max |log ratio| (docs/guide.md, "What stops a run").

    ``text`` holds up to a spread of ``SPREAD`` nats and grows with it; ``image`` is never less than the rounding.
    """

    text: float
    image: float

    def require(self, stats: dict[str, float]) -> None:
        """Raise TrainingFault where the first update is not on-policy."""
        text = self.text * max(1.0, stats.get("text/spread_max", 0.0) / SPREAD)
        image = max(self.image, IMAGE_ROUNDING * stats.get("flow/rounding_max", 1.0))
        for key in (name for name in stats if name.endswith("/log_ratio_max")):
            term = key.partition("/")[0]
            bound = {"text": text, "flow": image}.get(term, REPLAYED_BOUND)
            if not stats[key] <= bound:
                what = "text" if term == "text" else "image"
                kind = TrainingFault if math.isfinite(stats[key]) else NotFinite
                raise kind(
                    f"the first update's {what} ratios must be 1, but max |log ratio| is {stats[key]:.3g} "
                    f"(bound {bound:.3g}): the replay does not score what the rollout sampled; were weights, precision "
                    "or masks changed in between? (nothing was updated)"
                )


def ratio_bounds(compute_dtype: torch.dtype, clip_range: float | None) -> RatioBounds:
    """fp32: text 1e-5, image 0.01 clip; below: text 1e-3, image 0.1 clip, against re-scored old values."""
    clip = float("inf") if clip_range is None else clip_range
    text, share = (1e-5, 0.01) if compute_dtype == torch.float32 else (1e-3, 0.1)
    return RatioBounds(text, max(IMAGE_ROUNDING, share * clip))


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
