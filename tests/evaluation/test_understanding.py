"""Questions about pictures: what is right, what is refused, and what is written."""

import json

import pytest
import torch

import tiny_runs
from unigrpo import build
from unigrpo.evaluation.understanding import Asked, answers, records, summary
from unigrpo.recipe import Model

PICTURE = torch.zeros((3, 32, 32), dtype=torch.uint8)
ASKED = [Asked("at", "what is at b2", "red circle", PICTURE), Asked("count", "how many rings", "two", PICTURE)]


def unigrpo(*words):
    return tiny_runs.unigrpo("eval", "--suite", "shapes:questions", *words)


def test_an_answer_is_right_word_for_word():
    made = records(ASKED * 2, ["red circle", "three", "red circle a1", "two"])
    assert [record["right"] for record in made] == [True, False, False, True]
    found = summary(made)
    assert found["accuracy"]["value"] == 0.5 and found["n"] == 4
    assert found["by_kind"] == {"at": 0.5, "count": 0.5}


def test_answers_do_not_depend_on_who_is_asked_beside():
    policy = build.policy(Model("init:micro-rounds"))
    asked = build.questions("shapes:questions", 7)
    assert answers(policy, asked) == answers(policy, asked, batch=3)


def test_what_is_written(tmp_path, capsys):
    assert unigrpo("--model", "init:micro-rounds", "--limit", "30", "--out", tmp_path / "asked") == 0
    assert "accuracy" in capsys.readouterr().out
    result = json.loads((tmp_path / "asked" / "understanding.json").read_text())
    lines = (tmp_path / "asked" / "answers.jsonl").read_text().splitlines()
    assert result["n"] == len(lines) == 30
    assert json.loads(lines[0]).keys() == {"kind", "question", "expected", "answer", "right"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "builtin:shapes-sft"), "does not know the word"),
        (("--reward", "image/jpeg-compressibility"), "draws nothing: leave out --reward"),
        (("--guidance", "2"), "draws nothing: leave out --guidance"),
        (("--limit", "0"), "limit"),
    ],
)
def test_what_cannot_be_asked_is_refused(words, message, capsys):
    assert unigrpo(*words) == 2
    assert message in capsys.readouterr().err


def test_a_world_without_questions_says_so(capsys):
    assert tiny_runs.unigrpo("eval", "--suite", "words:questions") == 2
    assert "the words world has no questions" in capsys.readouterr().err
