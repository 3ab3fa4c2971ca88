"""Evaluations are repeatable, do not depend on how they are cut up, and sum up as the words are defined."""

from dataclasses import replace

import pytest
import torch

import unigrpo.rollout.sample as drawing
from small_models import EOS, EVALUATION, favour, sample, small_policy
from tolerances import assert_same_answers, rounding
from unigrpo.evaluation.evaluator import (
    EVALUATION_ITERATION,
    compare,
    describe_comparison,
    describe_summary,
    evaluate,
    summarise,
    unjudged,
)
from unigrpo.rewards.composite import CompositeReward, WeightedReward
from unigrpo.rollout.guidance import Guidance
from unigrpo.worlds.shapes import fixed
from unigrpo.worlds.shapes.tasks import judge_pictures


@pytest.fixture(scope="module")
def policy():
    return small_policy(image_size=(32, 32))


def run(policy, count=5, samples=2, judge=judge_pictures, think=True, **options):
    held_out = fixed("held-out", count)
    return evaluate(policy, held_out, judge, EVALUATION, samples=samples, seed=0, think=think, **options)


def brightness(images, prompts, thinking):
    """A judge that sees every change of a picture."""
    assert images.dtype == torch.float32 and torch.equal(images, (images * 255).round() / 255)
    return [{"category": p.metadata["category"], "mean": float(i.mean())} for i, p in zip(images, prompts, strict=True)]


def test_the_same_draws_give_the_same_records(policy):
    first, second = run(policy), run(policy)
    assert first.records == second.records and torch.equal(first.pictures, second.pictures)
    assert first.pictures.dtype == torch.uint8 and first.pictures.shape == (10, 3, 32, 32)
    assert [(r["position"], r["sample"]) for r in first.records] == [(p, s) for p in range(5) for s in range(2)]
    assert {"prompt", "thinking", "category", "correct", "exam", "reward", "points", "plan_right", "follow"} <= set(
        first.records[0]
    )


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_cutting_it_up_changes_nothing(policy, batch):
    whole, cut = run(policy, judge=brightness), run(policy, judge=brightness, batch=batch)
    for a, b in zip(whole.records, cut.records, strict=True):
        assert a["thinking"] == b["thinking"] and a["position"] == b["position"]
        byte = 1 / (255 * 3072)  # of one picture may round over
        assert a["mean"] == pytest.approx(b["mean"], abs=byte + rounding(1.0, terms=12))  # added pairwise
    assert int((whole.pictures.int() - cut.pictures.int()).abs().max()) <= 1  # a byte at most, where rounding is near


@pytest.mark.parametrize("batch", [1, 2, 5, 6, 9, 100])
def test_no_call_draws_more_than_the_batch(policy, monkeypatch, batch):
    calls = []
    plain = drawing.rollout

    def counted(policy, episode, prompts, sampling, *, group_size, **options):
        calls.append(len(prompts) * group_size)
        return plain(policy, episode, prompts, sampling, group_size=group_size, **options)

    monkeypatch.setattr(drawing, "rollout", counted)
    records = run(policy, count=4, samples=3, judge=brightness, batch=batch).records
    assert max(calls) <= batch and sum(calls) == 12
    assert [(r["position"], r["sample"]) for r in records] == [(p, s) for p in range(4) for s in range(3)]


def test_latents_do_not_depend_on_the_cut(policy):
    held_out = fixed("held-out", 5)
    options = {"sampling": EVALUATION, "group_size": 2, "iteration": EVALUATION_ITERATION}
    whole = sample(policy, held_out, **options)
    parts = [t for start in range(5) for t in sample(policy, held_out[start : start + 1], **options)]
    for a, b in zip(whole, parts, strict=True):
        assert_same_answers(a.images[0].latents, b.images[0].latents, policy, forwards=EVALUATION.num_points - 1)


def test_a_shorter_evaluation_is_the_beginning_of_a_longer_one(policy):
    long, short = run(policy, judge=brightness), run(policy, count=3, judge=brightness)
    assert [r["thinking"] for r in long.records[:6]] == [r["thinking"] for r in short.records]


def test_records_carry_what_was_thought(policy, monkeypatch):
    favour(monkeypatch, policy, EOS, 2.0)
    thinking = [r["thinking"] for r in run(policy, judge=brightness).records]
    assert all(isinstance(text, str) for text in thinking) and len(set(thinking)) > 2
    plain = run(policy, think=False)
    assert all(r["thinking"] is None and r["parsable"] is None and r["follow"] is None for r in plain.records)
    assert summarise(plain.records)["plan_right"] is None


def record(position, category, correct, exam, *, sample=0, plan=True, follow=None):
    return {
        "position": position,
        "sample": sample,
        "prompt": f"p{position}",
        "category": category,
        "correct": correct,
        "exam": exam,
        "reward": exam / 2,
        "parsable": None if plan is None else follow is not None,
        "plan_right": plan,
        "follow": follow,
    }


RECORDS = [
    record(0, "colour", True, 1.0, follow=True),
    record(1, "colour", False, 0.5, follow=False),
    record(2, "colour", False, 0.0, plan=False),
    record(3, "count", True, 1.0, follow=True),
]


def test_the_score_is_the_mean_over_categories():
    figures = summarise(RECORDS)
    assert figures["score"] == pytest.approx((1 / 3 + 1) / 2)
    assert figures["by_category"] == {"colour": pytest.approx(1 / 3), "count": 1.0}
    assert figures["exam_score"] == pytest.approx(2.5 / 4) and figures["reward"] == pytest.approx(2.5 / 8)
    assert figures["plan_right"] == pytest.approx(3 / 4)  # an unparsable plan is wrong
    assert figures["follow"] == pytest.approx(2 / 3)  # over parsable plans
    assert figures["parsable"] == pytest.approx(3 / 4) and figures["n"] == 4


def test_differences_are_paired():
    after = [replace_record(r, correct=True, exam=1.0) for r in RECORDS]
    result = compare(RECORDS, after)
    assert set(result) == {"score", "exam_score", "reward", "plan_right", "follow", "parsable"}
    assert result["reward"]["difference"] == pytest.approx(0)  # the reward is what it was
    assert result["score"]["difference"] == pytest.approx(1 - (1 / 3 + 1) / 2)
    assert result["exam_score"]["difference"] == pytest.approx(1 - 2.5 / 4)
    assert result["plan_right"]["difference"] == 0.0
    assert all(values["low"] is values["high"] is None for values in result.values())  # four prompts are too few
    same = compare(RECORDS, RECORDS)
    assert all(values["difference"] == 0.0 for values in same.values())


def replace_record(record, **changes):
    return {**record, **changes}


def test_without_thinking_plans_are_not_compared():
    plain = [record(i, "colour", i == 0, 0.5, plan=None) for i in range(3)]
    assert set(compare(plain, plain)) == {"score", "exam_score", "reward"}


@pytest.mark.parametrize("change", [{"position": 9}, {"sample": 1}, {"prompt": "other"}])
def test_other_prompts_cannot_be_compared(change):
    with pytest.raises(ValueError, match="different prompts"):
        compare(RECORDS, [replace_record(RECORDS[0], **change), *RECORDS[1:]])


def test_guided_evaluation_differs(policy):
    guided = replace(EVALUATION, guidance=Guidance(4.0))
    pictures = [
        evaluate(policy, fixed("held-out", 2), brightness, s, samples=1, seed=0, think=True).pictures
        for s in (EVALUATION, guided)
    ]
    assert not torch.equal(*pictures)


# Prompts that nobody judges


def test_the_reward_is_all_that_is_known_without_a_judge(policy):
    def mean(images, prompts, metadata, thinking):
        return [float(image.mean()) for image in images]

    brightest = CompositeReward((WeightedReward("brightness", mean),))

    result = run(policy, judge=unjudged, reward=brightest)
    for r, picture in zip(result.records, result.pictures, strict=True):
        assert r["reward"] == pytest.approx(
            float(picture.float().mean()) / 255, abs=rounding(1.0, terms=12)
        )  # 3072 values, added pairwise
        known = {key for key, value in r.items() if value is not None}
        assert known == {"position", "sample", "prompt", "thinking", "category", "reward"}
    judged = set(run(policy, count=1).records[0]) - {"shown"}  # which only the judge of shapes can say
    assert set(result.records[0]) == judged


def plain(position, reward, category="all"):
    return {**record(position, category, None, 0.0, plan=None), "exam": None, "reward": reward}


def test_without_a_judge_the_reward_takes_the_place_of_the_score():
    some = [plain(0, 1.0, "a"), plain(1, 2.0, "a"), plain(2, 6.0, "b"), plain(3, None, "c")]
    figures = summarise(some)
    assert {key: value for key, value in figures.items() if value is not None} == {
        "reward": 3.0,
        "by_category": {},
        "reward_by_category": {"a": 1.5, "b": 6.0},
        "n": 4,
    }
    assert describe_summary(figures) == "reward 3.000, 4 pictures"
    assert "reward_by_category" not in summarise([plain(0, 1.0), plain(1, 2.0)])  # one category says nothing new
    assert "reward_by_category" not in summarise(RECORDS)
    assert describe_summary(summarise([plain(0, None)])) == "1 picture"


def test_rewards_are_compared_with_an_interval():
    before = [plain(i, float(i % 3)) for i in range(30)]
    after = [plain(i, float(i % 3) + 0.5 + 0.1 * (i % 2)) for i in range(30)]
    result = compare(before, after)
    assert set(result) == {"reward"} and result["reward"]["difference"] == pytest.approx(0.55)
    assert 0.5 < result["reward"]["low"] < 0.55 < result["reward"]["high"] < 0.6
    summary = {"before": summarise(before), "after": summarise(after), "paired": result}
    (line,) = describe_comparison(summary)
    assert line.startswith("reward        1.000 -> 1.550   difference +0.550 (95 % interval +0.5")
    assert describe_comparison({"before": summary["before"]}) == []
    assert set(compare([plain(0, None)], [plain(0, 1.0)])) == set()


def test_a_judged_run_is_described_as_ever():
    figures = summarise(RECORDS)
    assert describe_summary(figures) == (
        "score 0.667, plan right 0.750, picture follows plan 0.667, plan parsable 0.750, exam score 0.625, 4 pictures"
    )
    summary = {"before": figures, "after": figures, "paired": compare(RECORDS, RECORDS)}
    starts = [line[:13].strip() for line in describe_comparison(summary)]
    assert starts == ["score", "exam score", "plan right", "follows plan", "plan parsable"]


@pytest.mark.parametrize(
    ("prompts", "why"), [(1, "1 prompt is too few"), (6, "6 prompts are too few"), (19, "19 prompts")]
)
def test_few_prompts_have_no_interval_whatever_their_pictures(prompts, why):
    before = [{**plain(i, float(i % 3)), "sample": s} for i in range(prompts) for s in range(4)]
    after = [{**r, "reward": r["reward"] + 0.024 + 0.01 * (r["position"] % 2)} for r in before]
    entry = compare(before, after)["reward"]
    assert entry["low"] is None and entry["high"] is None and entry["difference"] > 0.02 and why in entry["why"]
    (line,) = describe_comparison({"before": summarise(before), "after": summarise(after), "paired": {"reward": entry}})
    assert "95 %" not in line and f"(no interval: {why}" in line


def test_prompts_that_all_change_alike_show_no_spread():
    before = [plain(i, 0.5) for i in range(40)]
    entry = compare(before, [{**r, "reward": 0.75} for r in before])["reward"]
    assert entry["low"] is None and entry["why"] == "the resampled 40 prompts show no spread"


def test_prompts_known_on_one_side_alone_do_not_count():
    before = [plain(i, float(i % 5) if i < 30 else None) for i in range(40)]
    after = [plain(i, float(i % 5) + i % 2 if i >= 15 else None) for i in range(40)]
    assert "15 prompts" in compare(before, after)["reward"]["why"]


def test_what_rounding_alone_spreads_is_no_interval():
    """The same 0.024 everywhere, over figures of many digits: sums differ in the last bits, and say nothing."""
    before = [plain(i, 0.1 + i / 7) for i in range(40)]
    entry = compare(before, [{**r, "reward": r["reward"] + 0.024} for r in before])["reward"]
    assert entry["difference"] == pytest.approx(0.024) and entry["low"] is None and "no spread" in entry["why"]


def test_a_run_in_rounds_says_what_its_first_pictures_were_worth():
    first, last = plain(0, 1.0), plain(0, 3.0)
    record = {**last, "rounds": [first, last]}
    said = describe_summary(summarise([record]))
    assert said == "reward 3.000, 1 picture, each the last of 2.00 on average; reward of the first ones 1.000"
