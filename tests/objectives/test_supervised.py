"""Supervised terms: token mean over the minibatch, flow matching, training times."""

import pytest
import torch

from unigrpo.objectives.forward_noise import noised, sample_times
from unigrpo.objectives.method import targets_per_row
from unigrpo.objectives.supervised import Supervised, flow_matching_mse, token_cross_entropy
from unigrpo.policy import Replayed, VelocityQuery
from unigrpo.trajectory import Image, Prompt, Text, Trajectory

ROWS = [torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-4.0]), torch.empty(0)]


def generator():
    return torch.Generator().manual_seed(0)


def test_cross_entropy_is_a_mean_over_all_target_tokens():
    assert float(token_cross_entropy(ROWS).loss.mean()) == pytest.approx(10 / 4)


def test_cross_entropy_does_not_depend_on_micro_batches():
    pieces = [token_cross_entropy([row], tokens_per_row=4 / 3).loss for row in ROWS]
    assert float(torch.cat(pieces).mean()) == pytest.approx(10 / 4)


def test_nothing_to_learn_is_an_error():
    with pytest.raises(ValueError, match="no target token"):
        token_cross_entropy([torch.empty(0)])


def test_flow_matching_is_zero_for_the_true_velocity_and_the_square_otherwise():
    x0 = torch.randn(4, 3, generator=generator())
    x, target = noised(x0, torch.tensor([0.2, 1.0], dtype=torch.float64), generator=generator())
    assert x.dtype == target.dtype == torch.float32 and x.shape == (2, 4, 3)
    torch.testing.assert_close(x[1], target[1] + x0)  # t = 1 is pure noise
    torch.testing.assert_close(x[0], x0 + 0.2 * target[0])
    assert float(flow_matching_mse([target], [target]).loss) == 0.0
    found = flow_matching_mse([target, target + 0.5], [target, target]).loss
    assert found.tolist() == pytest.approx([0.0, 0.25], rel=1e-5)
    with pytest.raises(ValueError, match="picture 0"):
        flow_matching_mse([target], [target[:1]])


def test_training_times_are_a_shifted_sigmoid_of_a_normal():
    plain = sample_times(2000, 1.0, generator=generator(), times="logit_normal")
    assert plain.dtype == torch.float64 and float(plain.min()) > 0.0 and float(plain.max()) < 1.0
    assert float(plain.logit().mean()) == pytest.approx(0.0, abs=0.08)
    assert float(plain.logit().std()) == pytest.approx(1.0, abs=0.06)
    shifted = sample_times(2000, 3.0, generator=generator(), times="logit_normal")
    torch.testing.assert_close(shifted, 3 * plain / (1 + 2 * plain))
    with pytest.raises(ValueError, match="shift"):
        sample_times(1, 0.0, generator=generator(), times="logit_normal")


def test_a_minibatch_of_pictures_alone_learns_from_them():
    """Demonstrations without thinking have no target words: the picture's loss stands alone, the other is unknown."""
    method = Supervised(ce_weight=1.0, mse_weight=2.0)
    image = Image(torch.zeros(4, 2), (2, 2), target=True)
    rows = [Trajectory(Prompt(i, "a"), 0, (Text(torch.tensor([3])), image)) for i in range(2)]
    target = torch.zeros(1, 4, 2)
    answers = [
        Replayed(torch.zeros(0), torch.zeros(0), torch.zeros(0), (torch.full((1, 4, 2), float(i + 1)),))
        for i in range(2)
    ]
    draws = [(VelocityQuery(1, target, torch.tensor([0.5]), target),)] * 2
    losses = method.losses(rows, answers, draws)
    assert losses.text_loss is None and losses.image_loss.tolist() == [2.0, 8.0]
    assert losses.stats["sft/cross_entropy"].isnan().all()
    with pytest.raises(ValueError, match="no target token"):
        Supervised(mse_weight=0.0).losses(rows, answers, draws)


def mixed_sizes():
    """A picture of 4 latent tokens, one of 16 at two times, and a row that only answers; errors 1, 2 and 3."""
    text = Text(torch.tensor([3, 4]), target=True)
    targets = [torch.zeros(1, 4, 2), torch.zeros(2, 16, 2)]
    velocities = [torch.full((1, 4, 2), 1.0), torch.stack([torch.full((16, 2), 2.0), torch.full((16, 2), 3.0)])]
    images = [Image(torch.zeros(4, 2), (2, 2), target=True), Image(torch.zeros(16, 2), (4, 4), target=True)]
    rows = [Trajectory(Prompt(i, "a"), 0, (text, *images[i : i + 1])) for i in range(3)]
    spoken = torch.full((3,), -0.5)
    answers = [Replayed(spoken, spoken, spoken, tuple(velocities[i : i + 1])) for i in range(3)]
    draws = [
        tuple(VelocityQuery(1, target, torch.rand(len(target)), target) for target in targets[i : i + 1])
        for i in range(3)
    ]
    return rows, answers, draws


def test_the_mean_over_tokens_is_the_originals():
    """BAGEL: the error of every noisy latent token, averaged over its channels, then over all of the batch."""
    rows, answers, draws = mixed_sizes()
    tokens = torch.cat([v.square().mean(-1).flatten() for a in answers for v in a.velocities])
    losses = Supervised(mse_over="tokens", mse_weight=0.5).losses(rows, answers, draws)
    assert float(losses.image_loss.mean()) == pytest.approx(0.5 * float(tokens.mean()))
    pictures = Supervised(mse_weight=0.5).losses(rows, answers, draws)
    assert float(pictures.image_loss.mean()) == pytest.approx(0.5 * (1.0 + (4.0 + 9.0) / 2 + 0.0) / 3)


def test_the_mean_over_tokens_does_not_depend_on_how_a_minibatch_is_cut():
    rows, answers, draws = mixed_sizes()
    method, whole = Supervised(mse_over="tokens"), targets_per_row(rows, draws)
    together = method.losses(rows, answers, draws).image_loss.sum()
    apart = [method.losses(rows[i : i + 1], answers[i : i + 1], draws[i : i + 1], per_row=whole) for i in range(3)]
    assert float(together) == pytest.approx(sum(float(a.image_loss.sum()) for a in apart if a.image_loss is not None))
