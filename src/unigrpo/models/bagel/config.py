"""Sizes and special tokens of a BAGEL model, from 0.4 M to 14 B parameters (docs/bagel-architecture.md#tensors)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from unigrpo.files import read_json_object
from unigrpo.models.bagel import limits

AT_ONCE = 2**24
"""fp32 numbers (64 MiB) of logits, or of widened weights of the text head, that are made in one piece."""


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of the vision tower (SigLIP without a head); num_layers are those that are instantiated (26 of 27).

    A picture's patch at (row, column) has row ``row * max_patches_per_side + column`` of both position tables.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    image_size: int = 980
    patch_size: int = 14
    max_patches_per_side: int = 70
    layer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        limits.check(vars(self), limits.VISION)
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if self.image_size < self.patch_size:
            raise ValueError(f"image_size {self.image_size} is less than one patch (patch_size {self.patch_size})")

    @property
    def num_positions(self) -> int:
        """Rows of the tower's own position table."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def patch_dim(self) -> int:
        """Numbers per patch (3 p p)."""
        return 3 * self.patch_size**2


@dataclass(frozen=True)
class BagelConfig:
    """All that fixes the shapes and the arithmetic of the transformer.

    The latent grid of an image of H x W pixels has H / (vae_downsample * latent_patch_size) rows; each token carries
    ``latent_patch_size**2 * latent_channels`` numbers, and has row ``row * max_latent_size + column`` of the position
    table. ``system_prompt`` is the text that asks for thinking before drawing, ``answer_prompt`` the one before
    answering. ``looks_at_latents``: a model without a tower was taught to look at pictures by their latents alone. The
    last six are what ``generate`` takes by default: the sampling grid, the guidance and where it is on
    (low < t <= high), and the thinking's temperature (0: greedy) and length. ``vision`` is None for a model that cannot
    see.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    latent_channels: int
    max_latent_size: int
    bos_token_id: int
    eos_token_id: int
    vision_start_id: int
    vision_end_id: int
    image_size: tuple[int, int]
    latent_patch_size: int = 2
    vae_downsample: int = 8
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    vision: VisionConfig | None = None
    looks_at_latents: bool = False
    system_prompt: str = ""
    answer_prompt: str = ""
    timestep_shift: float = 3.0
    num_points: int = 50
    guidance: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    temperature: float = 1.0
    max_think_tokens: int = 32

    def __post_init__(self) -> None:
        limits.check(vars(self), limits.LANGUAGE)
        limits.check_pair("guidance_interval", self.guidance_interval, limits.Limit(0.0, 1.0, whole=False))
        for name in ("system_prompt", "answer_prompt"):
            if not isinstance(words := vars(self)[name], str):
                raise ValueError(f"{name} is {limits.shown(words)}, which should be a text")
        for name in ("bos_token_id", "eos_token_id", "vision_start_id", "vision_end_id"):
            if vars(self)[name] >= self.vocab_size:
                raise ValueError(f"{name} is {vars(self)[name]}, but there are only {self.vocab_size} ids (vocab_size)")
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"the head size is {self.head_dim}; rotary positions need an even one")
        if self.hidden_size % 4:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of 4, as the position table needs")
        if not isinstance(self.looks_at_latents, bool):
            raise ValueError(
                f"looks_at_latents is {limits.shown(self.looks_at_latents)}, which should be true or false"
            )
        if not isinstance(self.vision, VisionConfig | None):
            raise ValueError(f"vision is {limits.shown(self.vision)}, which should be the sizes of a tower, or null")
        limits.check_pair("image_size", self.image_size, limits.Limit(0, limits.SIDE.high))
        self.grid_of(self.image_size)

    @property
    def sees(self) -> bool:
        """Whether it takes given pictures at all."""
        return self.vision is not None or self.looks_at_latents

    @property
    def head_dim(self) -> int:
        """Numbers per attention head."""
        return self.hidden_size // self.num_heads

    @property
    def latent_dim(self) -> int:
        """Numbers per latent token (p * p * z)."""
        return self.latent_patch_size**2 * self.latent_channels

    @property
    def pixels_per_token(self) -> int:
        """Side in pixels of what one latent token covers."""
        return self.vae_downsample * self.latent_patch_size

    def grid_of(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Latent rows and columns of an image of (height, width) pixels."""
        stride, most = self.pixels_per_token, self.max_latent_size
        for side in image_size:
            if side <= 0 or side % stride or side // stride > most:
                raise ValueError(
                    f"an image of {image_size[0]} x {image_size[1]} pixels does not fit this model: "
                    f"each side must be a multiple of {stride}, at most {stride * most}"
                )
        return image_size[0] // stride, image_size[1] // stride

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BagelConfig:
        """Build from a plain mapping; unknown or missing keys are errors that name them."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown key(s) in the model config: {', '.join(unknown)}")
        ready = dict(values)
        for name in ("image_size", "guidance_interval"):
            if isinstance(ready.get(name), list):
                ready[name] = tuple(ready[name])
        try:
            if isinstance(ready.get("vision"), Mapping):
                ready["vision"] = VisionConfig(**ready["vision"])
            return cls(**ready)
        except TypeError as error:
            raise ValueError(f"the model config is incomplete: {error}") from error

    @classmethod
    def load(cls, path: Path) -> BagelConfig:
        """Read ``config.json`` of a model folder; ValueError names a damaged one."""
        try:
            return cls.from_dict(read_json_object(path, "copy the model folder again"))
        except ValueError as error:
            raise ValueError(f"{path} is not the config of a BAGEL model: {error}") from error

    def to_json(self) -> str:
        """The text of ``config.json``."""
        return json.dumps(asdict(self), indent=1) + "\n"
