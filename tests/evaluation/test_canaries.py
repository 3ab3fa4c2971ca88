"""Canaries move when they should and hold still when they should."""

from __future__ import annotations

import math

import pytest
import torch

from unigrpo.evaluation import canaries
from unigrpo.evaluation.canaries import colour_diversity, edge_energy, plan_diversity

SIX = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1]])


def flat(colours: torch.Tensor, size: int = 8) -> torch.Tensor:
    """One blank picture per colour: [N, 3] -> [N, 3, size, size]."""
    return colours[:, :, None, None].expand(-1, -1, size, size).clone()


def test_colour_diversity_is_the_entropy_of_hues() -> None:
    assert colour_diversity(flat(SIX)) == pytest.approx(math.log2(6))
    assert colour_diversity(flat(SIX[:2])) == pytest.approx(1.0)
    assert colour_diversity(flat(SIX[:1])) == 0.0


def test_colour_diversity_does_not_see_greys_darkness_and_noise() -> None:
    greys = flat(torch.tensor([[0.0, 0, 0], [0.5, 0.5, 0.5], [1, 1, 1], [0.1, 0, 0]]))
    assert colour_diversity(greys) == 0.0
    assert colour_diversity(torch.cat([greys, flat(SIX)])) == pytest.approx(math.log2(6))
    noise = 0.08 * torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert colour_diversity((flat(SIX) * 0.9 + noise).clamp(0, 1)) == pytest.approx(math.log2(6), abs=0.01)


def test_colour_diversity_counts_the_batch_not_the_picture() -> None:
    one_each, mixed = flat(SIX), flat(SIX).transpose(0, 2)  # [8, 3, 6, 8]: every picture holds all six
    assert colour_diversity(one_each) == pytest.approx(colour_diversity(mixed))


def test_edge_energy_of_known_pictures() -> None:
    assert edge_energy(flat(SIX)) == 0.0
    stripes = torch.zeros(1, 3, 4, 4)
    stripes[..., 1::2] = 1.0
    assert edge_energy(stripes) == pytest.approx(0.5)  # every column pair differs by 1, no row pair does
    checks = (torch.arange(4)[:, None] + torch.arange(4)).remainder(2).float().expand(1, 3, 4, 4)
    assert edge_energy(checks) == pytest.approx(1.0)


def test_edge_energy_rises_with_grid_artefacts() -> None:
    picture = flat(SIX, 32) * 0.8
    gridded = picture.clone()
    gridded[..., ::4] += 0.05
    gridded[..., ::4, :] += 0.05
    assert edge_energy(gridded) > edge_energy(picture) + 0.01


def test_plan_diversity_falls_when_plans_drift() -> None:
    varied = ["red circle a1", "blue square b2", "green star c3", "yellow cross d4"]
    drifted = ["yellow circle a1", "yellow square a1", "yellow star a1", "yellow cross a1"]
    assert plan_diversity(varied) == pytest.approx(math.log2(12))
    assert plan_diversity(drifted) < plan_diversity(varied) - 0.5
    assert plan_diversity(["yes", "YES yes"]) == 0.0
    assert plan_diversity([]) == plan_diversity([""]) == 0.0


def test_wrong_input_is_explained() -> None:
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\]"):
        colour_diversity(torch.zeros(2, 8, 8, 3))
    with pytest.raises(TypeError, match="divide by 255"):
        edge_energy(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="2x2"):
        edge_energy(torch.zeros(1, 3, 1, 8))


def checks(size: int = 8) -> torch.Tensor:
    """A chessboard of single pixels: [1, 3, size, size]."""
    return (torch.arange(size)[:, None] + torch.arange(size)).remainder(2).float().expand(1, 3, size, size)


def wave(cycles: int, size: int = 32) -> torch.Tensor:
    """A grey picture with so many cycles from left to right: [1, 3, size, size]."""
    row = 0.5 + 0.4 * torch.cos(2 * torch.pi * cycles * torch.arange(size) / size)
    return row.expand(1, 3, size, size)


def test_high_frequencies_of_waves() -> None:
    """Energy at 1/2 cycle per pixel counts, at 3 cycles in 32 pixels not; of two waves it is their energies' share."""
    pictures = torch.cat([checks(32), wave(3), wave(12), flat(SIX[:1], 32), flat(torch.zeros(1, 3), 32)])
    assert canaries.high_frequencies(pictures).tolist() == pytest.approx([1.0, 0.0, 1.0, 0.0, 0.0], abs=1e-6)
    both = 0.5 + 0.5 * (wave(3) - 0.5) + 0.25 * (wave(12) - 0.5)  # energies 4 : 1
    assert canaries.high_frequencies(both).item() == pytest.approx(0.2, abs=1e-6)


def test_saturation_of_known_colours() -> None:
    colours = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0.5], [0, 0, 0], [1, 0.75, 0.5]])
    assert canaries.saturations(flat(colours)).tolist() == pytest.approx([1.0, 0.0, 0.0, 0.5])


def test_every_picture_has_its_own_edges_and_hues() -> None:
    pictures = torch.cat([flat(SIX), checks()])
    assert canaries.edge_energies(pictures).tolist() == pytest.approx([0.0] * 6 + [1.0])
    assert float(canaries.edge_energies(pictures).mean()) == pytest.approx(edge_energy(pictures))
    counts = canaries.hue_counts(pictures)
    assert counts.shape == (7, canaries.BINS) and counts.sum(1).tolist() == [64] * 6 + [0]


def test_diversity_inside_a_group_is_the_mean_distance_of_its_pairs() -> None:
    levels = torch.tensor([0.0, 0.2, 0.6, 0.5, 0.5, 0.9])
    pictures = levels[:, None, None, None].expand(-1, 3, 8, 8)
    groups = [7, 7, 7, 3, 3, 1]
    assert canaries.group_distances(pictures, groups) == pytest.approx({7: (0.2 + 0.6 + 0.4) / 3, 3: 0.0})
    assert canaries.group_diversity(pictures, groups) == pytest.approx(0.2)
    assert canaries.group_diversity(pictures, list(range(6))) is None
    with pytest.raises(ValueError, match="give pairs"):
        canaries.distances(pictures, pictures[:2])


def test_large_pictures_are_compared_small() -> None:
    large = torch.zeros(2, 3, 256, 128, dtype=torch.uint8)
    large[1, :, ::2] = 255  # lines of one pixel are grey from afar
    small = canaries.small(large)
    assert small.shape == (2, 3, 64, 32)
    assert canaries.distances(small[:1], small[1:]).item() == pytest.approx(0.5)
    assert torch.equal(canaries.small(large[..., :64, :64]), large[..., :64, :64] / 255.0)


def test_repetition_is_the_share_of_n_grams_that_were_there() -> None:
    assert canaries.repetition("a b c d e f") == 0.0
    assert canaries.repetition("a b c d a b c d") == pytest.approx(1 / 5)  # of five, a b c d comes twice
    assert canaries.repetition("No no NO no no no no") == pytest.approx(3 / 4)
    assert canaries.repetition("too short") == canaries.repetition("") == 0.0
