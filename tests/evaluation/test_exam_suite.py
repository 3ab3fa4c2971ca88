"""Our own 150 prompts (what a program can check of them), and their marks by a judge that errs, fails or is dumb."""

import asyncio
import json
import re
from collections import Counter

import pytest
from judging import BLUE, MOSTLY_RED, NOWHERE, RED, examined, faults, judge, picture, quickly  # noqa: F401

from unigrpo.evaluation import exam
from unigrpo.evaluation.judged import version_of
from unigrpo.ranges import ConfigError
from unigrpo.rewards.judge_points import points_of
from unigrpo.trajectory import Prompt

CATEGORIES = {"counting", "relations", "attributes", "text", "styles", "rare", "negation"}
POINTS = [
    {"id": "red", "question": "Is it red?", "expected": "yes", "depends_on": []},
    {"id": "blue", "question": "Is it blue?", "expected": "no", "depends_on": ["red"]},
]
PROMPT = Prompt(0, "a cup", {"category": "attributes", "points": POINTS})

# ---------------------------------------------------------------- the set


def test_there_are_150_different_prompts_in_seven_balanced_categories():
    prompts = exam.prompts()
    assert len(prompts) == 150 and [p.position for p in prompts] == list(range(150))
    assert len({p.text.casefold() for p in prompts}) == 150
    counts = Counter(p.metadata["category"] for p in prompts)
    assert counts.keys() == CATEGORIES and min(counts.values()) >= 18
    assert all(set(p.metadata) == {"category", "points"} for p in prompts)


def test_every_prompt_has_two_to_six_points_that_can_be_asked():
    for prompt in exam.prompts():
        written, points = prompt.metadata["points"], points_of(prompt.text, prompt.metadata)  # no circles, known ids
        assert 2 <= len(points) <= 6, prompt.text
        assert all(set(point) == {"id", "question", "expected", "depends_on"} for point in written), prompt.text
        assert all(point["expected"] in ("yes", "no") and point["question"].endswith("?") for point in written)
        assert [point["id"] for point in written] == [str(number) for number in range(1, len(written) + 1)]
        assert all(int(other) < int(p["id"]) for p in written for other in p["depends_on"]), prompt.text


def test_no_question_is_there_twice_and_some_are_to_be_answered_no():
    points = [(p.metadata["category"], point) for p in exam.prompts() for point in p.metadata["points"]]
    questions = Counter(point["question"].casefold() for _, point in points)
    assert [question for question, count in questions.items() if count > 1] == []
    no = [category for category, point in points if point["expected"] == "no"]
    assert 0.05 <= len(no) / len(points) <= 0.25 and len(set(no)) >= 5
    negations = [p for p in exam.prompts() if p.metadata["category"] == "negation"]
    assert all(any(point["expected"] == "no" for point in p.metadata["points"]) for p in negations)
    texts = [p for p in exam.prompts() if p.metadata["category"] == "text"]
    assert all(re.search(r'["\d]|letter', p.text) for p in texts)


def test_the_version_follows_every_word_of_the_set():
    prompts = exam.prompts()
    assert exam.version() == version_of(prompts) == version_of(exam.prompts())
    other = [*prompts[:-1], Prompt(149, prompts[-1].text, {**prompts[-1].metadata, "category": "rare"})]
    assert version_of(other) != exam.version()


# ---------------------------------------------------------------- the marks


def test_marks_of_a_right_a_half_right_and_a_wrong_picture():
    with faults.running() as server:
        found = examined(exam.ExamExaminer(judge=judge(server)), [PROMPT] * 3, [RED, MOSTLY_RED, BLUE])
    assert [one["exam"] for one in found] == pytest.approx([1.0, 0.875, 0.0], abs=1e-6)
    assert [one["correct"] for one in found] == [True, True, False]
    assert found[1]["values"] == pytest.approx({"soft": 0.875, "hard": 1, "geometric": 0.75**0.5, "all": 1}, abs=1e-6)
    assert found[2]["reasons"] == ["Is it red? (should be yes)", "Is it blue? (should be no)"]
    assert [one["failed"] for one in found] == [None] * 3 and found[0]["reasons"] == []
    assert found[0]["category"] == "attributes" and json.dumps(found)
    assert exam.figures(found)["soft"] == pytest.approx(0.625, abs=1e-6)


def test_a_picture_with_half_of_its_points_answered_has_no_mark_and_never_a_zero():
    dumb = lambda nth, words: faults.says("It depends.") if "blue" in words else None  # noqa: E731
    with faults.running(dumb) as server:
        (one,) = examined(exam.ExamExaminer(judge=judge(server)), [PROMPT])
    assert (one["correct"], one["exam"], one["reasons"]) == (None, None, [])
    assert one["values"] == dict.fromkeys(("soft", "hard", "geometric", "all"))
    assert one["failed"].startswith("1 of 2 points have no answer; 'Is it blue?'")
    assert one["detail"]["yes"] == {"red": pytest.approx(1.0), "blue": None}
    assert exam.figures([one]) == {"soft": None, "hard": None, "geometric": None, "all": None, "unanswered": 1}


@pytest.mark.parametrize("fault", [faults.says("?"), faults.no_choices, faults.status(400), faults.page])
def test_a_judge_that_gives_no_answers_gives_no_zeros(fault):
    with faults.running(lambda nth, words: fault) as server:
        found = examined(exam.ExamExaminer(judge=judge(server, retries=0)), [PROMPT] * 2)
    assert all(one["exam"] is None and one["correct"] is None and one["failed"] for one in found)


def test_pictures_of_several_sizes_in_batches_and_no_more_are_read_than_are_asked_about():
    class OnDisk:
        read, asked_by_then = [], []

        def __len__(self):
            return 5

        def __getitem__(self, place):
            self.read.append(place)
            self.asked_by_then.append(len(server.requests))
            return picture(RED, 8 + place, 16)

    with faults.running() as server:
        found = exam.ExamExaminer(judge=judge(server), batch=2)(OnDisk(), [PROMPT] * 5, [None] * 5)
    assert [one["exam"] for one in found] == pytest.approx([1.0] * 5, abs=1e-6)
    assert OnDisk.read == [0, 1, 2, 3, 4] and OnDisk.asked_by_then == [0, 0, 4, 4, 8]


def test_it_works_inside_of_a_running_event_loop():
    async def notebook():
        with faults.running() as server:
            return examined(exam.ExamExaminer(judge=judge(server)), [PROMPT])

    assert asyncio.run(notebook())[0]["correct"] is True


# ---------------------------------------------------------------- what a result says


def test_a_result_names_its_judge_and_template_but_neither_key_nor_address(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    with faults.running() as server:
        about = exam.ExamExaminer(judge=judge(server, key_env="JUDGE_KEY", mode="batch")).about
    said = json.dumps(about)
    assert "sk-secret" not in said and "127.0.0.1" not in said and "JUDGE_KEY" not in said
    assert (about["judge"], about["name"], about["mode"]) == (faults.MODEL, "exam", "batch")
    assert len(about["template"]["sha256"]) == 64 and about["parameters"]["temperature"] == 0
    assert about["packages"]["httpx2"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"judge": "gpt"}, "judge is 'gpt'"),
        ({"judge": {**NOWHERE, "modl": "x"}}, "did you mean mode"),
        ({"judge": NOWHERE}, "the judge has no model"),
        ({"judge": {"model": "x"}}, "the judge has no url"),
        ({"judge": {**NOWHERE, "model": "x"}, "batch": 0}, "batch is 0"),
        ({"judge": {**NOWHERE, "model": "x", "url": "http://me:pw@h/v1"}}, "holds a user, a password"),
    ],
)
def test_what_cannot_work_is_said(args, said):
    with pytest.raises(ConfigError, match=said):
        exam.ExamExaminer(**args)


def test_every_picture_needs_its_prompt_and_three_channels():
    examiner = exam.ExamExaminer(judge={**NOWHERE, "model": "x"})
    with pytest.raises(ValueError, match="1 picture and 2 prompts"):
        examiner([picture(RED)], [PROMPT] * 2, [None] * 2)
    with pytest.raises(ValueError, match=r"torch\.float32"):
        examiner([picture(RED).float()], [PROMPT], [None])
