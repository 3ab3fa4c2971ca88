"""One optimizer step: whole groups, exact accumulation, who gets which gradient, and the check of the first ratios."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from formulas import combination, queries_of, resolve_clip_range
from small_models import TRAINING, gradients, prompts, relative, sample, small_policy
from tolerances import assert_same_answers, gradient_bound, rounding, terms_of
from unigrpo import seeds
from unigrpo.objectives.flow_grpo import FlowGRPO
from unigrpo.objectives.method import targets_per_row
from unigrpo.objectives.regularisers import Regulariser
from unigrpo.recipe import Optimizer
from unigrpo.training.gradients import backward
from unigrpo.training.optimizer import ExpertOptimizer, TrainingFault
from unigrpo.training.update import (
    Batch,
    RatioBounds,
    annotate_reference,
    minibatches,
    ratio_bounds,
    replay,
    rescore,
    update,
)
from unigrpo.trajectory import Prompt, Trajectory

METHOD = combination(regulariser=Regulariser(weight=0.3), image=FlowGRPO(clip_range=1e-3))
TEXT_ONLY = combination(image=None)
RAW = FlowGRPO(ratio_norm=False)


def true_batch(policy, method=METHOD, *, reference=None, rollouts=None):
    """Two groups of three, rolled out by the policy itself, with made-up advantages and another model's reference."""
    sampled = sample(policy) if rollouts is None else rollouts
    advantages = itertools.cycle([1.0, -0.5, 2.0, -1.5, 0.7, -0.3])
    ready = [t.with_advantages(a, a) for t, a in zip(sampled, advantages, strict=False)]
    draws = [queries_of(method, t, seeds.generator(0, 0, t.prompt.position, t.sample, "draws")) for t in ready]
    frozen = small_policy(seed=7) if reference is None else reference
    return annotate_reference(frozen, Batch(ready, draws), micro_batch=6, temperature=1.0)


def still(policy):
    """An optimizer that neither moves weights nor clips, so that a step leaves its gradients to be looked at."""
    return ExpertOptimizer(policy, Optimizer(lr_reasoning=0.0, lr_denoising=0.0, max_grad_norm=1e9), 1)


def gradients_of(policy, method, batch, micro_batch=6):
    update(policy, still(policy), method, batch, micro_batch=micro_batch, temperature=1.0)
    return gradients(policy)


def gradients_of_loss(policy, method, batch, name):
    """The gradient of one loss alone, wherever it leads."""
    policy.model.zero_grad(set_to_none=True)
    losses = method.losses(batch.trajectories, replay(policy, batch, 1.0), batch.queries)
    {"text": losses.text_loss, "image": losses.image_loss}[name].sum().div(len(batch)).backward()
    return gradients(policy)


def log_ratio_bound(policy):
    """A log-ratio of 0 is the difference of two log-probs near -4."""
    return rounding(4.0, terms=terms_of(policy))


def assert_close(ours, theirs, names, tolerance):
    for name in names:
        assert relative(ours[name], theirs[name]) <= tolerance, name


def present(found, names):
    """Those of ``names`` that have a gradient (the text head has none in an image loss)."""
    chosen = [name for name in names if name in found and bool(found[name].any())]
    assert chosen
    return chosen


# ---------------------------------------------------------------- minibatches


def numbered_batch(sizes):
    """Groups of the given sizes, adjacent as rollouts have them."""
    rows = [Trajectory(Prompt(position, ""), s, ()) for position, size in enumerate(sizes) for s in range(size)]
    return Batch(rows, [() for _ in rows])


@given(st.lists(st.integers(1, 5), min_size=1, max_size=9), st.integers(1, 9))
def test_minibatches_share_out_whole_groups_in_order(sizes, count):
    batch = numbered_batch(sizes)
    parts = minibatches(batch, count)
    assert len(parts) == min(count, len(sizes))  # fewer where groups could not be scored
    groups = [[t.prompt.position for t in part.trajectories] for part in parts]
    assert list(itertools.chain(*groups)) == [t.prompt.position for t in batch.trajectories]
    found = [set(group) for group in groups]
    assert sum(map(len, found)) == len(set.union(*found)) == len(sizes)  # no group in two minibatches
    assert len(parts) == min(count, len(sizes)) and max(map(len, found)) - min(map(len, found)) <= 1


def test_pieces_take_everything_once():
    assert [len(piece) for piece in numbered_batch([3, 4]).pieces(3)] == [3, 3, 1]


# ---------------------------------------------------------------- accumulation (invariant 28)


@pytest.mark.parametrize("through_context", [False, True])
def test_micro_batches_add_up_to_the_whole(through_context):
    policy = small_policy()
    method = replace(METHOD, image_grad_through_context=through_context)
    batch = true_batch(policy, method)
    whole = gradients_of(policy, method, batch, micro_batch=6)
    for size in (1, 4):
        pieces = gradients_of(policy, method, batch, micro_batch=size)
        assert pieces.keys() == whole.keys()
        assert_close(pieces, whole, present(whole, whole), gradient_bound(policy))


def test_statistics_do_not_depend_on_the_micro_batch():
    policy = small_policy()
    batch = true_batch(policy)
    whole, pieces = (update(policy, still(policy), METHOD, batch, micro_batch=size, temperature=1.0) for size in (6, 1))
    assert whole.stats.keys() == pieces.stats.keys()
    near_0 = {"text/log_ratio_max": log_ratio_bound(policy)}
    for name in whole.stats:
        assert pieces.stats[name] == pytest.approx(whole.stats[name], rel=1e-4, abs=near_0.get(name, 1e-6)), name
    assert pieces.entropy == pytest.approx(whole.entropy, rel=1e-5)
    assert pieces.grad_norm == pytest.approx(whole.grad_norm, rel=1e-4)


# ---------------------------------------------------------------- who gets which gradient


def test_the_image_loss_stays_out_of_the_reasoning_weights():
    policy = small_policy()
    batch = true_batch(policy)
    ours = gradients_of(policy, METHOD, batch)
    text = gradients_of_loss(policy, METHOD, batch, "text")
    image = gradients_of_loss(policy, METHOD, batch, "image")
    reasoning, denoising = policy.reasoning_parameters(), policy.denoising_parameters()
    assert_close(ours, text, present(text, reasoning), 1e-6)
    assert_close(ours, image, present(image, denoising), 1e-6)
    assert not any(bool(text[name].any()) for name in denoising if name in text)
    leak = max(relative(text[n] + image[n], text[n]) for n in present(text, reasoning) if n in image)
    assert leak > 0.1  # the image loss does reach the reasoning weights, if it is let


def test_denoising_gradients_are_those_of_the_joint_backward():
    """Only the weights are constants to the image loss, not the activations."""
    policy = small_policy()
    batch = true_batch(policy)
    apart = gradients_of(policy, METHOD, batch)
    joint = gradients_of(policy, replace(METHOD, image_grad_through_context=True), batch)
    assert_close(apart, joint, present(joint, policy.denoising_parameters()), 1e-6)
    image = gradients_of_loss(policy, METHOD, batch, "image")
    text = gradients_of_loss(policy, METHOD, batch, "text")
    for name in present(image, policy.reasoning_parameters()):
        assert relative(joint[name], text.get(name, 0.0) + image[name]) <= gradient_bound(policy), name


@pytest.mark.parametrize("through_context", [False, True])
def test_without_the_image_loss_only_the_text_is_learnt(through_context):
    policy = small_policy()
    method = replace(METHOD, lambda_flow=0.0, image_grad_through_context=through_context)
    batch = true_batch(policy)
    ours = gradients_of(policy, method, batch)
    theirs = gradients_of(policy, TEXT_ONLY, Batch(batch.trajectories, [() for _ in batch.trajectories]))
    assert_close(ours, theirs, present(theirs, policy.reasoning_parameters()), 1e-5)
    assert not any(bool(ours[name].any()) for name in policy.denoising_parameters() if name in ours)


@pytest.mark.parametrize("bad", ["text", "image"])
def test_a_loss_that_is_not_finite_is_named(bad):
    policy = small_policy()
    batch = true_batch(policy)
    losses = METHOD.losses(batch.trajectories, replay(policy, batch, 1.0), batch.queries)
    spoilt = replace(losses, **{f"{bad}_loss": getattr(losses, f"{bad}_loss") * math.nan})
    with pytest.raises(TrainingFault, match=f"the {bad} loss is nan; nothing was updated"):
        backward(policy, METHOD, spoilt, 6)


# ---------------------------------------------------------------- the first update's ratios


def fp32_bounds(policy):
    return ratio_bounds(torch.float32, resolve_clip_range("auto", policy.spec.num_elements))


def weights(policy):
    return {name: value.clone() for name, value in policy.model.state_dict().items()}


def checked_update(policy, batch, micro_batch=4):
    optimizer = ExpertOptimizer(policy, Optimizer(lr_reasoning=1e-3, lr_denoising=1e-3), 1)
    return update(policy, optimizer, METHOD, batch, micro_batch=micro_batch, temperature=1.0, check=fp32_bounds(policy))


def test_a_true_rollout_passes_the_check_and_is_learnt_from():
    policy = small_policy()
    batch, before = true_batch(policy), weights(policy)
    stats = checked_update(policy, batch).stats
    assert stats["text/log_ratio_max"] <= 1e-5 and stats["flow/log_ratio_max"] <= 1e-7
    assert stats["text/ratio"] == pytest.approx(1.0, abs=log_ratio_bound(policy))
    assert any(not torch.equal(value, before[name]) for name, value in policy.model.state_dict().items())


@pytest.mark.parametrize(("half", "what"), [("reasoning", "text"), ("denoising", "image")])
def test_weights_that_changed_since_the_rollout_are_a_fault(half, what):
    policy = small_policy()
    batch = true_batch(policy)
    parameters = policy.reasoning_parameters() if half == "reasoning" else policy.denoising_parameters()
    with torch.no_grad():
        for name, parameter in parameters.items():
            if "q_proj" in name and parameter.ndim == 2:
                parameter.add_(0.01)
    before = weights(policy)
    with pytest.raises(TrainingFault, match=f"first update's {what} ratios must be 1.*nothing was updated"):
        checked_update(policy, batch)
    assert all(torch.equal(value, before[name]) for name, value in policy.model.state_dict().items())


def test_a_rollout_scored_at_another_temperature_is_a_fault():
    policy = small_policy()
    batch = true_batch(policy)
    optimizer = ExpertOptimizer(policy, Optimizer(), 1)
    with pytest.raises(TrainingFault, match="text ratios"):
        update(policy, optimizer, METHOD, batch, micro_batch=6, temperature=0.7, check=fp32_bounds(policy))


def test_bounds():
    assert ratio_bounds(torch.float32, 1e-3) == RatioBounds(1e-5, 1e-5)
    assert ratio_bounds(torch.float32, 1e-6) == RatioBounds(1e-5, 1e-7)
    assert ratio_bounds(torch.bfloat16, 1e-3) == RatioBounds(1e-3, pytest.approx(1e-4))
    assert ratio_bounds(torch.float32, None).image == math.inf


@pytest.mark.parametrize(("size", "temperature"), [(1.0, 1.0), (8.0, 1.0), (1.0, 0.1), (8.0, 0.01)])
def test_the_bound_of_text_grows_with_the_logits(size, temperature):
    """Logits of 100 are rounded ten times as coarsely as those of 10; a low temperature makes them larger."""
    policy = small_policy()
    with torch.no_grad():
        policy.model.language_model.lm_head.weight.mul_(size)
    sampling = replace(TRAINING, temperature=temperature)
    batch = true_batch(policy, rollouts=sample(policy, sampling=sampling))
    spread = max(float(a.spreads.max()) for a in replay(policy, batch, temperature))
    assert spread == pytest.approx(6.5 * size / temperature, rel=0.5)

    def off_by(share):
        rows = [shifted(t, share * max(spread, 10.0)) for t in batch.trajectories]
        check = fp32_bounds(policy)
        update(
            policy,
            still(policy),
            METHOD,
            Batch(rows, batch.queries),
            micro_batch=4,
            temperature=temperature,
            check=check,
        )

    off_by(5e-7)  # the rounding of two ways to the same logits
    with pytest.raises(TrainingFault, match="text ratios"):
        off_by(3e-6)


def shifted(trajectory, amount):
    """The trajectory with other old log-probs of its thinking."""
    (text,) = trajectory.sampled_texts
    moved = replace(text, log_probs=text.log_probs + amount)
    return replace(trajectory, segments=tuple(moved if s is text else s for s in trajectory.segments))


@pytest.mark.parametrize(
    ("noise_level", "method"),
    [
        pytest.param(0.8, METHOD, id="as usual"),
        pytest.param(100.0, METHOD, id="much noise"),
        pytest.param(1e-3, replace(METHOD, image=RAW), id="raw ratio, little noise"),
    ],
)
def test_the_bound_of_images_grows_with_what_rounding_becomes(noise_level, method):
    policy = small_policy()
    sampling = replace(TRAINING, noise_level=noise_level)
    batch = true_batch(policy, rollouts=sample(policy, prompts(8), sampling=sampling, group_size=6))
    stats = update(
        policy, still(policy), method, batch, micro_batch=5, temperature=1.0, check=fp32_bounds(policy)
    ).stats
    assert (stats["flow/rounding_max"] > 1.0) == (noise_level != 0.8)
    error = 5e-8 * stats["flow/rounding_max"]
    check = RatioBounds(1.0, 1e-7)
    check.require({**stats, "flow/log_ratio_max": error})
    with pytest.raises(TrainingFault, match="image ratios"):
        check.require({**stats, "flow/log_ratio_max": 3 * error})


def test_a_ratio_that_is_nan_is_no_ratio_of_one():
    with pytest.raises(TrainingFault, match="nan"):
        RatioBounds(1.0, 1.0).require({"flow/log_ratio_max": math.nan})
    RatioBounds(1.0, 1.0).require({"something/else": math.nan})


# ---------------------------------------------------------------- what is fixed before the updates


def test_the_reference_of_an_unchanged_policy_is_itself():
    policy = small_policy()
    batch = true_batch(policy, reference=small_policy())
    for micro_batch in (6, 1):
        answers = update(policy, still(policy), METHOD, batch, micro_batch=micro_batch, temperature=1.0)
        assert 0.0 <= answers.stats["flow/velocity_mse"] <= 1e-10
    answers = update(policy, still(policy), METHOD, true_batch(policy), micro_batch=6, temperature=1.0)
    assert answers.stats["flow/velocity_mse"] > 1e-3  # of another model


def test_the_reference_needs_no_gradients_and_changes_nothing_else():
    policy = small_policy()
    batch = true_batch(policy)
    for trajectory in batch.trajectories:
        path, reference = trajectory.images[-1].path, trajectory.reference
        assert reference.velocity.shape == path.x.shape and not reference.velocity.requires_grad
        assert reference.log_probs.shape == (trajectory.sampled_texts[0].num_actions,)
    for ours, plain in zip(batch.trajectories, sample(policy), strict=True):
        assert torch.equal(ours.images[-1].latents, plain.images[-1].latents)


def test_rescoring_in_fp32_says_what_the_rollout_said():
    policy = small_policy()
    batch = true_batch(policy)
    again, gap = rescore(policy, batch, micro_batch=4, temperature=1.0)
    assert gap["text"] <= 1e-5 and gap["image"] <= 1e-7
    for old, new in zip(batch.trajectories, again.trajectories, strict=True):
        assert_same_answers(old.sampled_texts[0].log_probs, new.sampled_texts[0].log_probs, policy)
        assert_same_answers(old.images[-1].path.mean, new.images[-1].path.mean, policy)
        assert torch.equal(old.images[-1].path.x_next, new.images[-1].path.x_next)
        assert (old.advantage, old.prompt, old.reference) == (new.advantage, new.prompt, new.reference)


def test_below_fp32_the_check_is_made_against_rescored_values():
    policy = small_policy()
    batch = true_batch(policy)
    policy.compute_dtype = torch.bfloat16  # from here on: on some machines rollout and replay round alike in bfloat16
    bounds = ratio_bounds(torch.bfloat16, resolve_clip_range("auto", policy.spec.num_elements))
    rescored, gap = rescore(policy, batch, micro_batch=4, temperature=1.0)
    stats = update(policy, still(policy), METHOD, rescored, micro_batch=4, temperature=1.0, check=bounds).stats
    assert stats["text/log_ratio_max"] <= 1e-3 and stats["flow/log_ratio_max"] <= bounds.image < gap["image"]
    with pytest.raises(TrainingFault, match="must be 1"):  # against the rollout's own values no run in bf16 would start
        update(policy, still(policy), METHOD, batch, micro_batch=4, temperature=1.0, check=bounds)


def test_target_tokens_are_counted_over_the_minibatch():
    policy = small_policy()
    batch = true_batch(policy)
    assert targets_per_row(batch.trajectories, batch.queries).text == 0.0
    learnt = [replace(t, segments=(replace(t.sampled_texts[0], target=True),)) for t in batch.trajectories[:4]]
    rows = [*learnt, *batch.trajectories[4:]]
    wanted = sum(t.sampled_texts[0].num_actions for t in rows[:4]) / 6
    counted = targets_per_row(rows, batch.queries)
    assert counted.text == wanted and counted.image == sum(d.x[..., 0].numel() for ds in batch.queries for d in ds) / 6
