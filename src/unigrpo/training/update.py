"""One optimizer step: replay in micro-batches, the method's losses, backward, clip, step (docs/math.md#joint)."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from unigrpo import doing, suspects
from unigrpo.objectives.image_terms import LatentReward
from unigrpo.objectives.method import Losses, Method, TargetsPerRow, targets_per_row
from unigrpo.objectives.terms import Statistics, merge, of_rows, summarize
from unigrpo.policy import Policy
from unigrpo.ranges import NotFiniteError
from unigrpo.training.annotating import annotate_behaviour as annotate_behaviour
from unigrpo.training.annotating import annotate_reference as annotate_reference
from unigrpo.training.annotating import rescore as rescore
from unigrpo.training.gradients import Reached, backward, backward_sharded
from unigrpo.training.optimizer import ExpertOptimizer, NotFinite, TrainingFault
from unigrpo.training.parallel import World
from unigrpo.training.replay import NO_RANKS, Batch, Ranks, replay
from unigrpo.training.replay import minibatches as minibatches


@dataclass(frozen=True)
class Updated:
    """What one optimizer step reports: loss statistics, gradient norms, mean token entropy."""

    stats: dict[str, float]
    grad_norm: dict[str, float]
    entropy: float | None


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
    stats, entropy, learning = _of_all(world, collected, entropies, reached)
    if check is not None:
        with named("ratio", batch):
            check.require(stats)
    if before_step is not None:
        before_step()
    world.sum_gradients([p for named in optimizer.parameters.values() for p in named.values()])
    with named("gradient", batch, reached.not_finite):
        norms = optimizer.step(learning=learning)
    return Updated(stats, norms, entropy)


def _of_all(
    world: World, collected: Sequence[Statistics], entropies: Sequence[Tensor], reached: Reached
) -> tuple[dict[str, float], float | None, frozenset[str]]:
    """Over all ranks: the loss statistics, the mean entropy, and the experts whose answers a gradient has reached."""
    whole = torch.cat(list(entropies)) if entropies else torch.zeros(0)
    if not world.many:
        entropy = float(whole.mean()) if whole.numel() else None
        return summarize(merge(collected)), entropy, reached.experts()
    said = world.gather(({name: rows.cpu() for name, rows in merge(collected).items()}, reached.experts()))
    total, tokens = world.sums(float(whole.double().sum()), whole.numel())
    stats = summarize(merge([part for part, _ in said]))
    return stats, total / tokens if tokens else None, Reached.of([part for _, part in said]).experts()


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
    spread = of_rows("max", torch.cat([a.spreads for a in answers]), [a.spreads.numel() for a in answers])
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
