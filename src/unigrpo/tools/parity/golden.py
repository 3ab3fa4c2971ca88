"""A folder of reference numbers of the original code: its model, its tensors, and the contexts that checks share.

Layout: tests/golden/bagel_a/README.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unigrpo import flow
from unigrpo.files import read_json_object
from unigrpo.models.bagel.blocks import lay_rows
from unigrpo.models.bagel.cache import Cache
from unigrpo.models.bagel.config import BagelConfig, VisionConfig
from unigrpo.models.bagel.transformer import BagelModel
from unigrpo.models.bagel_files.checkpoint import load_weights, read_weights
from unigrpo.models.bagel_files.pretrained import Bagel
from unigrpo.trajectory import Segment, Text

TOLERANCE, TEXT_TOLERANCE, GUIDED_TOLERANCE = 1e-4, 2e-4, 3e-4


@dataclass(frozen=True)
class Check:
    """One line of the report; ``error`` is the largest absolute difference (inf: shapes or ids differ)."""

    group: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance (NaN is not)."""
        return self.error <= self.tolerance


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference; inf when the shapes differ, NaN when a value is."""
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours.detach().double() - theirs.double()).abs().max()) if theirs.numel() else 0.0


def read_config(values: dict[str, Any]) -> BagelConfig:
    """The folder's config.json (a format of its own) as a BagelConfig."""
    llm, tokens = values["llm_config"], values["special_tokens"]
    return BagelConfig(
        vocab_size=llm["vocab_size"],
        hidden_size=llm["hidden_size"],
        intermediate_size=llm["intermediate_size"],
        num_layers=llm["num_hidden_layers"],
        num_heads=llm["num_attention_heads"],
        num_kv_heads=llm["num_key_value_heads"],
        rms_norm_eps=llm["rms_norm_eps"],
        rope_theta=llm["rope_theta"],
        latent_channels=values["vae_config"]["z_channels"],
        vae_downsample=values["vae_config"]["downsample"],
        latent_patch_size=values["latent_patch_size"],
        max_latent_size=values["max_latent_size"],
        bos_token_id=tokens["bos_token_id"],
        eos_token_id=tokens["eos_token_id"],
        vision_start_id=tokens["start_of_image"],
        vision_end_id=tokens["end_of_image"],
        image_size=(values["image_hw"][0], values["image_hw"][1]),
        vision=read_vision(values),
    )


def read_vision(values: dict[str, Any]) -> VisionConfig:
    """The vision tower's sizes; in these folders the number of layers is not reduced by one."""
    vit = values["vit_config"]
    return VisionConfig(
        hidden_size=vit["hidden_size"],
        intermediate_size=vit["intermediate_size"],
        num_layers=vit["num_hidden_layers"],
        num_heads=vit["num_attention_heads"],
        image_size=vit["image_size"],
        patch_size=vit["patch_size"],
        max_patches_per_side=values["vit_max_num_patch_per_side"],
        layer_norm_eps=vit["layer_norm_eps"],
    )


class Golden:
    """A reference folder, its model, and the contexts that the checks share."""

    def __init__(self, folder: Path) -> None:
        names = ("config.json", "weights.safetensors", "golden.safetensors")
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise ValueError(f"{folder} is not a parity folder: it has no {', '.join(missing)}")
        try:
            self.values = read_json_object(folder / "config.json")
            config = read_config(self.values)
            self.num_points, self.shift = int(self.values["num_timesteps"]), float(self.values["timestep_shift"])
            self.sample_lengths = [int(n) for n in self.values["meta"]["train_sample_lens"]]
            self.image_grids = [(int(r), int(c)) for r, c in self.values["meta"]["train_latent_shapes"]]
            self.edit_size = (int(self.values["edit_hw"][0]), int(self.values["edit_hw"][1]))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            why = error if isinstance(error, ValueError) else repr(error)
            raise ValueError(f"{folder / 'config.json'} is not a parity config: {why}") from error
        self.data = read_weights(folder / "golden.safetensors")
        model = BagelModel(config)
        source = str(folder / "weights.safetensors")
        load_weights(model, read_weights(folder / "weights.safetensors"), source)
        self.policy = Bagel(model.eval(), None, None)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.data:
            raise ValueError(f"golden.safetensors has no tensor {name!r}")
        return self.data[name]

    def text(self, name: str, *, target: bool = False) -> Text:
        """A given text of the folder."""
        return Text(self[f"t2i.{name}_ids"], target=target)

    @cached_property
    def prompt(self) -> tuple[Text, Text]:
        """[system] [prompt]."""
        return self.text("system"), self.text("prompt")

    @cached_property
    def full(self) -> Cache:
        """The context that the image sees: [system] [prompt] [think]."""
        return self.policy.prefill([(*self.prompt, self.text("think"))])

    @cached_property
    def guidance_contexts(self) -> tuple[Cache, Cache]:
        """Text-unconditional [system] and image-unconditional [system] [prompt]."""
        return self.policy.prefill([self.prompt[:1]]), self.policy.prefill([self.prompt])

    def velocity(self, context: Cache, x: Tensor, t: float, policy: Bagel | None = None) -> Tensor:
        """One velocity [n, d] of one image [n, d]."""
        return (policy or self.policy).velocity(context, x[None], torch.tensor([t]))[0]

    def guided(
        self, x: Tensor, t: float, text_scale: float, image_scale: float, renorm: flow.Renorm, renorm_min: float
    ) -> Tensor:
        """A guided velocity in the thinking context."""
        text, image = self.guidance_contexts
        return flow.guided_velocity(
            self.velocity(self.full, x, t)[None],
            self.velocity(text, x, t)[None],
            self.velocity(image, x, t)[None],
            text_scale=text_scale,
            image_scale=image_scale,
            renorm=renorm,
            renorm_min=renorm_min,
        )[0]

    def cache_error(self, cache: Cache, context: tuple[Segment, ...], name: str) -> float:
        """Largest error of keys and values, in the order of the tokens (reference layout: layers, slots, heads, d)."""
        (row,) = lay_rows([context], self.policy.config)
        by_order = torch.tensor([*row.und.order, *row.gen.order]).argsort()
        ours = [cache.layer(index) for index in range(self.policy.config.num_layers)]
        worst = 0.0
        for position, kind in enumerate(("keys", "values")):
            stacked = torch.stack([layer[position][0][:, by_order].transpose(0, 1) for layer in ours if layer])
            worst = max(worst, difference(stacked, self[f"{name}.{kind}"]))
        return worst
