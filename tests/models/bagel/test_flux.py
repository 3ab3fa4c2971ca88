"""The FLUX autoencoder against an independent forward on the original tensor names.

Source of that: docs/bagel-architecture.md#autoencoder.
"""

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from small_models import normal
from unigrpo.models.bagel_files.flux import FluxAutoencoder, FluxConfig, diffusers_name, original_shapes

PUBLIC = Path(__file__).parents[2] / "golden" / "tensors_ae.txt"
TINY = FluxConfig(ch=32, multipliers=(1, 1, 1, 1))
WIDENING = FluxConfig(ch=32, multipliers=(1, 2), latent_channels=4)
CONFIGS = {"tiny": TINY, "z 4": replace(TINY, latent_channels=4), "nin_shortcut": WIDENING}


# ---------------------------------------------------------------- the independent forward


def random_tensors(config, seed=0, dtype=torch.float32):
    """Random weights under original names that keep activations of size one; no norm is trivial, no bias zero."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in original_shapes(config).items():
        draws = torch.randn(shape, generator=generator, dtype=torch.float64)
        if len(shape) == 4:
            draws = draws / math.sqrt(math.prod(shape[1:]))
        else:
            draws = 0.2 * draws + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        tensors[name] = draws.to(dtype)
    return tensors


def conv(w, name, x, **options):
    return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **options)


def norm(w, name, x):
    return F.group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)


def swish(x):
    return x * torch.sigmoid(x)


def resnet(w, name, x):
    h = conv(w, f"{name}.conv1", swish(norm(w, f"{name}.norm1", x)), padding=1)
    h = conv(w, f"{name}.conv2", swish(norm(w, f"{name}.norm2", h)), padding=1)
    return h + (conv(w, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in w else x)


def middle(w, name, x):
    x = resnet(w, f"{name}.block_1", x)
    h = norm(w, f"{name}.attn_1.norm", x)
    q, k, v = (conv(w, f"{name}.attn_1.{piece}", h).flatten(2) for piece in ("q", "k", "v"))
    scores = torch.einsum("bci,bcj->bij", q, k) / math.sqrt(q.shape[1])
    mixed = torch.einsum("bij,bcj->bci", scores.softmax(-1), v).reshape(x.shape)
    return resnet(w, f"{name}.block_2", x + conv(w, f"{name}.attn_1.proj_out", mixed))


def reference_moments(w, x, levels):
    h = conv(w, "encoder.conv_in", x, padding=1)
    for level in range(levels):
        for block in range(2):
            h = resnet(w, f"encoder.down.{level}.block.{block}", h)
        if level < levels - 1:
            h = conv(w, f"encoder.down.{level}.downsample.conv", F.pad(h, (0, 1, 0, 1)), stride=2)
    return conv(w, "encoder.conv_out", swish(norm(w, "encoder.norm_out", middle(w, "encoder.mid", h))), padding=1)


def reference_encode(w, x, noise, levels):
    mean, log_variance = reference_moments(w, x, levels).chunk(2, dim=1)
    return 0.3611 * (mean + (0.5 * log_variance).exp() * noise - 0.1159)


def reference_decode(w, latents, levels):
    h = middle(w, "decoder.mid", conv(w, "decoder.conv_in", latents / 0.3611 + 0.1159, padding=1))
    for level in reversed(range(levels)):
        for block in range(3):
            h = resnet(w, f"decoder.up.{level}.block.{block}", h)
        if level > 0:
            h = h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            h = conv(w, f"decoder.up.{level}.upsample.conv", h, padding=1)
    return conv(w, "decoder.conv_out", swish(norm(w, "decoder.norm_out", h)), padding=1)


# ---------------------------------------------------------------- helpers


def build(config=TINY, dtype=torch.float32, seed=0, **options):
    """An autoencoder with random weights, and these under their original names."""
    tensors = random_tensors(config, seed, dtype)
    autoencoder = FluxAutoencoder(config, **options).to(dtype).requires_grad_(False)
    autoencoder.load_original(tensors)
    return autoencoder, tensors


def pictures(batch=2, height=32, width=48, dtype=torch.float32):
    return normal(batch, 3, height, width, seed=1).clamp(-1, 1).to(dtype)


def latents_of(config, batch=2, rows=4, columns=6, dtype=torch.float32):
    return normal(batch, config.latent_channels, rows, columns, seed=2).to(dtype)


def largest(ours, theirs):
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    return float((ours - theirs).abs().max())


def decode_gradient(autoencoder, latents, direction):
    leaf = latents.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((autoencoder.decode(leaf) * direction).sum(), leaf)
    return gradient


def public_shapes():
    rows = (line.split("\t") for line in PUBLIC.read_text().splitlines())
    return {name: tuple(int(size) for size in shape.strip("()").split(",") if size) for name, shape in rows}


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_the_network_is_the_original_one(config, dtype, tolerance):
    autoencoder, w = build(config, dtype)
    levels, x = len(config.multipliers), pictures(dtype=dtype)
    noise = latents_of(config, 2, 32 // config.downsample, 48 // config.downsample, dtype)
    assert autoencoder.channels == config.latent_channels and autoencoder.downsample == 2 ** (levels - 1)
    assert largest(autoencoder.moments(x), reference_moments(w, x, levels)) <= tolerance
    assert largest(autoencoder.encode(x, noise), reference_encode(w, x, noise, levels)) <= tolerance
    assert largest(autoencoder.encode(x), reference_encode(w, x, 0.0 * noise, levels)) <= tolerance
    assert largest(autoencoder.decode(noise), reference_decode(w, noise, levels)) <= tolerance


def test_the_log_variance_is_not_clamped():
    autoencoder, w = build(dtype=torch.float64)
    w["encoder.conv_out.bias"][16:] = 60.0  # diffusers' own posterior stops at 20
    w["encoder.conv_out.bias"][16:20] = -60.0  # and at -30
    autoencoder.load_original(w)
    x, noise = pictures(dtype=torch.float64), latents_of(TINY, dtype=torch.float64)
    wanted = reference_encode(w, x, noise, 4)
    assert wanted.abs().max() > 1e10
    assert torch.allclose(autoencoder.encode(x, noise), wanted, rtol=1e-10, atol=1e-12)


def test_pictures_that_are_no_multiple_of_the_downsample_go_through_as_in_the_original():
    autoencoder, w = build(dtype=torch.float64)
    x = pictures(1, 27, 38, torch.float64)
    assert largest(autoencoder.moments(x), reference_moments(w, x, 4)) <= 1e-10


def test_scale_and_shift_are_the_configs():
    config = replace(TINY, scale=0.5, shift=-2.0)
    autoencoder, w = build(config, torch.float64)
    mean = reference_moments(w, pictures(dtype=torch.float64), 4)[:, :16]
    latents = autoencoder.encode(pictures(dtype=torch.float64))
    assert largest(latents, 0.5 * (mean + 2.0)) <= 1e-10
    assert largest(autoencoder.decode(latents), reference_decode(w, 0.3611 * (mean - 0.1159), 4)) <= 1e-10


def test_noise_of_another_shape_is_refused():
    autoencoder, _ = build()
    with pytest.raises(ValueError, match=r"noise has shape \(1, 16, 4, 6\)"):
        autoencoder.encode(pictures(), latents_of(TINY, batch=1))


def test_low_precision_parameters_give_fp32_numbers():
    autoencoder, w = build()
    autoencoder.to(torch.bfloat16)
    x, noise = pictures(), latents_of(TINY)
    for ours, theirs in (
        (autoencoder.encode(x, noise), reference_encode(w, x, noise, 4)),
        (autoencoder.decode(noise), reference_decode(w, noise, 4)),
        (autoencoder.decode(noise.bfloat16()), reference_decode(w, noise, 4)),
    ):
        assert ours.dtype == torch.float32
        assert 1e-4 < (ours - theirs).norm() / theirs.norm() < 0.05


# ---------------------------------------------------------------- gradients and memory


@pytest.mark.parametrize("memory", ["whole", "sliced", "tiled"])
def test_the_gradient_of_decode_is_its_slope(memory):
    autoencoder, _ = build(dtype=torch.float64, memory=memory, tile=32)
    latents, step = latents_of(TINY, rows=6, columns=8, dtype=torch.float64), 1e-5
    weight = normal(2, 3, 48, 64, seed=3).double()
    direction = normal(*latents.shape, seed=4).double()
    slope = (autoencoder.decode(latents + step * direction) - autoencoder.decode(latents - step * direction)) / 2 / step
    gradient = decode_gradient(autoencoder, latents, weight)
    assert float((gradient * direction).sum()) == pytest.approx(float((slope * weight).sum()), rel=1e-6)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 2e-5), (torch.float64, 1e-12)])
def test_sliced_is_every_picture_alone_bit_for_bit(dtype, rounding):
    whole, _ = build(dtype=dtype)
    sliced, _ = build(dtype=dtype, memory="sliced")
    x, latents = pictures(3, dtype=dtype), latents_of(TINY, 3, dtype=dtype)
    alone = [whole.moments(one) for one in x.split(1)], [whole.decode(one) for one in latents.split(1)]
    assert torch.equal(sliced.moments(x), torch.cat(alone[0]))
    assert torch.equal(sliced.decode(latents), torch.cat(alone[1]))
    # A batch of three adds up in another order than three batches of one, so this is to rounding.
    assert largest(sliced.encode(x, latents), whole.encode(x, latents)) <= rounding
    assert largest(sliced.decode(latents), whole.decode(latents)) <= rounding
    wanted = decode_gradient(whole, latents, x)
    assert largest(decode_gradient(sliced, latents, x), wanted) <= rounding * float(wanted.abs().max())


def held_bytes(autoencoder, latents):
    """Bytes that the graph of decode keeps for the backward pass."""
    storages = {}

    def keep(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        autoencoder.decode(latents.clone().requires_grad_())
    return sum(storages.values())


@pytest.mark.parametrize("memory", ["sliced", "tiled"])
def test_less_is_kept_for_the_backward_pass(memory):
    latents = latents_of(TINY, 3)
    assert held_bytes(build(memory=memory)[0], latents) < 0.5 * held_bytes(build()[0], latents)


def test_tiles_are_an_approximation_of_the_right_size():
    whole, _ = build()
    tiled, _ = build(memory="tiled", tile=32)
    for height, width in ((48, 64), (64, 32), (40, 72)):
        x = pictures(1, height, width)
        latents = latents_of(TINY, 1, height // 8, width // 8)
        for ours, theirs in ((tiled.moments(x), whole.moments(x)), (tiled.decode(latents), whole.decode(latents))):
            assert ours.shape == theirs.shape
            # Random weights and tiles of 4 x 4 latents: far off, but of the same picture (another one is off by 1.4).
            assert 1e-3 < (ours - theirs).norm() / theirs.norm() < 1.0
        corner = whole.decode(latents[..., :4, :4])[..., :24, :24]  # the first tile, up to where the next is blended in
        assert torch.equal(tiled.decode(latents)[..., :24, :24], corner)
    small = latents_of(TINY, 1, 4, 4)  # no side above the tile: nothing is cut
    assert torch.equal(tiled.decode(small), whole.decode(small))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": "small"}, "choose one of whole, sliced, tiled"),
        ({"memory": "tiled", "tile": 40}, "multiple of 4 x 8"),
    ],
)
def test_odd_memory_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FluxAutoencoder(TINY, **options)


# ---------------------------------------------------------------- names, shapes, loading


def test_the_public_file_has_these_names_and_shapes():
    public = public_shapes()
    assert len(public) == 244
    assert original_shapes(FluxConfig()) == public
    assert FluxConfig.infer(public) == FluxConfig()
    with torch.device("meta"):
        autoencoder = FluxAutoencoder(FluxConfig())
    assert {name: tuple(value.shape) for name, value in autoencoder.original_tensors().items()} == public
    assert sum(p.numel() for p in autoencoder.parameters()) == 83_819_683
    assert all(p.is_meta for p in autoencoder.parameters())


@pytest.mark.parametrize("config", [FluxConfig(), *CONFIGS.values()])
def test_every_name_has_its_place_in_diffusers(config):
    with torch.device("meta"):
        places = FluxAutoencoder(config).kl.state_dict()
    names = [diffusers_name(name, len(config.multipliers)) for name in original_shapes(config)]
    assert len(set(names)) == len(names) and set(names) == set(places)


def test_the_tiny_one():
    assert len(original_shapes(TINY)) == 236
    autoencoder, _ = build()
    assert sum(p.numel() for p in autoencoder.parameters()) == pytest.approx(0.53e6, rel=0.02)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_round_trip_gives_the_same_bytes(config, dtype):
    tensors = random_tensors(config, dtype=dtype)
    ordinary = FluxAutoencoder(config).to(dtype)
    with torch.device("meta"):
        empty = FluxAutoencoder(config)
    for autoencoder in (ordinary, empty):
        autoencoder.load_original(tensors)
        out = autoencoder.original_tensors()
        assert list(out) == list(tensors)
        for name, value in tensors.items():
            assert out[name].dtype == dtype and out[name].shape == value.shape and torch.equal(out[name], value)
    assert not any(p.is_meta for p in empty.parameters())
    assert torch.equal(empty.decode(latents_of(config)), ordinary.decode(latents_of(config)))


def test_loading_copies_into_the_parameters():
    autoencoder, tensors = build()
    autoencoder.load_original({name: value.double() for name, value in tensors.items()})
    assert {p.dtype for p in autoencoder.parameters()} == {torch.float32}
    before = autoencoder.decode(latents_of(TINY))
    for value in tensors.values():
        value.zero_()
    assert torch.equal(autoencoder.decode(latents_of(TINY)), before)


@pytest.mark.parametrize("config", [*CONFIGS.values(), FluxConfig(64, (1, 3, 2), 1, 5)])
def test_sizes_are_inferred_from_the_shapes(config):
    assert FluxConfig.infer(original_shapes(config)) == config


def without(name):
    return lambda shapes: shapes.pop(name)


def with_shape(name, *shape):
    return lambda shapes: shapes.update({name: shape})


FAULTS = {
    "missing": (
        without("decoder.up.2.block.1.conv1.bias"),
        "ae.safetensors does not fit the model: missing decoder.up.2",
    ),
    "missing first": (without("encoder.conv_in.weight"), "missing encoder.conv_in.weight"),
    "missing level": (without("encoder.down.1.block.0.conv1.weight"), "missing encoder.down.1.block.0.conv1.weight"),
    "unexpected": (with_shape("quant_conv.weight", 32, 32, 1, 1), "unexpected quant_conv.weight"),
    "linear attention": (with_shape("encoder.mid.attn_1.q.weight", 32, 32), r"attn_1.q.weight has shape \(32, 32\)"),
    "odd moments": (with_shape("encoder.conv_out.weight", 33, 32, 3, 3), r"conv_out.weight has shape \(33, 32, 3, 3\)"),
    "odd width": (with_shape("encoder.conv_in.weight", 20, 3, 3, 3), "ch is 20; the group norms need a multiple of 32"),
    "narrow level": (with_shape("encoder.down.1.block.0.conv1.weight", 8, 32, 3, 3), "must be at least 1"),
    "scalar": (with_shape("encoder.conv_in.weight"), "missing encoder.conv_in.weight"),
    "empty": (lambda shapes: shapes.clear(), "not a FLUX autoencoder in the original's names"),
}


@pytest.mark.parametrize(("fault", "message"), FAULTS.values(), ids=FAULTS)
def test_a_file_that_is_none_is_named(fault, message):
    shapes = original_shapes(TINY)
    fault(shapes)
    with pytest.raises(ValueError, match=message):
        FluxConfig.infer(shapes)


def test_a_file_in_diffusers_names_is_refused():
    with torch.device("meta"):
        state = FluxAutoencoder(TINY).kl.state_dict()
    with pytest.raises(ValueError, match=r"in the original's names: missing encoder\.down\.0\.block\.0\.conv1\.weight"):
        FluxConfig.infer({name: tuple(value.shape) for name, value in state.items()})


def test_loading_another_size_names_the_tensors_and_loads_nothing():
    autoencoder, before = build()
    tensors = random_tensors(replace(TINY, latent_channels=4), seed=5)
    del tensors["decoder.norm_out.bias"]
    with pytest.raises(
        ValueError, match=r"my.file does not fit the model: missing decoder.norm_out.bias; .*asks for"
    ) as e:
        autoencoder.load_original(tensors, "my.file")
    assert "encoder.conv_out.weight has shape (8, 32, 3, 3), the config asks for (32, 32, 3, 3)" in str(e.value)
    assert all(torch.equal(value, before[name]) for name, value in autoencoder.original_tensors().items())


@pytest.mark.parametrize("values", [{"ch": 40}, {"ch": 0}, {"multipliers": ()}, {"num_res_blocks": 0}, {"scale": 0.0}])
def test_impossible_sizes_are_refused(values):
    with pytest.raises(ValueError):
        replace(FluxConfig(), **values)


def test_without_diffusers_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"needs the package diffusers: pip install '\.\[bagel\]'"):
        FluxAutoencoder(TINY)
