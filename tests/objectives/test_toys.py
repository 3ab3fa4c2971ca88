"""A problem on which every image term provably improves: a Gaussian whose mean is learned

Data N(m, s^2) has the exact velocity E[eps | x] - E[x_0 | x], with m the only parameter. The reward is a direction w
of x_0, so that E[R] = w m: one small step of any term must raise w m, and lower it where advantages are negated.
Source: docs/math.md#the-clipped-surrogate.
"""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from formulas import METHODS, assign_advantages, queries_of
from unigrpo import flow
from unigrpo.objectives.regularisers import Regulariser
from unigrpo.trajectory import Behaviour, FlowPath, Image, LatentSnapshot, Prompt, Trajectory

D, SPREAD, GROUP, GROUPS, NOISE = 6, 0.3, 16, 8, 0.8
W = torch.tensor([1.0, -1.0, 0.5, 0.0, 0.0, 0.0], dtype=torch.float64)
GRID = flow.timesteps(9, 4.0)


def velocity(m, x, t):
    """The exact velocity of data N(m, SPREAD^2) at x [..., D], t broadcast over the leading axes."""
    t = t[..., None].to(x.dtype)
    variance = (1 - t) ** 2 * SPREAD**2 + t**2
    away = x - (1 - t) * m
    return t / variance * away - (m + (1 - t) * SPREAD**2 / variance * away)


def draw(m, index, window):
    """One trajectory by the ODE, with SDE steps in ``window``; its reward is w x_0."""
    source = torch.Generator().manual_seed(index)
    x, visited, steps = torch.randn(1, D, generator=source, dtype=torch.float64), None, []
    for k, (t, t_next) in enumerate(pairwise(GRID)):
        if k == 6:
            visited = LatentSnapshot(k, float(t), x)
        v = velocity(m, x, t[None])
        if k in window:
            mean, std = flow.sde_transition(x, v, t, t_next, noise_level=NOISE, t_second=float(GRID[1]))
            after = mean + std[:, None] * torch.randn(1, D, generator=source, dtype=torch.float64)
            steps.append((k, x, after, mean, std))
            x = after
        else:
            x = flow.ode_step(x, v, t, t_next)
    path = None
    if steps:
        at = [k for k, *_ in steps]
        before, after, mean = (torch.stack([s[i] for s in steps]) for i in (1, 2, 3))
        std = torch.cat([s[4] for s in steps])
        score = flow.log_prob(after, mean, std)
        nexts = GRID[[k + 1 for k in at]]
        path = FlowPath(tuple(at), GRID[at], nexts, float(GRID[1]), before, after, mean, std, score, NOISE)
    image = Image(x, (1, 1), path, drawn=True, snapshot=visited)
    return Trajectory(Prompt(index // GROUP, ""), index % GROUP, (image,), reward=float(x[0] @ W))


class Said:
    def __init__(self, velocities):
        self.velocities, self.log_probs = velocities, torch.empty(0)


def after_one_step(method, sign, rate=0.02, reward=None):
    """w m after one gradient step (of fixed length) from m = 0."""
    start = torch.zeros(D, dtype=torch.float64)
    window = (1, 2, 3) if method.needs_sde else ()
    rows = assign_advantages([draw(start, i, window) for i in range(GROUP * GROUPS)])
    rows = [row.with_advantages(None, sign * row.advantage) for row in rows]
    draws = [queries_of(method, row, torch.Generator().manual_seed(i)) for i, row in enumerate(rows)]
    m = start.clone().requires_grad_()
    say = lambda p: [Said(tuple(velocity(p, d.x, d.t[:, None]) for d in ds)) for ds in draws]  # noqa: E731
    rows = [
        replace(row, behaviour=Behaviour(torch.cat([d.x for d in ds]), torch.cat(list(said.velocities)).detach()))
        for row, ds, said in zip(rows, draws, say(start), strict=True)
    ]
    method.losses(rows, say(m), draws, latent_reward=reward).total.mean().backward()
    return float((start - rate * m.grad / m.grad.norm()) @ W)


NONE = Regulariser(weight=0.0)


@pytest.mark.parametrize("name", ["flow_grpo", "fpo", "diffusion_nft"])
def test_36_one_step_raises_the_expected_reward_and_lowers_it_when_negated(name):
    method = replace(METHODS[name], regulariser=NONE)
    best = 0.02 * float(W.norm())
    assert 0.5 * best < after_one_step(method, +1.0) <= best * (1 + 1e-6)
    assert -0.5 * best > after_one_step(method, -1.0) >= -best * (1 + 1e-6)


def test_36_refl_climbs_its_reward():
    for sign in (1.0, -1.0):
        reward = lambda z, prompts, sign=sign: sign * (z[:, 0] @ W)  # noqa: E731
        moved = after_one_step(replace(METHODS["refl"], regulariser=NONE), 1.0, reward=reward)
        assert sign * moved > 0.95 * 0.02 * float(W.norm())
