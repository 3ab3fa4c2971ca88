"""The verb ``reproduce``: a table or a figure of the paper, from nothing, by one command.

cells: which runs it is made of · running: make what is missing · results: what a finished run says · traces.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

from unigrpo import options, output
from unigrpo.files import write_bytes_atomic, write_json_atomic, write_text_atomic
from unigrpo.ranges import ConfigError
from unigrpo.recipe import load_recipe
from unigrpo.reports import runlog
from unigrpo.runs.folders import usable
from unigrpo.runs.places import try_file, try_folder
from unigrpo.tools.paper import figures as paper_figures
from unigrpo.tools.paper import pictures as paper_pictures
from unigrpo.tools.paper import rows as paper
from unigrpo.tools.paper import tables as paper_tables
from unigrpo.tools.paper import words as paper_words
from unigrpo.tools.paper.cells import Cell, cells_of
from unigrpo.tools.paper.running import Runner
from unigrpo.tools.paper.traces import traces

TABLES = {"table1": paper_tables.table1_markdown, "table2": paper_tables.table2_markdown}
FIGURES = ("fig3", "fig4", "fig5")
MOST = 1000
"""Seeds, and runs at a time."""
UPDATES = 2
"""Optimizer steps per iteration of the recipes paper/* (optimizer.ppo_epochs)."""


def run(verb: options.Reproduce) -> int:
    """Make what is missing of a target and write its results; 1 if a cell failed."""
    for option, value in (("--seeds", verb.seeds), ("--jobs", verb.jobs)):
        if value is not None and not 1 <= value <= MOST:
            raise ConfigError(f"{option} {value}: it must be from 1 to {MOST}")
    seeds = range(verb.seeds or (1 if verb.scale == "quick" else 3))
    work, jobs = verb.work.resolve(), verb.jobs or os.cpu_count() or 1
    try_folder(work, "--work")
    try_folder(verb.results, "--results")
    for suffix in (".json", ".md", ".png"):
        try_file(verb.results / f"{stem(verb)}{suffix}", "--results")
    keep_larger(verb, seeds)
    usable(work, "--work")
    usable(verb.results, "--results")
    cells = cells_of(verb.target, seeds, verb.scale, verb.reward, work)
    runner = Runner(work, jobs, lambda line: print(line, flush=True))
    made = runner.make(cells)
    results = {
        "target": verb.target,
        "scale": verb.scale,
        "reward": f"shapes/{verb.reward}",
        "seeds": list(seeds),
        "command": command(verb),
        "environment": runlog.environment(),
        "cells": [placed(cell, result, verb) for cell, result in zip(cells, made, strict=True)],
    }
    write(verb, results, runner, cells)
    failed = [f"{c['row']} seed {c['seed']} ({c['reason']})" for c in results["cells"] if c["status"] == "failed"]
    if failed:
        again = f"{len(failed)} cells failed and are tried again by the same command: {'; '.join(failed)}"
        output.result(again, failed=failed)
    return 1 if failed else 0


def command(verb: options.Reproduce) -> str:
    """The command that makes these results, without what changes no number."""
    words = ["unigrpo", "reproduce", verb.target]
    if verb.seeds is not None:
        words += ["--seeds", str(verb.seeds)]
    if verb.scale != "full":
        words += ["--scale", verb.scale]
    if verb.reward != "preference":
        words += ["--reward", verb.reward]
    return shlex.join(words)


def keep_larger(verb: options.Reproduce, seeds: range) -> None:
    """Refuse to replace results of more seeds by those of fewer."""
    there = runlog.read_json(verb.results / f"{stem(verb)}.json").get("seeds", [])
    if len(there) > len(seeds):
        raise ConfigError(
            f"{verb.results / stem(verb)}.json has results of {len(there)} seeds, and --seeds {len(seeds)} would "
            f"replace them by fewer: ask for {len(there)}, or name another --results"
        )


def stem(verb: options.Reproduce) -> str:
    """How the results' files are called: the target, and what differs from the ordinary."""
    reward, scale = verb.reward, verb.scale
    return verb.target + ("-verifier" if reward == "verifier" else "") + ("-quick" if scale == "quick" else "")


def placed(cell: Cell, result: dict[str, Any], verb: options.Reproduce) -> dict[str, Any]:
    """A result as its target shows it: only figure 5 has pictures (seed 0), table 2 (of table 1's cells) no curves."""
    if verb.target == "table2":
        result = {**result, "curve": []}
    picture = result.get("picture")
    if picture is None or verb.target != "fig5" or cell.seed > 0 or not Path(picture).is_file():
        return {**result, "picture": None} | {"command": shown(result["command"], verb)}
    name = f"{stem(verb)}-{cell.row.id}-seed{cell.seed}.png"
    write_bytes_atomic(verb.results / name, Path(picture).read_bytes())
    return {**result, "picture": name, "command": shown(result["command"], verb)}


def shown(words: str | None, verb: options.Reproduce) -> str | None:
    """A command with the work folder as it was given: no path of this machine gets into the results."""
    return words and words.replace(str(verb.work.resolve()), str(verb.work))


def write(verb: options.Reproduce, results: dict[str, Any], runner: Runner, cells: list[Cell]) -> None:
    """Write JSON, Markdown and PNG of a target."""
    folder, name, written = verb.results, stem(verb), []
    if verb.target == "traces":
        written += write_traces(verb, runner, cells[0])
    else:
        written.append(write_json_atomic(folder / f"{name}.json", results))
        if verb.target in TABLES:
            text = TABLES[verb.target](results)
            written.append(write_text_atomic(folder / f"{name}.md", text))
        if verb.target != "table2":
            drawn = paper_figures.draw_figure(results, folder, UPDATES)
            written.append(write_bytes_atomic(folder / f"{name}.png", drawn))
        if verb.target in FIGURES and all(paper.ran([cell]) for cell in results["cells"]):
            words = paper_words.figure_markdown(results, f"{name}.png", paper_tables.about(results))
            written.append(write_text_atomic(folder / f"{name}.md", words))
    names = [str(path) for path in written]
    output.result("wrote " + ", ".join(names), **results, wrote=names)


def write_traces(verb: options.Reproduce, runner: Runner, cell: Cell) -> list[Path]:
    """Draw with the trained model of the first seed and its two ancestors."""
    folder, name = verb.results, stem(verb)
    if not runner.done(cell):
        raise ConfigError(
            f"{cell.name} is not finished, so there is no model to draw with: see {runner.folder(cell)}.log"
        )
    recipe = load_recipe(runner.folder(cell) / runlog.RECIPE)
    items = traces(str(runner.folder(cell)), recipe, cell.seed)
    picture = write_bytes_atomic(folder / f"{name}.png", paper_pictures.draw_traces(items))
    text = paper_tables.traces_markdown(items, picture.name) + f"\nMade by `{command(verb)}`.\n"
    return [picture, write_text_atomic(folder / f"{name}.md", text)]
