"""The command line: quick help, messages that help, and nothing written by a command that cannot work."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import tiny_runs
import unigrpo
from unigrpo import cli
from unigrpo.recipe import from_yaml, list_recipes, to_yaml
from unigrpo.reports import runlog
from unigrpo.runs import folders

TRAIN = ("train", tiny_runs.UNIGRPO)
DRAW = ("generate", "a red circle")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Run in an empty folder: whatever a command writes by default lies there."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def refused(capsys, *words):
    """Run a command that must fail with exit code 2 and one message; return the message."""
    assert tiny_runs.unigrpo(*words) == 2
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err and shown.err.strip()
    return " ".join(shown.err.replace("│", " ").split())


def python(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(Path(unigrpo.__file__).parents[1]), "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


# ---------------------------------------------------------------- help


def test_help_comes_without_torch():
    script = (
        "import sys\nfrom unigrpo import cli\n"
        "print('left with', cli.main(['train', '--help']))\n"
        "slow = {'torch', 'numpy', 'matplotlib', 'tokenizers', 'unigrpo.commands'} & set(sys.modules)\n"
        "print('imported', sorted(slow))\n"
    )
    done = python("-c", script)
    assert "left with 0" in done.stdout and "imported []" in done.stdout, done.stdout + done.stderr
    assert all(word in done.stdout for word in ("RECIPE", "--out", "--dry-run", "--resume", "--dotted.key"))


VERBS = ("train", "generate", "eval", "report", "recipes", "recipe", "rewards", "parity", "export", "make-tiny-bagel")


def test_the_module_runs_and_lists_its_verbs():
    done = python("-m", "unigrpo", "--help")
    assert done.returncode == 0 and not done.stderr
    assert all(verb in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    assert tiny_runs.unigrpo(verb, "--help") == 0
    shown = capsys.readouterr().out
    assert f"unigrpo {verb}" in shown and "no-no-" not in shown


# ---------------------------------------------------------------- what cannot work


MODEL = ("--model", "MODEL")
ANY_PICTURE = "{name: image/jpeg-compressibility}"
REFUSED = [
    # train: the recipe and its overrides
    (("train",), "RECIPE"),
    (("train", "shapes/unigrp"), "did you mean shapes/unigrpo"),
    (("train", "nowhere.yaml"), "nowhere.yaml cannot be read"),
    ((*TRAIN, "--iteratons", "3"), "did you mean iterations?"),
    (
        (*TRAIN, "--method.flow.clip-rang", "3"),
        "method.flow.clip_rang is not a key of a recipe (did you mean",
    ),
    ((*TRAIN, "--iterations"), "--iterations has no value"),
    ((*TRAIN, "--iterations", "0"), "iterations = 0 is out of range: it must be at least 1"),
    ((*TRAIN, "--iterations", "many"), "many"),
    ((*TRAIN, "more"), "'more' is not an override"),
    # train: the names in a recipe
    ((*TRAIN, "--model.path", "nowhere"), "'nowhere' is not a folder"),
    ((*TRAIN, "--model.path", "builtin:shapes-stf"), "did you mean builtin:shapes-sft"),
    ((*TRAIN, "--model.path", "EMPTY"), "is not a model folder: it has no config.json"),
    ((*TRAIN, "--model.path", "NO_CHECKPOINT"), "has no checkpoint yet"),
    ((*TRAIN, "--model.path", "BLIND"), "cannot draw: it has no autoencoder"),
    ((*TRAIN, "--model.path", "TORN"), "model.safetensors is not a readable safetensors file"),
    ((*TRAIN, "--model.path", "MODEL", "--rollout.image_size", "64"), "leave out rollout.image_size"),
    (
        (*TRAIN, "--model.path", "MODEL", "--data.prompts", "shapes:trian"),
        "'shapes:trian': there are shapes:train",
    ),
    ((*TRAIN, "--model.path", "MODEL", "--eval.prompts", "geneval"), "geneval: the model does not know the word(s)"),
    (
        (*TRAIN, "--model.path", "MODEL", "--eval.prompts", "geneval", "--reward.validation", f"[{ANY_PICTURE}]"),
        "does not know the word(s) 'photo'",
    ),
    ((*TRAIN, "--model.path", "MODEL", "--eval.prompts", "genevil"), "there are no prompts called 'genevil'"),
    ((*TRAIN, "--model.path", "MODEL", "--data.prompts", "none.jsonl"), "none.jsonl"),
    ((*TRAIN, "--model.path", "MODEL", "--reward.train", "[{name: shapes/verifer}]"), "did you mean shapes/verifier"),
    (
        (*TRAIN, "--model.path", "MODEL", "--reward.validation", "[{name: beauty}]"),
        "no reward called 'beauty'",
    ),
    # train: the run folder
    ((*TRAIN, "--out", "RUN"), "already holds a run: add --resume to go on with it, or name another --out"),
    ((*TRAIN, "--resume"), "--resume needs --out"),
    ((*TRAIN, "--resume", "--out", "FULL"), "is not a run folder (it has no recipe.yaml)"),
    (("train", "bagel/unigrpo", "--resume", "--out", "RUN"), "is a run of shapes/unigrpo, not of bagel/unigrpo"),
    # generate
    (("generate",), "PROMPT"),
    ((*DRAW, *MODEL, "--num", "0"), "--num 0: it must be at least 1"),
    ((*DRAW, *MODEL, "--num", "some"), "--num"),
    ((*DRAW, *MODEL, "--out", "picture.jpg"), "picture.jpg: pictures are written as .png"),
    ((*DRAW, *MODEL, "--colour", "red"), "generate has no option '--colour': see unigrpo generate --help"),
    ((*DRAW, *MODEL, "--interval", "0.5", "0.1"), "it must be 0 <= LOW < HIGH <= 1"),
    ((*DRAW, *MODEL, "--steps", "1"), "--steps 1: a timestep grid needs at least 2 points"),
    ((*DRAW, *MODEL, "--guidance", "0.5"), "--guidance 0.5: it must be a number from 1 to 1,000"),
    ((*DRAW, *MODEL, "--temperature", "nan"), "--temperature nan: it must be a number from 0 to 1,000"),
    ((*DRAW, *MODEL, "--max-think-tokens", "0"), "--max-think-tokens 0: it must be at least 1"),
    ((*DRAW, *MODEL, "--renorm", "none"), "'none'"),
    ((*DRAW, "--model", "builtin:shapes"), "did you mean builtin:shapes-sft"),
    ((*DRAW, "--model", "EMPTY"), "is not a model folder"),
    (("generate", "a purple elephant", *MODEL), "'elephant' stands where a shape should"),
    (("generate", "", *MODEL), "PROMPT is empty"),
    (("generate", *MODEL), "say what to draw"),
    ((*DRAW, *MODEL, "--prompts", "more.txt"), "give a PROMPT, or a file of them"),
    (("generate", "--prompts", "geneval:fixed", *MODEL), "prompts to draw are read from a file (.txt, .jsonl"),
    ((*DRAW, *MODEL, "--guidance", "inf"), "--guidance inf: it must be a number from 1 to 1,000"),
    ((*DRAW, *MODEL, "--size", "big"), "--size big: write it as WIDTHxHEIGHT"),
    ((*DRAW, *MODEL, "--size", "30x32"), "each side must be a multiple of 8"),
    ((*DRAW, *MODEL, "--image", "none.png"), "none.png"),
    ((*DRAW, *MODEL, "--batch", "0"), "--batch 0: it must be at least 1"),
    ((*DRAW, *MODEL, "--device", "cuda"), "torch sees no CUDA device"),
    # eval
    (("eval", *MODEL, "--suite", "geneval"), "needs a detector: --detector"),
    (("eval", *MODEL, "--limit", "0"), "must be at least 1"),
    (("eval", *MODEL, "--samples", "0"), "must be at least 1"),
    (("eval", *MODEL, "--num", "3"), "eval has no option '--num': see unigrpo eval --help"),
    (("eval", "--model", "nowhere"), "'nowhere' is not a folder"),
    # the others
    (("report", "EMPTY"), "is not the folder of a run: recipe.yaml is missing"),
    (("report", "nowhere"), "is not a folder"),
    (("report", "RUN", "--fast"), "report has no option '--fast'"),
    (("parity", "EMPTY"), "is not a parity folder: it has no config.json, weights.safetensors, golden.safetensors"),
    (("parity", "MODEL"), "is not a parity folder: it has no weights.safetensors, golden.safetensors"),
    (("recipes", "all"), "recipes has no option 'all'"),
    (("export", "EMPTY", "out"), "is not a model folder"),
    (("export", "MODEL", "RUN"), "is there and not empty"),
    (("export", "MODEL", "out", "--adapter"), "has no adapter"),
    (("make-tiny-bagel", "RUN"), "is there and not empty"),
    (("draw", "a red circle"), "doctor}"),
    ((), "doctor}"),
]


def known_folders(tmp_path):
    """The folders that the capital words of REFUSED stand for."""
    folders = {name: tmp_path / name.lower() for name in ("EMPTY", "FULL", "NO_CHECKPOINT", "BLIND", "TORN", "RUN")}
    for name in ("EMPTY", "FULL", "NO_CHECKPOINT", "RUN"):
        folders[name].mkdir()
    (folders["FULL"] / "notes.txt").write_text("mine")
    for name in ("NO_CHECKPOINT", "RUN"):
        (folders[name] / runlog.RECIPE).write_text(to_yaml(tiny_runs.tiny_recipe()))
    shutil.copytree(tiny_runs.model_folder(), folders["BLIND"])
    (folders["BLIND"] / "autoencoder.json").unlink()
    shutil.copytree(tiny_runs.model_folder(), folders["TORN"])
    (folders["TORN"] / "model.safetensors").write_bytes(b"torn")
    return {**folders, "MODEL": tiny_runs.model_folder()}


@pytest.mark.parametrize(("words", "said"), REFUSED, ids=[" ".join(words) or "nothing" for words, _ in REFUSED])
def test_what_cannot_work_is_refused_before_anything_is_written(here, tmp_path, capsys, words, said):
    folders = known_folders(tmp_path)
    before = tiny_runs.listed(tmp_path)
    message = refused(capsys, *(folders.get(word, word) for word in words))
    assert said in message
    assert tiny_runs.listed(tmp_path) == before


@pytest.mark.parametrize("verb", ["train", "eval"])
def test_a_folder_with_something_in_it_is_not_written_to(here, tmp_path, capsys, verb):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "notes.txt").write_text("keep me")
    words = TRAIN if verb == "train" else ("eval", "--limit", "1", "--samples", "1")
    message = refused(capsys, *words, "--out", str(out))
    assert "not empty" in message and [p.name for p in out.iterdir()] == ["notes.txt"]


def test_a_place_that_cannot_be_written_is_named(here, tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    message = refused(capsys, "eval", "--limit", "1", "--samples", "1", "--out", str(tmp_path / "file" / "below"))
    assert "cannot write to" in message and "choose another --out" in message


def test_a_bug_is_not_dressed_up_as_a_message(monkeypatch):
    """Only what a user can mend is a message; anything else keeps its traceback."""
    monkeypatch.setattr("unigrpo.commands.recipes.list_recipes", lambda: [][1])
    with pytest.raises(IndexError):
        cli.run(["recipes"])


def test_ctrl_c_anywhere_else_is_130(monkeypatch, capsys):
    def stopped():
        raise KeyboardInterrupt

    monkeypatch.setattr("unigrpo.commands.recipes.list_recipes", stopped)
    assert tiny_runs.unigrpo("recipes") == 130
    assert "stopped" in capsys.readouterr().err


# ---------------------------------------------------------------- recipes and dry runs


def test_recipes_are_listed(capsys):
    assert tiny_runs.unigrpo("recipes") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [name for name, _ in list_recipes()]
    assert all(len(line.split()) > 3 for line in lines)


@pytest.mark.parametrize("out", [(), ("--out", "named")])
def test_a_dry_run_writes_nothing_and_prints_a_recipe(here, capsys, out):
    sizes = ("--data.prompts-per-iteration", "3", "--data.group-size=5", "--iterations", "7")
    assert tiny_runs.unigrpo(*TRAIN, *out, "--dry-run", *sizes, "--method.flow.clip-range", "1e-5") == 0
    shown = capsys.readouterr().out
    recipe = from_yaml(shown.partition("\n\n")[0])
    assert recipe.iterations == 7 and recipe.method.flow.clip_range == 1e-5
    assert "3 prompts x 5 samples = 15 per iteration" in shown
    assert tiny_runs.listed(here) == []


def test_runs_of_the_same_second_do_not_share_a_folder(here, monkeypatch):
    monkeypatch.setattr(folders.time, "strftime", lambda form: "20260101-000000")
    names = [folders.new_folder("shapes/unigrpo").name for _ in range(3)]
    first = "shapes-unigrpo-20260101-000000"
    assert names == [first, f"{first}-2", f"{first}-3"]
    assert tiny_runs.listed(here / "runs") == names


# ---------------------------------------------------------------- drawing and judging


@pytest.mark.parametrize(
    ("options", "pictures"),
    [((), 4), (("--no-think", "--num", "2"), 2), (("--guidance", "2", "--num", "1", "--steps", "4"), 1)],
    ids=["think", "no-think", "guidance"],
)
def test_generate_draws_a_picture(here, capsys, options, pictures):
    words = ("--model", tiny_runs.model_folder(), "--max-think-tokens", 6, "--out", "sub/drawn.png")
    assert tiny_runs.unigrpo("generate", "A red circle left of a blue square.", *words, *options) == 0
    lines = capsys.readouterr().out.splitlines()
    points, forwards = (4, 3) if "--steps" in options else (9, 8)
    assert lines[0].startswith(f"drawing with {points} grid points ({forwards} forwards), guidance ")
    assert lines[-1] == "wrote sub/drawn.png" and len(lines) == pictures + 2
    assert all(line.startswith(("right  ", "wrong  ")) for line in lines[1:-1])
    assert all("(did not think)" in line for line in lines[1:-1]) == ("--no-think" in options)
    with Image.open("sub/drawn.png") as picture:
        assert picture.format == "PNG" and picture.width > picture.height / 4 > 8
    assert tiny_runs.listed(here) == ["sub", "sub/drawn.png"]


def test_generate_repeats_itself_and_follows_its_seed(here, capsys):
    def drawn(*options):
        words = ("--model", tiny_runs.model_folder(), "--num", 1, "--max-think-tokens", 6, *options)
        assert tiny_runs.unigrpo(*DRAW, *words) == 0
        return capsys.readouterr().out, (here / "generated.png").read_bytes()

    first, again, other, guided = drawn(), drawn(), drawn("--seed", 1), drawn("--guidance", 3)
    assert first == again and first != other
    assert (
        first[0].splitlines()[1:] == guided[0].splitlines()[1:] and first[1] != guided[1]
    )  # the same thinking, drawn otherwise


def test_generate_reads_the_newest_checkpoint_of_a_run(here, capsys):
    words = ("--num", 1, "--max-think-tokens", 6)
    outputs = []
    run_dir = tiny_runs.finished_run()
    for model in (run_dir, run_dir / "checkpoints" / "iteration-000004", run_dir / "checkpoints" / "iteration-000003"):
        assert tiny_runs.unigrpo(*DRAW, "--model", model, *words) == 0
        outputs.append((here / "generated.png").read_bytes())
    assert outputs[0] == outputs[1] != outputs[2]


def test_eval_prints_and_writes(here, capsys):
    words = ("eval", "--model", tiny_runs.model_folder(), "--limit", 6, "--samples", 2, "--max-think-tokens", 6)
    assert tiny_runs.unigrpo(*words) == 0
    printed = capsys.readouterr().out
    assert "score 0." in printed and "exam score 0." in printed and "12 pictures" in printed
    assert all(category in printed for category in ("single_object", "two_object", "counting", "color_attr"))
    assert tiny_runs.listed(here) == []
    assert tiny_runs.unigrpo(*words, "--out", "judged") == 0
    assert capsys.readouterr().out.startswith(printed.rstrip("\n"))  # the same draws every time
    files = [path.name for path in sorted((here / "judged").iterdir()) if path.is_file()]
    assert files == ["eval.json", "records.jsonl", "report.html", "result.json", "scoring.json"]
    assert tiny_runs.listed(here / "judged/00005") == [
        "metadata.jsonl", "samples", "samples/0000.png", "samples/0001.png",
        "thinking", "thinking/0000.txt", "thinking/0001.txt",
    ]  # fmt: skip
    records = runlog.read_records(here / "judged" / "records.jsonl")
    assert [(r["position"], r["sample"]) for r in records] == [(p, s) for p in range(6) for s in range(2)]
    assert {"prompt", "thinking", "category", "correct", "exam", "reasons", "values", "detail"} <= set(records[0])
    result = runlog.read_json(here / "judged" / "result.json")
    assert result["pictures"] == 12 and result["settings"]["model"] == str(tiny_runs.model_folder())


def test_eval_without_thinking_says_nothing_of_plans(capsys):
    words = ("--limit", 6, "--samples", 1, "--no-think", "--guidance", 2, "--steps", 3)
    assert tiny_runs.unigrpo("eval", "--model", tiny_runs.model_folder(), *words) == 0
    assert "plan" not in capsys.readouterr().out
