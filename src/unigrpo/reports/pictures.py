"""The pictures of a report, as links that hold them: tiles side by side, contact sheets, samples of training."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from unigrpo.reports import rounds, runlog
from unigrpo.reports.grids import LARGEST, Tile, png_bytes, read_tiles, reward_note, thinking_of
from unigrpo.reports.source_pictures import IMAGES

PIXELATED = 128  # pixels of a side up to which a picture is shown pixel by pixel, and kept exactly
LARGEST_PNG = 500_000  # bytes of a contact sheet; larger ones (of photographs) become JPEGs, so the page can be mailed
JPEG_QUALITY = 88
SAMPLE_SHEETS = 3

Json = Mapping[str, Any]


def data_uri(data: bytes, kind: Literal["png", "jpeg"] = "png") -> str:
    """Return a picture file as a link that holds the picture itself."""
    return f"data:image/{kind};base64," + base64.b64encode(data).decode()


def pairs(run_dir: Path) -> list[dict[str, Any]]:
    """Pair the tiles of both contact sheets, prompt by prompt; without an after sheet, the left halves only."""
    before, after = (_tiles(run_dir, when) for when in ("before", "after"))
    if after and [tile.caption for tile in before] != [tile.caption for tile in after]:
        return []  # not the same prompts: nothing to put side by side
    records = {"before": _records_of(before, run_dir, "before"), "after": _records_of(after, run_dir, "after")}
    return [
        {
            "prompt": tile.caption,
            "before": _picture(run_dir, tile, records["before"][index]),
            "after": _picture(run_dir, after[index], records["after"][index]) if after else None,
            "given": _given(run_dir, records["before"][index]),
        }
        for index, tile in enumerate(before)
    ]


def _tiles(run_dir: Path, when: Literal["before", "after"]) -> list[Tile]:
    path = runlog.evaluation_file(run_dir, when, "png")
    return read_tiles(path) if path.is_file() else []


def _records_of(tiles: Sequence[Tile], run_dir: Path, when: Literal["before", "after"]) -> Sequence[Json]:
    """Return the record of every tile, or {} for all of them where records and sheet do not belong together.

    The sheet shows the first records with ``sample`` 0, in order (``training.recorder``). Order is the only key:
    prompts, and even what was thought for them, may occur several times.
    """
    records = runlog.read_records(runlog.evaluation_file(run_dir, when, "jsonl"))
    shown = [record for record in records if record.get("sample") == 0][: len(tiles)]
    same = [(record.get("prompt"), thinking_of(record), record.get("correct")) for record in shown]
    if same != [(tile.caption, tile.thinking, tile.verdict) for tile in tiles]:
        return [{}] * len(tiles)
    return shown


def _picture(run_dir: Path, tile: Tile, record: Json) -> dict[str, Any]:
    """Return a picture with its texts and verdict, and which half failed where its record is known."""
    halves = ["plan cannot be read"] if record.get("parsable") is False else []
    if record.get("plan_right") is not None and not halves:
        halves.append("plan right" if record["plan_right"] else "plan wrong")
    if record.get("follow") is not None:
        halves.append("picture follows it" if record["follow"] else "picture does not follow it")
    points = record.get("points") or []
    return {
        "image": thumbnail(tile.picture),
        "pixelated": max(tile.picture.shape[:2]) <= PIXELATED,
        "thoughts": rounds.thoughts(record or {"thinking": tile.thinking}),
        "earlier": _files(run_dir, [one.get("picture") for one in (record.get("rounds") or ())]),
        "turn": rounds.last_turn(record),
        "verdict": tile.verdict,
        "note": reward_note(record),
        "halves": ", ".join(halves),
        "missed": [str(question) for question, met in points if not met],
    }


def _given(run_dir: Path, record: Json) -> list[dict[str, Any]]:
    """The pictures that came with a prompt (an edit's sources), as far as they are in the run folder."""
    return _files(run_dir, record.get(IMAGES) or ())


def _files(run_dir: Path, names: Sequence[Any]) -> list[dict[str, Any]]:
    """The pictures of these files, as far as they are there."""
    from PIL import Image

    found = []
    for name in names:
        if name is not None and (path := run_dir / str(name)).is_file():
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
            found.append({"image": thumbnail(pixels), "pixelated": max(pixels.shape[:2]) <= PIXELATED})
    return found


def thumbnail(picture: np.ndarray) -> str:
    """A picture uint8 [H, W, 3] of at most 256 pixels a side as a link: small ones exactly, others as JPEG."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(picture))
    if max(image.size) <= PIXELATED:
        return data_uri(png_bytes(image))
    image.thumbnail((LARGEST, LARGEST))
    return _jpeg_uri(image)


def _jpeg_uri(image: Any) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return data_uri(buffer.getvalue(), "jpeg")


def _sheet_uri(path: Path) -> str:
    """A whole contact sheet as a link: the file itself, or a JPEG of it where it is large."""
    if path.stat().st_size <= LARGEST_PNG:
        return data_uri(path.read_bytes())
    from PIL import Image

    with Image.open(path) as image:
        return _jpeg_uri(image)


def evaluation_sheets(run_dir: Path) -> list[tuple[str, str]]:
    """Whole contact sheets, shown where they cannot be taken apart into pairs."""
    found = []
    for when in ("before", "after"):
        path = runlog.evaluation_file(run_dir, when, "png")
        if path.is_file():
            found.append((when, _sheet_uri(path)))
    return found


def samples(run_dir: Path) -> list[dict[str, Any]]:
    """Return a few sheets of training samples, and what was given: the first, one from the middle, the last."""
    paths = sorted(path for path in (run_dir / "samples").glob("iteration-*.png") if path.stem.count("-") == 1)
    chosen = sorted({round(index) for index in np.linspace(0, len(paths) - 1, SAMPLE_SHEETS)}) if paths else []
    return [_sample_sheet(run_dir, paths[index]) for index in chosen]


def _sample_sheet(run_dir: Path, path: Path) -> dict[str, Any]:
    prompts = {record["position"]: record for record in runlog.read_records(path.with_suffix(".jsonl"))}
    given = [{"prompt": record.get("prompt"), "pictures": _given(run_dir, record)} for record in prompts.values()]
    return {
        "iteration": int(path.stem.split("-")[1]),
        "image": _sheet_uri(path),
        "given": [item for item in given if item["pictures"]],
    }
