"""Rollouts in parts: how an iteration's samples are cut, and that cutting changes nothing."""

import pytest
import torch

import tiny_runs
from tolerances import assert_same_answers
from unigrpo.rollout.sample import portions
from unigrpo.training.clock import Clock


@pytest.mark.parametrize(
    ("batch", "cut"),
    [
        (None, [(["a", "b", "c"], 0, 4)]),
        (100, [(["a", "b", "c"], 0, 4)]),
        (8, [(["a", "b"], 0, 4), (["c"], 0, 4)]),
        (7, [(["a"], 0, 4), (["b"], 0, 4), (["c"], 0, 4)]),
        (3, [(["a"], 0, 3), (["a"], 3, 1), (["b"], 0, 3), (["b"], 3, 1), (["c"], 0, 3), (["c"], 3, 1)]),
    ],
)
def test_parts_hold_whole_groups_or_a_part_of_one(batch, cut):
    assert [(list(some), first, count) for some, first, count in portions("abc", 4, batch)] == cut


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_the_batch_changes_no_sample(tmp_path, batch):
    whole = tiny_runs.trainer_of(tmp_path / "a")
    parted = tiny_runs.trainer_of(tmp_path / "b", rollout__batch=batch)
    ones, others = (t.parts.source.collect(t.parts.policy, 0, Clock()) for t in (whole, parted))
    policy, steps = whole.parts.policy, whole.recipe.rollout.num_points - 1
    for one, other in zip(ones.trajectories, others.trajectories, strict=True):
        assert (one.prompt, one.sample) == (other.prompt, other.sample)
        assert torch.equal(one.sampled_texts[0].ids, other.sampled_texts[0].ids)
        assert_same_answers(one.images[0].latents, other.images[0].latents, policy, forwards=steps)
        assert one.images[0].path.steps == other.images[0].path.steps
        assert one.advantage == pytest.approx(other.advantage, abs=1e-3)
    assert ones.pictures.shape == others.pictures.shape
