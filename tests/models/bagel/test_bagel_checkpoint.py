"""Model folders: strict names, everything named that does not fit, and the way there and back."""

import json
import re
from pathlib import Path

import pytest
import torch

from small_models import normal, sample, small_policy
from unigrpo.models.bagel.checkpoint import load_policy, load_weights, read_weights, save_policy
from unigrpo.models.bagel.config import BagelConfig
from unigrpo.models.bagel.transformer import BagelModel

NAMES = Path(__file__).parents[2] / "golden" / "tensors_7b.txt"
VISION = ("vit_model.", "connector.", "vit_pos_embed.")


def public_tensors():
    lines = (line.split("\t") for line in NAMES.read_text().splitlines() if line)
    return {name: tuple(int(n) for n in re.findall(r"\d+", shape)) for name, shape in lines}


def test_names_and_shapes_are_those_of_the_public_7b_checkpoint():
    config = BagelConfig(152064, 3584, 18944, 28, 28, 4, 16, 64, 151644, 151645, 151652, 151653, (1024, 1024))
    with torch.device("meta"):
        model = BagelModel(config)
    ours = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    public = public_tensors()
    assert len(public) == 1223
    assert ours == {name: shape for name, shape in public.items() if not name.startswith(VISION)}
    assert set(dict(model.named_parameters())) == set(ours)


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
    back = load_policy(tmp_path / "a" / "model")
    assert back.config == policy.config and back.spec == policy.spec
    assert all(torch.equal(back.model.state_dict()[n], v) for n, v in policy.model.state_dict().items())
    ours, theirs = (sample(p, group_size=2) for p in (policy, back))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.images[0].latents, b.images[0].latents)
        assert torch.equal(a.sampled_texts[0].ids, b.sampled_texts[0].ids)
    latents = normal(1, 8, 16)
    assert torch.equal(back.decode_image(latents), policy.decode_image(latents))
    assert not any(p.requires_grad for p in back.autoencoder.parameters())


def test_another_image_size_can_be_asked_for(tmp_path):
    save_policy(small_policy(), tmp_path)
    assert load_policy(tmp_path, image_size=(64, 32)).spec.grid == (8, 4)
    with pytest.raises(ValueError, match="does not fit this model"):
        load_policy(tmp_path, image_size=(20, 20))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(tmp_path, name):
    save_policy(small_policy(), tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=f"is not a model folder: it has no {name}"):
        load_policy(tmp_path)


def test_torn_and_absent_weights_are_named(tmp_path):
    save_policy(small_policy(), tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a readable safetensors file"):
        load_policy(tmp_path)
    with pytest.raises(ValueError, match=r"nowhere\.safetensors does not exist"):
        read_weights(tmp_path / "nowhere.safetensors")


def test_a_config_that_does_not_match_the_weights_is_refused(tmp_path):
    save_policy(small_policy(), tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "num_layers": 3}))
    with pytest.raises(ValueError, match=r"missing language_model.model.layers.2.*more"):
        load_policy(tmp_path)
