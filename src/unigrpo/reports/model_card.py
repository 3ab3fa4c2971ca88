"""The README of an exported model: what it is, what it was trained for, how it did, and how to load it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from unigrpo.reports.differences import interval_of, trusted, why_none

TEMPLATE = "model_card.md.jinja"
MEASURES = {
    "score": "score",
    "exam_score": "exam score",
    "reward": "reward",
    "plan_right": "plan right",
    "follow": "picture follows plan",
    "parsable": "plan parsable",
}


@dataclass(frozen=True)
class Card:
    """All that a card says; ``base`` is a name that means the same to everybody (no path of this machine)."""

    name: str
    what: str
    facts: Sequence[tuple[str, str]]
    base: str
    base_words: str
    precision: str
    license: str | None
    license_words: str
    adapter: bool
    load_name: str
    evaluation: str
    figures: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """The text of README.md."""
        import jinja2

        text = (resources.files("unigrpo") / "reports" / "templates" / TEMPLATE).read_text(encoding="utf-8")
        environment = jinja2.Environment(
            autoescape=False,  # Markdown, of our own words and names
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", self.base) is not None
        folder = not self.base.startswith(("builtin:", "init:")) and "/checkpoints/" not in self.base
        known = {"base_is_hub_id": hub_id, "base_is_folder": folder}
        made = environment.from_string(text).render(vars(self) | known)
        return re.sub(r"\n{3,}", "\n\n", made).rstrip() + "\n"


def figures_of(summary: Mapping[str, Any]) -> list[list[str]]:
    """Rows (measure, before, after, difference, interval) of a run's evaluations/summary.json; [] without both sides.

    An interval that the run does not have (too few prompts for one) is said to be missing.
    """
    before, after, paired = summary.get("before") or {}, summary.get("after") or {}, trusted(summary)
    rows = []
    for key, name in MEASURES.items():
        first, last = before.get(key), after.get(key)
        if not isinstance(first, int | float) or not isinstance(last, int | float):
            continue
        entry = paired.get(key) or {}
        ends = interval_of(entry)
        why = why_none(entry) or "not measured in pairs"
        interval = f"none: {why}" if ends is None else f"{ends[0]:+.3f} to {ends[1]:+.3f}"
        change = entry.get("difference")  # over what both sides have
        change = last - first if not isinstance(change, int | float) else change
        rows.append([name, f"{first:.3f}", f"{last:.3f}", f"{change:+.3f}", interval])
    return rows


def license_of(readme: str) -> str | None:
    """The license that a model's README names in its front matter (``license: apache-2.0``)."""
    front = re.match(r"---\n(.*?)\n---", readme, flags=re.DOTALL)
    named = re.search(r"^license:[ \t]*([\w.-]+)[ \t]*$", front[1], flags=re.MULTILINE) if front else None
    return named[1] if named else None
