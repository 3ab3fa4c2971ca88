"""From the options of the verbs that draw to a model and a sampling."""

from __future__ import annotations

import re

from unigrpo import options
from unigrpo.plurals import counted
from unigrpo.policy import Policy
from unigrpo.ranges import ConfigError
from unigrpo.rollout.engine import Sampling
from unigrpo.rollout.episode import NONE, OWN, Episode, bare, rounds_of
from unigrpo.rollout.generate import COLDEST, MOST, STRONGEST, Defaults, check_rounds, how_to_draw
from unigrpo.rollout.sample import check_words
from unigrpo.runs import threads
from unigrpo.runs.models import loaded


def check(verb: options.Drawing) -> None:
    """Refuse options that cannot work with any model, before one is loaded."""
    if verb.steps is not None and verb.steps < 2:
        raise ConfigError(
            f"--steps {verb.steps}: a timestep grid needs at least 2 points (M points are M - 1 forwards)"
        )
    check_numbers(steps=verb.steps, max_think_tokens=verb.max_think_tokens, batch=verb.batch)
    _check_strength("image-guidance", verb.image_guidance, least=1)
    _check_strength("temperature", verb.temperature, least=0)
    if verb.temperature is not None and 0 < verb.temperature < COLDEST:
        raise ConfigError(f"--temperature {verb.temperature}: give at least {COLDEST}, or 0 for the likeliest word")
    if verb.interval is not None and not 0 <= verb.interval[0] < verb.interval[1] <= 1:
        raise ConfigError(f"--interval {verb.interval[0]} {verb.interval[1]}: it must be 0 <= LOW < HIGH <= 1")
    if verb.seed < 0:
        raise ConfigError(f"--seed {verb.seed}: it must be at least 0, as in recipes")
    size_of(verb)
    _check_turns(verb)


def check_numbers(**numbers: int | None) -> None:
    """Refuse counts below 1, and such as only a slip of the hand gives."""
    for name, value in numbers.items():
        option = "--" + name.replace("_", "-")
        if value is not None and value < 1:
            raise ConfigError(f"{option} {value}: it must be at least 1")
        if value is not None and value > MOST:
            raise ConfigError(f"{option} {value}: it must be at most {MOST:,}")


def check_guidance(value: float | None) -> None:
    """Refuse a scale that guides nothing, or that only a slip of the hand gives."""
    _check_strength("guidance", value, least=1)


def _check_strength(option: str, value: float | None, *, least: int) -> None:
    if value is not None and not least <= value <= STRONGEST:
        raise ConfigError(f"--{option} {value:g}: it must be a number from {least} to {STRONGEST:,}")


def size_of(verb: options.Drawing) -> tuple[int, int] | None:
    """(height, width) of --size; None where it is not set."""
    if verb.size is None:
        return None
    found = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", verb.size.lower())
    if found is None:
        raise ConfigError(f"--size {verb.size}: write it as WIDTHxHEIGHT, for example 1024x768")
    return int(found[2]), int(found[1])


def load(verb: options.Drawing) -> Policy:
    """The model that the options name, at the size that they name; what it computes then is worth choosing threads."""
    threads.settle()
    policy, size = loaded(verb.model, device=verb.device, dtype=verb.dtype), size_of(verb)
    if size is None:
        return policy
    try:
        return policy.at_size(size)
    except ValueError as error:
        raise ConfigError(f"--size {verb.size}: {error}") from error


def turns(policy: Policy, verb: options.Drawing) -> Episode:
    """The turns that the options ask for; ConfigError where the model cannot take them."""
    check_rounds(policy, verb.rounds, "--rounds")
    if verb.rethink not in (OWN, NONE):
        check_words(policy, "--rethink", verb.rethink)
    for word in verb.stop_word:
        check_words(policy, "--stop-word", word, verb.max_think_tokens or policy.defaults.max_think_tokens)
    return rounds_of(
        verb.rounds, think=not verb.no_think, stop_words=verb.stop_word, look=verb.look, rethink=verb.rethink
    )


def _check_turns(verb: options.Drawing) -> None:
    """Refuse what is about a second round where there is none, or what nobody could say."""
    asked = {"look": verb.look != "seen", "rethink": verb.rethink != OWN, "stop-word": bool(verb.stop_word)}
    for option, given in asked.items():
        if given and verb.rounds == 1:
            raise ConfigError(f"--{option} is about what follows a picture: add --rounds 2, or more")
    if verb.stop_word and (verb.no_think or verb.rethink != OWN):
        raise ConfigError("--stop-word waits for a thinking that says so: leave out --no-think and --rethink")
    if any(not bare(word) for word in verb.stop_word) or not verb.rethink.strip():
        raise ConfigError("--stop-word and --rethink need words: own, none or a text")


def batch_size(policy: Policy, verb: options.Drawing) -> int:
    """How many pictures are drawn together."""
    return verb.batch or policy.defaults.batch


def sampling(policy: Policy, verb: options.Drawing, defaults: Defaults, guidance: float | None) -> Sampling:
    """The sampling that the options ask for, on the model's own timestep grid; ``guidance``: its scale on the words."""
    return how_to_draw(
        policy,
        defaults,
        steps=verb.steps,
        guidance=guidance,
        image_guidance=verb.image_guidance,
        interval=verb.interval,
        renorm=verb.renorm,
        temperature=verb.temperature,
        max_think_tokens=verb.max_think_tokens,
    )


def in_words(how: Sampling) -> str:
    """The same for people: what decides how long drawing takes, and how faithful it is."""
    forwards = f"{counted(how.num_points, 'grid point')} ({counted(how.num_points - 1, 'forward')})"
    return f"{forwards}, guidance {how.guidance.text_scale:g}, thinking at temperature {how.temperature:g}"
