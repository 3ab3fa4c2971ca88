"""What a person sees while a run goes on: a live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from unigrpo import doing
from unigrpo.reports.pace import Pace, Schedule

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

PER_SECOND = 2  # redrawings of the table inside an iteration
ROWS = 12  # of the live table: the last iterations, few enough for a small terminal
LOSSES = {"cross_entropy": "cross-entropy (words)", "flow_matching": "flow matching (velocity)"}
"""Names of the supervised losses (``loss`` of a metric line) for people."""


class Progress:
    """Show the metric lines of a run as they come.

    On a terminal: a table of the last iterations, rewritten in place. Elsewhere (a file, CI): one line after the first
    iteration, then every ``every`` iterations or ``seconds`` seconds, whichever comes first, and one for the last.
    The time left is that of the iterations, at their recent pace, and of the validations, checkpoints and the
    evaluation still to come (``schedule``), each at the time that the last one of its kind took: none is mistaken for
    another. ``clock`` is replaced in tests.

    Example::

        with Progress("shapes/unigrpo", total=200) as progress:
            progress.update({"iteration": 0, "reward_mean": 0.41})
    """

    def __init__(
        self,
        name: str,
        total: int,
        *,
        start: int = 0,
        every: int = 10,
        seconds: float = 30.0,
        schedule: Schedule | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare for the iterations ``start`` to ``total - 1``; ``start`` > 0 in a resumed run."""
        if every < 1 or seconds <= 0:
            raise ValueError(f"progress lines every {every} iterations or {seconds} s: both must be above 0")
        from rich.console import Console

        self._console = console or Console(highlight=False)
        self._name, self._total, self._done, self._every, self._seconds = name, total, start, every, seconds
        self._clock = clock
        self._pace = Pace(total, schedule or Schedule())
        self._lines: deque[tuple[Mapping[str, Any], float]] = deque(maxlen=ROWS)
        self._last_update = self._last_print = clock()
        self._printed = 0
        self._validation: tuple[int, str] | None = None
        self._live: Live | None = None
        self._now, self._drawn = "", 0.0
        self._hearing = ExitStack()

    def __enter__(self) -> Self:
        """Start the live table where there is a terminal."""
        if self._console.is_terminal:
            from rich.live import Live

            self._live = Live(self._table(), console=self._console, auto_refresh=False)
            self._live.start()
            self._hearing.enter_context(doing.heard(self.now))
        self._last_update = self._last_print = self._clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last table on the screen."""
        self._hearing.close()
        self._now = ""
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            self._live.stop()

    def update(self, line: Mapping[str, Any]) -> None:
        """Show one finished iteration, given as its line of ``metrics.jsonl`` (any part may be missing)."""
        now = self._clock()
        spent, self._last_update = now - self._last_update, now
        self._pace.iteration(spent, (line.get("seconds") or {}).get("validation", 0.0))
        self._done = int(line["iteration"]) + 1
        self._lines.append((line, spent))
        if found := _validated(line):
            self._validation = (self._done, found)
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
        elif self._due(now):
            self._console.print(self.sentence(), soft_wrap=True, markup=False)
            self._printed, self._last_print = self._done, now

    def now(self, text: str) -> None:
        """Show what is being done inside an iteration or an evaluation, on a terminal, at most ``PER_SECOND`` times."""
        self._now, now = text, self._clock()
        if self._live is not None and now - self._drawn >= 1 / PER_SECOND:
            self._drawn = now
            self._live.update(self._table(), refresh=True)

    def time_left(self) -> str:
        """How far the run is, and how long it will still take, in words."""
        return f"iteration {self._done} of {self._total}, {self._time_left()}"

    def aside(self, kind: Literal["evaluation", "checkpoint"]) -> None:
        """Something between the iterations has ended: the time since the last event is its own, no iteration's."""
        now = self._clock()
        self._pace.aside(kind, now - self._last_update)
        self._last_update = now

    def note(self, text: str) -> None:
        """Print a message (a warning, "checkpoint saved") above the table, or between the lines."""
        self._console.print(text, soft_wrap=True, markup=False)

    def _due(self, now: float) -> bool:
        first_or_last = self._printed == 0 or self._done >= self._total
        return first_or_last or self._done - self._printed >= self._every or now - self._last_print >= self._seconds

    def sentence(self) -> str:
        """Return the state of the run as one line of plain words; iterations are counted from 1, as people do."""
        line = self._lines[-1][0] if self._lines else {}
        parts = [f"iteration {self._done} of {self._total}", *_measures(line)]
        if self._validation is not None:
            parts.append(f"{self._validation[1]} (after iteration {self._validation[0]})")
        if self._pace.known:
            parts.append(f"{_pace(self._pace.mean)} per iteration")
        return " | ".join([*parts, self._time_left()])

    def _time_left(self) -> str:
        if self._done >= self._total:
            return "all iterations done"
        return f"about {duration(self._pace.left(self._done))} left" if self._pace.known else "time left not known yet"

    def _table(self) -> Table:
        """Draw the last iterations: the columns that somebody filled, the most important first, as many as fit."""
        from rich.table import Table

        title = f"{self._name}: iteration {self._done} of {self._total}, {self._time_left()}"
        filled = [column for column in COLUMNS if any(column[1](line) for line, _ in self._lines)]
        rows = {"iteration": [str(int(line["iteration"]) + 1) for line, _ in self._lines]}
        rows |= {header: [cell(line) for line, _ in self._lines] for header, cell in filled}
        rows["time"] = [_pace(spent) for _, spent in self._lines]
        names = {header: header for header in rows}
        shown = fitting(rows, names, self._console.width)
        if len(shown) < len(rows):
            names |= {header: SHORTER.get(header, header) for header in rows}
            shown = fitting(rows, names, self._console.width)
        left_out = [header for header in rows if header not in shown]
        notes = [f"for more, widen the window: {', '.join(left_out)}"] if left_out else []
        caption = "\n".join([*([f"now: {self._now}"] if self._now else []), *notes]) or None
        table = Table(title=title, title_justify="left", title_style="bold", caption=caption, caption_justify="left")
        titles = [names[header] for header in shown]
        widths = [_column_width(title, rows[header]) for title, header in zip(titles, shown, strict=True)]
        whole = [max(width, len(title)) for title, width in zip(titles, widths, strict=True)]
        fits = 1 + sum(FRAME + width for width in whole) <= self._console.width  # else headers wrap between words
        for title, width in zip(titles, whole if fits else widths, strict=True):
            table.add_column(title, justify="right", width=width)
        for number in range(len(self._lines)):
            table.add_row(*(rows[header][number] for header in shown))
        return table


FRAME = 3
"""Characters that a column takes beside its content: a line and a space at each side."""


def fitting(rows: Mapping[str, Sequence[str]], names: Mapping[str, str], width: int) -> list[str]:
    """Choose the columns that fit into a width whole, first those of ``IMPORTANT``; in their own order.

    names: what stands above them.
    """
    ranked = sorted(rows, key=lambda header: IMPORTANT.index(header) if header in IMPORTANT else len(IMPORTANT))
    chosen, used = list[str](), 1
    for header in ranked:
        needed = FRAME + _column_width(names[header], rows[header])
        if not chosen or used + needed <= width:
            chosen.append(header)
            used += needed
    return [header for header in rows if header in chosen]


def _column_width(header: str, cells: Sequence[str]) -> int:
    """Room for the longest word of the header, which wraps between words, and for the longest cell."""
    return max(len(word) for word in [*header.split(), *cells])


def duration(seconds: float) -> str:
    """Say a duration the way people do: ``8 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _pace(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 60 else duration(seconds)


def _measures(line: Mapping[str, Any]) -> list[str]:
    """Reward where there is one, losses where the run is supervised."""
    parts = []
    if line.get("reward_mean") is not None:
        parts.append(f"training reward {line['reward_mean']:.3f}")
    loss = line.get("loss") or {}
    parts.extend(f"{LOSSES.get(key, f'{key} loss')} {value:.4f}" for key, value in loss.items() if value is not None)
    return parts


def _number(*path: str, digits: int = 3) -> Callable[[Mapping[str, Any]], str]:
    """Make a cell: the number at ``path`` of a metric line, or nothing."""

    def cell(line: Mapping[str, Any]) -> str:
        value: Any = line
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        return "" if value is None else f"{value:.{digits}f}"

    return cell


def _share(name: str) -> Callable[[Mapping[str, Any]], str]:
    """Make a cell: a share as a percentage, or nothing."""

    def cell(line: Mapping[str, Any]) -> str:
        return "" if line.get(name) is None else f"{100 * line[name]:.0f} %"

    return cell


_validation_score = _number("validation", "score")


def _validation_reward(line: Mapping[str, Any]) -> str:
    """A cell: the validation reward where it stands in for a score."""
    return "" if _validation_score(line) else _number("validation", "reward")(line)


def _validated(line: Mapping[str, Any]) -> str:
    """What the validation of this iteration says, in words; "" where there was none."""
    for name, cell in (("validation score", _validation_score), ("validation reward", _validation_reward)):
        if value := cell(line):
            return f"{name} {value}"
    return ""


COLUMNS: tuple[tuple[str, Callable[[Mapping[str, Any]], str]], ...] = (
    ("training reward", _number("reward_mean")),
    ("validation score", _validation_score),
    ("validation reward", _validation_reward),
    ("plan right", _number("validation", "plan_right")),
    ("picture follows plan", _number("validation", "follow")),
    ("tokens of thinking", _number("text", "think_length", digits=1)),
    *((label, _number("loss", key, digits=4)) for key, label in LOSSES.items()),
    ("of peak FLOPs", _share("utilization")),
)
IMPORTANT = (
    "iteration",
    "training reward",
    *LOSSES.values(),
    "validation score",
    "validation reward",
    "time",
    "plan right",
)
"""Columns that stay longest where a terminal is narrow."""
SHORTER = {
    "iteration": "iter.",
    "training reward": "reward",
    "validation score": "val. score",
    "validation reward": "val. reward",
    "picture follows plan": "follow",
    "tokens of thinking": "tokens",
    "of peak FLOPs": "of peak",
    "cross-entropy (words)": "words' loss",
    "flow matching (velocity)": "flow's loss",
}
"""What columns are called where not all fit under their whole names."""
