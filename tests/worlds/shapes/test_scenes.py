from __future__ import annotations

import pytest

from unigrpo.worlds.shapes import CELLS, Object, Scene, judge, parse_prompt
from unigrpo.worlds.shapes.scenes import related


def scene(*items: str) -> Scene:
    return Scene(tuple(Object(shape, colour, cell) for colour, shape, cell in (item.split() for item in items)))


@pytest.mark.parametrize(
    ("first", "second", "kinds"),
    [
        ("a1", "a2", {"left of"}),
        ("b2", "c2", {"above"}),
        ("a1", "b2", {"left of", "above"}),
        ("a1", "c2", {"above"}),
        ("d4", "c1", {"right of"}),
        ("a1", "a1", set()),
    ],
)
def test_relations_hold_on_their_dominant_axis(first: str, second: str, kinds: set[str]):
    assert {kind for kind in ("left of", "right of", "above", "below") if related(kind, first, second)} == kinds


def test_mirrored_relations_agree_on_all_cells():
    for a in CELLS:
        for b in CELLS:
            assert related("left of", a, b) == related("right of", b, a)
            assert related("above", a, b) == related("below", b, a)


@pytest.mark.parametrize(
    ("prompt", "objects", "correct", "exam"),
    [
        ("a circle", ["red circle a1", "blue square b1"], True, 1),
        ("a circle", ["blue square b1"], False, 0),
        ("a circle and a square", ["red circle a1"], False, 1 / 2),
        ("three rings", ["red ring a1", "blue ring a2", "red ring d4"], True, 1),
        ("three rings", ["red ring a1", "blue ring a2", "red ring d4", "red ring d1"], False, 1 / 2),
        ("three rings", ["red ring a1", "blue ring a2", "red ring d4", "red cross d1"], True, 1),
        ("two red rings", ["red ring a1", "red ring a2", "blue ring d4"], True, 1),
        ("a red circle", ["blue circle a1", "red circle a2"], True, 1),
        ("a red circle", ["blue circle a1", "red square a2"], False, 1 / 2),
        ("a circle above a square", ["red circle b1", "red square a1"], False, 2 / 3),
        ("a red circle left of a blue square", ["red circle a1", "blue square a4"], True, 1),
        ("a red circle left of a blue square", ["red circle a1", "green square a4"], False, 3 / 5),
        ("a red circle and a blue square", ["blue circle a1", "red square a4"], False, 2 / 4),
    ],
)
def test_judge_follows_geneval(prompt: str, objects: list[str], correct: bool, exam: float):
    judgement = judge(scene(*objects), parse_prompt(prompt))
    assert judgement.correct is correct
    assert sum(met for _, met in judgement.points) / len(judgement.points) == pytest.approx(exam)


def test_questions_read_as_questions():
    questions = [question for question, _ in judge(scene(), parse_prompt("a red circle left of a blue square")).points]
    assert questions[0] == "is there a circle"
    assert questions[-1] == "is a red circle left of a blue square"


def test_impossible_objects_and_scenes_are_refused():
    with pytest.raises(ValueError, match="no such object"):
        Object("circle", "pink", "a1")
    with pytest.raises(ValueError, match="cell"):
        scene("red circle a1", "blue circle a1")


def test_foreign_metadata_is_refused_with_advice():
    with pytest.raises(ValueError, match="parse_prompt"):
        judge(scene(), {"include": []})


def test_order_does_not_change_the_picture():
    first, second = scene("red circle d1", "blue ring a1"), scene("blue ring a1", "red circle d1")
    assert first != second
    assert first.same_picture(second)
    assert first.row_major() == second
