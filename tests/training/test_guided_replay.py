"""Guided training rollouts: every branch is scored again in the replay, exactly; and what else a rollout may keep."""

from dataclasses import replace

import pytest
import torch

from formulas import METHODS, assign_advantages, flow_grpo, queries_of
from small_models import TRAINING, normal, prompts, sample, small_policy
from tolerances import assert_same_answers
from unigrpo import flow
from unigrpo.objectives.regularisers import Regulariser
from unigrpo.policy import ReplayItem, VelocityQuery
from unigrpo.rollout.engine import RandomKeys, Slide, window_starts
from unigrpo.training.replay import Batch, replay
from unigrpo.training.update import annotate_behaviour
from unigrpo.trajectory import Guidance

GUIDED = {
    "global": Guidance(2.0),
    "channel": Guidance(3.0, renorm="channel", renorm_min=0.3),
    "text_channel": Guidance(2.0, renorm="text_channel"),
    "interval": Guidance(2.0, interval=(0.9, 1.0)),
    "image": Guidance(2.0, 1.5),
}


def batch_of(policy, guidance, think=True):
    rows = sample(policy, sampling=replace(TRAINING, guidance=guidance), think=think)
    rows = assign_advantages([replace(t, reward=r) for t, r in zip(rows, normal(len(rows)).tolist(), strict=True)])
    return Batch(rows, [queries_of(METHODS["flow_grpo"], t, torch.Generator()) for t in rows])


def largest_log_ratio(batch, answers):
    paths = [t.images[-1].path for t in batch.trajectories]
    velocities = [answer.velocities[0] for answer in answers]
    return float(flow_grpo(velocities, paths, torch.ones(len(paths))).stats["flow/log_ratio_max"].max())


@pytest.mark.parametrize("think", [True, False])
@pytest.mark.parametrize("kind", GUIDED)
def test_a_guided_rollout_is_replayed_with_its_branches(kind, think):
    policy = small_policy()
    batch = batch_of(policy, GUIDED[kind], think)
    assert largest_log_ratio(batch, replay(policy, batch, 1.0)) < 1e-7
    plain = Batch(batch.trajectories, [tuple(replace(d, guided=()) for d in ds) for ds in batch.queries])
    assert largest_log_ratio(plain, replay(policy, plain, 1.0)) > 1e-4


def test_gradients_flow_through_both_branches():
    """d guided / d theta has a part from the unconditional branch: with the context cut off there, it differs."""
    policy = small_policy()
    batch = batch_of(policy, GUIDED["global"])
    v = torch.cat([answer.velocities[0] for answer in replay(policy, batch, 1.0)])
    v.square().sum().backward()
    found = {name: p.grad.clone() for name, p in policy.denoising_parameters().items() if p.grad is not None}
    step, name = 1e-3, "llm2vae.bias"
    parameter = policy.denoising_parameters()[name]
    sides = []
    for sign in (1.0, -1.0):
        with torch.no_grad():
            parameter[0] += sign * step
            again = torch.cat([answer.velocities[0] for answer in replay(policy, batch, 1.0)])
            sides.append(float(again.double().square().sum()))
            parameter[0] -= sign * step
    assert float(found[name][0]) == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=2e-3)


def test_log_probs_are_those_of_an_unguided_replay():
    policy = small_policy()
    batch = batch_of(policy, GUIDED["image"])
    bare = Batch(batch.trajectories, [() for _ in batch.queries])
    for guided, plain in zip(replay(policy, batch, 1.0), replay(policy, bare, 1.0), strict=True):
        assert_same_answers(guided.log_probs, plain.log_probs, policy)


def test_fpo_is_on_policy_through_the_whole_path():
    """I.33: old losses and losses come from the same micro-batches, so that the first ratio is 1 to the bit."""
    policy, method = small_policy(), replace(METHODS["fpo"], regulariser=Regulariser(weight=0.0))
    rows = sample(policy, sampling=replace(TRAINING, window=None))
    rows = assign_advantages([replace(t, reward=r) for t, r in zip(rows, normal(len(rows)).tolist(), strict=True)])
    batch = Batch(rows, [queries_of(method, t, torch.Generator().manual_seed(i)) for i, t in enumerate(rows)])
    ready = annotate_behaviour(policy, batch, micro_batch=3, temperature=1.0)
    for part in ready.pieces(3):
        found = method.losses(part.trajectories, replay(policy, part, 1.0), part.queries)
        assert float(found.stats["fpo/log_ratio_max"].max()) == 0.0


def test_refl_keeps_a_late_state_of_the_ode():
    policy = small_policy()
    rows = sample(policy, sampling=replace(TRAINING, window=None, kept_steps=(4, 6)))
    grid = flow.timesteps(TRAINING.num_points, TRAINING.shift)
    visits = [t.images[-1].snapshot for t in rows]
    assert {visit.step for visit in visits} == {4, 5}
    assert all(visit.t == float(grid[visit.step]) for visit in visits)
    with torch.no_grad():  # from a state before the last step, one step of the ODE is the picture
        last = [(t, visit) for t, visit in zip(rows, visits, strict=True) if visit.step == 5]
        draws = [queries_of(METHODS["flow_grpo"], t, torch.Generator()) for t, _ in last]
        assert draws == [()] * len(last)
        for trajectory, visit in last:
            index = len(trajectory.segments) - 1
            query = VelocityQuery(index, visit.x[None], torch.tensor([visit.t]))
            (answer,) = policy.replay([ReplayItem(trajectory.segments, (query,))])
            end = flow.ode_step(visit.x[None], answer.velocities[0], visit.t, 0.0)
            assert_same_answers(end[0], trajectory.images[-1].latents, policy)


def test_a_sliding_window_moves_and_begins_again():
    rows = [(prompt, 0) for prompt in prompts(2)]
    sliding = replace(TRAINING, slide=Slide(every=2, stride=1))
    starts = [window_starts(rows, sliding, RandomKeys(0, iteration)) for iteration in range(8)]
    assert [s[0] for s in starts] == [0, 0, 1, 1, 2, 2, 0, 0] and all(s[0] == s[1] for s in starts)
    assert Slide(1, 2).start((1, 5), 3, 1) == 1 + 2 % 2
