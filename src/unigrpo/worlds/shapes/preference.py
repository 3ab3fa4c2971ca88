"""A small learned judge of the shapes world: picture and prompt in, preference score out, differentiable in the pixels.

It plays the part of the paper's reward model (RewardDance: a network fine-tuned on preferences), in training; the
verifier stays the gold that training never sees. It is a weak judge on purpose: small, taught with mistaken labels and
without adversarial pictures, so a policy that optimises it hard can please it without drawing better.
``scripts/train_preference.py`` trains it, on pairs of scripts/preference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from torch import Tensor, nn

from unigrpo.files import read_json_object
from unigrpo.worlds.shapes.parsing import normalise_prompt, vocabulary
from unigrpo.worlds.shapes.prompts import CATEGORIES, combinations, wordings
from unigrpo.worlds.shapes.renderer import GRID, IMAGE_SIZE

CONFIG, MODEL = "config.json", "model.safetensors"
PADDING, START = 0, 1
"""The ids that fill up short prompts and begin every prompt; word k of the config has id k + 2."""


def prompt_words() -> tuple[str, ...]:
    """The words of training prompts, in the vocabulary's order: those that training gives a meaning."""
    items = [item for category in CATEGORIES for stratum in combinations("train", category) for item in stratum]
    texts = [text for item in items for order in {item, item.mirrored()} for text in wordings(order)]
    used = {word for text in texts for word in text.split()}
    return tuple(word for word in vocabulary() if word in used)


@dataclass(frozen=True)
class PreferenceConfig:
    """Sizes of the judge; ``words`` are those it can read, in the order of their embeddings."""

    words: tuple[str, ...]
    width: int = 48
    channels: tuple[int, int] = (16, 32)
    heads: int = 4
    blocks: int = 2
    max_words: int = 16

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"preference model: width {self.width} must be a multiple of heads {self.heads}")
        if len(set(self.words)) < len(self.words) or not self.words:
            raise ValueError("preference model: words must be a list without repetitions, and not empty")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PreferenceConfig:
        """From the plain values of ``config.json``."""
        channels = {"channels": tuple(values["channels"])} if "channels" in values else {}
        return cls(**{**values, "words": tuple(values["words"]), **channels})


class Attention(nn.Module):
    """Multi-head attention after a LayerNorm of the queries, without biases; it attends to what it is given."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.queries = nn.Linear(width, width, bias=False)
        self.keys_values = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, others: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """x [B, n, d]; others [B, m, d] (None: x itself, normalised); mask bool [B, 1, 1, m], False: not seen."""
        x = self.norm(x)
        keys, values = self.keys_values(x if others is None else others).chunk(2, dim=-1)
        parts = [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.queries(x), keys, values)]
        seen = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=mask)
        return self.out(seen.transpose(1, 2).flatten(2))


def _feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))


class Block(nn.Module):
    """Every cell looks at the prompt's words, then at the other cells, then thinks for itself."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.reading = Attention(width, heads)
        self.looking = Attention(width, heads)
        self.feed_forward = _feed_forward(width)

    def forward(self, cells: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """cells [B, 16, d], words [B, m, d], mask [B, 1, 1, m] -> cells [B, 16, d]."""
        cells = cells + self.reading(cells, words, mask)
        cells = cells + self.looking(cells)
        return cells + self.feed_forward(cells)


class PreferenceModel(nn.Module):
    """Score s(picture, prompt) of a Bradley-Terry model: P(a is preferred to b) = sigmoid(s(a) - s(b)).

    Three strided convolutions give one vector per 8 x 8 cell; the prompt's words pass one layer of self-attention; the
    cells look at the words and at each other in ``blocks`` blocks; their mean becomes the score. Preferences alone
    teach it too little about shapes, colours and words, so in training two auxiliary heads read every cell as well:
    what it shows, from :meth:`look` (43 labels of ``renderer.cell_labels``), and whether the prompt asks for that, from
    :meth:`compare`. The heads are not part of the model.
    """

    def __init__(self, config: PreferenceConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        first, second = config.channels
        self.trunk = nn.Sequential(
            nn.Conv2d(3, first, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(first, second, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(second, width, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 1),
        )
        self.cell_positions = nn.Parameter(torch.zeros(GRID * GRID, width))
        self.words = nn.Embedding(len(config.words) + 2, width, padding_idx=PADDING)
        self.word_positions = nn.Parameter(torch.zeros(config.max_words + 1, width))
        self.syntax = Attention(width, config.heads)
        self.word_feed_forward = _feed_forward(width)
        self.word_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.blocks))
        self.score = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))
        self._ids = {word: index + 2 for index, word in enumerate(config.words)}
        self._initialise()

    def _initialise(self) -> None:
        """Embeddings and positions small enough not to drown what the cells show."""
        for table in (self.words.weight, self.cell_positions, self.word_positions):
            nn.init.normal_(table, std=0.3)
        with torch.no_grad():
            self.words.weight[PADDING].zero_()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights; pictures are brought to it, and scores have it."""
        return self.cell_positions.dtype

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B] of pictures float [B, 3, 32, 32] in [0, 1] for their prompts; higher is better, spread about 1.

        Gradients reach the pixels. A prompt is read in any case and punctuation (``parsing.normalise_prompt``).
        ValueError for pictures of another shape or type, another number of prompts, an unknown word or too many words.
        """
        return self.judge(self.compare(images, prompts))

    def compare(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """What every cell shows, in the light of the prompt and of the other cells: [B, 16, width]."""
        self._check(images, len(prompts))
        different = list(dict.fromkeys(prompts))
        place = {text: index for index, text in enumerate(different)}
        words, mask = self.read(different)
        rows = torch.tensor([place[text] for text in prompts], device=words.device)
        words, mask = words[rows], mask[rows]
        cells = self.look(images) + self.cell_positions
        for block in self.blocks:
            cells = block(cells, words, mask)
        return cells

    def judge(self, cells: Tensor) -> Tensor:
        """Scores [B] of compared cells [B, 16, width]."""
        return self.score(cells.mean(1)).squeeze(-1)

    def look(self, images: Tensor) -> Tensor:
        """What every cell shows, before any prompt: [B, 3, 32, 32] -> [B, 16, width], cells row-major."""
        return self.trunk(images.to(self.dtype) * 2 - 1).flatten(2).transpose(1, 2)

    def read(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Prompts as words in context: [P, m, width], and the mask bool [P, 1, 1, m] of real words."""
        ids = self._encode(prompts)
        mask = (ids != PADDING)[:, None, None, :]
        words = self.words(ids) + self.word_positions[: ids.shape[1]]
        words = words + self.syntax(words, mask=mask)
        return self.word_norm(words + self.word_feed_forward(words)), mask

    def embeddings(self, words: Sequence[str]) -> Tensor:
        """The vectors [n, width] of single words of the config, before any context (for the auxiliary head)."""
        return self.words(torch.tensor([self._ids[word] for word in words], device=self.cell_positions.device))

    def _encode(self, prompts: Sequence[str]) -> Tensor:
        """Ids int64 [P, m], padded to the longest prompt."""
        rows = [normalise_prompt(text).split() for text in prompts]
        for text, row in zip(prompts, rows, strict=True):
            if unknown := [word for word in row if word not in self._ids]:
                raise ValueError(
                    f"the preference model does not know the word {unknown[0]!r} in the prompt {text!r}: it reads "
                    f"{', '.join(self.config.words)}"
                )
            if not 1 <= len(row) <= self.config.max_words:
                raise ValueError(
                    f"the preference model reads prompts of 1 to {self.config.max_words} words, and {text!r} has "
                    f"{len(row)}: say it in other words"
                )
        longest = max(len(row) for row in rows)
        ids = [[START, *(self._ids[word] for word in row)] + [PADDING] * (longest - len(row)) for row in rows]
        return torch.tensor(ids, device=self.cell_positions.device)

    def _check(self, images: Tensor, prompts: int) -> None:
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, IMAGE_SIZE, IMAGE_SIZE) or not images.is_floating_point():
            raise ValueError(
                f"the preference model judges float pictures [B, 3, {IMAGE_SIZE}, {IMAGE_SIZE}] in [0, 1], not "
                f"{images.dtype} {tuple(images.shape)}: use the shapes models, or resize and divide bytes by 255"
            )
        if len(images) != prompts or not prompts:
            raise ValueError(f"{len(images)} pictures but {prompts} prompts: one prompt per picture, at least one")


def load_preference(folder: Path) -> PreferenceModel:
    """Read a folder that ``scripts/train_preference.py`` wrote; the model is frozen and in evaluation mode.

    ValueError names a file that is missing or damaged, or that does not fit the other one.
    """
    if missing := [name for name in (CONFIG, MODEL) if not (folder / name).is_file()]:
        raise ValueError(f"{folder} is not a preference model: it has no {', '.join(missing)}")
    try:
        config = PreferenceConfig.from_dict(read_json_object(folder / CONFIG))
        with torch.device("meta"):  # no numbers are drawn for weights that are read anyway
            model = PreferenceModel(config)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder / CONFIG} is not the config of a preference model: {error!r}") from error
    try:
        model.load_state_dict(read_tensors((folder / MODEL).read_bytes()), strict=True, assign=True)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{folder / MODEL} does not hold the weights that its config asks for: {error}") from error
    return model.requires_grad_(False).eval()
