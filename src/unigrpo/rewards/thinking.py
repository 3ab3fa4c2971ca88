"""Rewards of the thinking alone, its form and its length, for ``teaches: thinking``: the picture plays no part.

A trajectory without thinking (None) cannot be judged and is an error, never a 0; an empty thinking is judged.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from unigrpo.ranges import ConfigError, shown
from unigrpo.rewards.frozen import check_number, check_whole
from unigrpo.rewards.protocol import RewardOutput

NO_THINKING = "it has no thinking: set rollout.think to true, or leave this reward out"


class ThinkFormat:
    """think/format: 1 where the thinking is of the wanted form, else 0.

    With ``tags``, the form is that every one of them stands there once as <tag>...</tag> with something inside, in this
    order; text may stand between them. With ``pattern``, a regular expression matches the whole thinking (a dot is any
    character, line breaks too). With both, both. ``partial`` gives the share of the tags that are there in place of 0
    where some are missing.

    Parts: ``tags`` (the share of them that are there once, closed and with something inside) and ``pattern`` (1 or 0).
    """

    name = "think/format"

    def __init__(self, *, tags: Sequence[str] = (), pattern: str = "", partial: bool = False) -> None:
        if isinstance(tags, str) or not all(isinstance(tag, str) and tag.strip("<>/ ") for tag in tags):
            raise ConfigError(f"reward {self.name!r}: tags = {shown(tags)} must be a list of names, as [think, plan]")
        if len(set(tags)) != len(tags):
            raise ConfigError(
                f"reward {self.name!r}: tags = {shown(tags)} names a tag twice: each may stand there once"
            )
        if not tags and not pattern:
            raise ConfigError(f"reward {self.name!r} has nothing to look for: give tags: [...] or pattern: ...")
        try:
            self.pattern = re.compile(pattern, re.DOTALL)
        except (re.error, TypeError) as error:
            raise ConfigError(
                f"reward {self.name!r}: pattern = {shown(pattern)} is no regular expression ({error}): correct it"
            ) from error
        self.tags, self.partial = tuple(tag.strip("<>/ ") for tag in tags), bool(partial)

    def __call__(
        self,
        images: Tensor,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
        thinking: Sequence[str | None],
    ) -> RewardOutput:
        """One number per picture, of its thinking."""
        found = [None if text is None else self.judge(text) for text in thinking]
        return _output(found, {"tags": 0, "pattern": 1}, self._value)

    def judge(self, text: str) -> tuple[float, float, bool]:
        """(share of the tags that are right, whether the pattern matches, whether the tags are in order)."""
        spans = [_span(tag, text) for tag in self.tags]
        right = [span for span in spans if span is not None]
        share = len(right) / len(self.tags) if self.tags else 1.0
        in_order = all(before[1] <= after[0] for before, after in itertools.pairwise(right))
        matches = not self.pattern.pattern or self.pattern.fullmatch(text) is not None
        return share, float(matches), in_order

    def _value(self, judged: tuple[float, float, bool]) -> float:
        share, matches, in_order = judged
        if not matches or not in_order:
            return 0.0
        return share if share == 1.0 or self.partial else 0.0


class ThinkLength:
    """think/length: 1 where the thinking has ``low`` to ``high`` words, and ``slope`` less for each word outside.

    R(n) = max(least, 1 - slope * max(low - n, n - high, 0)), where n counts ``unit``: words (between blanks) or
    characters. Without ``least`` a wandering thinking is punished without end, and its advantage drowns all others.

    Part: ``length``, n itself.
    """

    name = "think/length"

    def __init__(
        self, *, low: int = 1, high: int = 200, slope: float = 0.02, least: float = 0.0, unit: str = "words"
    ) -> None:
        check_whole(self.name, "low", low, 0)
        check_whole(self.name, "high", high, 0)
        if low > high:
            raise ConfigError(f"reward {self.name!r}: low = {low} is above high = {high}: swap them")
        self.low, self.high, self.slope = low, high, check_number(self.name, "slope", slope, 0)
        self.least = check_number(self.name, "least", least, -1e9)
        if self.least > 1:
            raise ConfigError(
                f"reward {self.name!r}: least = {least} is above 1, what the right length is worth: lower it"
            )
        if unit not in UNITS:
            raise ConfigError(f"reward {self.name!r}: unit = {shown(unit)} must be one of {', '.join(UNITS)}")
        self.count = UNITS[unit]

    def __call__(
        self,
        images: Tensor,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
        thinking: Sequence[str | None],
    ) -> RewardOutput:
        """One number per picture, of its thinking."""
        found = [None if text is None else (float(self.count(text)),) for text in thinking]
        return _output(found, {"length": 0}, lambda judged: self.value(judged[0]))

    def value(self, length: float) -> float:
        """R(n) of the class."""
        return max(self.least, 1.0 - self.slope * max(self.low - length, length - self.high, 0.0))


UNITS: Mapping[str, Callable[[str], int]] = {"words": lambda text: len(text.split()), "characters": len}


def _span(tag: str, text: str) -> tuple[int, int] | None:
    """Where <tag>...</tag> stands; None unless it stands there once and holds more than blanks."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    if text.count(opening) != 1 or text.count(closing) != 1:
        return None
    start, end = text.index(opening), text.index(closing)
    inside = text[start + len(opening) : end] if end > start else ""
    return (start, end + len(closing)) if inside.strip() else None


def _output(
    judged: Sequence[tuple[Any, ...] | None], parts: Mapping[str, int], value: Callable[[Any], float]
) -> RewardOutput:
    """Values and named parts of what was judged; errors where there was no thinking (their numbers are NaN)."""
    nan = float("nan")
    return RewardOutput(
        [nan if one is None else value(one) for one in judged],
        {name: [nan if one is None else float(one[place]) for one in judged] for name, place in parts.items()},
        {index: NO_THINKING for index, one in enumerate(judged) if one is None},
    )
