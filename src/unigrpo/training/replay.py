"""One packed forward over a batch: token log-probs, and the velocities that a method asked for, guided ones too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unigrpo.policy import Replayed, ReplayItem, Scorer, VelocityQuery
from unigrpo.rollout.guidance import mix, words_alone
from unigrpo.training.parallel import ONE_PROCESS, World
from unigrpo.training.sharing import minibatch_of, tokens_of
from unigrpo.trajectory import Segment, Trajectory, is_shown, without_prompt


@dataclass(frozen=True)
class Batch:
    """Trajectories that are trained on together, and for each the velocities its method asks for."""

    trajectories: list[Trajectory]
    queries: list[tuple[VelocityQuery, ...]]

    def __len__(self) -> int:
        return len(self.trajectories)

    def part(self, start: int, end: int) -> Batch:
        """A slice."""
        return Batch(self.trajectories[start:end], self.queries[start:end])

    def pieces(self, size: int) -> list[Batch]:
        """Consecutive slices of at most ``size``."""
        return [self.part(start, start + size) for start in range(0, len(self), size)]


@dataclass(frozen=True)
class Ranks:
    """How the ranks of a run keep step in replays; of one process, and where every rank holds all weights, they need
    not. ``idle``: a trajectory that any rank may replay once more, for the sake of the others."""

    world: World = ONE_PROCESS
    idle: Batch | None = None

    def pieces(self, batch: Batch, size: int) -> list[tuple[Batch, bool]]:
        """The micro-batches of a minibatch, and whether they count.

        Where weights are shared out, every rank has as many as the one with most: those of ``idle`` count nothing.
        """
        own = [(part, True) for part in batch.pieces(size)]
        if not self.world.sharded:
            return own
        missing = self.world.most(len(own)) - len(own)
        if missing and self.idle is None:
            raise ValueError("a rank has no trajectory at all, and cannot keep step with the others")
        return own + [(self.idle, False)] * missing if self.idle is not None else own

    def replays(
        self, policy: Scorer, batch: Batch, size: int, temperature: float
    ) -> Iterator[tuple[Batch, list[Replayed]]]:
        """Replay a minibatch in its micro-batches, one after the other."""
        for part, real in self.pieces(batch, size):
            answers = replay(policy, part, temperature)
            if real:
                yield part, answers


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


NO_RANKS = Ranks()


def ranks_of(world: World, batch: Batch) -> Ranks:
    """How ranks keep step: each has its shortest trajectory to replay where another has more to do."""
    if not world.sharded:
        return Ranks(world)
    rows = sorted(range(len(batch)), key=lambda row: tokens_of(batch.trajectories[row]))
    return Ranks(world, batch.part(rows[0], rows[0] + 1) if rows else None)


def replay(policy: Scorer, batch: Batch, temperature: float) -> list[Replayed]:
    """Recompute log-probs [B] and velocities, one [K, n, d] per query.

    A guided query is asked again in the contexts of its unconditional branches, in the same forward, and mixed as
    the sampler mixed it (``rollout.guidance``); gradients flow through every branch.
    """
    items, branches = [], []
    for row, (trajectory, queries) in enumerate(zip(batch.trajectories, batch.queries, strict=True)):
        items.append(ReplayItem(trajectory.segments, queries))
        branches += [(row, n, *asked) for n, query in enumerate(queries) for asked in branch_items(trajectory, query)]
    answers = policy.replay([*items, *(item for *_, item in branches)], temperature=temperature)
    own, others = answers[: len(items)], answers[len(items) :]
    if not branches:
        return own
    said = {(row, n, name): other.velocities[0] for (row, n, name, _), other in zip(branches, others, strict=True)}
    return [
        replace(answer, velocities=tuple(
            mixed(v, said.get((row, n, "text")), said.get((row, n, "image")), query)
            for n, (v, query) in enumerate(zip(answer.velocities, queries, strict=True))
        ))
        for row, (answer, queries) in enumerate(zip(own, batch.queries, strict=True))
    ]  # fmt: skip


def branch_items(trajectory: Trajectory, query: VelocityQuery) -> list[tuple[str, ReplayItem]]:
    """What to ask of the unconditional branches of one query: without the prompt, and without pictures.

    Neither has a thinking; the pictures that were looked at stay without the prompt (docs/math.md#rounds).
    """
    if not any(query.guided):
        return []
    given, image = trajectory.given, trajectory.segments[query.segment]
    looked_at = [s for s in trajectory.segments[len(given) : query.segment] if is_shown(s)]
    contexts: list[tuple[str, tuple[Segment, ...]]] = [("text", (*without_prompt(given), *looked_at))]
    if query.guidance.image_scale > 1.0:
        contexts.append(("image", words_alone(given)))
    return [
        (name, ReplayItem((*context, image), (VelocityQuery(len(context), query.x, query.t),)))
        for name, context in contexts
    ]


def mixed(v: Tensor, v_text: Tensor | None, v_image: Tensor | None, query: VelocityQuery) -> Tensor:
    """The guided velocity [K, n, d] where the step is guided, else the conditional one."""
    if v_text is None:
        return v
    guided = torch.tensor(query.guided, device=v.device)
    return torch.where(guided[:, None, None], mix(v, v_text, v_image, query.guidance), v)
