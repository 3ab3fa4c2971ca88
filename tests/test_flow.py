"""flow: shapes, dtypes, errors, guidance; the numbers of the invariants are in invariants/test_flow_invariants.py."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unigrpo import flow, seeds

F64 = torch.float64


def normal(*shape, purpose="x", dtype=F64):
    return torch.randn(*shape, generator=seeds.generator(0, 0, 0, 0, purpose), dtype=F64).to(dtype)


def step(x, v, t=0.9, t_next=0.8, *, noise_level=0.5, t_second=0.95, kind="flow"):
    return flow.sde_transition(x, v, t, t_next, noise_level=noise_level, t_second=t_second, kind=kind)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16, torch.float32])
def test_output_is_fp32_unless_a_tensor_is_fp64(low):
    x, v = normal(2, 3, 4, dtype=low), normal(2, 3, 4, purpose="v", dtype=low)
    assert flow.ode_step(x, v, 0.5, 0.4).dtype == torch.float32
    assert {u.dtype for u in step(x, v)} == {torch.float32}
    assert flow.ode_step(x, v.double(), 0.5, 0.4).dtype == F64
    assert flow.ode_step(x, v, torch.tensor([0.5, 0.6], dtype=F64), 0.4).dtype == F64
    assert flow.predict_x0(x, v, 0.5).dtype == flow.interpolate(x, v, 0.5).dtype == torch.float32
    assert flow.guided_velocity(x, v, text_scale=2.0).dtype == torch.float32


@pytest.mark.parametrize("kind", flow.SDE_KINDS)
def test_times_per_row_are_the_steps_of_each_row_alone(kind):
    x, v = normal(3, 2, 5), normal(3, 2, 5, purpose="v")
    t, t_next = torch.tensor([1.0, 0.9, 0.4], dtype=F64), torch.tensor([0.9, 0.7, 0.1], dtype=F64)
    mean, std = step(x, v, t, t_next, t_second=0.9, kind=kind)
    assert mean.shape == x.shape and std.shape == (3,)
    for row in range(3):
        one_mean, one_std = step(
            x[row : row + 1], v[row : row + 1], float(t[row]), float(t_next[row]), t_second=0.9, kind=kind
        )
        assert torch.equal(one_mean[0], mean[row]) and torch.equal(one_std[0], std[row])
    assert torch.equal(flow.ode_step(x, v, t, t_next)[1], flow.ode_step(x[1:2], v[1:2], 0.9, 0.7)[0])


@pytest.mark.parametrize("kind", flow.SDE_KINDS)
def test_float_times_in_fp32_and_tensor_times_in_fp64_agree_to_the_bit_once_rounded(kind):
    x, v = normal(4, 8, dtype=torch.float32), normal(4, 8, purpose="v", dtype=torch.float32)
    t, t_next = flow.timesteps(9, 4.0)[2:4].tolist()
    rows = [torch.full((4,), u, dtype=F64) for u in (t, t_next)]
    for by_float, by_row in zip(step(x, v, t, t_next, kind=kind), step(x, v, *rows, kind=kind), strict=True):
        assert by_float.dtype == torch.float32 and by_row.dtype == F64
        assert torch.equal(by_float, by_row.float())


@settings(max_examples=25, deadline=None)
@given(t=st.floats(0.001, 1.0), scale=st.floats(0.1, 10.0))
def test_predictions_invert_the_interpolation(t, scale):
    x0, noise = scale * normal(2, 3), normal(2, 3, purpose="noise")
    x_t, v = flow.interpolate(x0, noise, t), noise - x0
    torch.testing.assert_close(flow.predict_x0(x_t, v, t), x0, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(flow.predict_noise(x_t, v, t), noise, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(flow.ode_step(x_t, v, t, 0.0), x0, atol=1e-12, rtol=1e-12)


def test_flow_cp_keeps_the_noise_level_of_the_path():
    """Spec a.8 iii: with exact x_0 and eps the coefficients of the next point are (1 - t_next, t_next)."""
    x0, noise = normal(1, 6), normal(1, 6, purpose="noise")
    t, t_next = 0.9, 0.8
    mean, std = step(flow.interpolate(x0, noise, t), noise - x0, t, t_next, noise_level=0.8, kind="flow_cp")
    kept = math.sqrt(t_next**2 - float(std) ** 2)
    torch.testing.assert_close(mean, (1 - t_next) * x0 + kept * noise, atol=1e-12, rtol=0)


def test_log_prob_is_the_gaussian_without_constants_averaged_over_elements():
    x_next, mean, std = normal(2, 3, 4), normal(2, 3, 4, purpose="mean"), torch.tensor([0.5, 0.7], dtype=F64)
    gaussian = torch.distributions.Normal(mean, std[:, None, None]).log_prob(x_next).flatten(1).mean(1)
    expected = gaussian + std.log() + 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(flow.log_prob(x_next, mean, std), expected, atol=1e-12, rtol=0)


def test_log_prob_sends_gradient_only_into_the_mean():
    x_next, mean, old = (normal(1, 4, purpose=p).requires_grad_() for p in ("x", "mean", "old"))
    (flow.log_prob(x_next, mean, 0.5) + flow.log_ratio_norm(x_next, mean, old, 0.5)).sum().backward()
    assert mean.grad is not None and mean.grad.abs().sum() > 0
    assert x_next.grad is None and old.grad is None


@pytest.mark.parametrize("call", [
    lambda: flow.timesteps(1, 3.0),
    lambda: flow.timesteps(5, 0.0),
    lambda: flow.ode_step(normal(1, 2), normal(1, 2), 0.4, 0.4),
    lambda: flow.ode_step(normal(2, 2), normal(2, 2), torch.tensor([0.5, 0.3]), 0.4),
    lambda: flow.ode_step(normal(1, 2), normal(1, 2), 1.1, 0.4),
    lambda: flow.ode_step(normal(1, 2), normal(1, 2), 0.4, -0.1),
    lambda: flow.ode_step(normal(1, 2), normal(2, 2), 0.5, 0.4),
    lambda: flow.ode_step(normal(2, 2), normal(2, 2), torch.tensor([0.5, 0.5, 0.5]), 0.4),
    lambda: step(normal(1, 2), normal(1, 2), noise_level=-0.1),
    lambda: step(normal(1, 2), normal(1, 2), noise_level=1.1, kind="cps"),
    lambda: step(normal(1, 2), normal(1, 2), t_second=1.0),
    lambda: flow.log_prob(normal(1, 2), normal(1, 2), 0.0),
    lambda: flow.log_prob(normal(2, 2), normal(2, 2), torch.tensor([0.1, -0.1])),
    lambda: flow.log_prob(normal(2, 2), normal(2, 3), 0.1),
    lambda: flow.sde_window((0, 2), 3, generator=torch.Generator()),
    lambda: flow.sde_window((-1, 3), 3, generator=torch.Generator()),
    lambda: flow.sde_window((0, 5), 0, generator=torch.Generator()),
    lambda: flow.sde_window((0, 5), 3, generator=torch.Generator(), num_points=6),
    lambda: flow.guided_velocity(normal(1, 2, 2), normal(1, 2, 2), text_scale=2.0, renorm="local"),
    lambda: flow.guided_velocity(normal(1, 2, 2), normal(1, 2, 2), text_scale=2.0, renorm_min=1.5),
    lambda: flow.guided_velocity(normal(1, 2, 2), normal(1, 2, 2), text_scale=2.0, image_scale=1.5),
])  # fmt: skip
def test_what_cannot_work_is_a_value_error(call):
    with pytest.raises(ValueError):
        call()


def test_unknown_kind_lists_the_kinds():
    with pytest.raises(ValueError, match="flow, cps, dance, flow_cp"):
        step(normal(1, 2), normal(1, 2), kind="sde")


def test_integers_are_refused():
    with pytest.raises(TypeError):
        flow.ode_step(torch.ones(1, 2, dtype=torch.int64), torch.ones(1, 2), 0.5, 0.4)


def test_the_window_may_end_where_the_grid_allows():
    assert flow.sde_window((0, 5), 3, generator=torch.Generator(), num_points=7) in (0, 1, 2)
    assert flow.sde_window((4, 5), 1, generator=torch.Generator()) == 4


class TestGuidance:
    v, text, image = (normal(3, 4, 5, purpose=p) for p in ("v", "text", "image"))

    def test_scale_one_changes_nothing(self):
        for scale in (0.0, 1.0):
            assert flow.guided_velocity(self.v, self.text, self.image, text_scale=scale, image_scale=2.0) is self.v

    def test_global_norm_is_per_sample(self):
        out = flow.guided_velocity(self.v, self.text, text_scale=4.0)
        raw = self.text + 4.0 * (self.v - self.text)
        for row in range(3):
            norm = self.v[row].norm()
            assert norm < raw[row].norm()
            torch.testing.assert_close(out[row], raw[row] * norm / raw[row].norm(), atol=1e-7, rtol=0)
            alone = flow.guided_velocity(self.v[row : row + 1], self.text[row : row + 1], text_scale=4.0)
            torch.testing.assert_close(alone[0], out[row], atol=1e-14, rtol=0)

    def test_channel_norm_is_per_token(self):
        out = flow.guided_velocity(self.v, self.text, self.image, text_scale=4.0, image_scale=2.0, renorm="channel")
        raw = self.image + 2.0 * (self.text + 4.0 * (self.v - self.text) - self.image)
        factor = (self.v.norm(dim=-1) / raw.norm(dim=-1)).clamp(max=1.0)
        torch.testing.assert_close(out, raw * factor[..., None], atol=1e-7, rtol=0)

    def test_text_channel_rescales_before_the_image_and_not_after(self):
        out = flow.guided_velocity(
            self.v, self.text, self.image, text_scale=4.0, image_scale=2.0, renorm="text_channel"
        )
        raw = self.text + 4.0 * (self.v - self.text)
        raw = raw * (self.v.norm(dim=-1) / raw.norm(dim=-1)).clamp(max=1.0)[..., None]
        torch.testing.assert_close(out, self.image + 2.0 * (raw - self.image), atol=1e-7, rtol=0)

    def test_renorm_min_one_switches_the_rescaling_off(self):
        out = flow.guided_velocity(self.v, self.text, text_scale=4.0, renorm_min=1.0)
        torch.testing.assert_close(out, self.text + 4.0 * (self.v - self.text), atol=1e-12, rtol=0)

    def test_image_scale_one_ignores_the_image_branch(self):
        with_image = flow.guided_velocity(self.v, self.text, self.image, text_scale=3.0)
        assert torch.equal(with_image, flow.guided_velocity(self.v, self.text, text_scale=3.0))
