"""Records what mmdet 2.28.2 itself makes of a small random Mask2Former (README.md: the packages that this needs).

    PYTHONPATH=MMDET:MMCV:REST python make.py MMDET/mmdet/.mim/configs/mask2former/NAME.py OUT [--official]

``--official``: the sizes of the official config in place of the small ones, to compare once by hand.
"""

import argparse
import importlib.abc
import importlib.machinery
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file


class Absent(types.ModuleType):
    """A module that is imported, but of which nothing is called here: mmcv's compiled operations, torchvision."""

    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        absent = name == "mmcv._ext" or name.partition(".")[0] == "torchvision"
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if absent else None

    def create_module(self, spec):
        return Absent(spec.name)

    def exec_module(self, module):
        module.__version__ = "0.20.0"


def shrink(config):
    """The official architecture with few channels, queries and layers; pictures within 333 x 230 pixels."""
    head = config.model.panoptic_head
    config.model.backbone.update(embed_dims=8, depths=[2, 1, 2, 1], num_heads=[1, 2, 2, 4])
    head.update(in_channels=[8, 16, 32, 64], feat_channels=32, out_channels=32, num_queries=8)
    encoder, decoder = head.pixel_decoder.encoder, head.transformer_decoder
    encoder.num_layers, decoder.num_layers = 2, 4
    encoder.transformerlayers.attn_cfgs.update(embed_dims=32, num_heads=4)
    encoder.transformerlayers.ffn_cfgs.update(embed_dims=32, feedforward_channels=48)
    decoder.transformerlayers.attn_cfgs.update(embed_dims=32, num_heads=4)
    decoder.transformerlayers.ffn_cfgs.update(embed_dims=32, feedforward_channels=64)
    decoder.transformerlayers.feedforward_channels = 64
    head.pixel_decoder.positional_encoding.num_feats = head.positional_encoding.num_feats = 16
    config.data.test.pipeline[1].img_scale = (333, 230)


TABLES = ("query_feat.weight", "query_embed.weight", "level_embed.weight", "level_encoding.weight", "bias_table")


@torch.no_grad()
def shake(model):
    """Random weights of unit gain that fp16 holds exactly; no norm is 1, no bias 0, offsets reach several pixels."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in sorted(model.named_parameters()):
        draws = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            draws = 0.2 * draws + (1.0 if name.endswith("weight") else 0.0)
        elif not name.endswith(TABLES):
            draws = draws / parameter[0].numel() ** 0.5
        gain = 10.0 if name.endswith("sampling_offsets.bias") else 5.0 if name.endswith("cls_embed.weight") else 1.0
        parameter.copy_((gain * draws).half().float())


def draw(height, width):
    """A picture uint8 [H, W, 3], RGB: smooth patches with noise on them."""
    generator = np.random.default_rng(3)
    coarse = torch.from_numpy(generator.uniform(0, 255, (1, 3, 9, 11)))
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")[0].permute(1, 2, 0).numpy()
    return np.clip(np.rint(smooth + generator.normal(0, 8, smooth.shape)), 0, 255).astype(np.uint8)


def record(config, picture):
    """The model, and all that mmdet made of a picture file on its way."""
    import cv2
    from mmdet.apis import inference_detector
    from mmdet.models import build_detector

    config.model.backbone.init_cfg = None
    model = build_detector(config.model, test_cfg=config.get("test_cfg")).eval()
    model.cfg = config
    shake(model)
    seen = {}
    model.backbone.register_forward_pre_hook(lambda _, given: seen.update(pixels=given[0][0]))
    forward = model.panoptic_head.forward

    def watched(features, metas):
        classes, masks = forward(features, metas)
        seen.update(class_logits=classes[-1][0], mask_logits=masks[-1][0])
        return classes, masks

    model.panoptic_head.forward = watched
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "picture.png")
        cv2.imwrite(file, picture[..., ::-1])
        found = inference_detector(model, file)
    rows = [
        [label, *box.tolist(), int(mask.sum())]
        for label, (boxes, masks) in enumerate(zip(*found, strict=True))
        for box, mask in zip(boxes, masks, strict=True)
    ]
    norm = config.data.test.pipeline[1].transforms[3]
    pixels = seen["pixels"] * torch.tensor(norm.std)[:, None, None] + torch.tensor(norm.mean)[:, None, None]
    return model, {
        "picture": torch.from_numpy(picture),
        "pixels": pixels.round().to(torch.uint8),
        "class_logits": seen["class_logits"].contiguous(),
        "mask_logits": seen["mask_logits"].contiguous(),
        "detections": torch.tensor(rows, dtype=torch.float64),  # class, x0, y0, x1, y1, score, pixels of the mask
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("out", type=Path)
    parser.add_argument("--official", action="store_true")
    arguments = parser.parse_args()
    sys.meta_path.insert(0, Finder())
    from mmcv import Config

    config = Config.fromfile(arguments.config)
    if not arguments.official:
        shrink(config)
    model, golden = record(config, draw(512, 640) if arguments.official else draw(190, 150))
    weights = {
        name: value.half() if value.is_floating_point() else value.to(torch.int16)
        for name, value in model.state_dict().items()
    }
    save_file({name: value.contiguous() for name, value in weights.items()}, arguments.out / "weights.safetensors")
    save_file(golden, arguments.out / "golden.safetensors")


if __name__ == "__main__":
    main()
