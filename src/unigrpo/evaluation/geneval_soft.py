"""``geneval_soft``: the reward that flow_grpo trains with as "geneval". It is not the GenEval score.

Source: Flow-GRPO (arXiv 2505.05470), reward of compositional image generation, as its reward server computes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from torch import Tensor

from unigrpo.evaluation.geneval_metadata import Wanted, check
from unigrpo.evaluation.geneval_rules import DetectionError, Found, judge, kept, relations, uncoloured
from unigrpo.ranges import ConfigError, shown
from unigrpo.rewards.png import quantised
from unigrpo.rewards.protocol import RewardOutput

NAME = "geneval_soft"


def soft(metadata: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]) -> float:
    """The mean of the points that a picture gains; 1 where everything is right, and it may be below 0.

    Every entry of ``include`` that asks for n objects of a class, of which m count (as GenEval counts them), adds

    * its number, 1 - |n - m| / n: not cut at 0, so ten where one was asked for gain -8;
    * where m is not n, and a colour or a place is asked for too: 0, once; nothing more of this entry is looked at;
    * where m is n, and a colour is asked for, which k of the objects have: 1 - (n - k) / n;
    * where m is n, the colours are right, and a place is asked for: 1 if every object lies as asked to every object of
      the other entry; 0 if that entry failed; *0 and 1* otherwise, so a wrong relation still gains half.

    ``exclude`` is not looked at: an exact count takes its place. Arguments and errors as
    :func:`unigrpo.evaluation.geneval_rules.judge`, and ConfigError for names that are not GenEval's.
    """
    asked = check(metadata)
    found = kept(asked.tag, detections)
    points: list[float] = []
    groups: list[Sequence[Found] | None] = []
    for item in asked.include:
        group = found.get(item.name, [])
        gained, right = _points(item, group, groups)
        points += gained
        groups.append(group if right else None)
    return sum(points) / len(points)


def _points(item: Wanted, group: Sequence[Found], groups: Sequence[Sequence[Found] | None]) -> tuple[list[float], bool]:
    """The points of one entry, and whether it is wholly right."""
    points = [1 - abs(item.count - len(group)) / item.count]
    if len(group) != item.count:
        return points + [0.0] * (item.colour is not None or item.place is not None), False
    if item.colour is not None:
        fitting = [one.colour for one in group].count(item.colour)
        points.append(1 - abs(item.count - fitting) / item.count)
        if fitting != item.count:
            return points, False
    if item.place is None:
        return points, True
    relation, target = item.place
    others = groups[target]
    if others is None:
        return [*points, 0.0], False
    if all(relation in relations(one.box, other.box) for one, other in product(group, others)):
        return [*points, 1.0], True
    return [*points, 0.0, 1.0], False


class GenevalSoft:
    """:func:`soft` of what a detector finds, as a reward; further value ``correct``: 1 where GenEval's rules say right.

    The prompts' metadata are GenEval's (``geneval:train`` has them, and so do GenEval's own files); a prompt without
    them is an error of its picture.
    """

    def __init__(self, *, detector: Mapping[str, Any]) -> None:
        """detector: which one, with its arguments: ``{name: mask2former-mmdet, weights: PATH, clip: PATH}``."""
        from unigrpo.evaluation.detectors import detector as built  # here, because it brings transformers along

        if not isinstance(detector, Mapping) or "name" not in detector:
            raise ConfigError(
                f"{NAME}: detector = {shown(detector)} must name a detector and its files, such as "
                "{name: mask2former-mmdet, weights: PATH, clip: PATH}"
            )
        self._detector = built(detector)

    def __call__(
        self,
        images: Tensor,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
        thinking: Sequence[str | None],
    ) -> RewardOutput:
        """Score pictures float [B, 3, H, W] in [0, 1], one after the other."""
        values, correct, errors = [math.nan] * len(images), [math.nan] * len(images), {}
        for index, (picture, known) in enumerate(zip(quantised(images), metadata, strict=True)):
            try:
                values[index], correct[index] = self._scores(picture, known)
            except (ConfigError, DetectionError) as error:
                errors[index] = str(error)
        return RewardOutput(values, {"soft": values, "correct": correct}, errors)

    def _scores(self, picture: Tensor, metadata: Mapping[str, Any]) -> tuple[float, float]:
        """Both values of a picture uint8 [3, H, W]."""
        asked = check(metadata)
        detections = self._detector(picture, asked.coloured)
        if (name := uncoloured(asked, kept(asked.tag, detections))) is not None:
            raise DetectionError(f"the detector gave a {name} without a colour, and its colour is asked for")
        return soft(metadata, detections), float(judge(metadata, detections).correct)
