"""The points of an exam: how they are written, and how they are marked."""

import pytest

from unigrpo.ranges import ConfigError
from unigrpo.rewards.judge_points import Point, grade, points_of


def test_points_are_questions_or_objects():
    points = points_of(
        "a cup", {"points": ["Is there a cup?", {"question": "Is it red?", "expected": "no", "depends_on": 1}]}
    )
    assert points == [Point("1", "Is there a cup?"), Point("2", "Is it red?", False, ("1",))]


@pytest.mark.parametrize(
    ("points", "said"),
    [
        (None, "there are none"),
        ([], "there are none"),
        ("Is it red?", "there are none"),
        (["a"] * 101, "at most 100"),
        ([3], "number 1: 3 is no question"),
        ([{"question": "a", "expcted": "no"}], "did you mean expected"),
        ([{"question": " "}], "question is ' '"),
        ([{"question": "a", "expected": "maybe"}], "expected is 'maybe'; write yes or no"),
        ([{"question": "a", "depends_on": 1.5}], "depends_on is 1.5"),
        ([{"question": "a", "depends_on": ["x"]}], "'1' depends on 'x'"),
        ([{"id": "x", "question": "a"}, {"id": "x", "question": "b"}], "'x' is there 2 times"),
        ([{"question": "a", "depends_on": "2"}, {"question": "b", "depends_on": "1"}], "1, 2 depend on each other"),
    ],
)
def test_points_that_cannot_be_asked_are_told(points, said):
    with pytest.raises(ConfigError, match="points of the prompt 'a cup'") as caught:
        points_of("a cup", {} if points is None else {"points": points})
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_marks_are_means_of_what_is_right():
    points = [Point("a", "?"), Point("b", "?", expected=False)]
    marks = grade(points, [0.75, 0.36])
    assert marks.soft == pytest.approx((0.75 + 0.64) / 2) and marks.geometric == pytest.approx((0.75 * 0.64) ** 0.5)
    assert (marks.hard, marks.all) == (1, 1)
    assert (grade(points, [0.75, 0.9]).hard, grade(points, [0.75, 0.9]).all) == (0.5, 0)


def test_a_point_counts_nothing_where_what_it_depends_on_is_wrong():
    points = [Point("c", "?", depends_on=("b",)), Point("b", "?", depends_on=("a",)), Point("a", "?")]
    marks = grade(points, [0.9, 0.9, 0.3])
    assert marks.soft == pytest.approx(0.3 / 3) and marks.hard == 0 and marks.geometric == 0
    assert grade(points, [0.9, 0.9, 0.6]).soft == pytest.approx(0.8)


def test_the_mean_of_many_small_shares_is_small_and_not_nothing():
    points = [Point(str(number), "?") for number in range(100)]
    assert grade(points, [1e-4] * 100).geometric == pytest.approx(1e-4)
