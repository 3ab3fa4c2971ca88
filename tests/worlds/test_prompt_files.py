"""Prompts from files and data sets: what is read, in which order, and what is said of faults."""

import json

import pytest
import torch
from PIL import Image

from unigrpo.worlds.prompt_files import own_prompts, read_picture, shuffled

GENEVAL = [
    {"tag": "two_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {
        "tag": "counting",
        "include": [{"class": "clock", "count": 2}],
        "exclude": [{"class": "clock", "count": 3}],
        "prompt": "a photo of two clocks",
    },
    {
        "tag": "position",
        "include": [{"class": "bear", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}],
        "prompt": "a photo of a dog right of a bear",
    },
]


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(path, rows):
    return written(path, "".join(json.dumps(row) + "\n" for row in rows))


def test_a_text_file_has_one_prompt_a_line(tmp_path):
    # a byte order mark, Windows line ends, blank lines, and U+2028, which is no end of a line
    path = written(tmp_path / "p.txt", b"\xef\xbb\xbfa red cup\r\n\r\n  two\xe2\x80\xa8dogs \n\n")
    some = own_prompts(path, 0).fixed(9)
    assert [(p.position, p.text, dict(p.metadata), p.images) for p in some] == [
        (0, "a red cup", {}, ()),
        (1, "two\u2028dogs", {}, ()),
    ]


def test_genevals_own_file_is_read_with_its_tag_as_category(tmp_path):
    some = own_prompts(lines(tmp_path / "evaluation_metadata.jsonl", GENEVAL), 0).fixed(2)
    assert [p.text for p in some] == ["a photo of a bench", "a photo of two clocks"]
    for prompt, row in zip(some, GENEVAL, strict=False):
        assert prompt.metadata == {k: v for k, v in row.items() if k != "prompt"} | {"category": row["tag"]}
    own = own_prompts(lines(tmp_path / "own.jsonl", [{"prompt": "x", "tag": "a", "category": "b"}]), 0).fixed(1)
    assert own[0].metadata == {"tag": "a", "category": "b"}


def test_every_pass_has_every_prompt_once_in_a_new_order(tmp_path):
    stream = own_prompts(written(tmp_path / "p.txt", "\n".join(f"prompt {i}" for i in range(10))), 3)
    some = stream.batch(0, 30)
    assert [p.position for p in some] == list(range(30))
    passes = [[p.text for p in some[start : start + 10]] for start in (0, 10, 20)]
    assert all(sorted(one) == sorted(f"prompt {i}" for i in range(10)) for one in passes)
    assert len({tuple(one) for one in passes}) == 3
    assert [p.text for p in stream.fixed(3)] == ["prompt 0", "prompt 1", "prompt 2"]


def test_the_stream_has_random_access_and_depends_on_the_seed(tmp_path):
    path = written(tmp_path / "p.txt", "\n".join(f"prompt {i}" for i in range(50)))
    whole = own_prompts(path, 1).batch(0, 28)
    assert own_prompts(path, 1).batch(3, 7) == whole[21:]  # a resumed run begins in the middle
    assert [p.text for p in own_prompts(path, 2).batch(0, 28)] != [p.text for p in whole]
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    assert shuffled(1, 777, 50) == shuffled(1, 777, 50)
    assert torch.equal(before, torch.random.get_rng_state())


def test_pictures_come_with_the_prompt_and_are_read_when_it_is_used(tmp_path):
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (5, 4), (255, 128, 0)).save(tmp_path / "sub" / "a.png")
    rows = [{"prompt": "make <image> blue", "images": ["sub/a.png"]}, {"prompt": "plain", "images": []}]
    prompts = own_prompts(lines(tmp_path / "p.jsonl", rows), 0)
    first, second = prompts.fixed(2)
    assert len(first.images) == 1 and second.images == () and "images" not in first.metadata
    assert first.images[0].dtype == torch.uint8 and first.images[0].shape == (3, 4, 5)
    assert first.images[0][:, 0, 0].tolist() == [255, 128, 0]
    (tmp_path / "sub" / "a.png").write_bytes(b"no picture")  # noticed only now
    with pytest.raises(ValueError, match=r"p\.jsonl, line 1: .*a\.png cannot be read as a picture"):
        prompts.fixed(1)


def test_pictures_are_upright_and_transparency_is_white(tmp_path):
    wide = Image.new("RGB", (6, 4))
    exif = wide.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    wide.save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg", "here").shape == (3, 6, 4)
    Image.new("RGBA", (1, 1), (255, 0, 0, 128)).save(tmp_path / "half.png")
    assert read_picture(tmp_path / "half.png", "here").flatten().tolist() == [255, 127, 127]
    Image.new("P", (2, 1), 3).save(tmp_path / "palette.gif")
    assert read_picture((tmp_path / "palette.gif").read_bytes(), "here").shape == (3, 1, 2)
    Image.new("I;16", (2, 2), 40000).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="more than 8 bits"):
        read_picture(tmp_path / "deep.png", "here")


FAULTS = {
    "not JSON": (
        '{"prompt": "a"}\n{"prompt": }\n',
        r"p\.jsonl, line 2 is not JSON \(Expecting value at column 12\)",
    ),
    "no object": ('{"prompt": "a"}\n\n["b"]\n', r"p\.jsonl, line 3 is not a JSON object"),
    "no prompt": ('{"text": "a", "id": 1}\n', r"p\.jsonl, line 1 has no prompt in words \(it has text, id\)"),
    "no words": ('{"prompt": 5}\n', r"line 1 has no prompt in words \(prompt is 5\)"),
    "blank words": ('{"prompt": " "}\n', r"line 1 has no prompt in words \(prompt is ' '\)"),
    "empty object": ("{}\n", r"line 1 has no prompt in words \(it has no keys\)"),
    "empty": ("\n \n", r"p\.jsonl is empty: write one prompt a line"),
    "not UTF-8": (b'{"prompt": "a"}\n\xff\xfe', r"p\.jsonl, line 2 is not UTF-8"),
    "missing picture": (
        '{"prompt": "a", "images": ["gone.png"]}\n',
        r"line 1 names the picture 'gone\.png', but .* is not there: paths are relative to the file",
    ),
    "no list": ('{"prompt": "a", "images": "a.png"}\n', r"line 1: images must be a list of paths.*not 'a\.png'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_told_in_one_sentence(tmp_path, fault):
    content, message = FAULTS[fault]
    with pytest.raises(ValueError, match=message) as caught:
        own_prompts(written(tmp_path / "p.jsonl", content), 0).fixed(9)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_prompts_are_told(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.txt cannot be read \(No such file or directory\)"):
        own_prompts(tmp_path / "gone.txt", 0)
    with pytest.raises(ValueError, match=r"p\.xlsx' is no file \(\.txt, \.jsonl, .*no folder of save_to_disk"):
        own_prompts(written(tmp_path / "p.xlsx", "a"), 0)
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(ValueError, match=r"cannot be read \(Is a directory\)"):
        own_prompts(tmp_path / "folder.txt", 0)


# Data sets


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """The library, with its cache in the test's folder."""
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return library


def test_a_folder_is_read_as_a_data_set(tmp_path, datasets):
    folder = tmp_path / "data"
    folder.mkdir()
    lines(folder / "train.jsonl", GENEVAL)
    lines(folder / "test.jsonl", [{"prompt": "t", "include": [], "tag": "x"}])
    prompts = own_prompts(f"hf:{folder}", 0)
    for prompt, row in zip(prompts.fixed(9), GENEVAL, strict=True):  # no nulls for what a row does not have
        assert prompt.text == row["prompt"]
        assert prompt.metadata == {k: v for k, v in row.items() if k != "prompt"} | {"category": row["tag"]}
    assert sorted(p.text for p in prompts.batch(0, 3)) == sorted(row["prompt"] for row in GENEVAL)
    assert [p.text for p in own_prompts(f"hf:{folder}:test", 0).fixed(9)] == ["t"]


def test_columns_of_words_are_prompts_and_of_plain_values_metadata(tmp_path, datasets):
    folder = tmp_path / "data"
    folder.mkdir()
    table = {"caption": ["a cup"], "score": [0.5], "words": [["a", "b"]], "raw": [b"bytes"], "nested": [{"n": 1}]}
    datasets.Dataset.from_dict(table).to_parquet(folder / "train.parquet")
    (prompt,) = own_prompts(f"hf:{folder}:train:caption", 0).fixed(5)
    assert prompt.text == "a cup"
    assert prompt.metadata == {"score": 0.5, "words": ["a", "b"], "nested": {"n": 1}}  # bytes are none


def test_faults_of_data_sets_name_what_there_is(tmp_path, datasets, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    lines(folder / "train.jsonl", [{"prompt": "a", "number": 1}, {"prompt": None, "number": 2}])
    for name, message in (
        (f"hf:{folder}:trian", r"there is no split 'trian' \(did you mean train\?\); it has train"),
        (f"hf:{folder}:train:text", "there is no column 'text'.*; it has prompt, number"),
        (f"hf:{folder}:train:number", "the column 'number' holds no words"),
        ("hf:./gone", r"\./gone is not a folder"),
        ("hf:a/b:c:d:e", "names no data set: write hf:owner/name, hf:owner/name:split or"),
        ("hf:", "names no data set"),
        ("a/b", "is no file .* and no data set"),
    ):
        with pytest.raises(ValueError, match=message):
            own_prompts(name, 0)
    with pytest.raises(ValueError, match=r"data, row 1 has no prompt in words"):
        own_prompts(f"hf:{folder}", 0).fixed(2)

    def missing(path):
        raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{path}' doesn't exist on the Hub.\nMore words")

    monkeypatch.setattr(datasets, "load_dataset", missing)
    with pytest.raises(
        ValueError, match=r"^hf:no/one cannot be loaded \(DatasetNotFoundError: Dataset 'no/one' .*Hub\)"
    ):
        own_prompts("hf:no/one", 0)


def test_without_the_package_the_way_to_it_is_told(monkeypatch):
    monkeypatch.setattr("unigrpo.worlds.data_sets.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package datasets: pip install"):
        own_prompts("hf:owner/name", 0)
