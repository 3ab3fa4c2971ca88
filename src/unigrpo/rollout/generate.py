"""Drawing for people: pictures with what led to them, by the settings that a model itself recommends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image as Images
from torch import Tensor

from unigrpo.flow import Renorm
from unigrpo.pictures import read_picture
from unigrpo.policy import Policy
from unigrpo.ranges import ConfigError
from unigrpo.rollout.engine import RandomKeys, Sampling
from unigrpo.rollout.episode import rounds_of
from unigrpo.rollout.guidance import Guidance
from unigrpo.rollout.sample import Drawn, present, sample
from unigrpo.trajectory import Prompt

MOST_ROUNDS = 64
"""The most rounds that can be asked for, as in recipes."""
MOST, STRONGEST, COLDEST = 100_000, 1_000, 1e-4
"""The largest count, and the largest guidance and temperature, that can be asked for, and the smallest temperature."""

Shown = Path | str | Images.Image
"""A picture that is given: a file, or Pillow's."""


# How to draw


@dataclass(frozen=True)
class Defaults:
    """What is taken where nothing else is asked for."""

    guidance: float
    image_guidance: float
    interval: tuple[float, float]
    renorm: Renorm
    temperature: float


def own(policy: Policy) -> Defaults:
    """What a model itself recommends for drawing from words."""
    d = policy.defaults
    return Defaults(d.guidance, 1.0, d.guidance_interval, "global", d.temperature)


def editing(policy: Policy) -> Defaults:
    """The same for edits: guided on the pictures too, at every step, as BAGEL does (docs/bagel-architecture.md)."""
    d = policy.defaults
    return Defaults(d.guidance, d.edit_guidance, (0.0, 1.0), "text_channel", d.temperature)


EVALUATION = Defaults(1.0, 1.0, (0.0, 1.0), "global", 1.0)
"""The convention of evaluations: no guidance, thinking as it was learned."""


def how_to_draw(
    policy: Policy,
    defaults: Defaults,
    *,
    steps: int | None = None,
    guidance: float | None = None,
    image_guidance: float | None = None,
    interval: tuple[float, float] | None = None,
    renorm: Renorm | None = None,
    temperature: float | None = None,
    max_think_tokens: int | None = None,
) -> Sampling:
    """The sampling that is asked for (None: not asked), on the model's own timestep grid of ``steps`` points."""
    d = policy.defaults
    guided = Guidance(
        _set(guidance, defaults.guidance),
        _set(image_guidance, defaults.image_guidance),
        _set(interval, defaults.interval),
        renorm or defaults.renorm,
    )
    return Sampling(
        num_points=_set(steps, d.num_points),
        shift=d.shift,
        temperature=_set(temperature, defaults.temperature),
        max_think_tokens=_set(max_think_tokens, d.max_think_tokens),
        guidance=guided,
    )


Value = TypeVar("Value")


def _set(value: Value | None, default: Value) -> Value:
    return default if value is None else value


# Pictures


class Picture(Images.Image):
    """A picture of Pillow's that knows its ``prompt``, the model's ``thinking`` (None: it did not think), ``sample``.

    ``earlier``: of several rounds, the pictures that were looked at before it, each with the thinking of its round.
    A notebook shows it; what is made of it (``resize``, ``crop``) is a plain picture.
    """

    prompt: str = ""
    thinking: str | None = None
    sample: int = 0
    earlier: tuple[Picture, ...] = ()

    @classmethod
    def of(cls, pixels: Tensor, prompt: str, thinking: str | None, sample: int) -> Picture:
        """A picture from pixels uint8 [3, H, W]."""
        made, plain = cls(), Images.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        made.im, made._mode, made._size = plain.im, plain.mode, plain.size  # as Pillow's own kinds of pictures do
        made.prompt, made.thinking, made.sample = prompt, thinking, sample
        return made

    def __repr__(self) -> str:
        return f"<Picture {self.width} x {self.height} of {self.prompt!r}, thinking {self.thinking!r}>"


def pictures_of(drawn: Drawn) -> list[Picture]:
    """What was drawn together, one picture each."""
    made = []
    for t, thoughts, pixels in zip(drawn.trajectories, drawn.thoughts, drawn.pictures, strict=True):
        shown = [*(present(image.pixels) for image in t.drawings[:-1]), pixels]
        pictures = [
            Picture.of(one, t.prompt.text, words, t.sample) for one, words in zip(shown, thoughts, strict=False)
        ]
        pictures[-1].earlier = tuple(pictures[:-1])
        made.append(pictures[-1])
    return made


class Generates(Policy):
    """A policy that draws for people: inherit from it in place of ``Policy`` (or beside it)."""

    understands: Callable[[Policy, Prompt], Prompt] | None = None
    """How a person's words are put into the model's, where it has few of its own; ``unigrpo.load`` sets it."""

    def generate(
        self,
        prompt: str | Sequence[str],
        num: int = 1,
        seed: int = 0,
        think: bool = True,
        size: tuple[int, int] | None = None,
        guidance: float | None = None,
        steps: int | None = None,
        temperature: float | None = None,
        images: Shown | Sequence[Shown] | None = None,
        rounds: int = 1,
    ) -> list[Picture]:
        """Think and draw ``num`` pictures of a prompt (or of each of several): pictures with their thinking, in order.

        size: (width, height) in pixels; steps: points of the timestep grid (M points are M - 1 forwards); temperature:
        of the thinking, 0 is the likeliest word; images: what is to be edited, the same for all prompts. What is not
        given the model decides. rounds: look at each picture, think and draw again, so many pictures in all; the last
        ones are given, with those before them as ``earlier``. The same seed gives the same pictures as ``unigrpo
        generate``. ConfigError (a ValueError) says what cannot work.
        """
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        _check(texts, num, seed, guidance, steps, temperature)
        check_rounds(self, rounds, "generate: rounds")
        shown = _given(images)
        prompts = [Prompt(position, text, {}, shown) for position, text in enumerate(texts)]
        if (understands := self.understands) is not None:
            prompts = [understands(self, one) for one in prompts]
        defaults = editing(self) if shown else own(self)
        drawing = sample(
            self.at_size(_drawn_size(self, size, shown)),
            rounds_of(rounds, think=think),
            prompts,
            how_to_draw(self, defaults, steps=steps, guidance=guidance, temperature=temperature),
            RandomKeys(seed, 0),
            samples=num,
            batch=self.defaults.batch,
        )
        made = [picture for drawn in drawing for picture in pictures_of(drawn)]
        for picture, position in zip(made, (p for p in range(len(texts)) for _ in range(num)), strict=True):
            for one in (*picture.earlier, picture):
                one.prompt = texts[position]
        return made


def _check(
    texts: Sequence[str],
    num: int,
    seed: int,
    guidance: float | None,
    steps: int | None,
    temperature: float | None,
) -> None:
    """ConfigError for what cannot work with any model."""
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(f"generate: {text!r} is no prompt: give words, or a list of them")
    if not texts:
        raise ConfigError("generate: there are no prompts: give words, or a list of them")
    if not 1 <= num <= MOST:
        raise ConfigError(f"generate: num = {num}: it must be from 1 to {MOST:,}")
    if seed < 0:
        raise ConfigError(f"generate: seed = {seed}: it must be at least 0, as in recipes")
    if steps is not None and not 2 <= steps <= MOST:
        raise ConfigError(f"generate: steps = {steps}: a timestep grid needs at least 2 points (at most {MOST:,})")
    if guidance is not None and not 1 <= guidance <= STRONGEST:
        raise ConfigError(f"generate: guidance = {guidance:g}: it must be from 1 to {STRONGEST:,}")
    if temperature is not None and temperature != 0 and not COLDEST <= temperature <= STRONGEST:
        raise ConfigError(
            f"generate: temperature = {temperature:g}: it must be from {COLDEST} to {STRONGEST:,}, or 0 for the "
            "likeliest word"
        )


def check_rounds(policy: Policy, rounds: int, name: str) -> None:
    """ConfigError where a model cannot go through so many rounds; ``name``: what they are called."""
    if not 1 <= rounds <= MOST_ROUNDS:
        raise ConfigError(f"{name} = {rounds}: it must be from 1 to {MOST_ROUNDS}")
    if rounds > 1 and not policy.looks:
        raise ConfigError(f"{name} = {rounds}: this model cannot look at what it drew; set it to 1")


def _given(images: Shown | Sequence[Shown] | None) -> tuple[Tensor, ...]:
    """Given pictures as tensors uint8 [3, H, W]."""
    if images is None:
        return ()
    return tuple(_read(one) for one in ([images] if isinstance(images, Shown) else images))


def _read(shown: Shown) -> Tensor:
    if not isinstance(shown, Images.Image):
        return read_picture(Path(shown))
    flat = shown.convert("RGB").tobytes()
    return torch.frombuffer(bytearray(flat), dtype=torch.uint8).view(shown.height, shown.width, 3).permute(2, 0, 1)


def _drawn_size(policy: Policy, size: tuple[int, int] | None, shown: Sequence[Tensor]) -> tuple[int, int]:
    """(height, width) to draw: what is asked for, else that of the last picture shown, else the model's own."""
    if size is None:
        return policy.edit_size(shown[-1]) if shown else policy.spec.image_size
    if len(size) != 2 or min(size) < 1:
        raise ConfigError(f"generate: size = {size}: give (width, height) in pixels")
    return size[1], size[0]
