"""COCO's 80 classes in order: as GenEval names them, and as the labels of the two Mask2Former checkpoints do.

GenEval renames three of COCO's names. Checkpoints of transformers name nine classes otherwise: six as PASCAL VOC does.
"""

from __future__ import annotations

from collections.abc import Sequence

from unigrpo.ranges import ConfigError, shown

CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
    "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone",
    "microwave", "oven",
    "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""By GenEval's names (its evaluation/object_names.txt), in the order of the detectors' outputs."""
COCO_NAMES = {"computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard"}
"""What COCO and mmdet call the three that GenEval renames."""
VOC_NAMES = {
    "motorcycle": "motorbike", "airplane": "aeroplane", "couch": "sofa", "potted plant": "pottedplant",
    "dining table": "diningtable", "tv": "tvmonitor",
}  # fmt: skip
"""What the labels of facebook/mask2former-swin-small-coco-instance call six more of them."""
LABELS = tuple((COCO_NAMES | VOC_NAMES).get(name, name) for name in CLASSES)
"""The 80 labels of that checkpoint, in order: row i is GenEval's CLASSES[i]."""


def check_labels(labels: Sequence[str], where: str) -> None:
    """ConfigError unless a checkpoint's labels are COCO's 80, each in its row, by one of the names above."""
    if len(labels) != len(CLASSES):
        raise ConfigError(
            f"{where} tells {len(labels)} classes apart, but GenEval needs COCO's 80: name a checkpoint that was "
            "trained for COCO instance segmentation"
        )
    for row, label in enumerate(labels):
        known = {CLASSES[row], COCO_NAMES.get(CLASSES[row], CLASSES[row]), LABELS[row]}
        if label not in known:
            raise ConfigError(
                f"{where} calls class {row} {shown(label)}, but in COCO's order that is {CLASSES[row]!r}: its outputs "
                "would be taken for other things, so name a checkpoint with COCO's 80 classes in order"
            )
