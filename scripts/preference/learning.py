"""The loss of the judge, and how it is written."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch.nn.functional as F
from safetensors.torch import save as tensor_bytes
from torch import Tensor

from unigrpo.files import write_bytes_atomic, write_text_atomic
from unigrpo.worlds.shapes.preference import CONFIG, MODEL, PreferenceModel


def bradley_terry_loss(better: Tensor, worse: Tensor) -> Tensor:
    """Mean over pairs of -log sigmoid(s_better - s_worse), scores [B] each."""
    return F.softplus(worse - better).mean()


def save_preference(model: PreferenceModel, folder: Path) -> None:
    """Write config.json and model.safetensors, each whole or not at all."""
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write_text_atomic(folder / CONFIG, json.dumps(asdict(model.config), indent=1) + "\n")
    write_bytes_atomic(folder / MODEL, tensor_bytes(weights, {"format": "pt"}))
