"""Contact sheets: pictures with their prompt, their thinking and a verdict, as one PNG that can be taken apart again.

A sheet remembers its tiles in the PNG's text, so that the HTML report can put the same prompt before and after
training side by side, with real text below each picture.
"""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from unigrpo.files import write_bytes_atomic

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

PAPER, INK, FAINT, NOTE = "#ffffff", "#1f2328", "#5b6470", "#0072b2"
VERDICT_COLOURS: dict[bool | None, str] = {True: "#12823f", False: "#c62f26", None: "#8a929c"}
FRAME, GAP, BADGE, TEXT_SIZE, LINE = 4, 14, 18, 13, 17  # pixels
TILE_WIDTH = 168  # what an automatic scale aims at: about 26 letters a line
LARGEST = 256  # pixels of a side in a sheet of records; larger pictures are reduced
CAPTION_LINES, THINKING_LINES = 4, 8
TILES_KEY = "unigrpo-tiles"


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet, uint8 [H, W, 3] at its own size, with what is written below it."""

    picture: np.ndarray
    caption: str
    thinking: str
    verdict: bool | None


def contact_sheet(
    pictures: np.ndarray,
    captions: Sequence[str],
    verdicts: Sequence[bool | None],
    columns: int = 6,
    scale: int | None = None,
    *,
    thinking: Sequence[str] | None = None,
    notes: Sequence[str] | None = None,
    given: Sequence[Sequence[np.ndarray]] | None = None,
) -> Image:
    """Draw N pictures in a grid, each in a green (check), red (cross) or grey (no verdict) frame with its texts below.

    pictures: uint8 [N, H, W, 3]; each is enlarged ``scale`` times with nearest neighbour (None: to about 168 pixels).
    captions: the prompts; thinking: what the model wrote before drawing. Long texts end in "…" after 4 and 8 lines.
    notes: a few words each (such as the reward) that stand where the verdict's mark would be; "": the mark.
    given: for edits, the pictures uint8 [H, W, 3] (of any sizes) that each was made from: small, to its left.
    The result's ``info`` holds the tiles for :func:`read_tiles`. ValueError if counts, shape or type don't fit.
    """
    thoughts = list(thinking) if thinking is not None else [""] * len(captions)
    marks = list(notes) if notes is not None else [""] * len(captions)
    sources = list(given) if given is not None else [()] * len(captions)
    counts = {"captions": len(captions), "verdicts": len(verdicts), "thinking": len(thoughts), "notes": len(marks)}
    _check(pictures, {**counts, "given": len(sources)}, columns, scale)
    from PIL import Image as Images
    from PIL import ImageDraw as Drawing
    from PIL import ImageFont as Fonts

    count, height, width = pictures.shape[:3]
    scale = scale or max(1, round(TILE_WIDTH / width))
    font = Fonts.load_default(size=TEXT_SIZE)
    outer = (width * scale + 2 * FRAME, height * scale + 2 * FRAME)
    aside = outer[0] // 2 if any(sources) else 0
    step = aside + outer[0] + GAP
    texts = [_wrapped(font, n, c, t, aside + outer[0]) for n, c, t in zip(marks, captions, thoughts, strict=True)]
    columns = min(columns, count)
    rows = [texts[start : start + columns] for start in range(0, count, columns)]
    heights = [outer[1] + LINE * max(sum(map(len, parts)) for parts in row) + GAP + 8 for row in rows]
    sheet = Images.new("RGB", (GAP + columns * step, GAP + sum(heights)), PAPER)
    draw = Drawing.Draw(sheet)
    tiles = []
    for index in range(count):
        row, column = divmod(index, columns)
        left, top = GAP + column * step + aside, GAP + sum(heights[:row])
        _paste_given(sheet, sources[index], (left - aside, top), (aside - FRAME, outer[1]))
        _frame(draw, (left, top), outer, verdicts[index])
        big = Images.fromarray(pictures[index]).resize((width * scale, height * scale), Images.Resampling.NEAREST)
        sheet.paste(big, (left + FRAME, top + FRAME))
        _write(draw, font, (left - aside, top + outer[1] + 6), texts[index], verdicts[index])
        tiles.append([left + FRAME, top + FRAME, captions[index], thoughts[index], verdicts[index]])
    sheet.info[TILES_KEY] = json.dumps({"size": [width, height], "scale": scale, "tiles": tiles})
    return sheet


def record_sheet(
    pictures: np.ndarray,
    records: Sequence[Mapping[str, Any]],
    columns: int = 6,
    scale: int | None = None,
    *,
    given: Mapping[int, Sequence[ArrayLike]] = MappingProxyType({}),
    earlier: Mapping[int, Sequence[ArrayLike]] = MappingProxyType({}),
) -> Image:
    """Draw the contact sheet of evaluation records (``prompt``, ``thinking``, ``correct``), picture i for record i.

    Pictures above 256 pixels are reduced. What nobody judged shows its ``reward`` in place of a verdict. given: the
    pictures uint8 [3, H, W] that came with a prompt, by its ``position``; they stand beside what was made of them.
    earlier: of several rounds the pictures that were looked at before, by the record's index; they stand there too, and
    the thinking is that of all rounds.
    """
    sources, before = _channels_last(given), _channels_last(earlier)
    return contact_sheet(
        reduced(pictures),
        [record["prompt"] for record in records],
        [record.get("correct") for record in records],
        columns,
        scale,
        thinking=[thinking_of(record) for record in records],
        notes=[reward_note(record) for record in records],
        given=[[*sources.get(r.get("position", -1), []), *before[i]] for i, r in enumerate(records)],
    )


def _channels_last(pictures: Mapping[int, Sequence[ArrayLike]]) -> Mapping[int, list[np.ndarray]]:
    found = {place: [np.asarray(one).transpose(1, 2, 0) for one in some] for place, some in pictures.items()}
    return defaultdict(list, found)


def numbered(thoughts: Sequence[str | None]) -> str:
    """Thoughts of several rounds in one text, numbered; that of one round as it is, "" without."""
    if len(thoughts) < 2:
        return (thoughts[0] if thoughts else None) or ""
    return " ".join(f"{turn}: {words}" for turn, words in enumerate(thoughts, start=1) if words is not None)


def thinking_of(record: Mapping[str, Any]) -> str:
    """What led to the picture of a record, in all its rounds."""
    if rounds := record.get("rounds"):
        return numbered([one.get("thinking") for one in rounds])
    return record.get("thinking") or ""


def reward_note(record: Mapping[str, Any]) -> str:
    """The reward of a record in words, where it has no verdict; else ""."""
    reward = record.get("reward")
    return f"reward {reward:.3f}" if reward is not None and record.get("correct") is None else ""


def reduced(pictures: np.ndarray, largest: int = LARGEST) -> np.ndarray:
    """Pictures uint8 [N, H, W, 3] with no side above ``largest`` pixels: as they are, or reduced in proportion."""
    if pictures.ndim != 4 or max(pictures.shape[1:3]) <= largest:
        return pictures
    from PIL import Image as Images

    small = [Images.fromarray(np.ascontiguousarray(picture)) for picture in pictures]
    for image in small:
        image.thumbnail((largest, largest))
    return np.stack([np.asarray(image) for image in small])


def _check(pictures: np.ndarray, counts: Mapping[str, int], columns: int, scale: int | None) -> None:
    if pictures.ndim != 4 or pictures.shape[3] != 3 or pictures.dtype != np.uint8 or len(pictures) == 0:
        raise ValueError(
            f"pictures must be uint8 [N, H, W, 3] with N >= 1, got {pictures.dtype} {list(pictures.shape)}; "
            "round float pictures to 0..255 and move the channels last"
        )
    for name, count in counts.items():
        if count != len(pictures):
            raise ValueError(f"{len(pictures)} pictures but {count} {name}: give one for each picture")
    if columns < 1 or (scale is not None and scale < 1):
        raise ValueError(f"columns and scale must be at least 1, got {columns} and {scale}")


def _paste_given(sheet: Image, pictures: Sequence[np.ndarray], corner: tuple[int, int], room: tuple[int, int]) -> None:
    """Paste given pictures below each other into the room from a corner on, each as large as its share allows."""
    from PIL import Image as Images

    top, most = corner[1], room[1] // max(2, len(pictures))
    for picture in pictures:
        height, width = picture.shape[:2]
        share = min(room[0] / width, most / height)
        size = max(1, int(width * share)), max(1, int(height * share))
        how = Images.Resampling.NEAREST if share >= 1 else Images.Resampling.LANCZOS
        sheet.paste(Images.fromarray(np.ascontiguousarray(picture)).resize(size, how), (corner[0], top))
        top += most


def _frame(draw: ImageDraw, corner: tuple[int, int], outer: tuple[int, int], verdict: bool | None) -> None:
    left, top = corner
    box = (left, top, left + outer[0] - 1, top + outer[1] - 1)
    draw.rectangle(box, outline=VERDICT_COLOURS[verdict], width=FRAME)


def _badge(draw: ImageDraw, corner: tuple[int, int], verdict: bool | None) -> None:
    """Draw a check, a cross or a dash: the verdict must not hang on telling green from red."""
    x, y = corner
    colour = VERDICT_COLOURS[verdict]
    draw.ellipse((x, y, x + 14, y + 14), fill=colour)
    strokes = {
        True: [[(3.5, 7.5), (6.2, 10.2), (10.8, 4.6)]],
        False: [[(4.2, 4.2), (9.8, 9.8)], [(9.8, 4.2), (4.2, 9.8)]],
        None: [[(4, 7), (10, 7)]],
    }
    for stroke in strokes[verdict]:
        draw.line([(x + a, y + b) for a, b in stroke], fill=PAPER, width=2)


Texts = tuple[list[str], list[str], list[str]]  # lines of the note, the caption and the thinking


def _wrapped(font: FreeTypeFont | ImageFont, note: str, caption: str, thinking: str, width: int) -> Texts:
    """Break the texts of a tile into lines; without a note the caption leaves room for the badge on its first line."""
    indent = 0 if note else BADGE
    lines = wrap(font, caption, width, CAPTION_LINES, indent=indent), wrap(font, thinking, width, THINKING_LINES)
    return wrap(font, note, width, 1), *lines


def wrap(font: FreeTypeFont | ImageFont, text: str, width: int, limit: int, indent: int = 0) -> list[str]:
    """Break a text into lines of at most ``width`` pixels (the first shorter by ``indent``), at most ``limit`` lines.

    Words that are wider than a line are broken; what does not fit ends in "…".
    """
    lines, current = [], ""
    pieces = [piece for word in text.split() for piece in _pieces(font, word, width - indent)]
    for piece in pieces:
        room = width - (indent if not lines else 0)
        longer = f"{current} {piece}".strip()
        if current and font.getlength(longer) > room:
            lines.append(current)
            current = piece
        else:
            current = longer
    lines += [current] if current else []
    if len(lines) <= limit:
        return lines
    last = lines[limit - 1]
    while last and font.getlength(last + "…") > width:
        last = last[:-1]
    return [*lines[: limit - 1], last + "…"]


def _pieces(font: FreeTypeFont | ImageFont, word: str, width: float) -> list[str]:
    """Cut a word wherever it would be wider than a line."""
    pieces = [""]
    for letter in word:
        if pieces[-1] and font.getlength(pieces[-1] + letter) > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces


def _write(
    draw: ImageDraw, font: FreeTypeFont | ImageFont, corner: tuple[int, int], texts: Texts, verdict: bool | None
) -> None:
    """Write the note or the badge, the caption (dark) and the thinking (fainter) from a corner downwards."""
    left, top = corner
    note, caption, thinking = texts
    if not note:
        _badge(draw, (left, top + 1), verdict)
    for index, line in enumerate([*note, *caption, *thinking]):
        colour = NOTE if index < len(note) else INK if index < len(note) + len(caption) else FAINT
        indent = BADGE if index == 0 and caption and not note else 0
        draw.text((left + indent, top + index * LINE), line, fill=colour, font=font)


# ------------------------------------------------------------------------------------------------------------ files


def png_bytes(image: Image) -> bytes:
    """Encode an image as PNG, with the tiles of a contact sheet in its text."""
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    if TILES_KEY in image.info:
        text.add_itxt(TILES_KEY, str(image.info[TILES_KEY]), zip=True)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True, pnginfo=text)
    return buffer.getvalue()


def save_png_atomic(image: Image, path: Path | str) -> Path:
    """Write a PNG that is either there whole or not at all (see ``runlog.write_bytes_atomic``)."""
    return write_bytes_atomic(path, png_bytes(image))


def read_tiles(path: Path | str) -> list[Tile]:
    """Take a contact sheet apart; [] for a PNG that does not remember its tiles (edited by another program)."""
    from PIL import Image as Images

    with Images.open(path) as image:
        image.load()
        if TILES_KEY not in image.info:
            return []
        pixels = np.asarray(image.convert("RGB"))
        layout = json.loads(str(image.info[TILES_KEY]))
    (width, height), scale = layout["size"], layout["scale"]
    tiles = []
    for left, top, caption, thinking, verdict in layout["tiles"]:
        picture = pixels[top : top + height * scale : scale, left : left + width * scale : scale]
        tiles.append(Tile(picture, caption, thinking, verdict))
    return tiles
