"""Detectors for GenEval by name: what one is, and how one is made of ``{name, weights, clip, device}``.

    detector({"name": "mask2former-mmdet", "weights": "mask2former.pth", "clip": "clip-vit-large-patch14/"})

Only ``mask2former-mmdet`` with the sizes of the official checkpoint, and CLIP ViT-L/14, may be called "GenEval":
``about["called"]`` says what a score may be called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from unigrpo import version
from unigrpo.evaluation import clip_colours, mask2former_network, weight_files
from unigrpo.evaluation.coco_classes import CLASSES as CLASSES  # what detections are called
from unigrpo.evaluation.mask2former import COLOURED_ABOVE, Mask2FormerDetector, Processing
from unigrpo.ranges import ConfigError, did_you_mean, how_to_install, shown

MMDET, HF = "mask2former-mmdet", "mask2former-hf"
NAMES = (MMDET, HF)
KEYS = ("name", "weights", "clip", "device")
EXTRA = "geneval"
OFFICIAL_SHA256 = "743b7d99"
"""How the sha256 of the official mmdet checkpoint begins, by OpenMMLab's way of naming files (NAME-SHA256[:8].pth)."""


class Detector(Protocol):
    """Finds GenEval's objects in a picture."""

    about: Mapping[str, Any]
    """Backend, what its score is called, hashes of all weights, thresholds, versions, device: plain JSON."""

    def __call__(self, picture: Tensor, wanted: Sequence[str]) -> list[dict[str, Any]]:
        """Detections ``{"class", "box": [x0, y0, x1, y1], "score", "color"}`` of all classes, unfiltered.

        ``picture``: uint8 [3, H, W]. ``color`` is one of ten words for detections whose class is ``wanted`` and whose
        score is above 0.3, else None.
        """
        ...


@dataclass(frozen=True)
class Given:
    """The arguments of a detector, checked as far as that goes without reading weights."""

    name: str
    weights: Path
    clip: Path
    device: torch.device


def detector(given: Mapping[str, Any], processing: Processing | None = None) -> Detector:
    """The detector that arguments name; ConfigError says what is wrong with them.

    Names, paths, packages and the device are looked at before any weight is read. ``processing``: other sizes than
    the official ones, for small models in tests.
    """
    checked = check(given)
    where = f"detector {checked.name!r}: weights = {checked.weights}"
    read = mask2former_network.from_mmdet if checked.name == MMDET else mask2former_network.from_transformers
    network, sizes = read(checked.weights, where)
    colours = clip_colours.load(checked.clip, f"detector {checked.name!r}: clip = {checked.clip}", checked.device)
    used = processing or Processing()
    official = dict(sizes) == mask2former_network.OFFICIAL and colours.official and used == Processing()
    return Mask2FormerDetector(
        raw=network.to(checked.device),
        colours=colours,
        about=_about(checked, used, official),
        processing=used,
        device=checked.device,
    )


def check(given: Mapping[str, Any]) -> Given:
    """The arguments of a detector; ConfigError for names, types, paths, a device or packages that cannot work."""
    for key in given:
        if key not in KEYS:
            raise ConfigError(
                f"detector: there is no key {shown(key)}{did_you_mean(str(key), KEYS)}; known are {', '.join(KEYS)}"
            )
    name = given.get("name")
    if name not in NAMES:
        hint = did_you_mean(name, NAMES) if isinstance(name, str) else ""
        raise ConfigError(f"detector: name = {shown(name)} is no detector{hint}: give one of {', '.join(NAMES)}")
    paths = {key: _path(name, key, given.get(key)) for key in ("weights", "clip")}
    if name == MMDET:
        _check_file(name, paths["weights"])
    else:
        _check_folder(name, "weights", paths["weights"], "facebook/mask2former-swin-small-coco-instance")
    _check_folder(name, "clip", paths["clip"], "openai/clip-vit-large-patch14")
    device = _device(name, given.get("device"))
    if find_spec("transformers") is None:
        raise ConfigError(f"detector {name!r} needs the package transformers: {how_to_install(EXTRA)}")
    return Given(name, paths["weights"], paths["clip"], device)


def _path(name: str, key: str, value: Any) -> Path:
    if not isinstance(value, str) or not value:
        said = "is missing" if value is None else f"= {shown(value)} is no path"
        raise ConfigError(f"detector {name!r}: {key} {said}: docs/geneval-detectors.md says where to get it")
    return Path(value).expanduser()


def _check_file(name: str, path: Path) -> None:
    if path.is_dir():
        raise ConfigError(f"detector {name!r}: weights = {path} is a folder: give the checkpoint file itself")
    if not path.is_file():
        raise ConfigError(
            f"detector {name!r}: weights = {path} is not there: download the checkpoint as docs/geneval-detectors.md "
            "says, and give its path"
        )
    if path.suffix not in weight_files.SUFFIXES:
        raise ConfigError(
            f"detector {name!r}: weights = {path} must end in {', '.join(weight_files.SUFFIXES)}: give mmdet's "
            "checkpoint"
        )


def _check_folder(name: str, key: str, path: Path, public: str) -> None:
    if not path.is_dir():
        what = "is a file, but a folder is needed" if path.is_file() else "is no folder here"
        raise ConfigError(f"detector {name!r}: {key} = {path} {what}: download {public} into one, and give its path")
    if not (path / "config.json").is_file():
        raise ConfigError(f"detector {name!r}: {key} = {path} has no config.json: download all of {public} into it")
    if not weight_files.folder_files(path):
        patterns = " or ".join(weight_files.FOLDER_WEIGHTS)
        raise ConfigError(f"detector {name!r}: {key} = {path} has no {patterns}: download all of {public} into it")


def _device(name: str, given: Any) -> torch.device:
    """None is the accelerator where there is one."""
    if given is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(given)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"detector {name!r}: device = {shown(given)} is no device: give cpu or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"detector {name!r}: device = {given}, but torch does not see that device: set it to cpu")
    return device


def _about(given: Given, processing: Processing, official: bool) -> dict[str, Any]:
    """What a result file keeps of a detector; nothing in it depends on where files lie."""
    files = [given.weights] if given.name == MMDET else weight_files.folder_files(given.weights)
    sha256 = weight_files.digest(files)
    sizes = {key: value for key, value in asdict(processing).items() if key != "masks_at_once"}
    hardware = torch.cuda.get_device_name(given.device) if given.device.type == "cuda" else given.device.type
    return {
        "name": given.name,
        "called": called(given.name, official),
        "weights_sha256": sha256,
        "official_weights": given.name == MMDET and sha256.startswith(OFFICIAL_SHA256),
        "clip_sha256": weight_files.digest(weight_files.folder_files(given.clip)),
        "thresholds": {"coloured_above": COLOURED_ABOVE, "mask_logit_above": 0.0},
        "processing": sizes,
        "colours": {"templates": list(clip_colours.TEMPLATES), "precision": "float32"},
        "device": hardware,
        "versions": {package: version.of(package) for package in ("torch", "transformers", "pillow")},
    }


def called(name: str, official: bool) -> str:
    """What a score with this backend may be called; ``official``: its networks have the sizes of GenEval's own."""
    if not official:
        return f"GenEval ({name}, networks of other sizes)"
    return "GenEval" if name == MMDET else f"GenEval ({name})"
