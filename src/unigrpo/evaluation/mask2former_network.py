"""Mask2Former's network without its loss (which needs scipy), from mmdet's checkpoint or a folder of transformers'."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unigrpo.evaluation import mask2former_keys
from unigrpo.evaluation.coco_classes import CLASSES, check_labels
from unigrpo.evaluation.weight_files import UNREADABLE, check_finite, first_line, read_state
from unigrpo.ranges import ConfigError, shown

OFFICIAL = {
    "backbone_config": {
        "embed_dim": 96, "patch_size": 4, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24], "window_size": 7,
        "mlp_ratio": 4.0, "out_features": ["stage1", "stage2", "stage3", "stage4"],
    },
    "feature_size": 256, "hidden_dim": 256, "mask_feature_size": 256, "num_attention_heads": 8, "encoder_layers": 6,
    "encoder_feedforward_dim": 1024, "decoder_layers": 10, "dim_feedforward": 2048, "num_queries": 100,
    "num_labels": 80,
}  # fmt: skip
"""The sizes of mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco; facebook/mask2former-swin-small-coco-instance has them
too."""


@functools.cache
def network_class() -> Any:
    """The class of the network: a PreTrainedModel, so that it reads folders with older names of tensors, too."""
    from transformers import Mask2FormerModel, Mask2FormerPreTrainedModel

    class Network(Mask2FormerPreTrainedModel):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.model = Mask2FormerModel(config)
            self.class_predictor = nn.Linear(config.hidden_dim, config.num_labels + 1)
            self.post_init()

        def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
            """Class logits [Q, C + 1] and mask logits [Q, H / 4, W / 4] of one picture [1, 3, H, W]."""
            found = self.model(pixel_values, output_hidden_states=True)
            last = found.transformer_decoder_intermediate_states[-1]  # [Q, 1, d]
            return self.class_predictor(last.transpose(0, 1))[0], found.masks_queries_logits[-1][0]

    return Network


def from_mmdet(path: Path, where: str) -> tuple[nn.Module, Mapping[str, Any]]:
    """The network of mmdet's checkpoint, and its sizes; ConfigError where it is not one of 80 classes."""
    from transformers import Mask2FormerConfig, SwinConfig

    held = read_state(path, where)
    if (labels := held.labels) is not None:
        check_labels(labels, where)
    sizes = mask2former_keys.sizes(held.tensors, where)
    if sizes["num_labels"] != len(CLASSES):
        raise ConfigError(f"{where} tells {sizes['num_labels']} classes apart, but GenEval needs COCO's 80")
    check_finite(held.tensors, where)
    tensors = mask2former_keys.converted(held.tensors, where)
    backbone = SwinConfig(**sizes["backbone_config"])
    network = network_class()(Mask2FormerConfig(**{**sizes, "backbone_config": backbone}))
    mask2former_keys.fill(network, tensors, where)
    return network.eval().requires_grad_(False), sizes


def from_transformers(folder: Path, where: str) -> tuple[nn.Module, Mapping[str, Any]]:
    """The network of a folder of transformers', and its sizes; its labels are checked before its weights are read."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, Mask2FormerConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise ConfigError(f"{where}: its config.json cannot be read ({first_line(error)}): copy it again") from error
    if not isinstance(config, Mask2FormerConfig):
        raise ConfigError(
            f"{where} holds a model of the type {shown(config.model_type)}: give a folder of a Mask2Former, such as "
            "facebook/mask2former-swin-small-coco-instance"
        )
    labels: Any = config.id2label
    check_labels([labels[row] for row in sorted(labels)], where)
    try:
        network, report = network_class().from_pretrained(
            folder, config=config, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except UNREADABLE as error:
        raise ConfigError(f"{where}: its weights cannot be read ({first_line(error)}): copy them again") from error
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(mask2former_keys.UNUSED))
    if missing or report["mismatched_keys"]:
        odd = (missing + [str(key) for key in report["mismatched_keys"]])[0]
        raise ConfigError(f"{where}: its weights do not fit its config.json ({odd}): copy both again")
    check_finite(network.state_dict(), where)
    return network.eval().requires_grad_(False), _sizes_of(config)


def _sizes_of(config: Any) -> dict[str, Any]:
    """The sizes of a config, to be compared with OFFICIAL."""
    given = config.to_dict()
    backbone = {key: given["backbone_config"][key] for key in OFFICIAL["backbone_config"]}
    rest = {key: given[key] for key in OFFICIAL if key not in ("backbone_config", "num_labels")}
    return {"backbone_config": backbone, **rest, "num_labels": config.num_labels}
