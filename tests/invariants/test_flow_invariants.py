"""Spec section I, the numbers that flow alone answers for: 1-5, 8-10, 13-15, 18, 21, 22, 38 (all fp64)."""

import random

import numpy as np
import pytest
import torch

from unigrpo import flow, seeds

F64 = torch.float64
A = 0.8
GRID = flow.timesteps(25, 3.0)


def transition(x, v, k, *, noise_level=A, grid=GRID, kind="flow"):
    t, t_next = grid[k : k + 2].tolist()
    return flow.sde_transition(x, v, t, t_next, noise_level=noise_level, t_second=float(grid[1]), kind=kind)


def golden_rows():
    """x, v, v_old, z of docs/math.md#rationorm: D = 8."""
    i = torch.arange(8, dtype=F64)
    v = torch.cos(i)
    rows = torch.linspace(-1, 1, 8, dtype=F64), v, v + 0.01 * torch.sin(3 * i), torch.sin(i + 1)
    return tuple(u[None] for u in rows)


def paper_form(x_next, mean, mean_old, std, *, constant=0.0, sign=1.0):
    """RatioNorm as the paper writes it (eq. 5), from two log-probs."""
    log_ratio = (flow.log_prob(x_next, mean, std) + constant) - (flow.log_prob(x_next, mean_old, std) + constant)
    bias = (sign * (mean - mean_old)).square().flatten(1).mean(1) / (2 * std**2)
    return std * (log_ratio + bias)


def test_01_schedule():
    assert GRID.dtype == F64 and len(GRID) == 25 and GRID[0] == 1.0 and GRID[-1] == 0.0
    assert bool((GRID.diff() < 0).all())
    h = -GRID.diff()
    t_table = [1, 0.98571429, 0.97058824, 0.95454545, 0.9375, 0.91935484]
    h_table = [0.01428571, 0.01512605, 0.01604278, 0.01704545, 0.01814516, 0.01935484]
    assert GRID[:6].tolist() == pytest.approx(t_table, abs=1e-7)
    assert h[:6].tolist() == pytest.approx(h_table, abs=1e-7)
    assert float(flow.timesteps(15, 3.0)[-2]) == pytest.approx(0.1875, abs=1e-12)


@pytest.mark.parametrize(
    ("points", "noise_level", "table"),
    [
        (25, 0.8, [0.8, 0.81729211, 0.5820855, 0.47863442, 0.41736501, 0.37578305]),
        (15, 1.3, [1.3, 1.34951746, 0.96640952, 0.79868151, 0.6994943, 0.63187222]),
    ],
)
def test_01_std_table(points, noise_level, table):
    grid, x = flow.timesteps(points, 3.0), torch.zeros(1, 1, dtype=F64)
    stds = [float(transition(x, x, k, noise_level=noise_level, grid=grid)[1]) for k in range(6)]
    assert stds == pytest.approx(table, abs=1e-7)


@pytest.mark.parametrize("points", [2, 9, 25, 50])
def test_02_first_std_is_the_noise_level(points):
    grid, x = flow.timesteps(points, 3.0), torch.ones(1, 4, dtype=F64)
    mean, std = transition(x, x, 0, noise_level=0.8, grid=grid)
    assert float(std) == pytest.approx(0.8, abs=1e-12)
    assert bool(torch.isfinite(mean).all())


@pytest.mark.parametrize("kind", flow.SDE_KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-12), (torch.float32, 1e-6)])
def test_03_without_noise_it_is_the_ode(kind, dtype, tolerance):
    x, v, *_ = (u.to(dtype) for u in golden_rows())
    for k in (0, 1, 12, 22):
        mean, std = transition(x, v, k, noise_level=0.0, kind=kind)
        torch.testing.assert_close(mean, flow.ode_step(x, v, *GRID[k : k + 2].tolist()), atol=tolerance, rtol=0)
        assert float(std) == 0.0


@pytest.mark.parametrize("k", [0, 1, 4, 12])
def test_04_kappa(k):
    x, v, *_ = golden_rows()
    v = v.clone().requires_grad_()
    transition(x, v, k)[0].sum().backward()
    h = float(GRID[k] - GRID[k + 1])
    kappa = 1.0 if k == 0 else 1.0 + A**2 / 2
    torch.testing.assert_close(v.grad, torch.full_like(v, -kappa * h), atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("k", "raw", "normed"),
    [
        (0, 9.910543e-06, 7.932010e-06),
        (1, 1.3556124e-05, 1.1086150e-05),
        (4, 3.1817819e-05, 1.3298910e-05),
    ],
)
def test_05_golden_transition(k, raw, normed):
    x, v, v_old, z = golden_rows()
    (mean, std), (mean_old, _) = transition(x, v, k), transition(x, v_old, k)
    x_next = mean_old + std * z
    t, h = float(GRID[k]), float(GRID[k] - GRID[k + 1])
    closed = (1 - A**2 / 2) * x - h * v if k == 0 else x - A**2 / 2 * h / (1 - t) * x - (1 + A**2 / 2) * h * v
    torch.testing.assert_close(mean, closed, atol=1e-11, rtol=0)
    old = flow.log_prob(x_next, mean_old, std)
    assert float(old) == pytest.approx(-float((z**2).mean()) / 2, abs=1e-11)
    assert float(flow.log_prob(x_next, mean, std) - old) == pytest.approx(raw, abs=1e-11)
    assert float(flow.log_ratio_norm(x_next, mean, mean_old, std)) == pytest.approx(normed, abs=1e-11)


@pytest.mark.parametrize("k", [0, 1, 4, 20])
def test_08_direct_form_is_the_papers_form(k):
    x, v, v_old, z = golden_rows()
    (mean, std), (mean_old, _) = transition(x, v, k), transition(x, v_old, k)
    x_next = mean_old + std * z
    direct = flow.log_ratio_norm(x_next, mean, mean_old, std)
    torch.testing.assert_close(paper_form(x_next, mean, mean_old, std), direct, atol=1e-12, rtol=0)


def test_09_constants_and_the_sign_of_the_drift_cancel():
    x, v, v_old, z = golden_rows()
    (mean, std), (mean_old, _) = transition(x, v, 2), transition(x, v_old, 2)
    x_next = mean_old + std * z
    direct = flow.log_ratio_norm(x_next, mean, mean_old, std)
    for constant, sign in ((1.0, 1.0), (-3.0, -1.0)):
        other = paper_form(x_next, mean, mean_old, std, constant=constant, sign=sign)
        torch.testing.assert_close(other, direct, atol=1e-12, rtol=0)


def test_10_ratio_norm_is_centred_and_the_raw_ratio_is_not():
    m, size, rows = 0.05, 4096, 1000
    generator = seeds.generator(0, 0, 0, 0, "monte carlo")
    std, mean_old = torch.full((rows,), 0.5, dtype=F64), torch.zeros(rows, size, dtype=F64)
    mean = m * std[:, None] * torch.where(torch.arange(size) % 2 == 0, 1.0, -1.0).double()
    raw, normed = [], []
    for _ in range(5):
        x_next = std[:, None] * torch.randn(rows, size, generator=generator, dtype=F64)
        raw.append(flow.log_prob(x_next, mean, std) - flow.log_prob(x_next, mean_old, std))
        normed.append(flow.log_ratio_norm(x_next, mean, mean_old, std))
    raw, normed = torch.cat(raw), torch.cat(normed)
    assert abs(float(normed.mean() / (normed.std() / len(normed) ** 0.5))) < 4
    assert float(raw.expm1().mean()) == pytest.approx(-1.249e-3, rel=0.05)
    assert float((normed > 0).double().mean()) == pytest.approx(0.5, abs=0.02)
    assert float((raw > 0).double().mean()) == pytest.approx(0.053, abs=0.02)  # docs/math.md#rationorm


def test_14_duplicating_the_latent_changes_no_mean():
    x, v, v_old, z = golden_rows()

    def ratios(copies):
        rows = [torch.cat([u] * copies, dim=1) for u in (x, v, v_old, z)]
        (mean, std), (mean_old, _) = transition(rows[0], rows[1], 1), transition(rows[0], rows[2], 1)
        x_next = mean_old + std * rows[3]
        raw = flow.log_prob(x_next, mean, std) - flow.log_prob(x_next, mean_old, std)
        return torch.cat([raw, flow.log_ratio_norm(x_next, mean, mean_old, std)])

    torch.testing.assert_close(ratios(2), ratios(1), atol=1e-12, rtol=0)


@pytest.mark.parametrize("k", [0, 1, 4, 12])
def test_15_kl_identity(k):
    x, v, v_ref, _ = golden_rows()
    (mean, std), (reference, _) = transition(x, v, k), transition(x, v_ref, k)
    h = float(GRID[k] - GRID[k + 1])
    kappa = 1.0 if k == 0 else 1.0 + A**2 / 2
    sigma = float(std) / h**0.5
    expected = h * kappa**2 / (2 * sigma**2) * float((v - v_ref).square().sum())
    assert float(flow.latent_kl(mean, reference, std)) == pytest.approx(expected, rel=1e-10)


def test_18_window_is_uniform_and_leaves_global_generators_alone():
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    starts = [
        flow.sde_window((0, 5), 3, generator=seeds.generator(0, iteration, 7, 0, "window")) for iteration in range(3000)
    ]
    counts = np.bincount(starts, minlength=3)
    assert len(counts) == 3
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 13.8155  # chi-squared, 2 degrees of freedom, p = 1e-3
    assert len(set(starts[:20])) > 1
    assert max(starts) + 3 - 1 < len(GRID) - 2  # the last step, M - 2, is never in the window
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert torch.equal(torch.get_rng_state(), before[2])


def variance_ratio(grid, kinds, noise_level, sd=0.7, step=None):
    """var(x_0) / var(data) after sampling with the exact field of N(0, sd^2) data; kinds[k] is an SDE kind or "ode".

    Everything is linear in x, so that the variance follows a recursion: var <- coefficient^2 var + std^2.
    """
    x, variance = torch.ones(1, 1, dtype=F64), 1.0
    for k, kind in enumerate(kinds):
        t, t_next = grid[k : k + 2].tolist()
        v = x * (t - (1 - t) * sd**2) / ((1 - t) ** 2 * sd**2 + t**2)
        if kind == "ode":
            variance *= float(flow.ode_step(x, v, t, t_next)) ** 2
        else:
            mean, std = (step or transition)(x, v, k, noise_level=noise_level, grid=grid, kind=kind)
            variance = float(mean) ** 2 * variance + float(std) ** 2
    return variance / sd**2


def without_drift(x, v, k, *, noise_level, grid, kind):
    return flow.ode_step(x, v, *grid[k : k + 2].tolist()), transition(
        x, v, k, noise_level=noise_level, grid=grid, kind=kind
    )[1]


@pytest.mark.parametrize(
    ("kind", "noise_level", "expected"),
    [("flow", 1.3, -0.00027), ("flow", 0.8, 0.00488), ("dance", 0.3, -0.02367), ("ode", 0.0, -0.02637)],
)
def test_21_marginals(kind, noise_level, expected):
    ratio = variance_ratio(flow.timesteps(101, 1.0), [kind] * 99 + ["ode"], noise_level)
    assert ratio - 1 == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("noise_level", "expected"), [(0.7, 3.157), (0.8, 4.131), (1.3, 10.952)])
def test_21_would_notice_a_missing_drift(noise_level, expected):
    ratio = variance_ratio(flow.timesteps(101, 1.0), ["flow"] * 99 + ["ode"], noise_level, step=without_drift)
    assert ratio - 1 == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize(("kind", "expected"), [("flow", 0.1328), ("cps", -0.0003), ("flow_cp", -0.0001)])
def test_22_window(kind, expected):
    ode = variance_ratio(GRID, ["ode"] * 24, A)
    windowed = variance_ratio(GRID, [kind] * 3 + ["ode"] * 21, A)
    assert windowed - ode == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_38_low_precision_is_refused(low):
    x = torch.ones(1, 4)
    for position in range(3):
        args = [x, x, x]
        args[position] = x.to(low)
        with pytest.raises(TypeError, match="float32 or float64"):
            flow.log_ratio_norm(*args, 0.5)
    with pytest.raises(TypeError):
        flow.log_prob(x.to(low), x, 0.5)
    with pytest.raises(TypeError):
        flow.log_prob(x, x.to(low), 0.5)
    with pytest.raises(TypeError):
        flow.log_prob(x, x, torch.tensor([0.5], dtype=low))
    assert flow.log_prob(x, x, 0.5).dtype == flow.log_ratio_norm(x, x, x, 0.5).dtype == torch.float32
