"""Recipes of several stages: read, overridden, run one after the other, stopped anywhere and gone on with."""

import gc
import json
import shlex
import shutil
import signal
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny_runs
from tolerances import rounding
from unigrpo import build, options
from unigrpo.commands import report
from unigrpo.files import write_text_atomic
from unigrpo.objectives.flow_grpo import FlowGRPO
from unigrpo.objectives.methods import OnlyFlow, OnlyText
from unigrpo.ranges import ConfigError
from unigrpo.recipe import (
    Lora,
    Model,
    StagedRecipe,
    from_yaml,
    list_recipes,
    load_experiment,
    load_recipe,
    load_stages,
    sources,
    to_yaml,
)
from unigrpo.reports import runlog
from unigrpo.runs import training
from unigrpo.training import checkpoint
from unigrpo.training.lora import CONFIG, Adapter

COMMON = """
name: tiny/staged
seed: 3
iterations: 2
model: {{path: {model}, dtype: float32}}
data: {{prompts: shapes:train, prompts_per_iteration: 2, group_size: 3}}
rollout: {{num_points: 6, shift: 4.0, window: [0, 3], window_size: 2, max_think_tokens: 6}}
reward: {{train: [{{name: shapes/verifier}}], validation: [{{name: shapes/verifier}}]}}
optimizer: {{lr_reasoning: 2.0e-3, lr_denoising: 1.0e-3, micro_batch: 6}}
eval: {{every: 25, prompts: shapes:held-out, limit: 6, compare_limit: 6, compare_samples: 1, num_points: 6}}
checkpoint: {{every: 25, keep: 1}}
"""
STAGES = """
stages:
  - name: draw
    method: {name: flow_grpo, flow: {clip_range: 1.0e-4}}
  - name: put-in-words
    optimizer: {lr_reasoning: 1.0e-3}
    method: {name: text_grpo}
"""
LORA_STAGES = """
stages:
  - name: draw
    model: {lora: {rank: 2, alpha: 4}}
    method: {name: flow_grpo, flow: {clip_range: 1.0e-4}}
  - name: words
    model: {lora: {rank: 3, alpha: 4}}
    method: {name: text_grpo}
  - name: all
    method: {name: text_grpo}
"""
FOLDERS = ["1-draw", "2-put-in-words"]


def recipe_file(folder, text=STAGES, common=COMMON):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "staged.yaml"
    path.write_text(common.format(model=tiny_runs.model_folder()) + text)
    return path


def of(run_dir):
    return [run_dir / name for name in FOLDERS]


def assert_same(run_dir, other):
    assert (run_dir / runlog.RECIPE).read_bytes() == (other / runlog.RECIPE).read_bytes()
    for ours, theirs in zip(of(run_dir), of(other), strict=True):
        tiny_runs.assert_same_run(ours, theirs)
        assert "paired" in runlog.read_json(ours / runlog.SUMMARY)


def no_report(run_dir):
    """A page in place of a report, which takes seconds."""
    return write_text_atomic(run_dir / runlog.REPORT, "")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(training, "write_report", no_report)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted staged run by the command line."""
    folder = tmp_path_factory.mktemp("whole")
    run_dir = folder / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "write_report", no_report)
        assert tiny_runs.unigrpo("train", recipe_file(folder), "--out", run_dir) == 0
    return run_dir


def interrupt(stage, iteration):
    """A progress that gets Ctrl-C while an iteration of a stage is shown."""

    class Interrupted(training.Progress):
        def __init__(self, name, total, *, start, schedule):
            super().__init__(name, total, start=start, schedule=schedule)
            self.recipe = name

        def update(self, line):
            if self.recipe.endswith(stage) and line["iteration"] == iteration:
                signal.raise_signal(signal.SIGINT)

    return Interrupted


# ---------------------------------------------------------------- reading


def test_stages_replace_and_merge(tmp_path):
    draw, words = load_stages(recipe_file(tmp_path))
    assert (draw.name, words.name) == ("tiny/staged:draw", "tiny/staged:put-in-words")
    assert isinstance(draw.method, OnlyFlow) and draw.method.flow.clip_range == 1e-4
    assert words.method == OnlyText()  # whole: nothing of another method
    assert draw.optimizer.lr_reasoning == 2e-3 and words.optimizer == replace(draw.optimizer, lr_reasoning=1e-3)
    assert draw.model.path == str(tiny_runs.model_folder()) and words.model == replace(draw.model, path="stage:draw")
    assert (draw.iterations, draw.data, draw.eval) == (words.iterations, words.data, words.eval)


def test_a_common_method_is_merged_by_its_own_name_and_replaced_by_another(tmp_path):
    common = COMMON + "method: {{name: flow_grpo, flow: {{clip_range: 1.0e-3}}, advantage: {{clip: 4.0}}}}\n"
    text = (
        "stages: [{name: draw, method: {name: flow_grpo, flow: {ratio_norm: false}}}, "
        "{name: words, method: {name: text_grpo}}, {name: again}, {name: nameless, method: {advantage: {clip: 3.0}}}]"
    )
    draw, words, again, nameless = load_stages(recipe_file(tmp_path, text, common))
    assert (draw.method.flow, draw.method.advantage.clip) == (FlowGRPO(1e-3, ratio_norm=False), 4.0)
    assert words.method == OnlyText()
    assert again.method.flow.clip_range == nameless.method.flow.clip_range == 1e-3
    assert (again.method.advantage.clip, nameless.method.advantage.clip) == (4.0, 3.0)


def test_an_override_of_a_common_method_reaches_the_stages_that_merge_it(tmp_path):
    common = COMMON + "method: {{name: flow_grpo, flow: {{clip_range: 1.0e-3}}}}\n"
    text = "stages: [{name: draw, method: {name: flow_grpo, advantage: {clip: 4.0}}}, {name: again}]"
    stages = load_stages(recipe_file(tmp_path, text, common), ["--method.flow.clip-range=0.5"])
    assert [stage.method.flow.clip_range for stage in stages] == [0.5, 0.5]


def test_a_plain_recipe_is_one_stage():
    assert load_stages(tiny_runs.UNIGRPO) == [load_recipe(tiny_runs.UNIGRPO)]


def test_sections_merge_key_by_key_and_null_replaces(tmp_path):
    draw, words, everything = load_stages(recipe_file(tmp_path, LORA_STAGES))
    assert draw.model.lora == Lora(2, 4.0) and words.model.lora == Lora(3, 4.0)
    assert everything.model.lora is None and everything.model.path == "stage:words"
    text = LORA_STAGES.replace("rank: 3, alpha: 4", "rank: 3").replace(
        "- name: all", "- name: all\n    model: {lora: null}"
    )
    common = COMMON.replace("dtype: float32", "lora: {{rank: 8, alpha: 9}}")
    draw, words, everything = load_stages(recipe_file(tmp_path, text, common))
    assert words.model.lora == Lora(3, 9.0) and everything.model.lora is None


ITEM = "stages:\n  - {name: a, method: {name: text_grpo}}\n"
BAD = [
    ("stages: []", "stages = [] lists no stage"),
    ("stages: {a: 1}", "lists no stage: write a list"),
    ("stages: [a, b]", "stage 1 has no name"),
    (ITEM + "  - {method: {name: text_grpo}}", "stage 2 has no name: give it one"),
    (ITEM + "  - {name: 2, method: {name: text_grpo}}", "stage 2 is called 2, but the name of a stage"),
    (ITEM + "  - {name: a/b, method: {name: text_grpo}}", "stage 2 is called 'a/b'"),
    (ITEM + "  - {name: a, method: {name: text_grpo}}", "stages 1 and 2 are both called a"),
    (ITEM + "  - {name: b, iteratons: 3, method: {name: text_grpo}}", "stage b: iteratons is not a key of a recipe"),
    (ITEM + "  - {name: b, method: {name: text_grpo, flow: {}}}", "stage b: method.flow is set, but"),
    (ITEM + "  - {name: b}", "stage b: method.name is missing"),
    (ITEM + "  - {name: b, iterations: 0, method: {name: text_grpo}}", "stage b: iterations = 0 is out of range"),
    (ITEM + "  - {name: b, model: {path: x}, method: {name: text_grpo}}", "stage b: model.path = 'x': every stage"),
    (ITEM + "  - {name: b, stages: [], method: {name: text_grpo}}", "stage b: stages is not a key of a recipe"),
    (ITEM.replace("a, ", "a, model: builtin:shapes-sft, "), "stage a: model = 'builtin:shapes-sft' is not a section"),
    (ITEM + "  - {name: b, model: 3, method: {name: text_grpo}}", "stage b: model = 3 is not a section"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), BAD, ids=[said for _, said in BAD])
def test_stages_that_cannot_work_are_refused(tmp_path, text, said):
    path = recipe_file(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_stages(path)
    assert str(caught.value).startswith(f"recipe {path}: ") and said in str(caught.value)


def test_a_staged_recipe_without_a_name_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="name = None is not the name of a recipe"):
        load_stages(recipe_file(tmp_path, STAGES, COMMON.replace("name: tiny/staged\n", "")))


def test_where_one_recipe_is_asked_for_stages_are_refused(tmp_path):
    path = recipe_file(tmp_path)
    with pytest.raises(ConfigError, match="has the stages draw, put-in-words, and one recipe is asked for"):
        load_recipe(path)
    with pytest.raises(ConfigError, match="has stages, and one recipe is asked for"):
        from_yaml(path.read_text())


def test_staged_recipes_are_listed(tmp_path, monkeypatch):
    text = recipe_file(tmp_path).read_text() + "description: two in one\n"
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "two.yaml").write_text(text)
    monkeypatch.setattr(sources.resources, "files", lambda _: tmp_path)
    assert list_recipes() == [("two", "two in one")]
    assert [recipe.name for recipe in load_stages("two")] == ["tiny/staged:draw", "tiny/staged:put-in-words"]


# ---------------------------------------------------------------- overrides


def test_overrides_reach_all_stages_or_one(tmp_path):
    path = recipe_file(tmp_path)
    both = ("--seed", "5", "--data.group-size=4", "--name", "other")
    draw, words = load_stages(path, [*both, "--stages.1.iterations", "7", "--stages.put-in-words.seed=6"])
    assert (draw.iterations, words.iterations, draw.seed, words.seed) == (7, 2, 5, 6)
    assert draw.data.group_size == words.data.group_size == 4 and words.name == "other:put-in-words"
    draw, words = load_stages(path, ["--stages.2.optimizer.lr-denoising=0.5", "--model.path", "elsewhere"])
    assert words.optimizer.lr_denoising == 0.5 and words.optimizer.lr_reasoning == 1e-3
    assert (draw.optimizer.lr_denoising, draw.model.path, words.model.path) == (1e-3, "elsewhere", "stage:draw")
    loaded = load_experiment(path, ["--stages.draw.method.flow.ratio_norm=false", "--iterations=9"])
    assert isinstance(loaded, StagedRecipe) and loaded.stages[0].method.flow.ratio_norm is False
    path.write_text(loaded.to_yaml())
    assert load_experiment(path) == loaded


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--optimizer.lr-reasoning", "3"],
            "--optimizer.lr_reasoning 3 would be lost where stage put-in-words sets optimizer.lr_reasoning otherwise: "
            "write --stages.put-in-words.optimizer.lr_reasoning 3",
        ),
        (["--optimizer", "{lr_reasoning: 3}"], "write --stages.put-in-words.optimizer {lr_reasoning: 3}"),
        (
            ["--method.flow.clip_range=1"],
            "where stages draw and put-in-words set method.flow.clip_range otherwise: write "
            "--stages.draw.method.flow.clip_range 1 --stages.put-in-words.method.flow.clip_range 1",
        ),
        (["--stages.3.iterations", "3"], "there is no stage 3; there are 1 draw, 2 put-in-words"),
        (["--stages.0.iterations", "3"], "there is no stage 0"),
        (["--stages.drow.iterations", "3"], "there is no stage drow (did you mean draw?)"),
        (["--stages.draw", "3"], "--stages.draw names no key: write --stages.draw.KEY VALUE"),
        (["--stages.draw.iteratons", "3"], "stage draw: iteratons is not a key of a recipe"),
        (["--stages.draw.iterations.x", "3"], "stage draw: iterations = {'x': 3} is of the wrong type"),
        (["--stages.put_in_words.model.path", "x"], "every stage but the first starts from the one before"),
    ],
)
def test_overrides_that_would_be_lost_or_mean_nothing_are_refused(tmp_path, words, said):
    with pytest.raises(ConfigError) as caught:
        load_stages(recipe_file(tmp_path), words)
    assert said in str(caught.value)


def test_a_common_override_may_stand_beside_one_of_the_stage_that_would_lose_it(tmp_path):
    words = ["--optimizer.lr-reasoning=3", "--stages.2.optimizer.lr-reasoning=4"]
    draw, second = load_stages(recipe_file(tmp_path), words)
    assert (draw.optimizer.lr_reasoning, second.optimizer.lr_reasoning) == (3.0, 4.0)


def test_a_plain_recipe_has_no_stages_to_override():
    with pytest.raises(ConfigError, match=r"--stages.1.iterations: this recipe has no stages"):
        load_recipe(tiny_runs.UNIGRPO, ["--stages.1.iterations", "3"])


# ---------------------------------------------------------------- a whole run


def test_every_stage_is_an_ordinary_run_from_the_one_before(whole):
    assert sorted(path.name for path in whole.iterdir()) == [*FOLDERS, runlog.RECIPE]
    assert load_experiment(whole / runlog.RECIPE) == load_experiment(whole.parent / "staged.yaml")
    draw, words = of(whole)
    for folder in (draw, words):
        assert (folder / runlog.REPORT).is_file() and len(runlog.read_metrics(folder)) == 2
    start = checkpoint.folder_of(draw, 2)
    written = load_recipe(words / runlog.RECIPE)
    assert written.model.path == str(start.resolve()) and written.name == "tiny/staged:put-in-words"
    base = weights(tiny_runs.model_folder())
    first, second = weights(draw), weights(words)
    drawing = {name for name in base if not torch.equal(base[name], first[name])}
    wording = {name for name in base if not torch.equal(first[name], second[name])}
    assert drawing and wording and not drawing & wording  # the second stage has what the first one learned


def test_a_staged_run_is_a_model_its_last_stage_that_has_one(whole, tmp_path, capsys):
    run_dir = Path(shutil.copytree(whole, tmp_path / "run"))
    assert build.model_folder(str(run_dir)) == checkpoint.folder_of(of(run_dir)[1], 2)
    words = ("--num", 1, "--max-think-tokens", 4, "--steps", 3, "--out", tmp_path / "drawn.png")
    assert tiny_runs.unigrpo("generate", "a red circle", "--model", run_dir, *words) == 0
    assert tiny_runs.unigrpo("export", run_dir, tmp_path / "exported") == 0
    saved = checkpoint.load_file(tmp_path / "exported" / "model.safetensors")
    last = tiny_runs.final_state(of(run_dir)[1])
    assert all(torch.equal(value, last[f"model/{name}"]) for name, value in saved.items())
    shutil.rmtree(of(run_dir)[1])
    assert build.model_folder(str(run_dir)) == checkpoint.folder_of(of(run_dir)[0], 2)
    shutil.rmtree(of(run_dir)[0])
    with pytest.raises(ConfigError, match=r"the run .* has no checkpoint yet"):
        build.model_folder(str(run_dir))


def test_reports_of_all_stages_are_written(whole, tmp_path, capsys, monkeypatch):
    run_dir = Path(shutil.copytree(whole, tmp_path / "run"))
    shutil.rmtree(of(run_dir)[1])
    assert report.run(options.Report(run_dir)) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert (
        first == f"wrote {of(run_dir)[0] / runlog.REPORT}"
        and second == f"{of(run_dir)[1]} has not begun: no report yet"
    )
    assert "tiny/staged:draw" in (of(run_dir)[0] / runlog.REPORT).read_text()
    monkeypatch.setattr("unigrpo.commands.report.write_report", lambda run_dir: run_dir / runlog.REPORT)
    assert report.run(options.Report(whole)) == 0
    assert capsys.readouterr().out.splitlines() == [f"wrote {folder / runlog.REPORT}" for folder in of(whole)]
    assert report.run(options.Report(of(whole)[0])) == 0
    assert capsys.readouterr().out == f"wrote {of(whole)[0] / runlog.REPORT}\n"


def test_a_dry_run_shows_every_stage(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = recipe_file(tmp_path)
    before = tiny_runs.listed(tmp_path)
    assert tiny_runs.unigrpo("train", path, "--dry-run", "--stages.2.iterations", 5) == 0
    shown = capsys.readouterr().out
    assert "# stage 1 of 2" in shown and "name: tiny/staged:draw" in shown and "path: 'stage:draw'" in shown
    assert "2 in 2 iterations" in shown and "5 in 5 iterations" in shown
    assert "are assumed" not in shown  # the sizes of a later stage are those of the first
    assert tiny_runs.listed(tmp_path) == before


# ---------------------------------------------------------------- what cannot work is found at the start


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--stages.2.reward.train", "[{name: shapes/verifer}]"), "put-in-words: there is no reward called"),
        (("--stages.2.eval.prompts", "genevil"), "put-in-words: there are no prompts called 'genevil'"),
        (("--stages.2.data.prompts", "none.jsonl"), "none.jsonl"),
        (("--model.path", "nowhere"), "'nowhere' is not a folder"),
    ],
)
def test_a_wrong_name_in_any_stage_stops_the_run_before_it_writes(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    path = recipe_file(tmp_path)
    for out in ((), ("--out", "named")):
        assert tiny_runs.unigrpo("train", path, *out, *words) == 2
        assert said in capsys.readouterr().err
    assert tiny_runs.listed(tmp_path) == ["staged.yaml"]


def test_without_out_the_folder_is_named_after_the_recipe(tmp_path, monkeypatch, quick):
    monkeypatch.chdir(tmp_path)
    path = recipe_file(tmp_path, "stages: [{name: only, iterations: 1, method: {name: text_grpo}}]")
    assert tiny_runs.unigrpo("train", path) == 0
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("tiny-staged-") and (folder / "1-only" / runlog.REPORT).is_file()


# ---------------------------------------------------------------- stopped, and gone on with


def go_on(said):
    """Run the command that a stopped run printed, having counted what it loads; return the exit code."""
    command = shlex.split(said.partition("to go on: ")[2])
    assert command[:2] == ["unigrpo", "train"]
    return tiny_runs.unigrpo(*command[1:])


@pytest.fixture
def loaded(monkeypatch):
    """The names of the recipes whose parts were made."""
    names, parts = [], build.parts

    def counted(recipe, *world):
        names.append(recipe.name.partition(":")[2])
        return parts(recipe, *world)

    monkeypatch.setattr(build, "parts", counted)
    return names


def test_ctrl_c_at_the_end_of_a_stage_does_not_begin_the_next(whole, tmp_path, monkeypatch, quick, capsys, loaded):
    run_dir = tmp_path / "a run"
    with monkeypatch.context() as patch:
        patch.setattr(training, "Progress", interrupt("draw", 1))
        assert tiny_runs.unigrpo("train", recipe_file(tmp_path), "--out", run_dir) == 130
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "to go on" in line]
    assert said.startswith("stopped after stage draw; to go on: ") and not of(run_dir)[1].exists()
    first = {path: path.stat().st_mtime_ns for path in of(run_dir)[0].rglob("*")}
    assert go_on(said) == 0
    assert loaded == ["draw", "put-in-words"]  # nothing done twice
    assert {path: path.stat().st_mtime_ns for path in of(run_dir)[0].rglob("*")} == first
    assert_same(run_dir, whole)
    assert "stage 1 of 2, draw: finished before" in capsys.readouterr().out


@pytest.mark.parametrize("stage", ["draw", "put-in-words"])
def test_ctrl_c_in_the_middle_of_a_stage(whole, tmp_path, monkeypatch, quick, capsys, loaded, stage):
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(training, "Progress", interrupt(stage, 0))
        assert tiny_runs.unigrpo("train", recipe_file(tmp_path), "--out", run_dir) == 130
    (said,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("saved after 1 iteration;")]
    assert str(run_dir) in said and FOLDERS[0] not in said and FOLDERS[1] not in said
    del loaded[:]
    assert go_on(said) == 0
    assert loaded == (["draw", "put-in-words"] if stage == "draw" else ["put-in-words"])
    assert_same(run_dir, whole)


def test_a_stage_that_could_not_be_loaded_says_how_to_go_on(whole, tmp_path, monkeypatch, quick, capsys):
    run_dir, parts = tmp_path / "run", build.parts

    def fails(recipe, *world):
        if recipe.name.endswith("words"):
            raise KeyboardInterrupt
        return parts(recipe, *world)

    with monkeypatch.context() as patch:
        patch.setattr(build, "parts", fails)
        assert tiny_runs.unigrpo("train", recipe_file(tmp_path), "--out", run_dir) == 130
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "to go on" in line]
    assert said.startswith("stopped before training tiny/staged:put-in-words; to go on: ")
    (of(run_dir)[0] / runlog.REPORT).unlink()  # as if killed before it was written
    assert go_on(said) == 0
    assert (of(run_dir)[0] / runlog.REPORT).is_file()
    assert_same(run_dir, whole)


def test_a_finished_run_has_nothing_left_to_do_until_more_is_asked_for(whole, tmp_path, quick, capsys, loaded):
    run_dir = Path(shutil.copytree(whole, tmp_path / "run"))
    again = ("train", recipe_file(tmp_path), "--out", run_dir, "--resume")
    assert tiny_runs.unigrpo(*again) == 0 and loaded == []
    assert "all 2 stages are finished" in capsys.readouterr().out
    assert tiny_runs.unigrpo(*again, "--stages.2.iterations", 3) == 0 and loaded == ["put-in-words"]
    assert [len(runlog.read_metrics(folder)) for folder in of(run_dir)] == [2, 3]
    assert load_stages(run_dir / runlog.RECIPE)[1].iterations == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--seed", "4"), "--seed with --resume: the recipe of the run"),
        (("--stages.2.seed", "4"), "--stages.2.seed with --resume: the recipe of the run"),
        (("--stages.draw.iterations", "3"), "stage draw: iterations = 3, but"),
        (("--iterations", "3"), "stage draw: iterations = 3, but"),
        (("--stages.2.iterations=1",), "has 2 finished iterations of it; ask for more"),
    ],
)
def test_a_resumed_run_cannot_change_what_is_done(whole, tmp_path, capsys, words, said):
    before = tiny_runs.listed(whole)
    assert tiny_runs.unigrpo("train", recipe_file(tmp_path), "--out", whole, "--resume", *words) == 2
    assert said in capsys.readouterr().err
    assert tiny_runs.listed(whole) == before


def test_a_run_is_not_begun_twice_and_names_its_recipe(whole, tmp_path, capsys):
    assert tiny_runs.unigrpo("train", recipe_file(tmp_path), "--out", whole) == 2
    assert "already holds a run: add --resume" in capsys.readouterr().err
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", whole, "--resume") == 2
    assert "is a run of tiny/staged, not of shapes/unigrpo" in capsys.readouterr().err


def test_a_stage_whose_start_is_gone_says_so(whole, tmp_path, capsys):
    run_dir = Path(shutil.copytree(whole, tmp_path / "run"))
    shutil.rmtree(of(run_dir)[0] / "checkpoints")
    again = ("train", recipe_file(tmp_path), "--out", run_dir, "--resume")
    assert tiny_runs.unigrpo(*again) == 0  # the finished second stage needs it no more
    assert tiny_runs.unigrpo(*again, "--stages.2.iterations", 3) == 2
    assert "stage put-in-words starts from" in capsys.readouterr().err


def test_the_model_of_a_finished_stage_is_gone_before_the_next_is_loaded(tmp_path, monkeypatch, quick):
    parts, alive = build.parts, []

    def watched(recipe, *world):
        assert [one for one in alive if one() is not None] == []
        made = parts(recipe, *world)
        alive.append(weakref.ref(made.policy.module))
        return made

    monkeypatch.setattr(build, "parts", watched)
    gc.collect()
    assert tiny_runs.unigrpo("train", recipe_file(tmp_path), "--out", tmp_path / "run") == 0
    assert len(alive) == 2


# ---------------------------------------------------------------- adapters


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A run of a LoRA stage, another on top of it, and one of all weights; stopped once, in the second."""
    folder = tmp_path_factory.mktemp("adapted")
    run_dir = folder / "run"
    words = ("train", recipe_file(folder, LORA_STAGES), "--out", run_dir)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "write_report", no_report)
        with pytest.MonkeyPatch.context() as stopping:
            stopping.setattr(training, "Progress", interrupt("words", 0))
            assert tiny_runs.unigrpo(*words) == 130
        assert tiny_runs.unigrpo(*words, "--resume") == 0
    return run_dir


def weights(path, merge=True):
    return build.policy(Model(str(path)), merge=merge).module.state_dict()


def test_adapters_of_earlier_stages_are_merged(adapted, tmp_path):
    draw, words, everything = (adapted / name for name in ("1-draw", "2-words", "3-all"))
    base = weights(tiny_runs.model_folder())
    first, second = weights(draw), weights(words)
    for start, end, folder, part, rank in ((base, first, draw, "_moe_gen", 2), (first, second, words, "", 3)):
        newest = checkpoint.folder_of(folder, 2)
        factors = checkpoint.load_file(newest / "adapter_model.safetensors")
        changed = {name for name in start if not torch.equal(start[name], end[name])}
        assert changed and all(("_moe_gen" in name) == bool(part) for name in changed)
        for name in changed:
            stem = "base_model.model." + name.removesuffix(".weight")
            a, b = (factors[f"{stem}.lora_{x}.weight"] for x in "AB")
            assert a.shape[0] == rank and torch.allclose(
                end[name], start[name] + b @ a * (4 / rank), rtol=0, atol=rounding(end[name], terms=rank + 1)
            )
    assert Adapter.base_of(checkpoint.folder_of(words, 2)) == str(checkpoint.folder_of(draw, 2).resolve())
    last = tiny_runs.final_state(everything)
    moved = [name for name in second if not torch.equal(second[name], last[f"model/{name}"])]
    assert moved and not any("_moe_gen" in name for name in moved)
    exported = tmp_path / "exported"
    assert tiny_runs.unigrpo("export", words, exported) == 0  # two adapters deep
    assert all(torch.equal(value, second[name]) for name, value in weights(exported).items())


def test_an_adapter_whose_base_is_gone_says_what_it_needs(adapted, tmp_path, capsys):
    run_dir = Path(shutil.copytree(adapted / "2-words", tmp_path / "run"))
    newest, gone = checkpoint.folder_of(run_dir, 2), str(tmp_path / "gone")
    values = json.loads((newest / CONFIG).read_text())
    base = values["base_model_name_or_path"]
    (newest / CONFIG).write_text(json.dumps({**values, "base_model_name_or_path": gone}))
    for words in (("generate", "a red circle", "--model", run_dir), ("export", run_dir, tmp_path / "exported")):
        assert tiny_runs.unigrpo(*words) == 2
        message = capsys.readouterr().err
        assert f"the adapter in {newest} needs its base {gone}, which is not there" in message
        assert "write its new place as base_model_name_or_path" in message
    (newest / CONFIG).write_text(json.dumps({**values, "base_model_name_or_path": base}))
    assert weights(run_dir).keys() == weights(adapted / "2-words").keys()  # as the message says


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ("{rank: 5, alpha: 4}", "model.lora.rank is 5, but the checkpoint's adapter has 2"),
        ("{rank: 2, alpha: 6}", "model.lora.alpha is 6, but the checkpoint's adapter has 4"),
        ("null", "model.lora is null, but the checkpoint is an adapter"),
    ],
)
def test_another_adapter_than_the_recipes_is_no_damage(adapted, tmp_path, capsys, lora, said):
    run_dir = Path(shutil.copytree(adapted / "1-draw", tmp_path / "run"))
    recipe = load_recipe(run_dir / runlog.RECIPE)
    edited = load_recipe(run_dir / runlog.RECIPE, [f"--model.lora={lora}", "--iterations=3"])
    (run_dir / runlog.RECIPE).write_text(to_yaml(edited))
    assert tiny_runs.unigrpo("train", recipe.name, "--out", run_dir, "--resume") == 2
    message = capsys.readouterr().err
    assert said in message and "disagree" in message and "restore the recipe.yaml" in message
    assert "is damaged" not in message and "remove" not in message
    assert len(checkpoint.complete(run_dir)) == 1


def test_other_layers_than_the_recipes_are_no_damage(adapted, tmp_path, capsys):
    run_dir = Path(shutil.copytree(adapted / "1-draw", tmp_path / "run"))
    edited = load_recipe(run_dir / runlog.RECIPE, ["--method={name: text_grpo}", "--iterations=3"])
    (run_dir / runlog.RECIPE).write_text(to_yaml(edited))
    assert tiny_runs.unigrpo("train", edited.name, "--out", run_dir, "--resume") == 2
    message = capsys.readouterr().err
    assert "adapted layers" in message and "is damaged" not in message


def test_all_weights_where_the_recipe_has_an_adapter_are_no_damage(whole, tmp_path, capsys):
    run_dir = Path(shutil.copytree(of(whole)[0], tmp_path / "run"))
    edited = load_recipe(run_dir / runlog.RECIPE, ["--model.lora={rank: 2}", "--iterations=3"])
    (run_dir / runlog.RECIPE).write_text(to_yaml(edited))
    assert tiny_runs.unigrpo("train", edited.name, "--out", run_dir, "--resume") == 2
    message = capsys.readouterr().err
    assert "model.lora is set (rank 2), but the checkpoint has all weights" in message and "is damaged" not in message


def test_a_torn_adapter_is_damage(adapted, tmp_path, capsys):
    run_dir = Path(shutil.copytree(adapted / "1-draw", tmp_path / "run"))
    path = checkpoint.folder_of(run_dir, 2) / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    recipe = load_recipe(run_dir / runlog.RECIPE)
    assert tiny_runs.unigrpo("train", recipe.name, "--out", run_dir, "--resume", "--iterations", 3) == 2
    assert "is damaged" in capsys.readouterr().err
