"""GenEval's colours: the same as by a straightforward way through Pillow, numpy and the whole CLIP."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detector_models import blobs
from reward_models import make_clip
from unigrpo.evaluation import clip_colours
from unigrpo.evaluation.clip_colours import COLOURS, load
from unigrpo.ranges import ConfigError
from unigrpo.worlds import geneval

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    make_clip(folder, seed=4)
    return folder


@pytest.fixture(scope="module")
def colours(folder):
    return load(folder, "clip", CPU)


def objects(count, height=60, width=80, seed=1):
    """Boxes and masks of ellipses of all sorts, the last two thin and tall, thin and wide."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    masks = []
    for _ in range(count - 2):
        y, x, a, b = generator.uniform([5, 5, 3, 3], [height - 5, width - 5, 25, 35])
        masks.append(((rows - y) / a) ** 2 + ((columns - x) / b) ** 2 < 1)
    masks += [(columns == 7) & (rows > 3), (rows == 11) & (columns > 20)]
    places = [mask.nonzero() for mask in masks]
    boxes = [[float(c.min()), float(r.min()), float(c.max() + 1), float(r.max() + 1)] for r, c in places]
    return boxes, [torch.from_numpy(mask) for mask in masks]


def plainly(folder, picture, boxes, masks, name):
    """Step by step, one object after another: (colours, cosines [n, 10], pixels)."""
    from transformers import CLIPModel, CLIPTokenizer

    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    side, pixels, answers, cosines = model.config.vision_config.image_size, [], [], []
    for box, mask in zip(boxes, masks, strict=True):
        alone = np.where(mask.numpy()[..., None], picture.permute(1, 2, 0).numpy(), np.uint8(0x99))
        x0, y0, x1, y1 = (int(v) for v in box)
        crop = Image.fromarray(alone[y0:y1, x0:x1])
        factor = side / min(crop.size)
        size = tuple(side if length == min(crop.size) else int(length * side / min(crop.size)) for length in crop.size)
        large = np.asarray(crop.resize(size, Image.Resampling.BICUBIC)) if factor != 1 else np.asarray(crop)
        top, left = (int(np.rint((length - side) / 2)) for length in large.shape[:2])  # half to even, as round
        square = large[top : top + side, left : left + side].astype(np.float32) / 255
        pixels.append(torch.from_numpy((square - clip_colours.MEAN) / clip_colours.STD).permute(2, 0, 1).float())
        per_colour = []
        for colour in COLOURS:
            texts = [f"a photo of a {colour} {name}", f"a photo of a {colour}-colored {name}"]
            rows = []
            for text in [*texts, f"a photo of a {colour} object"]:
                tokens = tokenizer([text], return_tensors="pt")
                with torch.no_grad():
                    output = model(input_ids=tokens["input_ids"], pixel_values=pixels[-1][None])
                rows.append(output.text_embeds[0])  # already of unit length
            mean = sum(rows) / 3
            per_colour.append(float(output.image_embeds[0] @ mean / mean.norm()))
        cosines.append(per_colour)
        answers.append(COLOURS[int(np.argmax(per_colour))])
    return answers, torch.tensor(cosines), torch.stack(pixels)


def test_colours_are_those_of_the_plain_way(folder, colours):
    picture, (boxes, masks) = blobs(60, 80, seed=3), objects(8, seed=4)
    wanted, cosines, pixels = plainly(folder, picture, boxes, masks, "traffic light")
    whole = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    for box, mask, expected in zip(boxes, masks, pixels, strict=True):
        assert torch.allclose(colours.prepared(whole, box, mask), expected, rtol=0, atol=1e-5)
    with torch.no_grad():
        features = colours.model.get_image_features(pixel_values=pixels).pooler_output
        ours = torch.nn.functional.normalize(features, dim=-1) @ colours.classifier("traffic light")
    assert torch.allclose(ours, cosines, rtol=0, atol=1e-5)
    assert colours(picture, boxes, masks, "traffic light") == wanted
    assert len(set(wanted)) > 1


def test_many_objects_get_the_colours_that_each_gets_alone(colours):
    picture, (boxes, masks) = blobs(60, 80, seed=3), objects(20, seed=5)
    together = colours(picture, boxes, masks, "cup")
    assert together == [colours(picture, [box], [mask], "cup")[0] for box, mask in zip(boxes, masks, strict=True)]
    assert len(set(together)) > 1


def test_what_lies_outside_of_the_mask_is_not_seen(colours):
    boxes, masks = objects(3)
    first, second = blobs(60, 80, seed=1), blobs(60, 80, seed=2)
    mixed = torch.where(masks[0], first, second)
    whole, other = (Image.fromarray(p.permute(1, 2, 0).contiguous().numpy()) for p in (first, mixed))
    assert torch.equal(colours.prepared(whole, boxes[0], masks[0]), colours.prepared(other, boxes[0], masks[0]))
    assert not torch.equal(colours.prepared(whole, boxes[1], masks[1]), colours.prepared(other, boxes[1], masks[1]))


def test_the_middle_is_rounded_half_to_even_as_torchvision_rounds_it():
    stripes = np.arange(0, 256, 8, dtype=np.uint8)[None].repeat(29, 0)  # 29 rows, 32 columns
    square = np.asarray(clip_colours._middle(Image.fromarray(stripes), 29))
    assert square[0, 0] == 16  # (32 - 29) / 2 = 1.5: two columns at the left are cut, one at the right


def test_colours_and_templates_are_genevals():
    assert COLOURS == geneval.COLOURS
    said = [template.format(colour="red", name="cup") for template in clip_colours.TEMPLATES]
    assert said == ["a photo of a red cup", "a photo of a red-colored cup", "a photo of a red object"]


def test_a_classifier_is_worked_out_once_for_a_class(colours, monkeypatch):
    colours.classifier("kite")
    monkeypatch.setattr(colours.model, "get_text_features", None)
    assert colours.classifier("kite").shape == (12, 10)


def test_only_vit_l_14_of_openai_is_official(colours):
    assert not colours.official
    assert clip_colours.ClipColours(model=_Sizes(), tokenizer=None).official
    assert not clip_colours.ClipColours(model=_Sizes(hidden_act="gelu"), tokenizer=None).official
    assert not clip_colours.ClipColours(model=_Sizes(image_size=336), tokenizer=None).official


class _Sizes:
    """The config of openai/clip-vit-large-patch14."""

    def __init__(self, **changes):
        from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

        eye: Any = {"image_size": 224, "patch_size": 14, "hidden_size": 1024, "num_hidden_layers": 24} | changes
        vision = CLIPVisionConfig(num_attention_heads=16, **eye).to_dict()
        text = CLIPTextConfig(hidden_size=768, num_attention_heads=12).to_dict()
        self.config = CLIPConfig(vision_config=vision, text_config=text)


def test_folders_that_cannot_work_are_refused(folder, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ConfigError, match="holds a model of the type 'bert'"):
        load(tmp_path, "clip = here", CPU)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="clip = here cannot be read"):
        load(tmp_path, "clip = here", CPU)


def test_weights_that_lack_something_are_refused(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"do not fit its config.json \(text_projection.weight\)"):
        load(tmp_path, "clip = here", CPU)
    weights = load_file(folder / "model.safetensors")
    weights["visual_projection.weight"][0, 0] = float("nan")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"visual_projection\.weight holds NaN"):
        load(tmp_path, "clip = here", CPU)
