"""What a second look is worth, from records of two rounds."""

import pytest
import torch

from unigrpo.trajectory import Prompt
from unigrpo.worlds.shapes import Scene, parse_prompt, render
from unigrpo.worlds.shapes.critiques import Remark, format_rethinking
from unigrpo.worlds.shapes.edit_reading import parse_edit
from unigrpo.worlds.shapes.planner import format_plan
from unigrpo.worlds.shapes.revisions import figures, revision, scene_of
from unigrpo.worlds.shapes.scenes import Object
from unigrpo.worlds.shapes.tasks import judge_pictures

RED, GREEN, BLUE = (Object("circle", "red", "a1"), Object("circle", "green", "a1"), Object("square", "blue", "b3"))
WORDS = "a red circle and a blue square"
GOOD, BAD = Scene((RED, BLUE)), Scene((GREEN, BLUE))
TOLD = format_rethinking((Remark(GREEN, RED),), GOOD)
FINE = format_rethinking((), GOOD)


def record(first, text, second, plan=GOOD):
    """A record of two rounds, as an evaluation writes it: its pictures are judged by the world's own judge."""
    prompt = Prompt(0, WORDS, parse_prompt(WORDS))
    thoughts = [format_plan(plan), text]
    verdicts = judge_pictures(render([first, second]), [prompt] * 2, thoughts)
    rounds = [{"thinking": thought, **verdict} for thought, verdict in zip(thoughts, verdicts, strict=True)]
    return {"prompt": WORDS, "thinking": text, **verdicts[1], "rounds": rounds}


def test_the_judge_lists_what_it_reads():
    (found,) = judge_pictures(render([GOOD]), [Prompt(0, WORDS, parse_prompt(WORDS))], [None])
    assert scene_of(found["shown"]).same_picture(GOOD)
    (empty,) = judge_pictures(render([Scene(())]), [Prompt(0, WORDS, parse_prompt(WORDS))], [None])
    assert scene_of(empty["shown"]) == Scene(())


@pytest.mark.parametrize(
    ("first", "text", "second", "expected"),
    [
        (BAD, TOLD, GOOD, {"needed": True, "right": True, "done": True, "plan_right": True}),
        (BAD, TOLD, GOOD, {"first": False, "second": True, "follow": True}),
        (BAD, TOLD, BAD, {"right": True, "second": False, "follow": False}),
        (BAD, FINE, BAD, {"fine": True, "right": False, "plan_right": None, "done": None}),
        (GOOD, FINE, GOOD, {"needed": False, "fine": True, "right": True, "first": True}),
        (GOOD, TOLD, GOOD, {"needed": False, "right": False, "done": False, "plan_right": True}),
        (BAD, format_plan(GOOD), GOOD, {"said": False, "right": False, "follow": True}),
        (BAD, "<think> ring ring", GOOD, {"said": False, "right": False, "follow": None}),
    ],
)
def test_one_revision(first, text, second, expected):
    found = revision(record(first, text, second))
    assert {name: getattr(found, name) for name in expected} == expected


def edited(first, text, second, instruction="make the circle green"):
    """A record of two rounds of an edit of GOOD."""
    prompt = Prompt(0, instruction, parse_edit(instruction, GOOD).metadata())
    thoughts = [format_plan(BAD), text]
    verdicts = judge_pictures(render([first, second]), [prompt] * 2, thoughts)
    rounds = [{"thinking": thought, **verdict} for thought, verdict in zip(thoughts, verdicts, strict=True)]
    return {"prompt": instruction, "thinking": text, **verdicts[1], "rounds": rounds}


def test_revisions_of_edits_are_judged_by_what_was_asked_of_the_source():
    told = format_rethinking((Remark(RED, GREEN),), BAD)  # BAD is GOOD with a green circle
    found = revision(edited(GOOD, told, BAD))
    assert (found.needed, found.right, found.done, found.plan_right) == (True, True, True, True)
    assert (found.first, found.second, found.follow) == (False, True, True)
    found = revision(edited(BAD, told, GOOD))
    assert (found.needed, found.right, found.plan_right, found.second) == (False, False, True, False)
    assert figures([edited(GOOD, told, BAD)])["fixed"] == 1.0


def test_prompts_in_words_of_ones_own_have_no_revisions():
    assert revision({**record(BAD, TOLD, GOOD), "prompt": "please, my circle"}) is None
    assert revision({**edited(GOOD, TOLD, BAD), "prompt": "paint it green"}) is None


def test_figures_are_shares_of_the_right_samples():
    one_round = {"prompt": WORDS, "category": "color_attr", "correct": True}
    stopped = record(BAD, FINE, BAD)
    stopped["rounds"][1] = {"thinking": FINE}  # a thinking that ended its sample has no picture
    made = [record(BAD, TOLD, GOOD), record(BAD, FINE, BAD), record(GOOD, FINE, GOOD), record(GOOD, FINE, BAD)]
    found = figures([*made, one_round, stopped])
    assert found["n"] == 4
    assert found["score_first"] == found["score_second"] == 0.5
    assert found["critique_right"] == 0.75 and found["critique_right_needed"] == 0.5
    assert found["critique_right_fine"] == 1.0 and found["found"] == 0.5
    assert found["fixed"] == 0.5 and found["broken"] == 0.5
    assert found["after_right"] == 1.0 and found["after_wrong"] == 0.0
    assert figures([])["critique_right"] is None


def test_the_verdict_of_a_second_thinking_is_that_of_its_plan():
    prompts = [Prompt(0, WORDS, parse_prompt(WORDS))] * 3
    found = judge_pictures(render([GOOD] * 3), prompts, [TOLD, FINE, "<think> so </think>"])
    assert [one["parsable"] for one in found] == [True, True, False]
    assert [one["plan_right"] for one in found] == [True, None, False]
    assert [one["follow"] for one in found] == [True, None, None]
    assert torch.tensor([one["reward"] for one in found]).eq(found[0]["reward"]).all()
