"""Demonstrations from files and data sets, and what a policy trains on."""

import json

import numpy as np
import pytest
import torch
from PIL import Image as Images

from small_models import small_policy
from unigrpo.policy import PolicySpec
from unigrpo.trajectory import Image, Prompt, Text, View
from unigrpo.worlds.pairs import Pair, fitted, own_pairs, supervised_trajectories
from unigrpo.worlds.prompt_files import read_picture


def paint(path, size, colour):
    Images.new("RGB", size, colour).save(path)


def folder_of(path, rows):
    """A folder with a .jsonl file and the pictures that it names."""
    path.mkdir()
    (path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for index, row in enumerate(rows):
        paint(path / row["image"], (8 + index, 6), (10 * index, 0, 255))
    return path / "pairs.jsonl"


ROWS = [
    {"prompt": "a red cup", "image": "0.png", "thinking": "<think> a cup </think>", "source": "me"},
    {"prompt": "a dog", "image": "1.png"},
    {"prompt": "a cat", "image": "2.png", "thinking": "", "tag": "single_object"},
]


def test_a_file_gives_prompts_words_and_pictures(tmp_path):
    some = {p.prompt.text: p for p in own_pairs(folder_of(tmp_path / "d", ROWS), 0).batch(0, 3)}
    assert {text: p.thinking for text, p in some.items()} == {
        "a red cup": "<think> a cup </think>",
        "a dog": None,
        "a cat": None,
    }
    assert some["a red cup"].prompt.metadata == {"source": "me"}
    assert some["a cat"].prompt.metadata == {"tag": "single_object", "category": "single_object"}
    assert torch.equal(some["a cat"].image(), read_picture(tmp_path / "d" / "2.png", "here"))


def test_passes_are_shuffled_with_random_access(tmp_path):
    path = folder_of(tmp_path / "d", [{"prompt": f"p{i}", "image": f"{i}.png"} for i in range(7)])
    whole = [(p.prompt.position, p.prompt.text) for p in own_pairs(path, 0).batch(0, 21)]
    assert [position for position, _ in whole] == list(range(21))
    passes = [tuple(text for _, text in whole[start : start + 7]) for start in (0, 7, 14)]
    assert all(sorted(one) == sorted(passes[0]) for one in passes) and len(set(passes)) == 3
    assert [(p.prompt.position, p.prompt.text) for p in own_pairs(path, 0).batch(4, 4)] == whole[16:20]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, r"pairs\.jsonl, line 1 has no image \(the path of a picture"),
        ({"prompt": "a", "image": "gone.png"}, r"line 1 names the picture 'gone\.png', but .*gone\.png is not there"),
        ({"image": "gone.png"}, r"line 1 has no prompt in words"),
        ({"prompt": "a", "image": "pairs.jsonl", "thinking": 5}, "line 1: thinking must be words"),
    ],
)
def test_faults_name_the_line(tmp_path, row, message):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(ValueError, match=message):
        own_pairs(path, 0).batch(0, 1)


def test_a_picture_that_cannot_be_read_and_a_wrong_file_are_told(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "a", "image": "pairs.jsonl"}))
    (pair,) = own_pairs(path, 0).batch(0, 1)
    with pytest.raises(ValueError, match=r"line 1: .*pairs\.jsonl cannot be read as a picture"):
        pair.image()
    with pytest.raises(ValueError, match=r"pairs\.txt can hold prompts alone"):
        own_pairs(tmp_path / "pairs.txt", 0)


def test_data_sets_hold_pictures_or_paths(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = folder_of(tmp_path / "pictures", ROWS).parent
    (folder / "pairs.jsonl").unlink()
    named = [{"file_name": row["image"], **{k: v for k, v in row.items() if k != "image"}} for row in ROWS]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))  # a folder of pictures
    in_folder = {p.prompt.text: p for p in own_pairs(f"hf:{folder}", 0).batch(0, 3)}
    (tmp_path / "paths").mkdir()
    beside = [{**row, "image": f"../pictures/{row['image']}"} for row in ROWS]
    (tmp_path / "paths" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in beside))
    by_path = {p.prompt.text: p for p in own_pairs(f"hf:{tmp_path / 'paths'}", 0).batch(0, 3)}
    (tmp_path / "bytes").mkdir()
    table = {
        "prompt": [row["prompt"] for row in ROWS],
        "thinking": [row.get("thinking") for row in ROWS],
        "image": [str(folder / row["image"]) for row in ROWS],
        "source": ["me", None, None],
    }
    data = datasets.Dataset.from_dict(table).cast_column("image", datasets.Image())
    data.map(lambda row: row).to_parquet(tmp_path / "bytes" / "train.parquet")  # pictures are stored in the table
    by_bytes = {p.prompt.text: p for p in own_pairs(f"hf:{tmp_path / 'bytes'}:train", 0).batch(0, 3)}
    for index, row in enumerate(ROWS):
        for found in (in_folder, by_path, by_bytes):
            pair = found[row["prompt"]]
            assert pair.thinking == (row.get("thinking") or None)
            assert torch.equal(pair.image(), read_picture(folder / f"{index}.png", "here"))
    assert by_bytes["a red cup"].prompt.metadata == {"source": "me"} and by_bytes["a dog"].prompt.metadata == {}
    data.remove_columns("image").to_parquet(tmp_path / "bytes" / "train.parquet")
    with pytest.raises(ValueError, match="there is no column 'image'; it has prompt, thinking, source"):
        own_pairs(f"hf:{tmp_path / 'bytes'}", 0)


# Pictures of the model's size


def test_a_picture_of_the_right_size_is_not_touched():
    picture = torch.arange(3 * 4 * 6, dtype=torch.uint8).reshape(3, 4, 6)
    assert torch.equal(fitted(picture, (4, 6)), picture)


@pytest.mark.parametrize("size", [(4, 4), (4, 8), (8, 4), (16, 16), (3, 7), (64, 48)])
@pytest.mark.parametrize("shape", [(8, 8), (8, 20), (21, 8), (1, 9), (1000, 999)])
def test_pictures_cover_the_size_and_keep_their_middle(shape, size):
    """A ramp stays a ramp of the same slope in both directions, centred where it was."""
    rows, columns = shape
    ramp = torch.zeros(3, rows, columns)
    ramp[0] = torch.arange(columns) + 0.5 - columns / 2
    ramp[1] = (torch.arange(rows) + 0.5 - rows / 2)[:, None]
    small = fitted((128 + ramp * 100 / max(shape)).round().to(torch.uint8), size).float()
    assert small.shape == (3, *size)
    scale = max(size[0] / rows, size[1] / columns)
    for channel, length, axis in ((0, size[1], 0), (1, size[0], 1)):
        line = small[channel].mean(axis)
        wanted = 128 + (torch.arange(length) + 0.5 - length / 2) / scale * 100 / max(shape)
        middle = slice(length // 4, length - length // 4)  # at the edges there is no picture to go on
        if scale <= 1:
            assert float((line - wanted)[middle].abs().max()) < 1.2
        assert abs(float(line.mean()) - 128) < 1.2


def test_shrinking_does_not_alias():
    stripes = torch.zeros(3, 64, 64, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    assert int((fitted(stripes, (16, 16)).int() - 128).abs().max()) <= 12


# What is trained on


class Recorded:
    """A policy that notes what it is asked."""

    spec = PolicySpec(grid=(2, 3), latent_dim=4, image_size=(8, 12))

    def __init__(self):
        self.pixels = []

    def prompt_segments(self, prompt, *, think):
        return (Text(torch.tensor([int(think), len(prompt.text)])),)

    def encode_text(self, text):
        return torch.tensor([len(word) for word in text.split()])

    def encode_image(self, pixels):
        self.pixels.append(pixels)
        return pixels.mean((2, 3))[:, None].expand(-1, 6, 3)


def pair(text, thinking, colour, size=(40, 30)):
    picture = torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(3, *size)
    return Pair(Prompt(0, text), thinking, lambda: picture)


def test_thinking_and_picture_are_the_targets():
    policy = Recorded()
    some = [pair("a cup", "think of it", (255, 0, 51)), pair("dog", None, (0, 102, 255), size=(5, 90))]
    first, second = supervised_trajectories(policy, some)
    given, words, image = first.segments
    assert (given.ids.tolist(), given.scored) == ([1, 5], False)
    assert (words.ids.tolist(), words.target, words.log_probs) == ([5, 2, 2], True, None)
    assert image.target and image.grid == (2, 3) and image.path is None
    torch.testing.assert_close(image.latents, torch.tensor([1.0, 0.0, 0.2]).expand(6, 3))
    assert len(second.segments) == 2 and second.segments[0].ids.tolist() == [0, 3]
    torch.testing.assert_close(second.segments[1].latents, torch.tensor([0.0, 0.4, 1.0]).expand(6, 3))
    assert all(p.shape == (1, 3, 8, 12) and p.dtype == torch.float32 for p in policy.pixels)
    assert [t.prompt for t in (first, second)] == [p.prompt for p in some]


def test_a_dropped_prompt_takes_its_thinking_along():
    some = [pair("a cup", "think of it", (255, 0, 51)), pair("a cup", "think of it", (255, 0, 51))]
    kept, bare = supervised_trajectories(Recorded(), some, drop=[False, True])
    assert [type(s) for s in kept.segments] == [Text, Text, Image] and [type(s) for s in bare.segments] == [Image]


def test_a_dropped_prompt_keeps_the_pictures_that_it_shows():
    class Shown(Recorded):
        def prompt_segments(self, prompt, *, think):
            return (Text(torch.tensor([1])), View(torch.zeros(4, 3), (2, 2)))

    (bare,) = supervised_trajectories(Shown(), [pair("paint <image>", None, (255, 0, 51))], drop=[True])
    assert [type(s) for s in bare.segments] == [View, Image]


def test_a_small_bagel_takes_them():
    policy = small_policy(image_size=(32, 16))
    picture = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 50, 40), dtype=np.uint8))
    with torch.no_grad():
        (made,) = supervised_trajectories(policy, [Pair(Prompt(7, "a red circle"), "red circle a1", lambda: picture)])
        wanted = policy.encode_image(fitted(picture, (32, 16))[None].float() / 255)[0]
    assert [type(s) for s in made.segments] == [Text, Text, Text, Image]
    assert policy.decode_text(made.segments[2].ids) == "red circle a1" and made.segments[2].target
    assert torch.equal(made.segments[3].latents, wanted) and wanted.shape == (8, 16)
