"""Where a run can be watched besides its own folder: one file each for TensorBoard, W&B and trackio, or one's own.

``metrics.jsonl`` is always written and is the truth; the others are told the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, cast

from PIL.Image import Image

from unigrpo.loading import Reference, load, reference
from unigrpo.ranges import ConfigError, lacking
from unigrpo.training.sinks import kept

METHODS = ("scalars", "pictures", "histogram", "close")
"""What a sink can do."""


@dataclass(frozen=True)
class Shown:
    """A picture with its words."""

    picture: Image
    caption: str


@dataclass(frozen=True)
class Place:
    """What a sink is told of its run: the folder, the run's name, the recipe as plain data.

    begun: whether this sink was told of this run before (it is being resumed).
    """

    run_dir: Path
    name: str
    recipe: Mapping[str, Any]
    begun: bool = False


class Sink(Protocol):
    """One place to watch a run. ``step`` is the number of finished iterations; 0 is before training."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Take in numbers by name (``text/entropy``); NaN and infinities as they are."""
        ...

    def pictures(self, step: int, name: str, shown: Sequence[Shown]) -> None:
        """Take in pictures with captions."""
        ...

    def histogram(self, step: int, name: str, values: Sequence[float]) -> None:
        """Take in a distribution."""
        ...

    def close(self, failed: bool) -> None:
        """Hand on what is still on its way; ``failed``: the run ends by an error."""
        ...


Opener = Callable[[Place, Callable[[str], None]], Sink]
"""What a logger is: ``open_sink(place, say)`` of a file here, or a function or class of one's own."""


def openers(names: Sequence[str]) -> dict[str, Opener]:
    """The loggers that ``log`` names; ConfigError where a package is missing, or a name means no logger.

    Called before anything is loaded. Names are tensorboard, wandb, trackio, or path/file.py:Thing.
    """
    return {name: _shipped(name) if (place := reference(name)) is None else _own(name, place) for name in names}


def _shipped(kind: str) -> Opener:
    if find_spec(kind) is None:
        raise lacking(f"log: {kind}", kind, kind)
    return import_module(f"unigrpo.training.sinks.{kind}").open_sink


def _own(name: str, place: Reference) -> Opener:
    found: Any = load(name, place, what="log")
    if not callable(found):
        raise ConfigError(f"log = {name!r} is no logger: it must be a class or a function, called with (place, say)")
    lacks = [part for part in METHODS if isinstance(found, type) and not callable(getattr(found, part, None))]
    if lacks:
        raise ConfigError(f"log = {name!r} is no logger: it has no method {lacks[0]} (it needs {', '.join(METHODS)})")
    return cast("Opener", found)


def opened(names: Sequence[str], place: Place, say: Callable[[str], None]) -> Sinks:
    """Open the sinks of a run; one that cannot be opened is told, and left out."""
    sinks = Sinks(place.run_dir, say)
    for name in names:
        told = kept.told(place.run_dir, name)
        its = replace(place, begun=told >= 0)
        if (sink := _guard(name, say)(lambda name=name, its=its: openers([name])[name](its, say))) is not None:
            sinks.open[name], sinks.told[name] = sink, told
    return sinks


def _guard(kind: str, say: Callable[[str], None]) -> Callable[[Callable[[], Any]], Any]:
    def attempt(action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # a network, a disk, a server: whatever it is, training goes on
            say(f"note: {kind} failed and is switched off, the run goes on ({type(error).__name__}: {error})")
            return None

    return attempt


@dataclass
class Sinks:
    """All sinks of a run; one that fails is told once, and switched off.

    A step is told once: what a resumed run trains again has the same numbers, so a sink that knows it is not told it.
    """

    run_dir: Path
    say: Callable[[str], None]
    open: dict[str, Sink] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)
    """The last step that a sink had been told when it was opened."""

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Tell the numbers of a step, as the last of what is told of it."""
        self.figures(step, values)
        for name in self.open:
            if step > self.told[name]:
                kept.keep_told(self.run_dir, name, step)

    def figures(self, step: int, values: Mapping[str, Any], again: bool = False) -> None:
        """Tell numbers beside a step's own; ``again``: of a step that may have been told."""
        named = dict(numbers(values))
        self._all(step, lambda sink: sink.scalars(step, named), again=again)

    def pictures(self, step: int, name: str, shown: Sequence[Shown]) -> None:
        """Tell pictures."""
        self._all(step, lambda sink: sink.pictures(step, name, shown))

    def histogram(self, step: int, name: str, values: Sequence[float]) -> None:
        """Tell a distribution."""
        self._all(step, lambda sink: sink.histogram(step, name, values))

    def close(self, failed: bool = False) -> None:
        """Close all of them; a second time does nothing."""
        self._all(0, lambda sink: sink.close(failed), again=True)
        self.open.clear()

    def _all(self, step: int, action: Callable[[Sink], None], *, again: bool = False) -> None:
        for name, sink in list(self.open.items()):
            known = step <= self.told[name] and not again
            if not known and _guard(name, self.say)(lambda sink=sink: (action(sink),)) is None:
                del self.open[name]


def numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of nested data by their paths (``flow/steps/0/mse``); null, words and switches are left out."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from numbers(value, f"{name}/")
        elif isinstance(value, list | tuple):
            yield from numbers({str(place): item for place, item in enumerate(value)}, f"{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, float(value) if not isinstance(value, int) or abs(value) < 2**53 else math.inf
