"""The ocr suite: its 60 prompts, and words that a real reader reads."""

import json
from collections import Counter

import pytest
import torch

from unigrpo.evaluation import ocr
from unigrpo.ranges import ConfigError
from unigrpo.rewards.ocr import wanted_word
from unigrpo.trajectory import Prompt
from unigrpo.worlds.words.renderer import render
from unigrpo.worlds.words.signs import written


def test_there_are_60_prompts_that_hold_their_words_in_quotes():
    prompts = ocr.prompts()
    assert len(prompts) == 60 and len({p.text for p in prompts}) == 60
    assert len({p.metadata["word"] for p in prompts}) == 60
    assert set(Counter(p.metadata["category"] for p in prompts).values()) == {10}
    assert all(wanted_word(p.text, {}) == p.metadata["word"] for p in prompts)
    lengths = [len(p.metadata["word"]) for p in prompts]
    assert min(lengths) <= 3 and max(lengths) >= 20
    assert len(ocr.version()) == 64


@pytest.fixture(scope="module")
def examiner():
    return ocr.OcrExaminer(detect=False, threads=1)


def test_words_are_read_and_compared_letter_by_letter(examiner):
    pictures = (render([written(word, 1) for word in ("CAB", "ROLE")]) * 255).round().byte()
    shown = [pictures[0], pictures[0], torch.nn.functional.pad(pictures[1], (0, 8), value=0)]  # of two sizes
    prompts = [
        Prompt(i, "a sign", {"category": "short", "word": word}) for i, word in enumerate(("cab", "COB", "ROLES"))
    ]
    right, near, part = found = examiner(shown, prompts, [None] * 3)
    assert (right["correct"], right["exam"], right["reasons"]) == (True, 1.0, [])
    assert near["correct"] is False and near["exam"] == pytest.approx(2 / 3)
    assert near["reasons"] == ["reads 'CAB' for 'COB'"] and near["detail"] == {"read": "CAB"}
    assert part["exam"] == pytest.approx(4 / 5) and part["failed"] is None and part["category"] == "short"
    figures = ocr.figures(found)
    assert figures["exact"] == pytest.approx(1 / 3) and figures["unanswered"] == 0
    assert json.dumps(found) and json.dumps(examiner.about)
    assert examiner.about["packages"]["rapidocr"] and examiner.about["parameters"] == {"detect": False, "upscale": 1.0}


def test_nothing_to_read_is_a_zero_and_nothing_to_compare_is_none(examiner):
    blank = torch.full((3, 32, 64), 128, dtype=torch.uint8)
    prompts = [Prompt(0, 'a sign "HI"', {"category": "x"}), Prompt(1, "a sign", {"category": "x"})]
    blind, unknown = found = examiner([blank, blank], prompts, [None, None])
    assert (blind["exam"], blind["correct"], blind["failed"]) == (0.0, False, None)  # it was read: there are no words
    assert unknown["exam"] is None and unknown["correct"] is None and "names no words" in unknown["failed"]
    assert set(unknown["values"].values()) == {None} and ocr.figures(found)["unanswered"] == 1


def test_words_among_others_are_contained_but_not_exact(examiner, monkeypatch):
    monkeypatch.setattr(examiner._reader, "read", lambda images: ["Fresh RYE bread"])
    prompt = Prompt(0, "x", {"category": "x", "word": "rye"})
    (one,) = examiner([torch.zeros((3, 8, 8), dtype=torch.uint8)], [prompt], [None])
    assert one["values"] == {"exact": 0.0, "similarity": 0.0, "contained": 1.0} and one["exam"] == 0.0


def test_wrong_arguments_are_refused():
    with pytest.raises(ConfigError, match="upscale"):
        ocr.OcrExaminer(upscale=0.5)
    with pytest.raises(ValueError, match="0 pictures and 1 prompt:"):
        ocr.OcrExaminer(detect=False)([], [Prompt(0, "x", {"category": "x"})], [None])
