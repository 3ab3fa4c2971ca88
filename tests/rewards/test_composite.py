"""Weighted sums of rewards, with the parts of each kept under their names."""

import pytest
import torch

from unigrpo.rewards.composite import CompositeReward, WeightedReward
from unigrpo.rewards.protocol import DifferentiableReward, RewardFault, RewardInput, RewardOutput

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
    with pytest.raises(RewardFault, match="'broken' gave 1 value for 2 pictures"):
        CompositeReward((WeightedReward("verifier", first), broken))(GIVEN)


def test_none_at_all_is_refused():
    with pytest.raises(ValueError, match="at least one reward"):
        CompositeReward(())


def spoils(images, prompts, metadata, thinking):
    """A reward that writes into everything it was given."""
    images.mul_(0)
    for known in metadata:
        known.clear() if "images" not in known else known["images"][0].zero_()
    prompts[0], thinking[0] = "", ""
    return [0.0, 0.0]


class Spoiling(DifferentiableReward):
    """The same, with a gradient."""

    def score(self, images, prompts, metadata):
        metadata[0]["images"][0].zero_()
        return images.mul_(2).sum((1, 2, 3))


class Plain(DifferentiableReward):
    def score(self, images, prompts, metadata):
        return images.sum((1, 2, 3)) + torch.stack([m["images"][0].sum() for m in metadata])


def what_rewards_are_given():
    shared = {"kind": "x", "images": [torch.ones(3, 2, 2)]}
    return RewardInput(torch.ones(2, 3, 4, 4), ["a", "b"], [shared, shared], ["red", "blue"])


def test_no_reward_changes_what_another_sees():
    seen = []

    def looks(images, prompts, metadata, thinking):
        seen.append((images.sum(), list(prompts), [m["images"][0].sum() for m in metadata], list(thinking)))
        return [0.0, 0.0]

    given = what_rewards_are_given()
    rewards = [WeightedReward(str(n), reward) for n, reward in enumerate([looks, spoils, looks, spoils, looks])]
    CompositeReward(tuple(rewards))(given)
    assert seen == [(96, ["a", "b"], [12, 12], ["red", "blue"])] * 3
    assert given.images.sum() == 96 and given.metadata[0]["images"][0].sum() == 12


def test_no_reward_changes_what_another_sees_where_gradients_are_asked_for():
    given = what_rewards_are_given()
    images = given.images.clone().requires_grad_()
    rewards = (WeightedReward("spoiling", Spoiling(), 1.0), WeightedReward("plain", Plain(), 10.0))
    total = CompositeReward(rewards).differentiable(images, given.prompts, given.metadata)
    total.sum().backward()
    assert total.tolist() == [2 * 48 + 10 * (48 + 12)] * 2
    assert images.grad is not None and torch.all(images.grad == 12) and given.metadata[0]["images"][0].sum() == 12


def test_pictures_of_one_prompt_do_not_share_their_metadata():
    """Eight samples of a group have one prompt; a reward that takes something out of each must find it in each."""
    given = what_rewards_are_given()
    CompositeReward((WeightedReward("r", lambda i, p, metadata, t: [float(m.pop("kind") == "x") for m in metadata]),))(
        given
    )
    assert given.metadata[0]["kind"] == "x"


@pytest.mark.parametrize("scores", [torch.tensor(1.0), torch.ones(3), torch.ones(2, 2), [1.0, 2.0]])
def test_gradients_need_one_score_per_picture(scores):
    reward = type("Wrong", (DifferentiableReward,), {"score": lambda self, *given: scores})()
    composite = CompositeReward((WeightedReward("wrong", reward),))
    with pytest.raises(RewardFault, match="reward 'wrong'"):
        composite.differentiable(torch.ones(2, 3, 4, 4), ["a", "b"], [{}, {}])
    columns = {"score": lambda self, images, *other: images.mean((1, 2, 3))[:, None]}
    column = type("Column", (DifferentiableReward,), columns)
    composite = CompositeReward((WeightedReward("column", column()),))
    assert composite.differentiable(torch.ones(2, 3, 4, 4), ["a", "b"], [{}, {}]).tolist() == [1.0, 1.0]
    assert composite(GIVEN).values == [0.0, 0.0]
