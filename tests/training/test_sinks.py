"""What TensorBoard, W&B (offline) and trackio kept, read back by their own readers, is what metrics.jsonl says."""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tiny_runs
from unigrpo.reports import runlog
from unigrpo.training import sinks
from unigrpo.training.sinks import Place, Shown, Sinks, numbers

ALL = "tensorboard,wandb,trackio"
ODD = {
    "nan": float("nan"),
    "inf": float("inf"),
    "none": None,
    "word": "x",
    "flag": True,
    "deep": {"list": [1, {"a": 2.5}]},
}


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch):
    """No login, no cache of this machine."""
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setattr("trackio.sqlite_storage.MEDIA_DIR", tmp_path / "trackio/media", raising=False)


def tensorboard(run_dir: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"tensors": 0, "scalars": 0})
    events.Reload()
    found = {}
    for name in events.Tags()["tensors"]:
        values = {event.step: make_ndarray(event.tensor_proto) for event in events.Tensors(name)}
        if all(value.dtype.kind == "f" and value.size == 1 for value in values.values()):
            found[name] = {step: float(value) for step, value in values.items()}
    return found


def records_of(file: Path) -> Iterator[bytes]:
    """The records of an offline run: LevelDB's log format after 7 bytes (W&B has no reader in Python since 0.31)."""
    data, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        parts, place = parts + data[place + 7 : place + 7 + size], place + 7 + size
        if kind in (1, 4):  # whole, or its last part
            yield parts
            parts = b""


def wandb(run_dir: Path) -> dict[str, dict[int, float]]:
    from wandb.proto import wandb_internal_pb2

    found: dict[str, dict[int, float]] = {}
    for file in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")):
        for data in records_of(file):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for name, value in row.items():
                if (isinstance(value, int | float) or value in ("NaN", "Infinity")) and "iteration" in row:
                    found.setdefault(name, {})[row["iteration"]] = float(value)
    return found


def trackio(run_dir: Path) -> dict[str, dict[int, float]]:
    from trackio.sqlite_storage import SQLiteStorage

    name = json.loads((run_dir / "logs.json").read_text())["trackio"]
    found: dict[str, dict[int, float]] = {}
    for row in SQLiteStorage.get_logs("unigrpo", name):
        for key, value in row.items():
            if isinstance(value, int | float) and key != "step":
                found.setdefault(key, {})[row["step"]] = float(value)
    return found


READERS = {"tensorboard": tensorboard, "wandb": wandb, "trackio": trackio}


def told(run_dir: Path) -> dict[str, dict[int, float]]:
    """The numbers of metrics.jsonl by name and step."""
    found: dict[str, dict[int, float]] = {}
    for line in runlog.read_metrics(run_dir):
        for name, value in numbers(line):
            found.setdefault(name, {})[line["iteration"] + 1] = value
    return found


def same(kept: dict[int, float], written: dict[int, float]) -> bool:
    return all(
        kept.get(step) == value or (math.isnan(value) and math.isnan(kept[step])) for step, value in written.items()
    )


@pytest.fixture
def run_dir(tmp_path) -> Path:
    words = ("train", tiny_runs.UNIGRPO, "--out", tmp_path / "run", "--log", ALL, *tiny_runs.overrides(eval__every=2))
    assert tiny_runs.unigrpo(*words) == 0
    return tmp_path / "run"


def test_all_three_keep_what_metrics_jsonl_says(run_dir):
    written = told(run_dir)
    summary = runlog.read_json(run_dir / runlog.SUMMARY)
    for kind, reader in READERS.items():
        kept = reader(run_dir)
        for name, values in written.items():
            if name != "iteration":
                assert same(kept[name], values), f"{kind}: {name} is {kept[name]}, and not {values}"
        before = summary["before"].get("validation", summary["before"])
        assert kept["validation/score"][0] == before["score"], kind  # the point before training
        assert kept["evaluation_after/score"][max(written["reward_mean"])] == summary["after"]["score"], kind


def test_pictures_come_with_their_thinking(run_dir):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    assert "samples/0" in events.Tags()["images"] and "rewards" in events.Tags()["histograms"]
    (words,) = events.Tensors("samples/captions/text_summary")[-1].tensor_proto.string_val
    last = max((run_dir / "samples").glob("*.jsonl"))
    record = runlog.read_records(last)[0]
    assert record["prompt"] in words.decode() and record["thinking"] in words.decode()
    (config,) = events.Tensors("recipe/text_summary")[0].tensor_proto.string_val
    assert "prompts_per_iteration" in config.decode()


@pytest.mark.parametrize("kind", READERS)
def test_nan_and_infinity_arrive_as_they_are(tmp_path, kind):
    said: list[str] = []
    made = sinks.opened([kind], Place(tmp_path, "odd", {"a": 1}), said.append)
    made.scalars(3, ODD)
    made.close()
    kept = READERS[kind](tmp_path)
    assert math.isnan(kept["nan"][3]) and kept["inf"][3] == math.inf
    assert kept["deep/list/0"][3] == 1.0 and kept["deep/list/1/a"][3] == 2.5
    assert not {"none", "word", "flag"} & kept.keys()
    assert not [line for line in said if "failed" in line]


def test_a_resumed_run_goes_on_in_the_same_places(run_dir, tmp_path):
    ids = (run_dir / "logs.json").read_bytes()
    done = len(runlog.read_metrics(run_dir))
    words = ("train", tiny_runs.UNIGRPO, "--out", run_dir, "--resume", "--iterations", done + 1)
    assert tiny_runs.unigrpo(*words) == 0
    assert (run_dir / "logs.json").read_bytes() == ids
    for kind, reader in READERS.items():
        assert same(reader(run_dir)["reward_mean"], told(run_dir)["reward_mean"]), kind


def test_a_missing_package_is_said_before_anything_is_done(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sinks, "find_spec", lambda name: None)
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", tmp_path / "run", "--log", "trackio") == 2
    assert "log: trackio needs the package trackio: pip install" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_unknown_place_and_one_named_twice_are_refused(capsys, tmp_path):
    for said, words in (
        ("choose one of tensorboard, wandb, trackio", "papyrus"),
        ("names a place twice", "wandb,wandb"),
    ):
        assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", tmp_path / "run", "--log", words) == 2
        assert said in capsys.readouterr().err


def test_a_sink_that_fails_is_told_once_and_the_others_go_on():
    heard, said = [], []

    class Good:
        def scalars(self, step, values):
            heard.append((step, dict(values)))

        def close(self):
            heard.append("closed")

    class Bad(Good):
        def scalars(self, step, values):
            raise OSError("the network is gone")

    both = Sinks({"bad": Bad(), "good": Good()}, said.append)
    both.scalars(1, {"a": 1})
    both.scalars(2, {"a": 2})
    both.close()
    both.close()
    assert heard == [(1, {"a": 1.0}), (2, {"a": 2.0}), "closed"]
    assert said == ["note: bad failed and is switched off, the run goes on (OSError: the network is gone)"]


def test_one_that_cannot_be_opened_is_left_out(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setitem(sys.modules, "wandb", None)
    made = sinks.opened(["wandb"], Place(tmp_path, "x", {}), said.append)
    made.pictures(1, "samples", [Shown(None, "")])
    assert not made.open and "wandb failed" in said[0]
