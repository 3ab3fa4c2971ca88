"""What a run or an adapter stands on stays, is known by its weights, and is named as what it was when it is gone."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import tiny_runs
from unigrpo import build
from unigrpo.build import weights
from unigrpo.ranges import ConfigError
from unigrpo.recipe import Model, load_recipe, to_yaml
from unigrpo.reports import runlog
from unigrpo.training import checkpoint
from unigrpo.training.adapter_files import BASE, CONFIG, Base

pytest.importorskip("peft")
LORA = {"model__lora": "{rank: 2, alpha: 4}"}
QUICK = {"iterations": 1, "eval__limit": 2, "eval__compare_limit": 2, "rollout__max_think_tokens": 4}


def train(folder, start, *, resume=None, **other):
    if resume is not None:
        assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", folder, "--resume", "--iterations", resume) == 0
        return folder
    words = tiny_runs.overrides(**{**QUICK, "model__path": start, "checkpoint__keep": 1, **other})
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", folder, *words) == 0
    return folder


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """All weights, an adapter on its run folder, an adapter on that; then the first two go on and rotate."""
    home = tmp_path_factory.mktemp("family") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unigrpo.runs.training.write_report", lambda run_dir: run_dir / runlog.REPORT)
        first = train(home / "first", tiny_runs.model_folder())
        second = train(home / "second", first, **LORA)
        third = train(home / "third", second, **LORA)
        before = {run: merged(run) for run in (second, third)}
        train(first, None, resume=3)
        train(second, None, resume=3)
    return home, before


def merged(run):
    return build.policy(Model(str(run)), merge=True).module.state_dict()


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def iterations(run):
    return [folder.name for folder in checkpoint.complete(run)]


@pytest.fixture
def moved(family, tmp_path):
    """A copy of the whole, whose absolute paths are those of the first place, which is not there."""
    home = Path(shutil.copytree(family[0], tmp_path / "elsewhere"))
    for path in home.rglob(CONFIG):
        path.write_text(path.read_text().replace(str(family[0]), str(tmp_path / "nowhere")))
    return home


def test_a_checkpoint_that_another_run_started_from_is_kept(family):
    home, before = family
    assert iterations(home / "first") == iterations(home / "second") == ["iteration-000001", "iteration-000003"]
    assert iterations(home / "third") == ["iteration-000001"]
    assert same(merged(home / "third"), before[home / "third"])
    assert not same(merged(home / "second"), before[home / "second"])  # it went on


def test_the_run_names_the_checkpoint_and_not_the_run_whose_newest_changes(family):
    home, _ = family
    for run, start in (("second", "first"), ("third", "second")):
        recipe = load_recipe(home / run / "recipe.yaml")
        assert recipe.model.path == str((home / start / "checkpoints" / "iteration-000001").resolve())


def test_a_run_can_go_on_although_the_one_it_started_from_went_on(family, tmp_path):
    home, _ = family
    third = Path(shutil.copytree(home / "third", tmp_path / "third"))
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", third, "--resume", "--iterations", 2) == 0


def test_a_run_of_all_weights_keeps_its_start_too(moved):
    recipe = build.started(tiny_runs.tiny_recipe(model__path=moved / "first"))
    newest = moved / "first" / "checkpoints" / "iteration-000003"
    assert recipe.model.path == str(newest.resolve()) and (newest / checkpoint.KEPT).is_file()


def test_a_tree_that_was_moved_as_a_whole_still_stands(moved, family):
    assert same(merged(moved / "third"), family[1][family[0] / "third"])


def test_another_model_of_the_same_shapes_is_not_taken(moved, capsys):
    folder = moved / "first" / "checkpoints" / "iteration-000001"
    shutil.copy(moved / "first" / "checkpoints" / "iteration-000003" / "model.safetensors", folder)
    assert tiny_runs.unigrpo("generate", "a red circle", "--model", moved / "third") == 2
    message = capsys.readouterr().err
    assert "was trained on another model than" in message and str(folder) in message and "hash" in message


def test_the_same_weights_at_another_place_are_as_good(moved, tmp_path, family):
    base = moved / "first" / "checkpoints" / "iteration-000001"
    shutil.move(base, tmp_path / "base")
    adapter = moved / "second" / "checkpoints" / "iteration-000001" / CONFIG
    values = json.loads(adapter.read_text())
    adapter.write_text(json.dumps({**values, "base_model_name_or_path": str(tmp_path / "base")}))
    assert same(merged(moved / "third"), family[1][family[0] / "third"])


def test_a_base_that_is_gone_is_named_as_what_it_was(moved, capsys):
    base = moved / "second" / "checkpoints" / "iteration-000001"
    shutil.rmtree(base)
    adapter = moved / "third" / "checkpoints" / "iteration-000001" / CONFIG
    values = json.loads(adapter.read_text())
    adapter.write_text(json.dumps({**values, "base_model_name_or_path": str(base)}))
    for words in (("generate", "a red circle"), ("export",)):
        last = [moved / "third", moved / "out"] if words == ("export",) else ["--model", moved / "third"]
        assert tiny_runs.unigrpo(*words, *last) == 2
        message = capsys.readouterr().err
        assert f"is a checkpoint of the run {moved / 'second'} that was deleted" in message
        assert "there are iteration-000003" in message and "put that folder back" in message


@pytest.mark.parametrize("verb", ["train", "generate", "resume"])
def test_a_start_that_is_gone_is_named_as_what_it_was(moved, capsys, verb):
    gone = moved / "first" / "checkpoints" / "iteration-000002"
    words = {
        "train": ["train", tiny_runs.UNIGRPO, "--out", moved / "new", *tiny_runs.overrides(model__path=gone)],
        "generate": ["generate", "a red circle", "--model", gone],
        "resume": ["train", tiny_runs.UNIGRPO, "--out", moved / "third", "--resume", "--iterations", 2],
    }
    recipe = moved / "third" / "recipe.yaml"
    recipe.write_text(to_yaml(load_recipe(recipe, [f"--model.path={gone}"])))
    assert tiny_runs.unigrpo(*words[verb]) == 2
    message = capsys.readouterr().err
    assert f"a checkpoint of the run {moved / 'first'} that was deleted" in message
    assert not (moved / "new").exists()


def test_a_start_that_is_deleted_while_it_is_read_ends_the_start(moved, monkeypatch):
    recipe = build.started(tiny_runs.tiny_recipe(**{**QUICK, "model__path": moved / "first"}))
    load = weights.full_training

    def load_then_lose(recipe, world):
        made = load(recipe, world)
        shutil.rmtree(recipe.model.path)
        return made

    monkeypatch.setattr(weights, "full_training", load_then_lose)
    with pytest.raises(ConfigError, match=r"which is a checkpoint of the run .* that was deleted"):
        build.parts(recipe)


def test_an_adapter_that_stands_on_itself_is_named(moved):
    folder = moved / "third" / "checkpoints" / "iteration-000001"
    values = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**values, "base_model_name_or_path": str(folder)}))
    with pytest.raises(ConfigError, match="stands on itself"):
        merged(moved / "third")


def test_an_adapter_without_our_note_is_still_loaded(moved, family):
    for path in moved.rglob(BASE):
        said = Base.read(path.parent)
        path.unlink()
        values = json.loads((path.parent / CONFIG).read_text())
        place = str((path.parent / said.place).resolve())
        (path.parent / CONFIG).write_text(json.dumps({**values, "base_model_name_or_path": place}))
    assert same(merged(moved / "third"), family[1][family[0] / "third"])


def test_an_adapter_on_a_made_model_remembers_its_seed(tmp_path):
    # words alone: its velocity head is zero and no adapter trains it, so an adapter on the painter has no gradient
    words = {"model__lora": "{rank: 2, alpha: 4, experts: [reasoning]}", "method": "{name: text_grpo}"}
    asked = tiny_runs.overrides(**{**QUICK, "model__path": "init:micro", "seed": 5, "checkpoint__keep": 1, **words})
    place = asked.index("--method.regulariser")
    run = tmp_path / "run"
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", run, *asked[:place], *asked[place + 2 :]) == 0
    base = build.policy(Model("init:micro"), seed=5).module.state_dict()
    ours = merged(run)
    frozen = [name for name in base if "embed_tokens" in name or "pos_embed" in name]
    assert frozen and all(torch.equal(ours[name], base[name]) for name in frozen)


def test_a_folder_that_cannot_be_marked_is_said(family, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(family[0] / "third", tmp_path / "run")) / "checkpoints" / "iteration-000001"
    assert not (folder / checkpoint.KEPT).exists()

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.warns(UserWarning, match="cannot be marked as needed"):
        checkpoint.hold(folder, "x")
