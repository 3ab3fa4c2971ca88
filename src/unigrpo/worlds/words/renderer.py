"""From signs to pictures: 16 x 48 RGB, one line of six columns, light letters on the dark ground of the shapes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from unigrpo.worlds.words.font import LETTER_HEIGHT, LETTER_WIDTH, LETTERS, ink
from unigrpo.worlds.words.signs import COLUMNS, Sign

IMAGE_SIZE = (LETTER_HEIGHT, LETTER_WIDTH * len(COLUMNS))
"""(height, width) in pixels."""
BACKGROUND, INK = (0.10, 0.10, 0.12), (1.00, 0.93, 0.76)


def _templates() -> Tensor:
    ground, colour = (np.asarray(c)[:, None, None] for c in (BACKGROUND, INK))
    masks = [np.zeros((LETTER_HEIGHT, LETTER_WIDTH)), *(ink(letter) for letter in LETTERS)]
    return torch.from_numpy(np.stack([mask * colour + (1 - mask) * ground for mask in masks]).astype(np.float32))


TEMPLATES = _templates()
"""float32 [13, 3, 16, 8]: the background, then LETTERS in order."""


def draw(labels: Tensor) -> Tensor:
    """Draw what every column shows, int64 [B, 6] (0: nothing, k: LETTERS[k - 1]), as float32 [B, 3, 16, 48]."""
    return TEMPLATES[labels].permute(0, 2, 3, 1, 4).reshape(-1, 3, *IMAGE_SIZE)


def render(signs: Sequence[Sign]) -> Tensor:
    """Draw signs as pictures float32 [B, 3, 16, 48] in [0, 1]."""
    labels = torch.zeros((len(signs), len(COLUMNS)), dtype=torch.int64)
    for row, sign in enumerate(signs):
        for item in sign.letters:
            labels[row, COLUMNS.index(item.column)] = LETTERS.index(item.letter) + 1
    return draw(labels)
