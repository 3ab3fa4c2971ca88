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
