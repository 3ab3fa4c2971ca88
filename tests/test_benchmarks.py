"""``python benchmarks/run.py``: sections of figures in one table and one JSON, beside another revision if asked."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import run as command  # noqa: E402
from speed import counting, sides  # noqa: E402


def bench(monkeypatch, *words):
    """The command in this process, its sections in others."""
    monkeypatch.setattr(sys, "argv", ["benchmarks/run.py", *map(str, words)])
    return command.main()


@pytest.fixture
def measured(monkeypatch):
    """Stand-ins for measurements: what was asked, in order; a section ``scaling`` fails."""
    asked = []

    def stand_in(side, section, **how):
        asked.append((section, side.name))
        if section == "scaling":
            raise sides.Failed("scaling of now: exit code 1")
        return {"cpu_s": 2.0 if side.name == "now" else 4.0, "gflops": 8.0}

    monkeypatch.setattr(sides.Side, "measured", stand_in)
    return asked


def test_sections_are_measured_in_one_table_and_one_json(tmp_path, capsys, monkeypatch):
    assert bench(monkeypatch, "--quick", "--only", "rollout", "--out", tmp_path / "out.json") == 0
    found = json.loads((tmp_path / "out.json").read_text())
    figures = found["sections"]["rollout"]["figures"]["now"]
    assert found["threads"] == 1 and found["against"] is None and found["quick"] is True
    assert figures["1x8.gflop"] == figures["4x8.gflop"] > 0  # of a rollout, whoever else is there
    assert 0 < figures["4x8.draw_of_peak"] < 1 and figures["4x8.matmul_peak_gflops"] > 1
    assert "4x8.think_cpu_s" in (said := capsys.readouterr().out) and "FAILED" not in said


def test_a_section_that_fails_is_named_and_the_others_go_on(capsys, monkeypatch, measured):
    assert bench(monkeypatch, "--only", "scaling,memory") == 1
    said = capsys.readouterr().out
    assert "scaling: FAILED" in said and said.endswith("failed: scaling\n") and "memory  " in said


def test_another_revision_is_measured_in_turns_and_is_gone_afterwards(tmp_path, capsys, monkeypatch, measured):
    made = []
    monkeypatch.setattr(sides, "git", lambda *words, check=True: made.append(words) or "abcdef0123")
    words = ("--only", "replay,ranks", "--against", "HEAD~1", "--repeat", "2", "--out", tmp_path / "out.json")
    assert bench(monkeypatch, *words) == 0
    assert measured == [("replay", "now"), ("replay", "abcdef0")] * 2 + [("ranks", "now")] * 2
    assert [call[1] for call in made if call[0] == "worktree"] == ["add", "remove", "prune"]
    assert json.loads((tmp_path / "out.json").read_text())["sections"]["replay"]["ratios"] == {"cpu_s": 0.5}
    assert "abcdef0: does not have this section" in capsys.readouterr().out


def test_a_revision_that_is_not_there(capsys, monkeypatch):
    monkeypatch.setattr(sides, "git", lambda *words, check=True: "")
    with pytest.raises(SystemExit) as left:
        bench(monkeypatch, "--against", "nowhere")
    assert left.value.code == 2 and "--against nowhere: this repository has no such revision" in capsys.readouterr().err


def test_a_section_that_is_not_there(capsys, monkeypatch):
    with pytest.raises(SystemExit) as left:
        bench(monkeypatch, "--only", "rolout")
    assert left.value.code == 2 and "--only rolout: there is no such section; there are" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_worktree_is_removed_where_the_command_is_stopped(tmp_path, number):
    clone, environment = tmp_path / "clone", {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(tmp_path)}
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    words = [sys.executable, str(clone / "benchmarks/run.py"), "--only", "iteration", "--against", "HEAD"]
    running = subprocess.Popen(words, env=environment, start_new_session=True)
    while not list(tmp_path.glob("unigrpo-against-*/tree/src")):
        time.sleep(0.1)
        assert running.poll() is None
    os.killpg(running.pid, number)
    assert running.wait(60) == 130
    assert not list(tmp_path.glob("unigrpo-against-*"))
    said = subprocess.run(["git", "-C", str(clone), "worktree", "list"], capture_output=True, text=True, check=True)
    assert len(said.stdout.splitlines()) == 1


def test_flops_of_attention_and_products_are_counted():
    x = torch.ones(1, 2, 8, 4, requires_grad=True)
    attention = 2 * 2 * 2 * 8 * 8 * 4
    assert counting.flops_of(lambda: torch.nn.functional.scaled_dot_product_attention(x, x, x)) == attention
    assert counting.flops_of(lambda: torch.ones(3, 5) @ torch.ones(5, 7)) == 2 * 3 * 5 * 7


def test_bytes_are_counted_while_they_are_held():
    def action():
        for _ in range(3):
            torch.zeros(1000, 250)

    assert 1_000_000 <= counting.peak_bytes(action) < 1_500_000


def test_an_exponent():
    assert counting.slope([(x, 3 * x**1.5) for x in (2, 4, 8)]) == pytest.approx(1.5)
