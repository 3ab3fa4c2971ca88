"""Reward functions by name: registered under it, named in recipes, looked up by the command line."""

from __future__ import annotations

from collections.abc import Callable

from unigrpo.config import did_you_mean
from unigrpo.rewards.protocol import RewardFunction

_FACTORIES: dict[str, Callable[[], RewardFunction]] = {}


def register(name: str, factory: Callable[[], RewardFunction]) -> None:
    """Make a reward known; ``factory`` builds it when a recipe asks for it (so models load lazily)."""
    if _FACTORIES.get(name, factory) is not factory:
        raise ValueError(f"there is already a reward called {name!r}: choose another name")
    _FACTORIES[name] = factory


def build(name: str) -> RewardFunction:
    """Build the reward of this name; ValueError lists the known ones."""
    if name not in _FACTORIES:
        hint = did_you_mean(name, list(_FACTORIES))
        raise ValueError(f"there is no reward called {name!r}{hint}; known rewards: {', '.join(sorted(_FACTORIES))}")
    return _FACTORIES[name]()
