from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from unigrpo.ranges import ConfigError
from unigrpo.rewards import frozen
from unigrpo.rewards.ocr import OcrText, closeness, edit_distance, wanted_word
from unigrpo.rewards.protocol import RewardFault, RewardInput, call
from unigrpo.worlds.words.renderer import render
from unigrpo.worlds.words.signs import written


@pytest.fixture(scope="module")
def reader() -> OcrText:
    return OcrText(detect=False, threads=1)


def signs(*words: str) -> torch.Tensor:
    return render([written(word, 1) for word in words])


def judged(reader: OcrText, images: torch.Tensor, *wanted: str):
    return reader(
        images, [f"write {word}" for word in wanted], [{"word": word} for word in wanted], [None] * len(wanted)
    )


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [("", "", 0), ("cab", "cab", 0), ("", "cab", 3), ("cab", "cb", 1), ("cab", "bac", 2), ("kitten", "sitting", 3)],
)
def test_edit_distance(first: str, second: str, distance: int):
    assert edit_distance(first, second) == edit_distance(second, first) == distance


def test_closeness_is_one_minus_the_share_of_wrong_letters_and_never_below_zero():
    assert closeness("cab", "cab") == 1
    assert closeness("cob", "cab") == pytest.approx(2 / 3)
    assert closeness("something else", "cab") == 0
    assert closeness("cabcab", "cab") == 0
    assert closeness("cabcab", "cab", contained=True) == 1


def test_the_word_is_the_metadatas_or_the_first_in_double_quotes():
    assert wanted_word('a sign "NO"', {"word": "YES"}) == "YES"
    assert wanted_word('a sign that says "Hello World" in "red"', {}) == "Hello World"
    assert wanted_word("a sign “HI”", {}) == "HI"
    assert wanted_word("a sign that says HI", {}) is None


def test_a_batch_is_read_in_order_and_scored_letter_by_letter(reader: OcrText):
    output = judged(reader, signs("CAB", "HI", "ROLE", "CAB"), "CAB", "HI", "ROLE", "COB")
    assert list(output.values) == pytest.approx([1, 1, 1, 2 / 3])
    assert list(output.parts["similarity"]) == list(output.values)
    assert list(output.parts["exact"]) == [1, 1, 1, 0]
    assert not output.errors


def test_a_picture_is_read_the_same_alone_and_in_batches_of_two(reader: OcrText):
    images = signs("CAB", "HI", "ROLE", "ABU", "TI")
    images = (images + 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    alone = [text for image in images for text in reader.read(image[None])]
    assert reader.read(images) == alone == OcrText(detect=False, threads=1, batch=2).read(images)


def test_case_and_spaces_do_not_count(reader: OcrText):
    output = judged(reader, signs("CAB"), " c Ab")
    assert list(output.values) == [1]


def test_a_picture_that_cannot_be_judged_is_an_error_and_not_a_zero(reader: OcrText):
    images = signs("CAB", "CAB", "CAB")
    images[1, 0, 0, 0] = math.nan
    metadata = [{}, {"word": "CAB"}, {"word": "CAB"}]
    output = reader(images, ["write CAB"] * 3, metadata, [None] * 3)
    assert set(output.errors) == {0, 1}
    assert "names no word" in output.errors[0] and "NaN" in output.errors[1]
    assert math.isnan(output.values[0]) and math.isnan(output.values[1]) and output.values[2] == 1
    with pytest.raises(RewardFault, match="names no word"):
        call("ocr/text", reader, RewardInput(images, ["write CAB"] * 3, metadata, [None] * 3))


def test_an_empty_word_is_an_error(reader: OcrText):
    output = judged(reader, signs("CAB"), " ")
    assert "is empty" in output.errors[0]


def test_an_empty_picture_says_nothing_and_scores_zero(reader: OcrText):
    output = judged(reader, torch.full((1, 3, 16, 48), 0.1), "CAB")
    assert list(output.values) == [0] and not output.errors


def test_no_pictures_have_no_values(reader: OcrText):
    assert judged(reader, signs("CAB")[:0]).values == []


def test_text_is_found_anywhere_on_a_page(capfd: pytest.CaptureFixture[str]):
    page = Image.new("RGB", (200, 120), (40, 60, 140))
    ImageDraw.Draw(page).text((90, 60), "CHILD", font=ImageFont.load_default(28), fill="white")
    pixels = torch.from_numpy(np.array(page)).permute(2, 0, 1).float()[None] / 255
    output = OcrText(threads=1)(pixels, ['a sign "child"'], [{}], [None])
    assert list(output.values) == [1]
    assert capfd.readouterr() == ("", "")  # nor does the reader say anything


def test_the_reader_gets_blue_before_red_as_it_was_trained(reader: OcrText, monkeypatch: pytest.MonkeyPatch):
    seen: list[np.ndarray] = []

    def recognise(pictures: list[np.ndarray]):
        seen.extend(pictures)
        return SimpleNamespace(txts=("",))

    monkeypatch.setattr(reader._engine, "recognize_txt", recognise)
    reader.read(torch.tensor([1.0, 0.5, 0.0]).reshape(1, 3, 1, 1).expand(1, 3, 16, 48))
    assert seen[0].shape == (16, 48, 3) and seen[0][0, 0].tolist() == [0, 128, 255]


def test_upscaled_pictures_are_read_too():
    output = judged(OcrText(detect=False, upscale=2.5, threads=1), signs("LACE", "DO"), "LACE", "DO")
    assert list(output.values) == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"upscale": 0.5}, "upscale = 0.5"),
        ({"upscale": math.nan}, "upscale = nan"),
        ({"upscale": "2"}, "upscale = '2'"),
        ({"threads": -1}, "threads = -1"),
        ({"batch": 0}, "batch = 0"),
        ({"batch": True}, "batch = True"),
        ({"detect": "no"}, "detect = 'no'"),
    ],
)
def test_wrong_arguments_are_refused_in_one_sentence(arguments: dict, named: str):
    with pytest.raises(ConfigError, match=named):
        OcrText(**arguments)


def test_a_missing_package_is_told_with_what_installs_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(frozen, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"reward 'ocr/text' needs the package rapidocr: pip install '.\[ocr\]'"):
        OcrText()


def test_only_float_pictures_are_read(reader: OcrText):
    with pytest.raises(ValueError, match="reads float pictures"):
        reader.read(torch.zeros((1, 3, 16, 48), dtype=torch.uint8))


def test_a_word_that_is_no_text_is_told():
    output = OcrText(detect=False)(torch.zeros(1, 3, 16, 48), ["write it"], [{"word": 3}], [None])
    assert output.errors == {0: "the word of its metadata is 3, which is no text: quote it"}
