"""How much memory a folder of 553 x 4 pictures takes a detector: as much as its first hundred. Prints JSON; exits with
1 where the limit is missed.

    OMP_NUM_THREADS=1 python benchmarks/detectors.py [--prompts 553] [--samples 4] [--side 96] [--quick]

Pictures lie in GenEval's layout (00000/samples/0000.png) and are read, detected in and coloured one by one. The
detector is a random Mask2Former and a random CLIP of the sizes of a toy, so the seconds say nothing of the real one;
what grows with the number of pictures grows here too. peak_mb_first: the largest resident set until a hundred pictures
are done, peak_mb_all: until all are; ratio: the second over the first; coloured: detections that got a colour.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from unigrpo.evaluation.clip_colours import ClipColours
from unigrpo.evaluation.coco_classes import CLASSES
from unigrpo.evaluation.mask2former import Mask2FormerDetector, Processing
from unigrpo.evaluation.mask2former_network import network_class
from unigrpo.pictures import read_picture

FIRST = 100
LIMITS = {"ratio": 1.1}


@torch.no_grad()
def shaken(network: Any, gain: float = 1.0) -> Any:
    """The network with weights of unit gain, so that its outputs differ from picture to picture."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            draws = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(gain * draws / parameter[0].numel() ** 0.5)
    return network.eval().requires_grad_(False)


def mask2former() -> nn.Module:
    """A small Mask2Former of 100 queries; some classes are seen in every picture."""
    from transformers import Mask2FormerConfig, SwinConfig

    common: Any = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}  # of every backbone, and not in its type
    swin = SwinConfig(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=3, **common)
    labels: Any = {"num_labels": len(CLASSES)}  # of every configuration, and not in its type
    config = Mask2FormerConfig(
        backbone_config=swin, feature_size=32, hidden_dim=32, mask_feature_size=32, num_attention_heads=2,
        encoder_layers=1, encoder_feedforward_dim=32, decoder_layers=2, dim_feedforward=32, num_queries=100, **labels,
    )  # fmt: skip
    network = shaken(network_class()(config))
    network.class_predictor.weight.mul_(5.0)
    return network


def colours() -> ClipColours:
    """A small CLIP whose words are the letters of a text."""
    from transformers import BatchEncoding, CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    sizes: Any = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextConfig(vocab_size=256, projection_dim=12, bos_token_id=1, eos_token_id=3, pad_token_id=3, **sizes)
    eye = CLIPVisionConfig(image_size=16, patch_size=4, projection_dim=12, **sizes)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=eye.to_dict(), projection_dim=12)

    def letters(texts: Sequence[str], padding: bool, return_tensors: str) -> Any:
        rows = [[*text.encode(), *[3] * (64 - len(text))] for text in texts]
        ids = torch.tensor(rows)
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    return ClipColours(model=shaken(CLIPModel(config)), tokenizer=letters)


def draw(folder: Path, prompts: int, samples: int, side: int) -> list[Path]:
    """Smooth random pictures in GenEval's layout."""
    generator, files = torch.Generator().manual_seed(0), []
    for prompt in range(prompts):
        place = folder / f"{prompt:05}" / "samples"
        place.mkdir(parents=True)
        coarse = torch.rand(samples, 3, 6, 6, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
        for number, picture in enumerate((smooth * 255).round().to(torch.uint8)):
            files.append(place / f"{number:04}.png")
            Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(files[-1])
    return files


def peak_mb() -> float:
    """The largest resident set of this process until now."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(prompts: int, samples: int, side: int) -> dict[str, float]:
    """All figures."""
    detector = Mask2FormerDetector(
        raw=mask2former(),
        colours=colours(),
        about={"name": "small"},
        device=torch.device("cpu"),
        processing=Processing(short=side, long=2 * side),
    )
    with tempfile.TemporaryDirectory() as folder:
        files = draw(Path(folder), prompts, samples, side)
        first, coloured, began = 0.0, 0, time.perf_counter()
        for done, file in enumerate(files, start=1):
            found = detector(read_picture(file), [CLASSES[done % len(CLASSES)], "person", "elephant"])
            coloured += sum(one["color"] is not None for one in found)
            if done == min(FIRST, len(files)):
                first = peak_mb()
        seconds = time.perf_counter() - began
    return {
        "pictures": len(files),
        "peak_mb_first": round(first, 1),
        "peak_mb_all": round(peak_mb(), 1),
        "ratio": round(peak_mb() / first, 4),
        "coloured": coloured,
        "seconds": round(seconds, 1),
    }


def main() -> int:
    """Measure, print, and compare with the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=553)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--side", type=int, default=96, help="of a picture, in pixels; at least 64")
    parser.add_argument("--quick", action="store_true", help="6 pictures, and no limit to miss")
    arguments = parser.parse_args()
    if arguments.prompts < 1 or arguments.samples < 1 or arguments.side < 64:
        parser.error("--prompts and --samples are at least 1, --side at least 64")
    prompts, samples = (3, 2) if arguments.quick else (arguments.prompts, arguments.samples)
    figures = measure(prompts, samples, arguments.side)
    missed = [name for name, limit in LIMITS.items() if figures[name] > limit]
    print(json.dumps({"side": arguments.side, **figures, "limits": LIMITS, "missed": missed}))
    return 1 if missed and not arguments.quick else 0


if __name__ == "__main__":
    raise SystemExit(main())
