"""A VAE parity folder, written by the independent forward of test_flux: right ones pass, every fault is seen."""

import json

import pytest
import torch
from safetensors.torch import save_file
from test_flux import TINY, latents_of, pictures, random_tensors, reference_decode, reference_encode, reference_moments

from unigrpo.tools.parity.autoencoder import is_vae_folder, read_scaling, run

GROUPS = ["vae moments", "vae latent", "vae decoded", "vae round trip", "vae decode gradient is finite"]
PUBLIC = {"scale_factor": 0.3611, "shift_factor": 0.1159}


@pytest.fixture(scope="module")
def weights():
    return random_tensors(TINY, seed=7)


@pytest.fixture(scope="module")
def golden(weights):
    """image, moments, eps, latent, decoded of two pictures, as the original would write them."""
    image, eps = pictures(), latents_of(TINY)
    latent = reference_encode(weights, image, eps, 4)
    values = {"image": image, "moments": reference_moments(weights, image, 4), "eps": eps, "latent": latent}
    return {**values, "decoded": reference_decode(weights, latent, 4)}


def write(folder, weights, golden, config=PUBLIC):
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "ae.safetensors")
    save_file({name: value.contiguous() for name, value in golden.items()}, folder / "golden.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def failed(folder):
    checks = run(folder)
    assert [check.group for check in checks] == GROUPS
    assert {check.tolerance for check in checks} == {1e-4}
    return [check.group for check in checks if not check.passed]


CONFIGS = {
    "flat": PUBLIC,
    "nested": {"ae_params": {**PUBLIC, "ch": 32, "ch_mult": [1, 1, 1, 1], "z_channels": 16}, "timestep_shift": 3.0},
    "in a list": {"parts": [{"name": "vae"}, {"vae_config": PUBLIC}]},
    "of diffusers": {"scaling_factor": 0.3611, "shift_factor": 0.1159},
    "silent": {"note": "no numbers"},
    "absent": None,
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_right_folder_passes(tmp_path, weights, golden, config):
    folder = write(tmp_path, weights, golden, config)
    assert is_vae_folder(folder)
    assert failed(folder) == []
    told = "scal" in json.dumps(config)
    assert read_scaling(folder / "config.json") == ({"scale": 0.3611, "shift": 0.1159} if told else {})


def test_tensors_without_a_batch_axis_pass(tmp_path, weights, golden):
    assert failed(write(tmp_path, weights, {name: value[0] for name, value in golden.items()})) == []
    assert failed(write(tmp_path, weights, {**golden, **{n: golden[n][0][None] for n in golden}})) == []


def test_a_common_prefix_is_taken_off(tmp_path, weights, golden):
    prefixed = {f"vae.{name}": value for name, value in golden.items()} | {"seed": torch.tensor([3.0])}
    assert failed(write(tmp_path, {f"vae.{name}": value for name, value in weights.items()}, prefixed)) == []


@pytest.mark.parametrize(
    ("config", "groups"),
    [
        ({"vae_config": {**PUBLIC, "shift_factor": 0.1259}}, ["vae latent", "vae decoded"]),
        ({"vae_config": {**PUBLIC, "scale_factor": 0.13025}}, ["vae latent", "vae decoded"]),
    ],
)
def test_a_wrong_scale_or_shift_fails(tmp_path, weights, golden, config, groups):
    assert failed(write(tmp_path, weights, golden, config)) == groups  # in the round trip it cancels


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("encoder.mid.attn_1.q.weight", ["vae moments", "vae latent", "vae round trip"]),
        ("decoder.up.3.block.1.conv2.weight", ["vae decoded", "vae round trip"]),
        ("decoder.mid.attn_1.v.bias", ["vae decoded", "vae round trip"]),
    ],
)
def test_a_wrong_weight_fails(tmp_path, weights, golden, name, groups):
    assert failed(write(tmp_path, {**weights, name: 1.1 * weights[name]}, golden)) == groups


def test_latents_without_noise_fail(tmp_path, weights, golden):
    values = {**golden, "eps": torch.zeros_like(golden["eps"])}
    assert failed(write(tmp_path, weights, values)) == ["vae latent", "vae round trip"]


def test_a_swapped_mean_and_log_variance_fail(tmp_path, weights, golden):
    values = {**golden, "moments": golden["moments"].roll(16, dims=1)}
    assert failed(write(tmp_path, weights, values)) == ["vae moments"]


def test_nan_does_not_pass(tmp_path, weights, golden):
    decoded = golden["decoded"].clone()
    decoded.view(-1)[0] = float("nan")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert failed(write(tmp_path / "a", weights, {**golden, "decoded": decoded})) == ["vae decoded", "vae round trip"]
    bias = weights["decoder.conv_out.bias"].clone()
    bias[0] = float("nan")
    with pytest.raises(ValueError, match=r"ae\.safetensors: decoder\.conv_out\.bias holds NaN"):
        failed(write(tmp_path / "b", {**weights, "decoder.conv_out.bias": bias}, golden))


def test_a_decoder_that_ignores_its_latents_fails(tmp_path, weights, golden):
    dead = {**weights, "decoder.conv_out.weight": torch.zeros_like(weights["decoder.conv_out.weight"])}
    assert "vae decode gradient is finite" in failed(write(tmp_path, dead, golden))


@pytest.mark.parametrize("name", ["image", "moments", "eps", "latent", "decoded"])
def test_a_missing_golden_tensor_is_named(tmp_path, weights, golden, name):
    folder = write(tmp_path, weights, {key: value for key, value in golden.items() if key != name})
    with pytest.raises(ValueError, match=rf"golden.safetensors has no tensor '{name}'"):
        run(folder)


def test_a_missing_weight_is_named(tmp_path, weights, golden):
    kept = {name: value for name, value in weights.items() if name != "decoder.up.1.upsample.conv.bias"}
    with pytest.raises(ValueError, match=r"ae\.safetensors does not fit the model: missing decoder\.up\.1\.upsample"):
        run(write(tmp_path, kept, golden))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "image",
            lambda value: value.mean(1, keepdim=True),
            r"image has shape \(2, 1, 32, 48\).* asks for \(2, 3, 32, 48\)",
        ),
        ("image", lambda value: value[0, 0], r"image has shape \(32, 48\); it needs"),
        ("eps", lambda value: value[:1], r"eps has shape \(1, 16, 4, 6\)"),
        ("latent", lambda value: value[:, :4], r"latent has shape \(2, 4, 4, 6\)"),
    ],
)
def test_a_misshapen_golden_tensor_is_named(tmp_path, weights, golden, name, change, message):
    with pytest.raises(ValueError, match=message):
        run(write(tmp_path, weights, {**golden, name: change(golden[name])}))


def test_outputs_of_another_shape_fail(tmp_path, weights, golden):
    values = {**golden, "moments": golden["moments"][:1], "decoded": golden["decoded"][..., :-1]}
    assert failed(write(tmp_path, weights, values)) == ["vae moments", "vae decoded", "vae round trip"]


def test_only_its_own_folders_are_taken(tmp_path, weights, golden):
    with pytest.raises(ValueError, match=r"needs ae\.safetensors and golden\.safetensors"):
        run(tmp_path)
    folder = write(tmp_path, weights, golden)
    (folder / "weights.safetensors").touch()
    assert not is_vae_folder(folder)


def test_a_torn_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        read_scaling(tmp_path / "config.json")


def test_the_shallowest_scaling_wins(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"a": {"b": {"scale_factor": 9}}, "vae": {"scale_factor": 2, "shift_factor": -1}}))
    assert read_scaling(path) == {"scale": 2.0, "shift": -1.0}
    path.write_text(json.dumps({"scale_factor": None, "shift": 3.0}))
    assert read_scaling(path) == {}
