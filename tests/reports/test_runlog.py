"""Run files survive crashes, resumes and strange numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from unigrpo.reports import runlog


def test_metrics_round_trip_and_missing_file(tmp_path: Path) -> None:
    assert runlog.read_metrics(tmp_path) == []
    for k in range(3):
        runlog.append_metrics(tmp_path, {"iteration": k, "text": {"kl": k / 3}})
    assert [line["iteration"] for line in runlog.read_metrics(tmp_path)] == [0, 1, 2]
    assert runlog.read_metrics(tmp_path)[2] == {"iteration": 2, "text": {"kl": 2 / 3}}


def test_every_cut_of_the_last_line_is_tolerated_and_mended(tmp_path: Path) -> None:
    """Whatever prefix of the last line a crash leaves, reading works and the next append lands on a line of its own."""
    whole = b'{"iteration": 0}\n{"iteration": 1, "word": "\xc3\xa9"}\n'
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole) + 1):
        (tmp_path / runlog.METRICS).write_bytes(whole[:cut])
        complete = cut >= len(whole) - 1
        assert len(runlog.read_metrics(tmp_path)) == 1 + complete
        runlog.append_metrics(tmp_path, {"iteration": 2})
        assert [line["iteration"] for line in runlog.read_metrics(tmp_path)] == [0, 1, 2] if complete else [0, 2]


def test_zeroes_after_a_power_loss_are_a_torn_line(tmp_path: Path) -> None:
    (tmp_path / runlog.METRICS).write_bytes(b'{"iteration": 0}\n' + b"\0" * 30)
    assert len(runlog.read_metrics(tmp_path)) == 1


def test_damage_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / runlog.METRICS).write_text('{"iteration": 0}\noops\n{"iteration": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is not a JSON object"):
        runlog.read_metrics(tmp_path)


def test_truncate_drops_the_given_iteration_and_later(tmp_path: Path) -> None:
    assert runlog.truncate_metrics(tmp_path, 3) == 0
    for k in range(6):
        runlog.append_metrics(tmp_path, {"iteration": k})
    before = (tmp_path / runlog.METRICS).read_bytes().split(b"\n")
    assert runlog.truncate_metrics(tmp_path, 4) == 2
    assert (tmp_path / runlog.METRICS).read_bytes().split(b"\n")[:4] == before[:4]
    assert [line["iteration"] for line in runlog.read_metrics(tmp_path)] == [0, 1, 2, 3]


def test_json_takes_scalars_of_numpy_and_torch_and_has_no_nan(tmp_path: Path) -> None:
    value = {
        "a": np.float32(0.5),
        "b": torch.tensor(2),
        "c": float("nan"),
        "d": [np.bool_(True), float("inf")],
        5: None,
    }
    path = runlog.write_json_atomic(tmp_path / "new" / "x.json", value)
    assert json.loads(path.read_text()) == {"a": 0.5, "b": 2, "c": None, "d": [True, None], "5": None}
    with pytest.raises(TypeError, match=r"value\.a\.b is a object"):
        runlog.write_json_atomic(path, {"a": {"b": object()}})
    assert runlog.read_json(path)["a"] == 0.5  # the failed write left the old file


def test_atomic_write_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = runlog.write_text_atomic(tmp_path / "x.txt", "old")
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        runlog.write_text_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.txt"]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_environment_is_plain_json(tmp_path: Path) -> None:
    found = runlog.environment()
    assert {"python", "torch", "platform", "threads", "cpu_count", "git_commit", "date"} <= found.keys()
    runlog.write_json_atomic(tmp_path / runlog.ENVIRONMENT, found)


def test_importing_reports_loads_nothing_heavy() -> None:
    """The command line's --help must answer within a second."""
    code = (
        "import sys; from unigrpo.reports import html, curves, grids, runlog, progress; "
        "print([m for m in ('matplotlib', 'jinja2', 'PIL', 'rich', 'torch', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
