"""Cut, think, draw, decode: prompts to trajectories with pictures and words, for training, evaluation and drawing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from unigrpo.plurals import counted
from unigrpo.policy import Policy
from unigrpo.ranges import ConfigError
from unigrpo.rollout.engine import RandomKeys, Sampling, rollout
from unigrpo.rollout.episode import Episode, bare
from unigrpo.rollout.looking import decoded
from unigrpo.trajectory import Prompt, Text, Trajectory


@dataclass(frozen=True)
class Drawn:
    """Trajectories that were drawn together, groups adjacent, and what a reward, a judge or a person sees of them.

    pictures: their last drawings, uint8 [B, 3, H, W] on the CPU, as a PNG holds them. thoughts: of every trajectory
    what it thought in each round, in words, None without; the last round may have no drawing.
    """

    trajectories: list[Trajectory]
    pictures: Tensor
    thoughts: list[list[str | None]]

    @property
    def thinking(self) -> list[str | None]:
        """What was thought before the last drawings."""
        rows = zip(self.trajectories, self.thoughts, strict=True)
        return [thoughts[len(trajectory.drawings) - 1] for trajectory, thoughts in rows]

    @property
    def every(self) -> Every:
        """All drawings."""
        owners = [row for row, t in enumerate(self.trajectories) for _ in t.drawings]
        thinking = [
            thought
            for t, thoughts in zip(self.trajectories, self.thoughts, strict=True)
            for thought in thoughts[: len(t.drawings)]
        ]
        if len(owners) == len(self.trajectories):
            return Every(self.pictures, thinking, owners)
        shown = [
            picture
            for t, last in zip(self.trajectories, self.pictures, strict=True)
            for picture in (*(present(image.pixels) for image in t.drawings[:-1]), last)
        ]
        return Every(torch.stack(shown), thinking, owners)


@dataclass(frozen=True)
class Every:
    """All N drawings of some trajectories, trajectory by trajectory, round by round.

    pictures: uint8 [N, 3, H, W]; thinking: that of a picture's own round; owners: the row of its trajectory.
    """

    pictures: Tensor
    thinking: list[str | None]
    owners: list[int]


def sample(
    policy: Policy,
    episode: Episode,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    keys: RandomKeys,
    *,
    samples: int,
    batch: int | None,
    first_sample: int = 0,
    timed: Callable[[str], AbstractContextManager[None]] = nullcontext,
) -> Iterator[Drawn]:
    """Draw ``samples`` pictures of every prompt, at most ``batch`` at a time (None: all), groups in order.

    ``first_sample`` numbers the samples. ``timed`` is entered with "rollout" and "decode" around the two.
    """
    each = sampling.images_per_thinking if episode.think else 1
    for some, first, count in portions(prompts, samples, batch, each):
        with timed("rollout"):
            made = rollout(
                policy, episode, some, sampling, group_size=count, keys=keys, first_sample=first_sample + first
            )
        with timed("decode"):
            pictures = decode_pictures(policy, made)
        yield Drawn(made, pictures, [[words_of(policy, one.thinking) for one in t.rounds] for t in made])


def check_others(episode: Episode, prompts: int, samples: int, batch: int | None, raise_what: str) -> None:
    """ConfigError where a look at another prompt's picture would find none among those that are drawn together.

    ``raise_what``: the key or option that says how many those are.
    """
    if episode.look != "other" or episode.rounds == 1:
        return
    stand_ins = [Prompt(position, "") for position in range(prompts)]
    if any(len(some) < 2 for some, _, _ in portions(stand_ins, samples, batch)):
        raise ConfigError(
            f"look: other shows the picture of another prompt, and of {counted(prompts, 'prompt')} with "
            f"{counted(samples, 'sample')} each, "
            f"{'all' if batch is None else batch} together, some would be drawn with none: change {raise_what}"
        )


def check_words(policy: Policy, key: str, text: str, most: int | None = None) -> None:
    """ConfigError where a model does not know the words of a key, or could never say them.

    ``most``: of words that end a sample, how many tokens a thinking may have.
    """
    try:
        policy.encode_text(text)
    except ValueError as error:
        raise ConfigError(f"{key} = {text!r}: {error}") from error
    if most is not None and (length := len(policy.encode_text(bare(text)))) > most:
        raise ConfigError(
            f"{key} = {text!r} has {length} tokens, and a thinking is cut after {most} (max_think_tokens): nobody "
            "could say it; name fewer words, or allow more tokens"
        )


def portions(
    prompts: Sequence[Prompt], samples: int, batch: int | None, together: int = 1
) -> Iterator[tuple[Sequence[Prompt], int, int]]:
    """Cut prompts x samples into parts of at most ``batch``: (prompts, first sample, samples of each), in order.

    Whole groups together where they fit; a group that does not fit is cut by itself, but not the ``together``
    neighbours that share a thinking.
    """
    whole = len(prompts) if batch is None else max(1, batch // samples)
    most = part_of(samples, batch, together)
    for start in range(0, len(prompts), max(1, whole)):
        for first in range(0, samples, most):
            yield prompts[start : start + whole], first, min(most, samples - first)


def part_of(samples: int, batch: int | None, together: int = 1) -> int:
    """How many of a prompt's samples are drawn together, of at most ``batch``: all, or whole thoughts of them."""
    return samples if batch is None or batch >= samples else max(together, batch // together * together)


def thinking_of(policy: Policy, trajectory: Trajectory) -> str | None:
    """What the model wrote before its last drawing, in words (or was told); None without thinking."""
    rounds = [one for one in trajectory.rounds if one.drawing is not None] or list(trajectory.rounds)
    return words_of(policy, rounds[-1].thinking) if rounds else None


def words_of(policy: Policy, thinking: Text | None) -> str | None:
    """A thinking in words."""
    return None if thinking is None else policy.decode_text(thinking.ids)


def decode_pictures(policy: Policy, trajectories: Sequence[Trajectory]) -> Tensor:
    """The last drawing of every trajectory, uint8 [B, 3, H, W] on the CPU, as :func:`looking.decoded` gives it.

    Where a look has decoded it already, it is that.
    """
    last = [trajectory.drawings[-1] for trajectory in trajectories]
    new = [row for row, image in enumerate(last) if image.pixels is None]
    some = decoded(policy, [trajectories[row] for row in new], [last[row].latents for row in new]) if new else None
    if some is not None and len(new) == len(last):
        return some
    fresh = dict(zip(new, some if some is not None else (), strict=True))
    return torch.stack([fresh[row] if row in fresh else present(image.pixels) for row, image in enumerate(last)])


def present(pixels: Tensor | None) -> Tensor:
    """The pixels of a drawing that was looked at."""
    assert pixels is not None
    return pixels
