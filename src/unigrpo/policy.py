"""What the RL asks of a model: write, draw, recompute log-probs and velocities (no I/O, no model).

A model only answers "log-probs of these tokens, please" and "velocity here, please". Everything else (SDE steps,
ratios, regularisers) is arithmetic on the answers and lives in ``flow`` and ``objectives``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from torch import Tensor, nn

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


class Scorer(Protocol):
    """A model as a replay needs it: the policy itself, or a frozen reference."""

    @property
    def module(self) -> nn.Module:
        """The trainable module (named parameters, state dict)."""
        ...

    def replay(self, items: Sequence[ReplayItem], *, temperature: float = 1.0) -> list[Replayed]:
        """Score B items in one packed forward, with gradients."""
        ...


class Policy(Scorer, Protocol):
    """A model that thinks, then draws. B rows run together; rows may have different lengths."""

    spec: PolicySpec

    def prompt_segments(self, prompt: Prompt, *, think: bool) -> tuple[Segment, ...]:
        """The given segments before the model's first own turn: [system, with thinking] [pictures] [prompt]."""
        ...

    def prefill(self, contexts: Sequence[Sequence[Segment]]) -> Context:
        """Read B contexts into a cache."""
        ...

    def think(self, context: Context, *, uniforms: Tensor, temperature: float) -> tuple[list[Text], Context]:
        """Write one text per row, continuing ``context``; inverse-CDF sampling with ``uniforms`` [B, max tokens].

        Returns the sampled texts (with behaviour log-probs) and the context with ``bos ids eos`` in it.
        Temperature 0 means greedy (log-probs then at temperature 1).
        """
        ...

    def velocity(self, context: Context, x: Tensor, t: Tensor) -> Tensor:
        """dx/dt of B images x [B, n, d] at times t [B] given B contexts; fp32 [B, n, d]."""
        ...

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in [0, 1] -> packed latents [B, n, d]."""
        ...

    def decode_image(self, latents: Tensor) -> Tensor:
        """Packed latents [B, n, d] -> pixels fp32 [B, 3, H, W] in [0, 1], not yet quantised."""
        ...

    def encode_text(self, text: str) -> Tensor:
        """Words -> ids int64 [n] (no bos, no eos); ValueError names what the vocabulary does not have."""
        ...

    def decode_text(self, ids: Tensor) -> str:
        """Ids -> words, for people and logs only: never fed back."""
        ...

    def reasoning_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters of the text half that are trained, by name."""
        ...

    def denoising_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters of the image half that are trained, by name."""
        ...
