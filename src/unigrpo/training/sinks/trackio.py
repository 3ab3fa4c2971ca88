"""trackio: a local database (TRACKIO_DIR, else its cache); ``trackio show --project unigrpo`` opens the dashboard."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from typing import Any

from unigrpo.training.sinks import Place, Shown
from unigrpo.training.sinks.kept import run_id

PROJECT = "unigrpo"


class Trackio:
    """One run of trackio."""

    def __init__(self, place: Place) -> None:
        self.trackio: Any = import_module("trackio")
        with redirect_stdout(io.StringIO()):  # it prints how to look at it
            self.run = self.trackio.init(
                project=os.environ.get("TRACKIO_PROJECT", PROJECT),
                name=run_id(place.run_dir, "trackio", place.name),
                config=dict(place.recipe),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers."""
        self.run.log(dict(values), step=step)

    def pictures(self, step: int, name: str, shown: Sequence[Shown]) -> None:
        """Log pictures with captions."""
        made = [self.trackio.Image(one.picture, caption=one.caption) for one in shown]
        self.run.log({f"{name}/{number}": picture for number, picture in enumerate(made)}, step=step)

    def histogram(self, step: int, name: str, values: Sequence[float]) -> None:
        """Log a distribution."""
        self.run.log({name: self.trackio.Histogram(list(values))}, step=step)

    def close(self, failed: bool) -> None:
        """Finish the run."""
        with redirect_stdout(io.StringIO()):
            self.trackio.finish()


def open_sink(place: Place, say: Callable[[str], None]) -> Trackio:
    """Open it."""
    return Trackio(place)
