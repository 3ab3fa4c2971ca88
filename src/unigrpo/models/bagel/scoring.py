"""From the hidden states of a packed replay to what was asked: log-probs of words, and velocities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unigrpo.models.bagel.packing import Packed
from unigrpo.models.bagel.transformer import BagelModel


def score_texts(model: BagelModel, packed: Packed, hidden: Tensor, temperature: float) -> tuple[Sequence[Tensor], ...]:
    """Log-probs, entropies and spreads of the scored tokens of every context row."""
    rows, columns, targets, sizes = [], [], [], []
    for row, spans in enumerate(packed.texts):
        before = len(rows)
        for span in spans:
            actions = span.text.ids.tolist() + [model.config.eos_token_id] * span.text.ended
            rows.extend([row] * len(actions))
            columns.extend(range(span.start, span.start + len(actions)))
            targets.extend(actions)
        sizes.append(len(rows) - before)
    index = torch.tensor([rows, columns, targets], dtype=torch.int64, device=hidden.device).reshape(3, -1)
    scores = model.word_scores(hidden[index[0], index[1]], index[2], temperature)
    return tuple(values.split(sizes) for values in scores)


def read_velocities(model: BagelModel, packed: Packed, hidden: Tensor) -> list[tuple[Tensor, ...]]:
    """The velocities of every item's queries, [K, n, d] each."""
    spans = [span for item in packed.images for span in item]
    # split and not indexing: its backward is one concatenation, where 96 slices would add 96 tensors of zeros
    parts = model.velocity_head(hidden).float().split([span.copies for span in spans])
    whole = hidden.shape[1]
    trimmed = [p if s.num_tokens == whole else p[:, : s.num_tokens] for p, s in zip(parts, spans, strict=True)]
    answers = iter(trimmed)
    return [tuple(next(answers) for _ in item) for item in packed.images]
