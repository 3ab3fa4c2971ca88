from __future__ import annotations

import json
import random
from collections import Counter

import pytest
import torch

from unigrpo.worlds.shapes import CELLS, COLOURS, SHAPES, Object, Scene, format_plan, parse_plan, read_scenes, render
from unigrpo.worlds.shapes.edit_prompts import (
    OBJECTS,
    PHRASES,
    SPLITS,
    WORDS,
    EditStream,
    fixed_edits,
    held_out,
    sample_edit,
)
from unigrpo.worlds.shapes.edit_reading import parse_edit, read_source
from unigrpo.worlds.shapes.edits import EDITS, Edit, Wanted, corrupt_target, edit_of, judge_edit, sample_target
from unigrpo.worlds.shapes.scenes import related

STREAMS = {split: [EditStream(split, 3).edit(position) for position in range(900)] for split in SPLITS[:2]}
SOURCE = Scene((Object("circle", "red", "b2"), Object("square", "green", "c1"), Object("ring", "cyan", "d4")))
RED, GREEN, CYAN = SOURCE.objects
BLUE = Edit("recolour", SOURCE, RED, Wanted("circle", "blue", ("b2",)), "make the red circle blue")


def scene(*objects: tuple[str, str, str]) -> Scene:
    return Scene(tuple(Object(shape, colour, cell) for colour, shape, cell in objects))


# Instructions


@pytest.mark.parametrize("split", SPLITS[:2])
def test_instructions_have_only_the_words_that_the_vocabulary_was_told(split: str):
    known = {*WORDS, *COLOURS, *SHAPES, *CELLS}
    assert {word for edit in STREAMS[split] for word in edit.instruction.split()} <= known


def test_the_splits_share_no_combination_and_no_instruction_and_both_have_all_shapes():
    train, test = (STREAMS[split] for split in SPLITS[:2])
    assert not {e.combination for e in train} & {e.combination for e in test}
    assert not {e.instruction for e in train} & {e.instruction for e in test}
    assert all(held_out(e.combination) for e in test) and not any(held_out(e.combination) for e in train)
    for some in (train, test):
        assert {o.shape for e in some for o in e.source.objects} == set(SHAPES)
        assert {e.wanted.colour for e in some if e.wanted} == set(COLOURS)


def _meant(edit: Edit) -> list[Object]:
    """The objects at which the words point: those of the named shape, and colour where there is one."""
    words = edit.instruction.split()[2:]
    colour = words[0] if words[0] in COLOURS else None
    shape = words[1] if colour else words[0]
    return [o for o in edit.source.objects if o.shape == shape and colour in (None, o.colour)]


@pytest.mark.parametrize("split", SPLITS[:2])
def test_an_instruction_points_at_one_object(split: str):
    for edit in STREAMS[split]:
        if edit.category != "add":
            assert _meant(edit) == [edit.edited], edit.instruction


@pytest.mark.parametrize("split", SPLITS[:2])
def test_an_edit_asks_for_something_that_is_not_so_yet_and_can_be(split: str):
    for edit in STREAMS[split]:
        assert OBJECTS[0] <= len(edit.source.objects) <= OBJECTS[1] and edit.kept
        assert not judge_edit(edit.source, edit.metadata()).correct, edit.instruction
        assert edit.results() and all(judge_edit(made, edit.metadata()).correct for made in edit.results())


def test_beside_another_object_means_every_free_cell_on_that_side():
    found = [edit for edit in STREAMS["edit"] if edit.category == "move_relative"]
    for edit in found:
        kind = next(k for k, phrase in PHRASES.items() if f" {phrase} the " in edit.instruction)
        (other,) = [o for o in edit.source.objects if o.shape == edit.instruction.split()[-1]]
        taken = {o.cell for o in edit.source.objects}
        assert edit.wanted is not None
        assert set(edit.wanted.cells) == {c for c in CELLS if c not in taken and related(kind, c, other.cell)}


def test_a_stream_is_random_access_and_has_every_category_in_turn():
    stream = EditStream("edit", 0)
    batch = stream.batch(2, 6)
    assert Counter(p.metadata["category"] for p in batch) == Counter(EDITS)
    again = stream.at(13)
    assert (again.text, again.metadata) == (batch[1].text, batch[1].metadata)
    assert torch.equal(again.images[0], batch[1].images[0])
    assert EditStream("edit", 1).at(13).metadata != again.metadata


def test_a_fixed_list_begins_a_longer_one():
    short, long = fixed_edits("edit-held-out", 7), fixed_edits("edit-held-out", 20)
    assert [p.text for p in short] == [p.text for p in long[:7]]
    assert [p.position for p in long] == list(range(20))
    assert [p.metadata["category"] for p in long[:6]] == list(EDITS)


def test_the_picture_of_a_prompt_is_its_source_scene():
    for prompt in fixed_edits("edit", 30):
        assert len(prompt.images) == 1 and prompt.images[0].dtype == torch.uint8
        (reading,) = read_scenes(prompt.images[0][None].float() / 255)
        assert reading.smudges == 0 and reading.scene.same_picture(edit_of(prompt.metadata).source)


@pytest.mark.parametrize("split", SPLITS[2:])
def test_large_edits_name_no_cell_and_show_large_pictures(split: str):
    stream = EditStream(split, 0)
    edits = [stream.edit(position) for position in range(80)]
    assert Counter(edit.category for edit in edits[:4]) == Counter(("recolour", "move_relative", "remove", "replace"))
    assert not {word for edit in edits for word in edit.instruction.split()} & set(CELLS)
    assert all(held_out(edit.combination) == split.endswith("held-out") for edit in edits)
    prompt = fixed_edits(split, 5)[4]
    assert prompt.images[0].shape == (3, 512, 512) and prompt.metadata["category"] == "recolour"
    small = torch.nn.functional.avg_pool2d(prompt.images[0][None].float() / 255, 16)
    assert torch.allclose(small, render([edit_of(prompt.metadata).source]), atol=0.01)


def test_an_unknown_split_or_category_is_refused():
    with pytest.raises(ValueError, match="splits are edit, edit-held-out, edit-large"):
        EditStream("train", 0)
    with pytest.raises(ValueError, match="there are recolour"):
        sample_edit(random.Random(0), category="paint")


# Metadata


def test_metadata_are_json_and_say_all_that_is_judged():
    for edit in STREAMS["edit"][:60]:
        told = json.loads(json.dumps(edit.metadata()))
        back = edit_of(told)
        assert (back.category, back.source, back.edited, back.wanted) == (
            edit.category,
            edit.source,
            edit.edited,
            edit.wanted,
        )


@pytest.mark.parametrize(
    "change",
    [
        {"edited": 7},
        {"edited": None, "wanted": None},
        {"wanted": {"shape": "circle", "colour": "blue"}},
        {"source": [{"shape": "cup", "colour": "red", "cell": "a1"}]},
        {"edited": None, "wanted": {"shape": "ring", "colour": "blue", "cells": ["b2"]}},
    ],
)
def test_other_metadata_are_refused(change: dict[str, object]):
    with pytest.raises(ValueError, match="edit"):
        edit_of({**BLUE.metadata(), **change})


# The rule


@pytest.mark.parametrize(
    ("result", "met"),
    [
        (scene(("blue", "circle", "b2"), ("green", "square", "c1"), ("cyan", "ring", "d4")), [1, 1, 1, 1]),
        (SOURCE, [0, 1, 1, 1]),  # nothing was done
        (scene(("blue", "circle", "b2"), ("blue", "square", "c1"), ("cyan", "ring", "d4")), [1, 0, 1, 1]),  # too much
        (scene(("red", "circle", "b2"), ("blue", "square", "c1"), ("cyan", "ring", "d4")), [0, 0, 1, 1]),  # another one
        (scene(("blue", "circle", "b2")), [1, 0, 0, 1]),
        (scene(*[(o.colour, o.shape, o.cell) for o in (GREEN, CYAN)], ("blue", "circle", "a1")), [0, 1, 1, 0]),
        (Scene(()), [0, 0, 0, 1]),
    ],
)
def test_recolouring_is_judged_by_what_changes_and_by_what_stays(result: Scene, met: list[int]):
    judgement = judge_edit(result, BLUE.metadata())
    assert [int(m) for _, m in judgement.points] == met
    assert judgement.correct == all(met)


def test_a_moved_object_must_be_gone_from_where_it_was():
    edit = Edit("move", SOURCE, RED, Wanted("circle", "red", ("a1", "a2")))
    both = Scene((*SOURCE.objects, Object("circle", "red", "a1")))
    assert [m for _, m in judge_edit(both, edit.metadata()).points] == [True, False, True, True, True]
    twice = scene(
        *[(o.colour, o.shape, o.cell) for o in (GREEN, CYAN)], ("red", "circle", "a1"), ("red", "circle", "a2")
    )
    assert [m for _, m in judge_edit(twice, edit.metadata()).points] == [True, True, True, True, False]
    for cell in ("a1", "a2"):
        assert judge_edit(Scene((GREEN, CYAN, Object("circle", "red", cell))), edit.metadata()).correct


def test_removing_and_adding_leave_the_others_alone():
    gone = Edit("remove", SOURCE, RED, None).metadata()
    assert judge_edit(Scene((GREEN, CYAN)), gone).correct
    assert [m for _, m in judge_edit(Scene((GREEN,)), gone).points] == [True, True, False, True]
    added = Edit("add", SOURCE, None, Wanted("cross", "red", ("a4",))).metadata()
    assert judge_edit(Scene((*SOURCE.objects, Object("cross", "red", "a4"))), added).correct
    assert not judge_edit(SOURCE, added).correct


# Demonstrations


def test_targets_do_the_edit_and_their_plans_can_be_read():
    draws = random.Random(0)
    for edit in STREAMS["edit"][:300]:
        made = sample_target(edit.metadata(), draws)
        assert judge_edit(made, edit.metadata()).correct and made == made.row_major()
        assert parse_plan(format_plan(made)) == made
    assert any(s != s.row_major() for s in (sample_target(e.metadata(), draws, 1.0) for e in STREAMS["edit"][:30]))


def test_mistakes_spoil_the_edit_and_come_in_many_kinds():
    draws, seen = random.Random(0), Counter[str]()
    for edit in STREAMS["edit"]:
        right = sample_target(edit.metadata(), draws)
        made = corrupt_target(right, edit.metadata(), draws)
        judgement = judge_edit(made, edit.metadata())
        assert not judgement.correct and made.objects and made == made.row_major()
        changed = [m for (q, m) in judgement.points if "still" not in q and "else" not in q]
        kept = all(m for q, m in judgement.points if "still" in q or "else" in q)
        seen["unchanged" if made.same_picture(edit.source) else "too much" if all(changed) else "other"] += 1
        seen["kept" if kept else "not kept"] += 1
    assert all(seen[kind] > 90 for kind in ("unchanged", "too much", "other", "kept", "not kept")), seen


# Reading


@pytest.mark.parametrize("split", SPLITS[:2])
def test_every_instruction_is_read_as_it_was_meant(split: str):
    for edit in STREAMS[split]:
        read = parse_edit(edit.instruction, edit.source)
        assert (read.category, read.edited, read.wanted) == (edit.category, edit.edited, edit.wanted), edit.instruction
        assert read_source(fixed_picture(edit.source)).same_picture(edit.source)


def fixed_picture(scene: Scene) -> torch.Tensor:
    return (render([scene])[0] * 255).round().byte()


def test_people_may_write_instructions_with_capitals_and_stops():
    assert parse_edit(" Make the RING blue! ", SOURCE).wanted == Wanted("ring", "blue", ("d4",))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("paint the ring blue", "ask for one change of one object"),
        ("make the ring pink", "ask for one change"),
        ("make the cross blue", "has 0 of what is called the cross: name one that is there"),
        ("add a red cross at d4", "d4 is not empty"),
        ("move the square to b2", "b2 is not empty"),
        ("move the square to the right of the ring", "there is no empty cell to the right of the ring"),
    ],
)
def test_what_cannot_be_understood_is_told(text: str, said: str):
    with pytest.raises(ValueError, match=said):
        parse_edit(text, SOURCE)


def test_an_instruction_that_means_two_objects_is_refused():
    both = Scene((*SOURCE.objects, Object("ring", "red", "a1")))
    with pytest.raises(ValueError, match="has 2 of what is called the ring: name its colour"):
        parse_edit("make the ring blue", both)


def test_a_picture_of_something_else_is_no_source():
    with pytest.raises(ValueError, match="show no object of the shapes world"):
        read_source(torch.randint(256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))
