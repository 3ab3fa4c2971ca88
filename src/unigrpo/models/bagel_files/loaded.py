"""What a model folder turns into, before it is a policy, and what of a policy goes back into one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from unigrpo.models.bagel.autoencoder import Autoencoder
from unigrpo.models.bagel.config import BagelConfig
from unigrpo.models.bagel.transformer import BagelModel
from unigrpo.models.bagel_files.origin import Origin
from unigrpo.models.bagel_files.tokenizer import Tokenizer


@dataclass(frozen=True)
class Loaded:
    """The parts of a model, and the public folder that it came from, if it did."""

    model: BagelModel
    tokenizer: Tokenizer
    autoencoder: Autoencoder | None
    image_size: tuple[int, int] | None = None
    compute_dtype: torch.dtype = torch.float32
    origin: Origin | None = None


class FromFiles(Protocol):
    """What is written of a policy."""

    @property
    def model(self) -> BagelModel: ...  # noqa: D102

    @property
    def config(self) -> BagelConfig: ...  # noqa: D102

    @property
    def tokenizer(self) -> Tokenizer | None: ...  # noqa: D102

    @property
    def autoencoder(self) -> Autoencoder | None: ...  # noqa: D102

    @property
    def origin(self) -> Origin | None: ...  # noqa: D102
