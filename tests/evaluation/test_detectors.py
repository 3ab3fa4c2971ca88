"""Detectors by name: the 80 classes, what is refused before weights are read, what a result says of them."""

import gc
import json
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

from detector_models import SMALL, blobs, golden_picture, make_hf, mmdet_state
from reward_models import make_clip
from unigrpo.evaluation import detectors, weight_files
from unigrpo.evaluation.coco_classes import CLASSES, LABELS, check_labels
from unigrpo.evaluation.detectors import called, check, detector
from unigrpo.evaluation.mask2former_network import OFFICIAL, _sizes_of, from_transformers
from unigrpo.ranges import ConfigError
from unigrpo.worlds import geneval


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Small models where a user has the public ones."""
    folder = tmp_path_factory.mktemp("models")
    torch.save({"state_dict": mmdet_state(), "meta": {"CLASSES": CLASSES}}, folder / "mmdet.pth")
    make_hf(folder / "hf")
    make_clip(folder / "clip")
    return folder


def given(files, name="mask2former-mmdet", **changes):
    weights = {"mask2former-mmdet": files / "mmdet.pth", "mask2former-hf": files / "hf"}[name]
    return {"name": name, "weights": str(weights), "clip": str(files / "clip"), "device": "cpu", **changes}


# The table


def test_the_80_classes_are_genevals_in_cocos_order():
    assert CLASSES == geneval.CLASSES
    assert len(set(CLASSES)) == len(CLASSES) == len(set(LABELS)) == len(LABELS) == 80
    assert [(i, CLASSES[i], LABELS[i]) for i in range(80) if CLASSES[i] != LABELS[i]] == [
        (3, "motorcycle", "motorbike"), (4, "airplane", "aeroplane"), (57, "couch", "sofa"),
        (58, "potted plant", "pottedplant"), (60, "dining table", "diningtable"), (62, "tv", "tvmonitor"),
        (64, "computer mouse", "mouse"), (65, "tv remote", "remote"), (66, "computer keyboard", "keyboard"),
    ]  # fmt: skip
    check_labels(LABELS, "x")
    check_labels(CLASSES, "x")


def test_labels_in_another_order_are_refused_before_weights_are_read(files, tmp_path):
    swapped = list(LABELS)
    swapped[15], swapped[16] = swapped[16], swapped[15]
    make_hf(tmp_path, labels=swapped)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match="calls class 15 'dog', but in COCO's order that is 'cat'"):
        detector(given(files, "mask2former-hf", weights=str(tmp_path)))


def test_a_checkpoint_of_other_things_is_refused(tmp_path):
    make_hf(tmp_path, labels=["wall", "floor"])
    with pytest.raises(ConfigError, match="tells 2 classes apart, but GenEval needs COCO's 80"):
        from_transformers(tmp_path, "weights")


# What is refused

WRONG = {
    "no name": ({"name": None}, "name = None is no detector: give one of mask2former-mmdet, mask2former-hf"),
    "another name": ({"name": "mask2former-hff"}, r"'mask2former-hff' is no detector \(did you mean mask2former-hf"),
    "a key": ({"weight": "x"}, r"there is no key 'weight' \(did you mean weights"),
    "no weights": ({"weights": None}, "weights is missing: docs/geneval-detectors.md says where to get it"),
    "weights no path": ({"weights": 3}, "weights = 3 is no path"),
    "weights absent": ({"weights": "nowhere.pth"}, "weights = nowhere.pth is not there: download the checkpoint"),
    "weights a folder": ({"weights": "hf"}, "weights = .*hf is a folder: give the checkpoint file itself"),
    "weights of a kind": ({"weights": "hf/config.json"}, r"must end in .safetensors, .pth, .pt: give mmdet's"),
    "no clip": ({"clip": None}, "clip is missing"),
    "clip absent": ({"clip": "nowhere"}, "clip = nowhere is no folder here: download openai/clip-vit-large-patch14"),
    "clip a file": ({"clip": "mmdet.pth"}, "is a file, but a folder is needed"),
    "clip empty": ({"clip": "."}, r"has no config.json: download all of openai/clip-vit-large-patch14"),
    "device": ({"device": "gpu"}, "device = 'gpu' is no device: give cpu or cuda:N"),
    "device absent": ({"device": "cuda:97"}, "torch does not see that device: set it to cpu"),
    "hub id": (
        {"name": "mask2former-hf", "weights": "facebook/mask2former"},
        "weights = facebook/mask2former is no folder here: download facebook/mask2former-swin-small-coco-instance",
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_cannot_work_is_said_before_weights_are_read(fault, files, monkeypatch):
    def read(*_):
        raise AssertionError("weights were read")

    monkeypatch.setattr(detectors.mask2former_network, "from_mmdet", read)
    monkeypatch.setattr(detectors.mask2former_network, "from_transformers", read)
    changes, said = WRONG[fault]
    here = {key: str(files / value) if (files / str(value)).exists() else value for key, value in changes.items()}
    with pytest.raises(ConfigError, match=said):
        detector({**given(files), **here})


def test_a_folder_without_weights_is_refused(files, tmp_path):
    (tmp_path / "config.json").write_text((files / "hf" / "config.json").read_text())
    with pytest.raises(ConfigError, match=r"has no model\*.safetensors or pytorch_model\*.bin"):
        check(given(files, "mask2former-hf", weights=str(tmp_path)))


def test_a_missing_package_is_named_with_how_to_install_it(files, monkeypatch):
    monkeypatch.setattr(detectors, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package transformers: pip install '.\[geneval\]'"):
        detector(given(files))


def test_a_clip_where_mask2former_should_be_is_refused(files):
    with pytest.raises(ConfigError, match="holds a model of the type 'clip': give a folder of a Mask2Former"):
        detector(given(files, "mask2former-hf", weights=str(files / "clip")))


# What it is and says


@pytest.mark.parametrize("name", ["mask2former-mmdet", "mask2former-hf"])
def test_a_detector_finds_things_and_says_what_it_is(name, files):
    made = detector(given(files, name), SMALL)
    found = made(golden_picture(), ["elephant"])
    assert len(found) == 100 and all(one.keys() == {"class", "box", "score", "color"} for one in found)
    assert json.loads(json.dumps(found)) == found
    about = json.loads(json.dumps(made.about))
    assert about["name"] == name and about["called"] == f"GenEval ({name}, networks of other sizes)"
    assert about["official_weights"] is False and about["thresholds"]["coloured_above"] == 0.3
    assert about["processing"] == {"short": 230, "long": 333, "multiple": 32, "top": 100}
    assert about["device"] == "cpu" and set(about["versions"]) == {"torch", "transformers", "pillow"}
    weights = files / ("mmdet.pth" if name.endswith("mmdet") else "hf/model.safetensors")
    assert about["weights_sha256"] == weight_files.digest([weights]) != about["clip_sha256"]
    assert str(files) not in json.dumps(about)


def test_only_mmdets_backend_with_the_official_networks_is_called_geneval():
    assert called("mask2former-mmdet", official=True) == "GenEval"
    assert called("mask2former-hf", official=True) == "GenEval (mask2former-hf)"
    assert "other sizes" in called("mask2former-mmdet", official=False)


def test_the_public_config_of_transformers_has_the_official_sizes():
    from transformers import Mask2FormerConfig

    assert _sizes_of(Mask2FormerConfig(num_labels=80)) == OFFICIAL
    assert _sizes_of(Mask2FormerConfig(num_labels=80, num_queries=200)) != OFFICIAL


def test_other_weights_have_another_hash_and_other_names_of_files_too(tmp_path):
    for name, content in (("a", b"1"), ("b", b"2"), ("c", b"1")):
        (tmp_path / name).write_bytes(content)
    one, two, same = (weight_files.digest([tmp_path / name]) for name in "abc")
    assert one == same != two
    both = weight_files.digest([tmp_path / "a", tmp_path / "b"])
    assert both == weight_files.digest([tmp_path / "b", tmp_path / "a"]) not in (one, two)


def test_a_detector_keeps_nothing_of_a_picture(files):
    made = detector(given(files, "mask2former-hf"), SMALL)
    seen = []
    for seed in range(3):
        picture = blobs(60, 80, seed=seed)
        seen.append(weakref.ref(picture))
        made(picture, ["elephant"])
        del picture
    gc.collect()
    assert all(reference() is None for reference in seen)
    large = [o for o in gc.get_objects() if type(o) is torch.Tensor and o.shape[-2:] == (230, 307)]
    assert not large


@pytest.mark.parametrize("text", ["{", '{"model_type": "mask2former", "hidden_dim": "wide"}', '{"model_type": "x-y"}'])
def test_a_config_that_cannot_be_read_is_named(text, files, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"weights = .*: its config.json cannot be read"):
        detector(given(files, "mask2former-hf", weights=str(tmp_path)))


def test_weights_that_cannot_be_read_are_named(files, tmp_path):
    make_hf(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"none")
    with pytest.raises(ConfigError, match=r"weights = .*: its weights cannot be read"):
        detector(given(files, "mask2former-hf", weights=str(tmp_path)))
    make_hf(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    del held["class_predictor.bias"]
    save_file(held, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"do not fit its config.json \(class_predictor.bias\)"):
        detector(given(files, "mask2former-hf", weights=str(tmp_path)))
