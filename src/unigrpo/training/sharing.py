"""Who does what of an iteration: which samples a rank draws, what of them all ranks know, and what moves.

Nothing here changes a number: every draw has its key, and statistics are of all samples wherever they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unigrpo.training.parallel import World
from unigrpo.trajectory import FlowPath, Segment, Text, Trajectory, View

EVEN = 0.1
"""Share of the mean load by which the busiest rank may exceed the least busy one before anything moves."""


@dataclass(frozen=True)
class Portion:
    """Some prompts of an iteration (by index), and of each ``count`` samples from ``first`` on."""

    prompts: tuple[int, ...]
    first: int
    count: int


def portions_of(world: World, prompts: int, samples: int, *, together: int = 1, minibatches: int = 1) -> list[Portion]:
    """What a rank draws: its share of every minibatch's samples, in order, whole groups where they divide.

    ``together`` neighbours share a thinking and stay on one rank.
    """
    each, count = samples // together, min(minibatches, prompts)
    found: dict[tuple[int, int], list[int]] = {}
    for k in range(count):
        first, last = prompts * k // count, prompts * (k + 1) // count
        units = (last - first) * each
        low, high = units * world.rank // world.size, units * (world.rank + 1) // world.size
        for group in range(first, last):
            begin = (group - first) * each
            start, end = max(low, begin), min(high, begin + each)
            if start < end:
                found.setdefault(((start - begin) * together, (end - start) * together), []).append(group)
    return [Portion(tuple(groups), first, count) for (first, count), groups in found.items()]


def share_of(world: World, count: int) -> slice:
    """A rank's share of ``count`` things in order, as even as they allow."""
    return slice(count * world.rank // world.size, count * (world.rank + 1) // world.size)


def minibatch_of(positions: Sequence[int], count: int) -> dict[int, int]:
    """The minibatch of every group, by its prompt's position: whole groups, in order, as even as groups allow."""
    groups = list(dict.fromkeys(positions))
    count = min(count, len(groups))
    cuts = [len(groups) * k // count for k in range(count + 1)]
    return {group: k for k in range(count) for group in groups[cuts[k] : cuts[k + 1]]}


# What all ranks know of all samples


def light(trajectory: Trajectory) -> Trajectory:
    """A trajectory without its pictures' numbers, and without those of its prompt: a few kilobytes."""
    segments = tuple(_light_segment(segment) for segment in trajectory.segments)
    prompt = replace(trajectory.prompt, images=())
    return replace(trajectory, prompt=prompt, segments=segments, reference=None, behaviour=None)


def _light_segment(segment: Segment) -> Segment:
    nothing = torch.empty(0)
    if isinstance(segment, View):
        return View(nothing, segment.grid)
    if isinstance(segment, Text):
        return packed(segment)
    path = segment.path
    if path is not None:
        numbers = {f.name: nothing for f in fields(FlowPath) if isinstance(vars(path)[f.name], Tensor)}
        path = replace(path, **numbers)
    return replace(segment, latents=nothing, path=path, snapshot=None, pixels=None)


def with_verdict(trajectory: Trajectory, known: Trajectory) -> Trajectory:
    """A trajectory with what all ranks together found out about it: its advantages, and whether it is left out."""
    return replace(trajectory.with_each_advantage(known.advantages), failure=known.failure)


@dataclass(frozen=True)
class _Away:
    """A tensor of an accelerator on its way between two ranks."""

    numbers: Tensor


def packed(value: Any) -> Any:
    """The same with every tensor inside (of dataclasses, tuples and lists) on the CPU; :func:`unpacked` undoes it."""
    if isinstance(value, Tensor):
        return value if value.device.type == "cpu" else _Away(value.cpu())
    return _each(packed, value)


def unpacked(value: Any, device: torch.device) -> Any:
    """What :func:`packed` gave, with those tensors on ``device`` that were on one before."""
    if isinstance(value, _Away):
        return value.numbers.to(device)
    return _each(lambda item: unpacked(item, device), value)


def _each(change: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(change(item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: change(vars(value)[field.name]) for field in fields(value)})
    return value


# Balance


def tokens_of(trajectory: Trajectory) -> int:
    """What a replay reads of a trajectory: its texts, pictures as seen, and every noisy copy of its pictures."""
    texts = sum(segment.num_actions for segment in trajectory.segments if isinstance(segment, Text))
    seen = sum(segment.patches.shape[0] for segment in trajectory.segments if isinstance(segment, View))
    return (
        texts
        + seen
        + sum(
            image.latents.shape[0] * max(1, len(image.path.steps) if image.path is not None else 1)
            for image in trajectory.images
        )
    )


@dataclass(frozen=True)
class Unit:
    """What moves as one: the samples of a thought, by their keys (prompt position, sample); ``tokens`` of all."""

    keys: tuple[tuple[int, int], ...]
    tokens: int


def units_of(trajectories: Sequence[Trajectory]) -> list[Unit]:
    """The units that some trajectories make."""
    found: dict[tuple[int, int], list[Trajectory]] = {}
    for t in trajectories:
        found.setdefault((t.prompt.position, t.sample if t.thought is None else -1 - t.thought), []).append(t)
    return [Unit(tuple(map(key_of, some)), sum(map(tokens_of, some))) for some in found.values()]


def key_of(trajectory: Trajectory) -> tuple[int, int]:
    """What tells a trajectory from all others of its iteration."""
    return trajectory.prompt.position, trajectory.sample


def moves(held: Sequence[Sequence[Unit]]) -> list[tuple[Unit, int, int]]:
    """Which units go from which rank to which, so that no rank has much more to compute than another.

    Greedy by length: from the busiest rank to the least busy one, whatever halves the gap best, until it is below
    ``EVEN`` of the mean; where ranks are even already, nothing moves.
    """
    ranks = [list(units) for units in held]
    found: list[tuple[Unit, int, int]] = []
    for _ in range(sum(map(len, ranks))):
        loads = [sum(unit.tokens for unit in units) for units in ranks]
        high, low = loads.index(max(loads)), loads.index(min(loads))
        gap = loads[high] - loads[low]
        fitting = [unit for unit in ranks[high] if 0 < unit.tokens < gap]
        if gap <= EVEN * sum(loads) / len(loads) or not fitting:
            break
        best = min(fitting, key=lambda unit: abs(gap / 2 - unit.tokens))
        ranks[high].remove(best)
        ranks[low].append(best)
        found.append((best, high, low))
    final: dict[tuple[tuple[int, int], ...], tuple[Unit, int, int]] = {}
    for unit, start, end in found:  # one that moved twice goes straight to its end
        final[unit.keys] = (unit, final[unit.keys][1] if unit.keys in final else start, end)
    return [move for move in final.values() if move[1] != move[2]]


def balanced(world: World, mine: Sequence[Trajectory], device: torch.device) -> list[Trajectory]:
    """This rank's trajectories after some have moved (:func:`moves`); those that come are put on ``device``."""
    plan = moves(world.gather(units_of(mine)))
    if not plan:
        return list(mine)
    goes = {key: end for unit, _, end in plan for key in unit.keys}
    leaving = [t for t in mine if key_of(t) in goes]
    # in one list, so that the samples of a thought go on sharing it
    sent = world.gather(packed(leaving))
    coming = [t for some in sent for t in some if goes[key_of(t)] == world.rank]
    return [t for t in mine if key_of(t) not in goes] + unpacked(coming, device)
