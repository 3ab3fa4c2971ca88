"""The files of a run folder: written so that a crash at any moment leaves either the old file or the new one.

A run folder holds ``recipe.yaml``, ``environment.json``, ``metrics.jsonl`` (one JSON object a line, one line an
iteration), ``evaluations/{before,after}.{jsonl,png}``, ``evaluations/summary.json``,
``samples/iteration-000025.{jsonl,png}``, ``checkpoints/`` and ``report.html``. Everything else about a run is derived
from these. The live display of a run is :class:`unigrpo.reports.progress.Progress`.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from unigrpo.files import (
    json_line,
    sync_folder,
    write_bytes_atomic,
    write_json_atomic,
    write_records_atomic,
    write_text_atomic,
)
from unigrpo.reports.progress import Progress

__all__ = [
    "ENVIRONMENT",
    "METRICS",
    "RECIPE",
    "REPORT",
    "SUMMARY",
    "Progress",
    "append_metrics",
    "environment",
    "evaluation_file",
    "read_json",
    "read_metrics",
    "read_records",
    "samples_file",
    "truncate_metrics",
    "write_bytes_atomic",
    "write_json_atomic",
    "write_records_atomic",
    "write_text_atomic",
]

RECIPE = "recipe.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
SUMMARY = "evaluations/summary.json"
REPORT = "report.html"


def evaluation_file(run_dir: Path | str, when: Literal["before", "after"], suffix: Literal["jsonl", "png"]) -> Path:
    """Return where the records (jsonl) or the contact sheet (png) of an evaluation lie."""
    return Path(run_dir) / "evaluations" / f"{when}.{suffix}"


def samples_file(run_dir: Path | str, iteration: int, suffix: Literal["jsonl", "png"]) -> Path:
    """Return where a few sampled training trajectories lie; ``iteration`` counts from 1, as reports and progress do."""
    return Path(run_dir) / "samples" / f"iteration-{iteration:06d}.{suffix}"


# ---------------------------------------------------------------------------------------------------------- metrics


def append_metrics(run_dir: Path | str, line: Mapping[str, Any]) -> None:
    """Append one iteration to ``metrics.jsonl`` and wait until it is on the disk.

    What a crash left of a torn last line is removed first, so that the new line does not grow onto it.
    """
    text = json_line(line).encode()
    path = Path(run_dir) / METRICS
    path.parent.mkdir(parents=True, exist_ok=True)
    created = not path.exists()
    with open(path, "a+b") as file:
        _mend_tail(file)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    if created:
        sync_folder(path.parent)


def _mend_tail(file: Any) -> None:
    """End an opened line file with a whole line: complete a line that lacks its newline only, cut a torn one."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return
    file.seek(size - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    content = file.read()
    start = content.rfind(b"\n") + 1
    if _parse(content[start:]) is None:
        file.truncate(start)
    else:
        file.write(b"\n")


def read_metrics(run_dir: Path | str) -> list[dict[str, Any]]:
    """Read ``metrics.jsonl``; no file means no iteration yet, and a torn last line is left out."""
    return read_records(Path(run_dir) / METRICS)


def read_records(path: Path | str) -> list[dict[str, Any]]:
    """Read a file with one JSON object a line. A missing file gives []; a torn last line is left out.

    ValueError names the first damaged line that is not the last one: that is no crash, something else wrote there.
    """
    return [record for record, _ in _records(Path(path))]


def _records(path: Path) -> list[tuple[dict[str, Any], bytes]]:
    """Every record of a line file with its raw bytes."""
    if not path.is_file():
        return []
    raw = [line for line in path.read_bytes().split(b"\n") if line.strip()]
    records: list[tuple[dict[str, Any], bytes]] = []
    for number, line in enumerate(raw, start=1):
        record = _parse(line)
        if record is not None:
            records.append((record, line))
        elif number < len(raw):
            raise ValueError(f"{path}, line {number} is not a JSON object: {line[:60]!r}. Remove or repair that line.")
    return records


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:  # also what is not UTF-8
        return None
    return value if isinstance(value, dict) else None


def truncate_metrics(run_dir: Path | str, iteration: int) -> int:
    """Drop the lines with ``iteration`` >= the given one, atomically; return how many were dropped.

    A resumed run calls it with the first iteration that it will do again.
    """
    path = Path(run_dir) / METRICS
    records = _records(path)
    kept = [line for record, line in records if record.get("iteration", -1) < iteration]
    if path.is_file():
        write_bytes_atomic(path, b"".join(line + b"\n" for line in kept))
    return len(records) - len(kept)


def read_json(path: Path | str) -> dict[str, Any]:
    """Read a JSON object; a missing file gives {}, a damaged one a ValueError that names it."""
    path = Path(path)
    if not path.is_file():
        return {}
    value = _parse(path.read_bytes())
    if value is None:
        raise ValueError(f"{path} does not hold a JSON object. Repair or remove it.")
    return value


# ------------------------------------------------------------------------------------------------------ environment


def environment() -> dict[str, Any]:
    """Describe where a run happens: what one needs to know to compare its times and to repeat it."""
    import torch

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "unigrpo": _version("unigrpo"),
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": _version("numpy"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU only",
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "command": " ".join(sys.argv),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Return the commit this file belongs to, "-dirty" with uncommitted changes; None outside of its checkout.

    The file must be tracked: a package installed below somebody else's checkout has no part in their history.
    """
    here = Path(__file__).resolve()
    describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        for arguments in (["ls-files", "--error-unmatch", here.name], describe):
            command = ["git", "-C", str(here.parent), *arguments]
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip() or None
    return None
