"""The sizes of a named model, read from its configs and file headers alone: what the dry run's formulas need."""

from __future__ import annotations

from pathlib import Path

from unigrpo.build import bases
from unigrpo.build.models import builtin_folder, model_folder
from unigrpo.build.worlds import started_by
from unigrpo.models.bagel.autoencoder import ConvAutoencoder
from unigrpo.models.bagel.config import BagelConfig
from unigrpo.models.bagel_files.checkpoint import load_autoencoder
from unigrpo.models.bagel_files.flux import FluxConfig
from unigrpo.models.bagel_files.public import AUTOENCODER, is_public
from unigrpo.models.bagel_files.public_config import read_public_config
from unigrpo.models.bagel_files.tensor_files import TensorFiles
from unigrpo.models.bagel_files.tokenizer import Tokenizer
from unigrpo.models.micro import SPECIAL_WORDS, micro_config
from unigrpo.recipe import Model
from unigrpo.tools.planning.sizes import (
    BAGEL_7B,
    AutoencoderSizes,
    ModelSizes,
    VisionSizes,
    flux_autoencoder,
    small_autoencoder,
)


def sizes(model: Model) -> tuple[ModelSizes, str | None]:
    """The sizes of a recipe's model, and a note where they had to be assumed (nothing is downloaded)."""
    if (world := started_by(model.path)) is not None:
        autoencoder = load_autoencoder(builtin_folder(world.autoencoder))
        words = len(SPECIAL_WORDS) + len(world.vocabulary())
        return _small(micro_config(words, autoencoder, image_size=world.image_size), autoencoder), None
    if not model.path.startswith("builtin:") and not Path(model.path).is_dir():
        return BAGEL_7B, f"model.path {model.path} is not a folder here: the sizes of BAGEL-7B-MoT are assumed"
    folder = model_folder(model.path)
    if bases.is_adapter(folder) and (base := bases.base_of(folder)) is not None:
        return sizes(Model(base.path))
    if not is_public(folder):
        return _small(BagelConfig.load(folder / "config.json"), load_autoencoder(folder)), None
    files, stored = TensorFiles.open(folder), TensorFiles.of(folder / AUTOENCODER)
    flux = FluxConfig.infer(stored.shapes, str(stored.path))
    values = read_public_config(folder, files.shapes, Tokenizer.from_folder(folder), flux)
    autoencoder = flux_autoencoder(flux.ch, flux.multipliers, flux.num_res_blocks, flux.latent_channels)
    return _sizes(values, autoencoder, max(dtype.itemsize for dtype in files.dtypes.values())), None


def _small(values: BagelConfig, autoencoder: ConvAutoencoder) -> ModelSizes:
    return _sizes(values, small_autoencoder(autoencoder.config.channels, autoencoder.config.width), 4)


def _sizes(c: BagelConfig, autoencoder: AutoencoderSizes, storage_bytes: int) -> ModelSizes:
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
