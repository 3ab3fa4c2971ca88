"""Demonstrations that look: what stands where, what is wrong on purpose, and that all words are known."""

import random

import pytest
import torch

from unigrpo import build
from unigrpo.recipe import Model
from unigrpo.trajectory import Image, Text, View
from unigrpo.worlds import shapes
from unigrpo.worlds.demonstrations import LOOKING, DemonstrationMix
from unigrpo.worlds.shapes.critiques import critique_right, parse_rethinking
from unigrpo.worlds.shapes.demonstrations import TEACHER
from unigrpo.worlds.shapes.edits import edit_of, judge_edit
from unigrpo.worlds.shapes.looking import further_words, held_out_questions, seen
from unigrpo.worlds.shapes.questions import KINDS, question

CLEAN = {"bad_plan": 0.0, "mismatch": 0.0, "no_think": 0.0, "unconditional": 0.0}


def some(form, n=200, **shares):
    mix = DemonstrationMix(**{**CLEAN, form: 1.0, **shares})
    return TEACHER.batch(0, 0, n, mix)


def scene_in(picture):
    return shapes.read_scenes(picture[None].float() / 255.0)[0].scene


def test_a_clean_look_describes_what_is_seen_and_draws_what_it_says():
    for item in some("look", bad_plan=0.3, mismatch=0.4):
        said, shown = parse_rethinking(item.said), scene_in(item.shown)
        assert critique_right(said.remarks, shown, item.prompt.metadata)
        assert item.picture.same_picture(said.plan or shown)


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 1.0, 1.0), (0.5, 0.4, 0.75)])
def test_a_share_of_the_critiques_is_of_another_picture(share, low, high):
    made = some("look_only", bad_plan=0.3, mismatch=0.4, misseen=share)
    right = [
        critique_right(parse_rethinking(item.said).remarks, scene_in(item.shown), item.prompt.metadata) for item in made
    ]
    assert low <= sum(right) / len(right) <= high
    assert all(item.picture is None for item in made)


def test_a_share_of_the_second_pictures_misses_what_is_said():
    made = some("look", bad_plan=0.3, mismatch=0.4, bad_revision=0.5)
    follows = [item.picture.same_picture(parse_rethinking(item.said).plan or scene_in(item.shown)) for item in made]
    assert 0.4 <= sum(follows) / len(follows) <= 0.6


def test_edits_do_what_is_asked_but_for_the_bad_plans():
    right = [judge_edit(item.picture, item.prompt.metadata).correct for item in some("edit")]
    assert all(right)
    wrong = [judge_edit(item.picture, item.prompt.metadata).correct for item in some("edit", bad_plan=0.5)]
    assert 0.4 <= sum(wrong) / len(wrong) <= 0.6


def test_a_share_of_the_looks_is_of_edits_and_says_what_they_lack():
    made = some("look", bad_plan=0.3, mismatch=0.4, look_edits=0.5)
    of_edits = [item for item in made if item.source is not None]
    assert 0.4 <= len(of_edits) / len(made) <= 0.6
    for item in of_edits:
        said, shown = parse_rethinking(item.said), scene_in(item.shown)
        assert critique_right(said.remarks, shown, item.prompt.metadata)
        assert scene_in(item.source) == edit_of(item.prompt.metadata).source.row_major()
    assert not all(item.plan.same_picture(edit_of(item.prompt.metadata).source) for item in of_edits)
    assert [item.said for item in some("look", look_edits=0.0)] == [item.said for item in some("look")]


def test_answers_are_those_of_the_picture():
    for position in range(300):
        asked = question("held-out", 0, position)
        shown, words = scene_in(seen(asked.scene)), asked.words.split()
        if asked.kind == "at":
            there = [f"{item.colour} {item.shape}" for item in shown.objects if item.cell == words[-1]]
            assert asked.answer == (there[0] if there else "nothing")
        if asked.kind == "all":
            plan = shapes.parse_plan(f"<think> {asked.answer} </think>")
            assert plan.same_picture(shown)


def test_questions_have_all_kinds_and_answers_that_cannot_be_guessed():
    asked = [question("held-out", 0, position) for position in range(600)]
    for kind in KINDS:
        answers = [item.answer for item in asked if item.kind == kind]
        assert len(answers) > 40
        assert max(answers.count(answer) for answer in answers) < 0.65 * len(answers)
    assert [item.words for item in asked[:50]] != [question("train", 0, i).words for i in range(50)]


def test_the_grown_model_knows_all_words_that_are_shown_to_it():
    words = build.policy(Model("init:micro-rounds")).words
    assert words >= {*shapes.vocabulary(), *further_words()}
    for form in LOOKING:
        for item in some(form):
            assert {*item.said.split(), *item.prompt.text.split()} <= words
    for _, asked, answer, _ in held_out_questions(300):
        assert {*asked.split(), *answer.split()} <= words


@pytest.mark.parametrize("tower", [False, True])
def test_where_the_segments_of_each_form_stand(tower):
    policy = build.policy(Model("init:micro-rounds-tower" if tower else "init:micro-rounds"))
    look = [Image, View] if tower else [Image]
    kinds = {
        "look": [Text, Text, Text, *look, Text, Image],
        "look_only": [Text, Text, Text, *look, Text],
        "edit": [Text, *look, Text, Text, Image],
        "question": [look[-1], Text, Text],
    }
    cases = [(form, {}, expected) for form, expected in kinds.items()]
    cases.append(("look", {"look_edits": 1.0}, [Text, *look, Text, Text, *look, Text, Image]))
    for form, shares, expected in cases:
        (trajectory,) = TEACHER.trajectories(policy, some(form, n=1, **shares))
        assert [type(segment) for segment in trajectory.segments] == expected
        targets = [i for i, s in enumerate(trajectory.segments) if not isinstance(s, View) and s.target]
        first = len(expected) - (2 if expected[-1] is Image else 1)
        assert targets == list(range(first, len(expected)))


def test_what_is_looked_at_keeps_its_size_and_comes_as_a_rollout_gives_it():
    policy = build.policy(Model("init:micro-rounds"))
    picture = seen(shapes.random_scene(random.Random(0)))
    ((image,),) = policy.look_segments(picture[None])
    assert image.grid == (4, 4)
    for given in (policy.picture_segments(picture), policy.question_segments("what is there", [picture], think=False)):
        assert torch.allclose(given[0].latents, image.latents, atol=1e-5)
    tower = build.policy(Model("init:micro-rounds-tower"))
    ((image, view),) = tower.look_segments(picture[None])
    assert view.grid == (4, 4)
    assert torch.equal(tower.picture_segments(picture)[1].patches, view.patches)


def test_batches_without_looks_are_those_of_before():
    mix = DemonstrationMix(plan_only=0.5)
    forms = [item.form for item in TEACHER.batch(0, 0, 64, mix)]
    assert not set(forms) & set(LOOKING)
    assert [item.form for item in TEACHER.batch(0, 0, 64, DemonstrationMix(plan_only=0.5, question=0.0))] == forms


def test_the_words_world_has_nothing_to_look_at():
    from unigrpo.worlds.words.demonstrations import TEACHER as WORDS

    with pytest.raises(ValueError, match="the words world"):
        WORDS.batch(0, 0, 4, DemonstrationMix(look=0.5))
