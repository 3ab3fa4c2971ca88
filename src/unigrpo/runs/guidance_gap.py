"""The guidance gap: one model at several scales of guidance, and its paired differences to the first of them.

For a model that was trained without guidance it answers whether that still helps when guidance is on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unigrpo.files import write_json_atomic
from unigrpo.reports.evaluations_compared import lines_of
from unigrpo.runs import eval_folder
from unigrpo.runs.comparing import Evaluated, compare, write_page
from unigrpo.runs.evaluations import Outcome
from unigrpo.runs.folders import is_fresh, must_be_new, usable


@dataclass(frozen=True)
class Told:
    """The table, and the same in lines for a terminal."""

    result: dict[str, Any]
    lines: list[str]


def check_folder(out: Path) -> None:
    """ConfigError where a folder holds anything but guidances that were drawn before."""
    scales = list(out.glob("guidance-*"))
    begun = any((scale / eval_folder.PLAN).is_file() for scale in scales)
    killed = bool(scales) and len(scales) == len(list(out.iterdir())) and all(map(is_fresh, scales))
    if not begun and not killed:  # killed as the first one began
        must_be_new(out)


def write(out: Path, outcomes: Mapping[str, Outcome]) -> Told:
    """Write the table of some scales (by their names) and its page into a folder."""
    usable(out)
    found = [Evaluated(f"guidance {scale}", one.result, one.records) for scale, one in outcomes.items()]
    table, first = compare(found), found[0].result
    kept = {key: first[key] for key in ("format", "model", "suite", "examiner", "versions")}
    settings = {key: value for key, value in first["settings"].items() if key != "guidance"}
    result = {**kept, "settings": settings, "guidance": table, "times": first["times"]}
    write_json_atomic(out / eval_folder.RESULT, result)
    title = f"{first['model']['name']} on {first['suite']['name']} by guidance"
    write_page(out / eval_folder.PAGE, title, table)
    return Told(result, lines_of(table))
