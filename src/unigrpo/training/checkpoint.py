"""Complete checkpoints or none: written under a temporary name, flushed, then renamed; the newest few are kept.

A checkpoint folder is a model folder (so ``generate --model`` reads it) with the training state beside it. Tensors that
all ranks wrote together lie in its ``shards`` (:mod:`unigrpo.shard_index`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor

from unigrpo.files import naming, read_json_object
from unigrpo.reports import schema
from unigrpo.shard_index import ShardIndex, index_path

PREFIX, PARTIAL = "iteration-", ".partial-"
KEPT = "kept.txt"
STATE_TENSORS, STATE_JSON = "training_state.safetensors", "training_state.json"
_NAME = re.compile(rf"{PREFIX}[0-9]{{6,9}}")


@dataclass(frozen=True)
class TrainingState:
    """What resuming needs besides the model: tensors (optimizer, raw weights where the model is an average) and facts.

    ``done`` is the number of finished iterations, that is the next iteration's index. ``shards``: the tensors that
    lie in pieces, by the file in whose place they are.
    """

    done: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    shards: dict[str, ShardIndex] = field(default_factory=dict)


def folder_of(run_dir: Path, done: int) -> Path:
    """Where the checkpoint after ``done`` iterations lies."""
    return run_dir / "checkpoints" / f"{PREFIX}{done:06d}"


def save(run_dir: Path, state: TrainingState, save_model: Callable[[Path], None], *, keep: int) -> Path:
    """Write one checkpoint so that a kill at any moment leaves the older ones whole; then drop all but ``keep``.

    Those that another run started from (:func:`hold`) stay, too.
    """
    partial = begin(run_dir, state.done)
    return finish(run_dir, state, lambda: save_model(partial), keep=keep)


def begin(run_dir: Path, done: int) -> Path:
    """An empty folder, under its temporary name, for the checkpoint after ``done`` iterations."""
    partial = partial_of(run_dir, done)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def partial_of(run_dir: Path, done: int) -> Path:
    """Where the checkpoint after ``done`` iterations lies until it is complete."""
    final = folder_of(run_dir, done)
    return final.with_name(PARTIAL + final.name)


@contextmanager
def or_dropped(partial: Path) -> Iterator[None]:
    """Inside, a folder is filled: after a full disk nothing half-made stays in the way of making room.

    Errors name the complete folder.
    """
    try:
        with naming(partial.with_name(partial.name.removeprefix(PARTIAL))):
            yield
    except Exception:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def finish(run_dir: Path, state: TrainingState, write_model: Callable[[], None], *, keep: int) -> Path:
    """Fill the folder that :func:`begin` made and give it its name, as :func:`save` says."""
    final, partial = folder_of(run_dir, state.done), partial_of(run_dir, state.done)
    with or_dropped(partial):
        write_model()
        tensors = {n: t.detach().contiguous().cpu() for n, t in state.tensors.items()}
        (partial / STATE_TENSORS).write_bytes(serialise(tensors))
        facts = json.dumps({"done": state.done, **state.facts}, indent=1)
        (partial / STATE_JSON).write_text(facts + "\n", encoding="utf-8")
        if (final / KEPT).is_file():  # the same iteration, made again after a resume
            shutil.copyfile(final / KEPT, partial / KEPT)
        for path in partial.rglob("*"):
            sync(path)
        sync(partial)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    sync(final.parent)
    for old in complete(run_dir)[:-keep]:
        if not (old / KEPT).is_file():
            shutil.rmtree(old, ignore_errors=True)
    return final


def sync(path: Path) -> None:
    """Bring a file, or a folder's list of files, onto the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def complete(run_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    folders = [path for path in (run_dir / "checkpoints").glob(f"{PREFIX}*") if _NAME.fullmatch(path.name)]
    return sorted((path for path in folders if (path / STATE_JSON).is_file()), key=_count)


def is_one(folder: Path) -> bool:
    """Whether a folder is a complete checkpoint in a run's folder, which that run may delete."""
    return folder.resolve().parent.name == "checkpoints" and (folder / STATE_JSON).is_file()


def hold(folder: Path, who: str) -> None:
    """Mark a checkpoint as one that a run starts from, so that its own run does not delete it.

    A folder that cannot be written to belongs to somebody else; that is said, and it is used as it is.
    """
    if (folder / KEPT).is_file():
        return
    text = f"A run of {who} started from this checkpoint and needs it. Without this file, it may be deleted.\n"
    try:
        (folder / KEPT).write_text(text, encoding="utf-8")
    except OSError as error:
        warnings.warn(f"{folder} cannot be marked as needed ({error.strerror}): its run may delete it", stacklevel=2)


def gone(path: Path) -> str | None:
    """What a folder that is not there was, if it was a checkpoint of a run: for messages, after its name."""
    if path.exists() or path.parent.name != "checkpoints" or not path.name.startswith(PREFIX):
        return None
    run_dir = path.parent.parent
    left = ", ".join(folder.name for folder in complete(run_dir))
    kept = f"; of that run there are {left}" if left else ""
    return f"a checkpoint of the run {run_dir} that was deleted (a run keeps its newest few: checkpoint.keep){kept}"


def finished(run_dir: Path) -> int:
    """Iterations that the newest complete checkpoint has; 0 without one."""
    folders = complete(run_dir)
    return _count(folders[-1]) if folders else 0


def _count(folder: Path) -> int:
    """The finished iterations of a checkpoint, by its name."""
    return int(folder.name.removeprefix(PREFIX))


def clean(run_dir: Path) -> None:
    """Remove what a kill left half-written."""
    for path in (run_dir / "checkpoints").glob(f"{PARTIAL}*"):
        shutil.rmtree(path, ignore_errors=True)


def load(folder: Path) -> TrainingState:
    """Read the training state of a checkpoint; ValueError names a damaged file."""
    try:
        facts = read_json_object(folder / STATE_JSON)
        schema.check(facts, schema.TRAINING_STATE, STATE_JSON, f"it is {_count(folder)} in the folder's name")
        if (done := facts.pop("done")) != _count(folder):
            raise ValueError(f"{STATE_JSON} says {done} finished iterations")
        shards = {name: ShardIndex.read(index_path(folder, name)) for name in facts.pop("shards", ())}
        return TrainingState(done, load_file(folder / STATE_TENSORS), facts, shards)
    except (OSError, ValueError, SafetensorError) as error:
        raise damaged(folder, error) from error


def damaged(folder: Path, error: Exception) -> ValueError:
    """What to raise where a checkpoint cannot be read."""
    return ValueError(
        f"the checkpoint {folder} is damaged ({error}): remove this folder and resume from the one before it"
    )


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names with a prefix, to keep several sets of tensors in one file."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def unprefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The set that :func:`prefixed` put away."""
    start = f"{prefix}/"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
