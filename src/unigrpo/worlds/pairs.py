"""Demonstrations of one's own for supervised runs: prompts with pictures and, where there is one, the thinking.

A .jsonl file holds one object a line: ``prompt``, ``image`` (a path beside the file), where there are any ``thinking``
(what the model should write before it draws, ``<think>`` tags included), ``images`` (given with the prompt) and
anything else as metadata. A data set of the hub has the columns ``prompt``, ``image`` and ``thinking``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from unigrpo.config import ConfigError
from unigrpo.policy import Policy
from unigrpo.trajectory import Image, Prompt, Segment, Text, Trajectory, without_prompt
from unigrpo.worlds.prompt_files import (
    HUB,
    HubRows,
    Row,
    file_lines,
    hub_data,
    json_object,
    picture_path,
    plain_columns,
    read_picture,
    row_of,
    shuffled,
)

if TYPE_CHECKING:
    from datasets import Dataset

EXAMPLE = '{"prompt": "a red cup", "image": "cup.png"}'
KEYS = ("prompt", "image", "images", "thinking")


@dataclass(frozen=True)
class Pair:
    """One demonstration: a prompt, what to write before drawing (None: nothing), and its picture.

    ``image()`` reads the picture: uint8 [3, H, W] of any size; ValueError if it cannot be read.
    """

    prompt: Prompt
    thinking: str | None
    image: Callable[[], Tensor]


@dataclass(frozen=True)
class PairRow:
    """A demonstration as it is stored, nothing of its pictures read."""

    row: Row
    thinking: str | None
    image: Callable[[], Tensor]


@dataclass(frozen=True)
class RowPairs:
    """The demonstrations of some rows as an endless stream with random access, shuffled anew in every pass."""

    rows: Sequence[PairRow]
    seed: int

    def batch(self, iteration: int, n: int) -> list[Pair]:
        """The n demonstrations of an iteration; every pass has every row once."""
        return [self.at(position) for position in range(iteration * n, iteration * n + n)]

    def at(self, position: int) -> Pair:
        """The demonstration at one position of the stream."""
        found = self.rows[shuffled(self.seed, position, len(self.rows))]
        return Pair(found.row.prompt(position), found.thinking, found.image)


class PairFile(RowPairs):
    """The demonstrations of a .jsonl file; ValueError names the file and the line of what is wrong with it."""

    def __init__(self, path: Path | str, seed: int) -> None:
        path = Path(path)
        if path.suffix.lower() != ".jsonl":
            raise ConfigError(f"demonstrations are read from .jsonl files, not from {path}: write lines like {EXAMPLE}")
        super().__init__([_json_row(path, number, line) for number, line in file_lines(path)], seed)


def _json_row(path: Path, number: int, line: str) -> PairRow:
    where, written = f"{path}, line {number}", json_object(path, number, line, EXAMPLE)
    row = row_of(where, written, path.parent, other=KEYS)
    name = written.get("image")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where} has no image (the path of a picture beside the file), as in {EXAMPLE}")
    return PairRow(row, _thinking(written, where), partial(read_picture, picture_path(path.parent, name, where), where))


def _thinking(written: dict[str, Any], where: str) -> str | None:
    """The words under ``thinking``; None where there are none."""
    thinking = written.get("thinking")
    if thinking is not None and not isinstance(thinking, str):
        raise ConfigError(f"{where}: thinking must be words (or be left out), not {thinking!r}")
    return thinking if thinking and thinking.strip() else None


# ----------------------------------------------------------------------------------------------------- data sets (hub)


def hf_pairs(name: str, seed: int) -> RowPairs:
    """The demonstrations of ``hf:owner/name[:split]`` with the columns prompt, image and, where there is one, thinking.

    ``image`` holds pictures, or paths (relative to the folder where owner/name is one).
    """
    data, column = hub_data(name)
    from datasets import Image as Pictures

    if "image" not in data.column_names:
        raise ConfigError(f"{name}: there is no column 'image'; it has {', '.join(data.column_names)}")
    words = data.select_columns([key for key in plain_columns(data) if key not in KEYS or key in (column, "thinking")])
    pictures = data.select_columns(["image"]).cast_column("image", Pictures(decode=False))
    return RowPairs(HubPairs(HubRows(words, column, name), pictures, Path(name.removeprefix(HUB).split(":")[0])), seed)


@dataclass(frozen=True)
class HubPairs(Sequence[PairRow]):
    """The demonstrations of a data set, read when they are asked for."""

    words: HubRows
    pictures: Dataset
    folder: Path

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.words)

    def __getitem__(self, index: Any) -> Any:
        """One row."""
        row = self.words[index]
        metadata = {key: value for key, value in row.metadata.items() if key != "thinking"}
        thinking = _thinking(dict(row.metadata), row.where)
        return PairRow(Row(row.where, row.text, metadata), thinking, partial(self._picture, index, row.where))

    def _picture(self, index: int, where: str) -> Tensor:
        stored = self.pictures[index]["image"]
        if stored is None:
            raise ConfigError(f"{where} has no image: take the row out")
        if stored["bytes"] is not None:
            return read_picture(stored["bytes"], where)
        return read_picture(picture_path(self.folder.expanduser(), stored["path"], where), where)


# ------------------------------------------------------------------------------------------------------- to train on


def supervised_trajectories(policy: Policy, pairs: Sequence[Pair], *, drop: Sequence[bool] = ()) -> list[Trajectory]:
    """Demonstrations as trajectories whose thinking (where there is any) and picture are targets.

    A prompt without thinking stands in the context of drawing without thinking. Where ``drop`` says so, the picture
    stands without words, in the context of the guidance's unconditional branch (spec/bagel.md, CFG). Pictures are
    encoded one at a time: a batch of large ones would need more memory than the training step itself.
    """
    made = []
    for pair, bare in zip(pairs, drop or [False] * len(pairs), strict=True):
        before: tuple[Segment, ...] = policy.prompt_segments(pair.prompt, think=pair.thinking is not None)
        words = () if pair.thinking is None else (Text(policy.encode_text(pair.thinking), target=True),)
        if bare:
            before, words = without_prompt(before), ()
        pixels = fitted(pair.image(), policy.spec.image_size).float() / 255.0
        picture = Image(policy.encode_image(pixels[None])[0], policy.spec.grid, target=True)
        made.append(Trajectory(pair.prompt, 0, (*before, *words, picture)))
    return made


def fitted(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a picture uint8 [3, H, W] (bicubic) until it covers ``size`` = (height, width), and cut out the middle."""
    from PIL import Image as Images

    (height, width), (rows, columns) = size, picture.shape[1:]
    if (rows, columns) == size:
        return picture
    scale = max(height / rows, width / columns)
    wide, high = min(width / scale, columns), min(height / scale, rows)  # the part that stays, in pixels of the picture
    left, top = (columns - wide) / 2, (rows - high) / 2
    image = Images.fromarray(picture.permute(1, 2, 0).numpy())
    # one step: resizing and then cutting at whole pixels would shift the picture by up to half a pixel
    small = image.resize((width, height), Images.Resampling.BICUBIC, box=(left, top, left + wide, top + high))
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous()
