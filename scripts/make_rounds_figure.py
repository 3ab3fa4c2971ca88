"""Draw what two rounds look like before and after training, of two evaluations of the same prompts (`unigrpo eval`).

    unigrpo eval --model builtin:shapes-rounds --rounds 2 --limit 60 --samples 1 --max-think-tokens 48 --out BEFORE
    unigrpo eval --model RUN --rounds 2 --limit 60 --samples 1 --max-think-tokens 48 --out AFTER
    python scripts/make_rounds_figure.py BEFORE AFTER docs/rounds.png

Shown are the first prompts, one a category, whose first picture was wrong before training: those that a look is for.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from make_readme_figure import INK, RIGHT, WRONG

Record = dict[str, Any]


def records_of(folder: Path) -> list[Record]:
    """The samples of an evaluation, in order."""
    return [json.loads(line) for line in (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()]


def chosen(before: list[Record], rows: int) -> list[int]:
    """The first sample of each category whose first picture is wrong."""
    found: dict[str, int] = {}
    for index, record in enumerate(before):
        if len(record.get("rounds", ())) > 1 and not record["rounds"][0]["correct"]:
            found.setdefault(record["category"], index)
    return sorted(found.values())[:rows]


def show(axes: Axes, folder: Path, one: Record) -> None:
    """A picture in a frame of its verdict, with what was thought before it."""
    axes.imshow(imread(folder / one["picture"]), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(edgecolor=RIGHT if one["correct"] else WRONG, linewidth=3)
    words = (one["thinking"] or "").replace("<think>", "").replace("</think>", "").strip()
    axes.set_xlabel("\n".join(textwrap.wrap(words, 25)), fontsize=8.5, color=INK)


def draw(before: Path, after: Path, rows: int) -> Figure:
    """The whole figure: a row a prompt, two pictures before training and two after."""
    sides = [(folder, records_of(folder)) for folder in (before, after)]
    places = chosen(sides[0][1], rows)
    figure, grid = plt.subplots(len(places), 4, figsize=(10, 3.1 * len(places)), squeeze=False, layout="constrained")
    for row, place in zip(grid, places, strict=True):
        for side, (folder, records) in enumerate(sides):
            for turn in range(2):
                show(row[2 * side + turn], folder, records[place]["rounds"][turn])
        prompt = "\n".join(textwrap.wrap(sides[0][1][place]["prompt"], 22))
        row[0].set_ylabel(prompt, fontsize=11, color=INK, fontweight="bold")
    titles = ("before training:\nplan, first picture", "critique, second picture")
    for axes, title in zip(grid[0], (*titles, "after training:\nplan, first picture", titles[1]), strict=True):
        axes.set_title(title, fontsize=11, color=INK)
    return figure


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=4)
    asked = parser.parse_args()
    draw(asked.before, asked.after, asked.rows).savefig(asked.out, dpi=110, facecolor="white")
    print(f"wrote {asked.out}")


if __name__ == "__main__":
    main()
