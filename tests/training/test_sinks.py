"""What TensorBoard, W&B (offline) and trackio kept, read back by their own readers, is what metrics.jsonl says."""

from __future__ import annotations

import json
import math
import shutil
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import tiny_runs
from unigrpo.reports import runlog
from unigrpo.training import sinks
from unigrpo.training.recorder import Recorder
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


Told = Iterator[tuple[str, int, float]]
"""Name, step and value of every number that a logger keeps."""


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch):
    """No login, no settings of this machine (conftest.py sets TRACKIO_DIR)."""
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))


def tensorboard(run_dir: Path) -> Told:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"tensors": 0, "scalars": 0})
    events.Reload()
    for name in events.Tags()["tensors"]:
        values = [(event.step, make_ndarray(event.tensor_proto)) for event in events.Tensors(name)]
        if all(value.dtype.kind == "f" and value.size == 1 for _, value in values):
            yield from ((name, step, float(value)) for step, value in values)


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


def wandb(run_dir: Path) -> Told:
    from wandb.proto import wandb_internal_pb2

    for file in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")):
        for data in records_of(file):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for name, value in row.items():
                number = isinstance(value, int | float) or value in ("NaN", "Infinity")
                if number and "iteration" in row and name not in ("iteration", "_step", "_timestamp", "_runtime"):
                    yield name, row["iteration"], float(value)


def trackio(run_dir: Path) -> Told:
    from trackio.sqlite_storage import SQLiteStorage

    name = json.loads((run_dir / "logs.json").read_text())["trackio"]["id"]
    for row in SQLiteStorage.get_logs("unigrpo", name):
        for key, value in row.items():
            if isinstance(value, int | float) and key != "step":
                yield key, row["step"], float(value)


READERS = {"tensorboard": tensorboard, "wandb": wandb, "trackio": trackio}


def kept_by(kind: str, run_dir: Path) -> dict[str, dict[int, float]]:
    """The numbers that a logger keeps, by name and step; each is there once."""
    found: dict[str, dict[int, float]] = {}
    for name, step, value in READERS[kind](run_dir):
        assert step not in found.setdefault(name, {}), f"{kind} keeps {name} of step {step} twice"
        found[name][step] = value
    return found


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
    for kind in READERS:
        kept = kept_by(kind, run_dir)
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
    for _ in range(60):  # a logger's own process may write a moment after it has said that it is done
        if "nan" in (kept := kept_by(kind, tmp_path)):
            break
        time.sleep(0.5)
    assert "nan" in kept, said
    assert math.isnan(kept["nan"][3]) and kept["inf"][3] == math.inf
    assert kept["deep/list/0"][3] == 1.0 and kept["deep/list/1/a"][3] == 2.5
    assert not {"none", "word", "flag"} & kept.keys()
    assert not [line for line in said if "failed" in line]


def test_a_resumed_run_goes_on_in_the_same_places(run_dir):
    ids = {kind: entry.get("id") for kind, entry in runlog.read_json(run_dir / "logs.json").items()}
    done = len(runlog.read_metrics(run_dir))
    words = ("train", tiny_runs.UNIGRPO, "--out", run_dir, "--resume", "--iterations", done + 1)
    assert tiny_runs.unigrpo(*words) == 0
    now = runlog.read_json(run_dir / "logs.json")
    assert {kind: entry.get("id") for kind, entry in now.items()} == ids
    for kind in READERS:
        assert same(kept_by(kind, run_dir)["reward_mean"], told(run_dir)["reward_mean"]), kind


def test_what_is_trained_again_is_told_once(tmp_path):
    """As after kill -9: the newest checkpoint is older than the last iteration that was logged."""
    run_dir = tmp_path / "run"
    words = ("train", tiny_runs.UNIGRPO, "--out", run_dir, *tiny_runs.overrides(eval__every=2, checkpoint__every=1))
    assert tiny_runs.unigrpo(*words, "--log", ALL, "--iterations", 3) == 0
    for checkpoint in sorted((run_dir / "checkpoints").glob("iteration-*"))[1:]:
        shutil.rmtree(checkpoint)
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", run_dir, "--resume", "--iterations", 4) == 0
    for kind in READERS:
        kept = kept_by(kind, run_dir)
        assert same(kept["reward_mean"], told(run_dir)["reward_mean"]) and len(kept["reward_mean"]) == 4, kind


def test_a_logger_that_is_new_to_a_run_is_told_what_was_before(tmp_path):
    run_dir = tmp_path / "run"
    words = ("train", tiny_runs.UNIGRPO, "--out", run_dir, *tiny_runs.overrides(eval__every=2))
    assert tiny_runs.unigrpo(*words, "--iterations", 2) == 0
    again = ("train", tiny_runs.UNIGRPO, "--out", run_dir, "--resume", "--iterations", 3, "--log", ALL)
    assert tiny_runs.unigrpo(*again) == 0
    for kind in READERS:
        kept = kept_by(kind, run_dir)
        assert same(kept["reward_mean"], told(run_dir)["reward_mean"]) and 0 in kept["validation/score"], kind


def test_logging_changes_no_bit_of_the_run(run_dir, tmp_path):
    words = ("train", tiny_runs.UNIGRPO, "--out", tmp_path / "plain", *tiny_runs.overrides(eval__every=2))
    assert tiny_runs.unigrpo(*words) == 0
    tiny_runs.assert_same_run(run_dir, tmp_path / "plain")
    assert not (tmp_path / "plain/logs.json").exists()


OWN = """
import json
from pathlib import Path


class Lines:
    def __init__(self, place, say):
        self.file = (place.run_dir / "own.jsonl").open("a")

    def scalars(self, step, values):
        self.file.write(json.dumps({"step": step, **values}) + "\\n")

    def pictures(self, step, name, shown):
        self.file.write(json.dumps({"step": step, name: [one.caption for one in shown]}) + "\\n")

    def histogram(self, step, name, values):
        pass

    def close(self, failed):
        self.file.close()


class Half:
    def scalars(self, step, values):
        pass


nothing = None
"""


def test_a_logger_of_ones_own_is_named_in_the_recipe(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(OWN)
    words = ("train", tiny_runs.UNIGRPO, "--out", tmp_path / "run", *tiny_runs.overrides(eval__every=2))
    assert tiny_runs.unigrpo(*words, "--log", f"{tmp_path}/mine.py:Lines") == 0
    lines = [json.loads(line) for line in (tmp_path / "run/own.jsonl").read_text().splitlines()]
    kept = {line["step"]: line["reward_mean"] for line in lines if "reward_mean" in line}
    assert kept == told(tmp_path / "run")["reward_mean"]
    assert any(line.get("samples") for line in lines)


def test_a_logger_knows_whether_the_run_failed(tmp_path):
    heard = []

    class Closing:
        def scalars(self, step, values):
            pass

        def close(self, failed):
            heard.append(failed)

    for fault in (None, RuntimeError, KeyboardInterrupt):
        with suppress(BaseException), Recorder(tmp_path).watched(Sinks(tmp_path, print, {"x": Closing()}, {"x": -1})):
            if fault:
                raise fault
    assert heard == [False, True, True]


@pytest.mark.parametrize("dry", ((), ("--dry-run",)))
@pytest.mark.parametrize(
    "name, said",
    (
        ("Half", "it has no method pictures (it needs scalars, pictures, histogram, close)"),
        ("nothing", "it must be a class or a function"),
        ("Lime", "there is no Lime in"),
    ),
)
def test_what_is_no_logger_is_refused_at_the_start(tmp_path, capsys, name, said, dry):
    (tmp_path / "mine.py").write_text(OWN)
    words = ("train", tiny_runs.UNIGRPO, "--out", tmp_path / "run", "--log", f"{tmp_path}/mine.py:{name}", *dry)
    assert tiny_runs.unigrpo(*words) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_missing_package_is_said_before_anything_is_done(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sinks, "find_spec", lambda name: None)
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", tmp_path / "run", "--log", "trackio") == 2
    assert "log: trackio needs the package trackio: pip install" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_unknown_place_and_one_named_twice_are_refused(capsys, tmp_path):
    for said, words in (
        ("choose one of tensorboard, wandb, trackio, or name a logger of your own", "papyrus"),
        ("(did you mean tensorboard?)", "tensorbord"),
        ("names a place twice", "wandb,wandb"),
    ):
        assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", tmp_path / "run", "--log", words) == 2
        assert said in capsys.readouterr().err


def test_a_sink_that_fails_is_told_once_and_the_others_go_on(tmp_path):
    heard, said = [], []

    class Good:
        def scalars(self, step, values):
            heard.append((step, dict(values)))

        def close(self, failed):
            heard.append(("closed", failed))

    class Bad(Good):
        def scalars(self, step, values):
            raise OSError("the network is gone")

    both = Sinks(tmp_path, said.append, {"bad": Bad(), "good": Good()}, {"bad": -1, "good": -1})
    both.scalars(1, {"a": 1})
    both.scalars(2, {"a": 2})
    both.close()
    both.close()
    assert heard == [(1, {"a": 1.0}), (2, {"a": 2.0}), ("closed", False)]
    assert said == ["note: bad failed and is switched off, the run goes on (OSError: the network is gone)"]


def test_one_that_cannot_be_opened_is_left_out(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setitem(sys.modules, "wandb", None)
    made = sinks.opened(["wandb"], Place(tmp_path, "x", {}), said.append)
    made.pictures(1, "samples", [Shown(None, "")])
    assert not made.open and "wandb failed" in said[0]
