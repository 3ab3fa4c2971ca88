"""What comes next in a trajectory: think, draw, stop."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Action(Enum):
    """One of the model's own turns."""

    THINK = "think"
    DRAW = "draw"


@dataclass(frozen=True)
class Episode:
    """The model's turns after the prompt, the same for every sample of a rollout.

    ``think`` also tells which given segments come first: [system] [prompt] with thinking, else [prompt].
    """

    actions: tuple[Action, ...]

    def __post_init__(self) -> None:
        if not self.actions or self.actions[-1] is not Action.DRAW or self.actions.count(Action.DRAW) != 1:
            raise ValueError(f"an episode draws once, at its end; got {[a.value for a in self.actions]}")

    @property
    def think(self) -> bool:
        """Whether the model thinks at all."""
        return Action.THINK in self.actions


def single_round(*, think: bool) -> Episode:
    """Think (or not), then draw: the paper's episode."""
    return Episode((Action.THINK, Action.DRAW) if think else (Action.DRAW,))
