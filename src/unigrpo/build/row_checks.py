"""What is asked of every row of prompts before a model is loaded: metadata for rewards, pictures to be guided on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unigrpo.build import worlds
from unigrpo.ranges import ConfigError
from unigrpo.recipe import Scorer
from unigrpo.rewards.judge_points import EXAM, check_points
from unigrpo.worlds.prompt_files import Row


def any_metadata(row: Row) -> None:
    """Most rewards read no metadata."""


def metadata_check(scorers: Sequence[Scorer]) -> Callable[[Row], None]:
    """What some rewards ask of the metadata of every row: a function that raises ConfigError."""
    judged = [world.rewards[s.name] for s in scorers if (world := worlds.judging(s.name)) is not None]
    asked = tuple(dict.fromkeys(required for required in judged if required is not None))
    asked += (check_points,) if any(s.name == EXAM for s in scorers) else ()
    return _Metadata(asked) if asked else any_metadata


@dataclass(frozen=True)
class _Metadata:
    """The rewards of a world read the metadata of its own prompts; equal for the same worlds."""

    asked: tuple[Callable[[Mapping[str, Any]], object], ...]

    def __call__(self, row: Row) -> None:
        for required in self.asked:
            try:
                required(row.metadata)
            except ValueError as error:
                raise ConfigError(f"{row.where}: {error}") from error


@dataclass(frozen=True)
class Shown:
    """Rows that are guided on their pictures must have some, beside what else is asked of them (``judge``)."""

    judge: Callable[[Row], None]
    scale: float

    def __call__(self, row: Row) -> None:
        """ConfigError for a row without pictures."""
        if not row.pictures:
            raise ConfigError(
                f"{row.where}: {row.text!r} comes with no picture, and eval.image_guidance = {self.scale:g} guides on "
                "pictures; set it to 1, or eval.prompts to edits (shapes:edit-held-out, or a file with images)"
            )
        self.judge(row)
