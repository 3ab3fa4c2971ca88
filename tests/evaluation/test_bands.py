"""Bands: the formula by hand, no band where nobody can say, and the same ones every time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from unigrpo.evaluation import bands, canaries

K, F = bands.ERRORS, bands.FACTOR


def looked_at(count: int = 40, samples: int = 2, seed: int = 0, drift: float = 0.0) -> bands.Measured:
    """Canaries of pictures of two flat colours in halves, that differ from prompt to prompt."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.rand(count * samples, 3, generator=generator)
    pictures = (colours[:, :, None, None].expand(-1, 3, 8, 8) * 255).to(torch.uint8).clone()
    pictures[..., 4:] = 255 - pictures[..., 4:]
    pictures = (pictures.float() * (1 - drift)).to(torch.uint8)
    prompts = [i // samples for i in range(count * samples)]
    thinking = [f"draw number {i % 7} in colour {i % 5}" for i in range(count * samples)]
    return bands.measured(pictures, prompts, thinking)


def test_the_formula_by_hand() -> None:
    edge = bands.band("edge_energy", 0.1, 0.005, 40)
    assert (edge.low, edge.high) == (pytest.approx(0.1 / F - K * 0.005), pytest.approx(0.1 * F + K * 0.005))
    fine = bands.band("high_frequency", 0.1, 0.005, 40)
    assert (fine.low, fine.high) == (None, edge.high)
    hues = bands.band("colour_diversity", 3.0, 0.05, 40)
    assert (hues.low, hues.high) == (pytest.approx(3.0 - math.log2(F) - K * 0.05), None)
    again = bands.band("think_repetition", 0.1, 0.01, 40)
    assert (again.low, again.high) == (None, pytest.approx(1 - 0.9 / F + K * 0.01))
    assert bands.band("think_repetition", 0.0, 0.0, 40).high == pytest.approx(1 - 1 / F)  # nothing repeated is no doubt
    apart = bands.band("reference_distance", 0.0, 0.01, 40, reach=0.3)
    assert (apart.low, apart.high) == (None, pytest.approx(0.3 + K * 0.01))


def test_no_band_below_twenty_prompts_or_without_a_scale() -> None:
    for prompts, start in ((19, 0.1), (40, 0.0)):
        band = bands.band("edge_energy", start, 0.0, prompts)
        assert (band.low, band.high) == (None, None)
    assert all(band.low is band.high is None for band in looked_at(19).bands().values())
    assert all((band.low, band.high) != (None, None) for band in looked_at(20).bands().values())


def test_values_are_those_of_the_pure_functions() -> None:
    found = looked_at()
    pictures = (torch.rand(80, 3, generator=torch.Generator().manual_seed(0))[:, :, None, None] * 255).to(torch.uint8)
    pictures = pictures.expand(-1, 3, 8, 8).clone()
    pictures[..., 4:] = 255 - pictures[..., 4:]
    images, values = pictures.float() / 255.0, found.values()
    assert list(values) == [name for name in bands.CANARIES if name != "reference_distance"]
    assert values["edge_energy"] == pytest.approx(canaries.edge_energy(images))
    assert values["colour_diversity"] == pytest.approx(canaries.colour_diversity(images))
    assert values["group_diversity"] == pytest.approx(canaries.group_diversity(images, [i // 2 for i in range(80)]))
    assert values["think_words"] == 6


def test_noise_is_what_other_prompts_would_make() -> None:
    """The bootstrap's spread of a mean is s / sqrt(n), and the global generators are left alone."""
    before, state = np.random.get_state()[1].copy(), torch.random.get_rng_state()
    found = looked_at(samples=1)
    column = found.means["edge_energy"]
    assert found.bands()["edge_energy"].noise == pytest.approx(column.std() / math.sqrt(40), rel=0.1)
    assert found.bands() == looked_at(samples=1).bands()
    assert (np.random.get_state()[1] == before).all() and torch.equal(torch.random.get_rng_state(), state)


def test_pictures_in_pieces_are_pictures_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = looked_at().values()
    monkeypatch.setattr(bands, "CHUNK", 3 * 3 * 64)
    assert looked_at().values() == whole


def test_what_leaves_its_band_is_named() -> None:
    learned = {name: band.json() for name, band in looked_at().bands().items()}
    assert bands.outside(looked_at().values(), learned) == []
    assert bands.outside(looked_at(seed=1).values(), learned) == []  # other draws of the same kind
    found = {alarm["canary"]: alarm["side"] for alarm in bands.outside(looked_at(drift=0.9).values(), learned)}
    assert found["edge_energy"] == found["group_diversity"] == "below"
    assert bands.outside({"edge_energy": 9.0, "unheard_of": 1.0}, {}) == []


def test_the_distance_to_the_reference_is_that_of_first_pictures() -> None:
    pictures = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    pictures[0] = 51
    found = bands.measured(pictures, [5, 5, 6, 7], [None] * 4, {5: pictures[1], 6: pictures[2]})
    assert found.values()["reference_distance"] == pytest.approx((0.2 + 0.0) / 2)
    assert "think_words" not in found.values()


def test_the_distance_may_grow_to_that_of_other_prompts() -> None:
    kept = torch.zeros(30, 3, 8, 8, dtype=torch.uint8)
    kept[::2] = 255
    kept[::3] = 51
    band = bands.reference_band(kept)
    apart = [abs(float(kept[i].float().mean() - kept[(i + 1) % 30].float().mean())) / 255 for i in range(30)]
    assert band.high == pytest.approx(np.mean(apart) + K * np.std(apart) / math.sqrt(30), rel=1e-5)


def test_half_of_a_diversity_is_a_collapse() -> None:
    assert bands.collapsed("colour_diversity", 1.9, 3.0) and not bands.collapsed("colour_diversity", 2.1, 3.0)
    assert bands.collapsed("group_diversity", 0.04, 0.1) and not bands.collapsed("edge_energy", 0.0, 0.1)
