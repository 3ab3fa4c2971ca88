"""A recipe that extends another: its keys over the other's, from anywhere, in short chains."""

from dataclasses import replace

import pytest

import tiny_runs
from unigrpo.objectives.methods import OnlyText
from unigrpo.objectives.text_grpo import TextGRPO
from unigrpo.ranges import ConfigError
from unigrpo.recipe import DemonstrationData, from_yaml, load_experiment, load_recipe

BASE = "shapes/unigrpo"


@pytest.fixture
def write(tmp_path):
    def written(name, text):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return written


def refusal(path):
    with pytest.raises(ConfigError) as caught:
        load_experiment(path)
    assert str(caught.value).startswith(f"recipe {path}: ")
    return str(caught.value)


def test_keys_are_laid_over_those_of_the_recipe_that_is_extended(write):
    text = "iterations: 3\noptimizer: {lr_reasoning: 0.5}\nrollout: {window: [1, 4]}\n"
    path = write("mine.yaml", f"extends: {BASE}\n{text}")
    mine, base = load_recipe(path), load_recipe(BASE)
    optimizer, rollout = replace(base.optimizer, lr_reasoning=0.5), replace(base.rollout, window=(1, 4))
    expected = replace(base, name="mine", description="", iterations=3, optimizer=optimizer, rollout=rollout)
    assert mine == expected
    assert load_recipe(path, ["--iterations=4"]) == replace(expected, iterations=4)
    named = write("named.yaml", f"extends: {BASE}\nname: a/name\ndescription: mine\n")
    assert load_recipe(named) == replace(base, name="a/name", description="mine")


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("{text: {kl_weight: 0.1}}", {"kl_weight": 0.1}),
        ("{name: unigrpo, text: {kl_weight: 0.1}}", {"kl_weight": 0.1}),
        ("{name: text_grpo, text: {kl_weight: 0.1}}", None),
    ],
)
def test_a_method_of_the_same_name_is_merged_and_another_replaces_it(write, method, expected):
    base = write("base.yaml", f"extends: {BASE}\nmethod: {{text: {{clip_range: 0.7}}}}\n")
    mine = load_recipe(write("mine.yaml", f"extends: {base.name}\nmethod: {method}\n"))
    if expected is None:
        assert mine.method == OnlyText(text=TextGRPO(0.2, 0.1))
    else:
        assert mine.method == replace(load_recipe(base).method, text=TextGRPO(0.7, **expected))
        assert mine.method.regulariser == load_recipe(BASE).method.regulariser


def test_another_kind_of_learning_has_its_own_data(write):
    text = f"extends: {BASE}\nmethod: {{name: supervised}}\ndata: {{demonstrations: shapes}}\n"
    text += "optimizer: {ppo_epochs: 1}\n"
    assert load_recipe(write("mine.yaml", text)).data == DemonstrationData("shapes")


def test_chains_go_from_file_to_file_and_paths_are_relative_to_the_file(write, tmp_path, monkeypatch):
    write("a/first.yaml", f"extends: {BASE}\nseed: 1\niterations: 1\n")
    write("b/second.yaml", "extends: ../a/first.yaml\niterations: 2\n")
    third = write("third.yaml", "extends: b/second.yaml\neval: {limit: 3}\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    recipe = load_recipe(third)
    assert (recipe.name, recipe.seed, recipe.iterations, recipe.eval.limit) == ("third", 1, 2, 3)
    assert load_recipe("../third.yaml") == recipe
    write("a/reward.yaml", f"extends: {BASE}\nreward: {{train: [{{name: 'mine.py:judge'}}]}}\n")
    judged = load_recipe(write("judged.yaml", "extends: a/reward.yaml\n"))
    assert judged.reward.train[0].name == f"{tmp_path / 'a' / 'mine.py'}:judge"


def test_a_recipe_of_several_stages_may_extend_a_plain_one(write):
    text = f"extends: {BASE}\niterations: 2\nstages:\n"
    text += "- {name: a, method: {flow: {clip_range: 0.5}}}\n- {name: b, method: {name: text_grpo}}\n"
    loaded = load_experiment(write("mine.yaml", text))
    first, second = loaded.stages
    assert (first.name, second.name, first.iterations) == ("mine:a", "mine:b", 2)
    base = load_recipe(BASE)
    assert first.method == replace(base.method, flow=replace(base.method.flow, clip_range=0.5))
    assert second.method == OnlyText() and second.model.path == "stage:a"
    assert "extends" not in loaded.written and "extends" not in loaded.to_yaml()
    assert load_experiment(write("whole.yaml", loaded.to_yaml())) == loaded


REFUSED = [
    ("extends: 3", "extends = 3 is not one recipe"),
    ("extends: [shapes/unigrpo]", "extends = ['shapes/unigrpo'] is not one recipe"),
    ("extends: shapes/unigpro", "extends = 'shapes/unigpro': no recipe 'shapes/unigpro' ships with the package (did"),
    ("extends: none.yaml", "extends = 'none.yaml': recipe file"),
    ("extends: mine.yaml", "extends = 'mine.yaml' goes in a circle: "),
    ("extends: there.yaml", "extends = '../x/mine.yaml' goes in a circle: "),
    ("extends: 9.yaml", "more than 8 recipes in a row"),
    ("extends: paper/refl-textgrpo", "paper/refl-textgrpo: it has stages and cannot be extended: copy it with"),
    ("extends: torn.yaml", "extends: torn.yaml: this is not valid YAML, line 1"),
    ("extends: shapes/unigrpo\niteratons: 3", "iteratons is not a key of a recipe (did you mean iterations?)"),
    ("extends: shapes/unigrpo\nrollout: 3", "rollout = 3 is not a section"),
    ("extends: shapes/unigrpo\nname:", "name = None is of the wrong type"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_cannot_be_extended_is_refused(write, text, said):
    write("x/there.yaml", "extends: ../x/mine.yaml")
    write("x/torn.yaml", "a: [1")
    write("x/0.yaml", f"extends: {BASE}")
    for number in range(1, 10):
        write(f"x/{number}.yaml", f"extends: {number - 1}.yaml")
    assert said in refusal(write("x/mine.yaml", text))


def test_seven_in_a_row_are_fine_and_text_alone_cannot_extend(write):
    write("0.yaml", f"extends: {BASE}")
    for number in range(1, 7):
        path = write(f"{number}.yaml", f"extends: {number - 1}.yaml")
    assert load_recipe(path) == replace(load_recipe(BASE), name="6", description="")
    with pytest.raises(ConfigError, match="this recipe extends another"):
        from_yaml(path.read_text())
    with pytest.raises(ConfigError, match="--extends: only a recipe file can extend another"):
        load_recipe(path, ["--extends=shapes/sft"])


def test_a_run_holds_the_recipe_whole(write, tmp_path, capsys):
    path = write("mine.yaml", f"extends: {BASE}\niterations: 1\n")
    overrides = tiny_runs.overrides(iterations=1, eval__every=1)
    assert tiny_runs.unigrpo("train", path, "--out", tmp_path / "run", *overrides) == 0
    path.unlink()  # the run needs it no longer
    recipe = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert recipe.name == "mine" and "extends" not in (tmp_path / "run" / "recipe.yaml").read_text()
    assert tiny_runs.unigrpo("train", "mine.yaml", "--out", tmp_path / "run", "--resume", "--iterations", 2) == 0
