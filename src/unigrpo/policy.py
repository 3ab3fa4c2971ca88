"""What the RL asks of a model: write, draw, recompute log-probs and velocities (no I/O, no model).

A model only answers "log-probs of these tokens, please" and "velocity here, please". Everything else (SDE steps,
ratios, regularisers) is arithmetic on the answers and lives in ``flow`` and ``objectives``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from unigrpo.costs.sizes import ModelSizes
from unigrpo.trajectory import NO_GUIDANCE, Guidance, Prompt, Segment, Text


@dataclass(frozen=True)
class PolicySpec:
    """Sizes that the rollout needs: the latent tokens of one image and the pixels it decodes to.

    grid: (rows, columns) of latent tokens; latent_dim: numbers per token; image_size: (height, width) in pixels.
    """

    grid: tuple[int, int]
    latent_dim: int
    image_size: tuple[int, int]

    @property
    def num_tokens(self) -> int:
        """Latent tokens of one image."""
        return self.grid[0] * self.grid[1]

    @property
    def num_elements(self) -> int:
        """D of the spec: latent numbers of one image, over which image log-probs are averaged."""
        return self.num_tokens * self.latent_dim


class Context(Protocol):
    """What the model remembers of B token sequences (for a transformer: the key/value cache)."""

    def expand(self, repeats: int) -> Self:
        """Repeat every row ``repeats`` times, members of a group adjacent: B -> B * repeats."""
        ...

    def take(self, rows: Sequence[int]) -> Self:
        """The given rows alone, in that order (asked where samples of one batch have different numbers of rounds)."""
        ...


@dataclass(frozen=True)
class VelocityQuery:
    """Velocities wanted for the image ``segments[segment]`` given ``segments[:segment]``: at x [K, n, d] and t [K].

    A model answers that; the rest is the asker's own. ``target`` [K, n, d] is eps - x_0 where x was made by noising the
    picture, None where the sampler was there. ``guidance``: how the conditional velocity is to be mixed with those of
    the unconditional branches, at those of the K times that are ``guided`` (none where it is empty).
    """

    segment: int
    x: Tensor
    t: Tensor
    target: Tensor | None = None
    guidance: Guidance = NO_GUIDANCE
    guided: tuple[bool, ...] = ()


@dataclass(frozen=True)
class ReplayItem:
    """One sequence to score in a replay: all its segments, and where velocities are wanted."""

    segments: tuple[Segment, ...]
    queries: tuple[VelocityQuery, ...] = ()


@dataclass(frozen=True)
class Replayed:
    """What a replay says of one item, all with gradients.

    log_probs: fp32 [actions], of every scored text in order (ids, then eos if ended), at the asked temperature;
    entropies: fp32 [actions], of the same distributions, detached; spreads: fp32 [actions], their largest less their
    smallest log-prob, in which the rounding of a log-prob is measured; velocities: per query fp32 [K, n, d].
    """

    log_probs: Tensor
    entropies: Tensor
    spreads: Tensor
    velocities: tuple[Tensor, ...]


@dataclass(frozen=True)
class GenerationDefaults:
    """What a model itself recommends where nothing else is asked for.

    num_points: of the timestep grid (M points are M - 1 forwards); guidance is on where low < t <= high; an edit is
    guided by ``edit_guidance`` on its pictures. ``pictures``: of each prompt; ``batch``: drawn together. ``captioned``:
    even a single picture is shown on a sheet, with its thinking (the pictures are tiny).
    """

    num_points: int = 50
    shift: float = 3.0
    guidance: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    edit_guidance: float = 2.0
    temperature: float = 1.0
    max_think_tokens: int = 32
    pictures: int = 1
    batch: int = 4
    captioned: bool = False


class Scorer(Protocol):
    """A model as a replay needs it: the policy itself, or a frozen reference.

    Weights are computed with by the module's ``forward`` alone, or by methods that its class lists as ``FRONT_DOORS``:
    sharding, autocast and checkpointing hang there.
    """

    @property
    def module(self) -> nn.Module:
        """The trainable module (named parameters, state dict)."""
        ...

    def replay(self, items: Sequence[ReplayItem], *, temperature: float = 1.0) -> list[Replayed]:
        """Score B items in one packed forward, with gradients."""
        ...


class Policy(Scorer, Protocol):
    """A model that thinks, then draws. B rows run together; rows may have different lengths.

    A family of models inherits from this; what has a body here is right for one that does no more than that.
    """

    spec: PolicySpec
    compute_dtype: torch.dtype

    # What the model is

    @property
    def defaults(self) -> GenerationDefaults:
        """What it recommends for drawing."""
        return GenerationDefaults()

    @property
    def words(self) -> frozenset[str] | None:
        """All words that it knows, where its vocabulary is closed; None where it reads any text."""
        return None

    @property
    def sizes(self) -> ModelSizes | None:
        """The sizes that its FLOPs follow from; None where they are not known: a run then counts none."""
        return None

    def at_size(self, image_size: tuple[int, int]) -> Self:
        """The same model (shared weights), drawing (height, width) pixels; ValueError where a size does not fit."""
        if image_size != self.spec.image_size:
            height, width = self.spec.image_size
            raise ValueError(f"this model draws {width} x {height} pixels and nothing else")
        return self

    # Words

    def encode_text(self, text: str) -> Tensor:
        """Words -> ids int64 [n] (no bos, no eos); ValueError names what the vocabulary does not have."""
        ...

    def decode_text(self, ids: Tensor) -> str:
        """Ids -> words, for people and logs only: never fed back."""
        ...

    def prompt_segments(self, prompt: Prompt, *, think: bool) -> tuple[Segment, ...]:
        """The given segments before the model's first own turn: [system, with thinking] [pictures] [prompt]."""
        ...

    def question_segments(self, question: str, pictures: Sequence[Tensor], *, think: bool) -> tuple[Segment, ...]:
        """The given segments before an answer in words about pictures uint8 [3, H, W] that are only looked at."""
        raise ValueError("this model draws; it does not answer questions about pictures")

    @property
    def looks(self) -> bool:
        """Whether it can look at what it drew (:meth:`look_segments`), and go on."""
        return False

    def look_segments(self, pictures: Tensor) -> list[tuple[Segment, ...]]:
        """The given segments by which it sees pictures uint8 [B, 3, H, W] that it drew itself, one tuple each."""
        raise ValueError("this model cannot look at what it drew: set rollout.rounds to 1")

    def edit_size(self, picture: Tensor) -> tuple[int, int]:
        """(height, width) of what an edit of this picture is drawn at."""
        return self.spec.image_size

    # Reading, writing, drawing

    def prefill(self, contexts: Sequence[Sequence[Segment]]) -> Context:
        """Read B contexts into a cache."""
        ...

    def extend(self, context: Any, additions: Sequence[Sequence[Segment]]) -> Context:
        """Read further segments after ``context``, one tuple per row; ``context`` may be changed by it."""
        ...

    def think(self, context: Any, *, uniforms: Tensor, temperature: float) -> tuple[list[Text], Context]:
        """Write one text per row, continuing ``context``; inverse-CDF sampling with ``uniforms`` [B, max tokens].

        Returns the sampled texts (with behaviour log-probs) and the context with ``bos ids eos`` in it.
        Temperature 0 means greedy (log-probs then at temperature 1).
        """
        ...

    def velocity(self, context: Any, x: Tensor, t: Tensor) -> Tensor:
        """dx/dt of B images x [B, n, d] at times t [B] given B contexts; fp32 [B, n, d]."""
        ...

    # Pixels

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in [0, 1] -> packed latents [B, n, d]."""
        ...

    def decode_image(self, latents: Tensor) -> Tensor:
        """Packed latents [B, n, d] -> pixels fp32 [B, 3, H, W] in [0, 1], not yet quantised."""
        ...

    # Parameters

    def parameter_groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """The parameters that are trained, by group and name; groups are disjoint, and one without any may be empty.

        The group "reasoning" learns from the words alone and "denoising" from the pictures alone, unless the method
        lets losses through the context; every other group learns from both, whatever reaches it. "denoising" has the
        learning rate ``lr_denoising``, all others have ``lr_reasoning``.
        """
        ...

    def sharded_layers(self) -> Sequence[nn.Module]:
        """The parts of the module that are shared out one by one over the ranks of a sharded run, in forward order.

        Every forward must enter each of them once; what is in none is gathered for the whole forward.
        """
        return ()

    def front_doors(self) -> Sequence[str]:
        """The methods of the module by which weights are computed with, forward and what its class lists."""
        return ("forward",)

    def adapter_targets(self, groups: Sequence[str]) -> list[str]:
        """The linear layers of some groups that LoRA adapts, by name in the module."""
        raise ValueError("this model says no layers for LoRA adapters: set model.lora to null to train its weights")

    def packed_targets(self) -> list[str]:
        """The linear layers that are held in 4 bits under adapters (model.quantize), by name in the module."""
        raise ValueError("this model says no layers that may be held in 4 bits: set model.quantize to none")

    # Files

    def save(self, folder: Path) -> None:
        """Write a folder that its family loads again, every tensor in the dtype that it is held in."""
        ...

    def restore(self, folder: Path) -> None:
        """Copy the weights of a saved folder into this model, in place; ValueError names what does not fit."""
        ...


@runtime_checkable
class SavesLater(Protocol):
    """What a policy adds whose folder can be written from weights that were taken before, while it trains on.

    Of any other, the weights are written before training goes on.
    """

    @property
    def module(self) -> nn.Module:
        """The module whose state dict is what is taken."""
        ...

    def save_state(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write what :meth:`Policy.save` writes with these weights (by name); with none, all but the weights."""
        ...

    def weights_file(self) -> tuple[str, Mapping[str, str]]:
        """The file of the weights in that folder, and the metadata that it has there."""
        ...


@dataclass(frozen=True)
class Loading:
    """How a model is to be held: where, in which precision, and at which size.

    Weights whose name is ``trained`` are kept in fp32, all others in ``compute_dtype``. ``seed``: of one that is made.
    """

    device: torch.device
    compute_dtype: torch.dtype
    trained: Callable[[str], bool]
    image_size: tuple[int, int] | None
    seed: int


class SeesNothing(ValueError):
    """A prompt has pictures, and the model cannot look at any."""


class UnknownWords(ValueError):
    """A text has words that are not in the closed vocabulary of a small model."""


class Reads(Protocol):
    """What is known of a model before its weights are read."""

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) that it draws."""
        ...

    @property
    def words(self) -> frozenset[str] | None:
        """All words that it knows, where its vocabulary is closed."""
        ...

    @property
    def thinks_after(self) -> str:
        """The text that asks for thinking."""
        ...

    def check_size(self, image_size: tuple[int, int]) -> None:
        """ValueError where it cannot draw (height, width) pixels."""
        ...

    def read(self, text: str, pictures: int = 0) -> None:
        """Read a prompt with so many pictures; ValueError says in short what this model cannot take."""
        ...


@runtime_checkable
class ModelFamily(Protocol):
    """A kind of models of one's own: ``model.path`` names one as path/file.py:Thing or package.module:Thing.

    ``folder`` is one that :meth:`Policy.save` wrote (model.path: path/file.py:Thing@FOLDER), None for a new model.
    """

    def look(self, folder: Path | None) -> Reads:
        """Look into a model without reading its weights."""
        ...

    def load(self, folder: Path | None, how: Loading) -> Policy:
        """Load a model, or make one."""
        ...

    def group_of(self, parameter: str) -> str | None:
        """The group of a parameter, by name (:meth:`Policy.parameter_groups`); None: it is never trained."""
        ...
