"""What a thinking and a drawing of a round are worth, and what they are compared with (docs/math.md#rounds)."""

import itertools
from dataclasses import replace

import pytest
import torch

from unigrpo.objectives.advantage import Advantage, Share
from unigrpo.objectives.credit import places_of, worth
from unigrpo.trajectory import Image, Prompt, Score, Text, Trajectory

SYSTEM = Text(torch.tensor([3]))
SAMPLES = itertools.count()


def drawn():
    return Image(torch.zeros(1, 1), (1, 1), drawn=True)


def thought():
    return Text(torch.tensor([4, 5]), log_probs=torch.zeros(3))


def trajectory(*rewards, position=0, stops=False, values=None):
    """A sample whose drawings have these rewards; ``stops``: a last thinking has ended it."""
    segments = [SYSTEM]
    for number in range(len(rewards)):
        segments += [Image(torch.zeros(1, 1), (1, 1))] if number else []
        segments += [thought(), drawn()]
    segments += [Image(torch.zeros(1, 1), (1, 1)), thought()] if stops else []
    named = values or [{"a": reward} for reward in rewards]
    scores = tuple(Score(reward, value) for reward, value in zip(rewards, named, strict=True))
    number = next(SAMPLES)
    return Trajectory(Prompt(position, "p"), number, tuple(segments), rewards[-1], values=named[-1], scores=scores)


def test_places_are_rounds_and_kinds():
    made = trajectory(1.0, 2.0, stops=True)
    assert places_of(made.segments) == [(1, Text), (1, Image), (2, Text), (2, Image), (3, Text)]


@pytest.mark.parametrize(
    ("credit", "worths"),
    [
        ("terminal", [0.7, 0.7, 0.7, 0.7]),
        ("per_picture", [0.5, 0.55, 0.7, 0.7]),
        ("improvement", [0.4, 0.0, 0.3, 0.0]),
    ],
)
def test_what_rounds_are_worth(credit, worths):
    """Of pictures .4, .4, .7; the fourth round is a thinking that ended the sample."""
    assert [worth([0.4, 0.4, 0.7], turn, credit) for turn in (1, 2, 3, 4)] == pytest.approx(worths)


def of(values):
    """Group-relative advantages by hand."""
    values = torch.tensor(values, dtype=torch.float64)
    return ((values - values.mean()) / (values.std(correction=0) + 1e-4)).tolist()


def test_one_advantage_for_all_is_that_of_the_last_picture():
    group = [trajectory(0.1, 0.9), trajectory(0.8, 0.2), trajectory(0.5, 0.5)]
    ready = Advantage().assign(group)
    for made, value in zip(ready, of([0.9, 0.2, 0.5]), strict=True):
        assert made.advantages == pytest.approx((value,) * 4, abs=1e-6)


def test_per_picture_pays_for_all_pictures_that_come_after():
    group = [trajectory(0.1, 0.9), trajectory(0.8, 0.2), trajectory(0.5, 0.5)]
    ready = Advantage(credit="per_picture").assign(group)
    second = of([0.9, 0.2, 0.5])
    for made, later in zip(ready, second, strict=True):
        assert made.advantages[:2] == (0.0, 0.0)  # means are equal
        assert made.advantages[2:] == pytest.approx((later,) * 2, abs=1e-6)


def test_improvement_pays_the_first_round_by_its_own_picture():
    group = [trajectory(0.1, 0.9), trajectory(0.8, 0.2), trajectory(0.5, 0.5)]
    ready = Advantage(credit="improvement").assign(group)
    for made, first, second in zip(ready, of([0.1, 0.8, 0.5]), of([0.8, -0.6, 0.0]), strict=True):
        assert made.advantages == pytest.approx((first, first, second, second), abs=1e-6)


def test_a_thinking_that_ends_its_sample_is_compared_with_those_that_went_on():
    """Stopping at .6 is no improvement: better than making it worse, and not as good as making it better."""
    group = [trajectory(0.6, stops=True), trajectory(0.6, 0.9), trajectory(0.6, 0.1)]
    stopped, better, worse = Advantage(credit="improvement").assign(group)
    assert worse.advantages[2] < stopped.advantages[2] < better.advantages[2]
    assert stopped.advantages[2] == pytest.approx(of([0.0, 0.3, -0.5])[0], abs=1e-6)
    assert better.advantages[3] == pytest.approx(of([0.3, -0.5])[0], abs=1e-6)  # drawings: of two alone
    stopped, better, worse = Advantage(credit="per_picture").assign(group)
    assert stopped.advantages[2] == pytest.approx(of([0.6, 0.9, 0.1])[0], abs=1e-6)


def test_groups_are_prompts():
    group = [trajectory(0.1, 0.4, position=p) for p in (0, 1)]
    assert all(made.advantages == (0.0,) * 4 for made in Advantage(credit="improvement").assign(group))


def test_rewards_that_teach_one_half_teach_it_in_every_round():
    values = [[{"a": 0.1, "b": 1.0}, {"a": 0.9, "b": 0.0}], [{"a": 0.8, "b": 0.0}, {"a": 0.2, "b": 0.5}]]
    group = [trajectory(0.0, 0.0, values=own) for own in values]
    shares = (Share("a", teaches="thinking"), Share("b", teaches="drawing"))
    first, _ = Advantage(credit="improvement").assign(group, shares)
    by_hand = [of([0.1, 0.8])[0], of([1.0, 0.0])[0], of([0.8, -0.6])[0], of([-1.0, 0.5])[0]]
    assert first.advantages == pytest.approx(by_hand, abs=1e-6)
    first, _ = Advantage(credit="improvement").assign(group, shares[:1])
    assert first.advantages[1] is None and first.advantages[3] is None


def sharing(*scores, credit, **keys):
    """Advantages of one prompt whose samples have these scores, two of them on each first thinking."""
    made = [replace(trajectory(*each), sample=i, thought=i // 2) for i, each in enumerate(scores)]
    return [t.advantages for t in Advantage(credit=credit, **keys).assign(made)]


@pytest.mark.parametrize("credit", ["terminal", "per_picture", "improvement"])
def test_a_shared_first_thinking_is_worth_the_mean_of_its_samples(credit):
    scores = [(0.1, 0.9), (0.3, 0.2), (0.8, 0.4), (0.6, 0.5)]
    found = sharing(*scores, credit=credit)
    own = [worth(each, 1, credit) for each in scores]
    thoughts = of([(own[0] + own[1]) / 2, (own[2] + own[3]) / 2])
    second = of([worth(each, 2, credit) for each in scores])
    for i, (thinking, drawing, again, last) in enumerate(found):
        assert thinking == pytest.approx(thoughts[i // 2], abs=1e-6)
        assert drawing == pytest.approx(of(own)[i], abs=1e-6)
        assert again == last == pytest.approx(second[i], abs=1e-6)


def test_the_last_picture_is_compared_alike_whether_first_thinkings_are_shared_or_not():
    """Also with samples that stopped before: but the first thinking, all is as if nothing were shared."""
    group = [
        trajectory(0.6, stops=True),
        trajectory(0.3, 0.9),
        trajectory(0.2, stops=True),
        trajectory(0.5, stops=True),
    ]
    group = [replace(t, sample=i) for i, t in enumerate(group)]
    alone = Advantage().assign(group)
    shared = Advantage().assign([replace(t, thought=i // 2) for i, t in enumerate(group)])
    for one, other, thinking in zip(alone, shared, of([0.75, 0.75, 0.35, 0.35]), strict=True):
        assert other.advantages[1:] == one.advantages[1:]
        assert other.advantages[0] == pytest.approx(thinking, abs=1e-6)


def test_first_drawings_alone_are_compared_within_their_thought():
    found = sharing((0.1, 0.9), (0.3, 0.2), (0.8, 0.4), (0.6, 0.5), credit="improvement", within="thought")
    assert [row[1] for row in found] == pytest.approx([*of([0.1, 0.3]), *of([0.8, 0.6])], abs=1e-6)
    assert [row[3] for row in found] == pytest.approx(of([0.8, -0.1, -0.4, -0.1]), abs=1e-6)


def test_a_drawing_without_a_score_is_no_zero():
    with pytest.raises(ValueError, match="a drawing has no score"):
        bare = Trajectory(Prompt(0, "p"), 0, trajectory(0.1, 0.2).segments, 0.2)
        Advantage(credit="per_picture").assign([bare])


def test_of_one_round_all_credits_are_one():
    group = [trajectory(0.1), trajectory(0.8)]
    plain = [made.advantages for made in Advantage().assign(group)]
    for credit in ("per_picture", "improvement"):
        assert [made.advantages for made in Advantage(credit=credit).assign(group)] == plain


def test_advantages_are_given_one_each():
    with pytest.raises(ValueError, match="3 advantages do not fit"):
        trajectory(0.1, 0.2).with_each_advantage([0.0, 0.0, 0.0])
