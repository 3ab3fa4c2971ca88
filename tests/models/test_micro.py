"""The micro model: the same class, small; a seed decides its weights."""

import math

import torch

from small_models import normal, text
from unigrpo.models.bagel.autoencoder import ConvAutoencoder, ConvAutoencoderConfig
from unigrpo.models.bagel.transformer import BagelModel, sincos_table
from unigrpo.models.micro import SPECIAL_WORDS, SYSTEM_PROMPT, build_micro
from unigrpo.worlds.shapes import vocabulary


def micro(seed=0):
    return build_micro(vocabulary(), ConvAutoencoder(ConvAutoencoderConfig(width=4, groups=2)), seed=seed)


def test_sizes_and_special_words():
    policy = micro()
    assert isinstance(policy.model, BagelModel)
    assert policy.spec.grid == (4, 4) and policy.spec.latent_dim == 16 and policy.spec.image_size == (32, 32)
    assert 0.3e6 < sum(p.numel() for p in policy.model.parameters()) < 0.6e6
    config = policy.config
    ids = (config.bos_token_id, config.eos_token_id, config.vision_start_id, config.vision_end_id)
    assert [policy.decode_text(torch.tensor([i])) for i in ids] == list(SPECIAL_WORDS)
    assert policy.decode_text(policy.encode_text(SYSTEM_PROMPT)) == SYSTEM_PROMPT


def test_a_seed_decides_the_weights():
    first, same, other = (micro(seed).model.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_initial_weights():
    model = micro().model
    layer = model.get_submodule("language_model.model.layers.0")
    down = layer.get_parameter("mlp.down_proj.weight")
    assert abs(float(down.detach().std()) * math.sqrt(192) * math.sqrt(8) - 1) < 0.05
    assert abs(float(layer.get_parameter("self_attn.q_proj.weight").detach().std()) * 8 - 1) < 0.05
    assert not layer.get_parameter("self_attn.q_proj.bias").any() and not model.llm2vae.weight.any()
    assert torch.equal(model.latent_pos_embed.pos_embed, sincos_table(8, 64))


def test_the_velocity_of_a_new_model_is_zero():
    policy = micro()
    with torch.no_grad():
        v = policy.velocity(policy.prefill([(text(4, 5),)]), normal(1, 16, 16), torch.tensor([0.5]))
    assert v.shape == (1, 16, 16) and not v.any()
