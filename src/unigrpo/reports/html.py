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
from unigrpo.reports import alarms, curves, pictures, runlog
from unigrpo.reports.differences import interval_of, trusted, why_none
from unigrpo.reports.headline import headline, status
from unigrpo.reports.rounds import OF_ROUNDS

MEASURES = (
    ("score", "score"),
    ("exam_score", "exam score"),
    ("reward", "reward"),
    ("plan_right", "plan right"),
    ("follow", "follow"),
    ("parsable", "parsable share"),
    ("changed", "change done"),
    ("kept", "rest kept"),
    *((key, name) for key, (name, _) in OF_ROUNDS.items()),
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
    paired = trusted(summary, _prompts(run_dir, before))
    found = alarms.raised(summary, lines)
    done, total = _iterations(lines), recipe.get("iterations")
    drawn, pairs = curves.charts([*start(before), *lines], summary.get("bands") or {}), pictures.pairs(run_dir)
    return {
        "name": str(recipe.get("name") or run_dir.resolve().name),
        "folder": run_dir.resolve().name,
        "headline": headline(before, after, paired, lines, found, summary.get("stopped")),
        "alarms": found,
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
        "in_rounds": any("rounds" in found for found in (before, after, *lines)),
        "recipe": recipe_text,
        "environment": _environment(run_dir),
    }


def _prompts(run_dir: Path, before: Json) -> int | None:
    """How many prompts the evaluation before training was of; None where its records are not all there."""
    records = runlog.read_records(runlog.evaluation_file(run_dir, "before", "jsonl"))
    whole = len(records) == before.get("n") and all("position" in record for record in records)
    return len({record["position"] for record in records}) if records and whole else None


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
