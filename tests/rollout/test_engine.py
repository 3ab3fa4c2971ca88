"""Rollouts: their shape, their randomness, and that a sample does not depend on who else is in the batch."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from small_models import EVALUATION, TRAINING, prompts, sample, small_policy
from tolerances import assert_same_answers
from unigrpo import flow
from unigrpo.rollout.engine import RandomKeys, window_starts
from unigrpo.rollout.sample import decode_pictures
from unigrpo.trajectory import Image, Text


@pytest.fixture(scope="module")
def policy():
    return small_policy()


@pytest.fixture(scope="module")
def sampled(policy):
    return sample(policy)


def same(a, b):
    texts = all(torch.equal(u.ids, v.ids) for u, v in zip(a.sampled_texts, b.sampled_texts, strict=True))
    return texts and torch.equal(a.images[0].latents, b.images[0].latents)


def test_groups_are_adjacent_and_segments_in_order(policy, sampled):
    assert [(t.prompt.position, t.sample) for t in sampled] == [(p, s) for p in (0, 1) for s in range(3)]
    for trajectory in sampled:
        system, prompt, thinking, image = trajectory.segments
        assert policy.decode_text(system.ids) == policy.config.system_prompt
        assert policy.decode_text(prompt.ids) == trajectory.prompt.text
        assert isinstance(thinking, Text) and thinking.log_probs is not None and trajectory.sampled_texts == (thinking,)
        assert isinstance(image, Image) and image.latents.shape == (8, 16) and image.grid == (4, 2)
        assert trajectory.reward is None and trajectory.advantage is None


def test_a_path_holds_what_the_sampler_saw(sampled):
    grid = flow.timesteps(TRAINING.num_points, TRAINING.shift)
    for trajectory in sampled:
        path = trajectory.images[0].path
        assert path.x.shape == path.x_next.shape == path.mean.shape == (3, 8, 16)
        assert path.t.dtype == torch.float64 and path.t_second == float(grid[1])
        assert torch.equal(path.t, grid[list(path.steps)]) and torch.equal(
            path.t_next, grid[[k + 1 for k in path.steps]]
        )
        assert {u.dtype for u in (path.x, path.x_next, path.mean, path.std, path.log_prob)} == {torch.float32}
        assert torch.equal(flow.log_prob(path.x_next, path.mean, path.std), path.log_prob)
        assert torch.equal(path.x[1:], path.x_next[:-1])  # consecutive steps
        assert (path.noise_level, path.kind) == (0.8, "flow")


def test_without_thinking_the_prompt_stands_alone(policy):
    for trajectory in sample(policy, think=False):
        assert len(trajectory.segments) == 2 and trajectory.sampled_texts == ()


def test_an_evaluation_stores_no_path(policy):
    assert all(t.images[0].path is None for t in sample(policy, sampling=EVALUATION))


@pytest.mark.parametrize("kind", flow.SDE_KINDS)
def test_every_kind_of_step(policy, kind):
    level = 0.5 if kind == "cps" else 0.8
    for trajectory in sample(policy, sampling=replace(TRAINING, sde=kind, noise_level=level), group_size=1):
        path = trajectory.images[0].path
        assert path.kind == kind and torch.isfinite(trajectory.images[0].latents).all()


def test_phases_are_announced(policy):
    phases = []
    sample(policy, on_phase=phases.append)
    sample(policy, think=False, on_phase=phases.append)
    assert phases == ["prefill", "think", "draw", "prefill", "draw"]


# ---------------------------------------------------------------- randomness


def test_the_same_draws_give_the_same_rollout(policy, sampled):
    assert all(same(a, b) for a, b in zip(sampled, sample(policy), strict=True))


@pytest.mark.parametrize("change", [{"seed": 1}, {"iteration": 1}, {"first_sample": 3}])
def test_other_draws_give_another_rollout(policy, sampled, change):
    assert not any(same(a, b) for a, b in zip(sampled, sample(policy, **change), strict=True))


def test_nothing_touches_or_reads_the_global_generators(policy, sampled):
    torch.manual_seed(123)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    again = sample(policy)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])
    assert all(same(a, b) for a, b in zip(sampled, again, strict=True))


def test_a_sample_does_not_depend_on_the_batch(policy):
    whole = sample(policy, prompts(3), group_size=4)
    for index in (0, 5, 11):
        prompt, number = whole[index].prompt, whole[index].sample
        (alone,) = sample(policy, [prompt], group_size=1, first_sample=number)
        assert alone.sample == number
        ours, theirs = whole[index].sampled_texts[0], alone.sampled_texts[0]
        assert torch.equal(ours.ids, theirs.ids)
        assert_same_answers(ours.log_probs, theirs.log_probs, policy)
        a, b = whole[index].images[0], alone.images[0]
        assert a.path.steps == b.path.steps
        for one, other in ((a.latents, b.latents), (a.path.x_next, b.path.x_next)):
            assert_same_answers(one, other, policy, forwards=TRAINING.num_points - 1)


def test_the_position_and_not_the_text_keys_the_draws(policy):
    one, other = prompts(2)
    moved = replace(other, text=one.text)
    first, second = sample(policy, [one, moved], group_size=1)
    assert not same(first, second)


def test_one_initial_noise_for_a_group_on_request(policy):
    for shared in (False, True):
        sampling = replace(EVALUATION, same_initial_noise=shared, num_points=2)
        first, second, other, _ = sample(policy, sampling=sampling, group_size=2, think=False)
        assert torch.equal(first.images[0].latents, second.images[0].latents) == shared
        assert not torch.equal(first.images[0].latents, other.images[0].latents)


def test_the_window_is_shared_by_a_group_and_drawn_again_every_iteration():
    rows = [(prompt, s) for prompt in prompts(40) for s in range(3)]
    seen = []
    for iteration in range(4):
        starts = window_starts(rows, TRAINING, RandomKeys(0, iteration))
        assert starts[0::3] == starts[1::3] == starts[2::3]
        assert set(starts) == {0, 1, 2}  # differs between prompts
        seen.append(tuple(starts))
    assert len(set(seen)) == 4
    assert window_starts(rows, TRAINING, RandomKeys(0, 0)) == list(seen[0])


def test_no_window_means_no_stochastic_step():
    rows = [(prompts(1)[0], 0)]
    assert window_starts(rows, EVALUATION, RandomKeys(0, 0)) == [None]
    assert window_starts(rows, replace(TRAINING, window_size=0), RandomKeys(0, 0)) == [None]


def test_a_window_that_does_not_fit_is_refused(policy):
    with pytest.raises(ValueError, match=r"no 3 consecutive SDE steps fit into the window \[0, 2\)"):
        sample(policy, sampling=replace(TRAINING, window=(0, 2)))


def test_latents_that_are_not_finite_are_no_picture():
    policy = small_policy()
    with torch.no_grad():
        policy.model.llm2vae.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        decode_pictures(policy, sample(policy, sampling=EVALUATION))


def test_pixels_that_are_not_finite_are_no_picture(monkeypatch):
    policy = small_policy()
    monkeypatch.setattr(policy, "decode_image", lambda latents: torch.full((len(latents), 3, 4, 4), float("nan")))
    with pytest.raises(ValueError, match=r"ae\.safetensors"):
        decode_pictures(policy, sample(policy, sampling=EVALUATION))
