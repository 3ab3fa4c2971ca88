"""The form and the length of the thinking: closed forms, and no thinking is an error and not a zero."""

import math

import pytest
import torch

from unigrpo.ranges import ConfigError
from unigrpo.rewards.protocol import RewardFault, RewardInput, call
from unigrpo.rewards.thinking import ThinkFormat, ThinkLength


def judged(reward, *texts):
    return reward(torch.zeros(len(texts), 3, 4, 4), ["p"] * len(texts), [{}] * len(texts), list(texts))


GOOD = "<plan> a dog </plan>\nso: <check>seen</check>"
TEXTS = {
    GOOD: (1, 1),
    "before <plan>a</plan><check>b</check> after": (1, 1),
    "<check>b</check> <plan>a</plan>": (0, 1),  # the wrong order
    "<plan>a</plan>": (0, 1 / 2),
    "<plan>a</plan> <check> \n </check>": (0, 1 / 2),  # nothing inside
    "<plan>a</plan> <check>b": (0, 1 / 2),  # never closed
    "<plan>a</plan><plan>a</plan> <check>b</check>": (0, 1 / 2),  # twice
    "<plan> a <check>b</check></plan>": (0, 1),  # one inside the other is not one after the other
    "</plan>a<plan> <check>b</check>": (0, 1 / 2),
    "": (0, 0),
}


def test_tags_stand_there_once_in_order_with_something_inside():
    strict, partial = ThinkFormat(tags=["plan", "<check>"]), ThinkFormat(tags=["plan", "check"], partial=True)
    output = judged(strict, *TEXTS)
    assert list(output.values) == [value for value, _ in TEXTS.values()]
    assert list(output.parts["tags"]) == [share for _, share in TEXTS.values()] and not output.errors
    assert list(judged(partial, *TEXTS).values) == [1, 1, 0, 1 / 2, 1 / 2, 1 / 2, 1 / 2, 0, 1 / 2, 0]


def test_a_pattern_matches_the_whole_thinking():
    reward = ThinkFormat(pattern=r"I (see|draw) .+\.")
    output = judged(reward, "I see a dog.", "I draw some\nlines.", "I see a dog. So", "so I see a dog.", "")
    assert list(output.values) == [1, 1, 0, 0, 0] == list(output.parts["pattern"])
    both = ThinkFormat(tags=["plan"], pattern=r"<plan>.*</plan>")
    assert list(judged(both, "<plan>a</plan>", "x <plan>a</plan>", "<plan></plan>").values) == [1, 0, 0]


@pytest.mark.parametrize(
    ("words", "value"), [(0, 0.7), (1, 0.8), (3, 1), (5, 1), (6, 0.9), (14, 0.1), (15, 0), (99, 0)]
)
def test_a_length_outside_costs_its_distance_times_the_slope(words, value):
    output = judged(ThinkLength(low=3, high=5, slope=0.1), " so\n" * words)
    assert output.values[0] == pytest.approx(value) and output.parts["length"] == [words]


def test_characters_and_a_lower_end():
    reward = ThinkLength(low=2, high=4, slope=1.0, least=-2.5, unit="characters")
    assert list(judged(reward, "", "a", "ab", "abcd", "abcde", "abcdefghij").values) == [-1, 0, 1, 1, 0, -2.5]
    assert list(judged(ThinkLength(low=2, high=2, slope=0), "", "a b c").values) == [1, 1]


@pytest.mark.parametrize("reward", [ThinkFormat(tags=["a"]), ThinkLength()])
def test_no_thinking_is_an_error_and_never_a_zero(reward):
    output = judged(reward, "<a>b</a>", None)
    assert output.values[0] == 1 and math.isnan(output.values[1]) and list(output.errors) == [1]
    with pytest.raises(RewardFault, match=r"failed on 1 of 2 pictures; picture 1 .*it has no thinking"):
        call("think", reward, RewardInput(torch.zeros(2, 3, 4, 4), ["p", "q"], [{}, {}], ["<a>b</a>", None]))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ThinkFormat(), "nothing to look for: give tags"),
        (lambda: ThinkFormat(tags="plan"), "tags = 'plan' must be a list of names"),
        (lambda: ThinkFormat(tags=["a", "a"]), "names a tag twice"),
        (lambda: ThinkFormat(tags=["<>"]), "must be a list of names"),
        (lambda: ThinkFormat(pattern="(a"), r"pattern = '\(a' is no regular expression"),
        (lambda: ThinkLength(low=9, high=3), "low = 9 is above high = 3"),
        (lambda: ThinkLength(slope=-1), "slope = -1 must be a number, at least 0"),
        (lambda: ThinkLength(slope=math.nan), "slope = nan must be a number"),
        (lambda: ThinkLength(low=True), "low = True must be a whole number"),
        (lambda: ThinkLength(least=2.0), "least = 2.0 is above 1"),
        (lambda: ThinkLength(unit="tokens"), "unit = 'tokens' must be one of words, characters"),
    ],
)
def test_wrong_arguments_are_one_sentence(make, said):
    with pytest.raises(ConfigError, match=said):
        make()
