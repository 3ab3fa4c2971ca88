"""Models of one's own: ``model.path`` as path/file.py:Thing or package.module:Thing, with @FOLDER for saved weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unigrpo.loading import load, own_model
from unigrpo.policy import ModelFamily
from unigrpo.ranges import ConfigError
from unigrpo.training import checkpoint

NEEDED = ("look", "load", "group_of")


@dataclass(frozen=True)
class Own:
    """A family of one's own, and the folder of its model's weights; None for a new model."""

    family: ModelFamily
    folder: Path | None


def is_own(path: str) -> bool:
    """Whether a model's path names a family of one's own."""
    return own_model(path)[0] is not None


def own(path: str) -> Own | None:
    """The family that a model's path names; None where it names none. ConfigError says what is missing of it."""
    place, folder = own_model(path)
    if place is None:
        return None
    found = load(path.partition("@")[0], place, what="model")
    family = found() if isinstance(found, type) else found
    if not isinstance(family, ModelFamily):
        raise ConfigError(
            f"model.path = {path!r} is no family of models: it must have {', '.join(NEEDED)} "
            "(unigrpo.policy.ModelFamily; docs/extend.md)"
        )
    if folder and not Path(folder).is_dir():
        raise ConfigError(f"model.path = {path!r}: there is no folder {folder}")
    return Own(family, saved(Path(folder)) if folder else None)


def saved(folder: Path) -> Path:
    """The folder with weights that a folder means: of a run, its newest checkpoint."""
    complete = checkpoint.complete(folder)
    return complete[-1] if complete else folder
