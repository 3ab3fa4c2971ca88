"""What a value of a recipe may be: numbers with a range of two ends, texts with a length, and errors for people.

Every number of a recipe carries its :class:`Range` and every text its :class:`Text`; a test finds one that does not.
The upper ends are far above what anybody has trained with: they refuse what can only be a mistake.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

SHOWN = 60
"""Characters of a wrong value that an error shows."""
MOST_ITEMS = 100
"""How long a list of a recipe may be (rewards, stages)."""


FEWEST_PROMPTS = 20
"""Prompts below which there is no interval over prompts, no verdict and no band."""


class ConfigError(ValueError):
    """A recipe or an override that cannot work; the message is for the user."""


class NotFiniteError(ValueError):
    """A model, or its training, made a number that is NaN or infinite."""


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return " (did you mean ...?)" where ``known`` has close matches of ``word``, else nothing."""
    close = difflib.get_close_matches(word[:SHOWN], known, n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def how_to_install(extra: str) -> str:
    """Return the command that brings an optional part of this package (it is not on a package index)."""
    return f"pip install '.[{extra}]' in the checkout of unigrpo"


def lacking(what: str, package: str, extra: str) -> ConfigError:
    """The error where an optional package is not installed: what needs it, and the command that brings it."""
    return ConfigError(f"{what} needs the package {package}: {how_to_install(extra)}")


def shown(value: Any) -> str:
    """A value as an error shows it: quoted, on one line, without control characters, and short."""
    text = repr(value[: 2 * SHOWN]) if isinstance(value, str) else repr(value)
    return text if len(text) <= SHOWN + 2 else f"{text[:SHOWN]} ..."


def check_shares(where: str, shares: Mapping[str, float]) -> None:
    """ConfigError where shares of one whole are more than it."""
    if sum(shares.values()) > 1 + 1e-9:
        listed = " + ".join(f"{name} {share:g}" for name, share in shares.items())
        raise ConfigError(f"{where}: {listed} exceed 1: shares of the same whole, so lower one")


@dataclass(frozen=True)
class Range:
    """Allowed numbers: low <= x <= high, the ends excluded where ``open_*`` says so."""

    low: float
    high: float
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, number: float) -> bool:
        above = number > self.low if self.open_low else number >= self.low
        return above and (number < self.high if self.open_high else number <= self.high)

    def __str__(self) -> str:
        low = f"{'above' if self.open_low else 'at least'} {_number(self.low)}"
        return f"{low} and {'below' if self.open_high else 'at most'} {_number(self.high)}"

    @property
    def brief(self) -> str:
        """The range as tables show it."""
        return f"{'above ' * self.open_low}{_number(self.low)} to {'below ' * self.open_high}{_number(self.high)}"


def check_numbers(
    values: Mapping[str, Any], ranges: Mapping[str, Range], *, whole: Sequence[str], where: str = ""
) -> None:
    """ConfigError for the first of ``values`` that is no number of its range; those in ``whole`` are whole numbers."""
    for key, allowed in ranges.items():
        value = values[key]
        number = isinstance(value, int if key in whole else int | float) and not isinstance(value, bool)
        if not number or value not in allowed:
            kind = "a whole number" if key in whole else "a number"
            raise ConfigError(f"{where}{key} is {shown(value)}: write {kind}, {allowed}")


def _number(end: float) -> str:
    return str(end) if isinstance(end, int) else f"{end:g}"


@dataclass(frozen=True)
class Text:
    """Allowed texts: so many characters at most, none of them a control character (``lines``: line breaks are fine)."""

    longest: int
    shortest: int = 0
    lines: bool = False

    def __contains__(self, text: str) -> bool:
        return self.shortest <= len(text) <= self.longest and not self._control(text)

    def _control(self, text: str) -> bool:
        """Whether there are control characters, halves of characters, or line breaks of any kind."""
        allowed = "\n\t" if self.lines else ""
        return any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c not in allowed for c in text)

    def __str__(self) -> str:
        characters = f"{self.shortest} to {self.longest}" if self.shortest else f"at most {self.longest}"
        return f"a text of {characters} characters without control characters{'' if self.lines else ' or line breaks'}"

    @property
    def brief(self) -> str:
        """The kind as tables show it."""
        return "text"


Count = Annotated[int, Range(1, 10_000_000)]
CountOrZero = Annotated[int, Range(0, 10_000_000)]
Batch = Annotated[int, Range(1, 100_000)]  # things of one iteration
GridPoints = Annotated[int, Range(2, 10_000)]
Step = Annotated[int, Range(0, 10_000)]  # of a timestep grid
Pixels = Annotated[int, Range(1, 16_384)]
Rounds = Annotated[int, Range(1, 64)]  # of thinking and drawing in one sample
Tokens = Annotated[int, Range(1, 1_000_000)]
Seed = Annotated[int, Range(0, 2**63 - 1)]
Positive = Annotated[float, Range(0, 1e9, open_low=True)]
NonNegative = Annotated[float, Range(0, 1e9)]
Weight = Annotated[float, Range(-1e9, 1e9)]
Rate = Annotated[float, Range(0, 10)]  # of learning
Epsilon = Annotated[float, Range(1e-30, 1)]  # Adam's: fp32 has nothing smaller to add
Shift = Annotated[float, Range(1e-3, 1e3)]  # of a timestep grid
Probability = Annotated[float, Range(0, 1)]
Memory = Annotated[float, Range(0, 1, open_high=True)]  # of a moving average: 1 would never forget
Minutes = Annotated[float, Range(0, 1e6, open_low=True)]
Guidance = Annotated[float, Range(1, 1000)]  # 1 is no guidance
Temperature = Annotated[float, Range(0, 100)]
Noise = Annotated[float, Range(0, 100)]
Name = Annotated[str, Text(120, shortest=1)]
PathOrName = Annotated[str, Text(4096)]  # or another name of data or a model; longer ones no file system takes
Description = Annotated[str, Text(10_000, lines=True)]
