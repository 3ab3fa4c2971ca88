"""FPO, DiffusionNFT and ReFL against closed forms and finite differences, fp64.

Source: docs/math.md#refl, #fpo, #diffusionnft.
"""

import math
from dataclasses import replace

import pytest
import torch

from formulas import METHODS, combination, diffusion_nft, fpo, late_steps, optimality, queries_of
from unigrpo import flow
from unigrpo.objectives.forward_noise import ForwardNoise, noised
from unigrpo.objectives.fpo import FPO, matching_losses
from unigrpo.objectives.image_terms import behaviour_velocities, collect
from unigrpo.objectives.refl import ReFL
from unigrpo.objectives.regularisers import Regulariser
from unigrpo.trajectory import Behaviour, Image, LatentSnapshot, Prompt, Trajectory

B, N, SHAPE = 3, 2, (4, 5)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


OLD, TARGET = [normal(N, *SHAPE, seed=i) for i in range(B)], [normal(N, *SHAPE, seed=9 + i) for i in range(B)]
ADVANTAGES = torch.tensor([1.5, -0.7, 0.0], dtype=torch.float64)


def gradient(function, start):
    variables = [v.clone().requires_grad_() for v in start]
    function(variables).backward()
    return [v.grad for v in variables]


class TestFPO:
    def test_33_on_policy_ratio_is_one_and_the_gradient_is_advantage_weighted_flow_matching(self):
        found = fpo(OLD, OLD, TARGET, ADVANTAGES)
        assert found.stats["fpo/ratio"].tolist() == [1.0] * B and found.stats["fpo/log_ratio_max"].abs().max() == 0.0
        torch.testing.assert_close(found.loss, -ADVANTAGES, rtol=0, atol=0)
        matching = gradient(lambda v: (ADVANTAGES[:, None] * matching_losses(v, TARGET)).mean(1).sum(), OLD)
        together = gradient(lambda v: fpo(v, OLD, TARGET, ADVANTAGES).loss.sum(), OLD)
        apart = gradient(lambda v: fpo(v, OLD, TARGET, ADVANTAGES, per_pair=True).loss.sum(), OLD)
        for a, b, c in zip(together, apart, matching, strict=True):
            torch.testing.assert_close(a, c, rtol=1e-12, atol=1e-15)
            torch.testing.assert_close(b, c, rtol=1e-12, atol=1e-15)

    def test_the_closed_form_of_both_averages(self):
        now = [v + 0.05 * normal(N, *SHAPE, seed=77) for v in OLD]
        difference = matching_losses(OLD, TARGET) - matching_losses(now, TARGET)
        together, apart = (fpo(now, OLD, TARGET, ADVANTAGES, clip_range=9.0, per_pair=p).loss for p in (False, True))
        torch.testing.assert_close(together, -ADVANTAGES * difference.mean(1).exp(), rtol=1e-12, atol=0)
        torch.testing.assert_close(apart, -ADVANTAGES * difference.exp().mean(1), rtol=1e-12, atol=0)
        assert not torch.allclose(together, apart, rtol=1e-6)

    def test_a_single_pair_is_held_within_e_cubed(self):
        far = [v + 50.0 for v in OLD]
        ratio = fpo(far, OLD, TARGET, ADVANTAGES, clip_range=99.0, per_pair=True).stats["fpo/ratio"]
        assert ratio.tolist() == pytest.approx([math.exp(-3.0)] * B)

    @pytest.mark.parametrize(("better", "advantage"), [(True, 1.0), (False, -1.0)])
    def test_beyond_the_clip_there_is_no_gradient(self, better, advantage):
        step = 0.2 if better else -0.2
        now = [v + step * (t - v) for v, t in zip(OLD, TARGET, strict=True)]
        same = torch.full((B,), advantage, dtype=torch.float64)
        inside = gradient(lambda v: fpo(v, OLD, TARGET, -same, clip_range=0.05).loss.sum(), now)
        outside = gradient(lambda v: fpo(v, OLD, TARGET, same, clip_range=0.05).loss.sum(), now)
        assert all(g.abs().max() == 0.0 for g in outside) and all(g.abs().max() > 0.0 for g in inside)

    def test_33_new_noise_between_epochs_is_refused(self):
        image = Image(normal(*SHAPE), (2, 2), drawn=True)
        trajectory, method = Trajectory(Prompt(0, ""), 0, (image,)).with_advantages(None, 1.0), METHODS["fpo"]
        draws = queries_of(method, trajectory, torch.Generator().manual_seed(1))
        again = queries_of(method, trajectory, torch.Generator().manual_seed(2))
        trajectory = replace(trajectory, behaviour=Behaviour(draws[0].x, torch.zeros_like(draws[0].x)))
        said = Said((torch.zeros_like(draws[0].x),))
        assert len(behaviour_velocities(collect([trajectory], [said], [draws]))) == 1
        with pytest.raises(ValueError, match="noised anew"):
            behaviour_velocities(collect([trajectory], [said], [again]))

    def test_given_pictures_are_not_noised(self):
        given = Trajectory(Prompt(0, ""), 0, (Image(normal(*SHAPE), (2, 2)),))
        assert queries_of(METHODS["fpo"], given, torch.Generator()) == ()

    def test_the_pairs_follow_the_shift(self):
        image = Image(normal(*SHAPE), (2, 2), drawn=True)
        plain, shifted = (
            ForwardNoise(pairs=400).query(0, image, torch.Generator().manual_seed(0), shift=s).t for s in (1.0, 4.0)
        )
        torch.testing.assert_close(shifted, 4.0 * plain / (1.0 + 3.0 * plain))
        assert float(plain.mean()) == pytest.approx(0.5, abs=0.01)


class Said:
    def __init__(self, velocities):
        self.velocities, self.log_probs = velocities, torch.empty(0)


class TestDiffusionNFT:
    x0 = tuple(normal(*SHAPE, seed=20 + i) for i in range(B))
    t = (torch.tensor([0.3, 0.8], dtype=torch.float64),) * B

    def noisy(self):
        return [
            noised(x, t, generator=torch.Generator().manual_seed(0))[0].double()
            for x, t in zip(self.x0, self.t, strict=True)
        ]

    def loss(self, v, old, **options):
        return diffusion_nft(v, old, self.noisy(), self.t, self.x0, ADVANTAGES, **options).loss

    def test_optimality(self):
        values = optimality(torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0]), 2.0)
        assert values.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]

    def test_the_closed_form(self):
        now, beta = [v + 0.1 * normal(N, *SHAPE, seed=5) for v in OLD], 0.7
        r, rows = optimality(ADVANTAGES, 5.0), []
        for i, (v, old, x) in enumerate(zip(now, OLD, self.noisy(), strict=True)):
            total = 0.0
            for sign, weight in ((1.0, r[i]), (-1.0, 1.0 - r[i])):
                error = x - self.t[i][:, None, None] * (old + sign * beta * (v - old)) - self.x0[i]
                scale = error.abs().flatten(1).mean(1)
                total = total + weight * error.square().flatten(1).mean(1) / scale
            rows.append(total.mean())
        torch.testing.assert_close(self.loss(now, OLD, beta=beta), torch.stack(rows), rtol=1e-12, atol=0)

    def test_on_policy_the_gradient_has_the_sign_of_the_advantage(self):
        """At v = v_old: (2 r - 1) beta grad |x0(v) - x_0|^2 / w; nothing for A = 0."""
        got = gradient(lambda v: self.loss(v, OLD, beta=0.5).sum(), OLD)
        whole = gradient(
            lambda v: diffusion_nft(v, OLD, self.noisy(), self.t, self.x0, torch.full((B,), 99.0), beta=0.5).loss.sum(),
            OLD,
        )
        for a, b, r in zip(got, whole, optimality(ADVANTAGES, 5.0), strict=True):
            torch.testing.assert_close(a, (2.0 * r - 1.0) * b, rtol=1e-9, atol=1e-15)

    def test_bad_settings(self):
        with pytest.raises(ValueError, match="beta"):
            self.loss(OLD, OLD, beta=0.0)
        with pytest.raises(ValueError, match="max_advantage"):
            optimality(ADVANTAGES, 0.0)


class TestReFL:
    weights = normal(*SHAPE, seed=4)

    def reward(self, pictures, prompts):
        return (0.1 * pictures * self.weights).sum((1, 2)).tanh()

    def loss(self, v, x, t):
        return ReFL().term(v, x, t, [Prompt(0, "a")] * len(v), lambda z, prompts: self.reward(2.0 * z, prompts)).loss

    def test_34_finite_difference(self):
        x, t = [normal(1, *SHAPE, seed=6)], [torch.tensor([0.2], dtype=torch.float64)]
        v = [0.1 * normal(1, *SHAPE, seed=7)]
        (found,) = gradient(lambda u: self.loss(u, x, t).sum(), v)
        for index in ((0, 0, 0), (0, 2, 3)):
            step = torch.zeros_like(v[0])
            step[index] = 1e-5
            slope = (self.loss([v[0] + step], x, t) - self.loss([v[0] - step], x, t)) / 2e-5
            assert float(found[index]) == pytest.approx(float(slope), rel=1e-6)

    def test_34_the_predicted_picture_is_exact_for_a_linear_field(self):
        """x_0 = x - t (eps - x_0): what the decoder sees is the data, whatever the time."""
        clean, noise = normal(2, *SHAPE, seed=1), normal(2, *SHAPE, seed=2)
        t, seen = torch.tensor([0.1, 0.4], dtype=torch.float64), []
        x = flow.interpolate(clean, noise, t)
        v = [u[None].requires_grad_() for u in noise - clean]
        ReFL().term(
            v,
            [u[None] for u in x],
            [u[None] for u in t],
            [Prompt(0, "a"), Prompt(1, "b")],
            lambda z, prompts: seen.append(z) or self.reward(z, prompts),
        )
        torch.testing.assert_close(seen[0], clean, rtol=0, atol=1e-6)

    def test_34_the_time_is_the_sampler_s(self):
        visit = LatentSnapshot(6, float(flow.timesteps(9, 4.0)[6]), normal(*SHAPE))
        image = Image(normal(*SHAPE), (2, 2), drawn=True, snapshot=visit)
        query = ReFL().query(2, image, torch.Generator(), shift=4.0)
        assert query.segment == 2 and query.t.tolist() == [visit.t] and torch.equal(query.x[0], visit.x)
        assert ReFL().query(2, replace(image, snapshot=None), torch.Generator(), shift=4.0) is None

    def test_late_steps(self):
        assert late_steps(9, 0.25) == (6, 8) and late_steps(25, 0.25) == (18, 24)
        assert late_steps(9, 0.01) == (7, 8) and late_steps(9, 1.0) == (0, 8)

    @pytest.mark.parametrize(
        ("reward", "says"),
        [
            (lambda p, *_: p.sum((1, 2)) * float("nan"), "must be a finite number"),
            (lambda p, *_: p.detach().sum((1, 2)), "gives no gradient"),
            (lambda p, *_: p.sum(), "one each is needed"),
        ],
    )
    def test_bad_rewards_are_named(self, reward, says):
        v, x, t = [normal(1, *SHAPE).requires_grad_()], [normal(1, *SHAPE)], [torch.tensor([0.2])]
        with pytest.raises(ValueError, match=says):
            ReFL().term(v, x, t, [Prompt(0, "a")], reward)


def test_a_latent_kl_needs_transitions():
    with pytest.raises(ValueError, match="compares SDE steps"):
        combination(text=None, image=FPO(), regulariser=Regulariser("latent_kl", 0.1))
    combination(text=None, image=FPO(), regulariser=Regulariser("latent_kl", 0.0))
