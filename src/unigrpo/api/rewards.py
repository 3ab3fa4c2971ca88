"""Rewards that a call gives, as a recipe names them: by the file or module that holds them, else registered."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from typing import Any

from unigrpo.loading import reference
from unigrpo.ranges import ConfigError, shown
from unigrpo.rewards import registry
from unigrpo.rewards.origins import origin_of

NEEDED = "give a function of (images, prompts, metadata, thinking), the name of a reward, or a list of these"


@dataclass
class Named:
    """Names for the rewards of one call. ``meant``: the things that names stand for while it runs.

    ``recorded``: in a run that goes on, the names of its rewards by key (``reward.train``), in order, "" for those that
    are found by their names: a function takes the recorded one.
    """

    recorded: Mapping[str, Sequence[str]] = field(default_factory=dict)
    meant: dict[str, Any] = field(default_factory=dict)

    def scorers(self, reward: Any, where: str = "reward") -> list[dict[str, Any]]:
        """A reward, or a list of them, as a recipe lists them; ConfigError where one is none.

        ``(reward, weight)`` is a weighted one.
        """
        several = isinstance(reward, list) or (isinstance(reward, tuple) and not _weighted(reward))
        listed = list(reward) if several else [reward]
        if not listed:
            raise ConfigError(f"{where} is an empty list: {NEEDED}")
        place, before = f"{where}[{{}}]" if several else where, [*self.recorded.get(where, ()), *[""] * len(listed)]
        return [self._scorer(one, before[number], place.format(number)) for number, one in enumerate(listed)]

    def _scorer(self, reward: Any, before: str, where: str) -> dict[str, Any]:
        if isinstance(reward, Mapping):  # as a recipe writes it: {name, weight, teaches ...}; the name may be the thing
            name = reward.get("name")
            own = callable(name) and not isinstance(name, str)
            return {**reward, "name": self._name(name, before, where)} if own else dict(reward)
        if _weighted(reward):
            return {**self._scorer(reward[0], before, where), "weight": float(reward[1])}
        return {"name": reward if isinstance(reward, str) else self._name(reward, before, where)}

    def _name(self, reward: Any, before: str, where: str) -> str:
        """The name of a function, class or object: the one from ``before``, one that finds it again, or a new one."""
        if not callable(reward):
            raise ConfigError(f"{where} = {shown(reward)} is a {type(reward).__name__}, no reward: {NEEDED}")
        for name, thing in self.meant.items():
            if thing is reward:
                return name
        found = origin_of(reward).reference
        if before:
            name = before
        elif found is not None and reference(found) is not None:
            name = found
        else:
            name = self._registered(reward)
        self.meant[name] = reward
        return name

    def _registered(self, reward: Any) -> str:
        """Register what no name finds again under the name that it has in Python; with a number where that is taken."""
        for number in itertools.count(1):
            name = _called(reward) if number == 1 else f"{_called(reward)}-{number}"
            if name in self.meant:
                continue
            try:
                registry.register(name, reward)
            except ConfigError:  # somebody else's
                continue
            return name
        raise AssertionError("unreachable")


def _weighted(reward: Any) -> bool:
    """Whether it is a pair of a reward and its weight."""
    return (
        isinstance(reward, tuple)
        and len(reward) == 2
        and isinstance(reward[1], Real)
        and not isinstance(reward[1], bool)
    )


def _called(reward: Any) -> str:
    """What a function is called, or the class of an object; a lambda has no other name than that."""
    while isinstance(reward, partial):
        reward = reward.func
    named = reward if inspect.isroutine(reward) or isinstance(reward, type) else type(reward)
    return re.sub(r"\W+", "", named.__name__) or "reward"
