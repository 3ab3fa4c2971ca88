"""Flow GRPO and the regularisers: clip range, weights of steps, errors (the rest: invariants 6, 11-16)."""

from dataclasses import replace

import pytest
import torch

from formulas import flow_grpo, resolve_clip_range
from tolerances import rounding
from unigrpo import flow, seeds
from unigrpo.objectives.regularisers import latent_kl, velocity_mse
from unigrpo.trajectory import FlowPath

GRID = flow.timesteps(9, 4.0)


def normal(*shape, purpose):
    return torch.randn(*shape, generator=seeds.generator(2, 0, 0, 0, purpose))


def picture(i, start, *, n=4, d=3, steps=3):
    x, v, z = (normal(steps, n, d, purpose=f"{i}/{part}") for part in ("x", "v", "z"))
    t, t_next = GRID[start : start + steps], GRID[start + 1 : start + steps + 1]
    mean, std = flow.sde_transition(x, v, t, t_next, noise_level=0.8, t_second=float(GRID[1]))
    mean, std = mean.float(), std.float()
    x_next = mean + std[:, None, None] * z
    log_prob = flow.log_prob(x_next, mean, std)
    path = FlowPath(tuple(range(start, start + steps)), t, t_next, float(GRID[1]), x, x_next, mean, std, log_prob, 0.8)
    return path, v


PATHS, OLD = (list(u) for u in zip(*(picture(i, start) for i, start in enumerate((0, 1, 2, 1))), strict=True))
NEW = [v + 1e-2 * normal(3, 4, 3, purpose=f"off/{i}") for i, v in enumerate(OLD)]
ADVANTAGES = torch.tensor([1.0, -0.5, 0.7, -1.2])


def test_auto_clip_range():
    assert resolve_clip_range("auto", 262144) == pytest.approx(
        1e-6, rel=1e-12
    )  # docs/math.md#clip-range: the paper's at 1024 x 1024
    assert resolve_clip_range("auto", 65536) == pytest.approx(2e-6, rel=1e-12)
    assert resolve_clip_range(3e-5, 64) == 3e-5
    with pytest.raises(ValueError, match="'auto'"):
        resolve_clip_range("automatic", 64)


def test_rows_are_independent_of_the_batch():
    """Per-sample windows: every row keeps its own times and std (docs/math.md#the-window)."""
    term = flow_grpo(NEW, PATHS, ADVANTAGES, clip_range=1.0)
    for i in range(len(PATHS)):
        alone = flow_grpo(NEW[i : i + 1], PATHS[i : i + 1], ADVANTAGES[i : i + 1], clip_range=1.0)
        assert torch.equal(alone.loss[0], term.loss[i])
        assert torch.equal(alone.stats["flow/log_ratio"][0], term.stats["flow/log_ratio"][i])
    assert term.stats["flow/log_ratio"].shape == (4, 3)
    assert torch.equal(term.stats["flow/log_ratio_max"], term.stats["flow/log_ratio"].abs().amax(1))


def test_raw_ratio_is_that_of_the_log_probs():
    term = flow_grpo(NEW, PATHS, ADVANTAGES, clip_range=1.0, ratio_norm=False)
    path, v = PATHS[0], NEW[0]
    mean, std = flow.sde_transition(path.x, v, path.t, path.t_next, noise_level=0.8, t_second=path.t_second)
    log_ratio = flow.log_prob(path.x_next, mean, std) - path.log_prob
    bound = rounding(path.log_prob, terms=path.x[0].numel())  # log_prob is a mean, kept in fp32
    torch.testing.assert_close(term.stats["flow/log_ratio"][0], log_ratio, atol=bound, rtol=0)


def test_grad_reweight():
    plain = flow_grpo(NEW, PATHS, ADVANTAGES, clip_range=1.0)
    ratio = plain.stats["flow/ratio"]
    h = torch.stack([p.t - p.t_next for p in PATHS])
    tokens = ratio * ADVANTAGES[:, None]  # nothing is clipped
    torch.testing.assert_close(plain.loss, -tokens.mean(1), atol=1e-12, rtol=0)
    raw = flow_grpo(NEW, PATHS, ADVANTAGES, clip_range=1.0, grad_reweight="inv_dt")
    torch.testing.assert_close(raw.loss, -(tokens / h).mean(1), atol=1e-10, rtol=0)
    normed = flow_grpo(NEW, PATHS, ADVANTAGES, clip_range=1.0, grad_reweight="inv_dt_norm")
    torch.testing.assert_close(normed.loss, -(tokens / h).mean(1) / (1 / h).mean(1), atol=1e-10, rtol=0)


def test_latent_kl_is_the_kl_per_element():
    term = latent_kl(NEW, PATHS, OLD)
    path = PATHS[1]
    settings = {"noise_level": 0.8, "t_second": path.t_second}
    mean, std = flow.sde_transition(path.x, NEW[1], path.t, path.t_next, **settings)
    reference, _ = flow.sde_transition(path.x, OLD[1], path.t, path.t_next, **settings)
    mean, reference = (m.float().double() for m in (mean, reference))  # as they are stored, and then exactly
    expected = (mean - reference).square().flatten(1).mean(1) / (2 * std**2)
    torch.testing.assert_close(term.stats["flow/latent_kl"][1], expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(term.loss[1], expected.mean(), rtol=1e-9, atol=0)
    assert float(latent_kl(OLD, PATHS, OLD).loss.abs().max()) == 0.0


def test_velocity_mse_is_a_mean_over_steps_and_elements():
    term = velocity_mse(NEW, OLD)
    expected = torch.stack([(a.double() - b.double()).square().mean() for a, b in zip(NEW, OLD, strict=True)])
    torch.testing.assert_close(term.loss, expected, rtol=1e-12, atol=0)
    assert term.stats["flow/velocity_mse"].shape == (4, 3)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: flow_grpo(NEW[:3], PATHS, ADVANTAGES), "velocities: 3"),
        (lambda: flow_grpo(NEW, [*PATHS[:3], replace(PATHS[3], noise_level=0.7)], ADVANTAGES), "must share"),
        (lambda: flow_grpo([*NEW[:3], NEW[3][:2]], PATHS, ADVANTAGES), "do not match"),
        (lambda: flow_grpo(NEW, PATHS, ADVANTAGES, grad_reweight="1/dt"), "none, inv_dt, inv_dt_norm"),
        (lambda: flow_grpo(NEW, PATHS, ADVANTAGES, clip_range=0.0), "clip_range"),
        (lambda: velocity_mse(NEW, [v[:2] for v in OLD]), "one shape"),
        (lambda: velocity_mse(NEW, OLD[:2]), "references: 2"),
    ],
)
def test_what_cannot_work_is_a_value_error(call, says):
    with pytest.raises(ValueError, match=says):
        call()
