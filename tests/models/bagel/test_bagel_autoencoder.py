"""Pictures to latent tokens and back."""

import pytest
import torch

from small_models import normal, small_policy
from tolerances import assert_same_sums
from unigrpo.models.bagel.autoencoder import (
    ConvAutoencoder,
    ConvAutoencoderConfig,
    autoencoder_loss,
    foreground_weight,
    patchify,
    to_unit_range,
    unpatchify,
)


@pytest.mark.parametrize(
    ("channels", "rows", "columns", "patch"), [(4, 2, 3, 2), (16, 3, 1, 2), (1, 2, 2, 1), (3, 2, 2, 4)]
)
def test_patchify_is_chpwq_to_hwpqc_and_comes_back(channels, rows, columns, patch):
    latents = normal(2, channels, rows * patch, columns * patch)
    tokens = patchify(latents, patch)
    tiles = latents.reshape(2, channels, rows, patch, columns, patch)
    assert torch.equal(tokens, torch.einsum("bchpwq->bhwpqc", tiles).reshape(2, rows * columns, -1))
    assert torch.equal(unpatchify(tokens, (rows, columns), patch), latents)


def test_one_number_lands_where_the_layout_says():
    latents = torch.zeros(1, 4, 4, 6)
    latents[0, 3, 2, 5] = 1.0  # channel 3, row 1 of tiles (inner row 0), column 2 of tiles (inner column 1)
    assert patchify(latents, 2)[0].nonzero().tolist() == [[1 * 3 + 2, (0 * 2 + 1) * 4 + 3]]


def test_unit_range_clamps():
    assert to_unit_range(torch.tensor([-3.0, -1.0, 0.0, 0.5, 2.0])).tolist() == [0.0, 0.0, 0.5, 0.75, 1.0]


def test_encoding_is_deterministic_and_normalised():
    autoencoder = ConvAutoencoder(ConvAutoencoderConfig(width=4, groups=2))
    pixels = normal(2, 3, 16, 8)
    plain = autoencoder.encode(pixels)
    assert plain.shape == (2, 4, 4, 2) and torch.equal(plain, autoencoder.encode(pixels))
    autoencoder.shift.fill_(0.5)
    autoencoder.scale.fill_(2.0)
    assert_same_sums(autoencoder.encode(pixels), (plain - 0.5) / 2.0, terms=2)
    changed, terms = (plain - 0.5) / 2.0, 2 + 10 * 9 * 8  # two roundings at the start of ten convolutions of 3 x 3 x 8
    assert_same_sums(autoencoder.decode(changed), autoencoder.decode_raw(plain), terms=terms)
    assert autoencoder.decode(plain).shape == pixels.shape


def test_the_loss_weighs_the_foreground():
    autoencoder = ConvAutoencoder(ConvAutoencoderConfig(width=4, groups=2))
    background = torch.tensor([0.1, 0.2, 0.3])
    pixels = background[None, :, None, None].expand(1, 3, 8, 8).clone()
    pixels[..., :4] = 0.9
    weight = foreground_weight(pixels, background, 5.0)
    assert weight.shape == (1, 1, 8, 8) and weight[..., :4].eq(5).all() and weight[..., 4:].eq(1).all()
    loss = autoencoder_loss(autoencoder, pixels, weight, 1e-4, normal(1, 4, 2, 2))
    loss.backward()
    assert loss > 0 and all(p.grad is not None for p in autoencoder.parameters())


def test_the_policy_scales_pixels_for_its_autoencoder():
    policy = small_policy()
    pixels = torch.rand(2, 3, 32, 16, generator=torch.Generator().manual_seed(0))
    latents = policy.encode_image(pixels)
    assert latents.shape == (2, policy.spec.num_tokens, policy.spec.latent_dim)
    assert torch.equal(latents, patchify(policy.autoencoder.encode(pixels * 2 - 1), 2))
    out = policy.decode_image(latents)
    assert out.shape == pixels.shape and out.dtype == torch.float32 and out.min() >= 0 and out.max() <= 1


def test_without_an_autoencoder_pixels_are_refused():
    policy = small_policy()
    policy.autoencoder = None
    with pytest.raises(ValueError, match="without an autoencoder"):
        policy.decode_image(torch.zeros(1, 8, 16))
