"""What BAGEL sees with: a SigLIP encoder over the patches of a picture, and the connector to the transformer's width.

Pictures keep their own shape: a picture of h x w pixels has (h / p) * (w / p) patches, and attention stays inside it.
Parameter names are those of the public checkpoint, for ``vit_model`` and ``connector`` (docs/bagel-architecture.md, 1
and 7).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unigrpo.models.bagel.config import VisionConfig
from unigrpo.ranges import lacking

Grid = tuple[int, int]


def grid_of(height: int, width: int, config: VisionConfig) -> Grid:
    """Rows and columns of patches in a picture of ``height`` x ``width`` pixels; ValueError where it does not fit."""
    patch, most = config.patch_size, config.max_patches_per_side
    for side in (height, width):
        if side <= 0 or side % patch or side // patch > most:
            raise ValueError(
                f"a picture of {height} x {width} pixels does not fit this vision tower: "
                f"each side must be a multiple of {patch}, at most {patch * most}; resize the picture first"
            )
    return height // patch, width // patch


def patches_of(pixels: Tensor, config: VisionConfig) -> Tensor:
    """Cut a picture [3, h, w] into patches [n, 3 p p], row-major, inner order (patch row, patch column, channel).

    ValueError if a side is not a multiple of the patch size or longer than the position table
    (docs/bagel-architecture.md#vision-tower).
    """
    channels, height, width = pixels.shape
    if channels != 3:
        raise ValueError(f"a picture has 3 channels, not {channels}: convert it to RGB first")
    rows, columns = grid_of(height, width, config)
    tiles = pixels.reshape(3, rows, config.patch_size, columns, config.patch_size)
    return tiles.permute(1, 3, 2, 4, 0).reshape(rows * columns, config.patch_dim)


def positions(grid: Grid, stride: int, device: torch.device) -> Tensor:
    """Rows [n] of a position table for a grid of (rows, columns): row * stride + column.

    The stride is ``max_patches_per_side`` whatever the picture's own width, for the tower's table and for
    ``vit_pos_embed`` alike (docs/bagel-architecture.md#vision-tower).
    """
    row, column = (torch.arange(count, device=device) for count in grid)
    return (row[:, None] * stride + column).flatten()


def _encoder(config: VisionConfig) -> nn.Module:
    """The pre-norm layers with torch's attention; imported here because transformers is optional and takes seconds."""
    try:
        from transformers import SiglipVisionConfig
        from transformers.models.siglip.modeling_siglip import SiglipEncoder
    except ModuleNotFoundError as error:
        raise lacking("seeing pictures", "transformers", "bagel") from error
    settings = SiglipVisionConfig(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
        layer_norm_eps=config.layer_norm_eps,
        hidden_act="gelu_pytorch_tanh",
        attention_dropout=0.0,
    )
    settings._attn_implementation = "sdpa"
    return SiglipEncoder(settings)  # type: ignore[arg-type]  # annotated as the config of both towers, reads one's


class PatchEmbeddings(nn.Module):
    """A linear map of the patch, plus the learned position."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_embedding = nn.Linear(config.patch_dim, config.hidden_size)
        self.position_embedding = nn.Embedding(config.num_positions, config.hidden_size)

    def forward(self, patches: Tensor, places: Tensor) -> Tensor:
        """Patches [B, n, 3 p p] at table rows [n] -> [B, n, Hv]."""
        return self.patch_embedding(patches.to(self.patch_embedding.weight.dtype)) + self.position_embedding(places)


class VisionModel(nn.Module):
    """Embeddings, layers and the last norm; no pooling head."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = PatchEmbeddings(config)
        self.encoder = _encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, patches: Tensor, places: Tensor) -> Tensor:
        """Patches [B, n, 3 p p] of B pictures of one grid -> [B, n, Hv]; each picture attends to itself."""
        hidden = self.encoder(inputs_embeds=self.embeddings(patches, places)).last_hidden_state
        return self.post_layernorm(hidden)


class VisionTower(nn.Module):
    """Pictures of any grids to one vector per patch; ``vit_model`` of the public checkpoint.

    Needs the package transformers; ValueError if it is missing, or if the position table is too small for
    ``max_patches_per_side``.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        if config.max_patches_per_side**2 > config.num_positions:
            raise ValueError(
                f"max_patches_per_side {config.max_patches_per_side} does not fit the tower's table of "
                f"{config.num_positions} positions (image_size {config.image_size}, patch_size {config.patch_size}): "
                f"set it to at most {config.image_size // config.patch_size}"
            )
        self.config = config
        self.vision_model = VisionModel(config)

    def _check(self, patches: Tensor, grid: Grid) -> None:
        """A wrong grid would not crash: it would read the positions of other places."""
        rows, columns = grid
        grid_of(rows * self.config.patch_size, columns * self.config.patch_size, self.config)
        if patches.shape != (rows * columns, self.config.patch_dim):
            raise ValueError(
                f"patches of shape {tuple(patches.shape)} are not those of a grid of {rows} x {columns}: "
                f"expected ({rows * columns}, {self.config.patch_dim})"
            )

    def forward(self, views: Sequence[tuple[Tensor, Grid]]) -> list[Tensor]:
        """(patches [n, 3 p p], (rows, columns)) per picture -> [n, Hv] per picture, after ``post_layernorm``.

        Pictures of equal grid run as one batch. Patches are cast to the dtype of the weights.
        """
        by_grid: dict[Grid, list[int]] = {}
        for index, (patches, grid) in enumerate(views):
            self._check(patches, grid)
            by_grid.setdefault(grid, []).append(index)
        seen: dict[int, Tensor] = {}
        for grid, members in by_grid.items():
            batch = torch.stack([views[index][0] for index in members])
            places = positions(grid, self.config.max_patches_per_side, batch.device)
            seen.update(zip(members, self.vision_model(batch, places), strict=True))
        return [seen[index] for index in range(len(views))]


class Connector(nn.Module):
    """fc2(gelu_tanh(fc1 x)): from the tower's width to the transformer's; ``connector`` of the public checkpoint."""

    def __init__(self, vision_hidden: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision_hidden, hidden)
        self.fc2 = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """[..., Hv] -> [..., H]."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
