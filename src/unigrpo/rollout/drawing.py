"""The denoising paths of all rows of a rollout: SDE steps inside the window, the plain ODE elsewhere.

Every draw is keyed, so a sample does not depend on who else is in the batch. Source: docs/math.md#the-window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from unigrpo import doing, flow
from unigrpo.plurals import counted
from unigrpo.policy import Context, Policy
from unigrpo.rollout.guidance import GuidanceContexts, guided
from unigrpo.rollout.sampling import RandomKeys, Rows, Sampling
from unigrpo.trajectory import FlowPath, Image, LatentSnapshot


@dataclass
class _Step:
    """What one SDE step saw, for the rows that took it."""

    k: int
    rows: list[int]
    x: Tensor
    x_next: Tensor
    mean: Tensor
    std: Tensor
    log_prob: Tensor


@dataclass
class _Path:
    """The denoising path of all rows: the final latents and the SDE steps."""

    x: Tensor
    steps: list[_Step] = field(default_factory=list)
    snapshots: dict[int, LatentSnapshot] = field(default_factory=dict)


def draw(
    policy: Policy,
    context: Context,
    branches: GuidanceContexts | None,
    rows: Rows,
    sampling: Sampling,
    keys: RandomKeys,
) -> list[Image]:
    """Draw a picture of every row after its context, guided by its ``branches`` where there are any."""
    grid = flow.timesteps(sampling.num_points, sampling.shift)
    starts = window_starts(rows, sampling, keys)
    noise = _sde_noise(policy, rows, sampling, keys)
    kept = steps_to_keep(rows, sampling, keys)
    path = _Path(_initial_noise(policy, rows, sampling, keys))
    times, is_guided = grid.tolist(), _guided_steps(sampling)
    for k, (t, t_next) in enumerate(pairwise(times)):
        doing.say(f"drawing {counted(len(rows), 'sample')}, step {k + 1} of {len(times) - 1}")
        path.snapshots |= {row: LatentSnapshot(k, t, path.x[row]) for row, step in enumerate(kept) if step == k}
        at = torch.full((len(rows),), t, device=path.x.device)
        v = policy.velocity(context, path.x, at)
        if branches is not None and is_guided[k]:
            v = guided(policy, v, branches, path.x, at, sampling.guidance)
        _advance(path, v, k, t, t_next, times[1], starts, noise, sampling)
    return _collect(policy, path, grid, sampling, len(rows))


def _guided_steps(sampling: Sampling) -> tuple[bool, ...]:
    """Whether each step of the grid is guided."""
    steps = flow.guided_steps(sampling.num_points, sampling.shift, sampling.guidance.interval)
    return tuple(sampling.guidance.on and inside for inside in steps)


def window_starts(rows: Rows, sampling: Sampling, keys: RandomKeys) -> list[int | None]:
    """First SDE step of every row, drawn per (iteration, prompt) and shared by the group; None: no SDE step."""
    if sampling.window is None or sampling.window_size == 0:
        return [None] * len(rows)
    if sampling.slide is not None:
        return [sampling.slide.start(sampling.window, sampling.window_size, keys.iteration)] * len(rows)
    starts: dict[int, int] = {}
    for prompt, _ in rows:
        if prompt.position not in starts:
            source = keys.generator(prompt.position, -1, "window")
            starts[prompt.position] = flow.sde_window(sampling.window, sampling.window_size, generator=source)
    return [starts[prompt.position] for prompt, _ in rows]


def steps_to_keep(rows: Rows, sampling: Sampling, keys: RandomKeys) -> list[int | None]:
    """The step before which a row's state is kept, drawn per sample; None: nothing is kept."""
    if sampling.kept_steps is None:
        return [None] * len(rows)
    lo, hi = sampling.kept_steps
    sources = [keys.generator(prompt.position, sample, "visit") for prompt, sample in rows]
    return [int(torch.randint(lo, hi, (), generator=source)) for source in sources]


def _initial_noise(policy: Policy, rows: Rows, sampling: Sampling, keys: RandomKeys) -> Tensor:
    shape = (policy.spec.num_tokens, policy.spec.latent_dim)
    sample_of = (lambda s: -1) if sampling.same_initial_noise else (lambda s: s)
    noise = [torch.randn(shape, generator=keys.generator(p.position, sample_of(s), "noise")) for p, s in rows]
    return torch.stack(noise).to(_device(policy))


def _sde_noise(policy: Policy, rows: Rows, sampling: Sampling, keys: RandomKeys) -> Tensor | None:
    if sampling.window is None or sampling.window_size == 0:
        return None
    shape = (sampling.window_size, policy.spec.num_tokens, policy.spec.latent_dim)
    noise = [torch.randn(shape, generator=keys.generator(p.position, s, "sde")) for p, s in rows]
    return torch.stack(noise).to(_device(policy))


def _device(policy: Policy) -> torch.device:
    return next(policy.module.parameters()).device


def _advance(
    path: _Path,
    v: Tensor,
    k: int,
    t: float,
    t_next: float,
    t_second: float,
    starts: Sequence[int | None],
    noise: Tensor | None,
    sampling: Sampling,
) -> None:
    """One step of all rows: SDE for those whose window holds step k, ODE for the others."""
    x, path.x = path.x, flow.ode_step(path.x, v, t, t_next)
    inside = [
        row for row, start in enumerate(starts) if start is not None and start <= k < start + sampling.window_size
    ]
    if not inside or noise is None:
        return
    rows = torch.tensor(inside, device=x.device)
    offsets = torch.tensor([k - (starts[row] or 0) for row in inside], device=x.device)
    mean, std = flow.sde_transition(
        x[rows], v[rows], t, t_next, noise_level=sampling.noise_level, t_second=t_second, kind=sampling.sde
    )
    x_next = mean + std[:, None, None] * noise[rows, offsets]
    path.x = path.x.index_copy(0, rows, x_next)
    scores = flow.log_prob(x_next, mean, std)
    path.steps.append(_Step(k, inside, x[rows], x_next, mean, std, scores))


def _collect(policy: Policy, path: _Path, grid: Tensor, sampling: Sampling, count: int) -> list[Image]:
    taken: list[list[tuple[_Step, int]]] = [[] for _ in range(count)]
    for step in path.steps:
        for index, row in enumerate(step.rows):
            taken[row].append((step, index))
    images = []
    for row in range(count):
        flow_path = _flow_path(taken[row], grid, sampling) if taken[row] else None
        images.append(Image(path.x[row], policy.spec.grid, flow_path, drawn=True, snapshot=path.snapshots.get(row)))
    return images


def _flow_path(taken: Sequence[tuple[_Step, int]], grid: Tensor, sampling: Sampling) -> FlowPath:
    indices, is_guided = [step.k for step, _ in taken], _guided_steps(sampling)
    return FlowPath(
        steps=tuple(indices),
        t=grid[indices],
        t_next=grid[[k + 1 for k in indices]],
        t_second=float(grid[1]),
        x=torch.stack([step.x[i] for step, i in taken]),
        x_next=torch.stack([step.x_next[i] for step, i in taken]),
        mean=torch.stack([step.mean[i] for step, i in taken]),
        std=torch.stack([step.std[i] for step, i in taken]),
        log_prob=torch.stack([step.log_prob[i] for step, i in taken]),
        noise_level=sampling.noise_level,
        kind=sampling.sde,
        guidance=sampling.guidance,
        guided=tuple(is_guided[k] for k in indices),
    )
