"""The alarms of a run, as its folder has them: each once, with when it began and whether it is still on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Raised:
    """One alarm: iterations (from 1) at which it was first and last raised, what it said last, and what to look at.

    on: it was raised at the last look. collapsed: of a diversity, less than half was left at the last look.
    """

    title: str
    gold: bool
    first: int
    last: int
    on: bool
    collapsed: bool
    words: str
    look: str

    @property
    def when(self) -> str:
        """The iterations, in words."""
        if self.first == self.last:
            return f"iteration {self.first}"
        return f"iterations {self.first} to {self.last}"

    @property
    def brief(self) -> str:
        """A few words for a headline."""
        what = f"{self.title} fell while the trained reward rose" if self.gold else f"{self.title} left its band"
        return f"{what} ({self.when}{'' if self.on else ', not since'})"


def raised(summary: Json, lines: Sequence[Json]) -> list[Raised]:
    """All alarms of a run, first come first: of its validations, and of the evaluation after training."""
    looks = [(int(line["iteration"]) + 1, line.get("alarms") or []) for line in lines if "validation" in line]
    if summary.get("after"):
        last = [alarm for alarm in summary.get("alarms") or [] if alarm.get("when") == "after"]
        looks.append((int(last[0]["iteration"]) if last else _iterations(lines), last))
    found: dict[str, list[tuple[int, Json]]] = {}
    for iteration, alarms in looks:
        for alarm in alarms:
            found.setdefault(f"{alarm['kind']} {alarm['title']}", []).append((iteration, alarm))
    now = {f"{alarm['kind']} {alarm['title']}" for alarm in looks[-1][1]} if looks else set[str]()
    return [_raised(times, key in now) for key, times in found.items()]


def _raised(times: Sequence[tuple[int, Json]], on: bool) -> Raised:
    last, alarm = times[-1]
    collapsed = on and bool(alarm.get("collapsed"))
    gold, words = alarm["kind"] == "proxy", alarm["words"]
    return Raised(alarm["title"], gold, times[0][0], last, on, collapsed, words, alarm.get("look") or "")


def _iterations(lines: Sequence[Json]) -> int:
    return max((int(line["iteration"]) + 1 for line in lines), default=0)


def sentence(found: Sequence[Raised]) -> str:
    """The alarms in the headline; "" without any."""
    if not found:
        return ""
    count = "An alarm" if len(found) == 1 else f"{len(found)} alarms"
    return f"{count}: {'; '.join(alarm.brief for alarm in found)}."
