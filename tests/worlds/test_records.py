"""Every kind of file gives the same prompts and demonstrations, and names its rows."""

import csv
import json

import pytest
import torch
from PIL import Image

from unigrpo.worlds.pairs import own_pairs
from unigrpo.worlds.prompt_files import own_prompts, read_picture

ROWS = [
    {"prompt": 'a "red" cup, full', "images": ["0.png"], "thinking": "<think> a cup </think>", "note": "one\ntwo"},
    {"prompt": "a dog", "image": "1.png"},
]
ROWS[0]["image"] = "2.png"


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        Image.new("RGB", (4 + number, 3), (80 * number, 0, 255)).save(tmp_path / f"{number}.png")
    return tmp_path


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return library


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def entries(path, rows):
    path.write_text(json.dumps(rows))
    return path


def table(path, rows, delimiter=","):
    with path.open("w", newline="", encoding="utf-8-sig") as file:  # with a byte order mark, as spreadsheets write it
        written = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        written.writeheader()
        written.writerows({**row, "images": ",".join(row.get("images", []))} for row in rows)
    return path


def stored(datasets, rows, embedded, folder):
    """A data set with paths, or with the pictures themselves."""
    keys = ("prompt", "images", "thinking", "note", "image")
    columns = {key: [row.get(key) for row in rows] for key in keys}
    if embedded:
        columns["image"] = [str(folder / name) for name in columns["image"]]
        columns["images"] = [[str(folder / name) for name in names or []] for names in columns["images"]]
    data = datasets.Dataset.from_dict(columns)
    if embedded:
        data = data.cast_column("image", datasets.Image()).cast_column("images", datasets.List(datasets.Image()))
        data = data.map(lambda row: row)  # which puts the bytes into the table
    return data


MAKERS = {
    "jsonl": lambda at, _: lines(at / "p.jsonl", ROWS),
    "json": lambda at, _: entries(at / "p.json", ROWS),
    "csv": lambda at, _: table(at / "p.csv", ROWS),
    "tsv": lambda at, _: table(at / "p.tsv", ROWS, "\t"),
    "parquet of paths": lambda at, d: (stored(d, ROWS, False, at).to_parquet(at / "p.parquet"), at / "p.parquet")[1],
    "parquet of pictures": lambda at, d: (stored(d, ROWS, True, at).to_parquet(at / "q.parquet"), at / "q.parquet")[1],
    "saved": lambda at, d: (stored(d, ROWS, True, at).save_to_disk(at / "saved"), at / "saved")[1],
    "saved splits": lambda at, d: (
        d.DatasetDict(train=stored(d, ROWS, True, at), test=stored(d, ROWS[1:], True, at)).save_to_disk(at / "splits"),
        at / "splits",
    )[1],
}


@pytest.mark.parametrize("kind", MAKERS)
def test_every_kind_of_file_gives_the_same_rows(folder, request, kind):
    library = request.getfixturevalue("datasets") if kind.startswith(("parquet", "saved")) else None
    path = MAKERS[kind](folder, library)
    first, second = own_prompts(path, 0).fixed(9)
    assert (first.text, second.text) == (ROWS[0]["prompt"], "a dog")
    assert first.metadata["note"] == "one\ntwo" and "note" not in second.metadata  # an empty cell is no value
    assert "images" not in first.metadata and second.images == ()
    assert torch.equal(first.images[0], read_picture(folder / "0.png", "here"))
    pairs = {pair.prompt.text: pair for pair in own_pairs(path, 0).batch(0, 2)}
    assert pairs[first.text].thinking == "<think> a cup </think>" and pairs["a dog"].thinking is None
    assert pairs[first.text].prompt.metadata == {"note": "one\ntwo"} and len(pairs[first.text].prompt.images) == 1
    assert torch.equal(pairs["a dog"].image(), read_picture(folder / "1.png", "here"))


def test_a_column_and_a_split_are_named_after_colons(folder, datasets):
    rows = [{"caption": "a cup", "n": 1}, {"caption": "a dog", "n": 2}]
    other = datasets.Dataset.from_dict({"caption": ["a cat"], "n": [3]})
    datasets.DatasetDict(train=other, test=datasets.Dataset.from_list(rows)).save_to_disk(folder / "splits")
    other.save_to_disk(folder / "one")
    datasets.Dataset.from_list(rows).to_parquet(folder / "p.parquet")
    lines(folder / "a:b.jsonl", rows)  # a path may have colons
    names = [f"{lines(folder / 'p.jsonl', rows)}:caption", f"{folder / 'p.parquet'}:caption"]
    names += [f"{folder / 'splits'}:test:caption", f"{folder / 'a:b.jsonl'}:caption"]
    for name in names:
        assert [(p.text, p.metadata) for p in own_prompts(name, 0).fixed(9)] == [
            ("a cup", {"n": 1}),
            ("a dog", {"n": 2}),
        ]
    assert own_prompts(f"{folder / 'one'}:train:caption", 0).fixed(1)[0].text == "a cat"


def test_csv_cells_are_words_and_images_may_be_a_list(folder):
    path = folder / "p.csv"
    path.write_text('prompt,images,count\n"blend, please","[""0.png"", ""1.png""]",007\n\nplain,,\n')
    first, second = own_prompts(path, 0).fixed(9)
    assert (first.text, len(first.images), first.metadata) == ("blend, please", 2, {"count": "007"})
    assert (second.text, second.images, second.metadata) == ("plain", (), {})


FAULTS = {
    "more.csv": ("prompt,tag\na,b\na, b,c\n", r"more\.csv, line 3 has 3 cells, but the first line names 2 columns"),
    "quote.csv": (
        'prompt\na\n"b\nc\n',
        r"quote\.csv: the row from line 3 on cannot be read \(unexpected end of data\)",
    ),
    "twice.csv": ("prompt,prompt\na,b\n", r"twice\.csv, line 1 must name every column once"),
    "head.csv": ("prompt\n", r"head\.csv is empty"),
    "none.tsv": ("\n", r"none\.tsv is empty: write the names of the columns"),
    "bare.csv": ("prompt,images\na\n\n", r"bare\.csv, line 2 has 1 cells"),
    "blank.csv": ("prompt,tag\n ,x\n", r"blank\.csv, line 2 has no prompt in words \(it has tag\).*FILE:COLUMN"),
    "list.csv": ("prompt,images\na,[0.png]\n", r"list\.csv, line 2: images is no list"),
    "object.json": ('{"prompt": "a"}', r"object\.json holds no list: write one list of objects"),
    "torn.json": ('[{"prompt": "a"}', r"torn\.json is no JSON that can be read \(Expecting"),
    "deep.json": ("[" * 5000, r"deep\.json is no JSON that can be read"),
    "deep.jsonl": ("[" * 5000, r"deep\.jsonl, line 1 is nested too deep"),
    "entry.json": ('[{"prompt": "a"}, 5]', r"entry\.json, entry 2 is not a JSON object"),
    "nan.jsonl": ('{"prompt": "a", "n": NaN}', r"nan\.jsonl, line 1: NaN is not a finite number"),
    "nan.json": ('[{"prompt": "a", "n": NaN}]', r"nan\.json is no JSON that can be read \(NaN is no number\)"),
    "number.jsonl": ('{"prompt": "a", "images": [5]}', r"line 1: a picture is named by its path.* not by 5"),
    "nul.jsonl": ('{"prompt": "a", "images": ["a\\u0000b"]}', r"line 1 names the picture .* is not there"),
    "torn.parquet": ("PAR1 and no more", r"torn\.parquet cannot be loaded"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_name_the_file_and_the_row(tmp_path, request, name):
    if name.endswith(".parquet"):
        request.getfixturevalue("datasets")
    content, message = FAULTS[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        own_prompts(tmp_path / name, 0).fixed(9)
    assert "\n" not in str(caught.value)


def test_names_that_mean_nothing_are_told(tmp_path, datasets):
    datasets.Dataset.from_dict({"caption": ["a"]}).save_to_disk(tmp_path / "saved")
    for name, message in (
        ("gone.csv", r"gone\.csv cannot be read \(No such file or directory\)"),
        ("gone.parquet", r"gone\.parquet cannot be read"),
        ("gone.csv:a:b", "at most the column of the prompts, as in FILE:COLUMN"),
        (f"{tmp_path / 'saved'}", "there is no column 'prompt'; it has caption"),
        (f"{tmp_path / 'saved'}:test", "there is no split 'test'; it has train"),
        (f"{tmp_path / 'saved'}:a:b:c", "at most a split and a column"),
    ):
        with pytest.raises(ValueError, match=message):
            own_prompts(name, 0)


def test_csv_and_json_need_no_library_and_parquet_says_which(folder, monkeypatch):
    monkeypatch.setattr("unigrpo.worlds.data_sets.find_spec", lambda name: None)
    (folder / "p.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"p\.parquet needs the package datasets: pip install"):
        own_prompts(folder / "p.parquet", 0)
    assert own_prompts(table(folder / "p.csv", ROWS), 0).fixed(1)[0].text == ROWS[0]["prompt"]
    assert own_prompts(entries(folder / "p.json", ROWS), 0).fixed(1)[0].text == ROWS[0]["prompt"]
