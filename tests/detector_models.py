"""Small random detectors: mmdet's, whose outputs mmdet itself recorded, and one saved as transformers saves them."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from reward_models import shake
from unigrpo.evaluation.coco_classes import LABELS
from unigrpo.evaluation.mask2former import Processing
from unigrpo.evaluation.mask2former_network import network_class

GOLDEN = Path(__file__).parent / "golden" / "mask2former_mmdet"
SMALL = Processing(short=230, long=333)
"""What the golden file was recorded with."""


def mmdet_state():
    """The small model's tensors as mmdet has them: fp32, indices int64."""
    held = load_file(GOLDEN / "weights.safetensors")
    return {key: value.float() if value.is_floating_point() else value.long() for key, value in held.items()}


def golden():
    return load_file(GOLDEN / "golden.safetensors")


def golden_picture():
    """uint8 [3, 190, 150]."""
    return golden()["picture"].permute(2, 0, 1).contiguous()


def hf_config(labels=LABELS, **changes):
    from transformers import Mask2FormerConfig, SwinConfig

    swin = SwinConfig(
        embed_dim=8, depths=[1, 1, 2, 1], num_heads=[1, 2, 2, 4], window_size=3,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    sizes = {
        "feature_size": 32, "hidden_dim": 32, "mask_feature_size": 32, "num_attention_heads": 4, "encoder_layers": 1,
        "encoder_feedforward_dim": 32, "decoder_layers": 4, "dim_feedforward": 32, "num_queries": 6,
    }  # fmt: skip
    names = dict(enumerate(labels))
    return Mask2FormerConfig(backbone_config=swin, num_labels=len(labels), id2label=names, **{**sizes, **changes})


def make_hf(folder, seed=0, labels=LABELS):
    """Save a small random Mask2Former as transformers does; gives the network. Some classes are clearly seen."""
    torch.manual_seed(seed)
    network = network_class()(hf_config(labels)).eval()
    shake(network, seed)
    with torch.no_grad():
        network.class_predictor.weight.mul_(5.0)
    network.save_pretrained(folder)
    return network


def blobs(height, width, seed=0):
    """A picture uint8 [3, H, W] of smooth patches."""
    coarse = torch.rand(1, 3, 5, 6, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")[0]
    return (smooth.clamp(0, 1) * 255).round().to(torch.uint8)
