"""A folder of pictures: an interrupted one is continued to the same bytes, and nothing of anybody else is replaced."""

import io
import json
import sys

import pytest

import tiny_runs
from unigrpo.commands.drawing import picture_folder
from unigrpo.reports import runlog

PROMPTS = "a red circle\ntwo blue squares\na ring and a cross\n"
EVERY = [f"0000{position}-{sample}.png" for position in range(3) for sample in range(3)]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text(PROMPTS)
    return tmp_path


def draw(*options, prompts="p.txt", out="out"):
    words = ("--num", 3, "--batch", 4, "--max-think-tokens", 4, "--steps", 4, "--out", out)  # 3 prompts: 3 + 3 + 3
    return tiny_runs.unigrpo("generate", "--prompts", prompts, "--model", tiny_runs.model_folder(), *words, *options)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def cut_after(monkeypatch, pictures):
    """Stop as the next picture after so many is written."""
    write, written = picture_folder.save_png_atomic, []

    def save(image, path):
        if len(written) == pictures:
            raise KeyboardInterrupt
        written.append(path)
        return write(image, path)

    monkeypatch.setattr(picture_folder, "save_png_atomic", save)


@pytest.mark.parametrize("pictures", [0, 1, 3, 5, 8])
def test_a_cut_folder_is_continued_to_the_same_bytes(here, capsys, monkeypatch, pictures):
    assert draw(out="whole") == 0
    with monkeypatch.context() as now:
        cut_after(now, pictures)
        assert draw() == 130
    kept = {path: path.stat().st_mtime_ns for path in (here / "out").glob("*.png")}
    assert len(kept) == pictures
    capsys.readouterr()
    assert draw("--continue") == 0
    assert (f"{pictures} of 9 pictures are there" in capsys.readouterr().out) == (pictures > 0)
    assert contents(here / "out") == contents(here / "whole") and sorted(contents(here / "out")) == [
        *EVERY,
        "results.jsonl",
    ]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # not written again


def test_what_is_there_is_not_drawn_again(here, monkeypatch):
    assert draw("--continue") == 0  # of a new folder: everything
    before = contents(here / "out")
    monkeypatch.setattr("unigrpo.rollout.sample.rollout", None)
    assert draw("--continue") == 0
    assert contents(here / "out") == before


def test_a_lost_picture_is_drawn_again(here):
    assert draw() == 0
    before = contents(here / "out")
    (here / "out" / "00001-2.png").unlink()
    assert draw("--continue") == 0
    assert contents(here / "out") == before


def test_more_pictures_of_each_can_be_asked_for(here):
    assert draw("--num", 2) == 0 and draw("--num", 3, "--continue") == 0
    names = [record["picture"] for record in runlog.read_records(here / "out" / "results.jsonl")]
    assert names == EVERY


def test_the_refusal_names_both_ways_on(here, capsys):
    assert draw() == 0
    before = contents(here / "out")
    assert draw() == 2
    message = capsys.readouterr().err
    assert "--continue to draw what is missing" in message and "--overwrite to replace" in message
    assert draw("--continue", "--overwrite") == 2
    assert "choose one of them" in capsys.readouterr().err
    assert contents(here / "out") == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--seed", 1), "seed 0, not 1"),
        (("--guidance", 3), "guidance 1.0, not 3.0"),
        (("--steps", 5), "num_points 4, not 5"),
        (("--no-think",), "think True, not False"),
        (("--num", 2), "00000-2.png is there, and this command would not draw it"),
    ],
)
def test_another_command_is_not_a_continuation(here, capsys, options, said):
    assert draw() == 0
    before = contents(here / "out")
    assert draw("--continue", *options) == 2
    assert said in capsys.readouterr().err
    assert contents(here / "out") == before


def test_other_prompts_are_not_a_continuation(here, capsys):
    assert draw() == 0
    (here / "p.txt").write_text(PROMPTS.replace("ring", "square"))
    assert draw("--continue") == 2
    assert "prompt 'a ring and a cross', not 'a square and a cross'" in capsys.readouterr().err


def test_overwrite_replaces_what_results_names_and_nothing_else(here, capsys):
    assert draw() == 0
    out, old = here / "out", contents(here / "out")
    (out / "notes.txt").write_text("mine")
    (out / "00000-9.png").write_text("mine too")
    assert draw("--overwrite", "--seed", 1, "--num", 2) == 0
    new = contents(out)
    assert sorted(new) == sorted(
        [*(name for name in EVERY if not name.endswith("-2.png")), "results.jsonl", "notes.txt", "00000-9.png"]
    )
    assert new["notes.txt"] == b"mine" and new["00000-9.png"] == b"mine too"
    assert all(new[name] != old[name] for name in new if name in old)
    assert draw("--seed", 1, "--num", 2, out="fresh") == 0
    assert contents(here / "fresh").items() <= new.items()


def test_the_old_pictures_stay_until_there_are_new_ones(here, monkeypatch):
    assert draw() == 0
    before = contents(here / "out")
    monkeypatch.setattr("unigrpo.rollout.sample.rollout", lambda *a, **o: (_ for _ in ()).throw(ValueError("no luck")))
    assert draw("--overwrite", "--seed", 1) == 2
    assert contents(here / "out") == before


@pytest.mark.parametrize("option", ["--continue", "--overwrite"])
@pytest.mark.parametrize("name", ["00001-1.png", "results.jsonl"])
def test_a_strange_file_in_the_way_is_not_replaced(here, capsys, option, name):
    (here / "out").mkdir()
    (here / "out" / name).write_text("")
    assert draw(option) == 2
    assert f"{name} is there, and no results.jsonl says that generate wrote it" in capsys.readouterr().err
    assert contents(here / "out") == {name: b""}


def test_results_cannot_name_files_elsewhere(here):
    (here / "mine.png").write_text("mine")
    assert draw() == 0
    lines = (here / "out" / "results.jsonl").read_text()
    for name in ("../mine.png", str(here / "mine.png"), "results.jsonl"):
        lines += json.dumps({"picture": name}) + "\n"
    (here / "out" / "results.jsonl").write_text(lines)
    assert draw("--overwrite") == 0
    assert (here / "mine.png").read_text() == "mine"


@pytest.mark.parametrize("option", ["--continue", "--overwrite"])
def test_a_single_file_knows_neither(here, capsys, option):
    assert tiny_runs.unigrpo("generate", "a red circle", "--out", "a.png", option) == 2
    assert f"{option} is for a folder of pictures" in capsys.readouterr().err


# ---------------------------------------------------------------- prompts from stdin


def test_prompts_from_stdin_are_those_of_a_file(here, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n" + PROMPTS.replace("\n", "  \r\n\n")))
    assert draw(prompts="-", out="a") == 0 and draw(out="b") == 0
    assert contents(here / "a") == contents(here / "b")


def test_a_suite_from_stdin_is_judged_by_a_reward(here, capsys, monkeypatch):
    options = ("--model", tiny_runs.model_folder(), "--samples", 1, "--max-think-tokens", 4, "--steps", 3)
    monkeypatch.setattr(sys, "stdin", io.StringIO("a red circle\ntwo blue squares\na ring\n"))
    words = ("eval", "--suite", "-", "--limit", 2, "--reward", "image/jpeg-compressibility", *options)
    assert tiny_runs.unigrpo(*words, "--out", "out") == 0
    assert [r["prompt"] for r in runlog.read_records(here / "out" / "records.jsonl")] == [
        "a red circle",
        "two blue squares",
    ]
    assert "drawn with 3 grid points (2 forwards)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("stdin", "said"), [(None, "stdin is empty"), (" \n\n", "stdin is empty"), ("a\udcff\n", "not UTF-8")]
)
def test_a_stdin_without_prompts_is_refused(here, capsys, monkeypatch, stdin, said):
    monkeypatch.setattr(sys, "stdin", None if stdin is None else io.StringIO(stdin))
    assert tiny_runs.unigrpo("generate", "--prompts", "-") == 2
    assert said in capsys.readouterr().err
    assert tiny_runs.listed(here) == ["p.txt"]
