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


def test_given_pictures_stand_to_the_left_of_what_was_made_of_them(tmp_path: Path) -> None:
    shown, wide = pictures(2), np.zeros((8, 16, 3), dtype=np.uint8)
    wide[:, :] = (255, 0, 255)
    given = [[wide, pictures(1, 600)[0]], []]
    sheet = grids.contact_sheet(shown, ["a", "b"], [True, None], 2, 4, given=given)
    plain = grids.contact_sheet(shown, ["a", "b"], [True, None], 2, 4)
    assert sheet.width == plain.width + 2 * ((16 * 4 + 2 * grids.FRAME) // 2) and sheet.height == plain.height
    assert sheet.getpixel((grids.GAP, grids.GAP)) == (255, 0, 255)
    colours = np.asarray(sheet).reshape(-1, 3)
    assert (colours == (255, 0, 255)).all(1).sum() == 32 * 16  # as large as half of the picture allows, in proportion
    tiles = grids.read_tiles(grids.save_png_atomic(sheet, tmp_path / "sheet.png"))
    for tile, picture in zip(tiles, shown, strict=True):
        np.testing.assert_array_equal(tile.picture, picture)
    with pytest.raises(ValueError, match="2 pictures but 1 given"):
        grids.contact_sheet(shown, ["a", "b"], [True, None], given=[[]])


def test_a_sheet_of_records_knows_what_their_prompts_gave() -> None:
    records = [{"prompt": "a", "position": k, "correct": True} for k in (3, 3, 4)]
    given = {3: [np.full((3, 16, 16), 200, dtype=np.uint8)]}
    sheet, plain = (grids.record_sheet(pictures(3), records, 3, 4, given=some) for some in (given, {}))
    grey = (np.asarray(sheet) == 200).all(2).sum()
    assert sheet.width > plain.width and grey == 2 * 32 * 32


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
