"""BAGEL with its files: ``from unigrpo import Bagel``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from unigrpo.costs.sizes import ModelSizes
from unigrpo.models.bagel.autoencoder import Autoencoder
from unigrpo.models.bagel.policy import BagelPolicy
from unigrpo.models.bagel.transformer import BagelModel
from unigrpo.models.bagel_files.checkpoint import MODEL, read_folder, restore_weights, save_policy
from unigrpo.models.bagel_files.flux import Memory
from unigrpo.models.bagel_files.origin import Origin
from unigrpo.models.bagel_files.public import fetch, nothing_trained, save_public
from unigrpo.models.bagel_files.sizes import autoencoder_sizes, model_sizes
from unigrpo.models.bagel_files.tensor_files import PYTORCH
from unigrpo.models.bagel_files.tokenizer import Tokenizer
from unigrpo.rollout.generate import Generates


class Bagel(BagelPolicy, Generates):
    """A model that thinks and draws, with its tokenizer and autoencoder.

    ``origin`` is the public folder that it came from, if it did, and goes back to with :meth:`save_pretrained`.
    """

    tokenizer: Tokenizer | None

    def __init__(
        self,
        model: BagelModel,
        tokenizer: Tokenizer | None,
        autoencoder: Autoencoder | None,
        *,
        image_size: tuple[int, int] | None = None,
        compute_dtype: torch.dtype = torch.float32,
        origin: Origin | None = None,
    ) -> None:
        super().__init__(model, tokenizer, autoencoder, image_size=image_size, compute_dtype=compute_dtype)
        self.origin = origin

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.model.parameters())
        height, width = self.spec.image_size
        where = "" if self.origin is None else f" from {self.origin.folder}"
        precision = str(self.compute_dtype).removeprefix("torch.")
        return f"Bagel({count / 1e6:,.1f} M parameters{where}, {width} x {height} pixels, {precision})"

    @property
    def sizes(self) -> ModelSizes:
        """The sizes that its FLOPs follow from."""
        return model_sizes(self.config, autoencoder_sizes(self.autoencoder), self.compute_dtype.itemsize)

    def packed_targets(self) -> list[str]:
        """The matrices of both experts' MLPs, 87 % of a 7B's layers; a small model lost most by those of attention.

        Source: docs/quantize.md.
        """
        return [name for name in self.adapter_targets(("reasoning", "denoising")) if ".mlp" in name]

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: torch.device | str = "cpu",
        compute_dtype: torch.dtype = torch.float32,
        image_size: tuple[int, int] | None = None,
    ) -> Bagel:
        """Load a folder in the public layout (or this package's own), or a hub id ``owner/name``.

        Weights are kept in ``compute_dtype``, frozen or not. ValueError says what is missing, unexpected or misshapen.
        """
        return cls.load(fetch(str(name)), device=device, compute_dtype=compute_dtype, image_size=image_size)

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        device: torch.device | str = "cpu",
        compute_dtype: torch.dtype = torch.float32,
        image_size: tuple[int, int] | None = None,
        trained: Callable[[str], bool] = nothing_trained,
        autoencoder_memory: Memory = "whole",
    ) -> Bagel:
        """Load a folder as training holds it: weights whose name is ``trained`` in fp32."""
        parts = read_folder(
            folder,
            device=device,
            compute_dtype=compute_dtype,
            image_size=image_size,
            trained=trained,
            autoencoder_memory=autoencoder_memory,
        )
        return cls(**vars(parts))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the folder that others load: the public layout, with every tensor in the dtype it came in.

        A model that did not come from a public folder is written in this package's own layout.
        """
        if self.origin is None:
            save_policy(self, Path(folder))
        else:
            save_public(self, Path(folder))

    def save(self, folder: Path) -> None:
        """Write a model folder, every tensor in the dtype that it is held in."""
        save_policy(self, folder)

    def save_state(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """The same with weights that were taken before; with none, all but them."""
        save_policy(self, folder, state=state)

    def weights_file(self) -> tuple[str, Mapping[str, str]]:
        """The file of weights that :meth:`save` writes, and the notes that it puts into it."""
        return (MODEL, PYTORCH) if self.origin is None else (self.origin.weights, self.origin.note())

    def restore(self, folder: Path) -> None:
        """Copy a saved folder's weights into this model, in place: an optimizer keeps its parameters."""
        restore_weights(self, folder)
