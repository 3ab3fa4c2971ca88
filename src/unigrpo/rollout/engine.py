"""Prompts to trajectories, all samples of all prompts together (paper section 3; FlowGRPO-Fast).

The prompt is read once per group, the thinking continues in its cache, and the image is drawn on top of it; a look at
the drawing continues the thinking's cache again, and so do the next thinking and the next drawing. SDE steps are taken
inside one window per (iteration, prompt, round); every other step is the plain ODE. Every draw is keyed, so a sample
does not depend on who else is in the batch.
Source: docs/math.md#the-window, docs/math.md#rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from unigrpo import doing, heap
from unigrpo.plurals import counted
from unigrpo.policy import Context, Policy
from unigrpo.rollout.drawing import draw
from unigrpo.rollout.drawing import window_starts as window_starts
from unigrpo.rollout.episode import Action, Episode
from unigrpo.rollout.guidance import GuidanceContexts, prepare
from unigrpo.rollout.looking import shown_to
from unigrpo.rollout.sampling import RandomKeys as RandomKeys
from unigrpo.rollout.sampling import Rows
from unigrpo.rollout.sampling import Sampling as Sampling
from unigrpo.rollout.sampling import Slide as Slide
from unigrpo.trajectory import Image, Prompt, Segment, Text, Trajectory


def rollout(
    policy: Policy,
    episode: Episode,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    group_size: int,
    keys: RandomKeys,
    on_phase: Callable[[str], None] = lambda phase: None,
    first_sample: int = 0,
) -> list[Trajectory]:
    """Sample ``group_size`` trajectories per prompt; result [len(prompts) * group_size], groups adjacent.

    With K = ``images_per_thinking`` above 1, K neighbours share the thinking of the first round, read once and
    continued K times; in later rounds each looks at its own picture, and thinks for itself.
    ``on_phase`` is told "prefill", "think", "draw", "look" as each begins (for timing). ``first_sample`` numbers the
    samples. ValueError where K does not divide both ``group_size`` and ``first_sample``.
    """
    heap.keep_freed_memory()
    each = sampling.images_per_thinking if episode.think else 1
    if group_size % each or first_sample % each:
        raise ValueError(f"{counted(group_size, 'sample')} from {first_sample} on cannot share thoughts by {each}")
    with torch.no_grad():
        on_phase("prefill")
        doing.say(f"reading {counted(len(prompts), 'prompt')}")
        given = [policy.prompt_segments(prompt, think=episode.think) for prompt in prompts]
        context = policy.prefill(given).expand(group_size // each)
        rows = [(prompt, first_sample + s) for prompt in prompts for s in range(group_size)]
        samples = _Samples(policy, episode, sampling, keys, given, rows, context, each)
        for action in episode.actions:
            if not samples.live:
                break
            on_phase(action.value)
            samples.take(action)
    return [
        Trajectory(
            prompt,
            sample,
            (*given[index // group_size], *samples.made[index]),
            thought=sample // each if each > 1 else None,
        )
        for index, (prompt, sample) in enumerate(rows)
    ]


class _Samples:
    """All samples of a rollout on their way: what each has made, and the contexts of those that go on (``live``)."""

    def __init__(
        self,
        policy: Policy,
        episode: Episode,
        sampling: Sampling,
        keys: RandomKeys,
        given: Sequence[Sequence[Segment]],
        rows: Rows,
        context: Context,
        each: int,
    ) -> None:
        self.policy, self.episode, self.sampling, self.keys = policy, episode, sampling, keys
        self.given, self.rows, self.context, self.each = given, rows, context, each
        self.branches: GuidanceContexts | None = None
        self.live = list(range(len(rows)))
        self.made: list[list[Segment]] = [[] for _ in rows]

    @property
    def going(self) -> Rows:
        """The samples that go on."""
        return [self.rows[row] for row in self.live]

    def take(self, action: Action) -> None:
        """One turn of all samples that go on."""
        {Action.THINK: self.think, Action.DRAW: self.draw, Action.LOOK: self.look, Action.TELL: self.tell}[action]()

    def add(self, segments: Sequence[Sequence[Segment]]) -> None:
        """What each of those that go on has now made, or been given."""
        for row, some in zip(self.live, segments, strict=True):
            self.made[row].extend(some)

    def think(self) -> None:
        """Write on; after a look, those end here that say so."""
        # in the first round K neighbours share a thinking, and thought j has the draws of sample j
        each = self.each if self.keys.turn == 1 else 1
        thinkers = [(prompt, sample // each) for prompt, sample in self.going[::each]]
        doing.say(f"thinking, {counted(len(thinkers), 'sample')}")
        cap = self.sampling.max_think_tokens
        uniforms = torch.stack(
            [torch.rand(cap, generator=self.keys.generator(p.position, s, "think")) for p, s in thinkers]
        )
        texts, self.context = self.policy.think(self.context, uniforms=uniforms, temperature=self.sampling.temperature)
        self.add([[texts[place // each]] for place in range(len(self.live))])
        self.context = self.context.expand(each) if each > 1 else self.context
        if self.keys.turn > 1 and self.episode.stop_words:
            self.leave([self.episode.ends(self.policy.decode_text(text.ids)) for text in texts])

    def leave(self, ending: Sequence[bool]) -> None:
        """Those end of which it is said; the others go on without them."""
        if not any(ending):
            return
        staying = [place for place, ends in enumerate(ending) if not ends]
        self.live = [self.live[place] for place in staying]
        if staying:
            self.context = self.context.take(staying)
            self.branches = None if self.branches is None else self.branches.take(staying)

    def draw(self) -> None:
        """Draw one picture each."""
        if self.keys.turn == 1:
            self.branches = prepare(self.policy, self.given, len(self.rows) // len(self.given), self.sampling.guidance)
        images = draw(self.policy, self.context, self.branches, self.going, self.sampling, self.keys)
        self.add([[image] for image in images])

    def look(self) -> None:
        """Give what was just drawn back, as a look shows it; the next round begins."""
        drawn = [self._last(row) for row in self.live]
        doing.say(f"looking at {counted(len(drawn), 'picture')}")
        trajectories = [Trajectory(*self.rows[row], tuple(self.made[row])) for row in self.live]
        pictures, seen = shown_to(self.policy, trajectories, self.episode.look)
        for row, image, picture in zip(self.live, drawn, pictures, strict=True):
            self.made[row][-1] = replace(image, pixels=picture)
        self.add(seen)
        self.context = self.policy.extend(self.context, seen)
        if self.branches is not None:
            self.branches = replace(self.branches, text=self.policy.extend(self.branches.text, seen))
        self.keys = self.keys.at(self.keys.turn + 1)

    def tell(self) -> None:
        """Put given words where a thinking would be."""
        words = [(Text(self.policy.encode_text(self.episode.told)),)] * len(self.live)
        self.add(words)
        self.context = self.policy.extend(self.context, words)

    def _last(self, row: int) -> Image:
        image = self.made[row][-1]
        assert isinstance(image, Image)
        return image
