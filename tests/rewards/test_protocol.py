"""A reward gives one finite number per picture, or a fault that says whose and what."""

import math

import pytest
import torch

from small_models import numbered
from unigrpo.rewards.protocol import RewardFault, RewardInput, RewardOutput, call


def given(count=3):
    prompts = numbered(count, kind="x")
    return RewardInput(
        torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0)),
        [p.text for p in prompts],
        [p.metadata for p in prompts],
        [None] * count,
    )


def constant(answer):
    return lambda images, prompts, metadata, thinking: answer


def test_a_reward_sees_what_it_was_promised():
    seen = []

    def reward(images, prompts, metadata, thinking):
        seen.append((images.shape, list(prompts), [dict(m) for m in metadata], list(thinking)))
        return [1.0, 2.0, 3.0]

    assert list(call("r", reward, given()).values) == [1.0, 2.0, 3.0]
    assert seen == [((3, 3, 4, 4), ["prompt 0", "prompt 1", "prompt 2"], [{"kind": "x"}] * 3, [None] * 3)]


@pytest.mark.parametrize("answer", [[1, 0.5, 0], (1.0, 0.5, 0.0), torch.tensor([1.0, 0.5, 0.0])])
def test_plain_lists_are_accepted(answer):
    output = call("r", constant(answer), given())
    assert [float(v) for v in output.values] == [1.0, 0.5, 0.0] and dict(output.parts) == {}


def test_parts_are_kept():
    output = RewardOutput([1.0, 0.5, 0.0], {"sharp": [0.1, 0.2, 0.3]})
    assert call("r", constant(output), given()) is output


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named(bad):
    with pytest.raises(RewardFault, match=r"'judge' gave (nan|inf|-inf) for picture 1 \('prompt 1'\)"):
        call("judge", constant([1.0, bad, 0.0]), given())


def test_a_wrong_count_is_named():
    with pytest.raises(RewardFault, match="'judge' gave 2 values for 3 pictures"):
        call("judge", constant([1.0, 0.0]), given())


def test_an_exception_is_named_and_kept():
    def reward(images, prompts, metadata, thinking):
        raise ConnectionError("no route to the judge")

    with pytest.raises(RewardFault, match="'judge' raised ConnectionError: no route to the judge") as caught:
        call("judge", reward, given())
    assert isinstance(caught.value.__cause__, ConnectionError)


def test_errors_are_never_a_zero():
    output = RewardOutput([1.0, 0.0, 0.0], errors={2: "timed out", 1: "late"})
    with pytest.raises(RewardFault, match=r"'judge' failed on 2 of 3 pictures; picture 2 \('prompt 2'\): timed out"):
        call("judge", constant(output), given())


def test_a_fault_is_for_users():
    assert issubclass(RewardFault, ValueError)
