"""Reward functions by name: registered under it, or named in a recipe by the file or module that holds them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any
from weakref import WeakValueDictionary

from unigrpo import loading
from unigrpo.frames import explain
from unigrpo.loading import reference
from unigrpo.ranges import ConfigError, did_you_mean
from unigrpo.rewards.making import NO_ARGS, made
from unigrpo.rewards.origins import Origin, origin_of, place_of
from unigrpo.rewards.protocol import RewardFunction

GROUP = "unigrpo.rewards"
"""The group of entry points in which packages name their rewards."""
OWN = "path/file.py:function or package.module:function"
_FACTORIES: dict[str, Any] = {}
_SHIPPED: dict[str, str] = {}  # module:thing by name; NAME in a name stands for any
_BUILT: WeakValueDictionary[str, Any] = WeakValueDictionary()  # shipped ones that are in use
_ORIGINS: dict[str, Origin] = {}  # of the rewards that were built
_RECALLED: dict[str, Origin] = {}  # of those that the run to be resumed had


def ship(places: Mapping[str, str]) -> None:
    """Know the rewards of this package by where they are (``module:thing``), which are imported when asked for.

    ``family:NAME`` stands for all of a family, whose class has the argument ``scorer``.
    """
    _SHIPPED.update(places)


def register(name: str, factory: Callable[[], RewardFunction] | RewardFunction) -> None:
    """Make a reward known: itself, or a factory that builds it when a recipe asks for it (so models load lazily).

    What comes from the same place as before (a notebook's cell that is run again, a module that is loaded again)
    replaces it; ConfigError where another place has that name.
    """
    before = _FACTORIES.get(name, _shipped(name) or factory)
    same = place_of(before) == place_of(factory) or place_of(before)[0] == place_of(factory)[0] == "__main__"
    if before is not factory and not same:
        raise ConfigError(
            f"there is already a reward called {name!r}, from {_said(before)}, and this one is from {_said(factory)}: "
            "choose another name"
        )
    _FACTORIES[name] = factory


@contextmanager
def meaning(things: Mapping[str, Any]) -> Iterator[None]:
    """Inside, these names mean these very things (rewards or factories), whatever they mean elsewhere."""
    before = {name: _FACTORIES[name] for name in things if name in _FACTORIES}
    _FACTORIES.update(things)
    try:
        yield
    finally:
        for name in things:
            _FACTORIES.pop(name, None)
        _FACTORIES.update(before)


def _said(thing: Any) -> str:
    return f"{'.'.join(place_of(thing))} ({origin_of(thing)})"


def build(name: str, args: Mapping[str, Any] = NO_ARGS) -> RewardFunction:
    """Build the reward of this name with arguments for its class or factory; ConfigError lists the known ones."""
    if name not in _FACTORIES and (found := _shipped(name)) is not None:
        return _shared(name, found, args)
    found = _find(name)
    reward = made(name, found, args)
    _ORIGINS[name] = origin_of(found, reward, name)
    return reward


def _shared(name: str, thing: Any, args: Mapping[str, Any]) -> RewardFunction:
    """A shipped reward, which keeps nothing from call to call: one in use with the same arguments serves again."""
    key = f"{name} {sorted(args.items())}"
    if (reward := _BUILT.get(key)) is None:
        reward = _BUILT[key] = made(name, thing, args)
    return reward


def _shipped(name: str) -> Any:
    """The reward of this package that is called so, or None."""
    family, _, scorer = name.partition(":")
    if name in _SHIPPED and scorer != "NAME":
        return _at(_SHIPPED[name])
    place = _SHIPPED.get(f"{family}:NAME")
    return None if place is None else partial(_at(place), scorer=scorer)


def _at(place: str) -> Any:
    module, _, thing = place.partition(":")
    return vars(import_module(module))[thing]


def _find(name: str) -> Any:
    """What is registered under a name, or what the name, or the record of the run to be resumed, refers to."""
    if name in _FACTORIES:
        return _FACTORIES[name]
    if (place := reference(name)) is not None:
        return loading.load(name, place)
    if (recalled := _RECALLED.get(name)) is not None:
        return _recalled(name, recalled)
    if (entry := _entry_points().get(name)) is not None:
        return _loaded(name, entry)
    known = names()
    raise ConfigError(
        f"there is no reward called {name!r}{did_you_mean(name, known)}; known rewards: {', '.join(known)}; "
        f"one of your own is named {OWN}"
    )


def names() -> list[str]:
    """The names of all rewards that are known: shipped, registered here, or by an installed package."""
    return sorted({*_FACTORIES, *_SHIPPED, *_entry_points()})


def _entry_points() -> dict[str, EntryPoint]:
    """The rewards of installed packages, by name (``[project.entry-points."unigrpo.rewards"]`` of theirs)."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _loaded(name: str, entry: EntryPoint) -> Any:
    try:
        return entry.load()
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"reward {name!r} of an installed package ({entry.value}) cannot be loaded: {explain(error)}"
        ) from error


def _recalled(name: str, origin: Origin) -> Any:
    """The reward that a run had under this name when it began."""
    place = None if origin.reference is None else reference(origin.reference)
    if place is not None:
        if origin.folder is not None:
            loading.also_import_from(origin.folder)
        return loading.load(name, place)
    file = "FILE.py" if origin.file is None else origin.file
    raise ConfigError(
        f"reward {name!r} was registered from Python by {origin}: start a run with {file}:FUNCTION as its name to "
        f"resume from the command line, or register {name!r} again and call unigrpo.cli.main from there"
    )


def recall(origins: Mapping[str, Origin]) -> None:
    """Know the rewards of a run that is to be resumed by where they came from (and forget those of another run)."""
    _RECALLED.clear()
    _RECALLED.update(origins)


def origins(names: Iterable[str]) -> dict[str, Origin]:
    """Where the named rewards, those that were built and are not of this package, came from."""
    found = {name: _ORIGINS[name] for name in names if name in _ORIGINS}
    return {name: origin for name, origin in found.items() if not f"{origin.module}.".startswith("unigrpo.")}
