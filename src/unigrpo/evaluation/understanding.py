"""Does a model understand what it sees? Questions about pictures, answered in words, and the share of right answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unigrpo.evaluation.statistics import judged_interval, mean
from unigrpo.policy import Policy

LONGEST = 24
"""Tokens of an answer, its end counted."""


@dataclass(frozen=True)
class Asked:
    """A question about a picture uint8 [3, H, W] that is only looked at, with its answer; kind: what is asked for."""

    kind: str
    words: str
    answer: str
    picture: Tensor


@torch.no_grad()
def answers(policy: Policy, asked: Sequence[Asked], batch: int = 256) -> list[str]:
    """What the model answers, the likeliest word each time, without thinking before it."""
    given: list[str] = []
    for start in range(0, len(asked), batch):
        part = asked[start : start + batch]
        contexts = [policy.question_segments(item.words, [item.picture], think=False) for item in part]
        unused = torch.full((len(part), LONGEST), 0.5)  # greedy: no draw decides
        texts, _ = policy.think(policy.prefill(contexts), uniforms=unused, temperature=0.0)
        given += [policy.decode_text(text.ids) for text in texts]
    return given


def records(asked: Sequence[Asked], given: Sequence[str]) -> list[dict[str, Any]]:
    """One record per question: an answer is right if it is the expected one, word for word."""
    return [
        {
            "kind": item.kind,
            "question": item.words,
            "expected": item.answer,
            "answer": said,
            "right": said == item.answer,
        }
        for item, said in zip(asked, given, strict=True)
    ]


def summary(made: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """accuracy: the share of right answers with a 95 % bootstrap interval over questions; by_kind; n."""
    right = [float(record["right"]) for record in made]
    kinds = sorted({record["kind"] for record in made})
    by_kind = {kind: mean([r["right"] for r in made if r["kind"] == kind]) for kind in kinds}
    return {"accuracy": judged_interval(right, range(len(right))), "by_kind": by_kind, "n": len(right)}
