"""unigrpo from Python: what a notebook does, what the commands do too, and what cannot work, said in words."""

import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

import tiny_runs
import unigrpo
from unigrpo.ranges import ConfigError
from unigrpo.recipe import load_recipe
from unigrpo.recipe.notation import override_pairs, parse
from unigrpo.reports import runlog
from unigrpo.rewards import registry
from unigrpo.rollout.generate import Generates
from unigrpo.runs import training
from unigrpo.training import checkpoint

ROOT = Path(__file__).parents[1]
MINE = """
calls = []

def red(images, prompts, metadata, thinking):
    calls.append([dict(m) for m in metadata])
    return images[:, 0].mean((1, 2))
"""
TWO = ["a red circle", "a blue square"]
SMALL = {"iterations": 2, "data": {"prompts_per_iteration": 1, "group_size": 2}}
"""With the random model's settings of ``tiny``: a run in a second."""


def brightness(images, prompts, metadata, thinking):
    return images.mean((1, 2, 3))


def as_keywords(words):
    """Overrides of the command line as keyword arguments."""
    return {key.replace(".", "__"): parse(value) for key, value in override_pairs(words)}


def tiny(**other):
    """A small recipe's keys, nested; ``other`` are keys of the first level, laid over them."""
    keys = {
        "model": str(tiny_runs.model_folder()),
        "rollout": {"num_points": 5, "window": [0, 3], "window_size": 2, "max_think_tokens": 4},
        "eval": {"limit": 2, "compare_limit": 2, "compare_samples": 1, "num_points": 3},
        **SMALL,
    }
    return {**keys, **other}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder, and no reward, module or recalled run but what ships."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))
    monkeypatch.setattr(registry, "_RECALLED", {})
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    sys.modules.pop("mine", None)


@pytest.fixture
def no_report(monkeypatch):
    monkeypatch.setattr(training, "write_report", lambda run_dir: run_dir / runlog.REPORT)


def module(folder):
    """A module of the user's own, beside the script."""
    (folder / "mine.py").write_text(MINE)
    sys.modules.pop("mine", None)
    return __import__("mine")


# ---------------------------------------------------------------- the package


def test_importing_the_package_takes_nothing_heavy_along():
    code = (
        "import sys, unigrpo; assert set(unigrpo.__all__) <= set(dir(unigrpo)); print(unigrpo.__version__);"
        "print(*{'torch', 'numpy', 'pandas', 'PIL', 'matplotlib', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    version, heavy = done.stdout.split("\n")[:2]
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", version) and heavy == ""


def test_the_package_says_what_it_has_and_that_it_is_typed():
    assert {"train", "load", "evaluate", "Run", "Bagel", "__version__"} == set(unigrpo.__all__)
    assert all(getattr(unigrpo, name) is not None for name in unigrpo.__all__)
    assert (Path(unigrpo.__file__).parent / "py.typed").is_file()
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        unigrpo.trian  # noqa: B018


def test_nothing_of_the_package_is_left_out_of_commits_and_wheels():
    """Both leave out what .gitignore names."""
    files = [str(path) for path in (ROOT / "src").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    asked = subprocess.run(["git", "check-ignore", "--no-index", *files], cwd=ROOT, capture_output=True, text=True)
    if asked.returncode == 128:
        pytest.skip("this is no checkout")
    assert asked.stdout.splitlines() == []


def test_pandas_comes_with_the_package():
    assert '"pandas>=' in (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[0]


def run_script(document: str, folder: Path, iterations: int = 20) -> tuple[unigrpo.Run, str]:
    """Run the one Python block of a document as a file with one thread; the run that it made, and what it printed."""
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.S)
    assert block.count("iterations=20,") == 1
    (folder / "script.py").write_text(block.replace("iterations=20,", f"iterations={iterations},"))
    environment = {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(unigrpo.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (run_dir,) = (folder / "runs").iterdir()
    return unigrpo.Run(run_dir), done.stdout


@pytest.mark.slow
def test_the_script_of_the_index_page_runs_as_it_stands_there(tmp_path):
    run, said = run_script("docs/index.md", tmp_path)
    assert run.finished and len(run.metrics) == 20 and (run.path / "reward.png").is_file()
    assert run.metrics["reward_mean"].iloc[-1] > run.metrics["reward_mean"].iloc[0]  # and it learned something
    assert re.search(r"it thought <think> \w+", said)


@pytest.mark.parametrize("iterations", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_the_ten_lines_of_the_readme_run_as_they_stand_there(tmp_path, iterations):
    run, _ = run_script("README.md", tmp_path, iterations)
    assert run.finished and len(run.metrics) == iterations


# ---------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with prompts and a reward of one's own, and the module that holds the reward."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [str(folder), *sys.path])
        mine = module(folder)
        prompts = [{"prompt": TWO[0], "wish": 1, "category": "mine"}, TWO[1]]
        run = unigrpo.train(prompts=prompts, reward=mine.red, out="run", **tiny(seed=3))
        sys.modules.pop("mine", None)
    return run, mine


def test_own_prompts_and_an_own_reward_are_in_the_recipe(finished):
    run, mine = finished
    kept, reward = run.path / "prompts.jsonl", f"{mine.__file__}:red"
    assert (
        kept.read_text() == '{"prompt": "a red circle", "wish": 1, "category": "mine"}\n{"prompt": "a blue square"}\n'
    )
    recipe = load_recipe(run.path / "recipe.yaml")
    assert recipe == run.recipe and recipe.name == "shapes/unigrpo" and recipe.seed == 3
    assert recipe.data.prompts == recipe.eval.prompts == str(kept)
    assert [s.name for s in recipe.reward.train] == [s.name for s in recipe.reward.validation] == [reward]
    assert (recipe.data.group_size, recipe.optimizer.ppo_epochs) == (2, 2)  # given; the shipped recipe's


def test_the_very_function_is_called_and_is_told_the_metadata(finished):
    _, mine = finished
    assert len(mine.calls) == 1 + 1 + 2 + 2  # tried for training and validation, before and after, two iterations
    seen = [dict(metadata) for call in mine.calls for metadata in call]
    assert {"wish": 1, "category": "mine"} in seen and {} in seen


def test_metrics_are_the_lines_of_the_file(finished):
    run, _ = finished
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    table = run.metrics
    assert isinstance(table, pandas.DataFrame) and len(table) == len(lines) == 2
    assert list(table["iteration"]) == [0, 1]
    for row, line in enumerate(lines):
        assert table["reward_mean"][row] == line["reward_mean"]
        assert table["grad_norm.denoising"][row] == line["grad_norm"]["denoising"]
        assert table["flow.steps.1.mse"][row] == line["flow"]["steps"][1]["mse"]
    assert not [column for column in table if isinstance(table[column][0], dict | list) and column != "no_signal"]


def test_what_is_null_or_missing_in_the_metrics_is_nan(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0].path, folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines[0]["advantage_std"] = lines[1]["advantage_std"] = None
    lines[0]["reward_std"], lines[1]["validation"] = None, {"score": None, "reward": 0.5}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = unigrpo.Run(folder).metrics
    assert np.isnan(table["reward_std"][0]) and table["reward_std"].dtype == np.float64
    assert np.isnan(table["validation.reward"][0]) and table["validation.reward"][1] == 0.5
    for column in ("validation.score", "advantage_std"):
        assert table[column].isna().all() and table[column].dtype == np.float64


def test_a_run_says_what_it_is(finished):
    run, _ = finished
    assert run.finished and set(run.summary) == {"before", "after", "paired", "bands"}
    assert repr(run).startswith(f"Run('{run.path}': shapes/unigrpo, 2 of 2 iterations, finished, training reward 0.")
    assert f"<code>{run.path}</code>" in run._repr_html_() and "<b>shapes/unigrpo</b>" in run._repr_html_()
    assert run.report() == run.path / "report.html"
    opened = unigrpo.Run(str(run.path))
    assert opened.metrics.equals(run.metrics) and opened.summary == run.summary


def test_the_samples_of_a_run(here, no_report):
    run = unigrpo.train(prompts=TWO, reward=brightness, out="run", **tiny(eval__every=1, eval={"limit": 1}))
    assert [sample["iteration"] for sample in run.samples] == [1, 1, 2, 2]
    assert {sample["prompt"] for sample in run.samples} <= set(TWO) and "thinking" in run.samples[0]


def test_the_model_of_a_run_is_loaded_once_and_draws(finished):
    run, _ = finished
    model = run.model
    assert model is run.model
    saved = checkpoint.load_file(checkpoint.complete(run.path)[-1] / "model.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.module.state_dict().items() if name in saved)
    first, second = model.generate("a red circle", num=2)
    assert isinstance(first, Image.Image) and first.size == (32, 32) and first.thinking is not None
    assert first.tobytes() != second.tobytes()


def test_a_run_equals_that_of_the_command(here, no_report):
    """Bit for bit: the same keys by keyword."""
    run = unigrpo.train(out="run", **as_keywords(tiny_runs.overrides()))
    tiny_runs.assert_same_run(run.path, tiny_runs.finished_run())


def test_several_stages(here, no_report):
    method = {"method": {"name": "text_grpo"}}
    written = {"extends": "shapes/unigrpo", "stages": [{"name": "draw", "iterations": 1}, {"name": "words", **method}]}
    (here / "two.yaml").write_text(json.dumps(written))
    keys = tiny(stages__words__iterations=2)
    keys.pop("iterations")
    run = unigrpo.train(recipe="two.yaml", prompts=TWO, reward=brightness, out="run", **keys)
    assert list(run.metrics["stage"]) == ["1-draw", "2-words", "2-words"] and run.finished
    assert [stage.path.name for stage in run.stages] == ["1-draw", "2-words"]
    assert "3 of 3 iterations, finished" in repr(run) and run.summary == run.stages[1].summary


@pytest.mark.parametrize("path", ["", "nothing"])
def test_what_is_no_run(here, path):
    with pytest.raises(ConfigError, match=r"is no run: it .*give the folder that train wrote"):
        unigrpo.Run(here / path)


# ---------------------------------------------------------------- prompts


def test_of_a_stream_as_many_are_taken_as_the_run_needs(here, no_report):
    taken = []

    def endless():
        for number in itertools.count():
            taken.append(number)
            yield TWO[number % 2]

    run = unigrpo.train(prompts=endless(), reward=brightness, out="run", **tiny(iterations=3))
    assert taken == [0, 1, 2] and len((run.path / "prompts.jsonl").read_text().splitlines()) == 3
    again = unigrpo.train(prompts=iter(TWO[:1]), reward=brightness, out="short", **tiny())
    assert (again.path / "prompts.jsonl").read_text() == '{"prompt": "a red circle"}\n' and again.finished


def test_a_file_and_a_data_frame_of_prompts(here, no_report):
    (here / "p.txt").write_text("a red circle\n")
    run = unigrpo.train(prompts=Path("p.txt"), reward=brightness, out="file", **tiny(iterations=1))
    assert run.recipe.data.prompts == run.recipe.eval.prompts == str(here / "p.txt")
    assert not (run.path / "prompts.jsonl").exists()
    frame = pandas.DataFrame({"prompt": TWO, "tag": ["a", "b"]})
    run = unigrpo.train(prompts=frame, reward=brightness, out="frame", **tiny(iterations=1))
    assert (run.path / "prompts.jsonl").read_text().splitlines()[1] == '{"prompt": "a blue square", "tag": "b"}'


def test_a_worlds_prompts_keep_the_recipes_evaluations(here, no_report):
    run = unigrpo.train(prompts="shapes:train", reward=brightness, out="run", **tiny(iterations=1))
    assert run.recipe.eval.prompts == "shapes:held-out"
    assert [scorer.name for scorer in run.recipe.reward.validation] == ["shapes/verifier"]
    assert run.summary["after"]["score"] is not None


def test_evaluations_may_be_said_otherwise(here, no_report):
    keys = tiny(iterations=1, eval__prompts="shapes:held-out")
    run = unigrpo.train(prompts=TWO, reward=brightness, out="run", **keys)
    assert run.recipe.eval.prompts == "shapes:held-out"
    assert [scorer.name for scorer in run.recipe.reward.validation] == ["shapes/verifier"]
    (here / "other.txt").write_text("two green circles\n")
    keys = tiny(iterations=1, eval__prompts="other.txt")
    run = unigrpo.train(prompts=TWO, reward=brightness, out="own", **keys)
    assert run.recipe.eval.prompts == str(here / "other.txt")  # the recipe's judge knows nothing of these
    assert run.recipe.reward.validation == run.recipe.reward.train
    keys = tiny(iterations=1, reward__validation="image/jpeg-compressibility")
    run = unigrpo.train(prompts=TWO, reward=brightness, out="other", **keys)
    assert run.recipe.eval.prompts == str(run.path / "prompts.jsonl")
    assert [scorer.name for scorer in run.recipe.reward.validation] == ["image/jpeg-compressibility"]


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ([], "prompts is empty: give at least one"),
        (iter(()), "prompts is empty"),
        ([{"text": "a red circle"}], r"prompts\[0\] has no prompt in words \(it has text\)"),
        (["a red circle", {"prompt": " "}], r"prompts\[1\] has no prompt in words"),
        (["a red circle", 3], r"prompts\[1\] = 3 is no prompt: give"),
        (7, "prompts = 7 is no list of prompts"),
        ({"prompt": "a red circle"}, "is no list of prompts"),
        ("a red circle", r"for one prompt give a list, prompts=\['a red circle'\]"),
        ([{"prompt": "a red circle", "images": ["gone.png"]}], r"prompts\[0\] names the picture .*gone.png"),
        ([{"prompt": "a red circle", "what": object()}], r"prompts\[0\]: record.what is a object"),
        (["a violet elephant"], "violet"),
    ],
)
def test_prompts_that_cannot_be_used(here, prompts, said):
    with pytest.raises(ConfigError, match=said):
        unigrpo.train(prompts=prompts, reward=brightness, out="run", **tiny())
    assert tiny_runs.listed(here) == []  # the cell can be put right and run again


# ---------------------------------------------------------------- rewards


def test_rewards_with_weights_by_name_and_by_function(here, no_report):
    mine = module(here)
    rewards = ["image/jpeg-compressibility", (mine.red, 0.5), ("mine.py:red", 2)]
    run = unigrpo.train(prompts=TWO, reward=rewards, out="run", **tiny(iterations=1))
    found = [(scorer.name, scorer.weight) for scorer in run.recipe.reward.train]
    own = f"{here}/mine.py:red"
    assert found == [("image/jpeg-compressibility", 1.0), (own, 0.5), (own, 2.0)]
    assert own not in registry._FACTORIES  # the file is read again by whoever names it next


def test_a_reward_as_a_recipe_writes_it_may_be_the_function_itself(here, no_report):
    mine = module(here)
    rewards = [{"name": mine.red, "teaches": "drawing"}, {"name": "image/jpeg-compressibility", "teaches": "thinking"}]
    run = unigrpo.train(prompts=TWO, reward=rewards, out="run", **tiny(iterations=1))
    assert [s.teaches for s in run.recipe.reward.train] == ["drawing", "thinking"]
    assert run.metrics["advantage_std_thinking"][0] > 0


def test_two_functions_without_a_name_are_told_apart(here, no_report):
    rewards = [lambda images, prompts, metadata, thinking: [0.25] * len(prompts)]
    rewards += [lambda images, prompts, metadata, thinking: [0.5] * len(prompts)]
    run = unigrpo.train(prompts=TWO, reward=rewards, out="run", **tiny(iterations=1))
    assert [scorer.name for scorer in run.recipe.reward.train] == ["lambda", "lambda-2"]
    assert run.metrics["reward_mean"][0] == 0.75


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (3, "reward.train = 3 is a int, no reward: give a function"),
        ([], "reward.train is an empty list"),
        ([brightness, None], r"reward.train\[1\] = None is a NoneType, no reward"),
        (lambda picture: 0.0, r"reward 'lambda' takes \(picture\)"),
        ("shapes/verfier", "no reward called 'shapes/verfier' .did you mean shapes/verifier"),
        (lambda images, prompts, metadata, thinking: [1 / 0], "tried on one picture .*ZeroDivisionError"),
    ],
)
def test_rewards_that_cannot_be_used(here, reward, said):
    with pytest.raises(ValueError, match=said):
        unigrpo.train(prompts=TWO, reward=reward, out="run", **tiny())
    assert tiny_runs.listed(here) == []


# ---------------------------------------------------------------- keys


def test_keys_are_merged_into_the_recipe_and_dots_may_be_underscores(here, no_report):
    keys = tiny(optimizer={"lr_denoising": np.float32(0.25)}, optimizer__lr_reasoning=1e-4, iterations=1)
    recipe = unigrpo.train(prompts=TWO, reward=brightness, out="run", **keys).recipe
    shipped = load_recipe("shapes/unigrpo")
    assert (recipe.optimizer.lr_reasoning, recipe.optimizer.lr_denoising) == (1e-4, 0.25)
    assert recipe.optimizer.betas == shipped.optimizer.betas and recipe.method == shipped.method


def test_a_method_of_another_name_replaces_the_section(here, no_report):
    keys = tiny(iterations=1, method={"name": "text_grpo", "text": {"clip_range": 0.1}})
    recipe = unigrpo.train(prompts=TWO, reward=brightness, out="run", **keys).recipe
    assert recipe.method.name == "text_grpo" and recipe.method.text.clip_range == 0.1
    recipe = unigrpo.train(out="same", reward=brightness, **tiny(iterations=1, method={"lambda_flow": 2.0})).recipe
    assert recipe.method.lambda_flow == 2.0 and recipe.method.regulariser.weight == 0.003  # the shipped recipe's


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"iteratons": 3}, "iteratons is not a key of a recipe .did you mean iterations"),
        (
            {"data": {"group_sizes": 3}},
            "data.group_sizes is not a key of a recipe .did you mean .*group_size",
        ),
        ({"data__group_size": 3}, "data.group_size is set twice, to 2 and 3"),
        ({"data__prompts": "shapes:train"}, "data.prompts is set twice"),
        ({"model__path": "init:micro"}, "model.path is set twice"),
        ({"model": object()}, "is a object, and a run starts from what it can read again: save it"),
        ({"eval": "shapes"}, "eval = 'shapes' is not a section"),
        ({"rewards": brightness}, "rewards is an object of the type function, .* .did you mean reward"),
        ({"iterations": "many"}, "iterations = 'many' is of the wrong type"),
        ({"recipe": "shapes/unigro"}, "no recipe 'shapes/unigro' ships .* .did you mean"),
        ({"model": "nowhere"}, "the model 'nowhere' is not a folder"),
    ],
)
def test_keys_that_cannot_be_used(here, keys, said):
    with pytest.raises(ConfigError, match=said):
        unigrpo.train(prompts=TWO, reward=brightness, out="run", **tiny(**keys))
    assert tiny_runs.listed(here) == []


# ---------------------------------------------------------------- in a notebook


def test_a_cell_that_is_run_again(here, no_report):
    first = unigrpo.train(prompts=TWO, reward=brightness, **tiny(iterations=1))
    second = unigrpo.train(prompts=TWO, reward=brightness, **tiny(iterations=1))
    assert first.path != second.path and first.path.parent == second.path.parent == here / "runs"
    before = tiny_runs.listed(first.path)
    with pytest.raises(ConfigError, match="already holds a run: add resume=True to go on with it, or name another out"):
        unigrpo.train(prompts=TWO, reward=brightness, out=first.path, **tiny(iterations=1))
    (here / "full").mkdir()
    (here / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="out full is there and not empty: name a new or an empty folder"):
        unigrpo.train(prompts=TWO, reward=brightness, out="full", **tiny(iterations=1))
    assert tiny_runs.listed(first.path) == before and tiny_runs.listed("full") == ["thesis.txt"]


def test_from_a_thread(here, no_report):
    found, handlers = [], [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    call = threading.Thread(
        target=lambda: found.append(unigrpo.train(prompts=TWO, reward=brightness, out="run", **tiny()))
    )
    call.start()
    call.join()
    assert found and found[0].finished
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def signalled(number, at=1):
    def update(self, line):
        if line["iteration"] == at:
            signal.raise_signal(number)

    return update


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_says_how_to_go_on_and_is_raised(here, no_report, monkeypatch, capsys, number):
    keys = as_keywords(tiny_runs.overrides(checkpoint__every=25))
    with monkeypatch.context() as patch:
        patch.setattr(training.Progress, "update", signalled(number))
        with pytest.raises(KeyboardInterrupt) as raised:
            unigrpo.train(out="run", **keys)
    said = f"to go on: unigrpo.Run('{here / 'run'}').resume()"
    assert f"saved after 2 iterations; {said}" in capsys.readouterr().out and said in str(raised.value)
    stopped = unigrpo.Run("run")
    assert not stopped.finished and stopped.iterations == 2
    done = eval(said.removeprefix("to go on: "), {"unigrpo": unigrpo})  # as it stands there
    assert done.finished
    tiny_runs.assert_same_run(done.path, tiny_runs.finished_run())


@pytest.mark.slow
def test_a_script_that_trains_is_read_again_for_its_reward(here):
    """In the process of a resume, the script ends where it would train once more."""
    keys = tiny(iterations=1)
    call = f"unigrpo.train(prompts={TWO}, reward=red, out='run', **{keys!r})"
    (here / "script.py").write_text(f"import unigrpo\n{MINE}\nprint('begun')\nrun = {call}\nprint(run.finished)\n")
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(unigrpo.__file__).parents[1])}
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and done.stdout.endswith("True\n"), done.stderr
    run = unigrpo.Run("run")
    assert run.recipe.reward.train[0].name == f"{here}/script.py:red"
    assert run.resume(iterations=2).iterations == 2


# ---------------------------------------------------------------- to go on


def test_the_same_call_goes_on_with_more_iterations(here, no_report, capsys):
    """As the command's --resume: go on if there is something, else start, so that a script can be one call."""
    mine, keys = module(here), tiny(seed=5)
    keys.pop("iterations")
    call = {"prompts": TWO, "reward": mine.red, "out": "run", **keys}
    (here / "run").mkdir()
    assert unigrpo.train(iterations=1, resume=True, **call).iterations == 1
    assert "resume=True: run holds no run yet, so a new one starts there" in capsys.readouterr().out
    before = len(mine.calls)
    longer = unigrpo.train(iterations=3, resume=True, **call)
    assert longer.iterations == 3 and longer.finished and len(mine.calls) > before
    whole = unigrpo.train(iterations=3, **{**call, "out": "whole"})
    assert [line["reward_mean"] for line in tiny_runs.lines_of("run")] == list(whole.metrics["reward_mean"])
    assert unigrpo.Run("run").resume().iterations == 3  # nothing to do, and nothing wrong


def test_the_command_goes_on_with_a_run_of_python_and_the_other_way(here, finished, no_report):
    shutil.copytree(finished[0].path, here / "run")
    place = str(here / "run" / "recipe.yaml")
    words = ("--resume", "--iterations", "3", "--data.prompts", "run/prompts.jsonl", "--eval.prompts")
    assert tiny_runs.unigrpo("train", place, "--out", "run", *words, "run/prompts.jsonl") == 0
    assert unigrpo.Run("run").resume(iterations=4).iterations == 4
    assert unigrpo.train(out="run", resume=True).iterations == 4


def test_a_run_whose_folder_has_moved_finds_its_prompts(here, no_report):
    run = unigrpo.train(prompts=TWO, reward=brightness, out="run", **tiny(iterations=1))
    run.path.rename(here / "moved")
    assert unigrpo.Run("moved").resume(iterations=2).iterations == 2
    assert unigrpo.Run("moved").recipe.data.prompts == str(here / "moved" / "prompts.jsonl")


def test_a_reward_that_only_python_knows_is_given_again(here, no_report, capsys, monkeypatch):
    def reward(images, prompts, metadata, thinking):  # inside of a function: no name finds it again
        return images.mean((1, 2, 3))

    with monkeypatch.context() as patch:
        patch.setattr(training.Progress, "update", signalled(signal.SIGINT, at=0))
        with pytest.raises(KeyboardInterrupt):
            unigrpo.train(prompts=TWO, reward=(reward, 0.5), out="run", **tiny(iterations=3))
    said = capsys.readouterr().out
    assert f"define the reward 'reward' (which came from {__file__}, line" in said
    assert f"call unigrpo.train(reward=..., out='{here / 'run'}', resume=True)" in said
    registry._FACTORIES.pop("reward")  # as in another process
    with pytest.raises(ConfigError, match="'reward' was registered from Python"):
        unigrpo.Run("run").resume()
    run = unigrpo.train(
        reward=(lambda images, prompts, metadata, thinking: [7.0] * len(prompts), 0.5), out="run", resume=True
    )
    assert run.finished and list(run.metrics["reward_mean"][1:]) == [3.5, 3.5]
    assert run.recipe.reward.train[0].name == "reward"


def test_a_run_may_start_from_another(here, finished, no_report):
    shutil.copytree(finished[0].path, here / "first")
    first = unigrpo.Run("first")
    run = unigrpo.train(prompts=TWO, reward=brightness, out="run", **tiny(iterations=1, model=first))
    assert run.recipe.model.path == str(here / "first" / "checkpoints" / "iteration-000002")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ({"out": "full"}, "full is not a run folder"),
        ({}, "resume=True needs out, the folder of the run to go on with"),
        ({"out": "run", "data": {"group_size": 3}}, "data.group_size = '3' with resume=True: the recipe of the run"),
        ({"out": "run", "recipe": "shapes/sft"}, "is a run of shapes/unigrpo, not of shapes/sft"),
        ({"out": "run", "prompts": [*TWO, "a red square"]}, "prompts with resume=True: the run in run has others"),
        ({"out": "run", "reward": brightness}, "reward.train .* holds, and only|reward.train"),
        ({"out": "run", "iterations": 1}, "has 2 finished iterations; ask for more"),
    ],
)
def test_what_cannot_be_gone_on_with(here, finished, call, said):
    shutil.copytree(finished[0].path, here / "run")
    (here / "full").mkdir()
    (here / "full" / "thesis.txt").write_text("mine")
    before = {path: path.read_bytes() for path in (here / "run").rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=said):
        unigrpo.train(resume=True, **call)
    assert {path: path.read_bytes() for path in (here / "run").rglob("*") if path.is_file()} == before


# ---------------------------------------------------------------- drawing


@pytest.fixture(scope="module")
def model():
    return unigrpo.load("builtin:shapes-sft")


def test_pictures_are_those_of_the_command(here, model):
    (here / "p.txt").write_text("A red circle.\na blue square\n")
    words = ("--prompts", "p.txt", "--num", "3", "--seed", "4", "--out", "drawn", "--steps", "5")
    assert tiny_runs.unigrpo("generate", *words) == 0
    drawn = model.generate(["A red circle.", "a blue square"], num=3, seed=4, steps=5)
    assert isinstance(model, unigrpo.Bagel) and len(drawn) == 6
    records = runlog.read_records(here / "drawn" / "results.jsonl")
    for picture, record in zip(drawn, records, strict=True):
        with Image.open(here / "drawn" / record["picture"]) as kept:
            assert np.array_equal(np.asarray(kept), np.asarray(picture))
        assert picture.thinking == record["thinking"] and picture.sample == record["sample"]
    assert [picture.prompt for picture in drawn] == ["A red circle."] * 3 + ["a blue square"] * 3


def test_a_picture_is_one_of_pillows(here, model):
    (picture,) = model.generate("a red circle", think=False)
    assert isinstance(picture, Image.Image) and picture.thinking is None and picture.mode == "RGB"
    picture.save("red.png")
    with Image.open("red.png") as kept:
        assert kept.tobytes() == picture.tobytes()
    assert picture._repr_png_().startswith(b"\x89PNG") and picture.resize((64, 64)).size == (64, 64)
    assert repr(picture) == "<Picture 32 x 32 of 'a red circle', thinking None>"


def test_what_is_asked_for_counts(model):
    def bytes_of(**how):
        return [picture.tobytes() for picture in model.generate("a red circle", **how)]

    plain = bytes_of()
    assert plain == bytes_of(num=1, seed=0, think=True)
    alone, of_three = model.generate("a red circle")[0], model.generate("a red circle", num=3)[0]
    assert alone.thinking == of_three.thinking  # together with others it rounds otherwise
    assert np.abs(np.asarray(alone, dtype=int) - np.asarray(of_three, dtype=int)).max() <= 1
    ways = ({"seed": 1}, {"steps": 4}, {"guidance": 3.0}, {"think": False})
    assert all(bytes_of(**how) != plain for how in ways)
    cold = {picture.thinking for picture in model.generate("a red circle", num=8, temperature=0)}
    assert len(cold) == 1 < len({picture.thinking for picture in model.generate("a red circle", num=8)})


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (("",), "generate: '' is no prompt"),
        (([],), "there are no prompts"),
        ((["a red circle", 3],), "3 is no prompt"),
        (("a red circle", 0), "num = 0: it must be from 1"),
        (("a red circle", 1, -1), "seed = -1: it must be at least 0"),
        (("a red circle", 1, 0, True, (32,)), r"size = \(32,\): give \(width, height\)"),
        (("a red circle", 1, 0, True, None, 0.5), "guidance = 0.5: it must be from 1"),
        (("a red circle", 1, 0, True, None, None, 1), "steps = 1: a timestep grid needs at least 2"),
        (("a red circle", 1, 0, True, None, None, None, 1e-9), "temperature = 1e-09: it must be from"),
        (("an elephant",), "elephant"),
    ],
)
def test_what_cannot_be_drawn(model, call, said):
    with pytest.raises(ValueError, match=said):
        model.generate(*call)


def test_pictures_are_edited_as_by_the_command(here):
    assert tiny_runs.unigrpo("make-tiny-bagel", "tiny", "-q") == 0
    tiny_bagel = unigrpo.load(Path("tiny"))
    how = {"steps": 2, "think": False, "size": (96, 64)}
    (cup,) = tiny_bagel.generate("a red cup", **how)
    assert cup.size == (96, 64)
    cup.save("cup.png")
    (edited,), (same,) = (tiny_bagel.generate("make it blue", images=given, **how) for given in ("cup.png", [cup]))
    assert edited.tobytes() == same.tobytes() and edited.tobytes() != cup.tobytes()
    words = (
        "--image",
        "cup.png",
        "--no-think",
        "--steps",
        "2",
        "--size",
        "96x64",
        "--out",
        "blue.png",
        "--model",
        "tiny",
    )
    assert tiny_runs.unigrpo("generate", "make it blue", *words) == 0
    with Image.open("blue.png") as kept:
        assert kept.size == edited.size and np.array_equal(np.asarray(kept), np.asarray(edited))


def test_a_family_of_ones_own_is_loaded(here):
    policy = unigrpo.load(f"{ROOT}/tests/toy_family.py:Toys")
    assert type(policy).__name__ == "Toy" and not isinstance(policy, Generates)


def test_adapters_are_merged(here, no_report):
    keys = tiny(iterations=1, model__lora={"rank": 2, "alpha": 4.0})
    run = unigrpo.train(prompts=TWO, reward=brightness, out="run", **keys)
    plain = set(unigrpo.load(tiny_runs.model_folder()).module.state_dict())
    assert set(run.model.module.state_dict()) == plain and run.model.generate("a red circle")


def test_a_model_that_is_not_there(here):
    with pytest.raises(ConfigError, match="the model 'nowhere' is not a folder"):
        unigrpo.load("nowhere")


# ---------------------------------------------------------------- judging


def test_an_evaluation_is_that_of_the_command(here, capsys):
    words = ("--model", tiny_runs.model_folder(), "--limit", "3", "--samples", "2", "--seed", "1", "--json")
    capsys.readouterr()
    assert tiny_runs.unigrpo("eval", *words) == 0
    theirs = json.loads(capsys.readouterr().out)
    ours = unigrpo.evaluate(tiny_runs.model_folder(), limit=3, samples=2, seed=1, out="judged")
    result = theirs.pop("result")
    assert json.loads(json.dumps(ours.summary)) == theirs
    assert json.loads(json.dumps(ours.result | {"times": 0})) == result | {"times": 0}
    assert len(ours.records) == len(ours.pictures) == 6 and isinstance(ours.pictures[0], Image.Image)
    assert ours.pictures[5].prompt == ours.records[5]["prompt"]
    assert Path("judged/00002/samples/0001.png").is_file() and Path("judged/report.html").is_file()
    again = unigrpo.evaluate(tiny_runs.model_folder(), limit=3, samples=2, seed=1, out="judged")
    assert again.records == ours.records  # it goes on: nothing is left to draw
    assert repr(ours).startswith("Evaluated(score ")


def test_own_prompts_are_judged_by_an_own_reward(here, model):
    seen = []

    def reward(images, prompts, metadata, thinking):
        seen.extend(metadata)
        return [0.25] * len(prompts)

    found = unigrpo.evaluate(model, [{"prompt": TWO[0], "wish": 1}, *TWO], reward, samples=1, limit=2)
    assert (found.summary["reward"], found.summary["n"], found.summary["score"]) == (0.25, 2, None)
    assert {"wish": 1} in seen
    with pytest.raises(ConfigError, match="evaluate: prompts has no judge of its own: give reward"):
        unigrpo.evaluate(model, TWO)
    with pytest.raises(ConfigError, match="samples = 0: it must be from 1"):
        unigrpo.evaluate(model, samples=0)
    with pytest.raises(ConfigError, match="out full is there and not empty"):
        Path("full").mkdir()
        Path("full/mine.txt").write_text("mine")
        unigrpo.evaluate(model, limit=1, out="full")
