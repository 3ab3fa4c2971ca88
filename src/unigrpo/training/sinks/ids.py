"""Which run of a sink a run folder belongs to, so that a resumed run goes on with it (RUN/logs.json)."""

from __future__ import annotations

import secrets
from pathlib import Path

from unigrpo.files import read_json_object, write_json_atomic

FILE = "logs.json"


def run_id(run_dir: Path, kind: str, name: str) -> str:
    """The id of this run in a sink: made and kept at its first start, read afterwards."""
    path = run_dir / FILE
    kept = read_json_object(path) if path.is_file() else {}
    if not isinstance(kept.get(kind), str):
        kept[kind] = f"{''.join(c if c.isalnum() else '-' for c in name)}-{secrets.token_hex(4)}"
        write_json_atomic(path, kept)
    return str(kept[kind])
