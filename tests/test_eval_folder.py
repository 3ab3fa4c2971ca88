"""Anybody's folder of pictures in GenEval's layout: what is read, what is left out, what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from unigrpo.evaluation.suites import Suite, answer
from unigrpo.ranges import ConfigError
from unigrpo.reports.evaluation_page import notices, page_content
from unigrpo.runs import eval_folder
from unigrpo.runs.eval_folder import check_plan, contents, line_of, write_picture, write_prompts
from unigrpo.runs.examining import examine, result_of, write_result
from unigrpo.trajectory import Prompt

PROMPTS = [Prompt(i, f"a photo of {i}", {"tag": "single_object", "include": [{"class": "dog"}]}) for i in range(3)]


class Sizes:
    """Says of every picture how large it is, and what colour its first pixel has."""

    def __init__(self):
        self.asked, self.about = 0, {"examiner": "sizes"}

    def __call__(self, pictures, prompts, thinking):
        self.asked += len(pictures)
        return [answer("all", correct=True, detail=[*p.shape[1:], *p[:, 0, 0].tolist()]) for p in pictures]


@pytest.fixture
def folder(tmp_path):
    write_prompts(tmp_path, PROMPTS)
    for prompt in PROMPTS:
        for n in range(2):
            write_picture(tmp_path, prompt, n, torch.full((3, 8, 6), prompt.position, dtype=torch.uint8), f"t{n}")
    return tmp_path


def suite(examiner=None):
    return Suite("s", PROMPTS, examiner or Sizes())


def test_what_is_written_is_found(folder):
    found = contents(folder, PROMPTS)
    assert [(f.prompt.position, f.sample, f.thinking) for f in found.pictures][:2] == [(0, 0, "t0"), (0, 1, "t1")]
    assert (len(found.pictures), found.expected, found.reworded, found.odd) == (6, 6, 0, [])
    assert json.loads((folder / "00001/metadata.jsonl").read_text()) == line_of(PROMPTS[1])
    assert np.asarray(Image.open(folder / "00002/samples/0001.png")).shape == (8, 6, 3)


def test_pictures_of_all_kinds_are_read(folder):
    samples = folder / "00000/samples"
    for path in samples.iterdir():
        path.unlink()
    Image.new("L", (5, 4), 200).save(samples / "00000.png")  # five digits, as GenEval's own script writes
    Image.new("RGBA", (5, 4), (9, 9, 9, 0)).save(samples / "1.png")  # nothing of it covers the white below
    Image.new("RGB", (5, 4), (255, 0, 0)).save(samples / "2.JPG", quality=100)
    Image.new("I;16", (5, 4)).save(samples / "3.png")
    (samples / "4.png").write_bytes(b"\x89PNG cut")
    (samples / "notes.txt").write_text("x")
    (samples / ".5.png.1.00000000.tmp").write_text("x")
    records, held = examine(folder, folder, suite())
    assert [r["detail"] for r in records[:2]] == [[4, 5, 200, 200, 200], [4, 5, 255, 255, 255]]
    assert records[2]["detail"][:2] == [4, 5] and records[2]["detail"][2] > 250
    assert "more than 8 bits" in records[3]["failed"] and "cannot be read" in records[4]["failed"]
    assert records[3]["correct"] is None and held.odd == ["00000/samples/notes.txt"]
    assert held.expected == 15  # the prompt with the most has five: two of each of the others are there
    result = result_of(folder, suite(), records, held, {}, "somebody")
    assert result["missing"] == 6 and result["failed"]["count"] == 2 and result["headline"]["value"] is None
    write_result(folder, folder, result, records)
    assert "2 of 9 pictures have no answer and count nowhere; for example: 3.png cannot" in notices(result)[0]
    page = (folder / "report.html").read_text()
    assert "6 of 15 pictures are missing" in page and "notes.txt" in page and "2 of 9 pictures have no answer" in page


def test_words_may_differ_where_the_task_is_the_same(folder):
    (folder / "00001/metadata.jsonl").write_text(json.dumps({**PROMPTS[1].metadata, "prompt": "in other words"}))
    found = contents(folder, PROMPTS)
    assert found.reworded == 1 and found.pictures[2].prompt.text == "in other words"
    (folder / "00001/metadata.jsonl").write_text(json.dumps({"prompt": "another"}))
    with pytest.raises(ConfigError, match=r"is of the prompt 'another', and the suite has 'a photo of 1' at 1"):
        contents(folder, PROMPTS)
    (folder / "00001/metadata.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"metadata.jsonl is not there: every folder needs"):
        contents(folder, PROMPTS)


def test_what_cannot_be_told_apart_is_refused(folder, tmp_path_factory):
    Image.new("RGB", (2, 2)).save(folder / "00000/samples/0.jpg")
    with pytest.raises(ConfigError, match="one sample twice"):
        contents(folder, PROMPTS)
    (folder / "1").mkdir()
    with pytest.raises(ConfigError, match="one prompt twice"):
        contents(folder, PROMPTS)
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(ConfigError, match="has no pictures in GenEval's layout"):
        contents(empty, PROMPTS)
    write_prompts(empty, PROMPTS)
    with pytest.raises(ConfigError, match="has no pictures yet"):
        contents(empty, PROMPTS)
    with pytest.raises(ConfigError, match="is not a folder"):
        contents(empty / "nowhere", PROMPTS)


def test_answers_stay_and_changed_pictures_are_asked_again(folder):
    first = Sizes()
    whole, _ = examine(folder, folder, suite(first))
    lines = (folder / "records.jsonl").read_text()
    (folder / "records.jsonl").write_text(lines[:-40])  # a kill cuts the last line
    again = Sizes()
    assert examine(folder, folder, suite(again))[0] == whole and (first.asked, again.asked) == (6, 1)
    assert (folder / "records.jsonl").read_text() == lines
    Image.new("RGB", (2, 2)).save(folder / "00002/samples/0000.png")
    third = Sizes()
    assert examine(folder, folder, suite(third))[0][4]["detail"][:2] == [2, 2] and third.asked == 1
    third.about = {"examiner": "another"}
    with pytest.raises(ConfigError, match=r"examiner.examiner 'sizes', and it is 'another' now: its answers stay"):
        examine(folder, folder, suite(third))


def test_what_has_no_answer_is_asked_again(folder):
    class Fails(Sizes):
        def __call__(self, pictures, prompts, thinking):
            found = super().__call__(pictures, prompts, thinking)
            return [{**r, "failed": "down", "correct": None} for r in found[:2]] + found[2:]

    records, _ = examine(folder, folder, suite(Fails()))
    assert [r["failed"] for r in records] == ["down", "down", None, None, None, None]
    again = Sizes()
    records, _ = examine(folder, folder, suite(again))
    assert again.asked == 2 and not any(r["failed"] for r in records)


def test_a_plan_is_kept_and_another_one_names_its_key(tmp_path):
    path, plan = tmp_path / "eval.json", {"settings": {"seed": 0, "interval": (0.0, 1.0)}, "suite": {"name": "s"}}
    assert check_plan(path, plan, "go") is False and check_plan(path, plan, "go") is True
    with pytest.raises(ConfigError, match=r"settings.seed 0, and it is 1 now: go"):
        check_plan(path, {**plan, "settings": {"seed": 1, "interval": (0.0, 1.0)}}, "go")


def test_what_was_thought_comes_back_letter_by_letter(tmp_path):
    write_prompts(tmp_path, PROMPTS[:1])
    for n, words in enumerate(["", "a\r\nb \u2028 é\n", None]):
        write_picture(tmp_path, PROMPTS[0], n, torch.zeros(3, 2, 2, dtype=torch.uint8), words)
    assert [f.thinking for f in contents(tmp_path, PROMPTS).pictures] == ["", "a\r\nb \u2028 é\n", None]
    assert eval_folder.picture_of(tmp_path, 0, 2).is_file()


def test_a_page_tells_further_figures_once(folder):
    """Not those of its own tables, nor how many the examiner did not answer: it was not shown the unreadable ones."""
    (folder / "00000/samples/0000.png").write_bytes(b"cut")
    seen = {"single_object": 1.0, "correct_prompts": 0.5, "failed": 0}
    told = Suite("s", PROMPTS, Sizes(), further=lambda records: seen)
    records, held = examine(folder, folder, told)
    result = result_of(folder, told, records, held, {}, "somebody")
    assert result["further"] == seen and result["failed"]["count"] == 1 and "single_object" in result["categories"]
    assert page_content(result, records, folder)["further"] == [("correct prompts", "0.5")]
