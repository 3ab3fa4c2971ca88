"""Demonstrations of one's own for supervised runs: prompts with pictures and, where there is one, the thinking.

A row of a file or data set (:mod:`.records`) has ``prompt``, ``image`` (a path beside the file, or the picture itself),
where there are any ``thinking`` (what the model should write before it draws, ``<think>`` tags included), ``images``
(given with the prompt) and anything else as metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unigrpo.data_names import split_name
from unigrpo.policy import Policy
from unigrpo.ranges import ConfigError
from unigrpo.trajectory import Image, Prompt, Segment, Text, Trajectory, without_prompt
from unigrpo.worlds.prompt_files import Row, Source, picture_of, read_picture, row_of, shuffled
from unigrpo.worlds.records import Record, Records
from unigrpo.worlds.sources import open_records

EXAMPLE = '{"prompt": "a red cup", "image": "cup.png"}'
KEYS = ("image", "images", "thinking")


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
    image: Source


@dataclass(frozen=True)
class PairRows(Sequence[PairRow]):
    """The rows of a file or data set as demonstrations."""

    records: Records

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.records.rows)

    def __getitem__(self, index: Any) -> Any:
        """One row; ConfigError says what is wrong with it."""
        record, records = self.records.rows[index], self.records
        row = row_of(record, records, other=KEYS, example=EXAMPLE)
        if not (stored := record.written.get("image")):
            raise ConfigError(f"{row.where} has no image (the path of a picture beside the file), as in {EXAMPLE}")
        return PairRow(row, _thinking(record), picture_of(records.folder, stored, row.where))


@dataclass(frozen=True)
class RowPairs:
    """The demonstrations of some rows as an endless stream with random access, shuffled anew in every pass."""

    name: str
    rows: Sequence[PairRow]
    seed: int

    def batch(self, iteration: int, n: int) -> list[Pair]:
        """The n demonstrations of an iteration; every pass has every row once."""
        return [self.at(position) for position in range(iteration * n, iteration * n + n)]

    def at(self, position: int) -> Pair:
        """The demonstration at one position of the stream."""
        found = self.rows[shuffled(self.seed, position, len(self.rows))]
        return Pair(found.row.prompt(position), found.thinking, partial(read_picture, found.image, found.row.where))


def own_pairs(name: str | Path, seed: int) -> RowPairs:
    """The demonstrations of a file, a saved folder or a data set (:func:`unigrpo.worlds.records.open_records`)."""
    found = split_name(str(name))
    if found is not None and found[0].suffix.lower() == ".txt":
        raise ConfigError(f"{name} can hold prompts alone: demonstrations are read from files with rows like {EXAMPLE}")
    records = open_records(str(name), plain=False)
    return RowPairs(records.name, PairRows(records), seed)


def _thinking(record: Record) -> str | None:
    """The words under ``thinking``; None where there are none."""
    thinking = record.written.get("thinking")
    if thinking is not None and not isinstance(thinking, str):
        raise ConfigError(f"{record.where}: thinking must be words (or be left out), not {thinking!r}")
    return thinking if thinking and thinking.strip() else None


# ------------------------------------------------------------------------------------------------------- to train on


def supervised_trajectories(policy: Policy, pairs: Sequence[Pair], *, drop: Sequence[bool] = ()) -> list[Trajectory]:
    """Demonstrations as trajectories whose thinking (where there is any) and picture are targets.

    A prompt without thinking stands in the context of drawing without thinking. Where ``drop`` says so, the picture
    stands without words, in the context of the guidance's unconditional branch (docs/bagel-architecture.md#guidance).
    Pictures are encoded one at a time: a batch of large ones would need more memory than the training step itself.
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
