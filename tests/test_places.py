"""Places that are written to: tried before work begins, never a file that is read, and named when they fail."""

import errno
import importlib
import importlib.util
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

import tiny_runs
from unigrpo import build, files
from unigrpo.models.bagel_files.checkpoint import write_weights
from unigrpo.ranges import ConfigError
from unigrpo.recipe import to_yaml
from unigrpo.reports import runlog
from unigrpo.runs.folders import must_be_new
from unigrpo.runs.places import try_file, try_folder
from unigrpo.training import checkpoint

DRAW = ("generate", "a red circle", "--num", "1", "--max-think-tokens", "4")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "circle").symlink_to("circle")
    return tmp_path


@pytest.fixture
def no_work(monkeypatch):
    """Loading a model, or beginning a cell, means that the place was not tried first."""

    def worked(*arguments, **options):
        raise AssertionError("work has begun")

    for name in ("policy", "parts"):
        monkeypatch.setattr(build, name, worked)
    monkeypatch.setattr(importlib.import_module("unigrpo.commands.reproduce"), "Runner", worked)
    monkeypatch.setattr("unigrpo.commands.report.write_report", worked)


TRAIN, SAMPLE = ("train", tiny_runs.UNIGRPO), ("eval", "--limit", "1", "--samples", "1")
ASK = ("generate", "what?", "--understand")
BAD = [
    (*DRAW, "--out", "/proc/a.png"),
    (*DRAW, "--out", "/proc/a/b.png"),
    (*DRAW, "--out", "file/a.png"),
    (*DRAW, "--out", "folder.png"),
    (*DRAW, "--out", "circle/a.png"),
    (*DRAW, "--out", "a" * 300 + ".png"),
    (*DRAW, "--out", "a" * 300),
    (*DRAW, "--out", "/proc/a"),
    (*DRAW, "--out", "file"),
    (*ASK, "--out", "/proc/a.jsonl"),
    (*ASK, "--out", "folder.jsonl"),
    (*SAMPLE, "--out", "/proc/a"),
    (*SAMPLE, "--out", "file/a"),
    (*TRAIN, "--out", "/proc/a"),
    (*TRAIN, "--out", "file"),
    ("report", "RUN"),
    ("reproduce", "table1", "--work", "/proc/a"),
    ("reproduce", "table1", "--work", "work", "--results", "file"),
    ("reproduce", "table1", "--work", "work", "--results", "RESULTS"),
]


@pytest.mark.parametrize("words", BAD, ids=lambda words: " ".join(word[:20] for word in words))
def test_a_place_that_cannot_be_written_is_refused_before_work(here, no_work, capsys, words):
    run, results = here / "run", here / "results"
    (run / "report.html").mkdir(parents=True)
    (run / "recipe.yaml").write_text(to_yaml(tiny_runs.tiny_recipe()))
    (results / "table1.json").mkdir(parents=True)
    before = tiny_runs.listed(here)
    assert tiny_runs.unigrpo(*({"RUN": run, "RESULTS": results}.get(word, word) for word in words)) == 2
    message = capsys.readouterr().err
    assert "cannot write to" in message or "a folder is there" in message, message
    assert tiny_runs.listed(here) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_read_only_folder_is_refused(here):
    here.chmod(0o500)
    try:
        for attempt in (lambda: try_file(here / "a.png"), lambda: must_be_new(here / "a" / "b")):
            with pytest.raises(ConfigError, match="Permission denied"):
                attempt()
    finally:
        here.chmod(0o700)


def test_trying_makes_nothing(here):
    before = tiny_runs.listed(here)
    try_folder(here / "a" / "b")
    try_file(here / "a" / "c.png")
    assert tiny_runs.listed(here) == before


# ---------------------------------------------------------------- what is read is not written


def sources(here):
    Image.new("RGB", (32, 32), "red").save(here / "c.png")
    (here / "link.png").symlink_to("c.png")
    os.link(here / "c.png", here / "hard.png")
    (here / "q.jsonl").write_text('{"prompt": "a red circle"}\n')
    (here / "shown.jsonl").write_text('{"prompt": "a red circle", "images": ["00000-0.png"]}\n')
    (here / "results.jsonl").write_text('{"prompt": "a red circle", "picture": "00000-0.png"}\n')
    (here / "00000-0.png").write_bytes((here / "c.png").read_bytes())
    (here / "kept").mkdir()


READ = [
    (*DRAW, "--image", "c.png", "--out", "c.png"),
    (*DRAW, "--image", "c.png", "--out", "kept/../c.png"),
    (*DRAW, "--image", "c.png", "--out", "link.png"),
    (*DRAW, "--image", "link.png", "--out", "c.png"),
    (*DRAW, "--image", "c.png", "--out", "hard.png"),
    (*ASK, "--image", "c.png", "--out", "q.jsonl", "--prompts", "q.jsonl"),
    ("generate", "--understand", "--prompts", "q.jsonl", "--out", "q.jsonl"),
    ("generate", "--prompts", "shown.jsonl", "--out", ".", "--overwrite"),
    ("generate", "--prompts", "results.jsonl", "--out", ".", "--overwrite"),
    (*DRAW, "--image", "00000-0.png", "--out", ".", "--overwrite"),
]


@pytest.mark.parametrize("words", READ, ids=lambda words: " ".join(words[-4:]))
def test_a_source_is_never_overwritten(here, capsys, monkeypatch, words):
    monkeypatch.setattr(build, "check_drawn", lambda *known: None)  # it says first that this model sees no pictures
    sources(here)
    before = {path.name: path.read_bytes() for path in here.iterdir() if path.is_file()}
    assert tiny_runs.unigrpo(*words, *(() if "--understand" in words else ("--model", tiny_runs.model_folder()))) == 2
    message = capsys.readouterr().err
    assert "is read" in message or "one of the two" in message, message
    assert {path.name: path.read_bytes() for path in here.iterdir() if path.is_file()} == before


# ---------------------------------------------------------------- full disks


@pytest.fixture
def full(monkeypatch):
    """A disk that is found full when a file is flushed to it; the system does not say which file."""

    def fsync(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)


def save_checkpoint(folder):
    checkpoint.save(folder, checkpoint.TrainingState(3, {}, {}), lambda partial: None, keep=1)


WRITERS = {
    "sub/a.txt": lambda folder: files.write_text_atomic(folder / "sub" / "a.txt", "a"),
    "metrics.jsonl": lambda folder: runlog.append_metrics(folder, {"iteration": 0}),
    "model.safetensors": lambda folder: write_weights(folder / "model.safetensors", {"a": torch.zeros(1)}),
    "checkpoints/iteration-000003": save_checkpoint,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_names_what_did_not_fit(tmp_path, full, name):
    with pytest.raises(OSError) as caught:
        WRITERS[name](tmp_path)
    assert caught.value.filename == str(tmp_path / name)
    assert not (tmp_path / name).exists() or name == "metrics.jsonl"  # nothing whole that is not whole


def test_a_full_disk_is_named_with_what_to_do(here, capsys, full):
    assert tiny_runs.unigrpo(*DRAW, "--model", tiny_runs.model_folder(), "--out", "sub/a.png") == 2
    message = capsys.readouterr().err
    assert "sub/a.png: No space left on device" in message and "make room there" in message
    assert tiny_runs.listed(here / "sub") == []


# ---------------------------------------------------------------- scripts/collect_results.py


@pytest.fixture
def collect():
    path = Path(__file__).parents[1] / "scripts" / "collect_results.py"
    spec = importlib.util.spec_from_file_location("collect_results", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_collected_figures_replace_nothing_unasked(collect, here, capsys, monkeypatch):
    run = tiny_runs.finished_run()
    monkeypatch.setattr(collect, "RESULTS", here / "tracked")
    collect.main([str(run)])
    (kept,) = (here / "tracked").iterdir()
    kept.write_text("tracked")
    with pytest.raises(SystemExit) as left:
        collect.main([str(run)])
    assert left.value.code == 2 and kept.read_text() == "tracked"
    assert "--overwrite" in capsys.readouterr().err
    collect.main([str(run), "--out", str(here / "mine")])
    assert kept.read_text() == "tracked" and (here / "mine" / kept.name).is_file()
    collect.main([str(run), "--overwrite"])
    assert kept.read_text() == (here / "mine" / kept.name).read_text()
