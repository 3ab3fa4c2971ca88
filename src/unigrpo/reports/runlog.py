"""The files of a run folder: written so that a crash at any moment leaves either the old file or the new one.

A run folder holds ``recipe.yaml``, ``environment.json``, ``metrics.jsonl`` (one JSON object a line, one line an
iteration), ``evaluations/{before,after}.{jsonl,png}``, ``evaluations/summary.json``,
``samples/iteration-000025.{jsonl,png}``, ``checkpoints/`` and ``report.html``. Everything else about a run is derived
from these. ``faults/`` is there where a number was not finite. The live display of a run is
:class:`unigrpo.reports.progress.Progress`.
"""

from __future__ import annotations

import codecs
import json
import os
import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from unigrpo import version
from unigrpo.files import (
    REPAIR,
    json_line,
    naming,
    parse_json_object,
    read_bytes,
    read_json_object,
    sync_folder,
    write_bytes_atomic,
    write_json_atomic,
    write_records_atomic,
    write_text_atomic,
)
from unigrpo.reports import schema
from unigrpo.reports.progress import Progress

__all__ = [
    "ENVIRONMENT",
    "METRICS",
    "RECIPE",
    "REPORT",
    "SUMMARY",
    "Progress",
    "append_metrics",
    "check_run",
    "environment",
    "evaluation_file",
    "read_json",
    "read_metrics",
    "read_records",
    "samples_file",
    "settle_metrics",
    "write_bytes_atomic",
    "write_json_atomic",
    "write_records_atomic",
    "write_text_atomic",
]

RECIPE = "recipe.yaml"
ENVIRONMENT = "environment.json"
COMMAND = "UNIGRPO_COMMAND"
"""Set for the ranks of a command that starts them, to its own words: what a run folder says that it was made by."""
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
    with naming(path), open(path, "a+b") as file:
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
    try:
        parse_json_object(content[start:], "")
    except ValueError:
        file.truncate(start)
    else:
        file.write(b"\n")


def read_metrics(run_dir: Path | str) -> list[dict[str, Any]]:
    """Read ``metrics.jsonl``; no file means no iteration yet, and a torn last line is left out."""
    return read_records(Path(run_dir) / METRICS)


def read_records(path: Path | str) -> list[dict[str, Any]]:
    """Read a file with one JSON object a line. A missing file gives []; a torn last line is left out.

    Of a file of a run folder, the types of the keys are checked. ValueError names file, line and what to do: for the
    first damaged line that is not the last one (that is no crash, something else wrote there), or a wrong type.
    """
    return [record for record, _ in _records(Path(path))]


def _records(path: Path) -> list[tuple[dict[str, Any], bytes]]:
    """Every record of a line file with its raw bytes."""
    if not path.exists():
        return []
    content = read_bytes(path).removeprefix(codecs.BOM_UTF8)
    raw = [(number, line) for number, line in enumerate(content.split(b"\n"), start=1) if line.strip()]
    records: list[tuple[dict[str, Any], bytes]] = []
    for number, line in raw:
        where, advice = f"{path}, line {number}", "remove or repair that line"
        try:
            record = parse_json_object(line, where, advice)
        except ValueError:
            if (number, line) == raw[-1] and _is_torn(line):
                break
            raise
        schema.check(record, schema.schema_of(path), where, advice)
        records.append((record, line))
    return records


def _is_torn(line: bytes) -> bool:
    """Whether a line is no JSON at all, as a crash leaves it (and not whole, but of a wrong kind)."""
    try:
        json.loads(line)
    except ValueError:
        return True
    except RecursionError:
        return False
    return False


def settle_metrics(run_dir: Path | str, done: int) -> list[str]:
    """Leave the lines of the ``done`` finished iterations, once each and in order; return notes on what was mended.

    A resumed run calls it. Later lines are of iterations that will be done again, and are cut. Lines that are repeated
    or out of order are put right; a hole, or two different lines for one iteration, is a ValueError that changes
    nothing, because no program can know what stood there.
    """
    path = Path(run_dir) / METRICS
    content, notes = _settled(path, done)
    if path.exists():
        write_bytes_atomic(path, content)
    return notes


def _settled(path: Path, done: int) -> tuple[bytes, list[str]]:
    """The content with the lines of the finished iterations, and notes on what was mended for it."""
    found = [(record, line) for record, line in _records(path) if record["iteration"] < done]
    numbers = [record["iteration"] for record, _ in found]
    by_number: dict[int, tuple[dict[str, Any], bytes]] = {}
    for number, (record, line) in zip(numbers, found, strict=True):
        if by_number.setdefault(number, (record, line))[0] != record:
            raise ValueError(f"{path} has two different lines for iteration {number}: remove the wrong one")
    if missing := [number for number in range(done) if number not in by_number]:
        first = missing[0]
        raise ValueError(
            f"{path} has no line for {len(missing)} of the {done} finished iterations, first for iteration {first}: "
            f"put the file back as it was, or do these again: remove all folders above iteration-{first:06d} from "
            f"{path.parent / 'checkpoints'} and resume"
        )
    mended = ["repeated lines removed"] if len(by_number) < len(numbers) else []
    mended += ["lines put in order"] if sorted(numbers) != numbers else []
    content = b"".join(by_number[number][1] + b"\n" for number in range(done))
    return content, [f"note: {path}: {' and '.join(mended)}"] if mended else []


def read_json(path: Path | str) -> dict[str, Any]:
    """Read a JSON object; a missing file gives {}. Of a file of a run folder, the types of the keys are checked.

    ValueError names a damaged file, what is wrong in it and what to do.
    """
    path = Path(path)
    if not path.exists():
        return {}
    value = read_json_object(path)
    schema.check(value, schema.schema_of(path), str(path), REPAIR)
    return value


def check_run(run_dir: Path, done: int) -> None:
    """Read every file that a run needs to go on after ``done`` iterations, so that damage is named now, not at the end.

    ValueError names the file, and the line where it has lines.
    """
    for name in (RECIPE, ENVIRONMENT, METRICS, SUMMARY, REPORT):
        if (run_dir / name).is_dir():
            raise ValueError(f"{run_dir / name} is a folder, but a file belongs there: move it away")
    for name in ("checkpoints", "evaluations", "samples"):
        if (run_dir / name).exists() and not (run_dir / name).is_dir():
            raise ValueError(f"{run_dir / name} is a file, but a folder belongs there: move it away")
    read_json(run_dir / ENVIRONMENT)
    _settled(run_dir / METRICS, done)
    summary = read_json(run_dir / SUMMARY)
    for when in ("before", "after"):
        path = evaluation_file(run_dir, when, "jsonl")
        records = read_records(path)
        if when in summary and len(records) != summary[when].get("n"):
            raise ValueError(
                f"{path} has {len(records)} of {summary[when].get('n')} records, and the comparison of before and "
                "after needs them: put it back, or start a new run"
            )


# ------------------------------------------------------------------------------------------------------ environment


def environment() -> dict[str, Any]:
    """Describe where a run happens: what one needs to know to compare its times and to repeat it."""
    import torch

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "unigrpo": version.of("unigrpo"),
        "git_commit": version.git_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": version.of("numpy"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU only",
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "command": os.environ.get(COMMAND, " ".join(sys.argv)),
    }
