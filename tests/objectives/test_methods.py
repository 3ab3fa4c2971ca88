"""Methods: what they ask for, which losses they return, several pictures, supervised training."""

from dataclasses import dataclass, replace

import pytest
import torch

from formulas import METHODS, combination, flow_grpo, queries_of
from unigrpo import flow
from unigrpo.objectives.method import targets_per_row
from unigrpo.objectives.regularisers import Regulariser
from unigrpo.objectives.supervised import Supervised
from unigrpo.objectives.text_grpo import TextGRPO
from unigrpo.trajectory import FlowPath, Image, Prompt, Reference, Text, Trajectory

GRID = flow.timesteps(9, 4.0)
GENERATOR = torch.Generator().manual_seed(0)


@dataclass
class Said:
    log_probs: torch.Tensor
    velocities: tuple[torch.Tensor, ...] = ()


def path():
    x, v, z = (torch.randn(3, 4, 2, generator=GENERATOR) for _ in range(3))
    mean, std = flow.sde_transition(x, v, GRID[1:4], GRID[2:5], noise_level=0.8, t_second=float(GRID[1]))
    mean, std = mean.float(), std.float()
    x_next = mean + std[:, None, None] * z
    log_prob = flow.log_prob(x_next, mean, std)
    return FlowPath((1, 2, 3), GRID[1:4], GRID[2:5], float(GRID[1]), x, x_next, mean, std, log_prob, 0.8), v


def sampled(pictures=1, advantage=1.0, reference=True):
    drawn = [path() for _ in range(pictures)]
    texts = [
        Text(torch.tensor([3])),
        Text(torch.tensor([1, 2]), ended=True, log_probs=torch.tensor([-1.0, -2.0, -0.1])),
    ]
    images = [Image(p.x[0], (2, 2), p) for p, _ in drawn]
    v_ref = torch.cat([v + 0.1 for _, v in drawn]) if drawn else None
    trajectory = Trajectory(
        Prompt(0, ""), 0, (*texts, *images), reference=Reference(v_ref) if reference else None
    ).with_advantages(advantage, advantage)
    velocities = tuple(v + 0.01 * (i + 1) for i, (_, v) in enumerate(drawn))
    return trajectory, Said(torch.tensor([-1.1, -1.9, -0.1]), velocities)


def losses(method, rows):
    trajectories, answers = zip(*rows, strict=True)
    return method.losses(trajectories, answers, [queries_of(method, t, GENERATOR) for t in trajectories])


def test_each_method_returns_its_own_losses():
    rows = [sampled(), sampled(advantage=-0.5)]
    joint, text, image = (losses(METHODS[name], rows) for name in ("unigrpo", "text_grpo", "flow_grpo"))
    assert text.image_loss is None and image.text_loss is None
    assert torch.equal(joint.text_loss, text.text_loss) and torch.equal(joint.image_loss, image.image_loss)
    assert torch.equal(joint.total, text.total + image.total) and joint.total.shape == (2,)
    assert set(joint.stats) == set(text.stats) | set(image.stats)
    assert {"text/log_ratio_max", "flow/log_ratio_max", "flow/velocity_mse"} <= set(joint.stats)


def test_lambda_and_weight_multiply_the_image_loss():
    rows = [sampled()]
    bare = losses(combination(regulariser=Regulariser(weight=0.0)), rows)
    full = losses(combination(regulariser=Regulariser(weight=2.0), lambda_flow=0.5), rows)
    mse = full.stats["flow/velocity_mse"].mean(1)
    assert float(mse) == pytest.approx(0.09**2, rel=1e-4)
    torch.testing.assert_close(full.image_loss, 0.5 * (bare.image_loss + 2.0 * mse))
    assert "flow/velocity_mse" not in bare.stats
    kl = losses(combination(regulariser=Regulariser(kind="latent_kl", weight=2.0)), rows)
    torch.testing.assert_close(kl.image_loss, bare.image_loss + 2.0 * kl.stats["flow/latent_kl"].mean(1))


def test_what_the_methods_ask_for():
    asks = {
        name: (m.needs_reference_velocity, m.needs_reference_log_probs, len(queries_of(m, sampled()[0], GENERATOR)))
        for name, m in METHODS.items()
    }
    assert asks == {
        "unigrpo": (True, False, 1),
        "text_grpo": (False, False, 0),
        "flow_grpo": (True, False, 1),
        "fpo": (True, False, 0),  # the picture of these trajectories is given, not drawn
        "unifpo": (True, False, 0),
        "refl": (True, False, 0),
        "diffusion_nft": (True, False, 0),
        "supervised": (False, False, 0),
    }
    assert combination(text=TextGRPO(kl_weight=0.1)).needs_reference_log_probs


def test_zero_advantage_keeps_the_regulariser():
    """Spec h.7: a group without spread gives no policy gradient, but still its MSE."""
    rows = [sampled(advantage=0.0)]
    found = losses(METHODS["flow_grpo"], rows)
    assert float(found.image_loss) == pytest.approx(1.5e-5 * 0.09**2, rel=1e-4)


def test_pictures_of_one_trajectory_are_averaged():
    two, one = sampled(pictures=2, advantage=0.7), sampled()
    found = losses(combination(regulariser=Regulariser(weight=0.0)), [two, one])
    paths = [image.path for image in two[0].images]
    each = flow_grpo(two[1].velocities, paths, torch.tensor([0.7, 0.7])).loss
    torch.testing.assert_close(found.image_loss[0], each.mean())
    assert found.image_loss.shape == (2,)
    weighted = losses(METHODS["unigrpo"], [two, one])
    assert weighted.stats["flow/velocity_mse"].shape == (3, 3)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([sampled(reference=False)], "reference velocity"),
        ([sampled(advantage=None)], "an advantage"),
        ([sampled(pictures=0)], "0 pictures to train on"),
    ],
)
def test_missing_data_is_named(rows, says):
    with pytest.raises(ValueError, match=says):
        losses(METHODS["unigrpo"], rows)


def test_settings_refuse_what_cannot_work():
    with pytest.raises(ValueError, match="text term"):
        combination(text=None, image=None)
    with pytest.raises(ValueError, match="velocity_mse, latent_kl"):
        Regulariser(kind="mse")
    with pytest.raises(ValueError, match="weight"):
        Regulariser(weight=-1.0)


class TestSupervised:
    method = Supervised(ce_weight=2.0, mse_weight=3.0, noisy_copies=2)
    text = Text(torch.tensor([1, 2]), target=True)
    image = Image(torch.randn(4, 2, generator=GENERATOR), (2, 2), target=True)
    given = Text(torch.tensor([7]))

    def test_both_losses(self):
        rows = [
            Trajectory(Prompt(0, ""), 0, (self.given, self.text, self.image)),
            Trajectory(Prompt(1, ""), 0, (self.given, self.text)),
        ]
        draws = [queries_of(self.method, t, torch.Generator().manual_seed(3)) for t in rows]
        assert [len(d) for d in draws] == [1, 0] and draws[0][0].segment == 2
        assert draws[0][0].x.shape == (2, 4, 2) and draws[0][0].t.shape == (2,)
        right, log_probs = draws[0][0].target, torch.tensor([-1.0, -2.0, -3.0])
        found = self.method.losses(rows, [Said(log_probs, (right + 0.5,)), Said(log_probs)], draws)
        assert found.text_loss.tolist() == pytest.approx([4.0 / 3 * 3, 4.0 / 3 * 3])
        assert float(found.text_loss.mean()) == pytest.approx(2.0 * 2.0)
        assert found.image_loss.tolist() == pytest.approx([3.0 * 0.25, 0.0], rel=1e-5)
        assert targets_per_row(rows, draws).text == 3.0

    def test_weights_of_zero_drop_a_term(self):
        row = Trajectory(Prompt(0, ""), 0, (self.given, self.image))
        assert queries_of(replace(self.method, mse_weight=0.0), row, GENERATOR) == ()
        only_images = replace(self.method, ce_weight=0.0)
        draws = queries_of(only_images, row, GENERATOR)
        found = only_images.losses([row], [Said(torch.empty(0), (draws[0].target,))], [draws])
        assert found.text_loss is None and float(found.total) == 0.0
