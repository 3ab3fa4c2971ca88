"""GenEval's colours: CLIP ViT-L/14 chooses among ten for an object on grey, cut out along its box.

As djghosh13/geneval does: the object composited through its mask onto #999, cropped to its box, prepared as open_clip
prepares pictures (Pillow's bicubic resize of the shorter side, the middle square, OpenAI's mean and std); for each
colour the mean over three templates of unit text features, made unit again; the colour with the largest cosine. There
CLIP ran with CUDA's fp16 autocast, here in fp32: colours can differ where fp16 does not tell two cosines apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.Image import Image as Picture
from torch import Tensor
from torch.nn import functional

from unigrpo.evaluation.weight_files import UNREADABLE, check_finite, first_line
from unigrpo.ranges import ConfigError, shown

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")
BACKGROUND = (0x99, 0x99, 0x99)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's
BATCH = 16
OFFICIAL = {"image_size": 224, "patch_size": 14, "hidden_size": 1024, "num_hidden_layers": 24, "text_hidden_size": 768}
"""The sizes of ViT-L/14."""


class ClipColours:
    """Names the colours of objects in a picture. ``model``: a transformers CLIPModel, fp32; ``tokenizer``: its own."""

    def __init__(self, *, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.side = int(model.config.vision_config.image_size)
        self._classifiers: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(
        self, picture: Tensor, boxes: Sequence[Sequence[float]], masks: Sequence[Tensor], name: str
    ) -> list[str]:
        """The colour of each object of the class ``name`` in a picture uint8 [3, H, W].

        ``boxes``: [x0, y0, x1, y1], whole pixels, x1 and y1 exclusive; ``masks``: bool [H, W].
        """
        whole = Image.fromarray(picture.cpu().permute(1, 2, 0).contiguous().numpy())
        found: list[str] = []
        for start in range(0, len(boxes), BATCH):
            chunk = slice(start, start + BATCH)
            crops = [self.prepared(whole, *one) for one in zip(boxes[chunk], masks[chunk], strict=True)]
            pixels = torch.stack(crops).to(self.model.device)
            features = functional.normalize(self.model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
            found += [COLOURS[index] for index in (features @ self.classifier(name)).argmax(1).tolist()]
        return found

    def prepared(self, picture: Picture, box: Sequence[float], mask: Tensor) -> Tensor:
        """The pixels [3, side, side] of one object."""
        blank = Image.new("RGB", picture.size, color=BACKGROUND)
        alone = Image.composite(picture, blank, Image.fromarray(mask.cpu().numpy().astype(np.uint8) * 255))
        x0, y0, x1, y1 = (round(end) for end in box)
        square = _middle(alone.crop((x0, y0, x1, y1)), self.side)
        values = torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255
        mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (MEAN, STD))
        return (values - mean) / std

    def classifier(self, name: str) -> Tensor:
        """A unit feature for each colour of the class, [d, 10]; computed once."""
        if name not in self._classifiers:
            columns = []
            for colour in COLOURS:
                texts = [template.format(colour=colour, name=name) for template in TEMPLATES]
                tokens = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.model.device)
                given = {key: tokens[key] for key in ("input_ids", "attention_mask")}
                features = functional.normalize(self.model.get_text_features(**given).pooler_output, dim=-1)
                columns.append(functional.normalize(features.mean(0), dim=0))
            self._classifiers[name] = torch.stack(columns, dim=1)
        return self._classifiers[name]

    @property
    def official(self) -> bool:
        """Whether the model has ViT-L/14's sizes and OpenAI's activation."""
        eye, text = self.model.config.vision_config, self.model.config.text_config
        sizes = {key: eye.to_dict()[key] for key in OFFICIAL if key != "text_hidden_size"}
        return {**sizes, "text_hidden_size": text.hidden_size} == OFFICIAL and eye.hidden_act == "quick_gelu"


def _middle(crop: Picture, side: int) -> Picture:
    """The middle square of a crop whose shorter side is resized to ``side``, as torchvision does it with Pillow."""
    width, height = crop.size
    short = min(width, height)
    longer = int(side * max(width, height) / short)
    size = (side, longer) if width <= height else (longer, side)
    large = crop if size == crop.size else crop.resize(size, Image.Resampling.BICUBIC)
    left, top = (round((length - side) / 2) for length in size)
    return large.crop((left, top, left + side, top + side))


def load(folder: Path, where: str, device: torch.device) -> ClipColours:
    """The classifier of a folder that holds a CLIP of transformers' and its tokenizer; else ConfigError."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoTokenizer, CLIPConfig, CLIPModel

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        if not isinstance(config, CLIPConfig):
            raise ConfigError(
                f"{where} holds a model of the type {shown(config.model_type)}: give a folder of a CLIP, such as "
                "openai/clip-vit-large-patch14"
            )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        loaded: Any = CLIPModel.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except ConfigError:
        raise
    except (*UNREADABLE, StrictDataclassError) as error:
        raise ConfigError(
            f"{where} cannot be read ({first_line(error)}): copy the whole folder of the CLIP again"
        ) from error
    model, report = loaded
    if report["missing_keys"] or report["mismatched_keys"]:
        odd = next(str(key) for key in (*report["missing_keys"], *report["mismatched_keys"]))
        raise ConfigError(f"{where}: its weights do not fit its config.json ({odd}): copy both again")
    check_finite(model.state_dict(), where)
    return ClipColours(model=model.to(device).eval().requires_grad_(False), tokenizer=tokenizer)
