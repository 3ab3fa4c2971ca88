"""The parts of the transformer, each against its formula written out."""

import math

import pytest
import torch

from small_models import normal, position_table, small_policy, text
from tolerances import assert_same_sums, rounding
from unigrpo.models.bagel.blocks import RowBuilder, build_block
from unigrpo.models.bagel.cache import Cache
from unigrpo.models.bagel.layers import RMSNorm, rope_tables, rotate
from unigrpo.models.bagel.transformer import TimeEmbedder, additive, sincos_table


def test_the_position_table_is_column_first():
    side, hidden = 3, 8
    table = sincos_table(side, hidden)
    frequencies = [1.0, 1e4 ** (-0.5)]
    for row in range(side):
        for column in range(side):
            expected = [f(place * w) for place in (column, row) for f in (math.sin, math.cos) for w in frequencies]
            assert table[row * side + column].tolist() == pytest.approx(expected, abs=rounding(1.0, terms=3))


def test_the_table_is_frozen_and_saved():
    policy = small_policy()
    assert not position_table(policy).pos_embed.requires_grad
    assert "latent_pos_embed.pos_embed" in policy.model.state_dict()


def test_the_time_embedding_is_cosine_first_and_takes_t_as_it_is():
    embedder, t = TimeEmbedder(8), torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    waves = []
    embedder.mlp[0].register_forward_pre_hook(lambda module, given: waves.append(given[0]))
    assert embedder(t).shape == (3, 8)
    f = torch.exp(-math.log(1e4) * torch.arange(128, dtype=torch.float64) / 128)
    expected = torch.cat([(t[:, None] * f).cos(), (t[:, None] * f).sin()], -1)
    assert_same_sums(waves[0].double(), expected, terms=3)


def test_rope_is_the_llama_form():
    x, positions = normal(1, 3, 1, 8), torch.tensor([[0, 5, 1000]])
    ours = rotate(x, *rope_tables(positions, 8, 1e6))
    for i, p in enumerate(positions[0].tolist()):
        for j in range(4):
            angle, a, b = p * 1e6 ** (-2 * j / 8), float(x[0, i, 0, j]), float(x[0, i, 0, j + 4])
            expected = (a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle))
            assert (float(ours[0, i, 0, j]), float(ours[0, i, 0, j + 4])) == pytest.approx(expected, abs=2e-4)


def test_rms_norm_widens_and_casts_back():
    norm, x = RMSNorm(4, 1e-6), normal(2, 4)
    norm.weight.data = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert_same_sums(norm(x), x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight, terms=4 + 3)
    low = RMSNorm(4, 1e-6).bfloat16()(x.bfloat16() * 1e20)
    assert low.dtype == torch.bfloat16 and torch.isfinite(low).all()


def test_a_padded_query_stays_finite():
    mask = torch.tensor([[[True, False], [False, False]]])
    valid = torch.tensor([[True, False]])
    assert additive(mask, valid, torch.float32)[0, 0].tolist() == [[0.0, -math.inf], [0.0, 0.0]]


def test_text_never_passes_through_the_generation_expert():
    policy = small_policy()
    before = policy.model.logits(policy.model([_block(policy)])[0][0])
    with torch.no_grad():
        for parameter in policy.denoising_parameters().values():
            parameter.add_(1.0)
    assert torch.equal(policy.model.logits(policy.model([_block(policy)])[0][0]), before)


def _block(policy):
    row = RowBuilder(policy.config)
    row.text(text(4, 5, 6).ids.tolist())
    return build_block([row], policy.config.latent_dim, torch.device("cpu"))


def test_writing_takes_one_block_and_a_cache():
    policy = small_policy()
    block, cache = _block(policy), Cache.empty(2, 1, torch.device("cpu"))
    for blocks, given in (([block, block], cache), ([block], None)):
        with pytest.raises(ValueError, match="write=True"):
            policy.model(blocks, given, write=True)
