from __future__ import annotations

import torch

from unigrpo.worlds.shapes import COLOURS, Object, Scene, cell_labels, render
from unigrpo.worlds.shapes.renderer import BACKGROUND, CELL_SIZE, KINDS, TEMPLATES


def test_pictures_have_their_shape_range_and_cells():
    scene = Scene((Object("square", "yellow", "b3"),))
    picture = render([scene, Scene(())])
    assert picture.shape == (2, 3, 32, 32)
    assert picture.dtype == torch.float32
    assert picture.min() >= 0 and picture.max() <= 1
    torch.testing.assert_close(picture[0, :, 12, 20], torch.tensor(COLOURS["yellow"]))
    torch.testing.assert_close(picture[1, :, 12, 20], torch.tensor(BACKGROUND))
    changed = (picture[0] != picture[1]).any(0).nonzero()
    assert changed.min(0).values.tolist() == [8, 16]
    assert changed.max(0).values.tolist() == [15, 23]


def test_labels_name_what_is_drawn():
    labels = cell_labels([Scene((Object("ring", "cyan", "d4"), Object("circle", "red", "a1")))])
    assert KINDS[labels[0, 15] - 1] == ("ring", "cyan")
    assert KINDS[labels[0, 0] - 1] == ("circle", "red")
    assert labels[0, 1:15].eq(0).all()


def test_templates_differ_clearly():
    flat = TEMPLATES.reshape(len(TEMPLATES), -1)
    distances = torch.cdist(flat, flat) / (3 * CELL_SIZE**2) ** 0.5
    distances.fill_diagonal_(1)
    assert distances.min() > 0.11


def test_objects_do_not_cover_their_whole_cell_equally():
    for shape_index in range(6):
        alpha = (TEMPLATES[1 + 7 * shape_index] - TEMPLATES[0]).abs().sum(0)
        assert (alpha > 0.1).float().mean() > 0.2
