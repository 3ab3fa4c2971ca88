"""A judge is tried before a run begins: the service is there, has the model, and sees that a red square is red."""

from __future__ import annotations

import numpy as np

from unigrpo.ranges import ConfigError, did_you_mean
from unigrpo.rewards.judge_asking import Asker, Picture
from unigrpo.rewards.judge_endpoint import Batch, NoAnswer

KNOWN = {"Is the whole picture red?": True, "Is the whole picture blue?": False}
"""What is asked of the red square, and whether yes is right."""
SIDE = 64
SECONDS, RETRIES = 120.0, 1


def red_square() -> Picture:
    """A picture of one colour."""
    pixels = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    pixels[..., 0] = 255
    return Picture(pixels)


async def probe(name: str, asker: Asker, *, shades: bool, lists: bool) -> None:
    """ConfigError, in one sentence, where the judge called ``name`` cannot be used.

    shades: it must give log probabilities; lists: it is asked for lists.
    """
    url, batch = asker.endpoint.service.url, Batch.within(SECONDS, RETRIES)
    await _check_model(name, asker, batch)
    picture, questions = red_square(), list(KNOWN)
    try:
        fresh = Asker(asker.endpoint, asker.model, asker.parameters, None)  # it remembers nothing
        if lists:
            answers = await fresh.many(picture, questions, batch)
        else:
            answers = [await fresh.one(picture, question, batch) for question in questions]
        graded = not shades or await fresh.shades(picture, questions[0], batch)
    except NoAnswer as error:
        raise ConfigError(
            f"{name}: {asker.model} at {url} gives no answer about a red square ({error}): correct url, model, "
            "max_tokens or extra, or start it for pictures"
        ) from None
    wrong = [q for q, yes in zip(questions, answers, strict=True) if (yes > 0.5) != KNOWN[q]]
    if wrong:
        raise ConfigError(
            f"{name}: asked of a red square {wrong[0]!r}, {asker.model} at {url} says "
            f"{'no' if KNOWN[wrong[0]] else 'yes'}: it does not see pictures, so name a model that does"
        )
    if not graded:
        raise ConfigError(
            f"{name}: {asker.model} at {url} gives no log probabilities of its answers, so there are no shades between "
            "yes and no: set top_logprobs: 0 to do without, or serve it with them"
        )


async def _check_model(name: str, asker: Asker, batch: Batch) -> None:
    url = asker.endpoint.service.url
    try:
        models = await asker.endpoint.models(batch)
    except NoAnswer as error:
        if str(error).startswith(("status 404", "status 405", "status 501")):
            batch.refused = None  # some services list no models; the question comes next
            return
        if str(error).startswith(("status 401", "status 403")):
            raise ConfigError(
                f"{name}: {url} refuses the key ({error}): export the right one, and name its variable with key_env"
            ) from None
        raise ConfigError(f"{name}: {url} cannot be used ({error}): start the service, or correct url") from None
    if models and asker.model not in models:
        listed = ", ".join(models[:5]) + (", ..." if len(models) > 5 else "")
        hint = did_you_mean(asker.model, models)
        raise ConfigError(f"{name}: {url} has no model {asker.model!r}{hint}; it has: {listed}")
