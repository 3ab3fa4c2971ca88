"""Micro models that begin from a shipped one and are to do more: further words, and eyes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from unigrpo.models.bagel.config import BagelConfig, VisionConfig
from unigrpo.models.bagel_files.checkpoint import CONFIG, WORDS
from unigrpo.models.bagel_files.pretrained import Bagel
from unigrpo.models.bagel_files.tokenizer import Tokenizer
from unigrpo.models.micro import grow, grown_config, grown_words
from unigrpo.worlds.shapes.looking import further_words


@dataclass(frozen=True)
class Grown:
    """A name of a new model, and the shipped checkpoint that it begins from; what is new in it is random.

    words: that it learns; vision: the sizes of its tower (None: it looks at latents alone); side: latent tokens of the
    side of what it looks at; max_think_tokens: of what it thinks.
    """

    path: str
    of: str
    words: tuple[str, ...]
    vision: VisionConfig | None
    side: int
    max_think_tokens: int

    def opened(self, folder: Path) -> tuple[BagelConfig, Tokenizer]:
        """Config and tokenizer, from the folder of what it begins from."""
        tokenizer = grown_words(Tokenizer.load(folder / WORDS), self.words)
        config = grown_config(
            BagelConfig.load(folder / CONFIG),
            tokenizer.inner.get_vocab_size(),
            vision=self.vision,
            side=self.side,
            max_think_tokens=self.max_think_tokens,
        )
        return config, tokenizer

    def made(self, folder: Path, seed: int) -> Bagel:
        """The model."""
        config, tokenizer = self.opened(folder)
        return grow(Bagel.load(folder), config, tokenizer, seed=seed)


MICRO_ROUNDS = Grown("init:micro-rounds", "shapes-sft", further_words(), None, side=4, max_think_tokens=48)
TOWER = VisionConfig(
    hidden_size=64,
    intermediate_size=128,
    num_layers=2,
    num_heads=4,
    image_size=32,
    patch_size=8,
    max_patches_per_side=4,
)
"""A tower of 0.1 M parameters; latents alone were learned faster (LOG.md)."""
WITH_TOWER = replace(MICRO_ROUNDS, path="init:micro-rounds-tower", vision=TOWER)
GROWN = {grown.path: grown for grown in (MICRO_ROUNDS, WITH_TOWER)}


def grown_by(path: str) -> Grown | None:
    """What a name of a new model that begins from a shipped one means; None for all other names."""
    return GROWN.get(path)
