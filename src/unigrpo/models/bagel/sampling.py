"""Drawing words: the distribution over the vocabulary, and inverse-CDF sampling from it (docs/math.md#text)."""

from __future__ import annotations

import torch
from torch import Tensor


def log_distribution(logits: Tensor, temperature: float) -> Tensor:
    """log_softmax(logits / T), fp32, over the whole vocabulary (docs/math.md#text); T = 0 scores as T = 1."""
    return torch.log_softmax(logits.float() / (temperature or 1.0), dim=-1)


WordScores = tuple[Tensor, Tensor, Tensor]
"""Log-probs of N words, and entropies and spreads (largest less smallest log-prob) of their distributions: fp32 [N]."""


def score(logits: Tensor, ids: Tensor, temperature: float) -> WordScores:
    """How words ids [N] are scored by logits [N, V]; gradients flow through the log-probs alone."""
    log_p = log_distribution(logits, temperature)
    chosen = log_p.gather(1, ids[:, None])[:, 0]
    with torch.no_grad():
        return chosen, -(log_p.exp() * log_p).sum(-1), log_p.amax(-1) - log_p.amin(-1)


def sample(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Draw one id per row by inverse CDF (fp64 sums): the first id whose cumulated probability exceeds u in [0, 1).

    logits [B, V], uniforms [B] -> ids [B] int64, log-probs [B] fp32 of the very distribution drawn from. T = 0: argmax.
    """
    log_p = log_distribution(logits, temperature)
    if temperature == 0:
        ids = logits.argmax(-1)
    else:
        cumulated = log_p.double().exp().cumsum(-1)
        threshold = uniforms.double()[:, None] * cumulated[:, -1:]
        ids = (cumulated <= threshold).sum(-1).clamp(max=logits.shape[-1] - 1)
    return ids, log_p.gather(1, ids[:, None])[:, 0]
