"""Data, mixes and models that cannot work are found at the start: listed, exit 2, nothing written."""

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

import tiny_runs
from unigrpo.ranges import ConfigError
from unigrpo.recipe import load_recipe, to_yaml
from unigrpo.reports import runlog
from unigrpo.worlds import checking
from unigrpo.worlds.prompt_files import own_prompts
from unigrpo.worlds.shapes import parse_prompt

GOOD = "a red circle"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with a good picture and four bad ones."""
    monkeypatch.chdir(tmp_path)
    noise = Image.effect_noise((64, 64), 90)
    noise.convert("RGB").save("good.png")
    for name in ("torn.png", "torn.jpg"):
        noise.convert("RGB").save(name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    Image.new("I;16", (2, 2), 40000).save("deep.png")
    (tmp_path / "text.png").write_text("no picture")
    return tmp_path


def write(name, rows):
    """A .jsonl file of objects, or of lines as they are."""
    with open(name, "w") as file:
        file.writelines((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    return name


def supervised(file, *more):
    data = f"{{demonstrations: {file}, batch_size: 4}}"
    return ("train", "shapes/sft", *tiny_runs.overrides("shapes/sft"), "--data", data, *more)


REWARD = "[{name: image/jpeg-compressibility}]"  # which needs no metadata


def reinforced(file, *more):
    chosen = {"data.prompts": file, "reward.train": REWARD, "reward.validation": REWARD}
    return ("train", "shapes/unigrpo", *tiny_runs.overrides(**chosen), *more)


def shown(capsys):
    """What was printed, with paths as they were given."""
    given = capsys.readouterr()
    return given._replace(**{key: text.replace(f"{Path.cwd()}/", "") for key, text in given._asdict().items()})


def refused(capsys, *words):
    """Run what must fail with exit code 2 and write nothing; return the lines of its message."""
    before = tiny_runs.listed(".")
    assert tiny_runs.unigrpo(*words) == 2
    assert tiny_runs.listed(".") == before
    return shown(capsys).err.partition("unigrpo: error: ")[2].splitlines()


BAD = [  # rows of demonstrations, and what is said of them
    ("{", "line 2 is not JSON"),
    ({"image": "good.png"}, "line 3 has no prompt in words (it has image)"),
    ({"prompt": " ", "image": "good.png"}, "line 4 has no prompt in words (prompt is ' ')"),
    ({"prompt": GOOD}, "line 5 has no image"),
    ({"prompt": GOOD, "image": 5}, "line 6: a picture is named by its path"),
    ({"prompt": GOOD, "image": "gone.png"}, "line 7 names the picture 'gone.png', but gone.png is not there"),
    ({"prompt": GOOD, "image": "torn.png"}, "line 8: torn.png cannot be read as a picture"),
    ({"prompt": GOOD, "image": "torn.jpg"}, "line 9: torn.jpg cannot be read as a picture"),
    ({"prompt": GOOD, "image": "text.png"}, "line 10: text.png cannot be read as a picture: it is damaged"),
    ({"prompt": GOOD, "image": "deep.png"}, "line 11: deep.png cannot be read as a picture: it has more than 8 bits"),
    ({"prompt": "a red zebra", "image": "good.png"}, "line 12: the model does not know the word(s) 'zebra'"),
    ({"prompt": GOOD, "image": "good.png", "thinking": "hmm circle"}, "line 13: the model does not know the word(s)"),
    ({"prompt": GOOD, "image": "good.png", "thinking": 5}, "line 14: thinking must be words"),
    ({"prompt": GOOD, "image": "good.png", "images": ["good.png"]}, "line 15: it has pictures, but the model cannot"),
    ({"prompt": GOOD, "image": "good.png", "images": "good.png"}, "line 16: images must be a list"),
]


@pytest.mark.parametrize(("row", "said"), BAD, ids=[said for _, said in BAD])
def test_each_bad_row_is_found_before_a_model_is_loaded(folder, capsys, monkeypatch, row, said):
    monkeypatch.setattr("unigrpo.build.parts", lambda recipe: pytest.fail("a model was loaded"))
    good = {"prompt": GOOD, "image": "good.png"}
    number = int(said.split()[1].rstrip(":"))
    write("pairs.jsonl", [*[good] * (number - 1), row])
    message = refused(capsys, *supervised("pairs.jsonl", "--out", "run"))
    assert message[0].startswith(f"pairs.jsonl, {said}"), message


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["train", "dry run"])
def test_ten_bad_rows_are_listed_and_the_others_counted(folder, capsys, dry):
    write("pairs.jsonl", [{"prompt": GOOD, "image": "good.png"}, *(row for row, _ in BAD)])
    first, *listed, more, known = refused(capsys, *supervised("pairs.jsonl", "--out", "run", *dry))
    assert first.startswith("pairs.jsonl: 15 of 16 rows cannot be used")
    assert len(listed) == 10 and more == "  and 5 more" and known.startswith("the model knows: ")
    for line, (_, said) in zip(listed, BAD, strict=False):
        assert line.startswith(f"  {said}")


def test_training_prompts_and_those_of_the_evaluation_are_looked_at(folder, capsys):
    write("p.jsonl", [{"prompt": GOOD}] * 6 + [{"prompt": "two zebras"}])
    assert "p.jsonl, line 7: the model does not know the word(s) 'zebras'" in refused(capsys, *reinforced("p.jsonl"))[0]
    write("good.txt", [GOOD] * 9)
    asked = (*reinforced("good.txt"), "--eval.prompts", "p.jsonl", "--eval.limit")
    assert "line 7" in refused(capsys, *asked, 6, "--eval.compare-limit", 7)[0]
    assert tiny_runs.unigrpo(*asked, 6, "--dry-run") == 0  # row 7 is not asked for
    told = shown(capsys).err
    assert "checking 9 rows of good.txt ..." in told and "checking 6 rows of p.jsonl ..." in told
    (said, _) = refused(capsys, *reinforced("geneval:train"))
    assert said.startswith("geneval:train: the model does not know the word(s)")  # a stream without end


def test_a_row_that_broke_since_stops_a_resumed_run_at_once(folder, capsys):
    write("p.jsonl", [{"prompt": GOOD}] * 3)
    words = reinforced("p.jsonl", "--out", "run", "--iterations", 1, "--eval.every", 9)
    assert tiny_runs.unigrpo(*words) == 0
    capsys.readouterr()
    write("p.jsonl", [{"prompt": GOOD}] * 2 + ["{"])
    resumed = ("train", "shapes/unigrpo", "--out", "run", "--resume", "--iterations", 2)
    assert "p.jsonl, line 3 is not JSON" in refused(capsys, *resumed)[0]


def test_metadata_that_the_verifier_cannot_read_is_found(folder, capsys):
    good = {"prompt": GOOD, **parse_prompt(GOOD)}
    write("p.jsonl", [good, {"prompt": GOOD}, {**good, "objects": [{"shape": "zebra", "colour": None, "count": 2}]}])
    verified = "[{name: shapes/verifier}]"
    for key in ("--data.prompts", "--eval.prompts"):
        reward = "--reward.train" if key == "--data.prompts" else "--reward.validation"
        first, *listed = refused(capsys, *reinforced("shapes:train", key, "p.jsonl", reward, verified))
        assert first.startswith("p.jsonl: 2 of 3 rows")
        assert "line 2: this is not the metadata of a shapes prompt" in listed[0] and "zebra" in listed[1]


def test_the_second_stage_is_looked_at_before_the_first(folder, capsys):
    write("later.txt", [GOOD, "a zebra"])
    (folder / "two.yaml").write_text(
        to_yaml(tiny_runs.tiny_recipe(reward__train=REWARD))
        + "stages: [{name: one, iterations: 1}, {name: two, data: {prompts: later.txt}}]\n"
    )
    assert "later.txt, line 2" in refused(capsys, "train", "two.yaml", "--out", "run")[0]


def test_drawing_and_judging_look_at_all_prompts_first(folder, capsys):
    model = ("--model", tiny_runs.model_folder())
    write("p.jsonl", [{"prompt": "A red circle."}, {"prompt": "a zebra"}, {"prompt": GOOD, "images": ["torn.png"]}])
    first, *listed = refused(capsys, "generate", "--prompts", "p.jsonl", *model, "--out", "drawn")
    assert first.startswith("p.jsonl: 2 of 3 rows cannot be used")  # other spellings of a shape are understood
    assert "cannot understand the prompt 'a zebra'" in listed[0] and "line 3" in listed[1]
    reward = ("--reward", "image/jpeg-compressibility")
    plain = write("plain.txt", [GOOD])
    said = refused(capsys, "eval", "--suite", plain, *model, "--reward", "shapes/verifier", "--out", "judged")
    assert "plain.txt, line 1: this is not the metadata of a shapes prompt" in said[0]
    judged = refused(capsys, "eval", "--suite", "p.jsonl", *model, *reward, "--out", "judged")
    assert judged[0].startswith("p.jsonl: 3 of 3 rows")


def test_a_table_is_drawn_from(folder, capsys):
    (folder / "p.csv").write_text("caption,tag\na red circle,one\n")
    words = ("--model", tiny_runs.model_folder(), "--num", 1, "--max-think-tokens", 2, "--out", "drawn")
    assert tiny_runs.unigrpo("generate", "--prompts", "p.csv:caption", *words) == 0
    assert runlog.read_records(folder / "drawn" / "results.jsonl")[0]["prompt"] == GOOD


def test_what_a_dry_run_finds_of_the_model(folder, capsys):
    model = shutil.copytree(tiny_runs.model_folder(), folder / "model")
    asked = ("train", "shapes/unigrpo", *tiny_runs.overrides(), "--dry-run", "--model.path")
    assert "model.path = inf is of the wrong type" in refused(capsys, *asked, ".inf")[0]
    assert "there is no folder .inf" in refused(capsys, *asked, "'.inf'")[0]
    assert "does not fit this model" in refused(capsys, *asked, "model", "--rollout.image-size", 33)[0]
    assert "leave out rollout.image_size" in refused(capsys, *asked, "model", "--rollout.image-size", 64)[0]
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    assert "model.safetensors" in refused(capsys, *asked, "model")[0]
    weights.write_bytes(whole)
    text = (model / "config.json").read_text()
    (model / "config.json").write_text(text.replace('"num_layers": 4', '"num_layers": 5'))
    assert "does not fit the model: missing" in refused(capsys, *asked, "model")[0]
    (model / "config.json").write_text(text)
    (model / "tokenizer.json").write_text("{}")
    assert "tokenizer.json is not a readable tokenizer" in refused(capsys, *asked, "model")[0]


def test_what_is_not_here_is_left_to_the_run_with_a_note(folder, capsys, monkeypatch):
    monkeypatch.setattr("unigrpo.build.checks.cached", lambda name: None)
    assert tiny_runs.unigrpo("train", "bagel/sft", "--dry-run", "--eval.prompts", "hf:owner/name") == 0
    notes = [line for line in shown(capsys).out.splitlines() if line.startswith("note: ")]
    for name in ("model.path ByteDance-Seed/BAGEL-7B-MoT", "demonstrations.jsonl", "hf:owner/name"):
        assert f"note: {name} is not on this disk: only the run will check it" in notes


MIXES = [
    (
        "{dense_late: 0.6, no_think: 0.5}",
        "data.mix: dense_late 0.6 + unconditional 0 + no_think 0.5 + plan_only 0 exceed",
    ),
    ("{dense: 0.7, dense_until: 0.5, plan_only: 0.4}", "data.mix: dense 0.7"),
]


@pytest.mark.parametrize(("mix", "said"), MIXES)
def test_shares_that_exceed_the_whole_are_refused_when_the_recipe_is_read(mix, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        tiny_runs.tiny_recipe("shapes/pretrain", data__mix=mix)
    tiny_runs.tiny_recipe("shapes/pretrain", data__mix="{dense: 0.7, plan_only: 0.4}")  # dense_until 0: never dense


@pytest.mark.parametrize(
    ("mix", "weights", "said"),
    [
        ("{plan_only: 1.0}", {"ce": 0.0}, "data.mix.plan_only = 1 with method.ce_weight = 0: 0 of 4"),
        ("{plan_only: 0.8}", {"ce": 0.0}, r"method.ce_weight = 0: 0.8 of 4 demonstrations have a picture"),
        ("{dense_late: 1.0}", {"mse": 0.0}, "0 of 4 demonstrations have one: lower data.mix.dense_late"),
        ("{no_think: 0.5, unconditional: 0.4}", {"mse": 0.0}, "method.mse_weight = 0 leaves the plans alone"),
    ],
)
def test_mixes_in_which_a_batch_may_teach_nothing_are_refused(mix, weights, said):
    zero = {f"method__{kind}_weight": value for kind, value in weights.items()}
    with pytest.raises(ConfigError, match=said):
        tiny_runs.tiny_recipe("shapes/pretrain", data__mix=mix, **zero)
    tiny_runs.tiny_recipe("shapes/pretrain", data__mix=mix)


def test_words_alone_need_thinking_in_every_row(folder, capsys):
    rows = [{"prompt": GOOD, "image": "good.png", "thinking": "circle"}, {"prompt": GOOD, "image": "good.png"}]
    words = supervised(write("pairs.jsonl", rows), "--method.mse-weight", "0.0")
    assert "pairs.jsonl, line 2 has no thinking, and method.mse_weight = 0" in refused(capsys, *words)[0]
    assert (
        "data.drop_prompt = 0.5 with method.mse_weight = 0" in refused(capsys, *words, "--data.drop-prompt", "0.5")[0]
    )


def test_a_grid_whose_points_would_fall_together_is_refused(folder, capsys):
    words = reinforced("shapes:train", "--rollout.shift", "1e18")
    assert "rollout.shift = 1e+18 is out of range" in refused(capsys, *words)[0]


def test_a_picture_is_decoded_once_and_progress_is_told(folder, monkeypatch):
    write("p.jsonl", [{"prompt": "x", "images": ["good.png"]}] * 150)
    opened, told = [], []
    monkeypatch.setattr(checking, "read_picture", lambda source, where: opened.append(source))
    for seen in ({}, seen_before := {}, seen_before):
        checking.check_prompts("p.jsonl", own_prompts("p.jsonl", 0).rows, lambda row: None, seen, advance=told.append)
    assert len(opened) == 2 and told == [64, 64, 22] * 3


def test_what_follows_a_data_file_stays_when_its_path_becomes_absolute(folder):
    (folder / "sub" / "saved").mkdir(parents=True)
    (folder / "sub" / "saved" / "state.json").write_text("{}")
    for name, whole in (("p.csv:caption", "p.csv"), ("saved:test:caption", "saved"), ("shapes:train", None)):
        text = to_yaml(tiny_runs.tiny_recipe(data__prompts=name))
        (folder / "sub" / "mine.yaml").write_text(text.replace(str(folder / name), name))
        read = load_recipe("sub/mine.yaml").data.prompts
        after = name.removeprefix(whole or name)
        assert read == (f"{folder / 'sub' / whole}{after}" if whole else name)
