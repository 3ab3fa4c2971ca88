"""GenEval-style prompts: the schema of the metadata, words that fit it, even categories, random access."""

import re
from collections import Counter

import pytest

from unigrpo import geneval_names
from unigrpo.worlds import geneval
from unigrpo.worlds.geneval import CATEGORIES, CLASSES, COLOURS, MAKERS, PLURALS, PromptStream, fixed, one


def test_there_are_80_classes_and_10_colours():
    assert len(set(CLASSES)) == 80 and len(set(COLOURS)) == 10
    assert {"person", "computer mouse", "tv remote", "computer keyboard", "toothbrush"} <= set(CLASSES)
    assert tuple(MAKERS) == CATEGORIES


def test_plurals_are_english():
    said = [
        PLURALS[name] for name in ("person", "bus", "bench", "sheep", "knife", "wine glass", "computer mouse", "couch")
    ]
    assert said == ["people", "buses", "benches", "sheep", "knives", "wine glasses", "computer mice", "couches"]
    for name, plural in PLURALS.items():
        assert plural.endswith("s") or name in ("person", "sheep", "computer mouse", "broccoli")
        assert not re.search(r"(ch|sh|x|[^aeiou]y|ss|us|nife|man)s$", plural), plural


def test_articles_fit():
    assert [one(*w) for w in (("apple",), ("cup",), ("cup", "orange"), ("oven", "red"))] == [
        "an apple",
        "a cup",
        "an orange cup",
        "a red oven",
    ]
    assert one("skis", "red") == "a pair of red skis" and one("broccoli") == "a head of broccoli"


def expected(metadata):
    """What a prompt must name, from its metadata alone."""
    words = []
    for item in metadata["include"]:
        if item["count"] > 1:
            words += [PLURALS[item["class"]], geneval.NUMBERS[item["count"]]]
        else:
            words += [item["class"], item.get("color", "")]
    return words


@pytest.mark.parametrize("some", [PromptStream(5).batch(0, 1200), fixed(600)], ids=["train", "fixed"])
def test_words_and_metadata_say_the_same(some):
    assert [p.position for p in some] == list(range(len(some)))
    for prompt in some:
        meta = prompt.metadata
        tag, include = meta["tag"], meta["include"]
        assert meta["category"] == tag
        assert set(meta) == {"tag", "include", "category"} | ({"exclude"} if tag == "counting" else set())
        assert all(f" {word} " in f" {prompt.text} " for word in expected(meta) if word), prompt.text
        assert len(include) == (2 if tag in ("two_object", "position", "color_attr") else 1)
        assert len({item["class"] for item in include}) == len(include)
        assert all(set(item) <= {"class", "count", "color", "position"} for item in include)
        assert all(("color" in item) == (tag in ("colors", "color_attr")) for item in include)
        coloured = [item for item in include if "color" in item]
        assert all(item["class"] != "person" and item["class"] != item["color"] for item in coloured)
        assert len({item["color"] for item in coloured}) == len(coloured)


def test_counting_excludes_one_more():
    for prompt in (p for p in fixed(300) if p.metadata["tag"] == "counting"):
        (wanted,), (too_many,) = prompt.metadata["include"], prompt.metadata["exclude"]
        assert wanted["count"] in (2, 3, 4)
        assert too_many == {"class": wanted["class"], "count": wanted["count"] + 1}
        assert wanted["class"] not in ("skis", "scissors", "broccoli")


def test_positions_are_said_of_the_second_object():
    seen = Counter()
    for prompt in (p for p in PromptStream(0).batch(0, 1200) if p.metadata["tag"] == "position"):
        other, placed = prompt.metadata["include"]
        relation, index = placed["position"]
        assert index == 0 and "position" not in other
        words = {"left of": "left of", "right of": "right of", "above": "above", "below": "(below|under)"}[relation]
        assert re.search(f"{one(placed['class'])} (to the )?{words} {one(other['class'])}$", prompt.text), prompt.text
        seen[relation] += 1
    assert set(seen) == {"left of", "right of", "above", "below"} and min(seen.values()) > 30


def test_categories_are_even_and_in_random_order():
    some = PromptStream(1).batch(0, 60)
    blocks = [tuple(p.metadata["category"] for p in some[start : start + 6]) for start in range(0, 60, 6)]
    assert all(sorted(block) == sorted(CATEGORIES) for block in blocks) and len(set(blocks)) > 5
    chosen = PromptStream(1, ("counting", "counting", "position")).batch(0, 30)
    assert Counter(p.metadata["tag"] for p in chosen) == {"counting": 20, "position": 10}
    with pytest.raises(ValueError, match=r"categories of GenEval prompts are single_object, .*, not cuonting"):
        PromptStream(0, ("cuonting",))


def test_the_stream_has_random_access_and_depends_on_the_seed():
    assert PromptStream(0).batch(3, 8) == PromptStream(0).batch(0, 32)[24:]
    assert PromptStream(0).batch(0, 8) != PromptStream(1).batch(0, 8)


def test_the_fixed_list_is_genevals_wording_without_repeats():
    some = fixed(480)
    assert fixed(100) == some[:100]
    assert all(p.text.startswith("a photo of ") for p in some)
    assert len({p.text for p in some}) == 480
    assert {p.metadata["include"][0]["class"] for p in some[::6]} == set(CLASSES)
    assert Counter(p.metadata["tag"] for p in some) == dict.fromkeys(CATEGORIES, 80)


def test_training_words_vary():
    starts = {p.text.split()[:2][0] + " " + p.text.split()[1] for p in PromptStream(0).batch(0, 200)}
    assert {"a photo", "a picture", "an image", "a photograph"} <= starts


def test_names_are_those_that_the_rules_know():
    assert tuple(PLURALS) == CLASSES == geneval_names.CLASSES
    assert tuple(geneval.RELATIONS) == geneval_names.RELATIONS and CATEGORIES == geneval_names.TAGS
