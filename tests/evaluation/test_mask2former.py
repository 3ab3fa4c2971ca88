"""What is done to a picture before Mask2Former and to masks after it: as mmdet, OpenCV and transformers do it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from detector_models import SMALL, blobs, golden, golden_picture, hf_config, make_hf, mmdet_state
from unigrpo.evaluation.coco_classes import CLASSES
from unigrpo.evaluation.mask2former import MEAN, STD, Mask2FormerDetector, Processing, instances
from unigrpo.evaluation.mask2former_network import from_mmdet, from_transformers
from unigrpo.evaluation.opencv_resize import bilinear
from unigrpo.ranges import ConfigError

CPU = torch.device("cpu")


class Written:
    """Colours that are asked for, written down."""

    def __init__(self):
        self.asked = []

    def __call__(self, picture, boxes, masks, name):
        self.asked.append((name, boxes, masks))
        return [f"{name} {place}" for place in range(len(boxes))]


def detector_of(raw, processing=SMALL, colours=None):
    return Mask2FormerDetector(
        raw=raw, colours=colours or Written(), about={"name": "small"}, processing=processing, device=CPU
    )


@pytest.fixture(scope="module")
def mmdet(tmp_path_factory):
    file = tmp_path_factory.mktemp("mmdet") / "checkpoint.pth"
    torch.save({"state_dict": mmdet_state()}, file)
    return from_mmdet(file, "x")[0]


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf")
    return make_hf(folder), from_transformers(folder, "x")[0]


# Before the network


def test_the_resize_of_bytes_is_opencvs_to_the_last_bit():
    cv2 = pytest.importorskip("cv2")
    generator = np.random.default_rng(0)
    sizes = [(256, 256, 200, 200), (128, 128, 200, 200), (160, 128, 250, 200), (400, 400, 200, 200), (3, 90, 7, 210)]
    sizes += [(1, 1, 20, 20), (1, 7, 30, 210), (50, 50, 50, 50), *generator.integers(1, 120, (60, 4)).tolist()]
    for height, width, *size in sizes:
        picture = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        theirs = cv2.resize(picture, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
        ours = bilinear(torch.from_numpy(picture).permute(2, 0, 1), (size[0], size[1]))
        assert torch.equal(ours.permute(1, 2, 0), torch.from_numpy(theirs)), (height, width, size)


def test_the_pixels_are_those_that_mmdet_gave_its_network():
    pixels = SMALL.pixels(golden_picture())
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    levels = pixels[0] * std + mean
    assert torch.equal(levels.round().to(torch.uint8), golden()["pixels"])
    assert float((levels - levels.round()).abs().max()) < 1e-4


@pytest.mark.parametrize(
    "size, scaled",
    [((1024, 1024), (800, 800)), ((480, 640), (800, 1067)), ((768, 1360), (753, 1333)), ((300, 1000), (400, 1333))],
)
def test_a_picture_is_made_as_large_as_its_sides_allow(size, scaled):
    assert Processing().scaled(*size) == scaled


def test_the_padding_is_grey_and_normalised_with_the_picture():
    pixels = Processing(short=50, long=80).pixels(torch.full((3, 100, 130), 255, dtype=torch.uint8))
    assert pixels.shape == (1, 3, 64, 96) and pixels.dtype == torch.float32  # 50 x 65, up to multiples of 32
    for colour in range(3):
        white, grey = ((level - MEAN[colour]) / STD[colour] for level in (255, 128))
        assert torch.allclose(pixels[0, colour, :50, :65], torch.tensor(white))
        assert torch.allclose(pixels[0, colour, 50:], torch.tensor(grey))
        assert torch.allclose(pixels[0, colour, :, 65:], torch.tensor(grey))


# After it


def test_a_picture_gets_the_detections_that_mmdet_gives_it(mmdet):
    colours = Written()
    found = detector_of(mmdet, colours=colours)(golden_picture(), ["elephant", "zebra"])
    theirs = golden()["detections"]  # class, x0, y0, x1, y1, score, pixels of the mask
    assert len(found) == len(theirs) == 100
    theirs = theirs[theirs[:, 5].argsort(descending=True)]
    ours = torch.tensor([[CLASSES.index(one["class"]), *one["box"], one["score"]] for one in found])
    likely = theirs[:, 5] > 1e-4  # below, the order of equal scores is chance
    assert int(likely.sum()) > 30
    assert torch.equal(ours[likely, :5].double(), theirs[likely, :5])
    assert torch.allclose(ours[:, 5].double(), theirs[:, 5], rtol=0, atol=1e-5)
    [(name, boxes, masks)] = colours.asked
    areas = [int(mask.sum()) for mask in masks]
    coloured = theirs[(theirs[:, 0] == CLASSES.index("elephant")) & (theirs[:, 5] > 0.3)]
    assert name == "elephant" and len(boxes) == 8 and areas == coloured[:, 6].int().tolist()


def test_only_wanted_objects_above_the_threshold_get_a_colour(mmdet):
    colours = Written()
    found = detector_of(mmdet, colours=colours)(golden_picture(), ["toilet", "tv"])
    assert not colours.asked and all(one["color"] is None for one in found)  # the tv's score is 0.27
    found = detector_of(mmdet, colours=colours)(golden_picture(), ["elephant"])
    got = {(one["class"], one["score"] > 0.3, one["color"] is not None) for one in found}
    assert got == {("elephant", True, True)} | {(name, False, False) for name, _, given in got if not given}
    assert [one["color"] for one in found[:8]] == [f"elephant {place}" for place in range(8)]


def test_an_empty_mask_has_score_0_and_no_box_and_masks_of_one_query_are_shared():
    logits = torch.full((2, 81), -20.0)
    logits[0, 3], logits[1, 5], logits[1, 7] = 20.0, 19.0, 20.0
    masks = torch.full((2, 8, 8), -3.0)
    masks[1, 2:4, 1:6] = 3.0
    found = instances(logits, masks, (32, 32), Processing(short=32, long=32, top=3), ["bus", "train"])
    by_name = {one.name: one for one in found}
    empty, seen, other = (by_name[CLASSES[index]] for index in (3, 7, 5))
    assert empty.score == 0.0 and empty.box == [0.0, 0.0, 0.0, 0.0]
    assert other.box == seen.box and other.score < 0.3 < seen.score and seen.score == found[0].score
    assert seen.mask is None  # a truck was not asked for; of the bus no score can reach 0.3
    kept = instances(logits, masks, (32, 32), Processing(short=32, long=32, top=3), [CLASSES[7]])[0].mask
    assert kept is not None
    rows, columns = kept.nonzero(as_tuple=True)
    assert [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1] == seen.box


def test_how_many_masks_are_made_at_once_changes_nothing(hf):
    picture = blobs(70, 90)
    results = [
        detector_of(hf[1], Processing(short=64, long=96, masks_at_once=count))(picture, []) for count in (1, 4, 100)
    ]
    assert results[0] == results[1] == results[2]


# transformers


@pytest.fixture(scope="module")
def library():
    """The whole model of transformers: its loss asks for scipy, which no forward needs."""
    from transformers import Mask2FormerForUniversalSegmentation
    from transformers.models.mask2former import modeling_mask2former

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_mask2former, "requires_backends", lambda *_: None)
        return Mask2FormerForUniversalSegmentation(hf_config()).eval()


@torch.no_grad()
def test_the_network_of_a_folder_gives_what_transformers_gives(hf, library):
    network, read = hf
    library.load_state_dict(network.state_dict(), strict=False)
    pixels = Processing(short=120, long=200).pixels(blobs(150, 190))
    wanted = library(pixels)
    classes, masks = read(pixels)
    assert torch.allclose(classes, wanted.class_queries_logits[0], rtol=0, atol=1e-4)
    assert torch.allclose(masks, wanted.masks_queries_logits[0], rtol=0, atol=1e-4)
    assert float(classes.std()) > 0.5 and float(masks.std()) > 0.5


@torch.no_grad()
def test_scores_are_those_of_transformers_own_post_processing_where_it_applies(hf):
    """It makes every picture 384 x 384 and takes as many pairs as there are queries: so does this one."""
    from transformers import Mask2FormerImageProcessorPil

    processing = Processing(short=384, long=384, top=6)
    picture = blobs(384, 384, seed=2)
    classes, masks = hf[1](processing.pixels(picture))
    found = instances(classes, masks, (384, 384), processing, CLASSES)
    outputs = SimpleNamespace(class_queries_logits=classes[None], masks_queries_logits=masks[None])
    theirs = Mask2FormerImageProcessorPil().post_process_instance_segmentation(
        outputs, threshold=0.0, return_binary_maps=True
    )[0]
    rows = sorted(
        ((info["score"], CLASSES[info["label_id"]], int(mask.sum())) for info, mask in _pairs(theirs)), reverse=True
    )
    ours = [(one.score, one.name) for one in found if one.score > 0]
    assert len(rows) == len(ours) >= 3
    for (score, name), (their_score, their_name, area) in zip(ours, rows, strict=True):
        assert name == their_name and score == pytest.approx(their_score, abs=1e-5) and area > 0
    kept = [(one, row) for one, row in zip(found, rows, strict=False) if one.mask is not None]
    assert kept and all(one.mask is not None and int(one.mask.sum()) == row[2] for one, row in kept)


def _pairs(answer):
    return zip(answer["segments_info"], answer["segmentation"], strict=True)


# What cannot be judged


def test_a_class_that_no_detector_knows_is_named(mmdet):
    with pytest.raises(ConfigError, match=r"'mouse' \(did you mean .*\), which is none of the 80 classes"):
        detector_of(mmdet)(golden_picture(), ["mouse"])


def test_a_network_that_gives_nan_is_named():
    raw = lambda pixels: (torch.full((2, 81), float("nan")), torch.zeros(2, 8, 8))  # noqa: E731
    with pytest.raises(ConfigError, match="detector small gives NaN or infinity for a picture of 90 x 70 pixels"):
        detector_of(raw)(blobs(70, 90), [])


@pytest.mark.parametrize("picture", [torch.zeros(3, 8, 8), torch.zeros(8, 8, 3, dtype=torch.uint8)])
def test_a_picture_of_another_kind_is_refused(picture):
    with pytest.raises(ValueError, match=r"a picture is uint8 \[3, H, W\]"):
        detector_of(lambda pixels: (pixels, pixels))(picture, [])
