"""bagel/self: can the model itself read the prompt back from the picture? (Self-SpectraReward, arXiv 2607.11886)

R(prompt x_1..x_T, picture y) = 1/T sum_t log p(x_t | x_<t, y), by the understanding branch of a frozen unified model.

No external judge, one packed forward for a batch. Its known hole: a picture with the prompt written into it reads back
perfectly. ``canary`` watches for that where an OCR is installed (``written``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unigrpo.policy import Policy, ReplayItem
from unigrpo.ranges import ConfigError
from unigrpo.rewards.frozen import check_whole
from unigrpo.rewards.pixels import in_chunks
from unigrpo.rewards.png import quantised
from unigrpo.rewards.protocol import RewardOutput
from unigrpo.rewards.written import Reader, rapidocr_reader, written
from unigrpo.trajectory import Prompt, Segment, Text

NAME = "bagel/self"


@dataclass(frozen=True)
class ReadBack:
    """What one picture says of its prompt: log p of every token, fp32 [T]; or why that cannot be known."""

    log_probs: Tensor | None
    fault: str = ""


class PromptLikelihood:
    """The mean log p of the prompt's tokens (no bos, no end) after the picture, by a policy that is given.

    The picture comes as BAGEL sees the picture of an edit, as latents and as a view; without ``latents`` as a view
    alone, as in a question. No instruction stands between picture and prompt. ``batch``: pictures in one forward.

    Parts: ``lowest``, the log p of the token that the picture supports least; with ``canary``, ``written``
    (:func:`unigrpo.rewards.written.written`), which takes an OCR a second or two per picture.
    """

    name = NAME

    def __init__(self, *, policy: Policy, latents: bool = True, batch: int = 4, canary: bool = False) -> None:
        check_whole(self.name, "batch", batch)
        self.policy, self.latents, self.batch = policy, latents, batch
        policy.module.requires_grad_(False).eval()
        self.reader: Reader | None = rapidocr_reader(f"{self.name}: canary") if canary else None
        try:
            policy.question_segments("", [torch.zeros(3, 16, 16, dtype=torch.uint8)], think=False)
        except ValueError as error:
            raise ConfigError(f"reward {self.name!r}: {error}: name a model that can look at its pictures") from error

    def shown(self, picture: Tensor) -> tuple[Segment, ...]:
        """A picture uint8 [3, H, W] as segments that the prompt can follow."""
        if self.latents:
            given = self.policy.prompt_segments(Prompt(0, "", images=(picture,)), think=False)
        else:
            given = self.policy.question_segments("", [picture], think=False)
        return tuple(segment for segment in given if not isinstance(segment, Text))

    def __call__(
        self,
        images: Tensor,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
        thinking: Sequence[str | None],
    ) -> RewardOutput:
        """The mean log p of every prompt after its picture; errors where the model cannot read the prompt."""
        found: list[ReadBack] = []
        for chunk in in_chunks(len(prompts), self.batch):
            found += self.read_back(images[chunk], prompts[chunk])
        faults = {index: one.fault for index, one in enumerate(found) if one.fault}
        parts: dict[str, Sequence[float]] = {"lowest": [_of(one, torch.Tensor.min) for one in found]}
        if self.reader is not None:
            parts["written"] = written(images, prompts, self.reader)
        return RewardOutput([_of(one, torch.Tensor.mean) for one in found], parts, faults)

    @torch.no_grad()
    def read_back(self, images: Tensor, prompts: Sequence[str]) -> list[ReadBack]:
        """What pictures [B, 3, H, W] in [0, 1] say of their prompts, in one packed forward."""
        pictures = quantised(images)
        found: list[ReadBack | ReplayItem] = [self._item(*pair) for pair in zip(pictures, prompts, strict=True)]
        items = [one for one in found if isinstance(one, ReplayItem)]
        answers = iter(self.policy.replay(items) if items else [])
        return [one if isinstance(one, ReadBack) else ReadBack(next(answers).log_probs.cpu()) for one in found]

    def _item(self, picture: Tensor, prompt: str) -> ReadBack | ReplayItem:
        try:
            ids = self.policy.encode_text(prompt)
        except ValueError as error:
            return ReadBack(None, f"the model cannot read the prompt ({error})")
        if not len(ids):
            return ReadBack(None, "the prompt has no words that could be read back")
        return ReplayItem((*self.shown(picture), Text(ids, ended=False, target=True)))


def _of(one: ReadBack, statistic: Any) -> float:
    return math.nan if one.log_probs is None else float(statistic(one.log_probs.double()))
