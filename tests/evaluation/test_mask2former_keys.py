"""mmdet's weights on transformers' network give mmdet's own numbers; every key is known, every mistake is seen."""

import pickle
import re

import pytest
import torch
from safetensors.torch import save_file

from detector_models import GOLDEN, golden, mmdet_state
from unigrpo.evaluation import mask2former_keys as keys
from unigrpo.evaluation.coco_classes import CLASSES
from unigrpo.evaluation.mask2former import MEAN, STD
from unigrpo.evaluation.mask2former_network import OFFICIAL, from_mmdet, network_class
from unigrpo.evaluation.weight_files import read_state
from unigrpo.ranges import ConfigError

STAGE = "backbone.stages.2"
LAYER = "panoptic_head.transformer_decoder.layers.1"


def network_of(tmp_path, state, **rest):
    file = tmp_path / "checkpoint.pth"
    torch.save({"state_dict": state, **rest}, file)
    return from_mmdet(file, "detector 'x'")[0]


def outputs(network):
    """Class logits [8, 81] and mask logits [8, 80, 64] of the pixels that mmdet's network was given."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    with torch.no_grad():
        return network(((golden()["pixels"].float() - mean) / std)[None])


def test_the_converted_weights_give_what_mmdet_itself_computed(tmp_path):
    classes, masks = outputs(network_of(tmp_path, mmdet_state(), meta={"CLASSES": CLASSES}))
    wanted = golden()
    assert torch.allclose(classes, wanted["class_logits"], rtol=0, atol=1e-4)
    assert torch.allclose(masks, wanted["mask_logits"], rtol=0, atol=1e-4)
    assert wanted["class_logits"].std() > 1 and wanted["mask_logits"].std() > 1


def _swap(first, second):
    def change(state):
        state[first], state[second] = state[second], state[first]

    return change


def _replace(key, function):
    def change(state):
        state[key] = function(state[key])

    return change


def blocks(order):
    """Patch merging as Swin's own code orders it, where mmdet's unfold is meant."""
    return lambda tensor: tensor.unflatten(-1, (-1, 4)).movedim(-1, -2)[..., order, :].flatten(-2)


MISTAKES = {
    "patch merging in Swin's order": _replace(f"{STAGE}.downsample.reduction.weight", blocks([0, 2, 1, 3])),
    "its norm, rows before columns": _replace(f"{STAGE}.downsample.norm.weight", blocks([0, 1, 2, 3])),
    "q and k": _replace(f"{STAGE}.blocks.0.attn.w_msa.qkv.weight", lambda t: t.roll(len(t) // 3, 0)),
    "window biases transposed": _replace(
        f"{STAGE}.blocks.0.attn.w_msa.relative_position_bias_table",
        lambda t: t.unflatten(0, (13, 13)).transpose(0, 1).flatten(0, 1),
    ),
    "norms of the backbone's outputs": _swap("backbone.norm1.weight", "backbone.norm1.bias"),
    "levels of the pixel decoder": _replace("panoptic_head.pixel_decoder.level_encoding.weight", lambda t: t.flip(0)),
    "levels of the query decoder": _replace("panoptic_head.level_embed.weight", lambda t: t.flip(0)),
    "sampling offsets, x for y": _replace(
        "panoptic_head.pixel_decoder.encoder.layers.0.attentions.0.sampling_offsets.bias",
        lambda t: t.unflatten(0, (-1, 2)).flip(1).flatten(),
    ),
    "content and position of queries": _swap("panoptic_head.query_embed.weight", "panoptic_head.query_feat.weight"),
    "cross and self attention": _swap(
        f"{LAYER}.attentions.0.attn.in_proj_weight", f"{LAYER}.attentions.1.attn.in_proj_weight"
    ),
    "their norms": _swap(f"{LAYER}.norms.0.weight", f"{LAYER}.norms.1.weight"),
    "the last norm": _swap("panoptic_head.transformer_decoder.post_norm.weight", f"{LAYER}.norms.2.weight"),
    "classes": _replace("panoptic_head.cls_embed.weight", lambda t: t.roll(1, 0)),
}


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return network_of(tmp_path_factory.mktemp("right"), mmdet_state())


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_in_the_conversion_is_seen(mistake, network):
    state = mmdet_state()
    MISTAKES[mistake](state)
    keys.fill(network, keys.converted(state, "x"), "x")
    classes, masks = outputs(network)
    assert float((classes - golden()["class_logits"]).abs().max()) > 0.01
    assert mistake == "classes" or float((masks - golden()["mask_logits"]).abs().max()) > 0.01


def official_state():
    """The official checkpoint's names and shapes, without numbers (the index of a window has some)."""
    index = next(value for key, value in mmdet_state().items() if key.endswith("relative_position_index"))
    found = {}
    for line in (GOLDEN / "official_keys.txt").read_text().splitlines():
        key, _, shape = line.partition(" ")
        sizes = [int(number) for number in re.findall(r"\d+", shape)]
        found[key] = index if key.endswith("relative_position_index") else torch.empty(sizes, device="meta")
    return found


def test_every_key_of_the_official_checkpoint_is_mapped_and_every_parameter_is_filled():
    from transformers import Mask2FormerConfig, SwinConfig

    state = official_state()
    assert len(state) == 649
    assert keys.sizes(state, "x") == OFFICIAL
    converted = keys.converted(state, "x")
    config = Mask2FormerConfig(**{**OFFICIAL, "backbone_config": SwinConfig(**OFFICIAL["backbone_config"])})
    with torch.device("meta"):
        wanted = network_class()(config).state_dict()
    left = {name: value.shape for name, value in wanted.items() if not name.startswith(keys.UNUSED)}
    assert {name: value.shape for name, value in converted.items()} == left
    assert len(wanted) - len(left) == 2  # the norm that a backbone does not apply
    numbers = sum(value.numel() for key, value in state.items() if not keys.INDEX.fullmatch(key))
    assert sum(value.numel() for value in converted.values()) == numbers  # nothing is lost, nothing twice


def _drop(key):
    return lambda state: state.pop(key)


def _add(key, value):
    return lambda state: state.update({key: value})


INDEX = "backbone.stages.0.blocks.0.attn.w_msa.relative_position_index"
REFUSED = {
    "an unknown key": (_add("panoptic_head.extra.weight", torch.zeros(1)), "has the key 'panoptic_head.extra.weight'"),
    "another backbone": (_drop("backbone.patch_embed.projection.weight"), "has no key 'backbone.patch_embed"),
    "a lost tensor": (_drop("backbone.norm2.bias"), "lacks what the network needs .*stage3.bias"),
    "a layer too many": (
        _add("backbone.stages.3.blocks.1.norm2.bias", torch.zeros(64)),
        "has what the network does not take",
    ),
    "another size": (_replace("backbone.norm2.bias", lambda t: t[:5]), r"other sizes .*stage3.bias \[5\]"),
    "another index": (_replace(INDEX, lambda t: t.T), "orders the relative positions of a window in another way"),
    "NaN": (_replace("backbone.norm2.bias", lambda t: t * float("nan")), "norm2.bias holds NaN or infinity"),
    "other classes": (_replace("panoptic_head.cls_embed.weight", lambda t: t[:54]), "tells 53 classes apart"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_not_mmdets_mask2former_is_refused(fault, tmp_path):
    change, said = REFUSED[fault]
    state = mmdet_state()
    change(state)
    with pytest.raises(ConfigError, match=said):
        network_of(tmp_path, state)


def test_a_checkpoint_of_other_classes_is_refused(tmp_path):
    names = [name if name != "zebra" else "giraffe" for name in CLASSES]
    with pytest.raises(ConfigError, match="calls class 22 'giraffe', but in COCO's order that is 'zebra'"):
        network_of(tmp_path, mmdet_state(), meta={"CLASSES": names})


def test_tensors_alone_and_half_precision_are_read_too(tmp_path):
    state = mmdet_state()
    half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    torch.save(state, tmp_path / "plain.pth")
    save_file(half, tmp_path / "half.safetensors")
    for name in ("plain.pth", "half.safetensors"):
        held = read_state(tmp_path / name, "x").tensors
        assert held.keys() == state.keys() and all(torch.equal(held[key], state[key]) for key in state)


class Harm:
    """What a pickle runs when it is loaded without care."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (self.file, "w")


@pytest.mark.parametrize("kind", ["code", "text", "short", "a list", "an optimizer"])
def test_a_file_is_read_without_running_what_it_holds(kind, tmp_path):
    file, harmed = tmp_path / "checkpoint.pth", tmp_path / "harmed"
    if kind == "code":
        torch.save({"state_dict": mmdet_state(), "meta": Harm(str(harmed))}, file)
    elif kind == "text":
        file.write_bytes(pickle.dumps({"a": 1}))
    elif kind == "short":
        torch.save(mmdet_state(), file)
        file.write_bytes(file.read_bytes()[:5000])
    else:
        torch.save([torch.zeros(1)] if kind == "a list" else {"state_dict": {"lr": 0.1}}, file)
    with pytest.raises(ConfigError, match=r"cannot be read safely|is no mapping of names to tensors"):
        from_mmdet(file, "detector 'x'")
    assert not harmed.exists()
