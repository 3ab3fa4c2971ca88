"""The vision tower and the connector: the numbers of the original, and a forward written out from the formulas."""

import ast
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from small_models import largest, normal, randomise, relative
from unigrpo.models.bagel.config import VisionConfig
from unigrpo.models.bagel.transformer import sincos_table
from unigrpo.models.bagel.vision import Connector, VisionTower, grid_of, patches_of, positions

GOLDEN = Path(__file__).parents[2] / "golden"
SMALL = VisionConfig(24, 40, 3, 3, image_size=40, patch_size=4, max_patches_per_side=10)
FULL = VisionConfig(1152, 4304, 26, 16)
GRIDS = [(3, 5), (2, 2), (5, 3), (3, 5), (1, 7), (3, 5)]


def tower_of(config):
    pytest.importorskip("transformers")
    return VisionTower(config)


def random_tower(config=SMALL, dtype=torch.float64, seed=0):
    tower = tower_of(config)
    randomise(tower, seed)
    return tower.to(dtype)


def random_views(grids, config=SMALL, dtype=torch.float64):
    return [(normal(r * c, config.patch_dim, seed=i).to(dtype), (r, c)) for i, (r, c) in enumerate(grids)]


def public_part(weights, prefix):
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "bagel_a" / "golden.safetensors")


@pytest.fixture(scope="module")
def weights():
    return load_file(GOLDEN / "bagel_a" / "weights.safetensors")


@pytest.fixture(scope="module")
def config():
    values = json.loads((GOLDEN / "bagel_a" / "config.json").read_text())
    vit = values["vit_config"]
    return VisionConfig(
        vit["hidden_size"],
        vit["intermediate_size"],
        vit["num_hidden_layers"],  # this file counts the layers that are there
        vit["num_attention_heads"],
        vit["image_size"],
        vit["patch_size"],
        values["vit_max_num_patch_per_side"],
        vit["layer_norm_eps"],
    )


@pytest.fixture(scope="module")
def tower(config, weights):
    tower = tower_of(config)
    tower.load_state_dict(public_part(weights, "vit_model."))
    return tower


def dense(weights, patches, grid, config):
    """One picture, one head at a time, from the formulas: docs/bagel-architecture.md#vision-tower."""
    w = {name.removeprefix("vision_model."): value for name, value in weights.items()}

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + config.layer_norm_eps).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def gelu(x):
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    places = [row * config.max_patches_per_side + column for row in range(grid[0]) for column in range(grid[1])]
    h = linear(patches, "embeddings.patch_embedding") + w["embeddings.position_embedding.weight"][places]
    d = config.hidden_size // config.num_heads
    for layer in (f"encoder.layers.{i}" for i in range(config.num_layers)):
        x = norm(h, f"{layer}.layer_norm1")
        q, k, v = (linear(x, f"{layer}.self_attn.{name}_proj") for name in "qkv")
        heads = [slice(i * d, (i + 1) * d) for i in range(config.num_heads)]
        mixed = [torch.softmax(q[:, s] @ k[:, s].T / math.sqrt(d), -1) @ v[:, s] for s in heads]
        h = h + linear(torch.cat(mixed, -1), f"{layer}.self_attn.out_proj")
        h = h + linear(gelu(linear(norm(h, f"{layer}.layer_norm2"), f"{layer}.mlp.fc1")), f"{layer}.mlp.fc2")
    return norm(h, "post_layernorm")


def test_the_pixels_of_the_original_give_its_patches(golden, config):
    assert torch.equal(patches_of(golden["edit.vit_pixels"], config), golden["vit.patches"])
    patches = patches_of(golden["train.vit_pixels"], config)  # one picture, packed twice
    assert torch.equal(torch.cat([patches, patches]), golden["train.packed_vit_tokens"])


def test_the_places_of_the_original(golden, config):
    stride, device = config.max_patches_per_side, torch.device("cpu")
    assert torch.equal(positions((3, 5), stride, device), golden["vit.position_ids"])
    assert torch.equal(positions((3, 5), stride, device).repeat(2), golden["train.packed_vit_position_ids"])


def test_the_stride_is_that_of_the_tables_and_not_the_side_of_the_image():
    assert positions((2, 3), 7, torch.device("cpu")).tolist() == [0, 1, 2, 7, 8, 9]
    config = replace(SMALL, max_patches_per_side=6)  # smaller than image_size / patch_size
    tower, views = random_tower(config), random_views([(3, 2)])
    assert largest(tower(views)[0], dense(tower.state_dict(), *views[0], config)) <= 1e-9


def test_the_tower_and_the_connector_reproduce_the_original(golden, config, weights, tower):
    connector = Connector(config.hidden_size, weights["connector.fc1.weight"].shape[0])
    connector.load_state_dict(public_part(weights, "connector."))
    with torch.no_grad():
        seen = tower([(golden["vit.patches"], (3, 5))])[0]
        connected = connector(seen) + weights["vit_pos_embed.pos_embed"][golden["vit.position_ids"]]
    assert largest(seen, golden["vit.out"]) <= 1e-4
    assert largest(connected, golden["vit.connected"]) <= 1e-4


def test_the_second_table_has_the_same_layout_as_that_of_the_latents(config, weights):
    table = weights["vit_pos_embed.pos_embed"]
    assert largest(sincos_table(config.max_patches_per_side, table.shape[1]), table) <= 1e-6


def test_a_forward_written_out_agrees_in_fp64():
    tower, views = random_tower(), random_views(GRIDS)
    for seen, (patches, grid) in zip(tower(views), views, strict=True):
        assert largest(seen, dense(tower.state_dict(), patches, grid, SMALL)) <= 1e-9


def test_the_connector_written_out_agrees_in_fp64():
    connector, x = Connector(6, 8).double(), normal(5, 6).double()
    inner = x @ connector.fc1.weight.T + connector.fc1.bias
    inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
    assert largest(connector(x), inner @ connector.fc2.weight.T + connector.fc2.bias) <= 1e-9


def test_together_is_one_by_one_and_in_order():
    tower, views = random_tower(), random_views(GRIDS)
    batches = []
    tower.vision_model.register_forward_pre_hook(lambda module, given: batches.append(given[0].shape[0]))
    together = tower(views)
    assert batches == [3, 1, 1, 1]  # equal grids ran together
    assert [len(seen) for seen in together] == [rows * columns for rows, columns in GRIDS]
    for seen, view in zip(together, views, strict=True):
        assert largest(seen, tower([view])[0]) <= 1e-12
    assert tower([]) == []


def test_gradients_are_those_of_the_forward_written_out_and_reach_every_parameter():
    tower, views = random_tower(), random_views([(3, 5), (2, 2), (3, 5)])
    directions = [normal(r * c, SMALL.hidden_size, seed=9 + i).double() for i, (_, (r, c)) in enumerate(views)]
    sum((seen * d).sum() for seen, d in zip(tower(views), directions, strict=True)).backward()
    leaves = {name: value.detach().clone().requires_grad_() for name, value in tower.named_parameters()}
    sum((dense(leaves, *view, SMALL) * d).sum() for view, d in zip(views, directions, strict=True)).backward()
    for name, parameter in tower.named_parameters():
        assert largest(parameter.grad, leaves[name].grad) <= 1e-9, name
        # a constant on all keys changes no softmax: that gradient is rounding
        assert name.endswith("k_proj.bias") or parameter.grad.abs().max() > 1e-3, name


def test_a_frozen_tower_keeps_no_graph():
    tower = random_tower().requires_grad_(False)
    assert not tower(random_views([(2, 2)]))[0].requires_grad


def test_patches_take_the_dtype_of_the_weights():
    tower, views = random_tower(dtype=torch.float32), random_views([(3, 5)], dtype=torch.float32)
    wide = tower(views)[0]
    low = tower.bfloat16()(views)[0]
    assert (wide.dtype, low.dtype) == (torch.float32, torch.bfloat16)
    assert relative(low.float(), wide) < 0.03


def test_names_and_shapes_of_the_public_checkpoint():
    pytest.importorskip("transformers")
    with torch.device("meta"):
        modules = {"vit_model.": VisionTower(FULL), "connector.": Connector(1152, 3584)}
    lines = [line.split("\t") for line in (GOLDEN / "tensors_7b.txt").read_text().splitlines()]
    for prefix, module in modules.items():
        public = {name: ast.literal_eval(shape) for name, shape in lines if name.startswith(prefix)}
        assert {prefix + name: tuple(value.shape) for name, value in module.state_dict().items()} == public
        assert all(value.device.type == "meta" for value in module.state_dict().values())
    assert len(modules["vit_model."].state_dict()) == 5 + 26 * 16


def test_attention_is_torchs_own(tower):
    assert {layer.self_attn.config._attn_implementation for layer in tower.vision_model.encoder.layers} == {"sdpa"}


def test_patches_run_row_by_row_and_inside_by_row_column_channel():
    pixels = torch.arange(3 * 8 * 12).reshape(3, 8, 12)
    patches = patches_of(pixels, SMALL).reshape(2, 3, 4, 4, 3)
    for row, column, y, x, channel in [(0, 0, 0, 0, 0), (1, 2, 3, 1, 2), (0, 1, 2, 3, 1), (1, 0, 0, 3, 0)]:
        assert patches[row, column, y, x, channel] == pixels[channel, 4 * row + y, 4 * column + x]


@pytest.mark.parametrize("size", [(10, 8), (8, 10), (44, 8), (8, 44), (0, 8)])
def test_a_picture_that_does_not_fit_is_refused(size):
    with pytest.raises(ValueError, match=rf"{size[0]} x {size[1]} pixels .* multiple of 4, at most 40"):
        patches_of(torch.zeros(3, *size), SMALL)
    assert grid_of(40, 8, SMALL) == (10, 2)


def test_a_picture_without_three_channels_is_refused():
    with pytest.raises(ValueError, match="3 channels, not 1"):
        patches_of(torch.zeros(1, 8, 8), SMALL)


@pytest.mark.parametrize(
    ("count", "grid", "message"),
    [(14, (3, 5), r"grid of 3 x 5: expected \(15, 48\)"), (15, (5, 4), "grid of 5 x 4"), (11, (1, 11), "at most 40")],
)
def test_a_grid_that_is_not_that_of_the_patches_is_refused(count, grid, message):
    tower = random_tower()
    with pytest.raises(ValueError, match=message):
        tower([(torch.zeros(count, SMALL.patch_dim), grid)])


def test_a_table_too_small_for_its_stride_is_refused():
    with pytest.raises(ValueError, match=r"max_patches_per_side 11 .* 100 positions .* at most 10"):
        VisionTower(replace(SMALL, max_patches_per_side=11))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"needs the package transformers: pip install '\.\[bagel\]'"):
        VisionTower(SMALL)
