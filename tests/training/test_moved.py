"""A run goes on from any working folder, and with files that have moved, as long as they hold what they held."""

import json
import shlex
import shutil

import pytest

import tiny_runs
from unigrpo.files import write_json_atomic
from unigrpo.ranges import ConfigError
from unigrpo.recipe import load_recipe
from unigrpo.reports import runlog
from unigrpo.runs import inputs
from unigrpo.runs.training import resumed_recipe

RECIPE = """
name: mine
seed: 3
iterations: 1
model: {path: ../models/start}
data: {prompts: prompts.txt, prompts_per_iteration: 1, group_size: 2}
rollout: {num_points: 4, max_think_tokens: 4}
reward: {train: [{name: image/jpeg-compressibility}], validation: [{name: image/jpeg-compressibility}]}
method: {name: text_grpo}
eval: {every: 25, prompts: prompts.txt, limit: 1, compare_limit: 1, compare_samples: 1, num_points: 4}
"""
PROMPTS = "a red circle\na blue square\n"


def lay_out(folder):
    """A recipe of one's own with everything beside it."""
    (folder / "recipes").mkdir(parents=True)
    (folder / "recipes" / "mine.yaml").write_text(RECIPE)
    (folder / "recipes" / "prompts.txt").write_text(PROMPTS)
    shutil.copytree(tiny_runs.model_folder(), folder / "models" / "start")
    return folder / "recipes" / "mine.yaml"


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A finished run of that recipe, given by relative paths, and what it printed last."""
    home = tmp_path_factory.mktemp("home")
    lay_out(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home / "recipes")
        patch.setattr("unigrpo.runs.training.write_report", lambda run_dir: run_dir / runlog.REPORT)
        assert tiny_runs.unigrpo("train", "mine.yaml", "--out", "../run") == 0
    return home


@pytest.fixture
def home(begun, tmp_path):
    """A copy of it, which says the same of the places where it now is."""
    home = tmp_path / "home"
    shutil.copytree(begun, home)
    for path in (home / "run" / runlog.RECIPE, home / "run" / runlog.ENVIRONMENT):
        path.write_text(path.read_text().replace(str(begun), str(home)))
    return home


def resumed(home, *words):
    return resumed_recipe(home / "run", "mine", words)


def test_a_run_holds_absolute_paths_and_the_hashes_of_its_files(begun):
    recipe = load_recipe(begun / "run" / runlog.RECIPE)
    assert recipe.model.path == str(begun / "models" / "start")
    assert recipe.data.prompts == recipe.eval.prompts == str(begun / "recipes" / "prompts.txt")
    kept = runlog.read_json(begun / "run" / runlog.ENVIRONMENT)["inputs"]
    assert set(kept) == {"model.path", "data.prompts", "eval.prompts"}
    assert kept["data.prompts"]["sha256"] == inputs.digest("data.prompts", str(begun / "recipes" / "prompts.txt"))


def test_the_command_that_it_prints_works_from_anywhere(begun, tmp_path, monkeypatch, quick, capsys):
    shutil.copytree(begun / "recipes", tmp_path / "recipes")
    shutil.copytree(begun / "models", tmp_path / "models")
    monkeypatch.chdir(tmp_path / "recipes")

    def stopped(self, line):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("unigrpo.runs.training.Progress.update", stopped)
        assert tiny_runs.unigrpo("train", "mine.yaml", "--out", "../run") == 130
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "to go on: " in line]
    command = shlex.split(said.partition("to go on: ")[2])
    run_dir = tmp_path / "run"
    assert command[1:] == ["train", str(run_dir / runlog.RECIPE), "--out", str(run_dir), "--resume"]
    monkeypatch.chdir("/")
    assert tiny_runs.unigrpo(*command[1:]) == 0
    tiny_runs.assert_same_run(tmp_path / "run", begun / "run")


def test_a_moved_file_is_named_and_its_new_place_taken(home, monkeypatch, capsys):
    (home / "recipes" / "prompts.txt").rename(home / "words.txt")
    (home / "models" / "start").rename(home / "models" / "moved")
    with pytest.raises(ConfigError, match=r"model\.path: .*start is not there: put it back, .* --model\.path PLACE"):
        resumed(home)
    monkeypatch.chdir(home)
    words = ("--model.path", "models/moved", "--data.prompts=words.txt")
    with pytest.raises(ConfigError, match=r"eval\.prompts: .*prompts\.txt is not there"):
        resumed(home, *words)
    recipe = resumed(home, *words, "--eval.prompts", "words.txt")
    assert recipe.data.prompts == recipe.eval.prompts == str(home / "words.txt")
    assert recipe.model.path == str(home / "models" / "moved") and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data.prompts", "other.txt"), r"data\.prompts .*other\.txt does not hold what .*prompts\.txt held"),
        (("--data.prompts", "shapes:train"), r"only a file that has moved gets a new place"),
        (("--data.prompts", "none.txt"), r"data\.prompts: .*none\.txt is not there"),
        (("--model.path", "other"), r"model\.path .*other does not hold what .*start held"),
        (("--reward.train", "[{name: image/jpeg-incompressibility}]"), r"reward\.train\[0\] of this run is"),
        (("--reward.train", "[{name: image/jpeg-compressibility, weight: 2.0}]"), r"nothing else may change"),
        (("--reward.train", "[]"), r"at least|nothing else may change|reward"),
    ],
)
def test_nothing_else_may_take_its_place(home, monkeypatch, words, said):
    monkeypatch.chdir(home)
    (home / "other.txt").write_text(PROMPTS + "a green star\n")
    shutil.copytree(home / "models" / "start", home / "other")
    weights = home / "other" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(ConfigError, match=said):
        resumed(home, *words)


def test_a_file_that_was_changed_in_its_place_is_said(home, capsys):
    (home / "recipes" / "prompts.txt").write_text("a red circle\n")
    resumed(home)
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(" is not")[0] for line in said] == [
        f"note: {key} {home / 'recipes' / 'prompts.txt'}" for key in ("eval.prompts", "data.prompts")
    ]


def test_what_a_run_of_before_did_not_record_is_said(home, monkeypatch, capsys):
    path = home / "run" / runlog.ENVIRONMENT
    path.write_text(json.dumps({key: v for key, v in json.loads(path.read_text()).items() if key != "inputs"}))
    (home / "recipes" / "prompts.txt").rename(home / "words.txt")
    resumed(home, "--data.prompts", str(home / "words.txt"), "--eval.prompts", str(home / "words.txt"))
    assert capsys.readouterr().out.count("nothing is known of what it was when the run began") == 2


@pytest.mark.parametrize(("place", "works"), [("same.py:f", True), ("other.py:f", False), ("same.py:g", False)])
def test_a_reward_s_file_may_move_too(tmp_path, place, works):
    for name, text in (("mine.py", "def f(): ..."), ("same.py", "def f(): ..."), ("other.py", "def f(): 1")):
        (tmp_path / name).write_text(text)

    def named(place):
        return tiny_runs.tiny_recipe(reward__train=f"[{{name: '{tmp_path}/{place}'}}]")

    run = inputs.Resumed(named("mine.py:f"), named(place), tmp_path)
    (tmp_path / runlog.RECIPE).write_text("")
    write_json_atomic(tmp_path / runlog.ENVIRONMENT, {"inputs": inputs.recorded(run.begun)})
    if works:
        assert inputs.check_moved([run]) == []
    else:
        with pytest.raises(ConfigError, match=r"reward\.train\[0\]"):
            inputs.check_moved([run])


def test_a_large_file_is_hashed_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "WHOLE", 1000)
    monkeypatch.setattr(inputs, "BLOCKS", 4)
    monkeypatch.setattr(inputs, "BLOCK", 100)
    path = tmp_path / "x.txt"
    path.write_bytes(bytes(2000))
    whole = inputs.digest("data.prompts", str(path))
    for place in (0, 1999):
        path.write_bytes(bytes(place) + b"\1" + bytes(1999 - place))
        assert inputs.digest("data.prompts", str(path)) != whole
    path.write_bytes(bytes(2001))
    assert inputs.digest("data.prompts", str(path)) != whole
