"""Reinforcement learning for models that think, then draw (UniGRPO, arXiv 2603.23500).

``train`` trains and returns a ``Run``; ``Run(folder)`` opens one; ``load`` gives a model that draws
(``load("builtin:shapes-sft").generate("a red circle")``); ``evaluate`` judges one; ``Bagel`` is the model itself.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unigrpo.api import Run as Run
    from unigrpo.api import evaluate as evaluate
    from unigrpo.api import load as load
    from unigrpo.api import train as train
    from unigrpo.models.bagel_files.pretrained import Bagel as Bagel

    __version__: str

__all__ = ["Bagel", "Run", "__version__", "evaluate", "load", "train"]

_PLACES = {"Bagel": "unigrpo.models.bagel_files.pretrained"} | dict.fromkeys(
    ("Run", "evaluate", "load", "train"), "unigrpo.api"
)


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: it takes torch along, which reading recipes and --help do without."""
    if name == "__version__":
        return import_module("unigrpo.version").of("unigrpo") or "unknown"
    if name in _PLACES:
        return vars(import_module(_PLACES[name]))[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """All that is there, imported or not."""
    return sorted({*globals(), *__all__})
