"""``ocr/text``: how much of the wanted word an OCR reads in the picture (the text rendering task of Flow-GRPO).

Source: Flow-GRPO (arXiv 2505.05470), OCR reward. The reader is rapidocr, whose weights (PP-OCRv6, small) come inside
its wheel: nothing is downloaded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unigrpo.ranges import ConfigError
from unigrpo.rewards.frozen import needs
from unigrpo.rewards.png import as_bytes
from unigrpo.rewards.protocol import RewardOutput

if TYPE_CHECKING:
    import numpy as np
    from rapidocr import RapidOCR

NAME = "ocr/text"
PACKAGES = ("rapidocr", "onnxruntime")
LINE_HEIGHT = 48  # of the pictures that the recognition net takes
LARGEST = 16


class OcrText:
    """R = max(0, 1 - d(read, word) / |word|), with the edit distance d; case and spaces do not count.

    The word is ``metadata["word"]``, else what stands in double quotes in the prompt; a prompt with neither is an error
    of its picture. Further values: ``similarity`` (R) and ``exact`` (1 where the picture says the word and no more).
    """

    def __init__(
        self, *, detect: bool = True, upscale: float = 1.0, contained: bool = False, threads: int = 0, batch: int = 32
    ) -> None:
        """detect: find lines of text first; False reads the whole picture as one line, much faster. upscale: enlarge
        pictures before reading. contained: R = 1 also for text that holds the word among others, as Flow-GRPO scores
        (hackable: pictures full of letters). threads: of the reader, 0 is as many as torch has. batch: lines at a time.
        """
        if not (isinstance(upscale, int | float) and math.isfinite(upscale) and 1 <= upscale <= LARGEST):
            raise ConfigError(f"{NAME}: upscale = {upscale!r} is a factor and must be in 1..{LARGEST}")
        for key, value in (("detect", detect), ("contained", contained)):
            if not isinstance(value, bool):
                raise ConfigError(f"{NAME}: {key} = {value!r} must be true or false")
        for key, value, least in (("threads", threads, 0), ("batch", batch, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{NAME}: {key} = {value!r} must be a whole number >= {least}")
        for package in PACKAGES:
            needs(NAME, package, "ocr")
        self.detect, self.upscale, self.contained = detect, float(upscale), contained
        self._engine = _engine(detect=detect, threads=threads, batch=batch)

    def __call__(
        self,
        images: Tensor,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
        thinking: Sequence[str | None],
    ) -> RewardOutput:
        """Read pictures float [B, 3, H, W] in [0, 1] and compare with their words."""
        wanted = [wanted_word(text, known) for text, known in zip(prompts, metadata, strict=True)]
        faults = {i: fault for i, fault in enumerate(map(_fault, images, wanted)) if fault is not None}
        given = [known.get("word") for known in metadata]
        faults |= {i: _no_text(w) for i, w in enumerate(given) if w is not None and not isinstance(w, str)}
        sound = [index for index in range(len(images)) if index not in faults]
        similarity, exact = [math.nan] * len(images), [math.nan] * len(images)
        for index, read in zip(sound, self.read(images[sound]), strict=True):
            word = plain(wanted[index] or "")
            similarity[index] = closeness(plain(read), word, contained=self.contained)
            exact[index] = float(plain(read) == word)
        return RewardOutput(similarity, {"similarity": similarity, "exact": exact}, faults)

    def read(self, images: Tensor) -> list[str]:
        """What pictures float [B, 3, H, W] in [0, 1] say; lines that were detected follow each other."""
        pictures = self._pixels(images)
        if not pictures:
            return []
        if not self.detect:
            return list(self._engine.recognize_txt(pictures).txts or ())
        return [self._page(picture) for picture in pictures]

    def _page(self, picture: np.ndarray) -> str:
        """The lines of one picture uint8 [H, W, 3], from the top; empty where there are none."""
        from rapidocr.utils.output import RapidOCROutput

        found = self._engine(picture, use_det=True, use_cls=False, use_rec=True)
        return " ".join(found.txts or ()) if isinstance(found, RapidOCROutput) else ""

    def _pixels(self, images: Tensor) -> list[np.ndarray]:
        """Pictures as uint8 [H, W, 3] in the order blue, green, red, which is what the reader was trained on."""
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(f"{NAME} reads float pictures [B, 3, H, W], not {images.dtype} {list(images.shape)}")
        pictures = images.detach().to("cpu", torch.float32)
        if self.upscale != 1 and len(pictures):
            pictures = F.interpolate(pictures, scale_factor=self.upscale, mode="bicubic", align_corners=False)
        return list(as_bytes(pictures.flip(1)))


def _engine(*, detect: bool, threads: int, batch: int) -> RapidOCR:
    """The reader, silent; lines alone are not filled up to the width that pages are read at."""
    from rapidocr import RapidOCR

    settings: dict[str, Any] = {"Global.log_level": "critical", "Rec.rec_batch_num": batch}
    if not detect:
        settings["Rec.rec_img_shape"] = [3, LINE_HEIGHT, LINE_HEIGHT]
    settings["EngineConfig.onnxruntime.intra_op_num_threads"] = threads or torch.get_num_threads()
    return RapidOCR(params=settings)


def wanted_word(prompt: str, metadata: Mapping[str, Any]) -> str | None:
    """The word that a picture is to say: the metadata's ``word``, else the first text in double quotes."""
    if isinstance(word := metadata.get("word"), str):
        return word
    quoted = re.search(r'["“]([^"“”]+)["”]', prompt)
    return None if quoted is None else quoted[1]


def _fault(image: Tensor, word: str | None) -> str | None:
    """Why a picture cannot be judged."""
    if word is None:
        return 'its prompt names no word: give metadata the key "word", or put the text in double quotes'
    if not plain(word):
        return f"the word {word!r} is empty"
    return None if bool(torch.isfinite(image).all()) else "the picture holds NaN or infinity"


def _no_text(word: object) -> str:
    return f"the word of its metadata is {word!r}, which is no text: quote it"


def plain(text: str) -> str:
    """The text without white space, case-folded."""
    return "".join(text.split()).casefold()


def closeness(read: str, word: str, *, contained: bool = False) -> float:
    """max(0, 1 - d / |word|) with the edit distance d; d = 0 for a text that holds the word, where that counts."""
    if contained and word in read:
        return 1.0
    return max(0.0, 1.0 - edit_distance(read, word) / len(word))


def edit_distance(first: str, second: str) -> int:
    """Levenshtein: how many letters must be put in, taken out or changed to make one text of the other."""
    row = list(range(len(second) + 1))
    for i, letter in enumerate(first, 1):
        above, row[0] = row[0], i
        for j, other in enumerate(second, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (letter != other))
    return row[-1]
