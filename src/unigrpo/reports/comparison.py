"""Several runs on one page: their curves over each other, their figures, what differs in their recipes, last pictures.

The page is one file without outside resources, made from the run folders alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unigrpo.files import write_text_atomic
from unigrpo.plurals import counted
from unigrpo.ranges import ConfigError
from unigrpo.recipe import parse, stage_folders
from unigrpo.reports import curves, pictures, runlog
from unigrpo.reports.captions import smooth
from unigrpo.reports.differences import interval_of, trusted, why_none
from unigrpo.reports.rendering import CYCLE, Chart, svg
from unigrpo.reports.rounds import OF_ROUNDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = len(CYCLE)
"""Runs on one page: there are no more colours that can be told apart."""
CURVES = (
    ("Training reward", "reward_mean"),
    ("Validation: score", "validation.score"),
    ("Validation: reward", "validation.reward"),
    ("Validation: plan right", "validation.plan_right"),
    ("Validation: picture follows plan", "validation.follow"),
    ("Training reward of first pictures", "score_first"),
    ("Training reward: last pictures less first ones", "revision"),
    ("Validation: score of first pictures", "validation.score_first"),
    ("Validation: gained by looking", "validation.revision"),
    ("Pictures of a sample", "rounds"),
    ("Entropy of the thinking", "text.entropy"),
    ("Tokens of a thinking", "text.think_length"),
    ("Share of clipped tokens", "text.clip_fraction"),
    ("Share of clipped denoising steps", "flow.clip_fraction"),
    ("Distance of velocities to the start", "flow.mse"),
    ("Gradient norm: reasoning", "grad_norm.reasoning"),
    ("Gradient norm: denoising", "grad_norm.denoising"),
    ("Loss of the words", "loss.cross_entropy"),
    ("Loss of the pictures", "loss.flow_matching"),
    ("Samples per second", "samples_per_second"),
)
MEASURES = (
    ("score", "score"),
    ("reward", "reward"),
    ("plan_right", "plan right"),
    ("follow", "follows plan"),
    *((key, name) for key, (name, _) in OF_ROUNDS.items()),
)


@dataclass(frozen=True)
class Compared:
    """One run: its name on the page, its recipe, its metric lines (stages one after the other), its last summary."""

    name: str
    folder: Path
    recipe: Mapping[str, Any]
    lines: list[dict[str, Any]]
    summary: Mapping[str, Any]


def read(folders: Sequence[Path]) -> list[Compared]:
    """Read run folders; ConfigError where one is none, or has nothing to show, or there are too many to tell apart."""
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError("a run is named twice: name different ones")
    if not 2 <= len(folders) <= MOST:
        many = counted(len(folders), "run")
        raise ConfigError(f"{many}: name 2 to {MOST} of them, as many as there are colours to tell apart")
    return [_read(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]


def _names(folders: Sequence[Path]) -> list[str]:
    """Folder names; with the folder above where two are called the same."""
    short = [folder.resolve().name for folder in folders]
    return [
        name if short.count(name) == 1 else f"{folder.resolve().parent.name}/{name}"
        for name, folder in zip(short, folders, strict=True)
    ]


def _read(folder: Path, name: str) -> Compared:
    if not (folder / runlog.RECIPE).is_file():
        raise ConfigError(
            f"{folder} is not the folder of a run (it has no {runlog.RECIPE}): name those that train made"
        )
    stages = stage_folders(folder) or [folder]
    begun = [stage for stage in stages if (stage / runlog.RECIPE).is_file()]
    lines: list[dict[str, Any]] = []
    for stage in begun:
        done = lines[-1]["iteration"] + 1 if lines else 0
        own = runlog.read_metrics(stage)
        if not lines and (before := runlog.read_json(stage / runlog.SUMMARY).get("before", {})).get("validation"):
            lines.append({"iteration": -1, "validation": before["validation"]})
        lines += [{**line, "iteration": line["iteration"] + done} for line in own]
    if not any("reward_mean" in line or "loss" in line for line in lines):
        raise ConfigError(f"{folder} has no finished iteration yet: wait for one")
    summaries = [runlog.read_json(stage / runlog.SUMMARY) for stage in begun]
    recipe = parse((begun[-1] / runlog.RECIPE).read_text(encoding="utf-8"))
    return Compared(name, begun[-1], recipe, lines, {**summaries[-1], "before": summaries[0].get("before")})


def write_comparison(runs: Sequence[Compared], path: Path) -> Path:
    """Write the page."""
    import jinja2

    template = resources.files("unigrpo.reports").joinpath("templates/compare.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    content = {
        "runs": [{"name": run.name, "colour": CYCLE[i], "seed": run.recipe.get("seed")} for i, run in enumerate(runs)],
        "differing": differing(runs),
        "figures": figures(runs),
        "charts": [(chart, svg(chart)) for chart in charts(runs)],
        "pictures": [(run.name, sheets[-1][1]) for run in runs if (sheets := pictures.evaluation_sheets(run.folder))],
    }
    return write_text_atomic(path, environment.from_string(template).render(content))


def charts(runs: Sequence[Compared]) -> list[Chart]:
    """One chart for every figure that at least one run has, all runs in each."""
    longest = max(line["iteration"] + 1 for run in runs for line in run.lines)
    found = []
    for title, path in CURVES:
        data = [(run.name, curves.series(run.lines, path)) for run in runs]
        if any(len(values) for _, (_, values) in data):
            ends = ", ".join(f"{name} {values[-1]:.3g}" for name, (_, values) in data if len(values))
            found.append(Chart(path, "compare", title, "", f"Last: {ends}.", _drawn(data), longest))
    return found


def _drawn(data: Sequence[tuple[str, curves.Series]]) -> Any:
    def draw(axes: Axes) -> None:
        for colour, (name, (x, y)) in zip(CYCLE, data, strict=False):
            if len(x) >= 8:
                axes.plot(x, y, color=colour, linewidth=0.6, alpha=0.25)
                axes.plot(x, smooth(y), color=colour, linewidth=1.8, label=name)
            elif len(x):
                axes.plot(x, y, color=colour, linewidth=1.8, marker="o", markersize=4, label=name)

    return draw


def differing(runs: Sequence[Compared]) -> list[tuple[str, list[str]]]:
    """The keys in which the recipes differ, and their values run by run."""
    flat = [dict(_leaves(run.recipe)) for run in runs]
    names = dict.fromkeys(name for recipe in flat for name in recipe)
    rows = [(name, [str(recipe.get(name, "")) for recipe in flat]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _leaves(recipe: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in recipe.items():
        inner = isinstance(value, Mapping) and value
        found += _leaves(value, f"{prefix}{key}.") if inner else [(f"{prefix}{key}", value)]
    return found


def figures(runs: Sequence[Compared]) -> list[dict[str, Any]]:
    """Before, after and their paired difference (with its interval, or why there is none) for every run and measure."""
    rows = []
    for run in runs:
        before, after = run.summary.get("before") or {}, run.summary.get("after") or {}
        paired = trusted(run.summary)
        for key, name in MEASURES:
            start, end, entry = before.get(key), after.get(key), paired.get(key)
            if start is None and end is None:
                continue
            found = interval_of(entry)
            interval = why_none(entry) if found is None else f"{found[0]:+.3f} to {found[1]:+.3f}"
            difference = None if start is None or end is None else end - start
            row = {"run": run.name, "measure": name, "before": start, "after": end}
            rows.append({**row, "difference": difference, "interval": interval})
    return rows
