"""The learned judge and its data: what it reads, its gradients, what it was taught, and what ships."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
import torch
from torch import Tensor

from preference.faults import CONTENT, EDITS
from preference.learning import bradley_terry_loss, save_preference
from preference.pairs import DRAWING, FAULTS, SMUDGE, PairBatch, PairMix, preference_pairs
from tolerances import assert_same_sums
from unigrpo.models.bagel_files.checkpoint import load_autoencoder
from unigrpo.worlds.shapes import Object, Scene, canonical, draw, render
from unigrpo.worlds.shapes.preference import (
    PreferenceConfig,
    PreferenceModel,
    load_preference,
    prompt_words,
)
from unigrpo.worlds.shapes.prompts import prompts
from unigrpo.worlds.shapes.tasks import graded_reward

ASSETS = Path(str(resources.files("unigrpo"))) / "assets"
SHIPPED = ASSETS / "shapes-preference"
TINY = PreferenceConfig(prompt_words(), width=8, channels=(4, 4), heads=2, blocks=1)
CLEAN = PairMix(flipped=0.0)


def as_drawn(pixels: Tensor, deviation: Tensor, noise: torch.Generator) -> Tensor:
    """An autoencoder that shows its latents' noise in the pixels."""
    return (pixels + 0.2 * deviation[:, None, None, None] * torch.randn(pixels.shape, generator=noise)).clamp(0, 1)


def tiny() -> PreferenceModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PreferenceModel(TINY)


def pictures(count: int) -> Tensor:
    return torch.rand((count, 3, 32, 32), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def shipped() -> PreferenceModel:
    return load_preference(SHIPPED)


@pytest.fixture(scope="module")
def clean_pairs() -> PairBatch:
    return preference_pairs("train", 3, 0, 400, as_drawn, CLEAN)


# The model


def test_one_score_per_picture_whoever_else_is_in_the_batch() -> None:
    model, images = tiny(), pictures(3)
    texts = ["a red circle", "there is a red circle to the left of a blue square", "three crosses"]
    scores = model(images, texts)
    assert scores.shape == (3,)
    assert scores.dtype == torch.float32
    alone = torch.cat([model(images[i : i + 1], [texts[i]]) for i in range(3)])
    assert_same_sums(scores, alone, terms=1000, scale=1.0)  # a few convolutions and projections
    assert not torch.allclose(scores, model(images, texts[::-1]), atol=1e-4)


def test_prompts_are_read_in_any_spelling() -> None:
    model, images = tiny(), pictures(2)
    torch.testing.assert_close(
        model(images, ["A red circle.", "3 circles"]), model(images, ["a red circle", "three circles"])
    )


def test_the_gradient_in_the_pixels_is_that_of_finite_differences() -> None:
    model, images = tiny().double(), pictures(2).double().requires_grad_()
    texts = ["a red circle", "two rings"]
    (gradient,) = torch.autograd.grad(model(images, texts).sum(), images)
    assert gradient.abs().amax((1, 2, 3)).min() > 0
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step = 1e-5 * direction
    with torch.no_grad():
        difference = (model(images + step, texts) - model(images - step, texts)).sum() / 2e-5
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("images", "texts", "message"),
    [
        (torch.rand(1, 3, 32, 32), ["a red elephant"], "'elephant'"),
        (torch.rand(1, 3, 32, 32), ["<think> red circle a1"], "'think' in the prompt"),
        (torch.rand(1, 3, 32, 32), ["..."], "has 0"),
        (torch.rand(1, 3, 32, 32), ["a " * 17], "has 17"),
        (torch.rand(1, 3, 16, 16), ["a circle"], "resize"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), ["a circle"], "divide bytes by 255"),
        (torch.rand(2, 3, 32, 32), ["a circle"], "2 pictures but 1 prompts"),
        (torch.rand(0, 3, 32, 32), [], "at least one"),
    ],
)
def test_what_the_judge_refuses(images: Tensor, texts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny()(images, texts)


def test_bradley_terry_in_closed_form() -> None:
    better = torch.tensor([0.3, -1.0, 40.0], dtype=torch.float64, requires_grad=True)
    worse = torch.tensor([-0.2, 0.5, -2.0], dtype=torch.float64)
    loss = bradley_terry_loss(better, worse)
    chances = 1 / (1 + torch.exp(-(better.detach() - worse)))
    torch.testing.assert_close(loss, -chances.log().mean(), rtol=1e-12, atol=1e-15)
    loss.backward()
    torch.testing.assert_close(better.grad, -(1 - chances) / 3, rtol=1e-9, atol=1e-15)


def test_configs_are_checked() -> None:
    with pytest.raises(ValueError, match="multiple of heads"):
        PreferenceConfig(("a",), width=10, heads=4)
    with pytest.raises(ValueError, match="repetitions"):
        PreferenceConfig(("a", "a"))


# Saving and loading


def test_a_saved_judge_comes_back_frozen_and_the_same(tmp_path: Path) -> None:
    model, images, texts = tiny(), pictures(2), ["a red circle", "two rings"]
    save_preference(model, tmp_path / "judge")
    state = torch.get_rng_state()
    again = load_preference(tmp_path / "judge")
    assert torch.equal(state, torch.get_rng_state())
    assert sorted(path.name for path in (tmp_path / "judge").iterdir()) == ["config.json", "model.safetensors"]
    assert again.config == model.config
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    assert torch.equal(again(images, texts), model(images, texts))
    images.requires_grad_()
    again(images, texts).sum().backward()
    assert images.grad is not None


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json, model\.safetensors"):
        load_preference(tmp_path)
    save_preference(tiny(), tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    plain = json.loads(config.read_text())
    config.write_text(json.dumps({**plain, "width": 16}))
    with pytest.raises(ValueError, match=r"model\.safetensors does not hold the weights"):
        load_preference(tmp_path)
    config.write_text(json.dumps({**plain, "depth": 1}))
    with pytest.raises(ValueError, match=r"config\.json is not the config"):
        load_preference(tmp_path)
    config.write_text(json.dumps(plain))
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"model\.safetensors does not hold the weights"):
        load_preference(tmp_path)


# Pairs


def same(first: PairBatch, second: PairBatch) -> bool:
    return (
        first.prompts == second.prompts
        and first.faults == second.faults
        and torch.equal(first.better, second.better)
        and torch.equal(first.worse, second.worse)
        and torch.equal(first.worse_cells, second.worse_cells)
        and torch.equal(first.flipped, second.flipped)
    )


def test_pairs_depend_on_their_key_alone() -> None:
    state = torch.get_rng_state()
    batch = preference_pairs("train", 0, 5, 24, as_drawn)
    torch.rand(3)
    assert same(batch, preference_pairs("train", 0, 5, 24, as_drawn))
    assert not same(batch, preference_pairs("train", 0, 6, 24, as_drawn))
    assert not same(batch, preference_pairs("train", 1, 5, 24, as_drawn))
    torch.set_rng_state(state)
    preference_pairs("train", 0, 5, 24, as_drawn)
    assert torch.equal(state, torch.get_rng_state())


def test_training_pairs_never_ask_for_what_is_held_out() -> None:
    held_out = {canonical(prompt.metadata) for prompt in prompts("held-out")}
    asked = {
        split: {canonical(p.metadata) for i in range(5) for p in preference_pairs(split, 0, i, 120, as_drawn).prompts}
        for split in ("train", "held-out")
    }
    assert len(asked["train"]) > 100
    assert not asked["train"] & held_out
    assert asked["held-out"] <= held_out


def test_all_kinds_of_pairs_come(clean_pairs: PairBatch) -> None:
    assert set(clean_pairs.faults) == set(FAULTS)
    assert {fault for faults in CONTENT.values() for fault in faults} == set(EDITS)
    shape = (400, 3, 32, 32)
    assert clean_pairs.better.shape == clean_pairs.worse.shape == shape
    assert clean_pairs.better.min() >= 0 and clean_pairs.worse.max() <= 1


def test_gold_agrees_with_the_construction(clean_pairs: PairBatch) -> None:
    metadata = [prompt.metadata for prompt in clean_pairs.prompts]
    better, _ = graded_reward(draw(clean_pairs.better_cells), metadata)
    worse, _ = graded_reward(draw(clean_pairs.worse_cells.clamp_min(0)), metadata)
    for fault, high, low in zip(clean_pairs.faults, better, worse, strict=True):
        if fault in EDITS:
            assert high == pytest.approx(1.0)
            assert low < high
        elif fault == "lesser":
            assert low < high < 1


def test_faults_of_drawing_take_the_picture_away_from_what_it_should_show() -> None:
    batch = preference_pairs("train", 3, 0, 200, as_drawn, PairMix(0.0, 0.0, drawing=1.0, redrawn=0.0, flipped=0.0))
    assert set(batch.faults) == set(DRAWING)
    right = draw(batch.better_cells)
    better = (batch.better - right).square().mean((1, 2, 3))
    worse = (batch.worse - right).square().mean((1, 2, 3))
    assert (worse > better).all()
    assert (batch.better_cells != SMUDGE).all()
    smudged = (batch.worse_cells == SMUDGE).sum(1).tolist()
    assert smudged == [int(fault == "smudge") for fault in batch.faults]


def test_wrong_labels_are_the_same_pairs_the_other_way_round() -> None:
    right = preference_pairs("train", 0, 0, 60, as_drawn, CLEAN)
    wrong = preference_pairs("train", 0, 0, 60, as_drawn, replace(CLEAN, flipped=1.0))
    assert wrong.flipped.all() and not right.flipped.any()
    assert torch.equal(right.better_cells, wrong.worse_cells)
    assert torch.equal(right.worse_cells, wrong.better_cells)
    human = preference_pairs("train", 0, 0, 600, as_drawn)
    assert 0.06 < human.flipped.float().mean() < 0.14


@pytest.mark.parametrize("shares", [{"other": -0.1}, {"drawing": 0.9}, {"flipped": 1.5}])
def test_shares_are_checked(shares: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="pair mix"):
        PairMix(**shares)


# What ships


def test_the_shipped_judge_is_small(shipped: PreferenceModel) -> None:
    assert sum(p.numel() for p in shipped.parameters()) <= 150_000
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 1_000_000
    assert shipped.config.words == prompt_words()


@torch.no_grad()
def test_the_shipped_judge_prefers_right_pictures(shipped: PreferenceModel) -> None:
    autoencoder = load_autoencoder(ASSETS / "shapes-autoencoder")

    def redraw(pixels: Tensor, deviation: Tensor, noise: torch.Generator) -> Tensor:
        latents = autoencoder.encode(pixels * 2 - 1)
        latents = latents + deviation[:, None, None, None] * torch.randn(latents.shape, generator=noise)
        return (autoencoder.decode(latents) * 0.5 + 0.5).clamp(0, 1)

    batch = preference_pairs("held-out", 77, 0, 300, redraw, PairMix(other=0.0, drawing=0.0, flipped=0.0))
    texts = [prompt.text for prompt in batch.prompts]
    wins = shipped(batch.better, texts) > shipped(batch.worse, texts)
    assert wins.float().mean() >= 0.75


@torch.no_grad()
def test_the_shipped_judge_reads_the_prompt(shipped: PreferenceModel) -> None:
    circle, ring = render([Scene((Object(shape, "red", "b2"),)) for shape in ("circle", "ring")])
    scores = shipped(torch.stack([circle, ring] * 2), ["a circle", "a circle", "a red ring", "a red ring"])
    assert scores[0] > scores[1] and scores[3] > scores[2]


def test_the_figures_that_ship_say_how_weak_it_is(shipped: PreferenceModel) -> None:
    figures = json.loads((SHIPPED / "evaluation.json").read_text())
    assert figures["parameters"] == sum(p.numel() for p in shipped.parameters())
    assert 0.85 <= figures["held_out_pairs"]["accuracy"] < 1
    for model in figures["agreement_with_verifier"].values():
        for drawn in model.values():
            assert 0.7 < drawn["auc_correct"] < 0.95
            assert 0.65 < drawn["within_prompt_reward"]["accuracy"] < 0.95
