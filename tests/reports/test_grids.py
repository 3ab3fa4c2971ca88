"""Contact sheets: layout, verdicts, wrapping, and the way back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from unigrpo.reports import grids


def pictures(count: int, size: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_tiles_come_back_bit_for_bit(tmp_path: Path) -> None:
    shown, verdicts = pictures(5), [True, False, None, True, False]
    captions = [f"prompt {i} of ünïcode" for i in range(5)]
    sheet = grids.contact_sheet(shown, captions, verdicts, 3, 4, thinking=[f"thought {i}" for i in range(5)])
    tiles = grids.read_tiles(grids.save_png_atomic(sheet, tmp_path / "a" / "sheet.png"))
    assert len(tiles) == 5
    for i, tile in enumerate(tiles):
        np.testing.assert_array_equal(tile.picture, shown[i])
        assert (tile.caption, tile.thinking, tile.verdict) == (captions[i], f"thought {i}", verdicts[i])


def test_frames_have_the_verdicts_colours() -> None:
    sheet = grids.contact_sheet(pictures(3), ["a"] * 3, [True, False, None], 3, 2)
    pixels = np.asarray(sheet)
    step = 16 * 2 + 2 * grids.FRAME + grids.GAP
    for i, verdict in enumerate([True, False, None]):
        red, green, blue = pixels[grids.GAP, grids.GAP + i * step].tolist()
        assert f"#{red:02x}{green:02x}{blue:02x}" == grids.VERDICT_COLOURS[verdict]


def test_foreign_png_has_no_tiles(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    assert grids.read_tiles(tmp_path / "x.png") == []


def test_wrapping_stays_inside_and_marks_what_is_cut() -> None:
    font = ImageFont.load_default(size=grids.TEXT_SIZE)
    text = "short words and one " + "verylongword" * 8 + " then many more words" * 20
    lines = grids.wrap(font, text, 120, 6, indent=18)
    assert len(lines) == 6 and lines[-1].endswith("…")
    assert font.getlength(lines[0]) <= 102
    assert all(font.getlength(line) <= 120 for line in lines)
    assert "".join(grids.wrap(font, text, 120, 999)).replace(" ", "") == text.replace(" ", "")
    assert grids.wrap(font, "", 120, 3) == []


@pytest.mark.parametrize("size", [1, 24, 512])
def test_automatic_scale_takes_any_size(size: int) -> None:
    sheet = grids.contact_sheet(pictures(1, size), ["x"], [None])
    assert sheet.width >= 150


def test_record_sheet_takes_missing_thinking() -> None:
    records = [{"prompt": "a", "correct": True, "thinking": None}, {"prompt": "b", "correct": False, "thinking": "hm"}]
    assert grids.record_sheet(pictures(2), records).width > 0


@pytest.mark.parametrize(
    ("shown", "captions", "columns", "message"),
    [
        (np.zeros((2, 8, 8, 3), dtype=np.float32), ["a", "b"], 2, "uint8"),
        (np.zeros((2, 3, 8, 8), dtype=np.uint8), ["a", "b"], 2, "channels last"),
        (np.zeros((0, 8, 8, 3), dtype=np.uint8), [], 2, "N >= 1"),
        (np.zeros((2, 8, 8, 3), dtype=np.uint8), ["a"], 2, "2 pictures but 1 captions"),
        (np.zeros((2, 8, 8, 3), dtype=np.uint8), ["a", "b"], 0, "at least 1"),
    ],
)
def test_wrong_input_is_explained(shown: np.ndarray, captions: list[str], columns: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grids.contact_sheet(shown, captions, [None] * len(shown), columns)
