"""What comes next: think or not, then draw once."""

import pytest

from unigrpo.rollout.episode import Action, Episode, single_round


def test_the_papers_episode():
    assert single_round(think=True).actions == (Action.THINK, Action.DRAW) and single_round(think=True).think
    assert single_round(think=False).actions == (Action.DRAW,) and not single_round(think=False).think


@pytest.mark.parametrize("actions", [(), (Action.THINK,), (Action.DRAW, Action.THINK), (Action.DRAW, Action.DRAW)])
def test_an_episode_draws_once_at_its_end(actions):
    with pytest.raises(ValueError, match="draws once, at its end"):
        Episode(actions)
