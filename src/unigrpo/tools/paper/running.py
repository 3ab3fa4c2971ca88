"""Running cells: what is missing, several at a time, each as a process of its own that can be resumed."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unigrpo.files import write_json_atomic
from unigrpo.ranges import ConfigError
from unigrpo.reports import runlog
from unigrpo.runs.locks import LOCK, Held, hold
from unigrpo.tools.paper.cells import Cell
from unigrpo.tools.paper.results import NOTHING, last_words, read_cell

INTERRUPTED = 130
Say = Callable[[str], None]


@dataclass
class Runner:
    """Makes the cells of a work folder: ``<cell>/`` is the run, ``<cell>.json`` its result, ``<cell>.log`` its words.

    A cell whose result is there is skipped; a run that was cut is resumed; a failed one is tried again next time. One
    process at a time works on a cell: its lock is the child's too, so that it outlives a killed parent.
    """

    work: Path
    jobs: int
    say: Say
    stopped: bool = field(default=False, init=False)

    def make(self, cells: Sequence[Cell]) -> list[dict[str, Any]]:
        """Make what is missing and return the results of all cells, in order; KeyboardInterrupt once all have saved."""
        for cell in cells:
            self._check(cell)
        todo = [cell for cell in cells if cell.missing is None and not self.done(cell)]
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

    def file(self, cell: Cell, suffix: str) -> Path:
        """A file of the cell, beside its folder."""
        return self.work / f"{cell.name}{suffix}"

    def folder(self, cell: Cell) -> Path:
        """The run's (or evaluation's) folder."""
        return self.file(cell, "")

    def done(self, cell: Cell) -> bool:
        """Whether the cell has a result."""
        return self.file(cell, ".json").is_file()

    def result(self, cell: Cell) -> dict[str, Any]:
        """The result of a cell, finished or not."""
        known = {**NOTHING, **described(cell)}
        if cell.missing is not None:
            return {**known, "status": "n/a", "reason": cell.missing}
        if self.done(cell):
            return {**known, **runlog.read_json(self.file(cell, ".json")), **described(cell)}
        return {**known, "status": "failed", "reason": last_words(self.file(cell, ".log"))}

    def _check(self, cell: Cell) -> None:
        """Refuse what another recipe made: its numbers would be passed off as this one's."""
        for suffix in (".json", ".made-by.json"):
            made = runlog.read_json(self.file(cell, suffix))
            by = made.get("recipe_hash")
            if made and by != cell.fingerprint:
                raise ConfigError(
                    f"{self.folder(cell)} was made by another recipe, command or shipped model (hash "
                    f"{by}, now {cell.fingerprint}): remove it and the .json files of this name to "
                    "make it anew, or name another --work"
                )

    def _make(self, cell: Cell) -> None:
        """Make one cell; whatever goes wrong is this cell's alone."""
        if self.stopped:
            return
        self.folder(cell).parent.mkdir(parents=True, exist_ok=True)
        try:
            with hold(self.file(cell, LOCK), say=self.say) as lock:
                self._make_locked(cell, lock)
        except Held:
            self._failed(cell, "another process is making it; wait for that one, then give the same command again")
        except (OSError, ValueError, KeyError) as error:
            self._failed(cell, f"{type(error).__name__}: {error}")

    def _make_locked(self, cell: Cell, lock: int) -> None:
        if self.done(cell):
            return
        base = None if cell.row.of is None else self.file(cell, "").with_name(f"{cell.row.of}-seed{cell.seed}.json")
        if base is not None and not base.is_file():
            return self._failed(cell, f"the run of {cell.row.of} is not finished")
        folder, began = self.folder(cell), time.perf_counter()
        resumes = cell.trains and (folder / runlog.RECIPE).is_file()
        if not resumes:
            shutil.rmtree(folder, ignore_errors=True)  # half an evaluation, or a run that was killed as it began
        write_json_atomic(self.file(cell, ".made-by.json"), {"recipe_hash": cell.fingerprint})
        code = self._run(cell, folder, resumes, lock)
        if code == INTERRUPTED:
            self.stopped = True
            return
        result = read_cell(cell, folder, code)
        took = f"{time.perf_counter() - began:.0f} s"
        if result is None:
            return self._failed(cell, last_words(self.file(cell, ".log")))
        write_json_atomic(self.file(cell, ".json"), {**result, **described(cell)})
        score = "" if result["score"] is None else f", score {result['score']:.3f}, exam {result['exam_score']:.3f}"
        self.say(f"{cell.name}: {result['status']} in {took}{score}")

    def _failed(self, cell: Cell, why: str) -> None:
        self.say(f"{cell.name}: FAILED: {why}")

    def _run(self, cell: Cell, folder: Path, resumes: bool, lock: int) -> int:
        """Run the cell's command line with one thread (several contended ones are slower); return its exit code."""
        arguments = ("train", cell.arguments[1], "--resume") if resumes else cell.arguments
        command = [sys.executable, "-m", "unigrpo", *arguments, "--out", str(folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
        with open(self.file(cell, ".log"), "ab") as log:
            log.write(f"+ {shlex.join(command[1:])}\n".encode())
            log.flush()
            done = subprocess.run(command, stdout=log, stderr=log, env=environment, pass_fds=(lock,), check=False)
        return done.returncode


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
