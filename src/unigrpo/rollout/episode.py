"""What comes next in a trajectory: think, draw, look at the drawing, think again, draw again, stop."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Literal, get_args

Look = Literal["seen", "grey", "other"]
"""What a look shows: the picture that was drawn; or, to find out what a look is good for, a grey one or another's."""
OWN, NONE = "own", "none"
"""Words for what follows a look: a thinking of the model's own, or nothing; any other text stands there as it is."""
THINK_MARK = re.compile(r"</?think>", re.IGNORECASE)


class Action(Enum):
    """One turn: the model's own (think, draw), or one in which something is put before it (look, tell)."""

    THINK = "think"
    DRAW = "draw"
    LOOK = "look"
    TELL = "tell"


ORDER = re.compile(r"t?d(l[te]?d)*")
"""Episodes in letters: think (t), draw (d); then look (l), think, be told (e) or neither, and draw, again and again."""
LETTERS = {Action.THINK: "t", Action.DRAW: "d", Action.LOOK: "l", Action.TELL: "e"}


@dataclass(frozen=True)
class Episode:
    """The turns after the prompt; a sample may end before the others by what it says.

    ``think`` also tells which given segments come first: [system] [prompt] with thinking, else [prompt]. stop_words: a
    thinking after a look whose words are exactly one of these ends its sample, and the drawing before it stands. look:
    what a look shows. told: the words of a TELL, which stand in place of a thinking. ValueError on any other order.
    """

    actions: tuple[Action, ...]
    stop_words: tuple[str, ...] = ()
    look: Look = "seen"
    told: str = ""

    def __post_init__(self) -> None:
        if not ORDER.fullmatch("".join(LETTERS[action] for action in self.actions)):
            raise ValueError(
                "an episode draws at its end, and looks between two drawings (think, draw, look, think, draw); got "
                f"{[a.value for a in self.actions]}"
            )
        if self.look not in get_args(Look):
            raise ValueError(f"a look shows {', '.join(get_args(Look))}; got {self.look!r}")

    @property
    def think(self) -> bool:
        """Whether the model thinks at all."""
        return Action.THINK in self.actions

    @property
    def rounds(self) -> int:
        """Pictures of a sample that does not stop before."""
        return self.actions.count(Action.DRAW)

    def ends(self, words: str) -> bool:
        """Whether a thinking after a look ends its sample: its words, without marks, are exactly one of stop_words."""
        return bare(words) in {bare(stop) for stop in self.stop_words}


def bare(words: str) -> str:
    """Words without thinking marks, in small letters, with single spaces."""
    return " ".join(THINK_MARK.sub(" ", words).lower().split())


def single_round(*, think: bool) -> Episode:
    """Think (or not), then draw: the paper's episode."""
    return rounds_of(1, think=think)


def rounds_of(
    count: int, *, think: bool, stop_words: tuple[str, ...] = (), look: Look = "seen", rethink: str = OWN
) -> Episode:
    """Think, draw, and ``count`` - 1 times look, think, draw.

    rethink: what comes between a look and the next drawing: a thinking (``own``; nothing where the model does not
    think), nothing (``none``), or these very words, which are given and not trained.
    """
    again = {OWN: (Action.THINK,) if think else (), NONE: ()}.get(rethink, (Action.TELL,))
    first = (Action.THINK, Action.DRAW) if think else (Action.DRAW,)
    told = rethink if Action.TELL in again else ""
    return Episode((*first, *((Action.LOOK, *again, Action.DRAW) * (count - 1))), stop_words, look, told)
