"""Folders that are there whole or not at all, so that a full disk or a Ctrl-C leaves nothing that blocks the retry."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a new folder to fill, which takes its name and place when the block ends; after a fault nothing is left.

    ``folder`` may be there and empty. ValueError says where and why it could not be written.
    """
    there, made = folder.is_dir(), _absent(folder.parent)
    draft = (folder if there else folder.parent) / f".{folder.name}.{secrets.token_hex(4)}.partial"
    try:
        draft.mkdir(parents=True)
        yield draft
        if there:  # its own place may be a mount or a link: only what is in it can be moved
            for path in draft.iterdir():
                os.replace(path, folder / path.name)
            draft.rmdir()
        else:
            os.rename(draft, folder)
    except BaseException as error:
        shutil.rmtree(draft, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError) and _concerns(error, draft, folder):
            why = error.strerror or error
            raise ValueError(
                f"cannot write {folder} ({why}); nothing of it was left: make room or choose another folder"
            ) from error
        raise


def _absent(folder: Path) -> list[Path]:
    """The folder and those above it that are not there, innermost first."""
    return [] if folder.exists() else [folder, *_absent(folder.parent)]


def _concerns(error: OSError, draft: Path, folder: Path) -> bool:
    """Whether a fault is of writing here (a full disk gives no name), and not of reading somewhere else."""
    if error.filename is None:
        return True
    named = str(error.filename)
    return named.startswith(str(draft)) or Path(named) in (folder, *folder.parents)
