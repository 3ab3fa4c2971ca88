"""What a run folder remembers of its loggers (RUN/logs.json): which run of theirs it is, and how far they were told."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unigrpo.files import read_json_object, write_json_atomic

FILE = "logs.json"


def _all(run_dir: Path) -> dict[str, Any]:
    path = run_dir / FILE
    return read_json_object(path) if path.is_file() else {}


def _of(run_dir: Path, logger: str) -> dict[str, Any]:
    found = _all(run_dir).get(logger)
    return dict(found) if isinstance(found, Mapping) else {}


def _keep(run_dir: Path, logger: str, **values: Any) -> None:
    write_json_atomic(run_dir / FILE, {**_all(run_dir), logger: {**_of(run_dir, logger), **values}})


def run_id(run_dir: Path, logger: str, name: str) -> str:
    """The id of this run in a logger: made and kept at its first start, read afterwards."""
    known = _of(run_dir, logger).get("id")
    if isinstance(known, str):
        return known
    made = f"{''.join(c if c.isalnum() else '-' for c in name)}-{secrets.token_hex(4)}"
    _keep(run_dir, logger, id=made)
    return made


def told(run_dir: Path, logger: str) -> int:
    """The last step that a logger was told; -1 where it was told nothing."""
    step = _of(run_dir, logger).get("told")
    return step if type(step) is int else -1


def keep_told(run_dir: Path, logger: str, step: int) -> None:
    """Remember that."""
    _keep(run_dir, logger, told=step)
