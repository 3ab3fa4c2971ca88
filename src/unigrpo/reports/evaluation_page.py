"""The page of an evaluation: headline, categories with intervals, the paper's rows, failures and successes, settings.

One file without outside resources, made from the result, its records and the folder of pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from unigrpo.files import write_text_atomic
from unigrpo.plurals import counted
from unigrpo.reports import rounds
from unigrpo.reports.paper_rows import beside
from unigrpo.reports.pictures import PIXELATED, thumbnail

FAILURES, SUCCESSES, UNANSWERED = 24, 8, 8
"""Pictures of each kind on the page."""
SOURCES = "sources"
"""The folder beside a prompt's ``samples`` that holds what it gave."""
COUNTED = ("failed", "unanswered")
"""Further figures that the page says otherwise, with the files that no examiner could be shown."""
Json = Mapping[str, Any]


def write_page(path: Path, result: Json, records: Sequence[Json], folder: Path) -> Path:
    """Write the page of a result; ``folder`` holds the pictures that ``records`` name."""
    return write_text_atomic(path, rendered("evaluation.html.jinja", **page_content(result, records, folder)))


def rendered(template: str, **content: Any) -> str:
    """A template of this package, filled; all texts are escaped."""
    import jinja2

    source = resources.files("unigrpo.reports").joinpath("templates")
    loader = jinja2.FunctionLoader(lambda name: source.joinpath(name).read_text(encoding="utf-8"))
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(**content)


def page_content(result: Json, records: Sequence[Json], folder: Path) -> dict[str, Any]:
    """All that the template shows, as text."""
    judged = [r for r in records if r["failed"] is None]
    wrong = [r for r in judged if not _right(r, result)]
    right = [r for r in judged if _right(r, result)]
    headline = result["headline"]
    return {
        "title": f"{result['model']['name']} on {result['suite']['name']}",
        "headline": sentence(headline),
        "status": status(result),
        "notices": notices(result),
        "name": headline["name"],
        "categories": [_category(name, entry) for name, entry in result["categories"].items()],
        "without": _without(result),
        "figures": [_figure(entry) for key, entry in result["figures"].items() if key != headline["key"]],
        "further": [
            (name.replace("_", " "), _plain(value))
            for name, value in result["further"].items()
            if name not in (*result["figures"], *result["categories"], *COUNTED)  # where they have an interval
            and name not in rounds.in_table(result)
        ],
        "rounds": rounds.table(result),
        "planned": "plan_right" in result["figures"],
        "paper": beside(result["suite"].get("paper")),
        "average": AVERAGES[headline["average"]],
        "verdicts": _verdicts(result),
        "failures": [_card(r, folder) for r in _spread(wrong, FAILURES)],
        "wrong": len(wrong),
        "successes": [_card(r, folder) for r in _spread(right, SUCCESSES)],
        "right": len(right),
        "unanswered": [_card(r, folder) for r in _spread([r for r in records if r["failed"]], UNANSWERED)],
        "settings": _settings(result),
    }


AVERAGES = {"categories": "mean over the categories", "pictures": "mean over the pictures"}


def sentence(headline: Json) -> str:
    """A headline in words, with its interval or why there is none."""
    name = headline["name"][:1].upper() + headline["name"][1:]
    if headline["value"] is None:
        return f"No {headline['name']}: {headline['why']}."
    return f"{name} {headline['value']:.3f} ({in_words(headline)})"


def in_words(entry: Json) -> str:
    """The interval of a figure in words, or why there is none."""
    if entry["low"] is None or entry["high"] is None:
        return f"no interval: {entry.get('why') or 'unknown'}"
    return f"95 % interval {entry['low']:.3f} to {entry['high']:.3f}"


def status(result: Json) -> str:
    """How much was examined."""
    pictures, prompts = result["pictures"], result["prompts"]
    return f"{counted(pictures, 'picture', ',')} of {counted(prompts, 'prompt', ',')}."


def notices(result: Json) -> list[str]:
    """What readers of the figures must know first: what this is not, and what is missing."""
    found = [result["suite"]["note"]] if result["suite"].get("note") else []
    failed, missing, odd = result["failed"], result["missing"], result["odd_files"]
    if failed["count"]:
        reason, count = failed["reasons"][0]
        often = f"; most often ({count} times)" if count > 1 else "; for example" if failed["count"] > 1 else ""
        found.append(
            f"{failed['count']} of {counted(result['pictures'], 'picture')} have no answer and count nowhere"
            f"{often}: {reason}."
        )
    if missing:
        found.append(f"{missing} of {counted(missing + result['pictures'], 'picture')} are missing and count nowhere.")
    if odd:
        found.append(f"{counted(len(odd), 'other file')} beside the pictures ({odd[0]}) are left out.")
    if result["suite"]["variant"] != "as written":
        found.append(f"Prompts: {result['suite']['variant']}.")
    if result["settings"] is None:
        found.append("How the pictures were drawn is not known: their folder has no eval.json.")
    return found


def _verdicts(result: Json) -> str:
    """What the grids show: right and wrong pictures, exams, or the ends of a figure without a right and wrong."""
    return {"correct": "right", "exam": "exam"}.get(result["headline"]["key"], "figure")


def _right(record: Json, result: Json) -> bool:
    """Whether a picture is fully right; of a figure that knows no right, whether it is above the mean."""
    if record["correct"] is not None:
        return bool(record["correct"])
    if record["exam"] is not None:
        return record["exam"] >= 1 - 1e-9 and not record["reasons"]
    mean = result["headline"]["value"]
    value = record["values"].get(result["headline"]["key"])
    return mean is None or value is None or value >= mean


def _spread(records: Sequence[Json], most: int) -> list[Json]:
    """Some of them, categories in turn and the worst of each first; in the order of the prompts where there are few."""
    groups: dict[str, list[Json]] = {}
    for record in sorted(records, key=lambda r: (1.0 if r["exam"] is None else r["exam"], r["position"], r["sample"])):
        groups.setdefault(record["category"], []).append(record)
    turns: Iterator[Json | None] = (record for turn in zip_longest(*groups.values()) for record in turn)
    return [record for record in turns if record is not None][:most]


def _card(record: Json, folder: Path) -> dict[str, Any]:
    """A picture with all that is said of it."""
    values = {name: value for name, value in record["values"].items() if value is not None}
    marks = [] if record["exam"] is None else [f"exam {record['exam']:.2f}"]
    marks += [f"{name.replace('_', ' ')} {value:.3g}" for name, value in values.items()]
    picture, side = _picture(folder / record["picture"])
    return {
        "image": picture,
        "pixelated": side <= PIXELATED,
        "given": _given((folder / record["picture"]).parent.parent / SOURCES),
        "prompt": record["prompt"],
        "category": str(record["category"]).replace("_", " "),
        "verdict": record["correct"],
        "marks": ", ".join(marks),
        "reasons": [record["failed"]] if record["failed"] else record["reasons"],
        "thoughts": rounds.thoughts(record),
        "earlier": _earlier(record, folder),
        "turn": rounds.last_turn(record),
        "who": f"prompt {record['position']}, sample {record['sample']}",
    }


def _earlier(record: Json, folder: Path) -> list[dict[str, Any]]:
    """The pictures before the one that stands, with the number of their round, as far as they can be read."""
    found = []
    for turn, one in enumerate(record.get("rounds") or (), start=1):
        if one.get("picture") in (None, record["picture"]):
            continue
        image, side = _picture(folder / one["picture"])
        found += [{"turn": turn, "image": image, "pixelated": side <= PIXELATED}] if image else []
    return found


def _given(folder: Path) -> list[dict[str, Any]]:
    """The pictures that came with a prompt (an edit's sources), as far as they can be read."""
    found = [_picture(path) for path in sorted(folder.glob("*.png"))]
    return [{"image": image, "pixelated": side <= PIXELATED} for image, side in found if image]


def _picture(path: Path) -> tuple[str, int]:
    """A picture as a link that holds it, and its longest side; ("", 0) where it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError):
        return "", 0
    return thumbnail(pixels), max(pixels.shape[:2])


def number(value: Any, digits: int = 3) -> str:
    """A figure as tables show it."""
    return f"{value:.{digits}f}" if isinstance(value, int | float) and not isinstance(value, bool) else "-"


def interval(entry: Json) -> str:
    """An interval as tables show it."""
    return "-" if entry["low"] is None else f"{entry['low']:.3f} to {entry['high']:.3f}"


def _category(name: str, entry: Json) -> dict[str, Any]:
    row = {"name": name.replace("_", " "), "value": number(entry["value"]), "interval": interval(entry)}
    row |= {"prompts": entry["prompts"], "pictures": entry["pictures"], "failed": entry["failed"]}
    inside = [v for v in (entry["value"], entry["low"], entry["high"]) if v is not None]
    bar = bool(inside) and all(0 <= v <= 1 for v in inside)
    return row | {"bar": bar, "at": entry["value"], "low": entry["low"], "high": entry["high"]}


def _figure(entry: Json) -> dict[str, str]:
    return {"name": entry["name"], "value": number(entry["value"]), "interval": interval(entry)}


def _without(result: Json) -> list[str]:
    """A sentence for every reason for which categories have no interval."""
    names: dict[str, list[str]] = {}
    for name, entry in result["categories"].items():
        if entry["low"] is None and entry.get("why"):
            names.setdefault(entry["why"], []).append(name.replace("_", " "))
    return [f"No interval of {', '.join(which)}: {why}." for why, which in names.items()]


def _plain(value: Any) -> str:
    """A further figure in words: numbers short, lists and objects in lines of their own kind."""
    if isinstance(value, Mapping):
        return ", ".join(f"{str(key).replace('_', ' ')} {_plain(item)}" for key, item in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "-"
    return f"{value:.4g}" if isinstance(value, float) else "unknown" if value is None else str(value)


def _settings(result: Json) -> list[tuple[str, list[tuple[str, str]]]]:
    """Everything that the figures depend on, by section."""
    sections = {
        "Model": result["model"],
        "Suite": {key: value for key, value in result["suite"].items() if key != "paper" and value not in ("", None)},
        "Drawing": result["settings"] or {"settings": "not known"},
        "Examiner": result["examiner"],
        "Versions": {**(result["versions"]["examined"] or {}), "drawn with": result["versions"]["drawn"]},
        "Times": result["times"],
    }
    return [(n, [(str(k).replace("_", " "), _plain(v)) for k, v in entries.items()]) for n, entries in sections.items()]
