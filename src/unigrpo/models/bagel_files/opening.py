"""What a model folder says of its model before any weight is read: configs, tokenizer, tensor headers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from unigrpo.models.bagel.config import BagelConfig
from unigrpo.models.bagel.transformer import BagelModel
from unigrpo.models.bagel.turns import IMAGE_PLACE, interleave
from unigrpo.models.bagel_files.checkpoint import AUTOENCODER_CONFIG, CONFIG, MODEL, WORDS, load_autoencoder, missing_of
from unigrpo.models.bagel_files.flux import FluxConfig
from unigrpo.models.bagel_files.public import AUTOENCODER, is_public
from unigrpo.models.bagel_files.public_config import VISION_PREFIXES, read_public_config
from unigrpo.models.bagel_files.tensor_files import TensorFiles, require_fit
from unigrpo.models.bagel_files.tokenizer import Tokenizer
from unigrpo.policy import SeesNothing, UnknownWords


@dataclass(frozen=True)
class Opened:
    """A model that was looked into: its sizes, its tokenizer, and whether it came in the public layout."""

    config: BagelConfig
    tokenizer: Tokenizer
    public: bool

    @property
    def words(self) -> frozenset[str] | None:
        """All words that it knows; None where it can spell any."""
        return self.tokenizer.words

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) that it draws."""
        return self.config.image_size

    @property
    def thinks_after(self) -> str:
        """The text that asks for thinking."""
        return self.config.system_prompt

    def check_size(self, image_size: tuple[int, int]) -> None:
        """ValueError where it cannot draw (height, width) pixels."""
        self.config.grid_of(image_size)

    def read(self, text: str, pictures: int = 0) -> None:
        """Read a prompt with so many pictures; ValueError says in short what this model cannot take."""
        if pictures and not self.config.sees:
            raise SeesNothing("it has pictures, but the model cannot see any (it has no vision tower)")
        said = text.replace(IMAGE_PLACE, " ") if pictures else text
        if unknown := self.tokenizer.unknown(said):
            raise UnknownWords(f"the model does not know the word(s) {', '.join(map(repr, unknown))} in {text!r}")
        interleave(text, [()] * pictures, self.tokenizer.encode)


def open_folder(folder: Path) -> Opened:
    """Look into a model folder of either layout; ValueError as loading it would raise, but for damaged numbers."""
    if is_public(folder):
        return _open_public(folder)
    if missing := missing_of(folder):
        raise ValueError(f"{folder} is not a model folder: it has no {', '.join(missing)}")
    files, config = TensorFiles.open(folder, (MODEL,)), BagelConfig.load(folder / CONFIG)
    _require_fit(config, files, VISION_PREFIXES if config.vision is None else ())
    if not (folder / AUTOENCODER_CONFIG).is_file():
        raise ValueError(
            f"{folder} cannot draw: it has no autoencoder ({AUTOENCODER_CONFIG} and {AUTOENCODER}); add one"
        )
    load_autoencoder(folder)
    return Opened(config, Tokenizer.load(folder / WORDS), public=False)


def _open_public(folder: Path) -> Opened:
    if not (folder / AUTOENCODER).is_file():
        raise ValueError(f"{folder} is not a public BAGEL folder: it has no {AUTOENCODER}")
    files, stored = TensorFiles.open(folder), TensorFiles.of(folder / AUTOENCODER)
    tokenizer = Tokenizer.from_folder(folder)
    config = read_public_config(folder, files.shapes, tokenizer, FluxConfig.infer(stored.shapes, str(stored.path)))
    _require_fit(config, files, ())
    return Opened(config, tokenizer, public=True)


def _require_fit(config: BagelConfig, files: TensorFiles, ignore: tuple[str, ...]) -> None:
    with torch.device("meta"):
        wanted = {name: tuple(value.shape) for name, value in BagelModel(config).state_dict().items()}
    given = {name: shape for name, shape in files.shapes.items() if not (ignore and name.startswith(ignore))}
    require_fit(given, wanted, str(files.path))
