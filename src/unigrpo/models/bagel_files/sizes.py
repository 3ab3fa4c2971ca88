"""The sizes of a BAGEL from its config and its autoencoder: what its FLOPs and its memory follow from."""

from __future__ import annotations

from unigrpo.costs.sizes import AutoencoderSizes, ModelSizes, VisionSizes, flux_autoencoder, small_autoencoder
from unigrpo.models.bagel.autoencoder import Autoencoder, ConvAutoencoder
from unigrpo.models.bagel.config import BagelConfig
from unigrpo.models.bagel_files.flux import FluxAutoencoder, FluxConfig


def model_sizes(c: BagelConfig, autoencoder: AutoencoderSizes | None, storage_bytes: int) -> ModelSizes:
    """The sizes of a model with this config; ``storage_bytes``: per number of its files."""
    v = c.vision
    vision = (
        None
        if v is None
        else VisionSizes(
            hidden=v.hidden_size,
            intermediate=v.intermediate_size,
            layers=v.num_layers,
            patch_dim=v.patch_dim,
            places=v.num_positions,
            connector_places=v.max_patches_per_side**2,
        )
    )
    return ModelSizes(
        vocab=c.vocab_size,
        hidden=c.hidden_size,
        intermediate=c.intermediate_size,
        layers=c.num_layers,
        heads=c.num_heads,
        kv_heads=c.num_kv_heads,
        head_dim=c.head_dim,
        latent_dim=c.latent_dim,
        pixels_per_token=c.pixels_per_token,
        max_latent_size=c.max_latent_size,
        image_size=c.image_size,
        vision=vision,
        autoencoder=autoencoder,
        storage_bytes=storage_bytes,
    )


def autoencoder_sizes(autoencoder: Autoencoder | None) -> AutoencoderSizes | None:
    """The sizes of an autoencoder of the two kinds that there are."""
    if isinstance(autoencoder, ConvAutoencoder):
        return small_autoencoder(autoencoder.config.channels, autoencoder.config.width)
    return flux_sizes(autoencoder.config) if isinstance(autoencoder, FluxAutoencoder) else None


def flux_sizes(flux: FluxConfig) -> AutoencoderSizes:
    """The sizes of a FLUX autoencoder."""
    return flux_autoencoder(flux.ch, flux.multipliers, flux.num_res_blocks, flux.latent_channels)
