"""Twelve letters, drawn for this world so that an OCR tells them apart at 16 pixels: strokes two pixels thick.

A glyph has 7 rows of 6 points; a point is one pixel wide and two high. Letters that OCR takes for digits when it sees
no others beside them (S for 5), or for each other at this size (N for H), are left out (LOG.md has the measurement).
"""

from __future__ import annotations

import numpy as np

GLYPHS: dict[str, str] = {
    "A": ".####. ##..## ##..## ###### ##..## ##..## ##..##",
    "B": "#####. ##..## ##..## #####. ##..## ##..## #####.",
    "C": ".##### ##.... ##.... ##.... ##.... ##.... .#####",
    "D": "####.. ##.##. ##..## ##..## ##..## ##.##. ####..",
    "E": "###### ##.... ##.... #####. ##.... ##.... ######",
    "H": "##..## ##..## ##..## ###### ##..## ##..## ##..##",
    "I": ".####. ..##.. ..##.. ..##.. ..##.. ..##.. .####.",
    "L": "##.... ##.... ##.... ##.... ##.... ##.... ######",
    "O": ".####. ##..## ##..## ##..## ##..## ##..## .####.",
    "R": "#####. ##..## ##..## #####. ##.##. ##..## ##..##",
    "T": "###### ..##.. ..##.. ..##.. ..##.. ..##.. ..##..",
    "U": "##..## ##..## ##..## ##..## ##..## ##..## .####.",
}
"""Rows from the top, # is ink."""
LETTERS = tuple(GLYPHS)
VOWELS = tuple(letter for letter in LETTERS if letter in "AEIOU")
CONSONANTS = tuple(letter for letter in LETTERS if letter not in VOWELS)

LETTER_HEIGHT, LETTER_WIDTH = 16, 8


def ink(letter: str) -> np.ndarray:
    """Where a letter has ink in its cell: float64 [16, 8], 0 or 1, with a margin of one pixel."""
    points = np.array([[point == "#" for point in row] for row in GLYPHS[letter].split()], dtype=np.float64)
    return np.pad(np.repeat(points, 2, axis=0), 1)
