"""What crosses rooms: prompts, segments and trajectories (no I/O, no model).

A trajectory is a tuple of segments, and the context of segment *i* is ``segments[:i]``. A segment is *sampled* when
it carries behaviour data (token log-probs, or a :class:`FlowPath`) and *given* otherwise. Single-round generation,
multi-round generation, editing (a given image first) and supervised data (all given, with targets) are the same type.
Padding and packing exist only inside a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any, Literal, TypeGuard

from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """One prompt of a data stream.

    ``position`` is its index in the stream; it keys the random draws (docs/math.md#seeds), not the text.
    ``metadata`` is what a reward needs to judge the picture (for example the requirements of the prompt).
    ``images`` are pictures shown with the words, uint8 [3, H, W]: where the text says ``<image>``, else before it.
    """

    position: int
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    images: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Text:
    """A text turn: ``bos ids eos`` in the model's context.

    ``ids`` is int64 [n], without bos and eos. ``ended`` tells whether eos was sampled (given text: always True); where
    the cap cut the sampling, eos is still fed to the model, as given context, but it is not an action.
    ``log_probs`` is fp32 [n + ended], the behaviour log-probs of the actions (ids, then eos if ended); None: given.
    ``target`` marks a given text that supervised training learns (all of ids and eos). ``advantage``: how much better
    this sampled text was than the others of its group (docs/math.md#advantages); None: not known yet, or given.
    """

    ids: Tensor
    ended: bool = True
    log_probs: Tensor | None = None
    target: bool = False
    advantage: float | None = None

    @property
    def scored(self) -> bool:
        """Whether a replay returns log-probs for this text."""
        return self.log_probs is not None or self.target

    @property
    def num_actions(self) -> int:
        """Number of sampled tokens: the ids, and eos when it was sampled."""
        return self.ids.shape[0] + int(self.ended)


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: scales and renormalisation; a text scale <= 1 means none.

    Active where interval[0] < t <= interval[1] (``flow.guided_steps``).
    Source: docs/bagel-architecture.md#guidance.
    """

    text_scale: float = 1.0
    image_scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    renorm: Literal["global", "channel", "text_channel"] = "global"
    renorm_min: float = 0.0

    @property
    def on(self) -> bool:
        """Whether any step may be guided."""
        return self.text_scale > 1.0


NO_GUIDANCE = Guidance()


@dataclass(frozen=True)
class FlowPath:
    """The K stochastic (SDE) steps of one denoising path, as the sampler saw them; everything fp32 but the times.

    steps: indices k into the timestep grid. t, t_next: fp64 [K], the times of x and of x_next (t > t_next).
    t_second: the second point of the full grid, which replaces t in sigma where t == 1 (docs/math.md#steps).
    x, x_next, mean: [K, n, d]; std, log_prob: [K]. noise_level, kind: what the transition was drawn with. guidance: how
    the velocities were mixed at those steps that are ``guided``; a replay mixes those of now in the same way.
    """

    steps: tuple[int, ...]
    t: Tensor
    t_next: Tensor
    t_second: float
    x: Tensor
    x_next: Tensor
    mean: Tensor
    std: Tensor
    log_prob: Tensor
    noise_level: float
    kind: str = "flow"
    guidance: Guidance = NO_GUIDANCE
    guided: tuple[bool, ...] = ()


@dataclass(frozen=True)
class LatentSnapshot:
    """One state on the way to a picture that the sampler kept: x [n, d] before step ``step`` of the grid, at time t."""

    step: int
    t: float
    x: Tensor


@dataclass(frozen=True)
class Image:
    """A picture: ``latents`` [n, d] at t = 0 (packed patches, row-major) of a token grid (rows, columns).

    ``drawn`` tells whether the policy drew it (else it is given). ``path`` is the behaviour data of a picture that was
    sampled with SDE steps, ``snapshot`` a state on its way that was kept for ReFL. ``target`` marks a given image whose
    velocities supervised training learns. ``advantage``: as of a :class:`Text`. ``pixels``: the picture itself, uint8
    [3, H, W], where a drawn one was decoded to be looked at.
    """

    latents: Tensor
    grid: tuple[int, int]
    path: FlowPath | None = None
    target: bool = False
    drawn: bool = False
    snapshot: LatentSnapshot | None = None
    advantage: float | None = None
    pixels: Tensor | None = None


@dataclass(frozen=True)
class View:
    """A given picture as a vision tower sees it: ``patches`` [n, 3 p p] of a grid (rows, columns), pixels in [-1, 1].

    A picture that is to be worked on comes as an :class:`Image` (what it is made of) and a View (what is on it); one
    that is only talked about comes as a View alone.
    """

    patches: Tensor
    grid: tuple[int, int]


Segment = Text | Image | View


def made_by_policy(segment: Segment) -> bool:
    """Whether the policy wrote or drew this segment."""
    if isinstance(segment, Image):
        return segment.drawn or segment.path is not None
    return isinstance(segment, Text) and segment.log_probs is not None


def is_drawing(segment: Segment) -> TypeGuard[Image]:
    """Whether a segment is a picture that the policy drew."""
    return isinstance(segment, Image) and made_by_policy(segment)


def in_context(segment: Segment) -> bool:
    """Whether what comes later sees a segment: all but a picture that the policy drew.

    Of a drawing it sees what a look at it has given (a picture of 8 bits, encoded again; docs/math.md#rounds).
    """
    return not is_drawing(segment)


def is_shown(segment: Segment) -> bool:
    """Whether a segment is a given picture, as latents or as seen."""
    return isinstance(segment, View) or (isinstance(segment, Image) and not made_by_policy(segment))


def without_prompt(given: Sequence[Segment]) -> tuple[Segment, ...]:
    """The text-unconditional context of given segments: all but the last text (docs/bagel-architecture.md#guidance).

    Pictures after the last text stay, so that a prompt that ends in a picture is guided by its words too; the original
    takes its snapshot after them and would not be guided at all.
    """
    last = max((i for i, segment in enumerate(given) if isinstance(segment, Text)), default=len(given))
    return (*given[:last], *given[last + 1 :])


@dataclass(frozen=True)
class Reference:
    """Frozen quantities of the start checkpoint for one trajectory, computed once per iteration.

    velocity: [K, n, d], v_ref on the window steps with reference weights for the context too
    (docs/math.md#regularisers); log_probs: [actions] of the sampled texts. None where the method does not ask for it.
    """

    velocity: Tensor | None = None
    log_probs: Tensor | None = None


@dataclass(frozen=True)
class Behaviour:
    """What the weights before the update say at the states x [K, n, d] that a method drew: velocity [K, n, d].

    Of all draws of one trajectory, in order; computed once per iteration. The states are kept beside the answers,
    because a ratio of answers at different states would mean nothing.
    """

    x: Tensor
    velocity: Tensor


@dataclass(frozen=True)
class Score:
    """What one drawing was worth: as ``reward``, ``values`` and ``verdict`` of a :class:`Trajectory`."""

    reward: float | None
    values: Mapping[str, float] = field(default_factory=dict)
    verdict: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Round:
    """One round: the thinking before a drawing (None: there was none), and the drawing (None: it said stop)."""

    thinking: Text | None
    drawing: Image | None


@dataclass(frozen=True)
class Trajectory:
    """A prompt, what the model made of it, and (once scored) what it was worth.

    ``sample`` is the index inside the prompt's group; trajectories with equal ``prompt.position`` form a group.
    ``thought`` is the index of its thinking in the group, which several trajectories may share (None: its own).
    ``reward`` is the weighted sum of the training rewards, ``values`` what each of them said by its name (whatever is
    trained on), ``verdict`` named parts of them for people and logs, all of its last drawing; ``scores`` the same of
    every drawing. ``failure`` says why it could not be scored. What is trained is decided segment by segment
    (``Text.advantage``, ``Image.advantage``).
    """

    prompt: Prompt
    sample: int
    segments: tuple[Segment, ...]
    reward: float | None = None
    verdict: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    failure: str | None = None
    thought: int | None = None
    reference: Reference | None = None
    behaviour: Behaviour | None = None
    scores: tuple[Score, ...] = ()

    @property
    def thinking_key(self) -> tuple[int, int]:
        """What tells its first thinking from all others of an iteration: (prompt position, index in the group)."""
        return self.prompt.position, self.sample if self.thought is None else self.thought

    @property
    def given(self) -> tuple[Segment, ...]:
        """The segments before the first that the policy made."""
        return tuple(takewhile(lambda segment: not made_by_policy(segment), self.segments))

    def with_advantages(self, thinking: float | None, drawing: float | None) -> Trajectory:
        """The same with an advantage for every text that the policy wrote, and one for every picture that it drew."""
        return replace(self, segments=tuple(_valued(segment, thinking, drawing) for segment in self.segments))

    def with_each_advantage(self, advantages: Sequence[float | None]) -> Trajectory:
        """The same with an advantage for every segment that the policy made, in order; ValueError for another count."""
        values = iter(advantages)
        if len(advantages) != sum(made_by_policy(segment) for segment in self.segments):
            raise ValueError(f"{len(advantages)} advantages do not fit the segments that the policy made")
        each = [next(values) if made_by_policy(segment) else None for segment in self.segments]
        return replace(self, segments=tuple(_valued(s, a, a) for s, a in zip(self.segments, each, strict=True)))

    @property
    def advantages(self) -> tuple[float | None, ...]:
        """Those of all segments that the policy made, in order."""
        return tuple(s.advantage for s in self.segments if isinstance(s, Text | Image) and made_by_policy(s))

    @property
    def advantage(self) -> float | None:
        """That of the last segment that the policy made, a picture's in most cases; None before it is known."""
        made = [s for s in self.segments if isinstance(s, Text | Image) and made_by_policy(s)]
        return made[-1].advantage if made else None

    @property
    def sampled_texts(self) -> tuple[Text, ...]:
        """The texts that the policy wrote itself, in order."""
        return tuple(s for s in self.segments if isinstance(s, Text) and s.log_probs is not None)

    @property
    def images(self) -> tuple[Image, ...]:
        """All pictures, in order."""
        return tuple(s for s in self.segments if isinstance(s, Image))

    @property
    def drawings(self) -> tuple[Image, ...]:
        """The pictures that the policy drew, one a round."""
        return tuple(s for s in self.segments if is_drawing(s))

    @property
    def looked_at(self) -> tuple[Tensor, ...]:
        """The drawings before the last, uint8 [3, H, W], as far as their pixels are here."""
        return tuple(image.pixels for image in self.drawings[:-1] if image.pixels is not None)

    @property
    def rounds(self) -> tuple[Round, ...]:
        """What it thought and drew, round by round; the last has no drawing where a thinking ended the sample."""
        found, thinking = [], None
        for segment in self.segments[len(self.given) :]:
            if isinstance(segment, Text):
                thinking = segment
            elif is_drawing(segment):
                found, thinking = [*found, Round(thinking, segment)], None
        return (*found, Round(thinking, None)) if thinking is not None else tuple(found)


def _valued(segment: Segment, thinking: float | None, drawing: float | None) -> Segment:
    if not made_by_policy(segment) or isinstance(segment, View):
        return segment
    return replace(segment, advantage=thinking if isinstance(segment, Text) else drawing)
