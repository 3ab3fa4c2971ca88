"""vlm/yes: how sure a vision-language model is that a picture shows what was asked (as RewardDance, arXiv 2509.08826).

The reward is the probability of the model's first word of an answer being "Yes". It is differentiable: patches are made
of the pictures by tensor operations, so the gradient goes through language model and vision tower into the pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unigrpo.ranges import ConfigError, shown
from unigrpo.rewards.frozen import by_chunks, check_whole, frozen, needs, reading
from unigrpo.rewards.pixels import device_of
from unigrpo.rewards.protocol import DifferentiableReward
from unigrpo.rewards.qwen_pixels import read_pixels

QWEN = "Qwen/Qwen2.5-VL-7B-Instruct"  # Apache-2.0; the 3B one is for research only
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TEMPLATE = 'Does this picture show "{prompt}"? Judge only what is visible. Answer with exactly one word: Yes or No.'
CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
)


class VlmYes(DifferentiableReward):
    """P(``yes``) of the first word of the answer; with ``relative``, P(yes) / (P(yes) + P(no)).

    ``model``: a Qwen2-VL, Qwen2.5-VL or Qwen3-VL (folder or hub id). ``template``: the question, with {prompt} in it.
    ``chat``: the whole conversation, with one image token and {question} in it; control tokens that a prompt spells are
    read as plain letters. ``yes``, ``no``: words of one token each.
    """

    name = "vlm/yes"

    def __init__(
        self,
        *,
        model: str = QWEN,
        template: str = TEMPLATE,
        yes: str = "Yes",
        no: str = "No",
        relative: bool = False,
        chat: str = CHAT,
        batch: int = 4,
        dtype: str = "bfloat16",
        device: str | None = None,
    ) -> None:
        check_whole(self.name, "batch", batch)
        for key, text, hole in (("template", template, "{prompt}"), ("chat", chat, "{question}")):
            if text.count(hole) != 1:
                raise ConfigError(f"reward {self.name!r}: {key} = {shown(text)} must say {hole} once: write it there")
        if dtype not in DTYPES:
            raise ConfigError(f"reward {self.name!r}: dtype = {shown(dtype)} must be one of {', '.join(DTYPES)}")
        self.template, self.batch, self.relative = template, batch, relative
        self._load(model, DTYPES[dtype], device_of(device, f"reward {self.name!r}"))
        before, _, after = chat.partition("{question}")
        self.before, self.after = self._ids(before), self._ids(after)
        image = self.model.config.image_token_id
        if (self.before + self.after).count(image) != 1:
            raise ConfigError(f"reward {self.name!r}: chat must have the model's image token once (as <|image_pad|>)")
        self.yes, self.no = self._word("yes", yes), self._word("no", no)

    def _load(self, model: str, dtype: torch.dtype, device: torch.device) -> None:
        needs(self.name, "transformers", "vlm")
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

        with reading(self.name, model):
            family = AutoConfig.from_pretrained(model).model_type
            if family not in FAMILIES:
                raise ConfigError(
                    f"reward {self.name!r}: the model {model} is a {family}, but pictures are only prepared with "
                    f"gradients for {', '.join(FAMILIES)}: name one of these"
                )
            self.tokenizer = AutoTokenizer.from_pretrained(model)
            self.pixels = read_pixels(AutoImageProcessor.from_pretrained(model), f"reward {self.name!r}: {model}")
            self.model: Any = frozen(AutoModelForImageTextToText.from_pretrained(model, dtype=dtype), device)

    def _ids(self, text: str, **options: bool) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, **options)["input_ids"]

    def _word(self, key: str, word: str) -> int:
        ids = self._ids(word)
        if len(ids) != 1:
            raise ConfigError(
                f"reward {self.name!r}: {key} = {shown(word)} is {len(ids)} tokens of this model: choose a word of one"
            )
        return ids[0]

    def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """The probability of yes for every picture, [B]."""
        given = images.to(self.model.device)
        found = by_chunks(lambda part, chunk: self._probabilities(part, prompts[chunk]), given, self.batch)
        return found.to(images.device, images.dtype)

    def _probabilities(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        patches, (rows, columns) = self.pixels(images)
        tokens = self.tokens(prompts, rows * columns // self.pixels.merge**2)
        grid = torch.tensor([[1, rows, columns]] * len(images), device=images.device)
        output = self.model(
            **tokens,
            pixel_values=patches.flatten(0, 1).to(self.model.dtype),
            image_grid_thw=grid,
            use_cache=False,
            logits_to_keep=1,
        )
        logits = output.logits[:, -1]
        log_p = torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), -1)
        yes, no = log_p[:, self.yes], log_p[:, self.no]
        return torch.sigmoid(yes - no) if self.relative else yes.exp()

    def tokens(self, prompts: Sequence[str], seen: int) -> dict[str, Tensor]:
        """Ids, mask and token types int64 [B, n], padded before the text, so that every row ends where it answers.

        The types (1: picture) are what the positions of the picture's tokens are made of; without them transformers
        silently numbers these like words.
        """
        image, device = self.model.config.image_token_id, self.model.device
        rows = [self._row(prompt, image, seen) for prompt in prompts]
        longest = max(len(row) for row in rows)
        padding = [longest - len(row) for row in rows]
        ids = torch.tensor([[0] * pad + row for pad, row in zip(padding, rows, strict=True)], device=device)
        mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding], device=device)
        return {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": (ids == image).long()}

    def _row(self, prompt: str, image: int, seen: int) -> list[int]:
        question = self._ids(self.template.replace("{prompt}", prompt), split_special_tokens=True)
        parts = [[token] * seen if token == image else [token] for token in self.before + question + self.after]
        return [token for part in parts for token in part]
