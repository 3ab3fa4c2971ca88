"""Critiques: what is said is true, leads to what was asked for, and can be read again."""

import random

import pytest

from unigrpo.worlds.shapes import PromptStream, Scene, parse_prompt, sample_scene, slip
from unigrpo.worlds.shapes.critiques import (
    Remark,
    Rethinking,
    applied,
    content,
    critique,
    critique_right,
    format_critique,
    format_rethinking,
    parse_rethinking,
)
from unigrpo.worlds.shapes.edit_prompts import EditStream
from unigrpo.worlds.shapes.edit_reading import parse_edit
from unigrpo.worlds.shapes.edits import corrupt_target, sample_target
from unigrpo.worlds.shapes.planner import corrupt_scene, format_plan
from unigrpo.worlds.shapes.scenes import Object

RED, BLUE = Object("circle", "red", "a1"), Object("square", "blue", "b3")
ASKED = parse_prompt("a red circle and a blue square")


def left(stream, sample, corrupt, n):
    """Scenes as the first round leaves them: right, one mistake, one or two slips."""
    for index in range(n):
        draws, prompt = random.Random(index), stream.at(index)
        scene = sample(prompt.metadata, draws)
        if draws.random() < 0.5:
            scene = corrupt(scene, prompt.metadata, draws)
        for _ in range(draws.choice((0, 0, 1, 2))):
            scene = slip(scene, draws)
        yield draws, prompt, scene


def cases(n):
    """Of prompts."""
    return left(PromptStream("train", 3), sample_scene, corrupt_scene, n)


def edits(n):
    """Of edits."""
    return left(EditStream("edit", 3), sample_target, corrupt_target, n)


def test_a_critique_is_right_and_says_fine_of_what_is_right_alone():
    fine = 0
    for draws, prompt, scene in cases(600):
        remarks = critique(scene, prompt.metadata, draws)
        assert critique_right(remarks, scene, prompt.metadata), (prompt.text, scene)
        assert (not remarks) == content(scene, prompt.metadata)
        fine += not remarks
    assert 100 < fine < 400


def test_a_critique_of_an_edit_asks_for_the_change_and_for_what_was_lost():
    fine = short = 0
    for draws, prompt, scene in edits(600):
        remarks = critique(scene, prompt.metadata, draws)
        assert critique_right(remarks, scene, prompt.metadata), (prompt.text, scene)
        assert (not remarks) == content(scene, prompt.metadata)
        fine += not remarks
        short += len(remarks) == 1
    assert 100 < fine < 400
    assert short > 150


@pytest.mark.parametrize(
    ("instruction", "drawn", "said"),
    [
        ("make the circle green", (RED, BLUE), "red circle a1 should be green"),
        ("make the circle green", (Object("circle", "green", "a1"),), "missing blue square b3"),
        ("move the circle to c2", (RED, BLUE), "red circle a1 should be at c2"),
        ("move the circle to c2", (RED, Object("circle", "red", "c2"), BLUE), "extra red circle a1"),
        ("move the circle to c2", (Object("circle", "red", "d4"), BLUE), "red circle d4 should be at c2"),
        ("remove the red circle", (RED, BLUE), "extra red circle a1"),
        ("add a cyan ring at d1", (RED, BLUE), "missing cyan ring d1"),
        ("replace the circle with a cyan ring", (Object("ring", "blue", "a1"), BLUE), "blue ring a1 should be cyan"),
        ("make the circle green", (Object("circle", "green", "b3"), Object("square", "blue", "a1")),
         "blue square a1 should be at b3 and green circle b3 should be at a1"),
        ("make the circle green", (Object("circle", "green", "a1"), BLUE), "fine"),
    ],
)  # fmt: skip
def test_the_words_of_a_critique_of_an_edit(instruction, drawn, said):
    metadata = parse_edit(instruction, Scene((RED, BLUE))).metadata()
    assert format_critique(critique(Scene(drawn), metadata, random.Random(0))) == said


def test_what_is_written_is_read_again():
    for draws, prompt, scene in (*cases(300), *edits(300)):
        remarks = critique(scene, prompt.metadata, draws)
        plan = applied(scene, remarks)
        expected = Rethinking(remarks, plan if remarks else None)
        assert parse_rethinking(format_rethinking(remarks, plan)) == expected


@pytest.mark.parametrize(
    ("scene", "said"),
    [
        (Scene((RED, BLUE)), "fine"),
        (Scene((RED,)), "missing blue square"),
        (Scene((RED, BLUE, Object("ring", "red", "c1"))), "extra red ring c1"),
        (Scene((Object("circle", "green", "a1"), BLUE)), "green circle a1 should be red"),
        (Scene((Object("ring", "red", "a1"), BLUE)), "red ring a1 should be a circle"),
        (Scene((RED, Object("ring", "green", "d1"))), "green ring d1 should be a blue square"),
    ],
)
def test_the_words_of_a_critique(scene, said):
    assert format_critique(critique(scene, ASKED, random.Random(0))).startswith(said)


def test_objects_in_the_wrong_relation_are_moved():
    asked = parse_prompt("a circle left of a square")
    remarks = critique(Scene((Object("circle", "red", "a4"), Object("square", "blue", "a2"))), asked, random.Random(0))
    assert len(remarks) == 1
    assert " should be at " in format_critique(remarks)


@pytest.mark.parametrize(
    ("remarks", "why"),
    [
        ((), "says fine of a picture that lacks the square"),
        ((Remark(BLUE, None),), "speaks of what is not there"),
        ((Remark(None, Object("square", "blue", "a1")),), "puts two into one cell"),
        ((Remark(None, Object("square", "red", "b3")),), "leads to what was not asked for"),
        ((Remark(None, BLUE), Remark(None, Object("ring", "red", "d4"))), "asks for more than the prompt"),
    ],
)
def test_a_wrong_critique_is_not_right(remarks, why):
    assert not critique_right(remarks, Scene((RED,)), ASKED), why
    assert critique_right((Remark(None, BLUE),), Scene((RED,)), ASKED)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fine",
        "<think> </think>",
        "<think> fine so red circle a1 </think>",
        "<think> red circle a1 blue square b3 </think>",
        "<think> missing blue square b3 </think>",
        "<think> missing blue square so blue square b3 </think>",
        "<think> missing blue square b3 and so blue square b3 </think>",
        "<think> red circle a1 should be red so red circle a1 </think>",
        "<think> red circle a1 should be green so red circle </think>",
        "<think> red circle a1 should be at e9 so red circle a1 </think>",
        "<think> extra red circle a1 so red circle b1 so red circle c1 </think>",
    ],
)
def test_what_is_not_well_formed_is_not_read(text):
    assert parse_rethinking(text) is None


def test_a_plan_alone_has_no_critique():
    assert parse_rethinking(format_plan(Scene((RED,)))) is None
