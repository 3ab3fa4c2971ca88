"""Weighted sums of rewards, with the parts of each kept under their names."""

import pytest
import torch

from unigrpo.rewards.composite import CompositeReward, WeightedReward
from unigrpo.rewards.protocol import RewardFault, RewardInput, RewardOutput

GIVEN = RewardInput(torch.zeros(2, 3, 4, 4), ["a", "b"], [{}, {}], ["red", "blue"])


def first(images, prompts, metadata, thinking):
    return RewardOutput([1.0, 0.0], {"exam": [0.5, 0.25]})


def second(images, prompts, metadata, thinking):
    return [10.0, 20.0]


def test_one_reward_keeps_its_names():
    output = CompositeReward((WeightedReward("verifier", first),))(GIVEN)
    assert output.values == [1.0, 0.0] and dict(output.parts) == {"exam": [0.5, 0.25]}


def test_several_are_summed_and_their_names_prefixed():
    output = CompositeReward((WeightedReward("verifier", first, 2.0), WeightedReward("taste", second, -0.1)))(GIVEN)
    assert output.values == pytest.approx([1.0, -2.0])
    assert dict(output.parts) == {"verifier": [1.0, 0.0], "verifier/exam": [0.5, 0.25], "taste": [10.0, 20.0]}


def test_a_fault_of_any_stops_all():
    broken = WeightedReward("broken", lambda *given: [1.0])
    with pytest.raises(RewardFault, match="'broken' gave 1 values for 2 pictures"):
        CompositeReward((WeightedReward("verifier", first), broken))(GIVEN)


def test_none_at_all_is_refused():
    with pytest.raises(ValueError, match="at least one reward"):
        CompositeReward(())
