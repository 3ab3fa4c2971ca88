"""One page that says what a run did: before and after in figures and pictures, curves, canaries, recipe, glossary.

The page is one file without outside resources, made from the run folder alone, so it can be made again at any time
and sent by mail. It also works for a run that is still going on, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from unigrpo.files import write_text_atomic
from unigrpo.reports import curves, pictures, runlog
from unigrpo.reports.differences import COLLAPSED, interval_of, why_none

MEASURES = (
    ("score", "score"),
    ("exam_score", "exam score"),
    ("reward", "reward"),
    ("plan_right", "plan right"),
    ("follow", "follow"),
    ("parsable", "parsable share"),
)

Json = Mapping[str, Any]


def write_report(run_dir: Path | str, *, living: str = "") -> Path:
    """Write ``report.html`` into a run folder and return its path.

    ``living``: of a run that goes on, how long it will still take; the page then loads itself again.

    ValueError if the folder is not a run's, or if a file in it is damaged (it is named).
    """
    run_dir = Path(run_dir)
    _require_run(run_dir)
    import jinja2

    template = resources.files("unigrpo.reports").joinpath("templates/report.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(template).render(report_content(run_dir), living=living)
    return write_text_atomic(run_dir / runlog.REPORT, page)


def _require_run(run_dir: Path) -> None:
    if not run_dir.is_dir():
        raise ValueError(
            f"{run_dir} is not a folder. Give the folder of a run: the one that `unigrpo train` named as its output."
        )
    if not (run_dir / runlog.RECIPE).is_file():
        raise ValueError(
            f"{run_dir} is not the folder of a run: {runlog.RECIPE} is missing. "
            "Give the folder that `unigrpo train` named as its output (it holds recipe.yaml and metrics.jsonl)."
        )


def report_content(run_dir: Path) -> dict[str, Any]:
    """Read a run folder into everything the template shows, as text ready to print and escaped by the template."""
    recipe_text = (run_dir / runlog.RECIPE).read_text(encoding="utf-8")
    recipe = _parse_recipe(recipe_text, run_dir / runlog.RECIPE)
    lines = runlog.read_metrics(run_dir)
    summary = runlog.read_json(run_dir / runlog.SUMMARY)
    before, after = summary.get("before") or {}, summary.get("after") or {}
    paired = summary.get("paired") or {}
    done, total = _iterations(lines), recipe.get("iterations")
    drawn, pairs = curves.charts([*start(before), *lines]), pictures.pairs(run_dir)
    return {
        "name": str(recipe.get("name") or run_dir.resolve().name),
        "folder": run_dir.resolve().name,
        "headline": headline(before, after, paired, lines),
        "status": status(done, total, before, bool(after), lines),
        "finished": bool(after),
        "untrained": bool(start(before)),
        "pictures_drawn": before.get("n"),
        "judged": not _unjudged(before, after, lines),
        "held_out": _held_out(recipe),
        "measures": _measures(before, after, paired),
        "without_interval": _without_interval(paired),
        "categories": _categories(before, after),
        "pairs": pairs,
        "sheets": [] if pairs else pictures.evaluation_sheets(run_dir),
        "sections": [
            (section, [(chart, curves.svg(chart)) for chart in group])
            for section, group in groupby(drawn, key=lambda chart: chart.section)
        ],
        "phases": _phases(lines),
        "first_update": _first_update(lines),
        "samples": pictures.samples(run_dir),
        "recipe": recipe_text,
        "environment": _environment(run_dir),
    }


def start(before: Json) -> list[Json]:
    """The metric line of iteration 0, before training: what a validation would have said (none in runs of before)."""
    return [{"iteration": -1, "validation": before["validation"]}] if before.get("validation") else []


def _environment(run_dir: Path) -> Json:
    """Where the run was started; of later sessions, how many and when the last began."""
    environment = runlog.read_json(run_dir / runlog.ENVIRONMENT)
    environment.pop("inputs", None)  # hashes say nothing to a reader
    if sessions := environment.pop("resumed", []):
        environment["resumed"] = f"{len(sessions)} times, last {sessions[-1].get('date')}"
    return environment


def _parse_recipe(text: str, path: Path) -> dict[str, Any]:
    from unigrpo.ranges import ConfigError
    from unigrpo.recipe import parse

    try:
        recipe = parse(text)
    except ConfigError as error:
        raise ValueError(f"{path} is not YAML: {error}. Restore the recipe the run was started with.") from None
    if not isinstance(recipe, dict):
        raise ValueError(f"{path} holds no recipe (a mapping of keys to values). Restore the one the run started with.")
    return recipe


def _unjudged(before: Json, after: Json, lines: Sequence[Json]) -> bool:
    """Whether all that is known of the pictures is their reward."""
    sides = [before, after, *(line.get("validation") or {} for line in lines)]
    known = {key for side in sides for key in ("score", "reward") if side.get(key) is not None}
    return known == {"reward"}


def _held_out(recipe: Json) -> bool:
    """Whether the prompts of the evaluations are ones that training never uses, as far as their name says."""
    evaluation = recipe.get("eval")
    return not isinstance(evaluation, Mapping) or str(evaluation.get("prompts", "")).endswith("held-out")


def _iterations(lines: Sequence[Json]) -> int:
    return max((int(line["iteration"]) + 1 for line in lines if "iteration" in line), default=0)


# --------------------------------------------------------------------------------------------------------- sentences


def headline(before: Json, after: Json, paired: Json, lines: Sequence[Json] = ()) -> str:
    """Say in a few sentences what came of the run: of the score, or of the reward where nobody judged.

    A verdict needs an interval; without one there is the reason for that, and a collapse is told as what is left, not
    called one. ``lines``: the run's metrics, whose last
    ``SILENT`` say where nothing is being learned.
    """
    return " ".join(part for part in (_outcome(before, after, paired), _silence(lines), _failures(lines)) if part)


def _outcome(before: Json, after: Json, paired: Json) -> str:
    key, name = ("score", "Score") if {before.get("score"), after.get("score")} != {None} else ("reward", "Reward")
    start, end = before.get(key), after.get(key)
    if start is None or end is None:
        return f"{name} before training: {start:.3f}." if start is not None else "Not evaluated yet."
    fell = key == "score" and end < COLLAPSED * start
    found, why = interval_of(paired.get(key)), why_none(paired.get(key))
    if found is None:
        left = " Less than half of the score is left." if fell else ""
        return f"{name} {start:.3f} → {end:.3f} ({end - start:+.3f}{f'; no interval: {why}' if why else ''}).{left}"
    low, high = found
    if low > 0:
        meaning = "The interval lies above 0: the rise is more than chance."
    elif high < 0:
        meaning = "The interval lies below 0: the model got worse, by more than chance."
    else:
        meaning = "The interval includes 0: this may be chance."
    figures = f"{start:.3f} → {end:.3f} ({end - start:+.3f}, 95 % interval {low:+.3f} to {high:+.3f})"
    return f"{'The run collapsed. ' if fell else ''}{name} {figures}. {meaning}"


SILENT = 3
"""Iterations in a row without signal after which a run is said not to learn (as in the terminal)."""


def _silence(lines: Sequence[Json]) -> str:
    """Why nothing is being learned at the end of the run, if so."""
    reasons = [line.get("no_signal") or [] for line in lines[-SILENT:]]
    if len(reasons) < SILENT or not all(reasons):
        return ""
    return f"Something is not learning: {'; '.join(reasons[-1])}."


def _failures(lines: Sequence[Json]) -> str:
    """How many of the samples were left out because they could not be scored, and why in most cases; or nothing."""
    shares = [float(line.get("failed_share") or 0.0) for line in lines]
    reasons = [reason for line in lines for reason in line.get("failures") or []]
    if not any(shares):
        return ""
    why = f" The latest: {reasons[-1]}." if reasons else ""
    return (
        f"{sum(shares) / len(shares):.1%} of the samples of training could not be scored and were left out (at most "
        f"{max(shares):.1%} in one iteration).{why}"
    )


def status(done: int, total: Any, before: Json, after: bool, lines: Sequence[Json]) -> str:
    """Say how far the run is, and what is missing of it."""
    length = f"{done} of {total} iterations" if isinstance(total, int) else f"{done} iterations"
    if after:
        return f"{length}, finished."
    missing = "the evaluation after training" if before else "the evaluations before and after training"
    sentence = f"This run is not finished: {length} done, {missing} missing."
    for measure in ("score", "reward"):
        iterations, values = curves.series(lines, f"validation.{measure}")
        if len(values):
            untrained = (before.get("validation") or {}).get(measure)
            at = f"at iteration {iterations[-1]}" + ("" if untrained is None else f" (before training {untrained:.3f})")
            return f"{sentence} Last validation {measure}: {values[-1]:.3f}, {at}."
    return sentence


# ------------------------------------------------------------------------------------------------------------ tables


def _number(value: Any, *, signed: bool = False) -> str:
    if not isinstance(value, int | float):
        return "-"
    return f"{value:+.3f}" if signed else f"{value:.3f}"


def _difference(start: Any, end: Any) -> float | None:
    both = isinstance(start, int | float) and isinstance(end, int | float)
    return end - start if both else None


def _measures(before: Json, after: Json, paired: Json) -> list[dict[str, str]]:
    """One row for each measure that either side has: before, after, difference, interval."""
    rows = []
    for key, name in MEASURES:
        start, end = before.get(key), after.get(key)
        if start is None and end is None:
            continue
        found = interval_of(paired.get(key))
        none = "none" if key in paired else ""
        interval = none if found is None else f"{found[0]:+.3f} to {found[1]:+.3f}"
        row = {"name": name, "before": _number(start), "after": _number(end), "interval": interval}
        rows.append(row | {"difference": _number(_difference(start, end), signed=True)})
    return rows


def _without_interval(paired: Json) -> list[str]:
    """A sentence for every reason for which some measures have no interval."""
    names: dict[str, list[str]] = {}
    for key, name in MEASURES:
        if why := why_none(paired.get(key)):
            names.setdefault(why, []).append(name)
    return [f"No interval of {', '.join(measures)}: {why}." for why, measures in names.items()]


def _categories(before: Json, after: Json) -> list[dict[str, Any]]:
    """One row for each category: of scores with the shares as numbers too (for the bars), else of rewards."""
    judged = bool(before.get("by_category") or after.get("by_category"))
    key = "by_category" if judged else "reward_by_category"
    starts, ends = before.get(key) or {}, after.get(key) or {}
    rows = []
    for name in dict.fromkeys([*starts, *ends]):
        start, end = starts.get(name), ends.get(name)
        row = {"name": name.replace("_", " "), "before": _number(start), "after": _number(end)}
        row["difference"] = _number(_difference(start, end), signed=True)
        rows.append(row | ({"start": start or 0.0, "end": end or 0.0} if judged else {}))
    return rows


def _phases(lines: Sequence[Json]) -> list[dict[str, str]]:
    """Where the time went: mean seconds per iteration, share and total of each phase, most first, with a sum."""
    found = {name: y for name, (_, y) in curves.phases(lines).items()}
    whole = sum(float(y.sum()) for y in found.values())
    if not whole:
        return []
    ordered = sorted(found, key=lambda name: -float(found[name].sum()))
    rows = [(name, float(found[name].mean()), float(found[name].sum())) for name in ordered]
    rows.append(("all", sum(mean for _, mean, _ in rows), whole))
    return [
        {"name": name, "mean": f"{mean:.3f} s", "share": f"{100 * total / whole:.0f} %", "total": f"{total:,.1f} s"}
        for name, mean, total in rows
    ]


def _first_update(lines: Sequence[Json]) -> list[dict[str, str]]:
    """Return the largest |log ratio| at first updates, over the run, of text and image."""
    rows = []
    for name, key in (("text", "text_log_ratio_max"), ("image", "image_log_ratio_max")):
        _, values = curves.series(lines, f"first_update.{key}")
        if len(values):
            rows.append({"name": name, "value": f"{np.abs(values).max():.2g}"})
    return rows
