"""Where a run can be watched besides its own folder: one file each for TensorBoard, W&B and trackio.

``metrics.jsonl`` (``jsonl``) is always written and is the truth; the others are told the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from PIL.Image import Image

from unigrpo.ranges import ConfigError, how_to_install

KINDS = ("tensorboard", "wandb", "trackio")


@dataclass(frozen=True)
class Shown:
    """A picture with its words."""

    picture: Image
    caption: str


@dataclass(frozen=True)
class Place:
    """What a sink is told of its run: the folder, the run's name, the recipe as plain data, and where it begins.

    done: iterations that are finished; a resumed run trains the later ones again, and says their steps again.
    """

    run_dir: Path
    name: str
    recipe: Mapping[str, Any]
    done: int = 0


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

    def close(self) -> None:
        """Hand on what is still on its way."""
        ...


def require(kinds: Sequence[str]) -> None:
    """ConfigError where the package of a sink is missing: said before anything is loaded."""
    for kind in kinds:
        if find_spec(kind) is None:
            raise ConfigError(f"log: {kind} needs the package {kind}: {how_to_install(kind)}")


def opened(kinds: Sequence[str], place: Place, say: Callable[[str], None]) -> Sinks:
    """Open the sinks of a run; one that cannot be opened is told, and left out."""
    sinks = Sinks({}, say)
    for kind in kinds:
        with_fault = _guard(kind, say)
        module = import_module(f"unigrpo.training.sinks.{kind}")
        if (sink := with_fault(lambda module=module: module.open_sink(place, say))) is not None:
            sinks.open[kind] = sink
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
    """All sinks of a run; one that fails is told once, and switched off."""

    open: dict[str, Sink]
    say: Callable[[str], None]

    def scalars(self, step: int, values: Mapping[str, Any], prefix: str = "") -> None:
        """Tell the numbers of a metrics line, or of a summary below ``prefix``."""
        named = dict(numbers(values, prefix))
        self._all(lambda sink: sink.scalars(step, named))

    def pictures(self, step: int, name: str, shown: Sequence[Shown]) -> None:
        """Tell pictures."""
        self._all(lambda sink: sink.pictures(step, name, shown))

    def histogram(self, step: int, name: str, values: Sequence[float]) -> None:
        """Tell a distribution."""
        self._all(lambda sink: sink.histogram(step, name, values))

    def close(self) -> None:
        """Close all of them; a second time does nothing."""
        self._all(lambda sink: sink.close())
        self.open.clear()

    def _all(self, action: Callable[[Sink], None]) -> None:
        for kind, sink in list(self.open.items()):
            if _guard(kind, self.say)(lambda sink=sink: (action(sink),)) is None:
                del self.open[kind]


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
