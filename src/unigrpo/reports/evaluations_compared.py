"""Evaluations side by side, as a page and in lines for a terminal (the table comes from ``runs.comparing``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unigrpo.reports.evaluation_page import interval, number

Json = Mapping[str, Any]
DAGGER = "†"


def compared_content(table: Json) -> dict[str, Any]:
    """All that the template shows, as text."""
    rows, first = table["rows"], table["rows"][0]
    figures = dict.fromkeys([first["headline"]["key"], *(key for row in rows for key in row["figures"])])
    names = {
        key: next(r["figures"][key]["name"] for r in rows if key in r["figures"]) for key in figures if _in(rows, key)
    }
    return {
        "first": first["name"],
        "names": [row["name"] for row in rows],
        "rows": [_row(row, names) for row in rows],
        "columns": list(names.values()),
        "categories": _categories(rows),
        "differences": [line for row in rows[1:] for line in _differences(row)],
        "without": _without(rows),
        "marks": [f"{DAGGER} {text}." for text in table["marks"]],
        "differing": [
            (key.replace("_", " "), [_short(value) for value in values]) for key, values in table["differing"]
        ],
    }


def _in(rows: Any, key: str) -> bool:
    return any(key in row["figures"] for row in rows)


def marked(row: Json) -> str:
    """The name of a row, with a dagger where its figures mean something else."""
    return f"{row['name']} {DAGGER}" if row["marks"] else row["name"]


def _row(row: Json, names: Mapping[str, str]) -> dict[str, Any]:
    cells = []
    for key in names:
        entry = row["headline"] if key == row["headline"]["key"] else row["figures"].get(key)
        cells.append(("-", "") if entry is None else (number(entry["value"]), _between(entry)))
    return {"name": marked(row), "cells": cells, "pictures": row["pictures"], "prompts": row["prompts"]}


def _between(entry: Json) -> str:
    return "" if entry["low"] is None else interval(entry)


def _categories(rows: Any) -> list[tuple[str, list[tuple[str, str]]]]:
    """The headline's figure by category: a row for each category, a cell for each evaluation."""
    found = []
    for name in dict.fromkeys(name for row in rows for name in row["categories"]):
        entries = [row["categories"].get(name) for row in rows]
        cells = [("-", "") if e is None else (number(e["value"]), _between(e)) for e in entries]
        found.append((name.replace("_", " "), cells))
    return found


def _differences(row: Json) -> list[dict[str, str]]:
    """A line for every figure that is paired with the first's."""
    lines = []
    for entry in row["differences"].values():
        low, high = entry["low"], entry["high"]
        between = "-" if low is None else f"{low:+.3f} to {high:+.3f}"
        line = {"name": marked(row), "figure": entry["name"], "difference": f"{entry['difference']:+.3f}"}
        lines.append({**line, "interval": between, "prompts": str(entry["prompts"])})
    return lines


def _without(rows: Any) -> list[str]:
    """A sentence for every reason for which a headline or a difference has no interval."""
    whys: dict[str, list[str]] = {}
    for row in rows:
        entries = [(f"{row['name']}", row["headline"])]
        entries += [(f"the difference of {row['name']} in {e['name']}", e) for e in row["differences"].values()]
        for what, entry in entries:
            if entry["low"] is None and entry.get("why"):
                whys.setdefault(entry["why"], []).append(what)
    return [f"No interval of {', '.join(which)}: {why}." for why, which in whys.items()]


def _short(value: Any) -> str:
    text = "-" if value is None or value == [] else f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else f"{text[:16]}…"


def lines_of(table: Json) -> list[str]:
    """The table for a terminal."""
    content, lines = compared_content(table), list[str]()
    for row in content["rows"]:
        cells = zip(content["columns"], row["cells"], strict=True)
        lines.append(f"  {row['name']:24} " + ", ".join(f"{n} {v}{f' ({b})' if b else ''}" for n, (v, b) in cells))
    for line in content["differences"]:
        lines.append(
            f"  {line['name']:24} {line['figure']:14} {line['difference']} to {content['first']}   {line['interval']}"
        )
    return [*lines, *content["without"], *content["marks"]]
