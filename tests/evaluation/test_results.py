"""From records to figures: a failed answer is never a zero, and no interval or headline is without grounds."""

import math

import numpy as np
import pytest

from unigrpo.evaluation.results import differences, figures
from unigrpo.evaluation.statistics import interval, judged_interval, paired_difference
from unigrpo.evaluation.suites import UNSEEN, Suite, answer, checked, no_answer, version_of
from unigrpo.trajectory import Prompt


def line(position, sample=0, **record):
    return {"position": position, "sample": sample, "prompt": f"prompt {position}", **record}


def right(position, correct, category="a", sample=0, **other):
    return line(position, sample, **answer(category, correct=correct, **other))


def test_the_headline_is_a_mean_over_categories_with_an_interval_over_prompts():
    records = [right(i, i < 10, "few" if i < 20 else "many", s) for i in range(60) for s in range(2)]
    found = figures(records, headline="correct", average="categories")
    assert found["headline"]["value"] == pytest.approx((0.5 + 0.0) / 2) and found["headline"]["name"] == "score"
    assert found["categories"]["few"]["value"] == 0.5 and found["categories"]["few"]["prompts"] == 20
    # 20 prompts with p = 1/2: standard error sqrt(1/4/20) = 0.112, and half of it for the mean of two categories
    low, high = found["categories"]["few"]["low"], found["categories"]["few"]["high"]
    assert low == pytest.approx(0.5 - 1.96 * 0.112, abs=0.05) and high == pytest.approx(0.5 + 1.96 * 0.112, abs=0.05)
    assert found["headline"]["high"] - found["headline"]["low"] == pytest.approx((high - low) / 2, abs=0.03)
    assert found["categories"]["many"]["low"] is None and "show no spread" in found["categories"]["many"]["why"]
    assert (found["pictures"], found["prompts"], found["missing"]) == (120, 60, 0)


def test_below_twenty_prompts_there_is_no_interval_and_a_sentence_why():
    found = figures([right(i, i % 2 == 0) for i in range(19)], headline="correct", average="pictures")["headline"]
    assert found["value"] == pytest.approx(10 / 19) and found["low"] is None and "20 are needed" in found["why"]


def test_a_failed_answer_counts_nowhere():
    records = [right(i, True) for i in range(9)] + [line(9, **no_answer("a", "judge: 500"))]
    found = figures(records, headline="correct", average="pictures")
    assert found["headline"]["value"] == 1.0  # with a zero it would be 0.9
    assert found["failed"] == {"count": 1, "reasons": [["judge: 500", 1]]}
    assert found["categories"]["a"]["failed"] == 1


@pytest.mark.parametrize(("failed", "missing", "quoted"), [(2, 0, True), (3, 0, False), (0, 3, False), (1, 2, False)])
def test_without_too_many_answers_there_is_no_headline(failed, missing, quoted):
    records = [right(i, True) for i in range(10 - failed - missing)]
    records += [line(20 + i, **no_answer("a", "why")) for i in range(failed)]
    headline = figures(records, headline="correct", average="pictures", expected=10)["headline"]
    assert (headline["value"] is not None) == quoted
    assert quoted or "of 10 pictures have no answer" in headline["why"]


def test_values_are_figures_too_and_further_figures_are_asked():
    records = [line(i, **answer("a", exam=0.5, values={"soft": i / 10, "none": None})) for i in range(3)]
    found = figures(records, headline="exam", average="pictures", further=lambda r: {"n": len(r)})
    assert found["figures"]["soft"]["value"] == pytest.approx(0.1) and "none" not in found["figures"]
    assert found["further"] == {"n": 3} and found["headline"]["name"] == "exam score"


def test_further_figures_are_of_what_the_examiner_was_shown():
    failed = checked([{**answer("a", values={"soft": 0.5}), "failed": "down"}], 1, "it")[0]
    assert failed["values"] == {"soft": None}
    records = [line(0, **failed), line(1, **no_answer("a", "damaged", detail=UNSEEN))]
    found = figures(
        records, headline="exam", average="pictures", further=lambda r: {"n": [x["values"]["soft"] for x in r]}
    )
    assert found["further"] == {"n": [None]} and found["failed"]["count"] == 2


def test_nothing_at_all():
    found = figures([], headline="exam", average="pictures", expected=4)
    assert found["headline"]["value"] is None and found["missing"] == 4


def test_the_interval_of_one_side_is_that_of_a_difference_to_nothing():
    values = np.random.default_rng(0).random(80)
    clusters = np.repeat(np.arange(40), 2)
    one, other = interval(values, clusters), paired_difference(np.zeros(80), values, clusters)
    assert one == {"value": other["difference"], "low": other["low"], "high": other["high"]}
    assert judged_interval(np.full(80, np.nan), clusters)["value"] is None


def test_differences_are_paired_over_the_prompts_of_both():
    left = [right(i, i % 2 == 0) for i in range(40)]
    same = differences(left, [right(i, i % 2 == 0) for i in range(10, 60)], "correct", "pictures")["correct"]
    assert same["difference"] == 0.0 and same["prompts"] == 30
    better = differences(left, [right(i, i % 4 != 1) for i in range(40)], "correct", "pictures")["correct"]
    assert better["difference"] == pytest.approx(0.25) and better["low"] > 0
    assert differences(left, [right(i, True) | {"prompt": "x"} for i in range(40)], "correct", "pictures") == {}


def test_a_difference_counts_the_prompts_of_which_both_sides_know_the_figure():
    left = [right(i, i % 2 == 0) | {"values": {"plan": 1.0}} for i in range(40)]
    theirs = [one | {"values": {"plan": None if i % 4 else 0.0}} for i, one in enumerate(left)]
    found = differences(left, theirs, "correct", "pictures")
    assert (found["correct"]["prompts"], found["plan"]["prompts"]) == (40, 10)


def test_answers_of_examiners_are_checked():
    good = answer("a", correct=True)
    assert checked([good], 1, "it") == [good]
    with pytest.raises(ValueError, match="it gave 0 records for 1 picture:"):
        checked([], 1, "it")
    with pytest.raises(ValueError, match="a record without exam"):
        checked([{k: v for k, v in good.items() if k != "exam"}], 1, "it")
    (found,) = checked([answer("a", exam=math.nan)], 1, "it")
    assert found["exam"] is None and found["failed"] == "exam is nan"


def test_a_version_is_that_of_words_and_metadata():
    prompts = [Prompt(0, "a"), Prompt(1, "b", {"k": 1})]
    suite = Suite("s", prompts, lambda *given: [])  # type: ignore[arg-type]
    assert suite.version == version_of(prompts) and len(suite.version) == 16
    assert suite.limited(1).version != suite.version != version_of([Prompt(0, "a"), Prompt(1, "b", {"k": 2})])
