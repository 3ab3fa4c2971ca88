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

from unigrpo.files import write_json_atomic, write_text_atomic
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
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is not JSON"):
        runlog.read_metrics(tmp_path)


def write_lines(folder: Path, *numbers: int) -> Path:
    path = folder / runlog.METRICS
    path.write_text("".join(f'{{"iteration": {k}, "reward_mean": {k / 8}}}\n' for k in numbers))
    return path


def test_settling_drops_the_iterations_that_are_done_again(tmp_path: Path) -> None:
    assert runlog.settle_metrics(tmp_path, 0) == []
    path = write_lines(tmp_path, *range(6))
    before = path.read_bytes().split(b"\n")
    assert runlog.settle_metrics(tmp_path, 4) == []
    assert path.read_bytes().split(b"\n") == [*before[:4], b""]


def test_lines_out_of_order_or_repeated_are_put_right_with_a_word(tmp_path: Path) -> None:
    whole = write_lines(tmp_path, 0, 1, 2, 3).read_bytes()
    for numbers, said in (
        ((0, 2, 1, 3), "lines put in order"),
        ((0, 1, 1, 2, 3), "repeated lines removed"),
        ((3, 0, 1, 2, 3), "repeated lines removed and lines put in order"),
    ):
        path = write_lines(tmp_path, *numbers, 4)
        assert runlog.settle_metrics(tmp_path, 4) == [f"note: {path}: {said}"]
        assert path.read_bytes() == whole
    path.write_bytes(b"\xef\xbb\xbf" + whole)
    assert [line["iteration"] for line in runlog.read_metrics(tmp_path)] == [0, 1, 2, 3]
    assert runlog.settle_metrics(tmp_path, 4) == [] and path.read_bytes() == whole


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        (
            (0, 1, 3),
            r"no line for 1 of the 4 .* iteration 2: .* above iteration-000002 from",
        ),
        ((0, 1, 2), r"no line for 1 of the 4 .* iteration 3"),
        ((), r"no line for 4 of the 4 .* iteration 0"),
    ],
)
def test_a_hole_is_refused_and_nothing_is_changed(tmp_path: Path, numbers: tuple[int, ...], said: str) -> None:
    before = write_lines(tmp_path, *numbers, 7).read_bytes()
    with pytest.raises(ValueError, match=said):
        runlog.settle_metrics(tmp_path, 4)
    assert (tmp_path / runlog.METRICS).read_bytes() == before


def test_a_last_line_that_was_cut_is_a_hole_if_its_iteration_was_finished(tmp_path: Path) -> None:
    path = write_lines(tmp_path, 0, 1, 2)
    path.write_bytes(path.read_bytes()[:-4])
    assert runlog.settle_metrics(tmp_path, 2) == []
    with pytest.raises(ValueError, match="no line for 1 of the 3 finished iterations, first for iteration 2"):
        runlog.settle_metrics(tmp_path, 3)


def test_two_different_lines_of_one_iteration_are_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path, 0, 1)
    path.write_bytes(path.read_bytes() + b'{"iteration": 1, "reward_mean": 0.75}\n')
    with pytest.raises(ValueError, match=r"two different lines for iteration 1: remove the wrong one"):
        runlog.settle_metrics(tmp_path, 2)


WRONG = {
    '{"reward_mean": 1}': "has no iteration",
    '{"iteration": "one"}': "iteration is 'one', not a whole number from 0",
    '{"iteration": null}': "iteration is None, not",
    '{"iteration": {"a": 1}}': r"iteration is \{'a': 1\}, not",
    '{"iteration": -1}': "iteration is -1, not",
    '{"iteration": true}': "iteration is True, not",
    '{"iteration": 1, "grad_norm": "big"}': "grad_norm is 'big', not an object of numbers",
    '{"iteration": 1, "grad_norm": null}': "grad_norm is None, not",
    '{"iteration": 1, "grad_norm": {"reasoning": {"x": 1}}}': "grad_norm is .* not an object of numbers",
    '{"iteration": 1, "grad_norm": {"reasoning": "1"}}': "grad_norm is .* not an object of numbers",
    '{"iteration": 1, "flow": {"steps": "all"}}': r"flow\.steps is 'all', not a list of objects of numbers",
    '{"iteration": 1, "flow": {"steps": null}}': r"flow\.steps is None, not",
    '{"iteration": 1, "flow": {"steps": [{"mse": {"a": 1}}]}}': r"flow\.steps is .*, not",
    '{"iteration": 1, "validation": {"score": "good"}}': r"validation\.score is 'good', not a number or null",
    '{"iteration": 1, "reward_mean": "0.5"}': "reward_mean is '0.5', not a number or null",
    '{"iteration": 1e400}': "1e400 is not a finite number",
    '{"iteration": 1, "x": ' + "[" * 100 + "]" * 100 + "}": "nested too deep",
    '{"iteration": 1, "x": ' + "[" * 100_000 + "]" * 100_000 + "}": "nested too deep",
    '["iteration", 1]': "is not a JSON object but",
}


@pytest.mark.parametrize("line", WRONG, ids=range(len(WRONG)))
@pytest.mark.parametrize("last", [False, True])
def test_a_line_of_other_types_is_named(tmp_path: Path, line: str, last: bool) -> None:
    lines = ['{"iteration": 0}', line, *([] if last else ['{"iteration": 2}'])]
    (tmp_path / runlog.METRICS).write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=rf"metrics\.jsonl, line 2.*{WRONG[line]}.*: remove or repair that line"):
        runlog.read_metrics(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (runlog.ENVIRONMENT, '{"resumed": 3}', r"environment\.json: resumed is 3, not a list of objects"),
        (runlog.ENVIRONMENT, '{"a": ' * 2000 + "1" + "}" * 2000, r"environment\.json is nested too deep"),
        (runlog.ENVIRONMENT, "{", r"environment\.json is not JSON"),
        (runlog.SUMMARY, '{"before": null}', r"summary\.json: before is None, not"),
        (runlog.SUMMARY, '{"before": {"n": 2}}', r"before\.jsonl has 0 of 2 records"),
        ("evaluations/before.jsonl", '{"position": "x"}\n', r"before\.jsonl, line 1: position is 'x', not a whole"),
        (runlog.METRICS, None, r"metrics\.jsonl is a folder, but a file belongs there: move it away"),
        (runlog.SUMMARY, None, r"summary\.json is a folder, but a file belongs there"),
        (runlog.REPORT, None, r"report\.html is a folder, but a file belongs there"),
        ("checkpoints", "", r"checkpoints is a file, but a folder belongs there"),
    ],
)
def test_what_a_resumed_run_could_not_use_is_named(tmp_path: Path, name: str, content: str | None, said: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if content is None else path.write_text(content)
    with pytest.raises(ValueError, match=said):
        runlog.check_run(tmp_path, 0)


def test_json_takes_scalars_of_numpy_and_torch_and_has_no_nan(tmp_path: Path) -> None:
    value = {
        "a": np.float32(0.5),
        "b": torch.tensor(2),
        "c": float("nan"),
        "d": [np.bool_(True), float("inf")],
        5: None,
    }
    path = write_json_atomic(tmp_path / "new" / "x.json", value)
    assert json.loads(path.read_text()) == {"a": 0.5, "b": 2, "c": None, "d": [True, None], "5": None}
    with pytest.raises(TypeError, match=r"value\.a\.b is a object"):
        write_json_atomic(path, {"a": {"b": object()}})
    assert runlog.read_json(path)["a"] == 0.5  # the failed write left the old file


def test_atomic_write_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_text_atomic(tmp_path / "x.txt", "old")
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_text_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.txt"]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_environment_is_plain_json(tmp_path: Path) -> None:
    found = runlog.environment()
    assert {"python", "torch", "platform", "threads", "cpu_count", "git_commit", "date"} <= found.keys()
    write_json_atomic(tmp_path / runlog.ENVIRONMENT, found)


def test_importing_reports_loads_nothing_heavy() -> None:
    """The command line's --help must answer within a second."""
    code = (
        "import sys; from unigrpo.reports import html, curves, grids, runlog, progress; "
        "print([m for m in ('matplotlib', 'jinja2', 'PIL', 'rich', 'torch', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
