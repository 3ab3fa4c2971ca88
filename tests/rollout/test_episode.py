"""What comes next: think or not, draw; then look, think again, draw again."""

import pytest

from unigrpo.rollout.episode import Action, Episode, rounds_of, single_round

THINK, DRAW, LOOK, TELL = Action.THINK, Action.DRAW, Action.LOOK, Action.TELL


def test_the_papers_episode():
    assert single_round(think=True).actions == (THINK, DRAW) and single_round(think=True).think
    assert single_round(think=False).actions == (DRAW,) and not single_round(think=False).think
    assert rounds_of(1, think=True) == single_round(think=True)


@pytest.mark.parametrize(
    ("options", "actions"),
    [
        ({"think": True}, (THINK, DRAW, LOOK, THINK, DRAW, LOOK, THINK, DRAW)),
        ({"think": False}, (DRAW, LOOK, DRAW, LOOK, DRAW)),
        ({"think": True, "rethink": "none"}, (THINK, DRAW, LOOK, DRAW, LOOK, DRAW)),
        ({"think": True, "rethink": "fine"}, (THINK, DRAW, LOOK, TELL, DRAW, LOOK, TELL, DRAW)),
        ({"think": False, "rethink": "fine"}, (DRAW, LOOK, TELL, DRAW, LOOK, TELL, DRAW)),
    ],
)
def test_rounds(options, actions):
    episode = rounds_of(3, **options)
    assert episode.actions == actions and episode.rounds == 3 and episode.think == options["think"]
    assert episode.told == ("fine" if TELL in actions else "")


@pytest.mark.parametrize(
    "actions",
    [(), (THINK,), (DRAW, THINK), (DRAW, DRAW), (DRAW, LOOK), (LOOK, DRAW), (TELL, DRAW), (DRAW, LOOK, THINK)],
)
def test_an_episode_draws_at_its_end_and_looks_between_two_drawings(actions):
    with pytest.raises(ValueError, match="draws at its end, and looks between two drawings"):
        Episode(actions)


def test_a_look_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="a look shows seen, grey, other; got 'blue'"):
        rounds_of(2, think=True, look="blue")


@pytest.mark.parametrize("said", ["fine", "<think> fine </think>", " Fine "])
def test_a_sample_ends_by_its_very_words(said):
    episode = rounds_of(2, think=True, stop_words=("fine", "all is well"))
    assert episode.ends(said) and episode.ends("all  is well")
    assert not episode.ends("fine so red circle b2") and not episode.ends("") and not episode.ends("all is")
    assert not rounds_of(2, think=True).ends(said)
