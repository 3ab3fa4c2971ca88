"""Preference pairs for the learned judge: a prompt, a picture that people would prefer, and one with a known fault.

Which picture is better follows from how the two were made, never from a model's drawings: faults of content (what the
prompt asks for is missing, changed or too many), worse faults against lesser ones, and faults of drawing (smudged
cells, noise, blur, brightness, damaged latents). Both pictures of a pair are finished a little differently, as real
drawings are, so the finish alone gives nothing away.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from preference.faults import CONTENT, EDITS, free_cell, merit, spoil
from unigrpo import seeds
from unigrpo.trajectory import Prompt
from unigrpo.worlds.shapes.planner import sample_scene
from unigrpo.worlds.shapes.prompts import PromptStream
from unigrpo.worlds.shapes.renderer import CELL_SIZE, GRID, LABELS, TEMPLATES, cell_labels, draw
from unigrpo.worlds.shapes.scenes import CELL_INDEX, Scene

Redraw = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""(pixels [N, 3, 32, 32] in [0, 1], standard deviation of the noise on the latents [N], the noise's generator) ->
pixels in [0, 1] as an autoencoder draws them. Worlds know no models, so the caller brings it."""

DRAWING = ("smudge", "noise", "blur", "brightness", "latents")
FAULTS = (*EDITS, "lesser", "other", *DRAWING)
"""Kinds of pairs. ``lesser``: two faults against one of them; ``other``: a scene for another prompt."""


def _scenes(fault: str, prompt: Prompt, other: Prompt, draws: random.Random) -> tuple[Scene, Scene] | None:
    """(better, worse) for a kind of pair; None where the prompt has no such pair."""
    good = sample_scene(prompt.metadata, draws)
    if fault in DRAWING:
        return good, good
    if fault == "other":
        bad = sample_scene(other.metadata, draws)
        return (good, bad) if merit(bad, prompt) < 1 else None
    if fault != "lesser":
        bad = spoil(good, fault, prompt, draws)
        return None if bad is None else (good, bad)
    some = spoil(good, draws.choice(CONTENT[prompt.metadata["category"]]), prompt, draws)
    more = None if some is None else spoil(some, draws.choice(CONTENT[prompt.metadata["category"]]), prompt, draws)
    return None if some is None or more is None else (some, more)


# Faults of drawing

SMUDGE = -1
"""The label of a cell that shows neither of two things."""


@dataclass(frozen=True)
class Finish:
    """How one picture is drawn.

    noise: standard deviation of Gaussian noise per pixel; blur: share of a 3 x 3 mean, in [0, 1]; brightness: factor;
    latents: standard deviation of the noise on the autoencoder's latents, None: not through the autoencoder;
    smudge: (cell, label, share): the cell is blended with another template by this share.
    """

    noise: float = 0.0
    blur: float = 0.0
    brightness: float = 1.0
    latents: float | None = None
    smudge: tuple[int, int, float] | None = None


def _light(draws: random.Random, redrawn: bool) -> Finish:
    """The small flaws that any drawing has."""
    return Finish(
        noise=draws.uniform(0.0, 0.03),
        blur=draws.uniform(0.0, 0.25) if draws.random() < 0.5 else 0.0,
        brightness=draws.uniform(0.9, 1.1),
        latents=draws.uniform(0.0, 0.35) if redrawn else None,
    )


def _smudge(scene: Scene, draws: random.Random) -> tuple[int, int, float]:
    """A cell that shows neither of two things: mostly one of the objects' cells."""
    share = draws.uniform(0.35, 0.65)
    if scene.objects and draws.random() < 0.85:
        item = draws.choice(scene.objects)
        own = LABELS[item.shape, item.colour]
        return CELL_INDEX[item.cell], draws.choice([k for k in range(len(TEMPLATES)) if k != own]), share
    return CELL_INDEX[free_cell(scene, draws)], draws.randrange(1, len(TEMPLATES)), share


def _heavy(finish: Finish, fault: str, scene: Scene, draws: random.Random) -> Finish:
    """The finish with one fault of drawing."""
    if fault == "smudge":
        return replace(finish, smudge=_smudge(scene, draws))
    if fault == "noise":
        return replace(finish, noise=finish.noise + draws.uniform(0.04, 0.15))
    if fault == "blur":
        return replace(finish, blur=min(1.0, finish.blur + draws.uniform(0.4, 1.0)))
    if fault == "brightness":
        return replace(finish, brightness=draws.choice((draws.uniform(0.5, 0.75), draws.uniform(1.25, 1.5))))
    return replace(finish, latents=(finish.latents or 0.0) + draws.uniform(0.4, 1.0))


def finished(labels: Tensor, finishes: Sequence[Finish], redraw: Redraw, noise: torch.Generator) -> Tensor:
    """Draw cell labels int64 [N, 16] with their finishes: float32 [N, 3, 32, 32] in [0, 1]."""
    pixels = draw(labels)
    for row, finish in enumerate(finishes):
        if finish.smudge is not None:
            cell, label, share = finish.smudge
            top, left = CELL_SIZE * (cell // GRID), CELL_SIZE * (cell % GRID)
            patch = pixels[row, :, top : top + CELL_SIZE, left : left + CELL_SIZE]
            patch.lerp_(TEMPLATES[label], share)
    if through := [row for row, finish in enumerate(finishes) if finish.latents is not None]:
        pixels[through] = redraw(pixels[through], torch.tensor([finishes[row].latents for row in through]), noise)
    blur, brightness, deviation = (
        torch.tensor([values]).reshape(-1, 1, 1, 1)
        for values in (
            [finish.blur for finish in finishes],
            [finish.brightness for finish in finishes],
            [finish.noise for finish in finishes],
        )
    )
    mean = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    pixels = torch.lerp(pixels, mean, blur) * brightness
    return (pixels + deviation * torch.randn(pixels.shape, generator=noise)).clamp(0, 1)


# Pairs


@dataclass(frozen=True)
class PairMix:
    """Shares of all pairs, in [0, 1]: ``other`` and ``lesser`` of the kinds, ``drawing`` for all of :data:`DRAWING`
    together; the rest has one fault of content. ``redrawn`` of the pictures go through the autoencoder.

    ``flipped`` of the labels are wrong, as people's are: they disagree on about one pair in ten.
    """

    other: float = 0.1
    lesser: float = 0.15
    drawing: float = 0.25
    redrawn: float = 0.25
    flipped: float = 0.1

    def __post_init__(self) -> None:
        shares = (self.other, self.lesser, self.drawing, self.redrawn, self.flipped)
        if min(shares) < 0 or max(shares) > 1 or sum(shares[:3]) > 1 + 1e-9:
            raise ValueError(f"pair mix: shares must be in [0, 1] and other + lesser + drawing at most 1, not {self}")


@dataclass(frozen=True, eq=False)
class PairBatch:
    """n pairs: pictures float32 [n, 3, 32, 32] in [0, 1], what their cells show int64 [n, 16] (-1: a smudge), the kind
    of fault of each pair, and whether its label was flipped (then ``better`` is the worse)."""

    prompts: tuple[Prompt, ...]
    better: Tensor
    worse: Tensor
    better_cells: Tensor
    worse_cells: Tensor
    faults: tuple[str, ...]
    flipped: Tensor


@dataclass(frozen=True)
class _Plan:
    """One pair before it is drawn."""

    prompt: Prompt
    fault: str
    scenes: tuple[Scene, Scene]
    finishes: tuple[Finish, Finish]
    flipped: bool


def _kind(prompt: Prompt, mix: PairMix, draws: random.Random) -> str:
    point = draws.random()
    if point < mix.other:
        return "other"
    if point < mix.other + mix.lesser:
        return "lesser"
    if point < mix.other + mix.lesser + mix.drawing:
        return draws.choice(DRAWING)
    return draws.choice(CONTENT[prompt.metadata["category"]])


def _plan(prompt: Prompt, other: Prompt, mix: PairMix, draws: random.Random) -> _Plan:
    scenes = None
    while scenes is None:
        fault = _kind(prompt, mix, draws)
        scenes = _scenes(fault, prompt, other, draws)
    better, worse = (_light(draws, draws.random() < mix.redrawn) for _ in scenes)
    if fault in DRAWING:
        worse = _heavy(better, fault, scenes[1], draws)
    if draws.random() < mix.flipped:
        return _Plan(prompt, fault, (scenes[1], scenes[0]), (worse, better), True)
    return _Plan(prompt, fault, scenes, (better, worse), False)


def preference_pairs(
    split: str, seed: int, iteration: int, n: int, redraw: Redraw, mix: PairMix = PairMix()
) -> PairBatch:
    """n pairs for one step, from the prompts of a split ("train" or "held-out"); all draws are keyed.

    The prompts are those at positions iteration * n ... of ``PromptStream(split, seed)``.
    """
    prompts = PromptStream(split, seed).batch(iteration, n)
    plans = []
    for index, prompt in enumerate(prompts):
        draws = random.Random(seeds.key(seed, iteration, index, 0, f"shapes preference pair {split}"))
        plans.append(_plan(prompt, prompts[(index + draws.randrange(1, n)) % n] if n > 1 else prompt, mix, draws))
    labels = cell_labels([plan.scenes[side] for side in (0, 1) for plan in plans])
    finishes = [plan.finishes[side] for side in (0, 1) for plan in plans]
    noise = seeds.generator(seed, iteration, 0, 0, f"shapes preference noise {split}")
    pixels = finished(labels, finishes, redraw, noise)
    for row, finish in enumerate(finishes):
        if finish.smudge is not None:
            labels[row, finish.smudge[0]] = SMUDGE
    return PairBatch(
        tuple(prompts),
        pixels[:n],
        pixels[n:],
        labels[:n],
        labels[n:],
        tuple(plan.fault for plan in plans),
        torch.tensor([plan.flipped for plan in plans]),
    )
