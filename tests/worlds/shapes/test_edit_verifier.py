from __future__ import annotations

import random

import pytest
import torch

from unigrpo.build.rewards import shapes_edit
from unigrpo.ranges import ConfigError
from unigrpo.rewards.protocol import RewardFault
from unigrpo.worlds.shapes import Object, RewardWeights, Scene, format_plan, render
from unigrpo.worlds.shapes.edit_prompts import SPLITS, EditStream, edit_prompt
from unigrpo.worlds.shapes.edit_verifier import EditVerdict, verify_edits
from unigrpo.worlds.shapes.edits import EDITS, Edit, Wanted, corrupt_target, judge_edit, sample_target
from unigrpo.worlds.shapes.renderer import enlarged
from unigrpo.worlds.shapes.tasks import edit_reward, judge_pictures

SOURCE = Scene((Object("circle", "red", "b2"), Object("square", "green", "c1"), Object("ring", "cyan", "d4")))
RED, GREEN, CYAN = SOURCE.objects
BLUE = Object("circle", "blue", "b2")
RECOLOUR = Edit("recolour", SOURCE, RED, Wanted("circle", "blue", ("b2",)), "make the red circle blue")
MOVE = Edit("move", SOURCE, RED, Wanted("circle", "red", ("a1", "a2")), "move the red circle above the square")
REMOVE = Edit("remove", SOURCE, RED, None, "remove the red circle")
ADD = Edit("add", SOURCE, None, Wanted("cross", "red", ("a4",)), "add a red cross at a4")
STREAM = [EditStream(split, 1).edit(position) for split in SPLITS[:2] for position in range(120)]


def verdict(edit: Edit, *objects: Object) -> EditVerdict:
    return verify_edits(render([Scene(objects)]), [edit.metadata()])[0]


@pytest.mark.parametrize("category", EDITS)
def test_an_exact_result_is_right_and_worth_one(category: str):
    edits = [edit for edit in STREAM if edit.category == category]
    results = [(edit, scene) for edit in edits for scene in edit.results()]
    found = verify_edits(render([scene for _, scene in results]), [edit.metadata() for edit, _ in results])
    for one in found:
        assert one.correct and one.exam == 1
        assert (one.changed, one.kept, one.reward) == pytest.approx((1, 1, 1), abs=1e-6)


@pytest.mark.parametrize("category", EDITS)
def test_the_source_picture_has_changed_nothing_and_kept_all(category: str):
    edits = [edit for edit in STREAM if edit.category == category]
    found = verify_edits(render([edit.source for edit in edits]), [edit.metadata() for edit in edits])
    for one in found:
        assert not one.correct
        assert one.changed == pytest.approx(0, abs=1e-6) and one.reward == pytest.approx(0, abs=1e-6)
        assert one.kept == pytest.approx(1, abs=1e-6)


def test_an_empty_picture_is_paid_neither_for_what_it_removed_nor_for_keeping():
    found = verify_edits(render([Scene(())] * len(STREAM)), [edit.metadata() for edit in STREAM])
    for edit, one in zip(STREAM, found, strict=True):
        assert one.kept == pytest.approx(0, abs=1e-6) and one.reward == pytest.approx(0, abs=1e-6), edit.instruction
    assert verdict(REMOVE).changed == pytest.approx(1)


def test_doing_more_than_was_asked_is_not_kept():
    over = verdict(RECOLOUR, BLUE, Object("square", "blue", "c1"), CYAN)
    assert over.changed == pytest.approx(1) and not over.correct
    assert 0.5 <= over.kept < 0.85
    extra = verdict(RECOLOUR, BLUE, GREEN, CYAN, Object("cross", "red", "a4"))
    assert extra.changed == pytest.approx(1) and not extra.correct
    assert extra.kept < 0.5
    lost = verdict(RECOLOUR, BLUE, CYAN)
    assert lost.kept == pytest.approx(0.5)


def test_changing_another_object_is_no_change_and_not_kept():
    wrong = verdict(RECOLOUR, RED, Object("square", "blue", "c1"), CYAN)
    assert wrong.changed == pytest.approx(0, abs=1e-6) and wrong.reward == pytest.approx(0, abs=1e-6)
    assert wrong.kept < 0.85


def test_half_of_a_move_is_half_a_change():
    copied = verdict(MOVE, *SOURCE.objects, Object("circle", "red", "a1"))
    taken = verdict(MOVE, GREEN, CYAN)
    assert copied.changed == pytest.approx(0.5) and taken.changed == pytest.approx(0.5)
    assert copied.kept == pytest.approx(1) and taken.kept == pytest.approx(1)
    assert not copied.correct and not taken.correct
    twice = verdict(MOVE, GREEN, CYAN, Object("circle", "red", "a1"), Object("circle", "red", "a2"))
    assert twice.changed == pytest.approx(1) and twice.kept < 0.5 and not twice.correct


def test_adding_in_another_cell_is_an_extra_object():
    aside = verdict(ADD, *SOURCE.objects, Object("cross", "red", "a3"))
    assert aside.changed == pytest.approx(0, abs=1e-6) and aside.kept < 0.5


def test_a_change_that_is_half_drawn_is_worth_something():
    images = render([SOURCE, Scene((BLUE, GREEN, CYAN))])
    between = [(1 - share) * images[0] + share * images[1] for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    rewards = [v.reward for v in verify_edits(torch.stack(between), [RECOLOUR.metadata()] * 5)]
    assert rewards == sorted(rewards) and rewards[1] > 0.1


def test_picture_and_plan_are_judged_by_one_rule():
    draws = random.Random(0)
    for edit in STREAM:
        right = sample_target(edit.metadata(), draws)
        for scene in (right, corrupt_target(right, edit.metadata(), draws), edit.source):
            (one,) = verify_edits(render([scene]), [edit.metadata()])
            assert (one.correct, one.points) == judge_edit(scene, edit.metadata())
            assert one.correct == (one.reward > 0.999)


def test_mild_noise_does_no_harm():
    edits, draws = STREAM[:100], random.Random(0)
    images = render([sample_target(edit.metadata(), draws) for edit in edits])
    noise = 0.02 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    found = verify_edits((images + noise).clamp(0, 1), [edit.metadata() for edit in edits])
    assert all(one.correct and one.reward > 0.9 for one in found)


def test_large_pictures_are_read_by_the_means_of_their_squares():
    edits, draws = [edit for edit in STREAM if edit.category == "recolour"][:20], random.Random(0)
    scenes = [sample_target(edit.metadata(), draws) for edit in edits]
    large = torch.stack([enlarged(scene) for scene in scenes]).float() / 255
    assert large.shape == (20, 3, 512, 512)
    found = verify_edits(large, [edit.metadata() for edit in edits])
    assert all(one.correct and one.reward > 0.99 for one in found)
    sources = torch.stack([enlarged(edit.source) for edit in edits]).float() / 255
    for one in verify_edits(sources[..., ::2, ::2], [edit.metadata() for edit in edits]):  # 256 pixels will do
        assert not one.correct and one.reward < 0.05 and one.kept > 0.9
    with pytest.raises(ValueError, match="32, 32"):
        verify_edits(large[..., :480], [edit.metadata() for edit in edits])
    prompts = [edit_prompt(k, edit, large=True) for k, edit in enumerate(edits)]
    assert all(p.images[0].shape == (3, 512, 512) for p in prompts)
    records = judge_pictures(large, prompts, ["I will paint it."] * 20)
    assert all(r["correct"] and r["parsable"] is r["plan_right"] is r["follow"] is None for r in records)


def test_records_of_edits_say_which_half_failed():
    prompts = [edit_prompt(k, edit) for k, edit in enumerate((RECOLOUR, MOVE))]
    plans = [format_plan(Scene((BLUE, GREEN, CYAN))), format_plan(SOURCE)]
    records = judge_pictures(render([SOURCE, SOURCE]), prompts, plans)
    assert [r["plan_right"] for r in records] == [True, False]
    assert [r["follow"] for r in records] == [False, True]
    assert [(r["category"], round(r["changed"], 6), round(r["kept"], 6)) for r in records] == [
        ("recolour", 0, 1),
        ("move", 0, 1),
    ]


def test_the_reward_has_the_halves_as_parts_and_a_tidiness():
    images = render([Scene((BLUE, GREEN, CYAN, Object("cross", "red", "a4")))])
    output = shapes_edit(images, ["make the red circle blue"], [RECOLOUR.metadata()], [None])
    assert set(output.parts) == {"correct", "exam", "changed", "kept"}
    forgiving = shapes_edit(images, ["make the red circle blue"], [RECOLOUR.metadata()], [None], tidy=1.0)
    assert output.values[0] == pytest.approx(forgiving.values[0] / 2)
    assert edit_reward(images, [RECOLOUR.metadata()], RewardWeights(tidy=0.25))[0][0] == pytest.approx(
        output.values[0] / 2
    )
    with pytest.raises(ConfigError, match="tidy is the factor"):
        shapes_edit(images, [""], [RECOLOUR.metadata()], [None], tidy=0.0)
    with pytest.raises(RewardFault, match="judges pictures of 32 x 32"):
        shapes_edit(torch.zeros(1, 3, 64, 48), [""], [RECOLOUR.metadata()], [None])
    with pytest.raises(ValueError, match="needs category, source, edited and wanted"):
        shapes_edit(images, ["a red circle"], [{"objects": []}], [None])
