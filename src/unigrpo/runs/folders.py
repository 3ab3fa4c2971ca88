"""Folders that verbs write to: new ones only, writable, and each with one process at a time."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from unigrpo.files import clear_temporaries, is_temporary
from unigrpo.ranges import ConfigError
from unigrpo.recipe import stage_folders
from unigrpo.reports import runlog
from unigrpo.runs.locks import LOCK, hold
from unigrpo.runs.places import refused, try_folder
from unigrpo.training import checkpoint


def must_be_new(folder: Path, option: str = "--out") -> None:
    """Refuse a folder with anything in it (nothing of the user's is overwritten), and one that cannot be written."""
    try_folder(folder, option)
    if folder.exists() and not is_fresh(folder):
        raise ConfigError(f"{option} {folder} is there and not empty: name a new or an empty folder")


def is_fresh(folder: Path) -> bool:
    """Whether a folder is empty but for what our own processes leave when they are killed as they begin."""
    return folder.is_dir() and all(path.name == LOCK or is_temporary(path.name) for path in folder.iterdir())


def usable(folder: Path, option: str = "--out") -> None:
    """Make a folder, or say why it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused(option, folder, error.strerror) from error
    try_folder(folder, option)


# The folders of runs


@dataclass(frozen=True)
class Wording:
    """What the options are called where a run was asked for."""

    out: str = "--out"
    resume: str = "--resume"


COMMAND, PYTHON = Wording(), Wording("out", "resume=True")


@contextlib.contextmanager
def new_run(out: Path | None, name: str, say: Wording = COMMAND) -> Iterator[Path]:
    """The folder of a new run, locked; ``name`` is its recipe's. What was made is gone again if nothing was written."""
    root = Path("runs") if out is None else out
    try_folder(root, say.out)
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    if out is None:
        out = new_folder(name)
        made = [out, *made]
    try:
        usable(out, say.out)
        with hold(out / LOCK):
            if (out / runlog.RECIPE).is_file():
                raise ConfigError(
                    f"{out} already holds a run: add {say.resume} to go on with it, or name another {say.out}"
                )
            must_be_new(out, say.out)
            clear_temporaries(out)
            yield out
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # not empty: the run has begun
                folder.rmdir()


@contextlib.contextmanager
def begun_run(out: Path | None, say: Wording = COMMAND) -> Iterator[Path]:
    """The folder of a run to go on with, locked, cleared of what killed processes left, its files looked through."""
    run_dir = run_folder(out, say)
    with hold(run_dir / LOCK):
        clear_temporaries(run_dir)
        for folder in [run_dir, *stage_folders(run_dir)]:
            runlog.check_run(folder, checkpoint.finished(folder))
            checkpoint.clean(folder)
        yield run_dir


def nothing_yet(out: Path | None) -> bool:
    """Whether a folder is one to begin a run in: not there, empty, or with what a process killed as it began left."""
    return out is not None and (is_fresh(out) if out.is_dir() else not out.exists() and not out.is_symlink())


def run_folder(out: Path | None, say: Wording = COMMAND) -> Path:
    """The folder to resume; ConfigError where it holds no run."""
    if out is None:
        raise ConfigError(f"{say.resume} needs {say.out}, the folder of the run to go on with")
    if (out / runlog.RECIPE).is_dir():
        raise ConfigError(f"{out / runlog.RECIPE} is a folder, but a file belongs there: put the recipe back")
    if not (out / runlog.RECIPE).is_file():
        if is_fresh(out):
            raise ConfigError(f"{out} holds no run yet, nothing is lost: leave out {say.resume} to begin it")
        raise ConfigError(f"{out} is not a run folder (it has no {runlog.RECIPE}): nothing to resume")
    return out


def new_folder(name: str) -> Path:
    """Make runs/<recipe>-<time>; runs that start in the same second get numbers."""
    first = Path("runs") / f"{name.replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in itertools.count(1):
        folder = first if number == 1 else first.with_name(f"{first.name}-{number}")
        if not folder.exists():
            with contextlib.suppress(FileExistsError):  # another run was quicker
                folder.mkdir(parents=True)
                return folder
    raise AssertionError("unreachable")
