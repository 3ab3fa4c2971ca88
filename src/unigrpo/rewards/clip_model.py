"""A frozen CLIP of transformers with its tokenizer and preprocessing: features of pictures (with gradients) and texts.

transformers 5 gives ``get_image_features`` and ``get_text_features`` an output object: the projected features, not yet
normalised, are its ``pooler_output`` (4.x gave the tensor itself).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from unigrpo.ranges import ConfigError
from unigrpo.rewards.frozen import by_chunks, check_whole, find_file, frozen, needs, read_tensors, reading
from unigrpo.rewards.open_clip_layout import to_transformers
from unigrpo.rewards.pixels import Preprocessing, cropping, device_of, in_chunks

EXTRA = "clip"


@dataclass
class FrozenClip:
    """model: a transformers CLIPModel; ``batch``: pictures, or prompts, that are computed with at once."""

    model: Any
    tokenizer: Any
    preprocessing: Preprocessing
    batch: int

    def of_pictures(self, images: Tensor) -> Tensor:
        """Unit features [B, d] of pictures [B, 3, H, W] in [0, 1], in the model's precision, with gradients."""
        return by_chunks(self._pictures, images.to(self.model.device, self.model.dtype), self.batch)

    def _pictures(self, images: Tensor, chunk: slice) -> Tensor:
        output = self.model.get_image_features(pixel_values=self.preprocessing(images))
        return functional.normalize(output.pooler_output, dim=-1)

    @torch.no_grad()
    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit features [B, d] of texts; each different one is computed once. They have no gradient to give."""
        different = list(dict.fromkeys(texts))
        found = torch.cat([self._texts(different[chunk]) for chunk in in_chunks(len(different), self.batch)])
        place = {text: row for row, text in enumerate(different)}
        return found[[place[text] for text in texts]]

    def _texts(self, texts: list[str]) -> Tensor:
        output = self.model.get_text_features(**self.tokens(texts))
        return functional.normalize(output.pooler_output, dim=-1)

    def tokens(self, texts: list[str]) -> dict[str, Tensor]:
        """Ids and mask int64 [B, 77]: cut to what the model has positions for (the end token stays), and padded."""
        length = self.model.config.text_config.max_position_embeddings
        found = self.tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return {key: found[key].to(self.model.device) for key in ("input_ids", "attention_mask")}

    def cosine(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """cos(picture, its text), [B]."""
        return (self.of_pictures(images) * self.of_texts(texts)).sum(-1)

    @property
    def scale(self) -> Tensor:
        """exp of the learnt logit scale (100 for OpenAI's)."""
        return self.model.logit_scale.exp()


def load_clip(
    name: str, model: str, batch: int, device: str | None, *, processor: str = "", weights: str = ""
) -> FrozenClip:
    """A CLIP from a folder that save_pretrained wrote, or a hub id; fp32, frozen.

    ``processor``: where tokenizer and preprocessing are, if not with the model. ``weights``: a file in the layout of
    open_clip (HUB/ID:FILE for one of the hub) in place of the model's own, whose config then gives the sizes.
    """
    needs(name, "transformers", EXTRA)
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPConfig, CLIPModel

    check_whole(name, "batch", batch)
    where, beside = device_of(device, f"reward {name!r}"), processor or model
    with reading(name, beside):
        tokenizer = AutoTokenizer.from_pretrained(beside)
        preprocessing = cropping(AutoImageProcessor.from_pretrained(beside), f"reward {name!r}: {beside}")
    with reading(name, model):
        if weights:
            loaded = CLIPModel(CLIPConfig.from_pretrained(model))
            _fill(loaded, name, find_file(name, "weights", weights))
        else:
            loaded = CLIPModel.from_pretrained(model, dtype=torch.float32)
    found = FrozenClip(frozen(loaded, where), tokenizer, preprocessing, batch)
    _check(found, f"reward {name!r}: {model}")
    return found


def _fill(model: Any, name: str, path: Path) -> None:
    """Copy weights of open_clip's layout into a model; ConfigError where names or sizes do not fit."""
    tensors = {key: value.float() for key, value in read_tensors(name, "weights", path).items()}
    try:
        model.load_state_dict(to_transformers(tensors))
    except (KeyError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"reward {name!r}: weights = {path} do not fit the config of its model ({said}): name the weights of an "
            "open_clip model of this very size, or a model in the layout of transformers and weights = ''"
        ) from error


def _check(clip: FrozenClip, where: str) -> None:
    """ConfigError where pieces of a folder do not belong together."""
    side = clip.model.config.vision_config.image_size
    if clip.preprocessing.side != side:
        raise ConfigError(f"{where} sees {side} pixels, but its preprocessing gives {clip.preprocessing.side}: mend it")
    if len(clip.tokenizer) > clip.model.config.text_config.vocab_size:
        raise ConfigError(f"{where}: its tokenizer has {len(clip.tokenizer)} tokens, more than the model: name another")
