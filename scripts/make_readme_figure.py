"""Draw a picture of a finished run for the README or a page: what it drew before and after, and how it learned.

python scripts/make_readme_figure.py RUN_DIR docs/demo.png
python scripts/make_readme_figure.py RUN_DIR docs/results/words.png --columns 5
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from unigrpo.reports import runlog
from unigrpo.reports.captions import course, smooth
from unigrpo.reports.curves import series
from unigrpo.reports.grids import Tile, read_tiles
from unigrpo.reports.html import start

RIGHT, WRONG, INK = "#1a7f37", "#c62828", "#24292f"


@dataclass(frozen=True)
class Shown:
    """A picture of the sheet, and what was read in it where its judge reads."""

    tile: Tile
    read: str | None


def shown(run_dir: Path, when: Literal["before", "after"]) -> list[Shown]:
    """The pictures of a sheet, with what their judge read in them where it reads."""
    tiles = read_tiles(runlog.evaluation_file(run_dir, when, "png"))
    records = runlog.read_records(runlog.evaluation_file(run_dir, when, "jsonl"))
    first = [record for record in records if record.get("sample") == 0]
    return [Shown(tile, record.get("read")) for tile, record in zip(tiles, first, strict=False)]


def chosen_pairs(run_dir: Path, columns: int) -> list[tuple[Shown, Shown]]:
    """Pairs of the same prompt: those that training changed first, then others, in the order of the evaluation."""
    pairs = list(zip(shown(run_dir, "before"), shown(run_dir, "after"), strict=True))
    return sorted(pairs, key=lambda pair: pair[0].tile.verdict == pair[1].tile.verdict)[:columns]


def show(axes: Axes, one: Shown, title: str) -> None:
    """One picture in a frame of its verdict, the thinking under it."""
    tile = one.tile
    axes.imshow(tile.picture, interpolation="nearest")
    colour = RIGHT if tile.verdict else WRONG
    for spine in axes.spines.values():
        spine.set(edgecolor=colour, linewidth=3)
    axes.set(xticks=[], yticks=[])
    if title:
        axes.set_title("\n".join(textwrap.wrap(title, 19)), fontsize=9, color=INK, fontweight="bold")
    plan = tile.thinking.replace("<think>", "").replace("</think>", "").strip()
    mark = "right: " if tile.verdict else "wrong: "
    lines = textwrap.wrap(mark + plan, 25)
    lines += [] if one.read is None else [f"the OCR reads {one.read or 'nothing'}"]
    axes.set_xlabel("\n".join(lines), fontsize=7, color=colour)


def rises(summary: Mapping[str, Any], keys: Mapping[str, str]) -> str:
    """What the evaluations before and after say of some measures, with the 95 % interval of the rise."""
    told = []
    for measure in (key.rpartition(".")[2] for key in keys):
        start, end, paired = summary["before"][measure], summary["after"][measure], summary["paired"][measure]
        interval = f"95 %: {paired['low']:+.2f} to {paired['high']:+.2f}"
        told.append(f"{measure.replace('_', ' ')} {start:.3f} → {end:.3f} ({interval})")
    return "\n".join(told)


def curve(axes: Axes, lines: list[dict[str, Any]], keys: dict[str, str], title: str, ends: str = "") -> None:
    """Lines over iterations; figures of every iteration are smoothed, with the raw ones behind. Titles say the ends."""
    for (key, label), colour in zip(keys.items(), ("#0969da", "#bc4c00"), strict=False):
        x, y = series(lines, key)
        if len(x) > 40:
            axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(x, smooth(y), color=colour, label=label)
        else:
            axes.plot(x, y, "o-", color=colour, markersize=3.5, label=label)
    found = {label: series(lines, key) for key, label in keys.items()}
    axes.set_title(f"{title}\n" + (ends or course(found).replace("; ", "\n")), fontsize=9, color=INK, loc="left")
    axes.set_xlabel("iteration", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--columns", type=int, default=7, help="prompts that are shown")
    args = parser.parse_args()
    summary = runlog.read_json(args.run_dir / runlog.SUMMARY)
    pairs = chosen_pairs(args.run_dir, args.columns)
    lines = [*start(summary["before"]), *runlog.read_metrics(args.run_dir)]
    height, width = pairs[0][0].tile.picture.shape[:2]
    tall = 1.6 * min(1.0, height / width * 7 / args.columns) + 0.5  # inches of a picture and its words
    figure = plt.figure(figsize=(13, 2 * tall + 3.9), dpi=110)
    shown_pictures, curves = figure.add_gridspec(2, 1, height_ratios=(2 * tall, 2.6), hspace=0.42)
    rows = shown_pictures.subgridspec(2, 1, hspace=0.3)
    for row, name in enumerate(("before", "after")):
        cells = rows[row].subgridspec(1, args.columns, wspace=0.12)
        for column, pair in enumerate(pairs):
            axes = figure.add_subplot(cells[column])
            show(axes, pair[row], pair[0].tile.caption if row == 0 else "")
            if column == 0:
                axes.set_ylabel(f"{name}\ntraining", fontsize=11, color=INK, rotation=0, ha="right", va="center")
    cells = curves.subgridspec(1, 3, wspace=0.22)
    curve(figure.add_subplot(cells[0]), lines, {"reward_mean": "training reward"}, "Training reward")
    halves = {"validation.plan_right": "plan right", "validation.follow": "picture follows plan"}
    curve(figure.add_subplot(cells[1]), lines, halves, "Thinking and drawing", rises(summary, halves))
    score = {"validation.score": "held-out score"}
    curve(figure.add_subplot(cells[2]), lines, score, "Score on held-out prompts", rises(summary, score))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, bbox_inches="tight", facecolor="white")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
