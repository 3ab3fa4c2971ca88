"""Model folders: strict names, everything named that does not fit, and the way there and back."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from small_models import normal, randomise, sample, small_policy
from unigrpo.models.bagel.config import VisionConfig
from unigrpo.models.bagel.transformer import BagelModel
from unigrpo.models.bagel_files.checkpoint import (
    load_weights,
    read_weights,
    restore_weights,
    save_policy,
    write_weights,
)
from unigrpo.models.bagel_files.pretrained import Bagel

FP32, BF16 = torch.float32, torch.bfloat16


def test_the_halves_share_nothing_and_leave_out_what_is_frozen():
    policy = small_policy()
    reasoning, denoising = policy.reasoning_parameters(), policy.denoising_parameters()
    everything = set(dict(policy.model.named_parameters()))
    assert not set(reasoning) & set(denoising)
    assert everything - set(reasoning) - set(denoising) == {"latent_pos_embed.pos_embed"}
    assert {"language_model.lm_head.weight", "language_model.model.embed_tokens.weight"} <= set(reasoning)
    assert all("_moe_gen" in n or n.startswith(("vae2llm", "llm2vae", "time_embedder")) for n in denoising)


def weights():
    return {name: value.clone() for name, value in small_policy().model.state_dict().items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("llm2vae.bias"), "here does not fit the model: missing llm2vae.bias"),
        (lambda w: w.update({"extra.weight": torch.zeros(1)}), "unexpected extra.weight"),
        (lambda w: w.update({"llm2vae.bias": torch.zeros(3)}), r"llm2vae.bias has shape \(3,\), .* asks for \(16,\)"),
        (lambda w: [w.pop(n) for n in list(w)[:8]], r"\(and 3 more\)"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(change, message):
    policy, given = small_policy(seed=3), weights()
    before = {name: value.clone() for name, value in policy.model.state_dict().items()}
    change(given)
    with pytest.raises(ValueError, match=message):
        load_weights(policy.model, given, "here")
    assert all(torch.equal(value, before[name]) for name, value in policy.model.state_dict().items())


def test_the_vision_tower_is_left_out_and_reported():
    policy, given = small_policy(seed=3), weights()
    given |= {
        "vit_model.x": torch.zeros(1),
        "connector.fc1.bias": torch.zeros(1),
        "vit_pos_embed.pos_embed": torch.zeros(1),
    }
    dropped = load_weights(policy.model, given, "here")
    assert dropped == ["connector.fc1.bias", "vit_model.x", "vit_pos_embed.pos_embed"]
    assert torch.equal(policy.model.llm2vae.bias, given["llm2vae.bias"])


def test_a_saved_policy_comes_back_the_same(tmp_path):
    policy = small_policy()
    policy.autoencoder.shift.fill_(0.25)
    save_policy(policy, tmp_path / "a" / "model")
    back = Bagel.load(tmp_path / "a" / "model")
    assert back.config == policy.config and back.spec == policy.spec
    assert all(torch.equal(back.model.state_dict()[n], v) for n, v in policy.model.state_dict().items())
    ours, theirs = (sample(p, group_size=2) for p in (policy, back))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.images[0].latents, b.images[0].latents)
        assert torch.equal(a.sampled_texts[0].ids, b.sampled_texts[0].ids)
    latents = normal(1, 8, 16)
    assert torch.equal(back.decode_image(latents), policy.decode_image(latents))
    assert not any(p.requires_grad for p in back.autoencoder.parameters())


def seeing_policy():
    """A micro model with a vision tower."""
    policy = small_policy()
    vision = VisionConfig(16, 24, 1, 2, image_size=32, patch_size=8, max_patches_per_side=4)
    model = BagelModel(replace(policy.config, vision=vision))
    randomise(model, seed=2)
    return Bagel(model, policy.tokenizer, policy.autoencoder)


def test_a_model_that_sees_comes_back_seeing(tmp_path, recwarn):
    policy = seeing_policy()
    save_policy(policy, tmp_path)
    back = Bagel.load(tmp_path)
    assert back.config == policy.config and back.config.vision is not None
    ours, theirs = policy.model.state_dict(), back.model.state_dict()
    assert ours.keys() == theirs.keys() and "connector.fc1.bias" in ours
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not recwarn.list


def test_tensors_of_a_tower_that_the_config_does_not_have_are_left_out_aloud(tmp_path):
    policy = seeing_policy()
    save_policy(policy, tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "vision": None}))
    with pytest.warns(UserWarning, match="left out 26 tensors of the vision tower"):
        back = Bagel.load(tmp_path)
    assert not any(name.startswith(("vit", "connector")) for name in back.model.state_dict())


def test_what_is_trained_is_kept_in_fp32_and_the_rest_in_the_compute_dtype(tmp_path):
    policy = small_policy()
    save_policy(policy, tmp_path / "a")
    back = Bagel.load(tmp_path / "a", compute_dtype=BF16, trained=lambda name: "_moe_gen" in name)
    source = policy.model.state_dict()
    for name, value in back.model.state_dict().items():
        assert value.dtype == (FP32 if "_moe_gen" in name else BF16)
        assert torch.equal(value, source[name].to(value.dtype))
    assert {value.dtype for value in Bagel.load(tmp_path / "a").model.state_dict().values()} == {FP32}
    assert {p.dtype for p in back.autoencoder.parameters()} == {FP32}
    frozen = {name for name, p in back.model.named_parameters() if not p.requires_grad}
    assert frozen == {"latent_pos_embed.pos_embed"}
    save_policy(back, tmp_path / "b")  # as it is held
    again = Bagel.load(tmp_path / "b", compute_dtype=BF16, trained=lambda name: "_moe_gen" in name)
    ours, theirs = back.model.state_dict(), again.model.state_dict()
    assert all(ours[n].dtype == theirs[n].dtype and torch.equal(ours[n], theirs[n]) for n in ours)


def test_weights_are_restored_in_place(tmp_path):
    saved, policy = small_policy(seed=1), small_policy(seed=2)
    save_policy(saved, tmp_path)
    before = dict(policy.model.named_parameters())
    restore_weights(policy, tmp_path)
    assert all(parameter is before[name] for name, parameter in policy.model.named_parameters())
    assert all(torch.equal(v, saved.model.state_dict()[n]) for n, v in policy.model.state_dict().items())
    with pytest.raises(ValueError, match="does not fit the model: missing"):
        restore_weights(small_policy(num_layers=3), tmp_path)


def test_nothing_half_written_stays_and_other_libraries_read_the_weights(tmp_path):
    policy = small_policy()
    save_policy(policy, tmp_path)
    names = {"config.json", "model.safetensors", "tokenizer.json", "autoencoder.json", "ae.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == names
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"} and set(file.keys()) == set(policy.model.state_dict())
    write_weights(tmp_path / "x.safetensors", {"a": torch.ones(2, 3).T})
    assert torch.equal(read_weights(tmp_path / "x.safetensors")["a"], torch.ones(3, 2))


def test_another_image_size_can_be_asked_for(tmp_path):
    save_policy(small_policy(), tmp_path)
    assert Bagel.load(tmp_path, image_size=(64, 32)).spec.grid == (8, 4)
    with pytest.raises(ValueError, match="does not fit this model"):
        Bagel.load(tmp_path, image_size=(20, 20))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(tmp_path, name):
    save_policy(small_policy(), tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=f"is not a model folder: it has no {name}"):
        Bagel.load(tmp_path)


def test_torn_and_absent_weights_are_named(tmp_path):
    save_policy(small_policy(), tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a readable safetensors file"):
        Bagel.load(tmp_path)
    with pytest.raises(ValueError, match=r"nowhere\.safetensors does not exist"):
        read_weights(tmp_path / "nowhere.safetensors")


def test_a_config_that_does_not_match_the_weights_is_refused(tmp_path):
    save_policy(small_policy(), tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "num_layers": 3}))
    with pytest.raises(ValueError, match=r"missing language_model.model.layers.2.*more"):
        Bagel.load(tmp_path)
