"""bench-256: a random BAGEL between toy and real, whose thinkings have a given length, and its prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from unigrpo.models.bagel.config import BagelConfig
from unigrpo.models.bagel.transformer import BagelModel
from unigrpo.models.micro import initialise
from unigrpo.trajectory import Prompt, Text

NEVER = 0.9  # uniforms below this choose no <eos>, which is the last id of many
NOW = 1 - 2**-24  # and this one does


@dataclass(frozen=True)
class Size:
    """What is drawn, and how: a square of ``image_tokens`` latent tokens in ``steps`` forwards, after ``words``."""

    groups: int = 4
    group: int = 8
    words: int = 32
    image_tokens: int = 64
    steps: int = 10
    hidden: int = 256
    layers: int = 6
    window: int = 3

    def small(self) -> Size:
        """Of the same form, but in milliseconds."""
        return replace(self, hidden=64, layers=2, words=min(self.words, 8), steps=min(self.steps, 4))


VOCABULARY, SYSTEM, WORDS = 1024, 22, 30


def model_of(size: Size) -> BagelModel:
    """Random weights."""
    side = round(size.image_tokens**0.5)
    config = BagelConfig(
        vocab_size=VOCABULARY,
        hidden_size=size.hidden,
        intermediate_size=4 * size.hidden,
        num_layers=size.layers,
        num_heads=8,
        num_kv_heads=2,
        latent_channels=4,
        max_latent_size=side,
        bos_token_id=0,
        eos_token_id=VOCABULARY - 1,
        vision_start_id=2,
        vision_end_id=3,
        image_size=(16 * side, 16 * side),
        system_prompt="think",
    )
    model = BagelModel(config)
    initialise(model, seed=0)
    return model.requires_grad_(False)


def policy_of(api: ModuleType, size: Size, ends: Mapping[int, int] | None = None) -> Any:
    """The policy: all rows think ``size.words`` words, but row i of ``ends`` stops after ``ends[i]``."""

    class Lasting(api.Bagel):  # pyright: ignore[reportUntypedBaseClass]
        def prompt_segments(self, prompt: Prompt, *, think: bool) -> tuple[Text, ...]:
            return words(SYSTEM - 2, 0), words(WORDS - 2, 31 * prompt.position)

        def think(self, context: Any, *, uniforms: Tensor, temperature: float) -> Any:
            uniforms = uniforms * NEVER
            for row, step in (ends or {}).items():
                uniforms[row, step] = NOW
            return super().think(context, uniforms=uniforms, temperature=temperature)

    return Lasting(model_of(size), None, None)


def words(count: int, start: int) -> Text:
    """Some given words."""
    return Text((torch.arange(count) + start) % (VOCABULARY - 5) + 4)


def prompts_of(size: Size) -> list[Prompt]:
    """As many prompts as groups."""
    return [Prompt(position, f"prompt {position}") for position in range(size.groups)]


def sampling_of(api: ModuleType, size: Size) -> Any:
    """The demo's sampling at this size."""
    recipe = api.load_recipe("shapes/unigrpo")
    return replace(
        api.sampling_of(recipe), num_points=size.steps + 1, max_think_tokens=size.words, window_size=size.window
    )
