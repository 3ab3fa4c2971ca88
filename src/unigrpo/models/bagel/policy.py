"""BAGEL as a :class:`unigrpo.policy.Policy`: batched prefill, thinking, velocities, and the packed replay."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from unigrpo.models.bagel.autoencoder import Autoencoder, patchify, to_unit_range, unpatchify
from unigrpo.models.bagel.blocks import Block, build_block, lay_rows
from unigrpo.models.bagel.cache import Cache
from unigrpo.models.bagel.config import BagelConfig
from unigrpo.models.bagel.drawing import Path, noisy, picture_block
from unigrpo.models.bagel.packing import pack
from unigrpo.models.bagel.scoring import read_velocities, score_texts
from unigrpo.models.bagel.thinking import one_token, think
from unigrpo.models.bagel.transformer import BagelModel
from unigrpo.models.bagel.turns import fitted, interleave, looked_at, view_of
from unigrpo.models.bagel.vision import positions
from unigrpo.policy import Context, GenerationDefaults, Policy, PolicySpec, Replayed, ReplayItem
from unigrpo.trajectory import Prompt, Segment, Text

DENOISING_PREFIXES = ("vae2llm.", "llm2vae.", "time_embedder.")
VISION_PREFIXES = ("vit_model.", "connector.")


class Tokenizer(Protocol):
    """Words in and out (``bagel_files.tokenizer``)."""

    @property
    def words(self) -> frozenset[str] | None:
        """All words that it knows; None where it can spell any."""
        ...

    def encode(self, text: str) -> Tensor:
        """Words -> ids int64 [n]."""
        ...

    def decode(self, ids: Tensor) -> str:
        """Ids -> words."""
        ...


class BagelPolicy(Policy):
    """The model with its tokenizer and autoencoder; ``compute_dtype`` below fp32 runs under autocast.

    ``image_size`` (height, width) is what it draws; :meth:`at_size` gives the same model at another. Its files are the
    business of ``bagel_files.pretrained``.
    """

    def __init__(
        self,
        model: BagelModel,
        tokenizer: Tokenizer | None,
        autoencoder: Autoencoder | None,
        *,
        image_size: tuple[int, int] | None = None,
        compute_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model, self.tokenizer, self.autoencoder = model, tokenizer, autoencoder
        self.config, self.compute_dtype = model.config, compute_dtype
        self.spec = _spec(model.config, image_size or model.config.image_size)

    @property
    def defaults(self) -> GenerationDefaults:
        """Those of its config; a model of few words is small, so that several pictures go on one sheet."""
        c, small = self.config, self.words is not None
        return GenerationDefaults(
            num_points=c.num_points,
            shift=c.timestep_shift,
            guidance=c.guidance,
            guidance_interval=c.guidance_interval,
            temperature=c.temperature,
            max_think_tokens=c.max_think_tokens,
            pictures=4 if small else 1,
            batch=192 if small else 4,
            captioned=small,
        )

    @property
    def words(self) -> frozenset[str] | None:
        """All words of a closed vocabulary; None where any text can be spelt."""
        return None if self.tokenizer is None else self.tokenizer.words

    def at_size(self, image_size: tuple[int, int]) -> Self:
        """The same model (shared weights), drawing (height, width) pixels; ValueError where a size does not fit."""
        other = copy.copy(self)
        other.spec = _spec(self.config, image_size)
        return other

    @property
    def module(self) -> nn.Module:
        """The trainable module."""
        return self.model

    def _precision(self) -> AbstractContextManager[object]:
        lower = self.compute_dtype != torch.float32
        return torch.autocast(self.model.device.type, dtype=self.compute_dtype, enabled=lower)

    # Words

    def encode_text(self, text: str) -> Tensor:
        """Words -> ids int64 [n] (no bos, no eos)."""
        if self.tokenizer is None:
            raise ValueError("this model was built without a tokenizer; it only takes token ids")
        return self.tokenizer.encode(text)

    def decode_text(self, ids: Tensor) -> str:
        """Ids -> words, for people and logs."""
        if self.tokenizer is None:
            raise ValueError("this model was built without a tokenizer; it only gives token ids")
        return self.tokenizer.decode(ids)

    def prompt_segments(self, prompt: Prompt, *, think: bool) -> tuple[Segment, ...]:
        """[system, with thinking] [pictures] [prompt]; pictures stand where the text says ``<image>``, else before it.

        Given pictures enter as latents and as seen (docs/bagel-architecture.md#drawing); their latents are the
        posterior's mean.
        """
        system = (Text(self.encode_text(self.config.system_prompt)),) if think else ()
        return (*system, *self.turn(prompt.text, prompt.images))

    def question_segments(self, question: str, pictures: Sequence[Tensor], *, think: bool) -> tuple[Segment, ...]:
        """[system for answers, with thinking] [pictures, only seen] [question]: understanding.

        Source: docs/bagel-architecture.md#drawing.
        """
        system = (Text(self.encode_text(self.config.answer_prompt)),) if think else ()
        return (*system, *self.turn(question, pictures, latents=False))

    def turn(self, text: str, pictures: Sequence[Tensor], *, latents: bool = True) -> tuple[Segment, ...]:
        """A user's turn: pictures uint8 [3, H, W] and words, in order."""
        shown = [self.picture_segments(picture, latents=latents) for picture in pictures]
        return interleave(text, shown, self.encode_text)

    def picture_segments(self, picture: Tensor, *, latents: bool = True) -> tuple[Segment, ...]:
        """A picture uint8 [3, H, W] as [latents] [view], resized as BAGEL does; without ``latents`` the view alone.

        A model that was taught to look at latents has no view, and always the latents.
        """
        only_seen = self.config.vision is not None and not latents
        if only_seen or not self.config.sees:  # what sees nothing is refused there
            return (view_of(fitted(picture, self.config), self.config),)
        return self.look_segments(picture[None])[0]

    @property
    def looks(self) -> bool:
        """Whether there is an autoencoder that pictures go through."""
        return self.autoencoder is not None

    def look_segments(self, pictures: Tensor) -> list[tuple[Segment, ...]]:
        """What it drew, uint8 [B, 3, H, W], as BAGEL reads it in the next turn: [latents] [view, if it has a tower].

        Source: docs/bagel-architecture.md#drawing (interleaved turns).
        """
        return looked_at(pictures, self.config, self._encoded)

    def _encoded(self, pictures: Tensor) -> Tensor:
        size = (pictures.shape[2], pictures.shape[3])
        return self.at_size(size).encode_image(pictures.float() / 255.0)

    def edit_size(self, picture: Tensor) -> tuple[int, int]:
        """(height, width) of what an edit of this picture is drawn at: the size it is resized to."""
        _, height, width = fitted(picture, self.config).shape
        return height, width

    # Reading, writing, drawing

    def prefill(self, contexts: Sequence[Sequence[Segment]]) -> Cache:
        """Read B contexts (of any lengths, also empty ones) into a new cache."""
        cache = Cache.empty(self.config.num_layers, len(contexts), self.model.device)
        return self.extend(cache, contexts)

    def extend(self, cache: Cache, additions: Sequence[Sequence[Segment]]) -> Cache:
        """Read further segments into a cache, one tuple per row; returns the same cache."""
        rows = lay_rows(additions, self.config)
        if not any(row.order for row in rows):
            return cache
        block = build_block(rows, self.config.latent_dim, self.model.device)
        advance = torch.tensor([row.rope for row in rows], device=self.model.device)
        block = _shifted(block, cache.rope)
        with self._precision():
            self.model([block], cache, write=True)
        cache.commit(block.tokens.valid, cache.rope + advance)
        return cache

    def feed(self, cache: Cache, ids: Tensor, valid: Tensor) -> Tensor:
        """Append one token per row (ids [B], rows where valid [B]); return the fp32 logits [B, V] after it."""
        block = one_token(ids, cache.rope, self.config.latent_dim)
        with self._precision():
            ((und, _),) = self.model([block], cache, write=True)
            logits = self.model.logits(und[:, 0])
        cache.commit(valid[:, None], cache.rope + valid)
        return logits

    @torch.no_grad()
    def think(self, context: Context, *, uniforms: Tensor, temperature: float) -> tuple[list[Text], Cache]:
        """Write one text per row by inverse-CDF sampling; eos is always fed, and is an action only where sampled."""
        context = as_cache(context)
        if uniforms.shape[1] == 0:
            raise ValueError("thinking may take 0 tokens: raise max_think_tokens to 1 or more, or turn think off")
        with self._precision():
            return think(self.model, context, uniforms, temperature), context

    def velocity(self, context: Context, x: Tensor, t: Tensor) -> Tensor:
        """One denoising forward: [markers | latents] over the cache, which is not changed; fp32 [B, n, d].

        Without gradients, what is the same for all steps is made at the first and kept with the cache.
        """
        cache, grid = as_cache(context), self.spec.grid
        with self._precision():
            if torch.is_grad_enabled():
                block = noisy(picture_block(cache.rope, self.places(x.device), self.config), x, t)
                ((_, gen),) = self.model([block], cache)
            else:
                if grid not in cache.paths:
                    cache.paths[grid] = Path(cache, self.places(x.device), self.model)
                path = cache.paths[grid]
                ((_, gen),) = self.model([noisy(path.block, x, t)], path.slots)
            return self.model.velocity_head(gen).float()

    def places(self, device: torch.device) -> Tensor:
        """Rows of the position table for one image [n]."""
        return positions(self.spec.grid, self.config.max_latent_size, device)

    # Scoring

    def replay(self, items: Sequence[ReplayItem], *, temperature: float = 1.0, plain: bool = False) -> list[Replayed]:
        """One packed forward over [prompts | thinking | image at each query]: log-probs and velocities, with gradients.

        The context of a query's K noisy copies is read once, and so is a prompt or a thinking that several items share;
        the padding of words is only attended with. ``plain`` does without these (same answers; benchmarks compare).
        """
        if not items:
            return []
        packed = pack(items, self.config, self.model.device, plain=plain)
        context = 0 if packed.prompt is None else 1
        with self._precision():
            streams = self.model(packed.blocks)
            texts = score_texts(self.model, packed, streams[context][0], temperature)
            velocities = (
                read_velocities(self.model, packed, streams[-1][1]) if packed.noise is not None else [()] * len(items)
            )
        log_probs, entropies, spreads = texts
        return [
            Replayed(log_probs[row], entropies[row], spreads[row], answer)
            for row, answer in zip(packed.rows, velocities, strict=True)
        ]

    # Pixels

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in [0, 1] -> packed latents [B, n, d]."""
        with torch.no_grad():
            latents = self._autoencoder().encode(pixels.to(self.model.device) * 2.0 - 1.0)
        return patchify(latents.float(), self.config.latent_patch_size)

    def decode_image(self, latents: Tensor) -> Tensor:
        """Packed latents [B, n, d] -> pixels fp32 [B, 3, H, W] in [0, 1]; gradients flow back into the latents."""
        maps = unpatchify(latents, self.spec.grid, self.config.latent_patch_size)
        return to_unit_range(self._autoencoder().decode(maps))

    def _autoencoder(self) -> Autoencoder:
        if self.autoencoder is None:
            raise ValueError("this model was built without an autoencoder; it only takes and gives latents")
        return self.autoencoder

    # Parameters

    def parameter_groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """The trained parameters of the two experts."""
        return {"reasoning": self.reasoning_parameters(), "denoising": self.denoising_parameters()}

    def reasoning_parameters(self) -> dict[str, nn.Parameter]:
        """Embeddings, text head and the understanding expert (and the vision tower, if it is trained)."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad and not is_denoising(n)}

    def denoising_parameters(self) -> dict[str, nn.Parameter]:
        """The generation expert, vae2llm, llm2vae and the time embedder."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad and is_denoising(n)}

    def sharded_layers(self) -> list[nn.Module]:
        """The decoder's layers, with both experts each."""
        return list(self.model.language_model.model.layers)

    def front_doors(self) -> tuple[str, ...]:
        """The methods by which weights are computed with."""
        return self.model.FRONT_DOORS

    def adapter_targets(self, groups: Sequence[str]) -> list[str]:
        """The linear layers of the named experts in every layer: q, k, v, o, gate, up, down."""
        inside = "language_model.model.layers."
        return [
            name
            for name, layer in self.model.named_modules()
            if name.startswith(inside) and isinstance(layer, nn.Linear) and group_of(name) in groups
        ]


def _spec(config: BagelConfig, image_size: tuple[int, int]) -> PolicySpec:
    return PolicySpec(config.grid_of(image_size), config.latent_dim, image_size)


def as_cache(context: Context) -> Cache:
    """The cache that a context of this model is; TypeError for another model's."""
    if not isinstance(context, Cache):
        raise TypeError(f"a BAGEL continues contexts of its own prefill, not a {type(context).__name__}")
    return context


def is_denoising(name: str) -> bool:
    """Whether a parameter belongs to the image half."""
    return "_moe_gen" in name or name.startswith(DENOISING_PREFIXES)


def group_of(name: str) -> str | None:
    """The group of a parameter by its name: an expert, the vision tower, or None for the frozen position tables."""
    if "pos_embed" in name:
        return None
    if name.startswith(VISION_PREFIXES):
        return "vision"
    return "denoising" if is_denoising(name) else "reasoning"


def _shifted(block: Block, rope: Tensor) -> Block:
    """The same block, placed after rows whose next rope position is ``rope`` [B]."""
    return replace(block, rope=block.rope + rope[:, None])
