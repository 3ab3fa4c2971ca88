"""What the paper reports (arXiv 2603.23500, Tables 1 and 2), and the results of our runs read beside it.

Results are the plain dict that ``unigrpo reproduce`` writes for one target: ``target``, ``scale``, ``reward``,
``seeds``, ``command``, ``environment`` and ``cells``, one cell for each row and seed (its figures, status and curve).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Json = Mapping[str, Any]
Cells = Mapping[str, Sequence[Json]]  # the cells of every row of a target, in the paper's order

QUICK_SCALE = "proves the machinery, not the method"  # what every table and figure at scale "quick" says
CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
CATEGORY_TITLES = ("single", "two", "counting", "colours", "position", "attributes")
DONE, COLLAPSED, FAILED, NOT_APPLICABLE = STATUSES = ("done", "collapsed", "failed", "n/a")


@dataclass(frozen=True)
class PaperRow:
    """One row of the paper's Tables 1 and 2; None where it says "collapse" or has no figure."""

    key: str
    method: str
    thinking: bool
    text_alignment: float | None
    geneval: float | None
    by_category: tuple[float, ...] | None  # GenEval in the order of CATEGORIES

    @property
    def label(self) -> str:
        """The method, with "+ thinking" where the same method also has a row without."""
        return f"{self.method} + thinking" if self.key.endswith("-yes") else self.method


ROWS = (
    PaperRow("bagel-no", "Bagel", False, 0.6810, 0.78, (0.98, 0.96, 0.78, 0.84, 0.52, 0.58)),
    PaperRow("bagel-yes", "Bagel", True, 0.7132, 0.79, (0.99, 0.92, 0.77, 0.88, 0.56, 0.62)),
    PaperRow("sft-no", "SFT", False, 0.7486, 0.83, (0.99, 0.95, 0.83, 0.89, 0.58, 0.75)),
    PaperRow("sft-yes", "SFT", True, 0.7769, 0.82, (0.98, 0.93, 0.63, 0.91, 0.68, 0.79)),
    PaperRow("refl-no", "ReFL", False, 0.7786, 0.85, (1.00, 0.97, 0.86, 0.92, 0.57, 0.81)),
    PaperRow("refl-yes", "ReFL", True, 0.8120, 0.84, (0.99, 0.96, 0.63, 0.94, 0.70, 0.82)),
    PaperRow("fpo-no", "FPO", False, 0.7893, 0.87, (0.99, 0.99, 0.90, 0.93, 0.59, 0.86)),
    PaperRow("fpo-yes", "FPO", True, 0.8159, 0.85, (0.99, 0.97, 0.69, 0.91, 0.69, 0.81)),
    PaperRow("flowgrpo-no", "FlowGRPO", False, 0.8112, 0.88, (0.99, 0.98, 0.93, 0.94, 0.60, 0.86)),
    PaperRow("flowgrpo-yes", "FlowGRPO", True, 0.8208, 0.86, (0.99, 0.96, 0.76, 0.90, 0.71, 0.84)),
    PaperRow("textgrpo", "TextGRPO", True, 0.8078, 0.88, (0.99, 0.96, 0.87, 0.91, 0.76, 0.84)),
    PaperRow("refl-thinking", "ReFL (w/ thinking)", True, 0.7804, 0.83, (0.99, 0.94, 0.64, 0.92, 0.70, 0.81)),
    PaperRow(
        "refl-textgrpo", "ReFL (w/ thinking) + TextGRPO", True, 0.7987, 0.87, (0.98, 0.97, 0.84, 0.91, 0.75, 0.80)
    ),
    PaperRow("unifpo", "UniFPO", True, None, None, None),
    PaperRow("unigrpo", "UniGRPO", True, 0.8381, 0.90, (0.99, 0.99, 0.91, 0.91, 0.73, 0.86)),
)
ROW = {row.key: row for row in ROWS}
TARGETS: Mapping[str, tuple[str, ...]] = {
    "table1": tuple(ROW),
    "table2": tuple(ROW),
    "fig3": ("unigrpo",),
    "fig4": ("cfg-off", "cfg-on"),
    "fig5": ("none", "latent_kl", "velocity_mse"),
}

# ------------------------------------------------------------------------------------------------ means and intervals

T_975 = (
    12.706204736, 4.302652730, 3.182446305, 2.776445105, 2.570581836, 2.446911851, 2.364624252, 2.306004135,
    2.262157163, 2.228138852, 2.200985160, 2.178812830, 2.160368656, 2.144786688, 2.131449546, 2.119905299,
    2.109815578, 2.100922040, 2.093024054, 2.085963447, 2.079613845, 2.073873068, 2.068657610, 2.063898562,
    2.059538553, 2.055529439, 2.051830516, 2.048407142, 2.045229642,
)  # fmt: skip
"""97.5 % quantiles of Student's t with 1 to 29 degrees of freedom (2 to 30 values)."""
NORMAL_975 = 1.959963985


NO_INTERVAL = "no interval"
ROUNDING = 1e-9
"""Of the largest value: seeds that differ by less are equal, and equal seeds do not show how much seeds differ."""


class Interval(NamedTuple):
    """A mean over seeds with its 95 % interval; ``low`` and ``high`` are NaN where there is none."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """Three digits, and the half width where there is one."""
        return f"{self.mean:.3f} ± {self.high - self.mean:.3f}" if self.known else f"{self.mean:.3f}"

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return not math.isnan(self.high)

    @property
    def signed(self) -> str:
        """The mean of a difference and its interval in brackets, or that there is none."""
        return f"{self.mean:+.3f} ({f'{self.low:+.3f} to {self.high:+.3f}' if self.known else NO_INTERVAL})"


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean of n values with Student's 95 % interval; the normal one above n = 30.

    mean ± t_{0.975, n-1} s / sqrt(n), s with n - 1 in the denominator; fp64. One value, or equal ones: the interval is
    NaN, since neither shows a spread.
    ValueError for no values, or one that is not finite.
    """
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError(
            f"a mean over seeds needs finite values, at least one; got {list(values)}: leave failed runs out"
        )
    mean = statistics.fmean(values)
    if max(values) - min(values) <= ROUNDING * max(map(abs, values)):
        return Interval(mean, math.nan, math.nan)
    quantile = T_975[len(values) - 2] if len(values) <= len(T_975) + 1 else NORMAL_975
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


# ---------------------------------------------------------------------------------------------------- reading results


def cells_by_row(results: Json, *targets: str) -> dict[str, list[Json]]:
    """Sort the cells of results by row, in the paper's order and by seed; a row that was not run has [].

    targets: what the caller can show. ValueError for another target, an unknown row or status, or a cell given twice.
    """
    target = results["target"]
    if target not in targets:
        raise ValueError(f"these are results of {target!r}; give results of {' or '.join(targets)}")
    cells: dict[str, list[Json]] = {row: [] for row in TARGETS[target]}
    for cell in sorted(results["cells"], key=lambda cell: cell["seed"]):
        row, seed, status = cell["row"], cell["seed"], cell["status"]
        if row not in cells:
            raise ValueError(f"{target} has no row {row!r}; its rows are {', '.join(cells)}")
        if status not in STATUSES:
            raise ValueError(f"{row}, seed {seed}: the status is {status!r}, not one of {', '.join(STATUSES)}")
        if any(other["seed"] == seed for other in cells[row]):
            raise ValueError(f"{row}, seed {seed} occurs twice in the results; keep one of the two cells")
        cells[row].append(cell)
    return cells


def ran(cells: Sequence[Json]) -> list[Json]:
    """The cells that reached an end: done, or collapsed."""
    return [cell for cell in cells if cell["status"] in (DONE, COLLAPSED)]


def collapsed(cells: Sequence[Json]) -> int:
    """How many of the cells collapsed."""
    return sum(cell["status"] == COLLAPSED for cell in cells)


def interval(cells: Sequence[Json], measure: str, category: str | None = None) -> Interval | None:
    """Mean and interval of a measure over the seeds of a row; None where there is none.

    Collapsed seeds count with the figures they have; a row with a collapsed seed that has no figure has no mean: one
    over its other seeds would flatter it. category: the measure is a mapping, and this is the key in it.
    """
    values: list[float] = []
    for cell in ran(cells):
        value = cell[measure] if category is None or cell[measure] is None else cell[measure][category]
        if value is None and cell["status"] == COLLAPSED:
            return None
        if value is not None:
            values.append(float(value))
    return mean_interval(values) if values else None


# ----------------------------------------------------------------------------------------------------------- findings

HOLDS, LEANS, FAILS, UNKNOWN = "holds", "points that way", "does not hold", "not run"
OVERLAP, ALONE = f"{LEANS} (intervals overlap)", f"{LEANS} ({NO_INTERVAL})"
_WEAKEST_FIRST = (FAILS, ALONE, OVERLAP, HOLDS)
MEASURES = {"score": "score", "exam_score": "exam score"}  # key: name in prose
BOTH = ("score", "exam_score")
_LIST_ALL = 4  # comparisons, or rows without figures, up to which a finding names each


class Finding(NamedTuple):
    """A claim of the paper, whether our numbers bear it out, and these numbers."""

    claim: str
    verdict: str
    numbers: str


class _Compared(NamedTuple):
    measure: str
    better: PaperRow
    worse: PaperRow
    left: Interval | None
    right: Interval | None
    verdict: str

    def __str__(self) -> str:
        left, right = self.left or "collapse", self.right or "collapse"
        return f"{MEASURES[self.measure]}: {self.better.label} {left}, {self.worse.label} {right}"


def findings(results: Json) -> list[Finding]:
    """Compare the rows of Table 1 as the paper does: which of its findings hold here?

    Of two rows the order of the means decides, and "holds" needs 95 % intervals that do not overlap. A claim about
    several pairs or both measures is as strong as its weakest comparison; pairs without figures are left out and named.
    """
    cells = cells_by_row(results, "table1")
    image = ("refl", "fpo", "flowgrpo")
    trained = [key for key in ROW if key.split("-")[0] not in ("bagel", "sft", "unifpo")]
    others = [key for key in ROW if key != "unigrpo"]
    above = [(key, "sft-yes" if ROW[key].thinking else "sft-no") for key in trained]
    claims = [
        ("UniGRPO is best on both measures", [("unigrpo", key) for key in others], BOTH),
        ("UniGRPO is above every row that does not collapse in the paper",
         [("unigrpo", key) for key in others if key != "unifpo"], BOTH),
        ("Joint training (UniGRPO) beats text alone (TextGRPO)", [("unigrpo", "textgrpo")], BOTH),
        ("Joint training (UniGRPO) beats pictures alone (FlowGRPO with and without thinking)",
         [("unigrpo", "flowgrpo-no"), ("unigrpo", "flowgrpo-yes")], BOTH),
        ("Thinking helps SFT (exam score; the paper's GenEval falls by .01)", [("sft-yes", "sft-no")], BOTH[1:]),
        ("Thinking helps each image method (exam score; the paper's GenEval falls by .01 to .02)",
         [(f"{name}-yes", f"{name}-no") for name in image], BOTH[1:]),
        ("A TextGRPO stage after ReFL (w/ thinking) improves it", [("refl-textgrpo", "refl-thinking")], BOTH),
    ]  # fmt: skip
    found = [_judge(cells, *claim) for claim in claims]
    last = _judge(cells, "Every RL method but UniFPO is above SFT with the same thinking", above, BOTH)
    return [*found, _collapse(cells["unifpo"]), last]


def _compare(cells: Cells, better: str, worse: str, measure: str) -> _Compared:
    left, right = interval(cells[better], measure), interval(cells[worse], measure)
    if any(side is None and not collapsed(cells[row]) for side, row in ((left, better), (right, worse))):
        verdict = UNKNOWN
    elif left is None or right is None:  # a collapse that left no figure: worse than any
        verdict = FAILS if left is None else HOLDS
    else:
        verdict = above(left, right)
    return _Compared(measure, ROW[better], ROW[worse], left, right, verdict)


def above(left: Interval, right: Interval) -> str:
    """Whether one mean is above another: the order decides, and "holds" needs intervals that do not overlap."""
    if left.mean <= right.mean:
        return FAILS
    if not left.known or not right.known:
        return ALONE
    return HOLDS if left.low > right.high else OVERLAP


def _judge(cells: Cells, claim: str, pairs: Sequence[tuple[str, str]], measures: Sequence[str]) -> Finding:
    compared = [_compare(cells, *pair, measure) for measure in measures for pair in pairs]
    known = [item for item in compared if item.verdict != UNKNOWN]
    if not known:
        return Finding(claim, UNKNOWN, "")
    verdict = min((item.verdict for item in known), key=_WEAKEST_FIRST.index)
    texts = [str(item) for item in known] if len(compared) <= _LIST_ALL else _counts(known)
    unknown = [item for item in compared if item.verdict == UNKNOWN]
    missing = {
        row for item in unknown for row, side in ((item.better, item.left), (item.worse, item.right)) if not side
    }
    if missing:
        verdict += "" if verdict == FAILS else ", as far as run"
        names = [row.label for row in ROWS if row in missing]
        texts.append(f"no figure: {', '.join(names) if len(names) <= _LIST_ALL else f'{len(names)} rows'}")
    return Finding(claim, verdict, "; ".join(texts))


def _counts(known: Sequence[_Compared]) -> list[str]:
    """Per measure, how many comparisons came out how, and the one with the smallest (or most negative) lead."""
    texts = []
    for measure in dict.fromkeys(item.measure for item in known):
        here = [item for item in known if item.measure == measure]
        split = [(word, sum(item.verdict.startswith(word) for item in here)) for word in (HOLDS, LEANS, FAILS)]
        counts = ", ".join(f"{word} in {count}" for word, count in split if count)
        texts.append(f"{counts} of {len(here)}, smallest lead in {min(here, key=_margin)}")
    return texts


def _margin(item: _Compared) -> float:
    """By how much the means differ; a collapse without figures is below everything."""
    if item.left is None or item.right is None:
        return -math.inf if item.left is None else math.inf
    return item.left.mean - item.right.mean


def _collapse(cells: Sequence[Json]) -> Finding:
    claim, runs, count = "UniFPO collapses", len(ran(cells)), collapsed(cells)
    if not runs:
        return Finding(claim, UNKNOWN, "")
    verdict = FAILS if not count else HOLDS if count == runs else f"{LEANS} (some seeds)"
    figures = [f"{name} {found}" for key, name in MEASURES.items() if (found := interval(cells, key)) is not None]
    return Finding(claim, verdict, "; ".join([f"{count} of {runs} seeds collapsed", *figures]))
