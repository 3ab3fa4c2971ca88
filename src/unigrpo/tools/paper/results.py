"""From the folder of a finished cell to its result: plain numbers, small enough to keep in the repository."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unigrpo.reports import runlog
from unigrpo.reports.differences import COLLAPSED
from unigrpo.tools.paper.cells import Cell

FIGURES = ("score", "exam_score", "plan_right", "follow", "parsable", "reward", "by_category", "n")
EVALUATED = {"correct": "score", "exam": "exam_score"}
"""What a run's summary calls the figures of an evaluation's result."""
NOT_FINITE = ("not finite", "loss is nan", "loss is inf", "loss is -inf", "must be a finite number")
"""What an error says when training went off into nowhere."""
TOLD = 2
"""The exit code of errors that are told."""
NOTHING: Mapping[str, Any] = dict.fromkeys((*FIGURES, "canaries", "before", "paired", "seconds", "picture")) | {
    "curve": []
}
"""All that a result may say, for cells that say less."""


def read_cell(cell: Cell, folder: Path, code: int) -> dict[str, Any] | None:
    """The result of a cell whose command has ended with ``code``; None where it has failed."""
    return _run(folder, code) if cell.trains else _evaluation(folder, code)


def _evaluation(folder: Path, code: int) -> dict[str, Any] | None:
    result = runlog.read_json(folder / "result.json")
    if code != 0 or not result:
        return None
    known: dict[str, Any] = {str(EVALUATED.get(key, key)): entry["value"] for key, entry in result["figures"].items()}
    categories = {name: entry["value"] for name, entry in result["categories"].items()}
    figures = _figures({**known, "by_category": categories, "n": result["pictures"]})
    return {"status": "done", "reason": None, **figures, "curve": [], "picture": None}


def _run(folder: Path, code: int) -> dict[str, Any] | None:
    """Of a run of several stages, the last evaluation counts, and the curves follow each other."""
    stages = [folder] if runlog.read_metrics(folder) else sorted(f for f in folder.glob("[0-9]*-*") if f.is_dir())
    if not stages:
        return None
    lines = [line for stage in stages for line in runlog.read_metrics(stage)]
    summary = runlog.read_json(stages[-1] / runlog.SUMMARY)
    first = runlog.read_json(stages[0] / runlog.SUMMARY).get("before", {})
    untrained = [_point(0, {"validation": first["validation"]})] if first.get("validation") else []
    curve = untrained + [_point(number, line) for number, line in enumerate(lines, 1)]
    common = {"seconds": round(sum(line["seconds"]["total"] for line in lines), 1), "curve": curve}
    if code == 0 and "after" in summary:
        after = summary["after"]
        fallen = first and after["score"] < COLLAPSED * first["score"]
        return {
            "status": "collapsed" if fallen else "done",
            "reason": f"the score fell from {first['score']:.3f} to {after['score']:.3f}" if fallen else None,
            **_figures(after),
            "before": _figures(first),
            "paired": summary.get("paired") if len(stages) == 1 else None,
            **common,
            "picture": str(runlog.evaluation_file(stages[-1], "after", "png")),
        }
    said = last_words(folder.with_suffix(".log"))
    if code == TOLD and lines and any(part in said for part in NOT_FINITE):
        return {"status": "collapsed", "reason": said, **dict.fromkeys(FIGURES), **common, "picture": None}
    return None


def last_words(log: Path) -> str:
    """The last line of a log that says something."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    said = [line.strip() for line in lines if line.strip()]
    return said[-1].removeprefix("unigrpo: error: ") if said else "not run"


def _figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {name: summary.get(name) for name in FIGURES} | {"canaries": summary.get("canaries", {})}


def _point(number: int, line: Mapping[str, Any]) -> dict[str, Any]:
    """One iteration of a curve; 0 is the model before training, of which only a validation is known."""
    seen = line.get("validation")
    kept = None if seen is None else {name: seen.get(name) for name in ("reward", "score", "exam_score", "follow")}
    return {
        "iteration": number,
        "reward": line.get("reward_mean"),
        "gold": line.get("reward_parts", {}).get("correct"),
        "flow_mse": line.get("flow", {}).get("mse"),
        "edge_energy": line.get("canaries", {}).get("edge_energy"),
        "colour_diversity": line.get("canaries", {}).get("colour_diversity"),
        "validation": kept,
    }
