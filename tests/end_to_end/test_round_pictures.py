"""Rounds by the command line and in Python: pictures of every round, evaluations and their controls, and reports."""

import html
import json
import re
from pathlib import Path

import pytest
from PIL import Image

import tiny_runs
import toy_family
import unigrpo
from unigrpo.ranges import ConfigError
from unigrpo.reports import runlog
from unigrpo.reports.pictures import pairs
from unigrpo.rollout.episode import Episode
from unigrpo.runs import comparing, eval_rounds
from unigrpo.runs.comparing import Evaluated
from unigrpo.training.sharing import light

RED = f"{Path(toy_family.__file__)}:redness"
FAST = ("--steps", "3", "--max-think-tokens", "6")


@pytest.fixture
def model():
    return str(tiny_runs.model_folder())


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_folder_of_pictures_has_those_of_every_round(tmp_path, model, capsys):
    words = ("generate", "a red circle", "--model", model, "--rounds", 3, "--num", 2, *FAST)
    assert tiny_runs.unigrpo(*words, "--out", tmp_path / "out") == 0
    names = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert names == sorted(f"00000-{s}{end}.png" for s in (0, 1) for end in ("", "-round-1", "-round-2"))
    for row in rows(tmp_path / "out/results.jsonl"):
        assert [one["picture"] for one in row["rounds"]][-1] == row["picture"] and row["settings"]["rounds"] == 3
        assert row["rounds"][-1]["thinking"] == row["thinking"] != row["rounds"][0]["thinking"]
    (first, *_), said = rows(tmp_path / "out/results.jsonl"), capsys.readouterr().out
    assert f"1: {first['rounds'][0]['thinking']} 2:" in said
    again = ("--continue", "--out", tmp_path / "out")
    (tmp_path / "out/00000-1.png").unlink()
    assert tiny_runs.unigrpo(*words, *again) == 0 and (tmp_path / "out/00000-1.png").is_file()
    assert tiny_runs.unigrpo(*words[:4], *FAST, "--num", 2, *again) == 2  # drawn in another number of rounds


def test_one_picture_and_those_before_it(tmp_path, model):
    words = ("generate", "a red circle", "--model", model, "--rounds", 2, "--num", 1, *FAST)
    assert tiny_runs.unigrpo(*words, "--out", tmp_path / "one.png") == 0
    with Image.open(tmp_path / "one.png") as sheet:  # a small model's picture stands on a sheet, its first one beside
        assert sheet.width > 1.4 * 168


def test_generate_in_python_gives_the_same_pictures(tmp_path, model):
    words = ("generate", "a red circle", "--model", model, "--rounds", 2, "--num", 2)
    assert tiny_runs.unigrpo(*words, "--steps", 3, "--out", tmp_path / "out") == 0
    made = unigrpo.load(model).generate("a red circle", 2, steps=3, rounds=2)
    for row, picture in zip(rows(tmp_path / "out/results.jsonl"), made, strict=True):
        (before,) = picture.earlier
        assert [one["thinking"] for one in row["rounds"]] == [before.thinking, picture.thinking]
        for one, shown in zip(row["rounds"], (before, picture), strict=True):
            with Image.open(tmp_path / "out" / one["picture"]) as there:
                assert there.tobytes() == shown.tobytes()
        assert before.prompt == picture.prompt == "a red circle"
    with pytest.raises(ConfigError, match="generate: rounds = 0"):
        unigrpo.load(model).generate("a red circle", rounds=0)


@pytest.fixture
def ending(monkeypatch):
    monkeypatch.setattr(Episode, "ends", lambda self, words: len(words) % 2 == 0)


def test_an_evaluation_examines_every_round(tmp_path, model, ending):
    words = ("eval", "--model", model, "--rounds", 2, "--stop-word", "over", "--samples", 2, "--limit", 3, *FAST)
    assert tiny_runs.unigrpo(*words, "--reward", RED, "--suite", "shapes", "--out", tmp_path / "out") == 0
    records = rows(tmp_path / "out/records.jsonl")
    drawn = [sum("category" in one for one in record["rounds"]) for record in records]
    assert set(drawn) == {1, 2} and len(records) == 6
    for record, count in zip(records, drawn, strict=True):
        last = record["rounds"][count - 1]
        assert last["values"] == record["values"] and last["picture"] == record["picture"]
        if count == 1:
            assert set(record["rounds"][1]) == {"thinking"} and len(record["rounds"][1]["thinking"]) % 2 == 0
        else:
            assert record["rounds"][0]["picture"].endswith("-1.png") and record["rounds"][0]["values"] != last["values"]
    figures = json.loads((tmp_path / "out/result.json").read_text())["rounds"]
    assert figures["rounds"] == sum(drawn) / 6 and figures["revision"] is not None
    assert tiny_runs.unigrpo("eval", "score", tmp_path / "out", "--suite", "shapes", "--limit", 3, "--reward", RED,
                             "--out", tmp_path / "again") == 0  # fmt: skip
    assert rows(tmp_path / "again/records.jsonl") == records
    page = (tmp_path / "out/report.html").read_text()
    for record, count in zip(records, drawn, strict=True):  # what it thought in the order in which it thought it
        first, second = (html.escape(one["thinking"]) for one in record["rounds"])
        end = "" if count == 2 else r' <span class="faint">\(and drew no more\)</span>'
        said = r"Round {} thought:</span> {}"
        both = (
            said.format(1, re.escape(first)) + r"</p>\s*<p><span class=\"faint\">" + said.format(2, re.escape(second))
        )
        assert re.search(both + end + "</p>", page), (record["rounds"], count)
    # every first picture that was looked at stands before the one that counts
    assert len(re.findall(r'round 1</span><img[^>]*></div>\s*<span class="faint">round 2</span>\s*<img', page)) == (
        drawn.count(2)
    )
    assert len(re.findall(r'<span class="faint">round 1</span>\s*<img[^>]*>\s*<p><strong>', page)) == drawn.count(1)
    assert f"<td>pictures of a sample</td><td>{sum(drawn) / 6:.3f}</td>" in page and "gained by looking" in page


@pytest.mark.parametrize(
    ("options", "same"),
    [((), True), (("--look", "grey"), False), (("--look", "other"), False), (("--rethink", "over"), False)],
)
def test_controls_change_what_follows_a_look_alone(tmp_path, model, options, same):
    words = ("eval", "--model", model, "--rounds", 2, "--samples", 1, "--limit", 2, *FAST, "--suite", "shapes")
    for name, more in (("plain", ()), ("control", options)):
        assert tiny_runs.unigrpo(*words, *more, "--draw-only", "--out", tmp_path / name) == 0
    for position in ("00000", "00001"):
        first, last = (f"{position}/{name}" for name in ("rounds/0000-1.png", "samples/0000.png"))
        assert (tmp_path / "plain" / first).read_bytes() == (tmp_path / "control" / first).read_bytes()
        assert ((tmp_path / "plain" / last).read_bytes() == (tmp_path / "control" / last).read_bytes()) == same


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--look", "grey"), "--look is about what follows a picture: add --rounds 2"),
        (("--rounds", 2, "--stop-word", "over", "--no-think"), "leave out --no-think"),
        (("--rounds", 2, "--rethink", "xyzzy"), "--rethink = 'xyzzy': the model does not know"),
        (
            ("--rounds", 2, "--stop-word", "red blue circle red blue circle red"),
            "7 tokens, and a thinking is cut after 6",
        ),
        (("--rounds", 2, "--look", "other"), "some would be drawn with none"),
        (("--rounds", 99), "--rounds = 99: it must be from 1 to 64"),
        (("--rounds", 2, "--stop-word", "</think>"), "need words"),
    ],
)
def test_options_that_cannot_work_are_refused(model, options, message, capsys, tmp_path):
    words = ("generate", "a red circle", "--model", model, *FAST, "--out", tmp_path / "out.png")
    assert tiny_runs.unigrpo(*words, *options) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", [("--rounds", 2), ("--num", 2), ("--size", "32x32"), ("--guidance", 2)])
def test_an_answer_has_no_use_for_options_of_drawing(model, option, capsys):
    assert tiny_runs.unigrpo("generate", "what is there", "--model", model, "--understand", *option) == 2
    assert f"--understand answers in words and draws nothing: leave out {option[0]}" in capsys.readouterr().err


def test_an_evaluation_that_would_find_no_other_picture_is_refused(model, capsys, tmp_path):
    words = ("eval", "--model", model, "--rounds", 2, "--look", "other", *FAST, "--limit", 3, "--samples", 2)
    assert tiny_runs.unigrpo(*words, "--batch", 4, "--out", tmp_path / "out") == 2
    assert "of 3 prompts with 2 samples each, 4 together, some would be drawn with none" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="of 1 prompt with 1 sample each, 192 together"):
        tiny_runs.trainer_of(tmp_path, rollout__rounds=2, eval__look="other", eval__compare_limit=1)


def test_a_model_that_cannot_look_is_refused(tmp_path):
    blind = Path(toy_family.__file__).read_text().replace('"think", True', '"think", False')
    (tmp_path / "blind.py").write_text(blind)
    options = {"model__path": f"{tmp_path}/blind.py:Toys", "rollout__rounds": 2, "eval__prompts": "toys.txt"}
    (tmp_path / "toys.txt").write_text("red left\nblue\n")
    options |= {"eval__prompts": tmp_path / "toys.txt", "data__prompts": tmp_path / "toys.txt"}
    options |= {"reward__train": f"[{{name: '{RED}'}}]", "reward__validation": f"[{{name: '{RED}'}}]"}
    with pytest.raises(ConfigError, match="cannot look at what it drew"):
        tiny_runs.trainer_of(tmp_path, eval__compare_limit=2, eval__limit=2, **options)


def test_a_report_shows_the_pictures_of_every_round(tmp_path):
    words = tiny_runs.overrides(rollout__rounds=2, iterations=2)
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", tmp_path / "run", *words) == 0
    shown = pairs(tmp_path / "run")
    assert shown and all(len(pair[when]["earlier"]) == 1 for pair in shown for when in ("before", "after"))
    said = [[one["who"] for one in pair[when]["thoughts"]] for pair in shown for when in ("before", "after")]
    assert said == [["Round 1 thought:", "Round 2 thought:"]] * 2 * len(shown)
    page = (tmp_path / "run" / runlog.REPORT).read_text()
    order = r'round 1</span><img[^>]*></div>\s*<span class="faint">round 2</span>\s*<img'
    assert len(re.findall(order, page)) == 2 * len(shown)
    for words in ("reward of first pictures", "gained by looking", "Validation score of first and last pictures"):
        assert words in page
    (sheet,) = (tmp_path / "run/samples").glob("*.png")
    with Image.open(sheet) as image:
        assert image.width > 6 * 168 * 1.4  # a first picture beside each


def test_an_evaluation_of_one_round_is_compared_with_one_of_two():
    settings = [{"seed": 0}, {"seed": 0, "rounds": 2, "look": "seen", "stop_words": []}]
    found = [Evaluated(str(i), {"model": {"name": "a"}, "settings": some}, []) for i, some in enumerate(settings)]
    assert comparing._differing(found)[0] == ["rounds", [1, 2]]


def test_an_evaluation_in_python(model):
    found = unigrpo.evaluate(model, ["red circle", "blue square"], RED, samples=1, rounds=2)
    assert all(len(record["rounds"]) == 2 for record in found.records) and found.summary["revision"] is not None


def test_rounds_of_a_folder(tmp_path):
    assert eval_rounds.rounds_of(tmp_path, 0) == ([], None)


def test_what_other_ranks_know_has_no_pixels():
    trainer = tiny_runs.trainer_of("unused", rollout__rounds=2)
    source = trainer.parts.source
    from unigrpo.training.clock import Clock

    made = source.collect(trainer.parts.policy, 0, Clock())
    assert all(image.pixels is not None for image in made.samples[0].drawings[:1])
    small = light(made.samples[0])
    assert all(image.pixels is None and not image.latents.numel() for image in small.drawings)
    assert small.advantages == made.samples[0].advantages and small.scores == made.samples[0].scores
