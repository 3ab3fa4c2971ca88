"""The earlier rounds of a picture in an evaluation's folder: ``00000/rounds/0000-1.png``, and what was thought before.

They are written before the picture itself, so that they are there where it is. A thinking that ended a sample has no
picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from unigrpo.evaluation.suites import Record, no_answer
from unigrpo.files import write_bytes_atomic
from unigrpo.pictures import read_picture
from unigrpo.reports.grids import save_png_atomic

ROUNDS = "rounds"


@dataclass(frozen=True)
class Earlier:
    """A round that is not the one of the picture that stands: its thinking, and its picture (None: it said stop)."""

    thinking: str | None
    path: Path | None


def write_rounds(folder: Path, sample: int, pictures: Sequence[Tensor], thoughts: Sequence[str | None]) -> None:
    """Write the drawings uint8 [3, H, W] before the last, and the thoughts of all rounds but that of the last drawing.

    ``folder``: of the prompt. Nothing for a sample of one round.
    """
    from PIL import Image

    for turn, thought in enumerate(thoughts, start=1):
        if thought is not None and turn != len(pictures) + 1:
            write_bytes_atomic(_place(folder, sample, turn, "txt"), thought.encode("utf-8", "backslashreplace"))
    for turn, picture in enumerate(pictures, start=1):
        image = Image.fromarray(picture.permute(1, 2, 0).contiguous().cpu().numpy())
        save_png_atomic(image, _place(folder, sample, turn, "png"))


def _place(folder: Path, sample: int, turn: int, kind: str) -> Path:
    return folder / ROUNDS / f"{sample:04d}-{turn}.{kind}"


def rounds_of(folder: Path, sample: int) -> tuple[list[Earlier], Earlier | None]:
    """The rounds before that of the picture that stands, and the thinking that ended the sample, if one did."""
    found: list[Earlier] = []
    while (picture := _place(folder, sample, len(found) + 1, "png")).is_file():
        found.append(Earlier(_words(_place(folder, sample, len(found) + 1, "txt")), picture))
    last = _words(_place(folder, sample, len(found) + 2, "txt"))
    return found, None if last is None else Earlier(last, None)


def _words(path: Path) -> str | None:
    return path.read_bytes().decode("utf-8", "replace") if path.is_file() else None


def read(one: Earlier) -> Tensor | None:
    """The picture of a round; None where it cannot be read."""
    assert one.path is not None
    try:
        return read_picture(one.path)
    except ValueError:
        return None


def _name(path: Path | None) -> str | None:
    """A picture's place in the folder of the evaluation."""
    return None if path is None else "/".join(path.parts[-3:])


def told(
    earlier: Sequence[Earlier], verdicts: Sequence[Record | None], ended: Earlier | None, last: Mapping[str, Any]
) -> dict[str, Any]:
    """All rounds of a record under ``rounds``, each with its thinking and what the examiner said; {} for one round.

    ``last``: the record of the picture that stands, with its thinking.
    """
    if not earlier and ended is None:
        return {}
    category = str(last["category"])
    rows = [
        {
            "thinking": one.thinking,
            "picture": _name(one.path),
            **(no_answer(category, "cannot be read") if said is None else said),
        }
        for one, said in zip(earlier, verdicts, strict=True)
    ]
    rows.append(
        {"picture": last["picture"]}
        | {key: value for key, value in last.items() if key not in ("position", "sample", "prompt", "sha256")}
    )
    return {"rounds": [*rows, *([] if ended is None else [{"thinking": ended.thinking}])]}
