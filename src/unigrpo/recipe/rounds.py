"""Checks of the keys of several rounds: that there is a picture to look at, and what cannot go on from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from unigrpo.objectives.method import Method
from unigrpo.ranges import ConfigError
from unigrpo.recipe.sections import Eval, PromptData, Rollout
from unigrpo.rollout.episode import NONE, OWN, bare

PLAIN = Rollout()


class Sections(Protocol):
    """What is looked at of a recipe."""

    @property
    def rollout(self) -> Rollout: ...  # noqa: D102
    @property
    def eval(self) -> Eval: ...  # noqa: D102
    @property
    def method(self) -> Method: ...  # noqa: D102
    @property
    def data(self) -> object: ...  # noqa: D102


def check_rounds(recipe: Sections) -> None:
    """ConfigError where keys of rounds do not fit each other, the method or the data."""
    rollout, method = recipe.rollout, recipe.method
    _check_looked_at(rollout, recipe.eval)
    _check_stop(rollout, recipe.eval)
    if rollout.rounds == 1:
        if method.advantage.credit != "terminal":
            raise ConfigError(
                f"method.advantage.credit = {method.advantage.credit} with rollout.rounds = 1: one picture is all "
                "that anything is worth; set rounds to 2 or more, or credit to terminal"
            )
        return
    said = f"rollout.rounds = {rollout.rounds}"
    if method.learns_from == "demonstrations":
        raise ConfigError(
            f"{said}: {method.name} draws no training samples, its demonstrations have the rounds that they have; set "
            "it to 1, and eval.rounds for evaluations"
        )
    if method.needs_reward_gradient:
        raise ConfigError(
            f"{said}: {method.name} follows the reward's gradient into one picture, and it ends where a picture is "
            "looked at (8 bits); set rounds to 1, or use unigrpo, flow_grpo, fpo or diffusion_nft"
        )
    _check_others(rollout, recipe.data)


def _check_looked_at(rollout: Rollout, evaluation: Eval) -> None:
    """Kinds of looks and thinkings after them, where nothing is looked at."""
    most = max(rollout.rounds, evaluation.rounds or rollout.rounds)
    asked: Sequence[tuple[str, object, object]] = (
        ("rollout.look", rollout.look, PLAIN.look),
        ("rollout.rethink", rollout.rethink, PLAIN.rethink),
        ("rollout.stop", rollout.stop, PLAIN.stop),
        ("eval.look", evaluation.look, None),
        ("eval.rethink", evaluation.rethink, None),
    )
    for key, value, plain in asked:
        if most == 1 and value != plain:
            raise ConfigError(
                f"{key} = {value} with one round: nothing follows its picture; set rollout.rounds (or eval.rounds) to "
                f"2 or more, or leave {key} out"
            )


def _check_stop(rollout: Rollout, evaluation: Eval) -> None:
    """Words that end a sample, and whether anybody could say them."""
    words = rollout.stop_words
    if (rollout.stop == "said") != bool(words):
        missing = "and rollout.stop_words is empty: list the words" if not words else "so that nothing asks for them:"
        raise ConfigError(
            f"rollout.stop = {rollout.stop} with rollout.stop_words = {list(words)}, {missing} "
            + ("that end a sample, for example [fine]" if not words else "set stop to said, or leave them out")
        )
    if any(not bare(word) for word in words):
        raise ConfigError(
            f"rollout.stop_words = {list(words)}: an empty one would end every empty thinking; name words"
        )
    if rollout.stop == "said" and (not rollout.think or rollout.rethink != OWN):
        key = "think = false" if not rollout.think else f"rethink = {rollout.rethink}"
        raise ConfigError(
            f"rollout.stop = said with rollout.{key}: no thinking of its own follows a look, so that nothing can be "
            "said; set stop to never"
        )


def _check_others(rollout: Rollout, data: object) -> None:
    """Whether there is another prompt's picture to be shown."""
    if rollout.look != "other" or not isinstance(data, PromptData):
        return
    if data.prompts_per_iteration < 2:
        raise ConfigError(
            "rollout.look = other shows another prompt's picture, and data.prompts_per_iteration is 1: set it to 2"
        )
    if rollout.batch is not None and rollout.batch < 2 * data.group_size:
        raise ConfigError(
            f"rollout.look = other shows another prompt's picture of those that are drawn together, and rollout.batch "
            f"= {rollout.batch} draws one prompt's alone: set it to {2 * data.group_size} or more"
        )


def rethinks(value: str) -> bool:
    """Whether a rethink is words that are put in place of a thinking."""
    return value not in (OWN, NONE)
