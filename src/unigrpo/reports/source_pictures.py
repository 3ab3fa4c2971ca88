"""The pictures that prompts gave (edits), kept beside what was made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from unigrpo.reports.grids import reduced, save_png_atomic

IMAGES = "images"
"""The key of a record: paths of the given pictures in their order, relative to the run folder; absent without any."""


def with_rounds(
    records: Sequence[Mapping[str, Any]], folder: Path, stem: str, earlier: Mapping[int, Sequence[ArrayLike]]
) -> list[dict[str, Any]]:
    """Save the pictures uint8 [3, H, W] of earlier rounds, by the index of their record, and name them in its rounds.

    They are called STEM-POSITION-SAMPLE-ROUND.png, reduced as above.
    """
    from PIL import Image as Images

    named = [dict(record) for record in records]
    for index, pictures in earlier.items():
        record, rounds = named[index], [dict(one) for one in named[index]["rounds"]]
        for turn, (one, picture) in enumerate(zip(rounds, pictures, strict=False), start=1):
            pixels = np.asarray(picture).transpose(1, 2, 0)
            path = f"{stem}-{record['position']}-{record['sample']}-{turn}.png"
            save_png_atomic(Images.fromarray(np.ascontiguousarray(reduced(pixels[None])[0])), folder / path)
            one["picture"] = path
        record["rounds"] = rounds
    return named


def with_sources(
    records: Sequence[Mapping[str, Any]], folder: Path, stem: str, given: Mapping[int, Sequence[ArrayLike]]
) -> list[dict[str, Any]]:
    """Save the given pictures uint8 [3, H, W] of prompts (by position) in a folder, and name them in their records.

    They are called STEM-POSITION-K.png and reduced as pictures on a sheet are; paths are relative to ``folder``.
    """
    from PIL import Image as Images

    paths: dict[int, list[str]] = {}
    for position, pictures in given.items():
        for number, picture in enumerate(pictures):
            path, pixels = f"{stem}-{position}-{number}.png", np.asarray(picture).transpose(1, 2, 0)
            save_png_atomic(Images.fromarray(np.ascontiguousarray(reduced(pixels[None])[0])), folder / path)
            paths.setdefault(position, []).append(path)
    found = ((record, paths.get(record["position"])) for record in records)
    return [dict(record) if named is None else {**record, IMAGES: named} for record, named in found]
