"""A reward gives one finite number per picture, or a fault that says whose and what."""

import asyncio
import math
import os
import sys

import pytest
import torch

from small_models import numbered
from unigrpo.rewards.protocol import RewardFault, RewardInput, RewardOutput, call, metadata_of
from unigrpo.trajectory import Prompt


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
    assert call("r", constant(output), given()) == output


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


def colour(metadata):
    return metadata["colour"]


def test_an_error_comes_with_the_lines_of_the_users_own_code():
    def reward(images, prompts, metadata, thinking):
        return [colour(m) for m in metadata]

    with pytest.raises(RewardFault) as caught:
        call("judge", reward, given())
    first, *frames = str(caught.value).splitlines()
    assert first == "reward 'judge' raised KeyError: 'colour'"
    where = [line.split(", in ")[1] for line in frames if line.startswith(f'  File "{__file__}", line ')]
    assert (where[0], where[-1]) == ("reward", "colour") and '    return metadata["colour"]' in frames
    assert not any(f"rewards{os.sep}protocol.py" in line for line in frames)


def test_an_endless_recursion_is_told_in_few_lines():
    def deeper(depth):
        return shallower(depth + 1)

    def shallower(depth):
        return deeper(depth)

    with pytest.raises(RewardFault, match="RecursionError") as caught:
        call("judge", lambda *given: deeper(0), given())
    assert "more ..." in str(caught.value) and len(str(caught.value).splitlines()) < 40


def test_a_reward_that_leaves_the_program_is_a_fault():
    with pytest.raises(RewardFault, match="'judge' raised SystemExit: 0"):
        call("judge", lambda *given: sys.exit(0), given())


async def waits(images, prompts, metadata, thinking):
    await asyncio.sleep(0)
    assert not torch.is_grad_enabled()
    return images.mean((1, 2, 3))


class KeepsItsLoop:
    """What an open connection does: it works only on the loop that it was made on."""

    loop = None

    async def __call__(self, images, prompts, metadata, thinking):
        now = asyncio.get_running_loop()
        self.loop = self.loop or now
        assert self.loop is now and not now.is_closed()
        return [0.0] * len(prompts)


def test_coroutines_are_awaited_with_and_without_a_running_loop():
    async def notebook():
        return call("r", waits, given())

    plain = call("r", waits, given())
    assert plain == asyncio.run(notebook()) == call("r", lambda *seen: waits(*seen), given())
    assert plain.values == pytest.approx(given().images.mean((1, 2, 3)).tolist())
    reward = KeepsItsLoop()
    assert call("r", reward, given()) == call("r", reward, given())


def test_a_coroutine_that_fails_is_told_with_its_lines():
    async def reward(images, prompts, metadata, thinking):
        await asyncio.sleep(0)
        raise ConnectionError("no route to the judge")

    with pytest.raises(RewardFault) as caught:
        call("judge", reward, given())
    lines = str(caught.value).splitlines()
    assert lines[0] == "reward 'judge' raised ConnectionError: no route to the judge"
    assert len(lines) == 3 and lines[1].startswith(f'  File "{__file__}"')


def test_rewards_see_the_pictures_of_an_edit():
    shown = torch.tensor([0, 51, 255], dtype=torch.uint8)[:, None, None].expand(3, 2, 5)
    edit, plain = Prompt(0, "make it red", {"kind": "x"}, (shown,)), Prompt(1, "a cup", {"kind": "y"})
    first, again, last = metadata_of([edit, edit, plain])
    assert last == {"kind": "y"} and first["kind"] == "x" and edit.metadata == {"kind": "x"}
    assert len(again["images"]) == 1 and torch.allclose(first["images"][0][:, 1, 3], torch.tensor([0.0, 0.2, 1.0]))
    assert first["images"][0].dtype == torch.float32 and first["images"][0].shape == (3, 2, 5)
