"""The FLOPs of samples with several rounds: each turn continues the cache of those before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unigrpo.costs.counting import MARKERS, Counting
from unigrpo.trajectory import Image, Segment, Text, Trajectory, View, is_drawing


@dataclass(frozen=True)
class Turn:
    """One turn in numbers: ``und`` tokens of the reasoning expert, ``latents`` of the denoising one.

    written: a thinking, of which ``scored`` tokens were sampled (0: it was given); drawn: a drawing of so many latents;
    else a look, with the patches of each of its ``views``.
    """

    und: int = 0
    latents: int = 0
    scored: int = 0
    views: tuple[int, ...] = ()
    written: bool = False
    drawn: bool = False


def turns_of(trajectory: Trajectory) -> tuple[Turn, ...]:
    """The turns after the prompt; what a look gives, latents and view, is one."""
    found: list[Turn] = []
    for segment in trajectory.segments[len(trajectory.given) :]:
        if isinstance(segment, Text):
            sampled = segment.num_actions if segment.log_probs is not None else 0
            found.append(Turn(und=len(segment.ids) + 2, scored=sampled, written=True))
        elif is_drawing(segment):
            found.append(Turn(latents=_of_grid(segment.grid), drawn=True))
        elif isinstance(segment, Image):
            found.append(Turn(und=MARKERS, latents=_of_grid(segment.grid)))
        elif isinstance(segment, View):
            patches = _of_grid(segment.grid)
            last = found.pop()
            found.append(Turn(last.und + patches + MARKERS, last.latents, views=(patches,)))
    return tuple(found)


def read_of(segments: Sequence[Segment]) -> Turn:
    """What reading given segments is: words (bos and eos included), pictures as latents and as seen."""
    und, latents, views = 0, 0, []
    for segment in segments:
        if isinstance(segment, Text):
            und += len(segment.ids) + 2
            continue
        und += MARKERS
        if isinstance(segment, View):
            views.append(_of_grid(segment.grid))
            und += views[-1]
        else:
            latents += _of_grid(segment.grid)
    return Turn(und, latents, views=tuple(views))


def _of_grid(grid: tuple[int, int]) -> int:
    return grid[0] * grid[1]


def of_turns(turns: Sequence[Turn], before: int, counts: Counting, steps: int) -> float:
    """FLOPs of the turns of one sample after ``before`` tokens; ``steps``: denoising steps of a picture."""
    total = 0.0
    for turn in turns:
        if turn.drawn:
            total += steps * counts.velocity(before, turn.latents)
            continue
        if turn.scored:
            total += counts.think(1, before, turn.und, turn.scored)
        elif turn.und:
            total += counts.look(before, turn.und, turn.latents, turn.views)
        before += turn.und + turn.latents
    return total
