"""Guidance in evaluation: which branches are read, where it is active, and what the mix is."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from small_models import EVALUATION, counted_forwards, normal, prompts, sample, small_policy
from tolerances import assert_same_answers, assert_same_sums
from unigrpo import flow
from unigrpo.rollout.guidance import NO_GUIDANCE, Guidance, guided, prepare, without_prompt
from unigrpo.trajectory import Image, Text, View


@pytest.fixture(scope="module")
def policy():
    return small_policy()


def given(policy, think, count=2):
    return [policy.prompt_segments(prompt, think=think) for prompt in prompts(count)]


def test_a_scale_of_1_or_less_is_no_guidance(policy):
    assert not NO_GUIDANCE.on and not Guidance(0.5, 3.0).on
    assert prepare(policy, given(policy, True), 2, Guidance(1.0, 3.0)) is None


def test_the_last_text_is_what_the_text_branch_leaves_out():
    picture, view = Image(normal(8, 16), (4, 2)), View(normal(4, 12), (2, 2))
    system, prompt = Text(torch.tensor([3])), Text(torch.tensor([4, 5]))
    assert without_prompt((system, picture, view, prompt)) == (system, picture, view)
    assert without_prompt((prompt, view)) == (view,) and without_prompt(()) == ()


def test_the_interval_is_open_below_and_closed_above():
    assert flow.guided_steps(5, 1.0, (0.25, 0.75)) == (False, True, True, False)
    assert flow.guided_steps(5, 1.0, (0.0, 1.0)) == (True,) * 4


@pytest.mark.parametrize(
    ("points", "shift", "low", "count"), [(4, 3.0, 0.6, 2), (10, 3.0, 0.6, 6), (8, 1.5, 0.2, 7), (11, 1.0, 0.3, 7)]
)
def test_a_bound_on_a_point_of_the_grid_counts_as_in_the_original(points, shift, low, count):
    """The original computes and compares in fp32, which says otherwise than fp64 at each of these points."""
    assert any(Fraction(low).limit_denominator(100) == exact_time(points, shift, k) for k in range(points))
    steps = flow.guided_steps(points, shift, (low, 1.0))
    assert sum(steps) == count and steps == tuple(sorted(steps, reverse=True))
    assert abs(int((flow.timesteps(points, shift)[:-1] > low).sum()) - count) == 1


def exact_time(points, shift, k):
    u, s = Fraction(points - 1 - k, points - 1), Fraction(shift)
    return s * u / (1 + (s - 1) * u)


@pytest.mark.parametrize(("think", "empty"), [(True, False), (False, True)])
@torch.no_grad()
def test_the_unconditional_context_is_the_system_prompt_or_nothing(policy, think, empty):
    branches = prepare(policy, given(policy, think), 3, Guidance(4.0, 2.0))
    assert branches is not None and branches.image is not None
    assert branches.text.valid.shape[0] == 6 and branches.image.valid.shape[0] == 6
    assert (branches.text.length == 0) == empty
    system = policy.prefill([given(policy, think)[0][:-1]])
    assert branches.text.rope.tolist() == system.rope.tolist() * 6
    read = policy.prefill([segments for segments in given(policy, think) for _ in range(3)])
    assert branches.image.rope.tolist() == read.rope.tolist()
    x, t = normal(6, 8, 16), torch.full((6,), 0.5)
    assert_same_answers(policy.velocity(branches.image, x, t), policy.velocity(read, x, t), policy)


@pytest.mark.parametrize("renorm", ["global", "channel", "text_channel"])
@torch.no_grad()
def test_the_mix_is_the_formula_row_by_row(policy, renorm):
    some = Guidance(4.0, 2.0, renorm=renorm, renorm_min=0.1)
    branches = prepare(policy, given(policy, True), 2, some)
    context = policy.prefill(given(policy, True)).expand(2)
    x, t = normal(4, 8, 16), torch.full((4,), 0.7)
    v = policy.velocity(context, x, t)
    mixed = guided(policy, v, branches, x, t, some)
    for row in range(4):
        text, image = (policy.velocity(b, x, t)[row : row + 1] for b in (branches.text, branches.image))
        alone = flow.guided_velocity(
            v[row : row + 1], text, image, text_scale=4.0, image_scale=2.0, renorm=renorm, renorm_min=0.1
        )
        assert_same_sums(mixed[row], alone[0], terms=v[row].numel(), scale=4.0)  # the norm is a sum of all of them


@pytest.mark.parametrize(("guidance", "branches"), [(Guidance(), 0), (Guidance(3.0), 1), (Guidance(3.0, 2.0), 2)])
def test_guided_pictures_do_not_depend_on_who_else_is_drawn(policy, guidance, branches):
    sampling = replace(EVALUATION, guidance=guidance)
    together = sample(policy, prompts(3), sampling=sampling, group_size=2)
    (alone,) = sample(policy, prompts(3)[2:], sampling=sampling, group_size=1)
    forwards = (1 + branches) * (sampling.num_points - 1)
    assert_same_answers(together[4].images[0].latents, alone.images[0].latents, policy, forwards=forwards)


def test_only_the_steps_of_the_interval_are_guided(policy):
    grid = flow.timesteps(EVALUATION.num_points, EVALUATION.shift).tolist()
    sampling = replace(EVALUATION, guidance=Guidance(3.0, interval=(grid[2], 1.0)))
    with counted_forwards(policy) as calls:
        sample(policy, sampling=sampling, think=False)
    assert (
        len(calls) == 1 + (EVALUATION.num_points - 1) + 2
    )  # prefill (the empty branch needs none), steps, guided ones
