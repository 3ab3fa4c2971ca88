"""Models of one's own: ``model.path`` as path/file.py:Thing or package.module:Thing, with @FOLDER for saved weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unigrpo.loading import load, reference
from unigrpo.policy import ModelFamily
from unigrpo.ranges import ConfigError

NEEDED = ("look", "load", "group_of")


@dataclass(frozen=True)
class Own:
    """A family of one's own, and the folder of its model's weights; None for a new model."""

    family: ModelFamily
    folder: Path | None


def split(path: str) -> tuple[str, str]:
    """The name of a family, and the folder after @ (empty without); ("", path) where none is named."""
    name, _, folder = path.partition("@")
    return (name, folder) if reference(name) is not None else ("", path)


def own(path: str) -> Own | None:
    """The family that a model's path names; None where it names none. ConfigError says what is missing of it."""
    name, folder = split(path)
    place = reference(name)
    if place is None:
        return None
    found = load(name, place, what="model")
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
    from unigrpo.training import checkpoint

    complete = checkpoint.complete(folder)
    return complete[-1] if complete else folder
