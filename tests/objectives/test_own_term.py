"""examples/own_image_term.py: an image term that no file of src/ knows, used by a dotted name from a recipe."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import tiny_runs
from unigrpo.loading import load, reference
from unigrpo.recipe import from_yaml, load_recipe, to_yaml
from unigrpo.recipe.keys import keys_of
from unigrpo.reports import runlog

FILE = Path(__file__).parents[2] / "examples/own_image_term.py"
NAME = f"{FILE}:WeightedMatching"


def method(settings: str = "") -> tuple[str, str]:
    return "--method", f"{{name: '{NAME}'{settings}}}"


def test_a_recipe_fills_it_and_comes_back():
    recipe = load_recipe("shapes/unigrpo", method(", image: {pairs: 3, temperature: 0.5}, text: {clip_range: 0.1}"))
    chosen = recipe.method
    assert (chosen.image.pairs, chosen.image.temperature, chosen.text.clip_range) == (3, 0.5, 0.1)
    assert chosen.trains_thinking and chosen.trains_drawing and not chosen.needs_sde
    assert not chosen.needs_behaviour_velocity and chosen.copies(window_size=9) == 3
    assert from_yaml(to_yaml(recipe)) == recipe
    keys = {key.name: key for key in keys_of(NAME)}
    assert keys["method.image.temperature"].line == "How sharply advantages are told apart."
    assert not load_recipe("shapes/unigrpo", method()).method.trains_thinking


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (", image: {pears: 3}", r"method\.image\.pears is not a key of a recipe"),
        (", image: {temperature: 0}", r"method\.image\.temperature = 0\.0 is out of range"),
        (", regulariser: {kind: latent_kl}", "it compares SDE steps"),
    ],
)
def test_its_settings_are_checked(settings, said):
    with pytest.raises(ValueError, match=said):
        load_recipe("shapes/unigrpo", method(settings))


def test_what_is_no_term_is_refused():
    for thing, said in (("Nothing", "there is no Nobody|there is no Nothing"), ("dataclass", "is no method")):
        with pytest.raises(ValueError, match=said):
            load_recipe("shapes/unigrpo", ["--method", f"{{name: '{FILE}:{thing}'}}"])


def test_the_formula():
    term = load(NAME, reference(NAME))(temperature=0.5, limit=3.0)

    velocities = [torch.zeros(2, 3, 4), torch.ones(2, 3, 4)]
    targets = [torch.ones(2, 3, 4), torch.full((2, 3, 4), 3.0)]
    found = term.loss(SimpleNamespace(velocities=velocities, targets=targets), torch.tensor([-1.0, 1.0]))
    assert found.loss.tolist() == pytest.approx([float(torch.tensor(-2.0).exp()), 3.0 * 4.0])


def test_it_trains_resumes_and_reports(tmp_path):
    words = [*method(", image: {pairs: 2}, text: {}"), *tiny_runs.overrides()]
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", tmp_path / "run", *words) == 0
    lines = runlog.read_metrics(tmp_path / "run")
    assert all(line["image"]["awr_weight"] > 0 and line["grad_norm"]["denoising"] > 0 for line in lines)
