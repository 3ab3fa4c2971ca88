"""geneval_soft: flow_grpo's points for every branch, and the reward around them."""

import math
import sys
from types import ModuleType

import pytest
import torch

from unigrpo import build
from unigrpo.evaluation.geneval_soft import GenevalSoft, soft
from unigrpo.ranges import ConfigError
from unigrpo.recipe import Scorer
from unigrpo.rewards.protocol import RewardInput


def seen(name, score=0.95, box=(0, 0, 10, 10), color=None):
    return {"class": name, "box": list(box), "score": score, "color": color}


def some(name, count=1, **more):
    return {"class": name, "count": count, **more}


def asks(*include, tag="position", **more):
    return {"tag": tag, "include": list(include), **more}


def dogs(*colours):
    return [seen("dog", color=colour) for colour in colours]


CAT, LEFT, RIGHT = (seen(n, box=(x, 90, x + 20, 110)) for n, x in (("cat", 90), ("dog", 0), ("dog", 200)))
RED_LEFT = asks(some("cat"), some("dog", color="red", position=["left of", 0]))
TABLE = [
    # number
    ("as many as asked", asks(some("dog", 2)), dogs(None, None), 1.0),
    ("half of them", asks(some("dog", 2)), dogs(None), 0.5),
    ("half too many", asks(some("dog", 2)), dogs(None, None, None), 0.5),
    ("none", asks(some("dog", 2)), [], 0.0),
    ("far too many is below 0", asks(some("dog")), dogs(*[None] * 10), -8.0),
    ("at most 16 count", asks(some("dog")), dogs(*[None] * 30), -14.0),
    ("at 0.3", asks(some("dog", 2)), [seen("dog", 0.3), seen("dog", 0.31)], 0.5),
    ("at 0.9 for counting", asks(some("dog", 2), tag="counting"), [seen("dog", 0.89), seen("dog", 0.91)], 0.5),
    ("exclude is not looked at", asks(some("dog"), exclude=[some("cat")]), [seen("dog"), seen("cat")], 1.0),
    ("the mean over entries", asks(some("dog"), some("cat", 4)), [seen("dog"), seen("cat")], (1 + 0.25) / 2),
    # colour
    ("the right colour", asks(some("dog", color="red")), dogs("red"), 1.0),
    ("the wrong colour", asks(some("dog", color="red")), dogs("pink"), 0.5),
    ("two of three colours", asks(some("dog", 3, color="red")), dogs("red", "red", "pink"), (1 + (1 - 1 / 3)) / 2),
    ("a colour of a wrong number gains nothing", asks(some("dog", color="red")), dogs("red", "red"), 0.0),
    ("half a number, and nothing for its colours", asks(some("dog", 2, color="red")), dogs("red"), 0.25),
    # place
    ("as asked", asks(some("cat"), some("dog", position=["left of", 0])), [CAT, LEFT], 1.0),
    ("elsewhere gains half for the place", asks(some("cat"), some("dog", position=["left of", 0])), [CAT, RIGHT], 0.75),
    ("no target", asks(some("cat"), some("dog", position=["left of", 0])), [LEFT], (0 + 1 + 0) / 3),
    (
        "two targets where one is asked",
        asks(some("cat"), some("dog", position=["left of", 0])),
        [CAT, CAT, LEFT],
        1 / 3,
    ),
    ("nothing to place", asks(some("cat"), some("dog", position=["left of", 0])), [CAT], 1 / 3),
    ("one of two lies elsewhere", asks(some("cat"), some("dog", 2, position=["left of", 0])), [CAT, LEFT, RIGHT], 0.75),
    # colour and place
    ("both right", RED_LEFT, [CAT, {**LEFT, "color": "red"}], 1.0),
    ("a wrong colour: the place is not looked at", RED_LEFT, [CAT, {**LEFT, "color": "pink"}], (1 + 1 + 0) / 3),
    ("a wrong number: one 0 for both", RED_LEFT, [CAT], (1 + 0 + 0) / 3),
    (
        "a target of the wrong colour is none",
        asks(some("cat", color="red"), some("dog", position=["left of", 0])),
        [{**CAT, "color": "blue"}, LEFT],
        (1 + 0 + 1 + 0) / 4,
    ),
    (
        "what is placed wrongly is no target",
        asks(some("cat"), some("dog", position=["left of", 0]), some("cow", position=["below", 1])),
        [CAT, RIGHT, seen("cow", box=(200, 200, 220, 220))],
        (1 + 1 + 0 + 1 + 1 + 0) / 6,
    ),
]


@pytest.mark.parametrize(("metadata", "detections", "value"), [row[1:] for row in TABLE], ids=[r[0] for r in TABLE])
def test_the_points_of(metadata, detections, value):
    assert soft(metadata, detections) == value


def test_what_asks_for_nothing_is_refused():
    with pytest.raises(ConfigError, match="include is empty"):
        soft(asks(), [])


# the reward


class Fake:
    """Finds what was put into a picture: as many dogs as its first channel says; colours where they are wanted."""

    def __init__(self, colour="red"):
        self.colour, self.shown = colour, []

    def __call__(self, picture, wanted):
        assert picture.dtype == torch.uint8 and picture.ndim == 3
        self.shown.append((picture, tuple(wanted)))
        return dogs(*[self.colour if "dog" in wanted else None] * int(picture[0, 0, 0]))


@pytest.fixture
def detector(monkeypatch):
    """The module of detectors with a factory that hands out one fake and keeps what it was asked for."""
    module, fake = ModuleType("unigrpo.evaluation.detectors"), Fake()
    module.detector = lambda mapping: fake.__dict__.update(asked=mapping) or fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return fake


ARGS = {"name": "fake", "weights": "here"}


def pictures(*counts):
    return torch.stack([torch.full((3, 4, 4), count / 255) for count in counts])


def test_the_reward_gives_both_values(detector):
    reward = GenevalSoft(detector=ARGS)
    metadata = [asks(some("dog"), tag="single_object"), asks(some("dog", color="red"), tag="colors")]
    metadata += [asks(some("dog", color="pink"), tag="colors"), asks(some("dog"), tag="single_object")]
    out = reward(pictures(2, 1, 1, 0), ["p"] * 4, metadata, [None] * 4)
    assert list(out.values) == [0.0, 1.0, 0.5, 0.0] == list(out.parts["soft"])
    assert out.parts["correct"] == [1.0, 1.0, 0.0, 0.0]  # two dogs are right for GenEval where one is asked for
    assert not out.errors and detector.asked == ARGS
    assert [wanted for _, wanted in detector.shown] == [(), ("dog",), ("dog",), ()]


def test_what_cannot_be_judged_is_an_error_and_no_zero(detector):
    detector.colour = None
    metadata = [{"word": "HI"}, asks(some("dog", color="red"), tag="colors"), asks(some("doge"), tag="colors")]
    metadata += [asks(some("dog"), tag="colors")]
    out = GenevalSoft(detector=ARGS)(pictures(1, 1, 1, 1), ["p"] * 4, metadata, [None] * 4)
    assert sorted(out.errors) == [0, 1, 2] and all(math.isnan(out.values[i]) for i in range(3))
    assert out.values[3] == 1.0 and out.parts["correct"][3] == 1.0
    assert "tag and include" in out.errors[0] and "without a colour" in out.errors[1] and "doge" in out.errors[2]


def test_a_detector_that_answers_nonsense_is_an_error(detector, monkeypatch):
    monkeypatch.setattr(Fake, "__call__", lambda *_: [seen("dog", math.nan)])
    out = GenevalSoft(detector=ARGS)(pictures(1), ["p"], [asks(some("dog"))], [None])
    assert "NaN" in out.errors[0]


def test_a_recipe_names_it(detector):
    scorer = Scorer("geneval_soft", args={"detector": {**ARGS, "clip": "there"}}, value="correct")
    given = RewardInput(pictures(2), ["p"], [asks(some("dog"))], [None])
    assert list(build.reward([scorer])(given).values) == [1.0]
    assert detector.asked["clip"] == "there"


@pytest.mark.parametrize("wrong", ["mask2former-mmdet", {}, {"weights": "here"}, None])
def test_a_detector_must_be_named(detector, wrong):
    with pytest.raises(ConfigError, match=r"geneval_soft: detector = .* must name a detector"):
        GenevalSoft(detector=wrong)
