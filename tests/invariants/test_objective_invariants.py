"""Spec section I, the numbers that the objectives answer for: 6, 11-14, 16, 17, 23-26, 28, 29, 35, 36 (fp64)."""

from dataclasses import dataclass, replace

import pytest
import torch

from formulas import METHODS, combination, flow_grpo, group_advantages, queries_of, text_grpo
from tolerances import rounding
from unigrpo import flow, seeds
from unigrpo.objectives.flow_grpo import FlowGRPO
from unigrpo.objectives.regularisers import Regulariser, velocity_mse
from unigrpo.objectives.terms import clipped_surrogate
from unigrpo.objectives.text_grpo import TextGRPO, k3
from unigrpo.trajectory import FlowPath, Image, Prompt, Reference, Text, Trajectory

F64 = torch.float64
A = 0.8
GRID = flow.timesteps(25, 3.0)
KAPPA = 1 + A**2 / 2


def normal(*shape, purpose):
    return torch.randn(*shape, generator=seeds.generator(1, 0, 0, 0, purpose), dtype=F64)


def rollout(x, v_old, noise, start, *, kind="flow", dtype=F64, row_times=False):
    """The path that a sampler would store for K steps from ``start``, each from its own x [K, n, d], as ``dtype``."""
    steps = tuple(range(start, start + len(x)))
    parts = []
    for row, k in enumerate(steps):
        times = GRID[k : k + 2].tolist()
        if row_times:
            times = [torch.full((1,), u, dtype=F64) for u in times]
        one_x, one_v = x[row : row + 1].to(dtype), v_old[row : row + 1].to(dtype)
        mean, std = flow.sde_transition(one_x, one_v, *times, noise_level=A, t_second=float(GRID[1]), kind=kind)
        mean, std = mean.to(dtype), std.to(dtype)
        x_next = (mean + std.reshape(-1, 1, 1) * noise[row : row + 1].to(dtype)).to(dtype)
        parts.append((one_x, x_next, mean, std, flow.log_prob(x_next, mean, std)))
    x_, x_next, mean, std, log_prob = (torch.cat(u) for u in zip(*parts, strict=True))
    t = GRID[list(steps)]
    t_next = GRID[[k + 1 for k in steps]]
    return FlowPath(steps, t, t_next, float(GRID[1]), x_, x_next, mean, std, log_prob, A, kind)


def path_of(name, start=1, *, steps=3, n=2, d=4, **options):
    x, v, z = (normal(steps, n, d, purpose=f"{name}/{part}") for part in ("x", "v", "z"))
    return rollout(x, v, z, start, **options), v, z


# ---------------------------------------------------------------- the image term


@pytest.mark.parametrize("kind", flow.SDE_KINDS)
@pytest.mark.parametrize("row_times", [False, True])
@pytest.mark.parametrize("ratio_norm", [False, True])
def test_06_ratio_is_exactly_one_with_the_weights_of_the_rollout(kind, row_times, ratio_norm):
    rolled = [
        path_of(i, start, kind=kind, dtype=torch.float32, row_times=row_times) for i, start in enumerate((0, 1, 2))
    ]
    term = flow_grpo(
        [v.float() for _, v, _ in rolled],
        [p for p, _, _ in rolled],
        torch.tensor([1.0, -1.0, 0.5]),
        ratio_norm=ratio_norm,
    )
    assert bool((term.stats["flow/log_ratio"] == 0.0).all())
    assert torch.equal(term.loss, torch.tensor([-1.0, 1.0, -0.5], dtype=F64))


@pytest.mark.parametrize("ratio_norm", [True, False])
def test_11_gradient_on_policy(ratio_norm):
    path, v_old, z = path_of("gradient")
    advantage, size = 1.7, v_old[0].numel()
    h = (path.t - path.t_next).reshape(-1, 1, 1)

    def objective(v):
        return -flow_grpo(
            [v], [path], torch.tensor([advantage], dtype=F64), clip_range=1e9, ratio_norm=ratio_norm
        ).loss.sum()

    v = v_old.clone().requires_grad_()
    objective(v).backward()
    scale = torch.ones(3, dtype=F64) if ratio_norm else path.std
    expected = -advantage * KAPPA * h * z / size / scale.reshape(-1, 1, 1) / 3  # / 3: the mean over the window
    torch.testing.assert_close(v.grad, expected, rtol=1e-6, atol=1e-14)
    step = 1e-4
    for index in ((0, 0, 0), (1, 1, 2), (2, 0, 3)):
        up, down = v_old.clone(), v_old.clone()
        up[index] += step
        down[index] -= step
        slope = (objective(up) - objective(down)) / (2 * step)
        assert float(slope) == pytest.approx(float(expected[index]), rel=1e-4)


def shifted(log_ratio, advantage, clip, dtype=F64):
    """flow_grpo on one step whose log r~ is ``log_ratio``: all z are 1, and the mean moves by log_ratio everywhere."""
    x, v = normal(1, 2, 4, purpose="clip/x"), normal(1, 2, 4, purpose="clip/v")
    path = rollout(x, v, torch.ones(1, 2, 4, dtype=F64), 3, dtype=dtype)
    v_new = (v - log_ratio / (KAPPA * float(path.t - path.t_next))).to(dtype).requires_grad_()
    term = flow_grpo([v_new], [path], torch.tensor([advantage]), clip_range=clip)
    term.loss.sum().backward()
    return term, float(v_new.grad.abs().sum())


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("side", [1.0, -1.0])
def test_12_clipping_stops_the_gradient_on_one_side_only(advantage, side):
    term, gradient = shifted(side * 2e-6, advantage, 1e-6)
    assert (gradient == 0.0) == (advantage * side > 0)
    assert float(term.stats["flow/clip_high"].sum()) == float(advantage > 0 and side > 0)
    assert float(term.stats["flow/clip_low"].sum()) == float(advantage < 0 and side < 0)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("side", [1.0, -1.0])
def test_13_clip_range_of_1e_6_is_resolved(side, dtype):
    assert shifted(side * 0.9e-6, side, 1e-6, dtype)[1] > 0.0
    assert shifted(side * 1.1e-6, side, 1e-6, dtype)[1] == 0.0
    # 1.01e-6 in fp32: 1 + x is 1 + 0.95e-6 there, so only expm1 sees that it is outside (docs/math.md#precision)
    log_ratio = torch.tensor([0.99e-6, -0.99e-6, 1.01e-6, -1.01e-6], dtype=dtype)
    clipped = clipped_surrogate(log_ratio, torch.tensor([1.0, -1.0, 1.0, -1.0]), 1e-6)
    assert (clipped.clipped_low | clipped.clipped_high).tolist() == [False, False, True, True]


def test_14_duplicating_the_latent_changes_nothing():
    x, v, z, change = (normal(3, 2, 4, purpose=f"double/{part}") for part in ("x", "v", "z", "change"))

    def evaluate(copies):
        rows = [torch.cat([u] * copies, dim=1) for u in (x, v, z, v + 1e-3 * change)]
        path, advantage = rollout(*rows[:3], 1), torch.tensor([1.0])
        normed, raw = (flow_grpo([rows[3]], [path], advantage, ratio_norm=on, clip_range=1.0) for on in (True, False))
        return torch.cat([normed.stats["flow/log_ratio"], raw.stats["flow/log_ratio"]]), velocity_mse(
            [rows[3]], [rows[1]]
        ).loss

    for once, twice in zip(evaluate(1), evaluate(2), strict=True):
        torch.testing.assert_close(twice, once, atol=1e-12, rtol=0)


def test_16_velocity_mse():
    reference = normal(3, 2, 4, purpose="mse/reference").requires_grad_()
    assert float(velocity_mse([reference.detach()], [reference]).loss) == 0.0
    v = (reference.detach() + 0.1).requires_grad_()
    term = velocity_mse([v], [reference])
    term.loss.sum().backward()
    assert float(term.loss.detach()) == pytest.approx(0.01, rel=1e-9)
    assert float(v.grad.abs().min()) > 0.0
    assert reference.grad is None


# ---------------------------------------------------------------- advantages


def test_23_advantages():
    rewards = [0.1, 0.4, 0.4, 0.9]
    table = [-1.2181195, -0.1740171, -0.1740171, 1.5661536]
    found = group_advantages(rewards, "aaaa")
    assert found.dtype == torch.float32
    bound = rounding(table, terms=4)  # fp32 output: 1e-9 is not to be had
    assert found.tolist() == pytest.approx(table, abs=bound)
    assert float(found.double().sum()) == pytest.approx(0.0, abs=bound)
    assert float(group_advantages([0.1, 0.4, 0.6, 0.9], "aaaa").double().sum()) == pytest.approx(0.0, abs=1e-9)
    for constant in (0.1, 1 / 3, 1e9):
        assert group_advantages([constant] * 7, "aaaaaaa").tolist() == [0.0] * 7
    linear = group_advantages([10 * r + 3 for r in rewards], "aaaa")
    assert linear.tolist() == pytest.approx(table, abs=5e-4)
    one_winner = group_advantages([1.0] + [0.0] * 99, ["a"] * 100)
    assert float(one_winner.max()) == 5.0 and float(one_winner.abs().max()) <= 5.0


def test_24_prompts_do_not_mix():
    rewards, ids = normal(12, purpose="rewards"), [0, 1, 2] * 4
    found = group_advantages(rewards, ids)
    order = torch.tensor([i for group in (2, 0, 1) for i in range(12) if ids[i] == group])
    assert torch.equal(group_advantages(rewards[order], [ids[i] for i in order.tolist()]), found[order])
    moved = rewards.clone()
    moved[[i for i in range(12) if ids[i] == 1]] += normal(4, purpose="moved")
    kept = [i for i in range(12) if ids[i] != 1]
    assert torch.equal(group_advantages(moved, ids)[kept], found[kept])


# ---------------------------------------------------------------- the text term


def text_rows():
    lengths = (1, 3, 7)
    old = [-normal(n, purpose=f"old/{n}").abs() for n in lengths]
    new = [row + 0.3 * normal(len(row), purpose=f"new/{len(row)}") for row in old]
    return new, old, torch.tensor([1.0, -0.7, 0.4])


def test_25_text_loss_is_a_mean_per_sequence():
    new, old, advantages = text_rows()
    term = text_grpo(new, old, advantages, clip_range=0.2)
    for row, (now, before, advantage) in enumerate(zip(new, old, advantages.double(), strict=True)):
        ratio = (now - before).exp()
        tokens = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        assert float(term.loss[row]) == pytest.approx(-float(tokens.mean()), abs=1e-12)
        alone = text_grpo([now], [before], advantages[row : row + 1], clip_range=0.2)
        assert torch.equal(alone.loss[0], term.loss[row])  # what else is in the batch does not matter, to the bit
    doubled = text_grpo(
        [new[0], torch.cat([new[1]] * 2), new[2]], [old[0], torch.cat([old[1]] * 2), old[2]], advantages
    )
    torch.testing.assert_close(doubled.loss, term.loss, atol=1e-12, rtol=0)


def test_26_k3():
    policy, reference = (torch.log_softmax(normal(20, purpose=p), 0) for p in ("policy", "reference"))
    estimate = k3(policy, reference)
    assert bool((estimate >= 0).all())
    assert bool((k3(policy, policy) == 0).all())
    kl = float((policy.exp() * (policy - reference)).sum())
    assert float((policy.exp() * estimate).sum()) == pytest.approx(kl, rel=1e-12)  # E_pi[k3], exactly
    generator = seeds.generator(1, 0, 0, 0, "k3")
    drawn = estimate[torch.multinomial(policy.exp(), 4000, replacement=True, generator=generator)]
    assert abs(float(drawn.mean()) - kl) < 3 * float(drawn.std()) / 4000**0.5


# ---------------------------------------------------------------- the joint objective, on a toy


@dataclass
class Said:
    log_probs: torch.Tensor
    velocities: tuple[torch.Tensor, ...]


class Toy:
    """A reasoning parameter per token class and a denoising matrix; the text shifts the velocities (its context)."""

    def __init__(self, width=4):
        self.reasoning = normal(5, purpose="toy/reasoning").requires_grad_()
        self.denoising = normal(width, width, purpose="toy/denoising").requires_grad_()

    @property
    def parameters(self):
        return [self.reasoning, self.denoising]

    def log_probs(self, ids):
        return torch.log_softmax(self.reasoning, 0)[ids]

    def velocity(self, x):
        return x @ self.denoising

    def say(self, trajectory):
        paths = [i.path for i in trajectory.images if i.path]
        ids = trajectory.sampled_texts[0].ids
        return Said(self.log_probs(ids), tuple(self.velocity(p.x) for p in paths))

    def trajectory(self, i):
        """A trajectory sampled by slightly other parameters than the toy's, so that no ratio is 1."""
        x, z, off = (normal(3, 2, 4, purpose=f"toy/{i}/{part}") for part in ("x", "z", "off"))
        with torch.no_grad():
            path = rollout(x, self.velocity(x) + 1e-3 * off, z, i % 3)
            ids = torch.tensor([i % 5, (3 * i) % 5, 2][: 1 + i % 3])
            before = self.log_probs(ids) - 0.05
        segments = (Text(torch.tensor([1])), Text(ids, ended=False, log_probs=before), Image(x[0], (1, 2), path))
        reference = Reference(velocity=self.velocity(x).detach() + 0.05 * off)
        advantage = (-1.0) ** i * (0.5 + 0.1 * i)
        return Trajectory(Prompt(i, ""), 0, segments, reference=reference).with_advantages(advantage, advantage)


METHOD = combination(text=TextGRPO(clip_range=0.2), image=FlowGRPO(clip_range=1.0), regulariser=Regulariser(weight=0.3))


def losses(method, toy, trajectories):
    generator = torch.Generator()
    draws = [queries_of(method, t, generator) for t in trajectories]
    return method.losses(trajectories, [toy.say(t) for t in trajectories], draws)


def gradients(method, pieces):
    """Gradients of the mean loss over all trajectories, accumulated over ``pieces`` of them."""
    toy = Toy()
    trajectories = [toy.trajectory(i) for i in range(6)]
    size = len(trajectories) // pieces
    for start in range(0, len(trajectories), size):
        (losses(method, toy, trajectories[start : start + size]).total.sum() / len(trajectories)).backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in toy.parameters]


def test_17_only_the_window_counts():
    toy = Toy()
    trajectory = toy.trajectory(0)
    (draw,) = queries_of(METHOD, trajectory, torch.Generator())
    path = trajectory.images[0].path
    assert torch.equal(draw.x, path.x) and torch.equal(draw.t, path.t) and len(draw.t) == 3
    odd_image = Image(normal(2, 4, purpose="given"), (1, 2))  # drawn by the ODE alone, or given: no path
    longer = replace(trajectory, segments=(odd_image, *trajectory.segments))
    assert torch.equal(losses(METHOD, toy, [longer]).total, losses(METHOD, toy, [trajectory]).total)
    assert [d.segment for d in queries_of(METHOD, longer, torch.Generator())] == [3]


def test_28_joint_gradient_is_the_sum_of_its_parts():
    text_only = gradients(METHODS["text_grpo"], 1)
    flow_only = gradients(replace(METHOD, text=None), 1)
    for found, expected in zip(gradients(replace(METHOD, lambda_flow=0.0), 1), text_only, strict=True):
        assert torch.equal(found, expected)
    for joint, a, b in zip(gradients(METHOD, 1), text_only, flow_only, strict=True):
        torch.testing.assert_close(joint, a + b, rtol=1e-6, atol=1e-15)


@pytest.mark.parametrize("method", [METHOD, METHODS["text_grpo"], replace(METHOD, text=None)])
def test_28_accumulation_does_not_matter(method):
    for pieces in (2, 3, 6):
        for found, expected in zip(gradients(method, pieces), gradients(method, 1), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-15)


def adam_update(image_scale):
    toy = Toy()
    start = [p.detach().clone() for p in toy.parameters]
    groups = [{"params": [toy.reasoning], "lr": 1e-6}, {"params": [toy.denoising], "lr": 3e-5}]
    optimizer = torch.optim.Adam(groups, eps=1e-15)
    result = losses(METHOD, toy, [toy.trajectory(i) for i in range(6)])
    (result.text_loss.mean() + image_scale * result.image_loss.mean()).backward()
    optimizer.step()
    return [after.detach() - before for before, after in zip(start, toy.parameters, strict=True)]


def test_29_learning_rates_per_half():
    reasoning, denoising = adam_update(1.0)
    assert 0.0 < float(reasoning.abs().max()) <= 1e-6 * (1 + 1e-6)
    assert 2e-5 < float(denoising.abs().max()) <= 3e-5 * (1 + 1e-6)


def test_35_adam_does_not_see_the_scale_of_the_image_loss():
    for once, scaled in zip(adam_update(1.0), adam_update(100.0), strict=True):
        assert float((scaled - once).norm() / once.norm()) < 0.01


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_36_an_update_goes_towards_the_reward(sign):
    """Reward = one noise coordinate z_j of the step, so that more of it means a larger mean at j."""
    group, k, j = 24, 2, (0, 1)
    x = normal(1, 2, 4, purpose="bandit/x")
    theta = torch.zeros(2, 4, dtype=F64, requires_grad=True)
    noises = [normal(1, 2, 4, purpose=f"bandit/{i}") for i in range(group)]
    paths = [rollout(x, theta.detach()[None], z, k) for z in noises]
    advantages = sign * group_advantages([float(z[0][j]) for z in noises], [0] * group)
    flow_grpo([theta[None]] * group, paths, advantages).loss.mean().backward()
    with torch.no_grad():
        updated = theta - 0.1 * theta.grad / theta.grad.norm()
    mean, _ = flow.sde_transition(x, updated[None], *GRID[k : k + 2].tolist(), noise_level=A, t_second=float(GRID[1]))
    assert sign * float((mean - paths[0].mean)[0][j]) > 0.0


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_36_text_bandit(sign):
    logits = torch.zeros(4, dtype=F64, requires_grad=True)
    ids = torch.arange(4).repeat(6)
    log_probs = torch.log_softmax(logits, 0)[ids]
    advantages = sign * group_advantages((ids == 2).double(), [0] * 24)
    rows = list(log_probs.split(1))
    text_grpo(rows, [row.detach() for row in rows], advantages).loss.mean().backward()
    chosen = torch.softmax(logits.detach() - 0.1 * logits.grad, 0)[2]
    assert sign * (float(chosen) - 0.25) > 0.0
