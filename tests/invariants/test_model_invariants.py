"""Spec section I, the numbers that model, rollout and replay answer for: 6, 7, 18-20, 27, 30-32, 37."""

import random
from dataclasses import replace

import pytest
import torch

from formulas import METHODS, assign_advantages, combination, queries_of, resolve_clip_range
from small_models import (
    EOS,
    EVALUATION,
    TRAINING,
    counted_forwards,
    favour,
    gradients,
    largest,
    normal,
    prompts,
    sample,
    small_policy,
)
from tolerances import assert_same_answers, assert_same_sums, rounding, terms_of
from unigrpo import flow
from unigrpo.objectives.method import Losses
from unigrpo.recipe import Optimizer
from unigrpo.rollout.engine import RandomKeys, window_starts
from unigrpo.rollout.guidance import Guidance
from unigrpo.training.optimizer import ExpertOptimizer, TrainingFault
from unigrpo.training.update import Batch, annotate_reference, backward, ratio_bounds, replay, update


def batch_of(policy, method, **options):
    """A rollout with made-up rewards, ready to be trained on."""
    sampled = sample(policy, **options)
    rewards = normal(len(sampled), seed=11).tolist()
    ready = assign_advantages([replace(t, reward=r) for t, r in zip(sampled, rewards, strict=True)])
    return Batch(ready, [queries_of(method, t, torch.Generator()) for t in ready])


def recorded_steps(policy, monkeypatch, **options):
    """A rollout, and (x, t, v) of every denoising step, all rows."""
    plain, steps = policy.velocity, []

    def recording(context, x, t):
        v = plain(context, x, t)
        steps.append((x.clone(), float(t[0]), v))
        return v

    monkeypatch.setattr(policy, "velocity", recording)
    return sample(policy, **options), steps


# ---------------------------------------------------------------- 6, 7: the first update


@pytest.mark.parametrize("think", [True, False])
def test_06_the_first_updates_ratios_are_1_through_the_whole_path(think, monkeypatch):
    policy = small_policy()
    favour(monkeypatch, policy, EOS, 1.0)
    method = METHODS["unigrpo"] if think else METHODS["flow_grpo"]
    method = replace(method, regulariser=replace(method.regulariser, weight=0.3))
    batch = batch_of(policy, method, some=prompts(4), group_size=6, think=think)
    batch = annotate_reference(policy, batch, micro_batch=7, temperature=1.0)
    answers = replay(policy, batch, 1.0)
    stats = method.losses(batch.trajectories, answers, batch.queries).stats
    assert float(stats["flow/log_ratio_max"].max()) <= 1e-7
    assert stats["flow/log_ratio"].dtype == torch.float64 and stats["flow/log_ratio"].shape == (24, 3)
    assert float(stats["flow/velocity_mse"].max()) <= 1e-10  # 16: the start checkpoint is its own reference
    if think:
        assert float(stats["text/log_ratio_max"].max()) <= 1e-5


@pytest.mark.parametrize("kind", flow.SDE_KINDS)
def test_07_the_replayed_log_prob_is_the_rollouts(kind):
    policy, level = small_policy(), 0.5 if kind == "cps" else 0.8
    batch = batch_of(policy, METHODS["unigrpo"], sampling=replace(TRAINING, sde=kind, noise_level=level))
    with torch.no_grad():
        answers = replay(policy, batch, 1.0)
    for trajectory, answer in zip(batch.trajectories, answers, strict=True):
        path = trajectory.images[0].path
        mean, std = flow.sde_transition(
            path.x, answer.velocities[0], path.t, path.t_next,
            noise_level=path.noise_level, t_second=path.t_second, kind=path.kind,
        )  # fmt: skip
        assert largest(std.float(), path.std) == 0
        replayed = flow.log_prob(path.x_next, mean.float(), path.std)
        assert_same_sums(replayed, path.log_prob, terms=policy.spec.num_elements)
        assert_same_answers(answer.log_probs, trajectory.sampled_texts[0].log_probs, policy)


@pytest.mark.parametrize("half", ["text", "image"])
def test_06_an_update_with_other_weights_than_the_rollouts_is_stopped(half):
    policy, method = small_policy(), METHODS["unigrpo"]
    method = replace(method, regulariser=replace(method.regulariser, weight=0.0))
    batch = batch_of(policy, method)
    optimizer = ExpertOptimizer(policy, Optimizer(), 1)
    bounds = ratio_bounds(torch.float32, resolve_clip_range("auto", policy.spec.num_elements))
    before = {n: p.detach().clone() for n, p in policy.model.named_parameters()}
    update(policy, optimizer, method, batch, micro_batch=4, temperature=1.0, check=bounds)
    assert any(not torch.equal(p, before[n]) for n, p in policy.model.named_parameters())
    changed = policy.reasoning_parameters() if half == "text" else policy.denoising_parameters()
    with torch.no_grad():
        for name, p in policy.model.named_parameters():
            p.copy_(before[name])
        for p in changed.values():
            p.mul_(1.01)
    with pytest.raises(TrainingFault, match=f"first update's {half} ratios must be 1"):
        update(policy, optimizer, method, batch, micro_batch=4, temperature=1.0, check=bounds)


# ---------------------------------------------------------------- 18-20: where the noise goes


def test_18_windows_are_uniform_and_never_reach_the_last_step():
    rows = [(prompt, 0) for prompt in prompts(100)]
    states = torch.get_rng_state(), random.getstate()
    starts = [s for iteration in range(30) for s in window_starts(rows, TRAINING, RandomKeys(0, iteration))]
    counts = [starts.count(start) for start in (0, 1, 2)]
    assert sum(counts) == 3000 and sum((c - 1000) ** 2 / 1000 for c in counts) < 13.8  # chi-square, p = 1e-3
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]


def test_18_a_prompts_window_differs_between_iterations():
    rows = [(prompts(1)[0], sample) for sample in range(4)]
    drawn = [window_starts(rows, TRAINING, RandomKeys(0, iteration)) for iteration in range(20)]
    assert all(len(set(starts)) == 1 for starts in drawn) and {starts[0] for starts in drawn} == {0, 1, 2}


def test_19_three_steps_are_stochastic_and_all_others_the_ode_to_the_bit(monkeypatch):
    policy = small_policy()
    sampled, steps = recorded_steps(policy, monkeypatch, some=prompts(4), group_size=2)
    grid = flow.timesteps(TRAINING.num_points, TRAINING.shift).tolist()
    assert len(steps) == TRAINING.num_points - 1
    ends = [x for x, _, _ in steps[1:]] + [torch.stack([t.images[0].latents for t in sampled])]
    stochastic = [[] for _ in sampled]
    for k, ((x, t, v), end) in enumerate(zip(steps, ends, strict=True)):
        assert t == pytest.approx(grid[k], abs=rounding(1.0, terms=1))
        ode = flow.ode_step(x, v, grid[k], grid[k + 1])
        for row, seen in enumerate(stochastic):
            if not torch.equal(end[row], ode[row]):
                path = sampled[row].images[0].path
                assert torch.equal(path.x[len(seen)], x[row]) and torch.equal(path.x_next[len(seen)], end[row])
                seen.append(k)
    assert [tuple(seen) for seen in stochastic] == [t.images[0].path.steps for t in sampled]
    assert all(len(seen) == 3 and seen[2] - seen[0] == 2 and seen[2] < TRAINING.num_points - 2 for seen in stochastic)
    assert len({tuple(seen) for seen in stochastic}) > 1


def test_19_a_trajectory_has_exactly_three_velocities_with_gradients(monkeypatch):
    policy, method = small_policy(), METHODS["unigrpo"]
    sampled, steps = recorded_steps(policy, monkeypatch)
    assert not any(v.requires_grad for _, _, v in steps)
    assert not any(t.images[0].latents.requires_grad for t in sampled)
    assert not any(t.sampled_texts[0].log_probs.requires_grad for t in sampled)
    with counted_forwards(policy) as calls:
        answers = replay(policy, Batch(sampled, [queries_of(method, t, torch.Generator()) for t in sampled]), 1.0)
    assert calls == [3]  # one forward: shared prompts, the rest of the contexts, and all noisy images beside it
    for answer in answers:
        (velocity,) = answer.velocities
        assert velocity.shape == (3, 8, 16) and velocity.requires_grad and answer.log_probs.requires_grad


def test_20_group_members_share_no_noise(monkeypatch):
    policy = small_policy(image_size=(32, 32))
    sampled, steps = recorded_steps(policy, monkeypatch, group_size=5)
    paths = [t.images[0].path for t in sampled]
    z = torch.stack([((p.x_next - p.mean) / p.std[:, None, None]).flatten() for p in paths])
    assert abs(float(z.mean())) < 5 / z.numel() ** 0.5 and abs(float(z.std()) - 1) < 0.03
    for noise in (z, steps[0][0].flatten(1)):
        rho = torch.corrcoef(noise) - torch.eye(len(noise))
        assert float(rho.abs().max()) < 5 / noise.shape[1] ** 0.5
    per_step = torch.corrcoef(z.reshape(10 * 3, -1)) - torch.eye(30)
    assert float(per_step.abs().max()) < 5 / 256**0.5  # nor between the steps of one path


# ---------------------------------------------------------------- 27: what is scored


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@torch.no_grad()
def test_27_text_log_probs_are_those_of_the_sampled_ids_at_the_temperature(temperature, monkeypatch):
    policy = small_policy()
    favour(monkeypatch, policy, EOS, 2.0)
    sampled = sample(policy, sampling=replace(TRAINING, temperature=temperature), group_size=8)
    texts = [t.sampled_texts[0] for t in sampled]
    assert {t.ended for t in texts} == {True, False}
    answers = replay(policy, Batch(sampled, [() for _ in sampled]), temperature)
    for trajectory, written, answer in zip(sampled, texts, answers, strict=True):
        actions = written.ids.tolist() + [EOS] * written.ended  # bos and the prompt are not among them
        context = policy.prefill([trajectory.segments[:2]])
        fed, expected, entropies = [policy.config.bos_token_id, *actions[:-1]], [], []
        for token, action in zip(fed, actions, strict=True):
            logits = policy.feed(context, torch.tensor([token]), torch.tensor([True]))
            distribution = torch.log_softmax(logits[0].double() / temperature, -1)
            expected.append(distribution[action])
            entropies.append(-(distribution.exp() * distribution).sum())
        assert written.log_probs.shape == answer.log_probs.shape == (len(actions),)
        for ours in (written.log_probs, answer.log_probs):
            assert_same_sums(ours.double(), torch.stack(expected), terms=terms_of(policy), scale=1 / temperature)
        terms = terms_of(policy) + policy.config.vocab_size
        assert_same_sums(answer.entropies.double(), torch.stack(entropies), terms=terms, scale=1 / temperature)


# ---------------------------------------------------------------- 30: who learns from the picture


def losses_of(policy, method, batch):
    return method.losses(batch.trajectories, replay(policy, batch, 1.0), batch.queries)


@pytest.mark.parametrize("through", [False, True])
def test_30_the_image_loss_reaches_the_reasoning_weights_only_through_the_flag(through):
    policy = small_policy()
    method = combination(
        image_grad_through_context=through, regulariser=replace(METHODS["unigrpo"].regulariser, weight=0.0)
    )
    batch = batch_of(policy, method)
    losses = losses_of(policy, method, batch)
    backward(policy, method, Losses(None, losses.image_loss, losses.stats), len(batch))
    reasoning, denoising = policy.reasoning_parameters(), policy.denoising_parameters()
    assert any(float(p.grad.norm()) > 0 for p in denoising.values() if p.grad is not None)
    assert all(p.grad is not None for p in denoising.values())
    received = {n: p.grad for n, p in reasoning.items() if p.grad is not None}
    if not through:
        assert received == {}
        return
    assert any(float(g.norm()) > 0 for n, g in received.items() if n.endswith("layers.0.self_attn.v_proj.weight"))
    assert float(received["language_model.model.embed_tokens.weight"].norm()) > 0


def test_30_with_the_flag_off_the_text_gradient_is_the_texts_alone():
    method = replace(METHODS["unigrpo"], regulariser=replace(METHODS["unigrpo"].regulariser, weight=0.0))
    found = []
    for parts in ("both", "text", "image"):
        policy = small_policy()
        batch = batch_of(policy, method)
        losses = losses_of(policy, method, batch)
        chosen = Losses(
            None if parts == "image" else losses.text_loss, None if parts == "text" else losses.image_loss, losses.stats
        )
        backward(policy, method, chosen, len(batch))
        found.append((gradients(policy), policy))
    (both, policy), (text, _), (image, _) = found
    for name in policy.reasoning_parameters():
        assert largest(both[name], text[name]) == 0
    for name in policy.denoising_parameters():
        assert largest(both[name], image[name]) == 0 and name not in text


# ---------------------------------------------------------------- 31, 32: how many forwards


@pytest.mark.parametrize("think", [True, False])
def test_31_one_forward_per_denoising_step(think):
    policy, marks = small_policy(), []
    with counted_forwards(policy) as calls:
        sample(policy, think=think, on_phase=lambda phase: marks.append((phase, len(calls))))
    phases = dict(marks)
    assert len(calls) - phases["draw"] == TRAINING.num_points - 1
    assert phases["draw"] == 1 if not think else phases["think"] == 1
    assert phases["draw"] <= 1 + TRAINING.max_think_tokens + 2


@pytest.mark.parametrize(
    ("guidance", "per_step", "prefills"), [(Guidance(), 1, 0), (Guidance(4.0), 2, 1), (Guidance(4.0, 1.5), 3, 2)]
)
def test_32_an_evaluation_of_m_points_takes_m_minus_1_forwards_per_branch(guidance, per_step, prefills):
    policy, marks = small_policy(), []
    sampling = replace(EVALUATION, num_points=50, guidance=guidance, max_think_tokens=2)
    with counted_forwards(policy) as calls:
        sampled = sample(
            policy, sampling=sampling, group_size=1, on_phase=lambda phase: marks.append((phase, len(calls)))
        )
    assert len(calls) - dict(marks)["draw"] == prefills + per_step * 49
    assert all(t.images[0].path is None for t in sampled)


# ---------------------------------------------------------------- 37: the same again


def test_37_the_same_seed_gives_the_same_rollout_and_loss_to_the_bit():
    found = []
    for _ in range(2):
        policy, method = small_policy(), METHODS["unigrpo"]
        method = replace(method, regulariser=replace(method.regulariser, weight=0.0))
        batch = batch_of(policy, method, iteration=3)
        found.append((batch, losses_of(policy, method, batch).total.detach()))
    (first, loss), (second, again) = found
    assert torch.equal(loss, again)
    for a, b in zip(first.trajectories, second.trajectories, strict=True):
        assert torch.equal(a.sampled_texts[0].ids, b.sampled_texts[0].ids)
        assert torch.equal(a.sampled_texts[0].log_probs, b.sampled_texts[0].log_probs)
        for name in ("x", "x_next", "mean", "std", "log_prob"):
            assert torch.equal(getattr(a.images[0].path, name), getattr(b.images[0].path, name))


def test_37_another_batch_gives_the_same_ids_and_nearly_the_same_latents():
    policy = small_policy()
    whole = sample(policy, prompts(4), group_size=4)
    halves = [t for start in (0, 2) for t in sample(policy, prompts(4)[start : start + 2], group_size=4)]
    parts = [sample(policy, prompts(4), group_size=2, first_sample=first) for first in (0, 2)]
    regrouped = [parts[s // 2][p * 2 + s % 2] for p in range(4) for s in range(4)]
    for other in (halves, regrouped):
        for a, b in zip(whole, other, strict=True):
            assert (a.prompt, a.sample) == (b.prompt, b.sample)
            assert torch.equal(a.sampled_texts[0].ids, b.sampled_texts[0].ids)
            steps = TRAINING.num_points - 1
            assert_same_answers(a.images[0].latents, b.images[0].latents, policy, forwards=steps)
