from __future__ import annotations

import random

import pytest
import torch

from unigrpo.worlds.words.font import CONSONANTS, GLYPHS, LETTERS, VOWELS, ink
from unigrpo.worlds.words.planner import (
    CONFUSED,
    corrupt_sign,
    format_plan,
    parse_plan,
    plan_satisfies,
    random_sign,
    sample_sign,
    slip,
    vocabulary,
)
from unigrpo.worlds.words.prompts import (
    CATEGORIES,
    FRAMES,
    SPLITS,
    PromptStream,
    fixed,
    normalise_prompt,
    parse_prompt,
    words,
)
from unigrpo.worlds.words.renderer import BACKGROUND, IMAGE_SIZE, INK, render
from unigrpo.worlds.words.signs import COLUMNS, Placed, Sign, written
from unigrpo.worlds.words.tasks import judge_pictures

PROMPTS = PromptStream("train", 3).batch(0, 60)


# Letters and pictures


def test_there_are_twelve_letters_of_seven_rows_and_all_differ():
    assert len(LETTERS) == 12 and len(VOWELS) + len(CONSONANTS) == 12
    assert all([len(row) for row in glyph.split()] == [6] * 7 for glyph in GLYPHS.values())
    assert len({ink(letter).tobytes() for letter in LETTERS}) == 12


def test_a_letter_stands_in_its_column_and_nowhere_else():
    picture = render([Sign((Placed("H", "3"),))])[0]
    assert picture.shape == (3, *IMAGE_SIZE)
    inked = (picture - torch.tensor(BACKGROUND)[:, None, None]).abs().amax(0) > 1e-6
    assert inked.any(0).nonzero().flatten().tolist() == [17, 18, 19, 20, 21, 22]
    assert torch.allclose(picture[:, inked], torch.tensor(INK)[:, None].expand(-1, int(inked.sum())))


def test_the_order_of_a_signs_letters_changes_neither_picture_nor_word():
    first = Sign((Placed("B", "4"), Placed("C", "2"), Placed("A", "3")))
    assert first.says == "CAB" and first.same_picture(written("CAB", 1))
    assert torch.equal(render([first]), render([written("CAB", 1)]))


def test_a_sign_refuses_what_the_world_has_not():
    with pytest.raises(ValueError, match="no letter 'X' in column '1'"):
        Placed("X", "1")
    with pytest.raises(ValueError, match="at most one letter"):
        Sign((Placed("A", "1"), Placed("B", "1")))


# Prompts


def test_train_and_held_out_share_no_word_and_every_letter_is_in_both():
    for category, length in CATEGORIES.items():
        train, held_out = (set(words(split, category)) for split in SPLITS)
        assert train and held_out and not train & held_out
        assert {len(word) for word in train | held_out} == {length}
    for split in SPLITS:
        assert set("".join(word for category in CATEGORIES for word in words(split, category))) == set(LETTERS)


def test_the_stream_depends_on_seed_and_split_alone_and_takes_the_categories_in_turn():
    assert PROMPTS == PromptStream("train", 3).batch(0, 60) != PromptStream("train", 4).batch(0, 60)
    assert [p.metadata["category"] for p in PROMPTS[:6]] == [*CATEGORIES, *CATEGORIES]
    assert PromptStream("train", 3).batch(2, 10) == PROMPTS[20:30]
    assert all(p.metadata["word"] in words("train", p.metadata["category"]) for p in PROMPTS)


def test_the_fixed_list_is_held_out_and_a_short_one_begins_a_long_one():
    long = fixed("held-out", 90)
    assert fixed("held-out", 30) == long[:30] and [p.position for p in long] == list(range(90))
    asked = [p.metadata["word"] for p in long if p.metadata["category"] == "three letters"]
    assert len(set(asked)) == 30 and set(asked) <= set(words("held-out", "three letters"))


def test_an_unknown_split_is_told_of_those_there_are():
    with pytest.raises(ValueError, match="words:train or words:held-out"):
        PromptStream("test", 0)


def test_prompts_are_understood_in_any_case_and_punctuation():
    for frame in FRAMES:
        assert parse_prompt(frame.format(word="CAB")) == {"category": "three letters", "word": "CAB"}
    assert normalise_prompt('Write the word: "cab".') == "write the word CAB"
    assert parse_prompt("A SIGN THAT SAYS ctrl") == {"category": "four letters", "word": "CTRL"}


@pytest.mark.parametrize("text", ["", "write", "paint CAB", "write the word ZOO", "write A", "write TOTAL", "CAB CAB"])
def test_other_prompts_are_refused_with_what_can_be_asked(text: str):
    with pytest.raises(ValueError, match=r"cannot understand the prompt .*(CAB|letters)"):
        parse_prompt(text)


# Plans


def test_every_plan_is_written_in_the_vocabulary_and_read_back():
    known = set(vocabulary())
    for index in range(200):
        sign = random_sign(random.Random(index), unsorted=0.5)
        assert set(format_plan(sign).split()) <= known
        assert parse_plan(format_plan(sign)) == sign
    assert all(set(p.text.replace(p.metadata["word"], "").split()) <= known for p in PROMPTS)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<think> </think>",
        "<think> C 1",
        "C 1 A 2",
        "<think> C A </think>",
        "<think> C 1 A </think>",
        "<think> C 1 A 1 </think>",
        "<think> C 7 </think>",
        "<think> 1 C </think>",
    ],
)
def test_what_is_no_plan(text: str):
    assert parse_plan(text) is None


def test_samples_say_the_word_side_by_side_everywhere_on_the_sign():
    starts = set()
    for index, prompt in enumerate(PROMPTS * 5):
        sign = sample_sign(prompt.metadata, random.Random(index))
        assert plan_satisfies(sign, prompt.metadata) and sign.says == prompt.metadata["word"]
        columns = [COLUMNS.index(item.column) for item in sign.letters]
        assert columns == list(range(columns[0], columns[0] + len(columns)))
        starts.add(columns[0])
    assert starts == {0, 1, 2, 3, 4}


def test_a_plan_satisfies_a_prompt_by_the_order_of_its_columns_alone():
    asked = {"word": "CAB"}
    assert plan_satisfies(Sign((Placed("B", "6"), Placed("C", "1"), Placed("A", "3"))), asked)
    assert not plan_satisfies(written("BAC", 0), asked)
    assert not plan_satisfies(written("CABA", 0), asked)


def test_one_mistake_spoils_a_plan_and_one_slip_a_picture():
    for index, prompt in enumerate(PROMPTS * 5):
        draws = random.Random(index)
        sign = sample_sign(prompt.metadata, draws)
        assert not plan_satisfies(corrupt_sign(sign, prompt.metadata, draws), prompt.metadata)
        assert not slip(sign, draws).same_picture(sign)


def test_a_full_sign_can_slip_and_the_confusion_reaches_every_letter():
    full = written("CABLED", 0)
    assert all(not slip(full, random.Random(index)).same_picture(full) for index in range(50))
    assert set(CONFUSED) == set(CONFUSED.values()) == set(LETTERS)
    assert all((a in VOWELS) == (b in VOWELS) and a != b for a, b in CONFUSED.items())


# The judge


def test_the_judge_tells_spelling_from_drawing():
    asked = [PROMPTS[1]] * 4
    word = asked[0].metadata["word"]
    other = CONFUSED[word[0]] + word[1:]
    thinking = [format_plan(written(word, 0)), format_plan(written(word, 2)), format_plan(written(other, 1)), "<think>"]
    records = judge_pictures(lambda images: [word, other, other, word], torch.zeros(4, 3, 16, 48), asked, thinking)
    assert [r["correct"] for r in records] == [True, False, False, True]
    assert [r["plan_right"] for r in records] == [True, True, False, False]
    assert [r["follow"] for r in records] == [True, False, True, None]
    assert [r["parsable"] for r in records] == [True, True, True, False]
    assert [r["exam"] for r in records] == [1, 0.75, 0.75, 1]
    assert records[1]["points"] == [
        [f"letter 1 is {word[0]}", False],
        [f"letter 2 is {word[1]}", True],
        [f"letter 3 is {word[2]}", True],
        ["3 letters", True],
    ]


def test_without_thinking_there_is_no_plan_to_judge():
    record = judge_pictures(lambda images: [""], torch.zeros(1, 3, 16, 48), PROMPTS[:1], [None])[0]
    assert record["parsable"] is None and record["plan_right"] is None and record["follow"] is None
    assert record["exam"] == 0 and not record["correct"]
