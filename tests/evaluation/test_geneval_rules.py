"""GenEval's rules: a row for every branch and edge of the official evaluation, and what must not matter."""

import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unigrpo.evaluation import geneval_metadata, geneval_rules
from unigrpo.evaluation.geneval_rules import DetectionError, judge, kept, relations
from unigrpo.geneval_names import CLASSES, COLOURS, RELATIONS, TAGS
from unigrpo.ranges import ConfigError

SINGLE_03 = 0.30000001192092896  # 0.3 in single precision, as a detector gives it
SINGLE_09 = 0.8999999761581421


def seen(name, score=0.95, box=(0, 0, 10, 10), color=None):
    return {"class": name, "box": list(box), "score": score, "color": color}


def at(x, y, name="dog", score=0.95, size=20, **more):
    """A square around (x, y)."""
    return seen(name, score, (x - size / 2, y - size / 2, x + size / 2, y + size / 2), **more)


def many(name, count, score=0.95):
    return [seen(name, score, (i, 0, i + 5, 5)) for i in range(count)]


def asks(tag, *include, exclude=()):
    return {"tag": tag, "include": list(include), **({"exclude": list(exclude)} if exclude else {})}


def some(name, count=1, **more):
    return {"class": name, "count": count, **more}


def counting(name, count):
    return asks("counting", some(name, count), exclude=[some(name, count + 1)])


def placed(relation, target=0, count=1, others=1):
    return asks("position", some("cat", others), some("dog", count, position=[relation, target]))


CAT = at(100, 100, "cat")
DOG_BOX = [839.518798828125, 488.4519348144531, 1113.0233154296875, 550.0469970703125]
AT_EDGE = [
    seen("cat", box=[1021.9719848632812, 504.24945068359375, 1051.971923828125, 534.2494506835938]),
    seen("dog", box=DOG_BOX),
]
DOG = asks("single_object", some("dog"))
RED = asks("colors", some("dog", color="red"))
TWO = asks("two_object", some("dog"), some("cat"))

TABLE = [
    # score thresholds
    ("above 0.3 counts", DOG, [seen("dog", 0.3001)], True),
    ("0.3 itself does not", DOG, [seen("dog", 0.3)], False),
    ("0.3 in single precision is at the threshold", DOG, [seen("dog", SINGLE_03)], False),
    ("the next number in single precision is above", DOG, [seen("dog", 0.3000000417232513)], True),
    ("the next number in double precision is above", DOG, [seen("dog", math.nextafter(0.3, 1))], True),
    ("below 0.3 does not count", DOG, [seen("dog", 0.29)], False),
    ("counting: above 0.9 counts", counting("dog", 2), many("dog", 2, 0.9001), True),
    ("counting: 0.9 itself does not", counting("dog", 2), many("dog", 2, 0.9), False),
    ("counting: nor in single precision", counting("dog", 2), many("dog", 2, SINGLE_09), False),
    ("counting: 0.9 does not count for exclude either", counting("dog", 2), many("dog", 2) + many("dog", 1, 0.9), True),
    ("0.9 is for counting only", asks("two_object", some("dog", 2)), many("dog", 2, 0.5), True),
    ("an unknown tag has 0.3", asks("other", some("dog", 2)), many("dog", 2, 0.5), True),
    # number
    ("nothing found", DOG, [], False),
    ("another class", DOG, [seen("cat")], False),
    ("more than wanted is fine", DOG, many("dog", 5), True),
    ("too few", asks("two_object", some("dog", 2)), many("dog", 1), False),
    ("both classes", TWO, [seen("dog"), seen("cat")], True),
    ("one of two classes", TWO, [seen("dog"), seen("dog")], False),
    ("other classes do not matter", DOG, [seen("dog"), *many("cat", 9)], True),
    ("boxes that overlap are two objects", asks("two_object", some("dog", 2)), [seen("dog"), seen("dog")], True),
    ("one object serves two entries", asks("two_object", some("dog"), some("dog")), [seen("dog")], True),
    ("16 of a class count", asks("two_object", some("dog", 16)), many("dog", 16), True),
    ("no more than 16 count", asks("two_object", some("dog", 17)), many("dog", 20), False),
    ("so exclude of 17 never strikes", counting("dog", 16), many("dog", 40), True),
    ("exclude of 16 does", counting("dog", 15), many("dog", 40), False),
    ("the 16 are counted after the threshold", counting("dog", 2), many("dog", 30, 0.5) + many("dog", 2), True),
    ("each class has its own 16", asks("two_object", some("cat")), [*many("dog", 20), seen("cat", 0.4)], True),
    ("nothing asked is right", {"tag": "single_object"}, [], True),
    ("none of a class wanted", asks("two_object", some("dog", 0)), [], True),
    # exclude
    ("exact number", counting("dog", 3), many("dog", 3), True),
    ("one too many", counting("dog", 3), many("dog", 4), False),
    ("exclude without include", {"tag": "colors", "exclude": [some("cat")]}, [seen("cat")], False),
    ("exclude of what is not there", {"tag": "colors", "exclude": [some("cat")]}, [seen("dog")], True),
    ("exclude counts at 0.3 but for counting", asks("colors", exclude=[some("cat")]), [seen("cat", 0.31)], False),
    ("one exclude of two strikes", asks("colors", exclude=[some("cat"), some("dog")]), [seen("dog")], False),
    ("of 0 objects or more there are always some", asks("colors", exclude=[some("cat", 0)]), [], False),
    # colour
    ("the right colour", RED, [seen("dog", color="red")], True),
    ("the wrong colour", RED, [seen("dog", color="pink")], False),
    ("no colour is no colour asked for", RED, [seen("dog")], False),
    ("only the most confident is looked at", RED, [seen("dog", 0.5, color="red"), seen("dog", 0.9)], False),
    ("whatever its order", RED, [seen("dog", 0.9), seen("dog", 0.95, color="red")], True),
    ("of equals the later is first", RED, [seen("dog", color="pink"), seen("dog", color="red")], True),
    ("and not the earlier", RED, [seen("dog", color="red"), seen("dog", color="pink")], False),
    (
        "every one of the counted must have it",
        asks("colors", some("dog", 2, color="red")),
        [seen("dog", 0.9, color="red"), seen("dog", 0.8, color="pink"), seen("dog", 0.7, color="red")],
        False,
    ),
    (
        "two of two",
        asks("colors", some("dog", 2, color="red")),
        [seen("dog", 0.9, color="red"), seen("dog", 0.8, color="red"), seen("dog", 0.7, color="pink")],
        True,
    ),
    (
        "two colours of one class cannot both be",
        asks("color_attr", some("dog", color="red"), some("dog", color="blue")),
        [seen("dog", 0.9, color="red"), seen("dog", 0.8, color="blue")],
        False,
    ),
    (
        "each class has its colour",
        asks("color_attr", some("dog", color="red"), some("cat", color="blue")),
        [seen("dog", color="red"), seen("cat", color="blue")],
        True,
    ),
    (
        "colours exchanged",
        asks("color_attr", some("dog", color="red"), some("cat", color="blue")),
        [seen("dog", color="blue"), seen("cat", color="red")],
        False,
    ),
    ("a colour is not looked at where none is asked for", DOG, [seen("dog", color="pink")], True),
    # position: y grows downwards; the dog to the cat at (100, 100), both 20 wide and high
    ("left of", placed("left of"), [CAT, at(50, 100)], True),
    ("right of", placed("right of"), [CAT, at(150, 100)], True),
    ("above", placed("above"), [CAT, at(100, 50)], True),
    ("below", placed("below"), [CAT, at(100, 150)], True),
    ("not left of", placed("left of"), [CAT, at(150, 100)], False),
    ("not above", placed("above"), [CAT, at(100, 150)], False),
    ("the diagonal is left of", placed("left of"), [CAT, at(50, 50)], True),
    ("and above", placed("above"), [CAT, at(50, 50)], True),
    ("and not below", placed("below"), [CAT, at(50, 50)], False),
    ("far more right than below is not below", placed("below"), [CAT, at(200, 130)], False),
    ("boxes in one place have no relation", placed("left of"), [CAT, at(100, 100)], False),
    ("offset of a tenth of the sizes: none", placed("right of"), [CAT, at(104, 100)], False),
    ("half of the distance left: not yet", placed("right of"), [CAT, at(108, 100)], False),
    ("a little more than half", placed("right of"), [CAT, at(108.01, 100)], True),
    ("sizes are of the axis", placed("right of"), [CAT, seen("dog", box=(105, 0, 115, 200))], True),
    ("and of both boxes", placed("right of"), [CAT, seen("dog", box=(0, 95, 220, 105))], False),
    (
        "a wide box needs a larger offset",
        placed("right of"),
        [CAT, seen("dog", box=(40, 95, 180, 105))],
        False,
    ),
    ("numbers of single precision are computed with in it", placed("left of"), AT_EDGE, False),
    ("other numbers are not", placed("left of"), [AT_EDGE[0], seen("dog", box=[839.5187988281, *DOG_BOX[1:]])], True),
    ("the target is missing", placed("left of"), [at(50, 100)], False),
    ("the placed one is missing", placed("left of"), [CAT], False),
    (
        "a target of the wrong colour is no target",
        asks("position", some("cat", color="red"), some("dog", position=["left of", 0])),
        [{**CAT, "color": "blue"}, at(50, 100)],
        False,
    ),
    (
        "the most confident target",
        placed("left of"),
        [{**CAT, "score": 0.9}, at(0, 100, "cat", 0.95), at(50, 100)],
        False,
    ),
    (
        "the most confident placed one",
        placed("left of"),
        [CAT, at(50, 100, score=0.9), at(150, 100, score=0.95)],
        False,
    ),
    ("every placed one", placed("left of", count=2), [CAT, at(50, 100), at(150, 100, score=0.9)], False),
    ("both placed ones", placed("left of", count=2), [CAT, at(50, 100), at(40, 100)], True),
    ("every target", placed("left of", others=2), [CAT, at(0, 100, "cat", 0.9), at(50, 100)], False),
    ("both targets", placed("left of", others=2), [CAT, at(120, 100, "cat"), at(50, 100)], True),
    ("a target counted from this entry back", placed("left of", -1), [CAT, at(50, 100)], True),
    ("an object has no relation to itself", asks("position", some("dog"), some("dog", position=["above", 0])),
     [at(0, 0), at(50, 50)], False),
    (
        "the second of two targets",
        asks("position", some("cat"), some("bird"), some("dog", position=["left of", 1])),
        [CAT, at(0, 100, "bird"), at(50, 100)],
        False,
    ),
    (
        "what was placed wrongly is no target",
        asks("position", some("cat"), some("dog", position=["left of", 0]), some("bird", position=["above", 1])),
        [CAT, at(150, 100), at(150, 0, "bird")],
        False,
    ),
    ("nothing has a place", asks("position", some("cat"), some("dog", 0, position=["above", 0])), [CAT], True),
    # nulls, as tables store what is left out
    ("null is left out", {"tag": "colors", "include": [some("dog", color=None, position=None)], "exclude": None},
     [seen("dog", color="pink")], True),
]  # fmt: skip


@pytest.mark.parametrize(("metadata", "detections", "correct"), [row[1:] for row in TABLE], ids=[r[0] for r in TABLE])
def test_the_verdict_of(metadata, detections, correct):
    verdict = judge(metadata, detections)
    assert verdict.correct is correct and bool(verdict.reasons) is not correct, verdict.reasons


def test_reasons_say_what_is_wrong_one_for_an_entry():
    metadata = asks(
        "position",
        some("cat", color="red"),
        some("dog", position=["left of", 0]),
        some("bird", 2),
        some("cow"),
        some("cup", position=["above", 3]),
        exclude=[some("cow")],
    )
    found = [{**CAT, "color": "blue"}, at(50, 100), seen("bird"), at(0, 0, "cow"), at(0, 50, "cup")]
    assert judge(metadata, found).reasons == [
        "1 red cat wanted, the most confident: blue",
        "dog wanted left of what is not there as it was asked for",
        "2 bird wanted, 1 found",
        "cup wanted above cow, it is below",
        "fewer than 1 cow wanted, 1 found",
    ]


# what must not matter


names = st.sampled_from(["dog", "cat", "bird"])
numbers = st.integers(0, 40).map(float)
entries = st.fixed_dictionaries({"class": names, "count": st.integers(1, 3)}, optional={"color": st.just("red")})
boxes = st.tuples(numbers, numbers, st.integers(0, 60), st.integers(0, 60)).map(
    lambda b: [*b[:2], b[0] + b[2], b[1] + b[3]]
)
scores = st.integers(1, 999).map(lambda n: n / 1000)


@st.composite
def cases(draw):
    """Metadata of any shape, and detections without equal scores."""
    include = draw(st.lists(entries, min_size=1, max_size=3))
    for index, entry in enumerate(include[1:], 1):
        if draw(st.booleans()):
            entry["position"] = [draw(st.sampled_from(RELATIONS)), draw(st.integers(0, index - 1))]
    metadata = asks(draw(st.sampled_from(TAGS)), *include, exclude=draw(st.lists(entries, max_size=1)))
    found = draw(st.lists(st.tuples(names, boxes, scores, st.sampled_from([*COLOURS[:2], None])), max_size=25,
                          unique_by=lambda one: one[2]))  # fmt: skip
    return metadata, [seen(name, score, box, color) for name, box, score, color in found]


@settings(max_examples=60, deadline=None)
@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_detections_does_not_matter(case, draws):
    metadata, found = case
    assert judge(metadata, draws.sample(found, len(found))) == judge(metadata, found)


@settings(max_examples=60, deadline=None)
@given(cases(), st.lists(st.tuples(names, boxes, st.sampled_from([0.0, 0.1, 0.3, SINGLE_03])), max_size=30))
def test_detections_at_the_threshold_and_below_change_nothing(case, low):
    metadata, found = case
    assert judge(metadata, [*(seen(n, s, b) for n, b, s in low), *found]) == judge(metadata, found)


@settings(max_examples=60, deadline=None)
@given(boxes, boxes)
def test_relations_are_mutual(one, other):
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    assert {opposite[name] for name in relations(one, other)} == relations(other, one)
    assert relations(one, one) == frozenset()


def test_what_is_handed_in_is_left_as_it_was():
    metadata, found = counting("dog", 2), many("dog", 3)
    before = repr((metadata, found))
    judge(metadata, found)
    assert repr((metadata, found)) == before
    assert [one.score for one in kept("colors", [seen("dog", 0.4), seen("dog", 0.8)])["dog"]] == [0.8, 0.4]


# faults


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({}, "tag and include"),
        ({"include": []}, "there is: include"),
        ("dog", "there is: 'dog'"),
        ({"tag": "colors", "include": "dog"}, "include = 'dog' must be a list"),
        ({"tag": "colors", "include": ["dog"]}, r"include\[0\] = 'dog' must name a class"),
        ({"tag": "colors", "include": [{"class": "dog"}]}, r"include\[0\].count = None"),
        ({"tag": "colors", "include": [some("dog", 1.5)]}, r"include\[0\].count = 1.5"),
        ({"tag": "colors", "include": [some("dog", -1)]}, r"include\[0\].count = -1"),
        ({"tag": "colors", "include": [some("dog", True)]}, r"include\[0\].count = True"),
        ({"tag": "colors", "exclude": [some("dog", -1)]}, r"exclude\[0\].count = -1"),
        ({"tag": "colors", "include": [some("dog", color=3)]}, r"include\[0\].color = 3"),
        (asks("position", some("dog", position="above")), r"include\[0\].position = 'above'"),
        (asks("position", some("dog"), some("cat", position=[0, "above"])), r"include\[1\].position"),
        (asks("position", some("dog", position=["above", 0])), "entry 0, and 0 stand before it"),
        (placed("above", 1), "entry 1, and 1 stand before it"),
        (placed("above", -2), "entry -2, and 1 stand before it"),
    ],
)
def test_metadata_without_the_form_are_refused(metadata, said):
    with pytest.raises(ConfigError, match=said):
        judge(metadata, [])


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (asks("colour", some("dog")), r"tag = 'colour' is not known \(did you mean colors"),
        (asks("colors"), "include is empty"),
        (asks("colors", some("doge")), r"include\[0\].class = 'doge' is not known \(did you mean dog"),
        (asks("colors", some("mouse")), r"'mouse' is not known .*COCO's 80"),
        (asks("colors", some("dog", 0)), r"include\[0\].count = 0 must be at least 1"),
        (asks("colors", some("dog"), exclude=[some("dog", 0)]), r"exclude\[0\].count = 0"),
        (asks("colors", some("dog"), exclude=[some("puppy")]), r"exclude\[0\].class = 'puppy'"),
        (asks("colors", some("dog", color="grey")), r"include\[0\].color = 'grey'"),
        (placed("left"), r"include\[1\].position\[0\] = 'left'"),
    ],
)
def test_what_no_picture_can_satisfy_is_wrong_by_the_rules_and_refused_by_a_check(metadata, said):
    judge(metadata, [])
    with pytest.raises(ConfigError, match=said):
        geneval_metadata.check(metadata)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"score": math.nan}, r"detection 1 \(dog\) has NaN"),
        ({"box": [0, 0, math.inf, 1]}, "infinity"),
        ({"box": [0, 0, 1]}, "detection 1 is .* it must have"),
        ({"score": None}, "detection 1 is"),
        ({"score": "high"}, "detection 1 is"),
    ],
)
def test_detections_that_are_none_are_named(fault, said):
    with pytest.raises(DetectionError, match=said):
        judge(DOG, [seen("dog"), {**seen("dog"), **fault}])
    with pytest.raises(DetectionError, match="detection 0"):
        judge(DOG, [{"class": "dog", "score": 0.5}])


def test_a_missing_colour_is_told_from_a_wrong_one_where_it_matters():
    found = kept("colors", [seen("dog", 0.9, color="red"), seen("dog", 0.8), seen("cat")])
    lacks = [
        geneval_rules.uncoloured(geneval_metadata.read(asks("colors", some("dog", n, color="red"))), found)
        for n in (1, 2, 3)
    ]
    assert lacks == [None, "dog", None]  # the second dog is looked at only where two are asked for, and of three, none
    unsure = kept("colors", [seen("dog", 0.9), seen("dog", 0.8, color="red")])
    assert geneval_rules.uncoloured(geneval_metadata.read(RED), unsure) == "dog"


def test_the_rules_need_no_torch():
    script = "import sys; import unigrpo.evaluation.geneval_rules; print({'torch', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "set()"


def test_the_names():
    assert len(set(CLASSES)) == 80 and len(set(COLOURS)) == 10 and len(set(TAGS)) == 6
    assert CLASSES.index("computer mouse") == 64 and CLASSES[-1] == "toothbrush"
