"""``benchmarks/bagel_7b.py``: what does not fit is skipped, what fails is named, what is there is written."""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from unigrpo.policy import ReplayItem
from unigrpo.trajectory import Text

FILE = Path(__file__).parents[1] / "benchmarks" / "bagel_7b.py"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    return SimpleNamespace(**runpy.run_path(str(FILE)))


@pytest.fixture
def model(script):
    return sys.modules["real_size.model"]


def bench():
    return SimpleNamespace(policy=SimpleNamespace(model=torch.nn.Linear(1, 1)))


def test_parts_are_skipped_named_and_kept(script):
    def runs_out(bench):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def breaks(bench):
        raise RuntimeError("a kernel is missing\nsecond line")

    seconds, kept = iter((100.0, 70.0, 40.0, 8.0, 8.0)), {}
    parts = [("a", 50.0, lambda bench: {"x": 1.0}), ("b", 50.0, runs_out), ("c", 5.0, breaks), ("d", 20.0, runs_out)]
    assert not script.measured(parts, bench(), lambda: next(seconds), kept.__setitem__)
    assert kept["a"] == {"x": 1.0}
    assert "out of memory in b" in kept["b"]["failed"] and "2.00 GiB" in kept["b"]["failed"]
    assert kept["c"]["failed"] == "c: RuntimeError: a kernel is missing"
    assert kept["d"]["skipped"] == "8 s are left, and it takes about 20"


def test_skipping_is_no_failure(script):
    assert script.measured([("a", 50.0, lambda bench: {})], bench(), lambda: 1.0, lambda name, found: None)


def test_all_parts_of_a_gpu_fit_into_eight_minutes(script):
    assert script.BUILDING + sum(needs for _, needs, _ in script.parts_of(script.REAL)) < 8 * 60


@pytest.mark.slow
def test_no_time_at_all_measures_nothing(script, tmp_path, monkeypatch):
    out = tmp_path / "new" / "result.json"
    arguments = SimpleNamespace(tiny=True, minutes=0.0, tflops=989.0, out=out)
    assert script.run(arguments) == 0
    parts = json.loads(out.read_text())["parts"]
    assert set(parts) == {"model", *(name for name, _, _ in script.parts_of(script.SMALL))}
    assert all("skipped" in part for name, part in parts.items() if name != "model")


def test_thinkings_are_as_long_as_those_that_were_measured(model):
    found = model.lengths(10_000)
    assert sum(found) / len(found) == pytest.approx(217, rel=0.02) and max(found) <= 1024
    assert sorted(found)[9_900] == pytest.approx(577, rel=0.02)
    assert model.lengths(24) == model.lengths(24) != sorted(model.lengths(24))


def test_thinking_ends_there_and_log_probs_are_those_of_a_replay(model):
    policy = model.random_bagel(model.SMALL, torch.device("cpu"))
    policy.compute_dtype, policy.shorter = torch.float32, 32
    policy.model.float()
    prompt = Text(torch.arange(4, 12))

    with torch.no_grad():
        uniforms = torch.rand((5, 9), generator=torch.Generator().manual_seed(0))
        texts, _ = policy.think(policy.prefill([[prompt]]).expand(5), uniforms=uniforms, temperature=1.0)
        again = policy.replay([ReplayItem((prompt, text)) for text in texts])
    wanted = [min(9, length) for length in model.lengths(5, 32)]
    assert [text.num_actions for text in texts] == wanted and len(set(wanted)) > 1
    assert all(text.ended for text in texts)
    for text, answer in zip(texts, again, strict=True):
        torch.testing.assert_close(text.log_probs, answer.log_probs, rtol=0, atol=1e-4)
