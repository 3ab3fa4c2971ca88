"""Evaluations side by side: each with its own interval, and its paired differences to the first.

What was measured otherwise (another suite's version, judge, detector, wording) is marked with a dagger and a sentence;
what shares no prompt with the first is refused, because nothing of it can be paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unigrpo.evaluation.results import differences
from unigrpo.files import parse_json_object, read_json_object, write_text_atomic
from unigrpo.plurals import counted
from unigrpo.ranges import ConfigError, shown
from unigrpo.reports.evaluation_page import rendered
from unigrpo.reports.evaluations_compared import compared_content
from unigrpo.runs import eval_folder
from unigrpo.runs.eval_folder import different, leaves

MOST = 12
"""Evaluations in one table."""
MEASURED_BY = ("suite.name", "suite.version", "suite.variant", "examiner", "headline.key", "headline.average")
"""Keys of a result that must be the same for two figures to mean the same."""
IN_WORDS = {
    "suite.name": "another suite",
    "suite.version": "other prompts (their hash differs)",
    "suite.variant": "another wording of the prompts",
    "examiner": "another examiner",
    "headline.key": "another headline",
    "headline.average": "another average",
}
Json = Mapping[str, Any]


@dataclass(frozen=True)
class Evaluated:
    """An evaluation that was written: its name on the page, result and records."""

    name: str
    result: Json
    records: Sequence[Json]


def is_evaluation(path: Path) -> bool:
    """Whether a path is a result of ``eval``, or a folder with one."""
    return path.name == eval_folder.RESULT or (path / eval_folder.RESULT).is_file()


def read(paths: Sequence[Path]) -> list[Evaluated]:
    """Read evaluations; ConfigError where one is not there or holds no figures."""
    if not 2 <= len(paths) <= MOST:
        raise ConfigError(f"{counted(len(paths), 'evaluation')}: name 2 to {MOST} of them")
    folders = [path.parent if path.name == eval_folder.RESULT else path for path in paths]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError("an evaluation is named twice: name different ones")
    names = [folder.resolve().name for folder in folders]
    long = [f"{folder.resolve().parent.name}/{name}" for folder, name in zip(folders, names, strict=True)]
    told = [name if names.count(name) == 1 else other for name, other in zip(names, long, strict=True)]
    return [_read(folder, name) for folder, name in zip(folders, told, strict=True)]


def _read(folder: Path, name: str) -> Evaluated:
    if not is_evaluation(folder):
        raise ConfigError(f"{folder} has no {eval_folder.RESULT}: name folders that eval wrote (all of them, or runs)")
    result = read_json_object(folder / eval_folder.RESULT)
    if "headline" not in result:
        raise ConfigError(
            f"{folder / eval_folder.RESULT} is a table of several guidances: name one of its folders guidance-..."
        )
    path = folder / eval_folder.RECORDS
    if not path.is_file():
        raise ConfigError(f"{path} is not there: differences are paired by its records; put it back")
    lines = path.read_text(encoding="utf-8").splitlines()
    return Evaluated(name, result, [parse_json_object(line, f"{path}, line {n}") for n, line in enumerate(lines, 1)])


def compare(found: Sequence[Evaluated]) -> dict[str, Any]:
    """The table of some evaluations, plain data: rows, differences to the first, marks in words, settings that differ.

    ConfigError where one shares no prompt with the first.
    """
    first, rows, marks = found[0], list[dict[str, Any]](), list[str]()
    for one in found:
        paired = {} if one is first else differences(first.records, one.records, *_headline(first))
        if one is not first and not paired:
            raise ConfigError(
                f"{one.name} ({one.result['suite']['name']}) and {first.name} ({first.result['suite']['name']}) share "
                "no prompt, so nothing can be paired: compare evaluations of one suite"
            )
        why = [] if one is first else marks_of(first, one)
        marks += [f"{one.name}: {text}" for text in why]
        rows.append(_row(one) | {"differences": paired, "marks": why})
    return {"rows": rows, "marks": marks, "differing": _differing(found)}


def _headline(one: Evaluated) -> tuple[str, Any]:
    return one.result["headline"]["key"], one.result["headline"]["average"]


def marks_of(first: Evaluated, other: Evaluated) -> list[str]:
    """Why the figures of another evaluation do not mean what the first's mean; [] where they do."""
    found = []
    for key in MEASURED_BY:
        old, new = _at(first.result, key), _at(other.result, key)
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping) and (inner := different(old, new)) is not None:
            name, old, new = inner
            found.append(f"{IN_WORDS[key]}: {name} is {shown(new)}, and {shown(old)} in {first.name}")
        else:
            found.append(f"{IN_WORDS[key]}: {shown(new)}, and {shown(old)} in {first.name}")
    versions = [one.result["versions"]["examined"].get("unigrpo") for one in (first, other)]
    if versions[0] != versions[1]:
        found.append(f"examined by unigrpo {versions[1]}, and by {versions[0]} in {first.name}")
    return found


def _at(value: Any, key: str) -> Any:
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _row(one: Evaluated) -> dict[str, Any]:
    result = one.result
    kept = ("headline", "categories", "figures", "pictures", "prompts", "missing", "failed")
    return {"name": one.name, "model": result["model"], **{key: result[key] for key in kept}}


def _differing(found: Sequence[Evaluated]) -> list[list[Any]]:
    """The settings that are not the same everywhere: [key, values in the order of the evaluations]."""
    said = [{"rounds": 1, **one.result["settings"]} if one.result["settings"] else {} for one in found]
    flat = [dict(leaves({"model": one.result["model"], **settings})) for one, settings in zip(found, said, strict=True)]
    rows = [[key, [one.get(key) for one in flat]] for key in dict.fromkeys(key for one in flat for key in one)]
    return [[key, values] for key, values in rows if any(value != values[0] for value in values)]


def write_page(path: Path, title: str, table: Json) -> Path:
    """Write the page of a table."""
    return write_text_atomic(path, rendered("evaluations.html.jinja", title=title, **compared_content(table)))
