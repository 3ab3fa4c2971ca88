"""From the options of the verbs that draw to a model and a sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unigrpo import cli, config, resolve
from unigrpo.config import ConfigError
from unigrpo.flow import Renorm
from unigrpo.models.bagel.policy import Bagel
from unigrpo.rollout.engine import Sampling
from unigrpo.rollout.guidance import Guidance

SHAPES_BATCH, BAGEL_BATCH = 192, 4


@dataclass(frozen=True)
class Defaults:
    """What is taken where an option is not set."""

    guidance: float
    image_guidance: float
    interval: tuple[float, float]
    renorm: Renorm
    temperature: float


def own(policy: Bagel) -> Defaults:
    """What a model itself recommends for drawing from words (spec/bagel.md 6)."""
    c = policy.config
    return Defaults(c.guidance, 1.0, c.guidance_interval, "global", c.temperature)


def editing(policy: Bagel) -> Defaults:
    """BAGEL's settings for edits (spec/bagel.md 6): guidance 4 on the words and 2 on the pictures, always on."""
    return Defaults(policy.config.guidance, 2.0, (0.0, 1.0), "text_channel", policy.config.temperature)


EVALUATION = Defaults(1.0, 1.0, (0.0, 1.0), "global", 1.0)


def load(verb: cli.Drawing) -> Bagel:
    """The model that the options name, at the size that they name."""
    model = config.Model(verb.model, device=verb.device)
    accelerated = resolve.device_of(model).type != "cpu"
    dtype = ("bfloat16" if accelerated else "float32") if verb.dtype == "auto" else verb.dtype
    policy = resolve.policy(config.Model(verb.model, dtype=dtype, device=verb.device, autoencoder="sliced"))
    if verb.size is None:
        return policy
    width, times, height = verb.size.lower().partition("x")
    if not (times and width.isdigit() and height.isdigit()):
        raise ConfigError(f"--size {verb.size}: write it as WIDTHxHEIGHT, for example 1024x768")
    try:
        return policy.at_size((int(height), int(width)))
    except ValueError as error:
        raise ConfigError(f"--size {verb.size}: {error}") from error


def batch_size(policy: Bagel, verb: cli.Drawing) -> int:
    """How many pictures are drawn together."""
    if verb.batch is not None and verb.batch < 1:
        raise ConfigError(f"--batch {verb.batch}: draw at least one picture at a time")
    return verb.batch or (SHAPES_BATCH if policy.origin is None else BAGEL_BATCH)


def sampling(policy: Bagel, verb: cli.Drawing, defaults: Defaults) -> Sampling:
    """The sampling that the options ask for, on the model's own timestep grid."""
    points = policy.config.num_points if verb.steps is None else verb.steps
    if points < 2:
        raise ConfigError(f"--steps {points}: a timestep grid needs at least 2 points (M points are M - 1 forwards)")
    temperature = _at_least("temperature", verb.temperature, defaults.temperature, 0)
    guidance = _at_least("guidance", verb.guidance, defaults.guidance, 1)
    image_guidance = _at_least("image-guidance", verb.image_guidance, defaults.image_guidance, 1)
    low, high = defaults.interval if verb.interval is None else verb.interval
    if not 0 <= low < high <= 1:
        raise ConfigError(f"--interval {low} {high}: it must be 0 <= LOW < HIGH <= 1")
    return Sampling(
        num_points=points,
        shift=policy.config.timestep_shift,
        temperature=temperature,
        max_think_tokens=int(_at_least("max-think-tokens", verb.max_think_tokens, policy.config.max_think_tokens, 1)),
        guidance=Guidance(guidance, image_guidance, (low, high), verb.renorm or defaults.renorm),
    )


def _at_least(option: str, value: Any, default: float, least: float) -> float:
    chosen = default if value is None else value
    if not chosen >= least:
        raise ConfigError(f"--{option} {chosen}: it must be at least {least}")
    if chosen == float("inf"):
        raise ConfigError(f"--{option} {chosen}: it must be a finite number")
    return chosen
