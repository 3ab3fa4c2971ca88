"""Running cells: what is missing, several at a time, each as a process of its own that can be resumed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unigrpo.config import ConfigError
from unigrpo.reports import runlog
from unigrpo.verbs.reproduce.cells import Cell
from unigrpo.verbs.reproduce.results import NOTHING, read_cell

INTERRUPTED = 130
Say = Callable[[str], None]


@dataclass
class Runner:
    """Makes the cells of a work folder: ``<cell>/`` is the run, ``<cell>.json`` its result, ``<cell>.log`` its words.

    A cell whose result is there is skipped; a run that was cut is resumed; a failed one is tried again next time.
    """

    work: Path
    jobs: int
    say: Say
    stopped: bool = field(default=False, init=False)

    def make(self, cells: Sequence[Cell]) -> list[dict[str, Any]]:
        """Make what is missing and return the results of all cells, in order; KeyboardInterrupt once all have saved."""
        for cell in cells:
            self._check(cell)
        todo = [cell for cell in cells if cell.missing is None and not self.result_file(cell).is_file()]
        self.say(f"{len(cells)} cells: {len(cells) - len(todo)} there, {len(todo)} to make, {self.jobs} at a time")
        for wave in ([c for c in todo if c.row.of is None], [c for c in todo if c.row.of is not None]):
            with ThreadPoolExecutor(self.jobs) as pool:
                futures = [pool.submit(self._make, cell) for cell in wave]
                try:
                    for future in futures:
                        future.result()
                except KeyboardInterrupt:
                    self.stopped = True  # the children have had Ctrl-C too, and save
                    self.say("stopping: runs under way are saved; the same command goes on with them")
                    raise
            if self.stopped:
                raise KeyboardInterrupt
        return [self.result(cell) for cell in cells]

    def folder(self, cell: Cell) -> Path:
        """The run's (or evaluation's) folder."""
        return self.work / cell.name

    def result_file(self, cell: Cell) -> Path:
        """Where the result of a finished cell lies."""
        return self.work / f"{cell.name}.json"

    def result(self, cell: Cell) -> dict[str, Any]:
        """The result of a cell, finished or not."""
        known = {**NOTHING, **described(cell)}
        if cell.missing is not None:
            return {**known, "status": "n/a", "reason": cell.missing}
        if self.result_file(cell).is_file():
            return {**NOTHING, **runlog.read_json(self.result_file(cell)), **described(cell)}
        return {**known, "status": "failed", "reason": last_words(self.work / f"{cell.name}.log")}

    def _check(self, cell: Cell) -> None:
        """Refuse a folder that another recipe made: its numbers would be passed off as this one's."""
        stamp = runlog.read_json(self.work / f"{cell.name}.cell.json")
        if stamp and stamp["recipe_hash"] != cell.fingerprint:
            raise ConfigError(
                f"{self.folder(cell)} was made by another recipe or command (hash {stamp['recipe_hash']}, now "
                f"{cell.fingerprint}): remove it and its .json files to make it anew, or name another --work"
            )

    def _make(self, cell: Cell) -> None:
        if self.stopped:
            return
        folder, began = self.folder(cell), time.perf_counter()
        folder.parent.mkdir(parents=True, exist_ok=True)
        runlog.write_json_atomic(self.work / f"{cell.name}.cell.json", {"recipe_hash": cell.fingerprint})
        code = self._run(cell, folder)
        if code == INTERRUPTED:
            self.stopped = True
            return
        result = read_cell(cell, folder, code)
        took = f"{time.perf_counter() - began:.0f} s"
        if result is None:
            self.say(f"{cell.name}: FAILED after {took}: {last_words(self.work / f'{cell.name}.log')}")
            return
        runlog.write_json_atomic(self.result_file(cell), result)
        score = "" if result["score"] is None else f", score {result['score']:.3f}, exam {result['exam_score']:.3f}"
        self.say(f"{cell.name}: {result['status']} in {took}{score}")

    def _run(self, cell: Cell, folder: Path) -> int:
        """Run the cell's command line with one thread (several contended ones are slower); return its exit code."""
        resumes = cell.trains and (folder / runlog.RECIPE).is_file()
        arguments = ("train", cell.arguments[1], "--resume") if resumes else cell.arguments
        command = [sys.executable, "-m", "unigrpo", *arguments, "--out", str(folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
        with open(self.work / f"{cell.name}.log", "ab") as log:
            log.write(f"+ {shlex.join(command[1:])}\n".encode())
            log.flush()
            return subprocess.run(command, stdout=log, stderr=log, env=environment, check=False).returncode


def described(cell: Cell) -> dict[str, Any]:
    """What a result says of its cell."""
    return {
        "row": cell.row.id,
        "seed": cell.seed,
        "recipe": cell.row.recipe,
        "recipe_hash": cell.fingerprint,
        "command": shlex.join(("unigrpo", *cell.arguments)) if cell.arguments else None,
        "think": cell.row.think,
        "rollouts": cell.rollouts,
    }


def last_words(log: Path) -> str:
    """The last line of a log that says something."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    said = [line.strip() for line in lines if line.strip()]
    return said[-1].removeprefix("unigrpo: error: ") if said else "not run"
