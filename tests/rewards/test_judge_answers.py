"""What counts as yes and no, in which order, and that nothing else does."""

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unigrpo.rewards.judge_answers import answers_in, first_message, from_logprobs, probability_of_yes, without_thinking

NAMES = ["choices", "message", "content", "logprobs", "token", "logprob", "top_logprobs", "answer"]


def token(word, **top):
    rows = [{"token": name.replace("_", " "), "logprob": math.log(p)} for name, p in top.items()]
    return {"token": word, "logprob": 0.0, "top_logprobs": rows}


def test_soft_scores_are_over_all_variants_of_both_words():
    place = token("Yes", Yes=0.4, _yes=0.1, YES=0.1, No=0.15, _no=0.05, Maybe=0.2)
    assert math.isclose(from_logprobs([place]), 0.6 / 0.8)
    assert from_logprobs([token("Yes", Yes=0.9)]) == 1.0


def test_the_answer_is_the_first_word_after_the_thinking():
    thought = [
        token("<think>"),
        token("No", No=1.0),
        token("</think>"),
        token("\n\n"),
        token("**"),
        token("Yes", Yes=0.7, No=0.3),
    ]
    assert math.isclose(from_logprobs(thought), 0.7)
    assert from_logprobs(thought[:2]) is None  # cut in its thinking
    assert math.isclose(
        from_logprobs([token("so"), token(" </"), token("think"), token("> "), token("no", no=0.8, yes=0.2)]), 0.2
    )


def test_a_first_word_that_is_no_answer_has_no_log_probability():
    assert from_logprobs([token("The", The=0.9, Yes=0.1)]) is None
    assert from_logprobs([token("Yes")]) is None
    assert from_logprobs([]) is None and from_logprobs([None]) is None and from_logprobs([{"token": 3}]) is None
    assert (
        from_logprobs([{"token": "Yes", "top_logprobs": [None, {"token": None}, {"token": "yes", "logprob": "x"}]}])
        is None
    )


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("Yes", 1), ("no.", 0), ("**Yes**, it is.", 1), (" \n- No", 0), ("NO!", 0),
        ("<think>yes yes</think>No", 0), ("it is so</think>\nYes.", 1), ("<THINK>a</THINK> yes", 1),
        ('{"answer": "yes"}', 1), ('```json\n{"answer": "No"}\n```', 0), ('"yes"', 1), ("true", 1), ('["no"]', 0),
        ('The result is {"answer": false}', 0),
    ],
)  # fmt: skip
def test_words_are_read(text, yes):
    assert probability_of_yes(text, ()) == yes


@pytest.mark.parametrize(
    "text", [None, "", "Maybe", "Yesterday", "nothing", "The answer is yes", "<think>yes", '{"answer": "maybe"}',
             '{"verdict": "yes"}', "[]", "1", "null", "[" * 100_000, '{"answer": ["yes"]}'],
)  # fmt: skip
def test_other_words_are_no_answer(text):
    assert probability_of_yes(text, ()) is None


def test_log_probabilities_come_before_words():
    assert math.isclose(probability_of_yes("No", [token("Yes", Yes=0.7, No=0.3)]), 0.7)
    assert probability_of_yes("No", [token("Well", Well=1.0)]) == 0


def test_lists_have_exactly_one_answer_each():
    assert answers_in('["yes", "No", true]', 3) == [1, 0, 1]
    assert answers_in('<think>["no"]</think> Here:\n```json\n["yes"]\n```', 1) == [1]
    for text in ('["yes"]', '["yes", "no", "no"]', '["yes", "maybe"]', '{"a": "yes"}', "yes, no", None, "", "[]"):
        assert answers_in(text, 2) is None


def test_replies_without_a_choice_have_no_text():
    for reply in (
        None,
        [],
        {},
        {"choices": None},
        {"choices": []},
        {"choices": [None]},
        {"choices": [{"message": None}]},
    ):
        assert first_message(reply) == (None, ())
    assert first_message({"choices": [{"message": {"content": None}, "logprobs": {"content": None}}]}) == (None, ())


def test_without_words_there_is_no_answer_whatever_the_log_probabilities_say():
    place = token("No", No=0.9, Yes=0.1)
    for content in (None, "", "  \n"):
        reply = {"choices": [{"message": {"content": content}, "logprobs": {"content": [place]}}]}
        assert first_message(reply) == (None, ())


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.sampled_from(["Yes", "No", "a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(ANY, ANY, ANY, ANY)
@example(10**400, 0, 0, 0)
@example(-(10**400), 0, 0, 0)
@example(0, 3, 0, 0)
def test_whatever_a_service_says_is_an_answer_between_no_and_yes_or_none(logprob, top, place, reply):
    right = {"token": "yes", "logprob": logprob}
    for tokens in (
        [{"token": "Yes", "top_logprobs": [right, {"token": "No", "logprob": -1.0}]}],
        [{"token": "Yes", "top_logprobs": top}],
        [place, {"token": "Yes", "top_logprobs": [right]}],
        place,
    ):
        logprobs = {"content": tokens}
        for whole in (reply, {"choices": [{"message": {"content": "Hm"}, "logprobs": logprobs}]}):
            text, found = first_message(whole)
            yes = probability_of_yes(text, found)
            assert yes is None or 0.0 <= yes <= 1.0


def test_thinking_is_taken_away():
    assert without_thinking("<think>a</think> b <think>c") == "b"
