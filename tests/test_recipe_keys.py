"""Every key is bounded and explained: `train --keys`, `recipe`, the page in the docs, and the ranges themselves."""

import dataclasses
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest

import tiny_runs
from unigrpo.objectives.methods import METHODS
from unigrpo.ranges import ConfigError, Range, Text
from unigrpo.recipe import from_yaml, keys, keys_page, list_recipes, load_experiment, load_recipe, to_yaml
from unigrpo.recipe.reading import kinds_of
from unigrpo.recipe.schema import Recipe

DOCS = Path(__file__).parents[1] / "docs"
STAGED = "paper/refl-textgrpo"


def leaves(kind, place):
    """Every type of a value in a recipe, with its key; a bounded one as it is annotated."""
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind, include_extras=True)
        return [leaf for key, inner in hints.items() for leaf in leaves(inner, f"{place}.{key}")]
    if get_origin(kind) is Mapping:  # arguments of somebody's own class, which alone knows them
        return []
    if get_origin(kind) is not Annotated and (inner := [a for a in get_args(kind) if not isinstance(a, str)]):
        return [leaf for one in inner for leaf in leaves(one, place)]
    return [(place, kind)]


@pytest.mark.parametrize("method", METHODS)
def test_every_number_has_a_range_of_two_ends_and_every_text_a_length(method):
    hints = get_type_hints(Recipe, include_extras=True) | kinds_of(method)
    found = [leaf for key, kind in hints.items() for leaf in leaves(kind, key)]
    assert len(found) > 40
    for place, kind in found:
        assert kind not in (int, float, str), f"{place} has no bounds"
        if get_origin(kind) is Annotated:
            basis, bounds = get_args(kind)
            assert isinstance(bounds, Text if basis is str else Range), place
            if isinstance(bounds, Range):
                assert math.isfinite(bounds.low) and math.isfinite(bounds.high), place


ABSURD = [
    ("rollout.num_points", "1" + "0" * 70, "is a whole number of 71 digits"),
    ("optimizer.micro_batch", "1" + "0" * 70, "is a whole number of 71 digits"),
    ("rollout.num_points", 10**9, "rollout.num_points = 1000000000 is out of range: it must be at least 2 and at most"),
    ("optimizer.micro_batch", 10**9, "optimizer.micro_batch = 1000000000 is out of range"),
    ("seed", 2**63, "seed = 9223372036854775808 is out of range"),
    ("optimizer.lr_reasoning", "1e9", "optimizer.lr_reasoning = 1000000000.0 is out of range"),
    ("reward.train", "[{name: shapes/verifier, weight: 1e200}]", "reward.train[0].weight = 1e+200 is out of range"),
    ("reward.train", "[" + "{name: a}, " * 101 + "]", "reward.train lists 101 items: 100 are the most"),
    ("model.path", ".inf", "model.path = inf is of the wrong type: it must be text"),
    ("model.path", "2024-01-01", "'2024-01-01' (line 1) is a date: if it is a text, quote it"),
    ("model.path", "x" * 5000, "model.path = 'xxx"),
    ("name", '"a\\nb"', "name = 'a\\nb' is out of range: it must be a text of 1 to 120 characters without control"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "said"), ABSURD, ids=[f"{key} {str(value)[:12]}" for key, value, _ in ABSURD])
def test_a_dry_run_refuses_absurd_values(key, value, said, capsys):
    assert tiny_runs.unigrpo("train", "shapes/unigrpo", "--dry-run", f"--{key}", value) == 2
    assert said in capsys.readouterr().err


def test_quoted_texts_that_look_otherwise_are_texts():
    for text in (".inf", "2024-01-01", "-.INF", ".nan"):
        recipe = load_recipe("shapes/unigrpo", [f"--model.path='{text}'"])
        assert recipe.model.path == text and from_yaml(to_yaml(recipe)) == recipe


@pytest.mark.parametrize("speed", ["inf", "nan", "1e70"])
def test_the_speed_of_a_dry_run_has_two_ends(speed, capsys):
    assert tiny_runs.unigrpo("train", "shapes/unigrpo", "--dry-run", "--tflops", speed) == 2
    assert "give a speed above 0 and at most 1e6" in capsys.readouterr().err


# ---------------------------------------------------------------- explained


def test_every_key_has_a_line():
    """A new field without a string below it fails here."""
    for key, methods in keys.all_keys():
        assert 8 < len(key.line) < 120 and methods, key


def test_keys_of_a_recipe_are_its_keys_and_have_its_values():
    recipe = load_recipe("shapes/unigrpo", ["--model.lora={rank: 3}", "--optimizer.betas=[0.5, 0.6]"])
    found = {key.name: keys.value_of(recipe, key.name) for key in keys.keys_of("unigrpo")}
    assert found["model.lora.rank"] == 3 and found["optimizer.betas"] == (0.5, 0.6)
    assert found["method.flow.clip_range"] == "auto" and found["reward.train[].name"] is keys.UNSET
    written = dataclasses.asdict(recipe)
    assert {name.split(".")[0] for name in found} == set(written)
    assert {name.split(".")[1] for name in found if name.startswith("method.")} == set(written["method"])


def test_train_keys_lists_every_key_with_default_range_and_one_line(capsys):
    assert tiny_runs.unigrpo("train", "shapes/unigrpo", "--keys", "--rollout.num-points", 12) == 0
    lines = capsys.readouterr().out.splitlines()
    place = lines.index("rollout.num_points = 12   (default 25; 2 to 10000)")
    assert lines[place + 1] == "    Points of the timestep grid; M points are M - 1 forwards (Table 3)."
    assert "method.flow.clip_range = auto   (default auto; above 0 to 1e+09 | auto)" in lines
    assert any(line.startswith("data.prompts = 'shapes:train'   (default none: set it") for line in lines)
    assert len(lines) == 2 * len(keys.keys_of("unigrpo")) and not any("demonstrations" in line for line in lines[::2])
    assert tiny_runs.unigrpo("train", STAGED, "--keys") == 0
    shown = capsys.readouterr().out
    assert "# stage 2 of 2" in shown and "method.refl.late = 0.25" in shown and "method.name = text_grpo" in shown


def test_the_page_of_keys_is_up_to_date():
    page = (DOCS / "recipe-keys.md").read_text(encoding="utf-8")
    assert page == keys_page(), "run: python scripts/write_recipe_keys.py"
    assert "| `rollout.num_points` | `25` | 2 to 10000 |" in page and "(unigrpo, flow_grpo)" in page
    assert "recipe-keys.md" in (DOCS / "guide.md").read_text(encoding="utf-8")


def test_the_command_that_the_page_names_writes_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS.parent / "scripts"))
    monkeypatch.delitem(sys.modules, "write_recipe_keys", raising=False)
    import write_recipe_keys

    monkeypatch.setattr(write_recipe_keys, "PAGE", tmp_path / "page.md")
    write_recipe_keys.main()
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == keys_page()


# ---------------------------------------------------------------- a recipe to edit


@pytest.mark.parametrize("name", [name for name, _ in list_recipes()])
def test_a_recipe_written_to_be_edited_is_the_same_recipe(name, tmp_path, capsys):
    out = tmp_path / "my.yaml"
    assert tiny_runs.unigrpo("recipe", name, "--out", out) == 0
    assert f"to run it: unigrpo train {out}" in capsys.readouterr().out
    assert load_experiment(out) == load_experiment(name)
    lines = [line.strip() for line in out.read_text(encoding="utf-8").splitlines()]
    assert max(map(len, lines)) <= 120 or any(len(line) > 120 and not line.startswith("#") for line in lines)
    for number, line in enumerate(lines):
        if not line.startswith(("#", "- name", "stages:")) and not line.endswith(":"):
            assert lines[number - 1].startswith("# "), f"{line} is not explained"


def test_a_recipe_with_overrides_is_printed_edited_and_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    overrides = tiny_runs.overrides(iterations=1, eval__every=1)
    assert tiny_runs.unigrpo("recipe", "shapes/unigrpo", *overrides) == 0
    shown = capsys.readouterr().out
    assert tiny_runs.listed(tmp_path) == [] and from_yaml(shown).iterations == 1
    (tmp_path / "mine.yaml").write_text(shown.replace("name: shapes/unigrpo", "name: mine"), encoding="utf-8")
    assert tiny_runs.unigrpo("train", "mine.yaml", "--out", "run") == 0
    assert load_recipe("run/recipe.yaml").name == "mine"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("shapes/unigrp",), "did you mean shapes/unigrpo"),
        (("shapes/unigrpo", "--out", "my.txt"), "recipes are .yaml files"),
        (("shapes/unigrpo", "--out", "there.yaml"), "there.yaml is there already: name a new file"),
        (("shapes/unigrpo", "--iteratons", "3"), "did you mean iterations?"),
    ],
)
def test_a_recipe_that_cannot_be_written_is_refused(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.yaml").write_text("mine")
    assert tiny_runs.unigrpo("recipe", *words) == 2
    assert said in capsys.readouterr().err
    assert tiny_runs.listed(tmp_path) == ["there.yaml"] and (tmp_path / "there.yaml").read_text() == "mine"


def test_a_range_without_an_upper_end_cannot_be_written():
    with pytest.raises(TypeError):
        Range(0)  # type: ignore[call-arg]


def test_a_value_is_shown_short_and_without_control_characters():
    with pytest.raises(ConfigError) as caught:
        from_yaml("rollout: " + "x" * 50_000)
    assert len(str(caught.value)) < 200
    with pytest.raises(ConfigError) as caught:
        load_recipe("shapes/unigrpo", ["--rollout=" + "x" * 50_000])
    assert len(str(caught.value)) < 500
