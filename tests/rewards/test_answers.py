"""Whatever a reward answers is read by one function: as numbers, or refused in words; keys of a dict are no numbers."""

from collections import deque
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from unigrpo.rewards.answers import RewardFault, alike, commonest, read_numbers
from unigrpo.rewards.protocol import RewardInput, RewardOutput, call

PROMPTS = ["a", "b", "c"]
WANTED = [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    "answer",
    [
        (1, 0.5, 0),
        deque(WANTED),
        [Decimal(1), Fraction(1, 2), Decimal("0")],
        [np.float32(1), np.float64(0.5), np.int64(0)],
        [torch.tensor(1.0), torch.tensor([0.5]), np.array(0.0)],
        np.array(WANTED, dtype=np.float16),
        np.array(WANTED)[:, None],
        torch.tensor(WANTED, dtype=torch.bfloat16),
        torch.tensor(WANTED, requires_grad=True)[:, None],
        torch.tensor(WANTED).to_sparse(),
    ],
    ids=lambda answer: type(answer).__name__,
)
def test_numbers_of_all_kinds_are_read(answer):
    numbers, faults = read_numbers("r", answer, 3)
    assert not faults and numbers == WANTED and all(type(number) is float for number in numbers)


REFUSED = [
    (
        {"exam": [1.0, 0.5, 0.0], "sharp": WANTED},
        "several values .exam, sharp.: say which one counts",
    ),
    ({1: "a", 2: "b", 3: "c"}, "a mapping that is none of names to numbers"),
    ({}, "a mapping that is none of names"),
    ({1.0, 2.0, 3.0}, "a set, which has no order"),
    (None, "nothing .None; is a return missing"),
    ("0.5", "the text '0.5'"),
    (b"abc", "the text"),
    (0.5, "one number for all pictures .0.5"),
    ((value for value in WANTED), "of the type generator"),
    ({1: 1.0}.values(), "of the type dict_values"),
    (np.array(["a", "b", "c"]), "an array of <U1"),
    (np.array([1, 2, None]), "an array of object"),
    (np.array([True, False, True]), "an array of bool"),
    (np.ones(3) * 1j, "an array of complex128"),
    (np.ma.masked_array(WANTED, [0, 1, 0]), "gave None for picture 1 .'b'"),
    (torch.ones(3, dtype=torch.complex64), "a tensor of torch.complex64"),
    (torch.ones(3, dtype=torch.bool), "a tensor of torch.bool"),
    (torch.ones(3, device="meta"), "on the meta device"),
    (torch.tensor(1.0), r"a tensor of shape \[\]"),
    (torch.ones(1, 3), r"a tensor of shape \[1, 3\]"),
    (torch.ones(3, 1, 1), r"a tensor of shape \[3, 1, 1\]"),
    (np.ones((3, 2)), r"an array of shape \[3, 2\]"),
    ([1.0, 0.5], "gave 2 values for 3 pictures"),
    ([1.0, "0.5", 0.0], "gave 0.5 for picture 1 .'b'.: it must be a finite number"),
    ([1.0, True, 0.0], r"gave True for picture 1 .*write float"),
    ([1.0, 1j, 0.0], "gave 1j for picture 1"),
    ([1.0, [0.5], 0.0], r"gave \[0.5\] for picture 1"),
    ([1.0, 10**400, 0.0], "picture 1 .*finite"),
    ([1.0, 10**5000, 0.0], "an integer of thousands of digits for picture 1"),
    ([1.0, Decimal("sNaN"), 0.0], "sNaN for picture 1"),
    ([1.0, Decimal("inf"), 0.0], "Infinity for picture 1"),
    ([1.0, torch.ones(2), 0.0], "for picture 1"),
    ([1.0, torch.ones((), device="meta"), 0.0], "for picture 1"),
]


@pytest.mark.parametrize(("answer", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_anything_else_is_refused_in_words(answer, said):
    with pytest.raises(RewardFault, match=said):
        call("r", lambda *given: answer, GIVEN)


GIVEN = RewardInput(torch.zeros(3, 3, 4, 4), PROMPTS, [{}] * 3, [None] * 3)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ({"values": {"a": 1}}, "reward 'r' gave a mapping with the keys 'a'"),
        (RewardOutput(WANTED, {}, {3: "late"}), "an error for picture 3, and there are 3"),
        (RewardOutput(WANTED, {"sharp": {"a": 1}}), "part 'sharp' of reward 'r' gave a mapping"),
        (RewardOutput(WANTED, [WANTED]), "parts that are no mapping"),
        (RewardOutput(WANTED, {1: WANTED}), "parts that are no mapping of a name"),
        (RewardOutput(WANTED, {}, {"a": "late"}), "errors that are no mapping of a picture's index"),
        (RewardOutput(WANTED, {}, [None, "late"]), "errors that are no mapping"),
    ],
)
def test_outputs_of_the_wrong_form_are_refused_in_words(output, said):
    with pytest.raises(RewardFault, match=said):
        call("r", lambda *given: output, GIVEN)


def test_values_and_parts_may_be_arrays():
    output = call("r", lambda *given: RewardOutput(torch.tensor(WANTED), {"x": np.array(WANTED)[:, None]}), GIVEN)
    assert output == RewardOutput(WANTED, {"x": WANTED})


def test_failures_that_differ_in_names_and_numbers_alone_are_one_kind():
    said = [f"reward 'judge': 1 of {n} points have no answer; 'Is there a {n}?': status 503" for n in range(2, 5)]
    (commonest_one, rarer) = commonest([*said, "timed out"], 2)
    assert commonest_one == (said[0], 3) and rarer == ("timed out", 1)
    assert alike(said[0]) == alike(said[1]) != alike("timed out")
