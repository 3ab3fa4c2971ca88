"""The sizes of a named model, read from its configs and file headers alone: what the dry run's formulas need."""

from __future__ import annotations

from pathlib import Path

from unigrpo.build import bases
from unigrpo.build.grown import grown_by
from unigrpo.build.models import builtin_folder, model_folder
from unigrpo.build.worlds import started_by
from unigrpo.costs.sizes import BAGEL_7B, ModelSizes
from unigrpo.models.bagel.autoencoder import ConvAutoencoder
from unigrpo.models.bagel.config import BagelConfig
from unigrpo.models.bagel_files.checkpoint import load_autoencoder
from unigrpo.models.bagel_files.flux import FluxConfig
from unigrpo.models.bagel_files.public import AUTOENCODER, is_public
from unigrpo.models.bagel_files.public_config import read_public_config
from unigrpo.models.bagel_files.sizes import autoencoder_sizes, flux_sizes, model_sizes
from unigrpo.models.bagel_files.tensor_files import TensorFiles
from unigrpo.models.bagel_files.tokenizer import Tokenizer
from unigrpo.models.micro import SPECIAL_WORDS, micro_config
from unigrpo.recipe import Model


def sizes(model: Model) -> tuple[ModelSizes, str | None]:
    """The sizes of a recipe's model, and a note where they had to be assumed (nothing is downloaded)."""
    if (world := started_by(model.path)) is not None:
        autoencoder = load_autoencoder(builtin_folder(world.autoencoder))
        words = len(SPECIAL_WORDS) + len(world.vocabulary())
        return _small(micro_config(words, autoencoder, image_size=world.image_size), autoencoder), None
    if (grown := grown_by(model.path)) is not None:
        folder = builtin_folder(grown.of)
        return _small(grown.opened(folder)[0], load_autoencoder(folder)), None
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
    return model_sizes(values, flux_sizes(flux), max(dtype.itemsize for dtype in files.dtypes.values())), None


def _small(values: BagelConfig, autoencoder: ConvAutoencoder) -> ModelSizes:
    return model_sizes(values, autoencoder_sizes(autoencoder), 4)
