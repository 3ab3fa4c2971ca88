"""A canary for rewards that read: how much of the prompt is written into the picture, in letters.

Rewards that ask a model about a picture (bagel/self, vlm/yes, clip/*) are pleased by the prompt's own words in the
picture. Training can find that out; this figure then rises, though nobody asked for letters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from torch import Tensor

from unigrpo.rewards.frozen import needs
from unigrpo.rewards.ocr import OcrText

Reader = Callable[[Tensor], Sequence[str]]
"""Pictures float [B, 3, H, W] in [0, 1] -> what is written in each ("" for nothing)."""
WORD = re.compile(r"[^\W_]{3,}")  # shorter ones are found inside anything that was read
GAPS = re.compile(r"[\W_]+")
QUOTED = re.compile(r"[\"“”][^\"“”]*[\"“”]|(?<!\w)'[^']*'(?!\w)")
ENOUGH = 0.5


def overlap(read: str, prompt: str) -> float:
    """The share of the prompt's different words that were read, in [0, 1]; what stands in quotes was asked for.

    Words have three letters or digits at least; case does not count, nor do gaps that the reader missed or made. A
    prompt without words outside quotes gives 0.
    """
    wanted = {word.casefold() for word in WORD.findall(QUOTED.sub(" ", prompt))}
    asked = GAPS.sub("", "".join(QUOTED.findall(prompt))).casefold()
    found = GAPS.sub("", read).casefold()
    return sum(word in found and word not in asked for word in wanted) / len(wanted) if wanted else 0.0


def written(images: Tensor, prompts: Sequence[str], read: Reader) -> list[float]:
    """:func:`overlap` of every picture."""
    return [overlap(text, prompt) for text, prompt in zip(read(images), prompts, strict=True)]


def written_share(images: Tensor, prompts: Sequence[str], read: Reader, *, enough: float = ENOUGH) -> float:
    """The share of pictures in which at least ``enough`` of the prompt's words are written; 0 of no pictures."""
    found = written(images, prompts, read)
    return sum(one >= enough for one in found) / len(found) if found else 0.0


def rapidocr_reader(name: str) -> Reader:
    """A reader by rapidocr, whose weights come in its wheel; ConfigError where it is not installed."""
    needs(name, "rapidocr", "ocr")
    return OcrText().read
