"""From what a user registered or named to a reward: the thing itself where it takes pictures, else what it builds.

Three signatures are known, and told apart by the names of their parameters: ours, TRL's and flow_grpo's.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from unigrpo.frames import explain
from unigrpo.ranges import ConfigError, did_you_mean
from unigrpo.rewards.answers import RewardFault
from unigrpo.rewards.png import as_bytes

GIVEN = ("images", "prompts", "metadata", "thinking")
FLOW_GRPO = ("images", "prompts", "metadata")
COMPLETIONS = "completions"
TRL = ("prompts", COMPLETIONS)
NEEDED = (
    "a reward takes (images, prompts, metadata, thinking), or as TRL's (completions, **columns), or as "
    "flow_grpo's (images, prompts, metadata); a class or factory builds one, with args of its entry in the recipe"
)
Reward = Callable[..., Any]
NO_ARGS: Mapping[str, Any] = {}


def made(name: str, thing: Any, args: Mapping[str, Any] = NO_ARGS) -> Reward:
    """The reward that ``thing`` is, or builds with ``args``; ConfigError where it is neither a reward nor a factory."""
    if takes_pictures(thing):
        _check_places(name, thing)
        return _in_order(name, _with_settings(name, thing, args))
    if not callable(thing):
        raise ConfigError(f"reward {name!r} is an object of the type {type(thing).__name__}, not a function: {NEEDED}")
    _check_arguments(name, thing, args)
    try:
        built = thing(**args)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"reward {name!r} cannot be built: {explain(error)}") from error
    if not callable(built) or not takes_pictures(built):
        what = f"takes {_parameters(built)}" if callable(built) else f"is an object of the type {type(built).__name__}"
        raise ConfigError(f"reward {name!r}: what its factory built {what}: {NEEDED}")
    return _in_order(name, built)


def takes_pictures(thing: Any) -> bool:
    """Whether a thing is a reward itself: it can be called in one of the three ways."""
    if isinstance(thing, type) or not callable(thing):
        return False
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):  # some of those written in C tell nothing
        return True
    parameters = signature.parameters
    required = [p.name for p in parameters.values() if p.default is p.empty and p.kind not in _ANY]
    for known in (GIVEN, FLOW_GRPO):
        if set(known) <= set(parameters):
            return set(required) <= set(known)
    if COMPLETIONS in parameters:
        return True  # all others are columns
    if not required and not any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):
        return False  # a factory, whatever settings it has
    try:
        signature.bind(*GIVEN)
    except TypeError:
        return False
    return True


_ANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _check_places(name: str, reward: Reward) -> None:
    """ConfigError where a parameter is misspelt, and the others stand in another order than they are given."""
    try:
        parameters = inspect.signature(reward).parameters
    except (TypeError, ValueError):
        return
    if COMPLETIONS in parameters or set(FLOW_GRPO) <= set(parameters):
        return
    for place, parameter in enumerate(list(parameters)[: len(GIVEN)]):
        if parameter in GIVEN and GIVEN[place] != parameter:
            odd = next((p for p in parameters if p not in GIVEN), parameter)
            raise ConfigError(
                f"reward {name!r} takes {_parameters(reward)}: {odd!r} is none of {', '.join(GIVEN)}"
                f"{did_you_mean(odd, GIVEN)}, and without these names they are given in that order; correct it"
            )


def _with_settings(name: str, reward: Reward, args: Mapping[str, Any]) -> Reward:
    """A function with some of its own keyword parameters set."""
    if not args:
        return reward
    own = [n for n in inspect.signature(reward).parameters if n not in (*GIVEN, *TRL)]
    if not own:
        raise ConfigError(f"reward {name!r} is a function without arguments of its own: leave out args")
    _refuse_unknown(name, args, own)
    return functools.partial(reward, **args)


def _check_arguments(name: str, factory: Callable[..., Any], args: Mapping[str, Any]) -> None:
    """ConfigError where a class or factory cannot be called with these arguments."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # what is written in C says so when it is called
        return
    parameters = signature.parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        _refuse_unknown(name, args, [p.name for p in parameters if p.kind not in _ANY])
    try:
        signature.bind(**args)
    except TypeError:
        lacks = [p.name for p in parameters if p.default is p.empty and p.kind not in _ANY and p.name not in args]
        if isinstance(factory, type):
            example = ", ".join(f"{lack}: ..." for lack in lacks)
            raise ConfigError(f"reward {name!r} needs {' and '.join(lacks)}: set its args, {{{example}}}") from None
        raise ConfigError(
            f"reward {name!r} takes {_parameters(factory)}, and there is nothing for {', '.join(lacks)}: {NEEDED}"
        ) from None


def _refuse_unknown(name: str, args: Mapping[str, Any], known: Sequence[str]) -> None:
    for arg in args:
        if arg not in known:
            raise ConfigError(
                f"reward {name!r}: args has {arg!r}{did_you_mean(arg, known)}, which it does not take: it takes "
                f"{', '.join(known) or 'none'}"
            )


def _in_order(name: str, reward: Reward) -> Reward:
    """The reward as it is called here, (images, prompts, metadata, thinking), whichever way it is written."""
    try:
        parameters = inspect.signature(reward).parameters
    except (TypeError, ValueError):
        return reward
    if set(GIVEN) <= set(parameters):
        placed = [p.name for p in parameters.values() if p.kind is not p.KEYWORD_ONLY]
        return reward if tuple(placed[: len(GIVEN)]) == GIVEN else _by_names(reward)
    if COMPLETIONS in parameters:
        return _as_trl(name, reward, parameters)
    if set(FLOW_GRPO) <= set(parameters):
        return _as_flow_grpo(reward)
    return reward


def _by_names(reward: Reward) -> Reward:
    @functools.wraps(reward)
    def by_names(images: Any, prompts: Any, metadata: Any, thinking: Any) -> Any:
        return reward(images=images, prompts=prompts, metadata=metadata, thinking=thinking)

    return by_names


def _as_flow_grpo(reward: Reward) -> Reward:
    """(images, prompts, metadata) -> scores, or (scores, information), as in flow_grpo; images: float [B, 3, H, W]."""

    @functools.wraps(reward)
    def as_flow_grpo(images: Any, prompts: Any, metadata: Any, thinking: Any) -> Any:
        return _scores_of(reward(images=images, prompts=prompts, metadata=metadata))

    return as_flow_grpo


async def _awaited_scores(answer: Any) -> Any:
    return _scores_of(await answer)


def _scores_of(answer: Any) -> Any:
    """The scores of an answer that may have information beside them, which may have to be awaited."""
    if inspect.isawaitable(answer):
        return _awaited_scores(answer)
    if isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], Mapping):
        return answer[0]
    return answer


def _as_trl(name: str, reward: Reward, parameters: Mapping[str, inspect.Parameter]) -> Reward:
    """(completions, **columns) as in TRL: completions are Pillow's pictures, columns prompts and what metadata hold."""
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    @functools.wraps(reward)
    def as_trl(images: Tensor, prompts: Any, metadata: Sequence[Mapping[str, Any]], thinking: Any) -> Any:
        columns = {"prompts": prompts, "thinking": thinking, **_columns(metadata)}
        wanted = {n: column for n, column in columns.items() if takes_all or n in parameters}
        absent = [n for n, p in parameters.items() if p.default is p.empty and p.kind not in _ANY]
        absent = [n for n in absent if n not in (*TRL, *wanted)]
        if absent:
            known = ", ".join(columns)
            said = f"reward {name!r} asks for the column {absent[0]!r}, and these {len(prompts)} prompts have: {known}"
            raise RewardFault(said, of_pictures=True)
        return reward(completions=as_pictures(images), **wanted)

    return as_trl


def _columns(metadata: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Metadata by key, one entry a picture (None where a prompt lacks it), but for TRL's own arguments."""
    names = dict.fromkeys(name for row in metadata for name in row if name not in TRL)
    return {name: [row.get(name) for row in metadata] for name in names}


def as_pictures(images: Tensor) -> list[Image.Image]:
    """Pictures float [B, 3, H, W] in [0, 1] as Pillow's."""
    return [Image.fromarray(picture) for picture in as_bytes(images)]


def _parameters(thing: Callable[..., Any]) -> str:
    try:
        return str(inspect.signature(thing))
    except (TypeError, ValueError):
        return "other things"
