"""Folders that verbs write to: new ones only, and writable."""

from __future__ import annotations

import os
from pathlib import Path

from unigrpo.config import ConfigError


def must_be_new(folder: Path) -> None:
    """Refuse a folder with anything in it: nothing of the user's is overwritten."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--out {folder} is there and not empty: name a new or an empty folder")


def usable(folder: Path) -> None:
    """Make a folder, or say why it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write to {folder} ({error.strerror}): choose another --out") from error
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"cannot write to {folder} (no permission): choose another --out")
