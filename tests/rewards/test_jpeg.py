"""The JPEG rewards: sizes of the very files, and opposite signs."""

import io

import pytest
import torch
from PIL import Image

from unigrpo import build  # noqa: F401 (names the rewards that ship)
from unigrpo.rewards import jpeg, registry
from unigrpo.rewards.composite import CompositeReward, WeightedReward
from unigrpo.rewards.protocol import RewardInput


def pictures(height=24, width=40):
    noise = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    return torch.cat([torch.full((1, 3, height, width), 0.5), noise])


def given(images):
    count = len(images)
    return RewardInput(images, ["p"] * count, [{}] * count, [None] * count)


def test_sizes_are_those_of_the_files_that_pillow_writes():
    images = pictures()
    for picture, size in zip(images, jpeg.jpeg_kilobytes(images), strict=True):
        buffer = io.BytesIO()
        array = (picture * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).save(buffer, format="JPEG", quality=95)
        assert size == len(buffer.getvalue()) / 1000
        assert Image.open(io.BytesIO(buffer.getvalue())).size == (40, 24)


@pytest.mark.parametrize("size", [(24, 40), (1, 1), (256, 128)])
def test_smooth_pictures_are_small_and_the_rewards_are_opposite(size):
    images = pictures(*size)
    small, large = (
        CompositeReward((WeightedReward(name, registry.build(name)),))(given(images))
        for name in ("image/jpeg-compressibility", "image/jpeg-incompressibility")
    )
    assert list(small.values) == [-v for v in large.values] and all(v > 0 for v in large.values)
    assert small.parts["kilobytes"] == large.parts["kilobytes"] == list(large.values)
    if size != (1, 1):
        assert small.values[0] > small.values[1]


def test_the_graph_is_left_alone():
    images = pictures().requires_grad_()
    assert all(isinstance(v, float) for v in jpeg.jpeg_kilobytes(images))
