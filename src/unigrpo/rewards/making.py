"""From what a user registered or named to a reward: the thing itself where it takes pictures, else what it builds."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from unigrpo.frames import explain
from unigrpo.ranges import ConfigError

GIVEN = ("images", "prompts", "metadata", "thinking")
NEEDED = f"a reward takes {', '.join(GIVEN)}, and a factory or class that builds one takes nothing"


def made(name: str, thing: Any) -> Callable[..., Any]:
    """The reward that ``thing`` is, or builds; ConfigError where it is neither a reward nor a factory."""
    if takes_pictures(thing):
        return _in_order(thing)
    if not callable(thing):
        raise ConfigError(f"reward {name!r} is an object of the type {type(thing).__name__}, not a function: {NEEDED}")
    if not _needs_nothing(thing):
        raise ConfigError(f"reward {name!r} takes {_parameters(thing)}: {NEEDED}")
    try:
        built = thing()
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"reward {name!r} cannot be built: {explain(error)}") from error
    if not callable(built) or not takes_pictures(built):
        what = f"takes {_parameters(built)}" if callable(built) else f"is an object of the type {type(built).__name__}"
        raise ConfigError(f"reward {name!r}: what its factory built {what}: {NEEDED}")
    return _in_order(built)


def takes_pictures(thing: Any) -> bool:
    """Whether a thing is a reward itself: it can be called with pictures, prompts, metadata and thinking."""
    if isinstance(thing, type) or not callable(thing):
        return False
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):  # some of those written in C tell nothing
        return True
    parameters = signature.parameters
    required = [p.name for p in parameters.values() if p.default is p.empty and p.kind not in _ANY]
    if set(GIVEN) <= set(parameters):
        return set(required) <= set(GIVEN)
    if not required and not any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):
        return False  # a factory, whatever settings it has
    try:
        signature.bind(*GIVEN)
    except TypeError:
        return False
    return True


_ANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _needs_nothing(thing: Callable[..., Any]) -> bool:
    try:
        inspect.signature(thing).bind()
    except (TypeError, ValueError):
        return False
    return True


def _in_order(reward: Callable[..., Any]) -> Callable[..., Any]:
    """The reward, called by names where it has them in another order."""
    try:
        parameters = inspect.signature(reward).parameters
    except (TypeError, ValueError):
        return reward
    placed = [p.name for p in parameters.values() if p.kind is not p.KEYWORD_ONLY]
    if not set(GIVEN) <= set(parameters) or tuple(placed[: len(GIVEN)]) == GIVEN:
        return reward

    @functools.wraps(reward)
    def by_names(images: Any, prompts: Any, metadata: Any, thinking: Any) -> Any:
        return reward(images=images, prompts=prompts, metadata=metadata, thinking=thinking)

    return by_names


def _parameters(thing: Callable[..., Any]) -> str:
    try:
        return str(inspect.signature(thing))
    except (TypeError, ValueError):
        return "other things"
