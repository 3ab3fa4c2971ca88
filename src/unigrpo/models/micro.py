"""The few-MB BAGEL that ships with the package: the same class, a small config, nothing special-cased."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from unigrpo.models.bagel.autoencoder import Autoencoder
from unigrpo.models.bagel.config import BagelConfig, VisionConfig
from unigrpo.models.bagel.transformer import BagelModel, PositionTable
from unigrpo.models.bagel_files.pretrained import Bagel
from unigrpo.models.bagel_files.tokenizer import Tokenizer, word_tokenizer

SPECIAL_WORDS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
SYSTEM_PROMPT = "think then draw"


def micro_config(
    num_words: int,
    autoencoder: Autoencoder,
    *,
    image_size: tuple[int, int] = (32, 32),
    hidden_size: int = 64,
    num_layers: int = 4,
) -> BagelConfig:
    """A BAGEL of about 0.4 M parameters for pictures of at most 64 x 64: one latent token of 16 numbers per 8 x 8."""
    return BagelConfig(
        vocab_size=num_words,
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_layers=num_layers,
        num_heads=4,
        num_kv_heads=2,
        latent_channels=autoencoder.channels,
        vae_downsample=autoencoder.downsample,
        latent_patch_size=2,
        max_latent_size=8,
        bos_token_id=0,
        eos_token_id=1,
        vision_start_id=2,
        vision_end_id=3,
        image_size=image_size,
        system_prompt=SYSTEM_PROMPT,
        timestep_shift=4.0,
        num_points=9,
    )


def micro_tokenizer(words: Sequence[str], *, spells: bool = False) -> Tokenizer:
    """The words of a micro model; special words come first. ``spells``: capital letters are words of their own."""
    return word_tokenizer([*SPECIAL_WORDS, *words], spells=spells)


def build_micro(
    words: Sequence[str],
    autoencoder: Autoencoder,
    *,
    seed: int,
    image_size: tuple[int, int] = (32, 32),
    spells: bool = False,
) -> Bagel:
    """A freshly initialised micro model over the given words that draws (height, width) pixels."""
    model = BagelModel(micro_config(len(SPECIAL_WORDS) + len(words), autoencoder, image_size=image_size))
    initialise(model, seed)
    return Bagel(model, micro_tokenizer(words, spells=spells), autoencoder)


def grown_config(
    config: BagelConfig, num_words: int, *, vision: VisionConfig | None, side: int, max_think_tokens: int
) -> BagelConfig:
    """The config of a micro model that is to know more words and to look at pictures of ``side`` latent tokens.

    A picture is looked at as large as the table of places holds, so ``side`` is that of what it draws. Without a tower
    it looks at latents alone.
    """
    seeing = replace(config, vision=vision, looks_at_latents=vision is None, max_latent_size=side)
    return replace(seeing, vocab_size=num_words, max_think_tokens=max_think_tokens)


def grown_words(tokenizer: Tokenizer, words: Sequence[str]) -> Tokenizer:
    """The tokenizer of a micro model with further words; those that it has keep their ids."""
    known = tokenizer.inner.get_vocab()
    new = dict.fromkeys(word for word in words if word not in known)
    return word_tokenizer([*sorted(known, key=lambda word: known[word]), *new])


@torch.no_grad()
def grow(small: Bagel, config: BagelConfig, tokenizer: Tokenizer, *, seed: int) -> Bagel:
    """The same model at a larger config (more words, a vision tower); what is new is random."""
    model = BagelModel(config)
    initialise(model, seed)
    new = model.state_dict()
    for name, tensor in small.model.state_dict().items():
        if "pos_embed" not in name:
            new[name][: tensor.shape[0]] = tensor
    return Bagel(model, tokenizer, small.autoencoder, image_size=small.spec.image_size)


@torch.no_grad()
def initialise(model: BagelModel, seed: int) -> None:
    """N(0, 1/fan_in) weights, zero biases; o and down scaled by 1/sqrt(2 layers); a velocity head of zeros."""
    generator = torch.Generator().manual_seed(seed)
    residual = 1.0 / math.sqrt(2 * model.config.num_layers)
    for name, module in model.named_modules():
        if isinstance(module, PositionTable):
            continue
        if isinstance(module, nn.Linear):
            scale = residual if any(part in name for part in ("o_proj", "down_proj")) else 1.0
            module.weight.normal_(0.0, scale / math.sqrt(module.in_features), generator=generator)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(0.0, 1.0, generator=generator)
    model.llm2vae.weight.zero_()
