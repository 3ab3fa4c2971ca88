"""Methods as data: which terms a run minimises, and with what weights.

A method is a frozen dataclass whose fields are its terms. The trainer asks every method the same questions (what to
replay, what the reference must say, what the loss is) and never which method it is. All losses are per trajectory, so
that J = mean over the trajectories of a minibatch is a sum over micro-batches divided by their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from unigrpo.objectives.pictures import Answers, Draw, collect, owner_means, owner_sums, present
from unigrpo.objectives.settings import (
    AdvantageSettings,
    DiffusionNFTSettings,
    FlowSettings,
    FPOSettings,
    ImageTerm,
    RegulariserSettings,
    TextSettings,
)
from unigrpo.objectives.supervised import Times, flow_matching_mse, noised, sample_times, token_cross_entropy
from unigrpo.objectives.terms import Statistics, Term, check_rows
from unigrpo.trajectory import Image, Text, Trajectory


@dataclass(frozen=True)
class Losses:
    """What to minimise, per trajectory [B] and weighted: text_loss + image_loss; None: the method has no such part.

    They stay apart, because without gradients through the context the two are sent backward into different parameters
    (design: Gradients of the joint objective).
    """

    text_loss: Tensor | None
    image_loss: Tensor | None
    stats: Statistics

    @property
    def total(self) -> Tensor:
        """text_loss + image_loss, [B]."""
        parts = [loss for loss in (self.text_loss, self.image_loss) if loss is not None]
        return torch.stack(parts).sum(0)


@dataclass(frozen=True)
class TargetsPerRow:
    """What supervised losses are divided by: target tokens of texts, and latent tokens whose velocities are learned
    (of all noisy copies), per trajectory of a whole minibatch, however it is cut into micro-batches."""

    text: float
    image: float


def targets_per_row(trajectories: Sequence[Trajectory], draws: Sequence[Sequence[Draw]]) -> TargetsPerRow:
    """Count the targets of a minibatch."""
    text = sum(s.num_actions for t in trajectories for s in t.segments if isinstance(s, Text) and s.target)
    image = sum(latents_of(draw) for row in draws for draw in row)
    return TargetsPerRow(text / len(trajectories), image / len(trajectories))


def latents_of(draw: Draw) -> int:
    """Latent tokens of a picture, over all its noisy copies."""
    return draw.x.shape[0] * draw.x.shape[1]


class Method(Protocol):
    """What the trainer asks of every method."""

    @property
    def image_grad_through_context(self) -> bool:
        """Whether the image loss may change the reasoning parameters through the text it is conditioned on."""
        ...

    @property
    def needs_reference_velocity(self) -> bool:
        """Whether trajectories must carry ``reference.velocity``."""
        ...

    @property
    def needs_reference_log_probs(self) -> bool:
        """Whether trajectories must carry ``reference.log_probs``."""
        ...

    @property
    def needs_behaviour_velocity(self) -> bool:
        """Whether trajectories must carry ``behaviour``."""
        ...

    @property
    def needs_old_values(self) -> bool:
        """Whether the loss compares with log-probs or transition means of the rollout."""
        ...

    @property
    def uses_advantages(self) -> bool:
        """Whether the loss has no gradient where all advantages are 0 (but for its regulariser)."""
        ...

    def draws(self, trajectory: Trajectory, generator: torch.Generator) -> tuple[Draw, ...]:
        """Return the velocities to ask the replay for; drawn once per trajectory, then kept over epochs."""
        ...

    def losses(
        self,
        trajectories: Sequence[Trajectory],
        answers: Sequence[Answers],
        draws: Sequence[Sequence[Draw]],
        *,
        per_row: TargetsPerRow | None = None,
    ) -> Losses:
        """Return the losses of a micro-batch; ``per_row`` is supervised training's (see there)."""
        ...


@dataclass(frozen=True)
class PolicyGradient:
    """A text term, an image term, or both; a term that is None is not trained (paper eq. 7, spec e.1, f).

    loss_i = -J_Text,i + lambda_flow (image_i + regulariser.weight * regulariser_i)
    UniGRPO, TextGRPO, FlowGRPO, FPO, UniFPO, ReFL and DiffusionNFT differ in their terms alone. With several pictures
    in a trajectory, image_i is their mean. ``image_grad_through_context``: the paper is silent (spec e.4); False keeps
    the image loss out of the reasoning parameters.
    """

    text: TextSettings | None = field(default_factory=TextSettings)
    image: ImageTerm | None = field(default_factory=FlowSettings)
    regulariser: RegulariserSettings = field(default_factory=RegulariserSettings)
    advantage: AdvantageSettings = field(default_factory=AdvantageSettings)
    lambda_flow: float = 1.0
    image_grad_through_context: bool = False

    def __post_init__(self) -> None:
        """Refuse a method without terms, and a latent KL without transitions."""
        if self.text is None and self.image is None:
            raise ValueError("a method needs a text term, an image term, or both")
        held = self.regulariser.kind == "latent_kl" and self.regulariser.weight > 0.0
        if held and self.image is not None and not self.image.needs_sde:
            raise ValueError("the latent KL compares SDE steps, and this image term has none: use velocity_mse")

    @property
    def needs_reference_velocity(self) -> bool:
        """True if there is an image term whose regulariser has a weight."""
        return self.image is not None and self.regulariser.weight > 0.0

    @property
    def needs_reference_log_probs(self) -> bool:
        """True if there is a text term whose KL has a weight."""
        return self.text is not None and self.text.kl_weight > 0.0

    @property
    def needs_behaviour_velocity(self) -> bool:
        """True if the image term compares with the velocities of before."""
        return self.image is not None and self.image.needs_behaviour_velocity

    @property
    def needs_old_values(self) -> bool:
        """True if tokens or SDE steps are scored again."""
        return self.text is not None or (self.image is not None and self.image.needs_sde)

    @property
    def uses_advantages(self) -> bool:
        """True but for ReFL, which follows the reward's own gradient."""
        return self.text is not None or (self.image is not None and self.image.uses_advantages)

    def draws(self, trajectory: Trajectory, generator: torch.Generator) -> tuple[Draw, ...]:
        """Return what the image term wants of every picture."""
        if self.image is None:
            return ()
        images = [(i, s) for i, s in enumerate(trajectory.segments) if isinstance(s, Image)]
        wanted = (self.image.draw(i, image, generator) for i, image in images)
        return tuple(draw for draw in wanted if draw is not None)

    def losses(
        self,
        trajectories: Sequence[Trajectory],
        answers: Sequence[Answers],
        draws: Sequence[Sequence[Draw]],
        *,
        per_row: TargetsPerRow | None = None,
    ) -> Losses:
        """Return text and image loss of B trajectories; ``per_row`` has no meaning here."""
        check_rows(trajectories=trajectories, answers=answers, draws=draws)
        advantages = torch.tensor(present([t.advantage for t in trajectories], "an advantage"), dtype=torch.float64)
        text = self.text.term(trajectories, answers, advantages) if self.text else None
        image = self._image_term(self.image, trajectories, answers, draws, advantages) if self.image else None
        stats = {**(text.stats if text else {}), **(image.stats if image else {})}
        return Losses(text.loss if text else None, self.lambda_flow * image.loss if image else None, stats)

    def _image_term(
        self,
        chosen: ImageTerm,
        trajectories: Sequence[Trajectory],
        answers: Sequence[Answers],
        draws: Sequence[Sequence[Draw]],
        advantages: Tensor,
    ) -> Term:
        pictures = collect(trajectories, answers, draws)
        image = chosen.term(pictures, advantages[pictures.owners])
        loss, stats = image.loss, image.stats
        if self.needs_reference_velocity:
            regulariser = self.regulariser.term(pictures)
            loss = loss + self.regulariser.weight * regulariser.loss
            stats = {**stats, **regulariser.stats}
        return Term(owner_means(loss, pictures.owners, len(trajectories)), stats)


@dataclass(frozen=True)
class Supervised:
    """Fine-tuning on given trajectories: cross-entropy on target texts, flow matching on target images (spec f.5).

    loss = ce_weight * (mean over all target tokens) + mse_weight * (mean of the velocity's squared error)
    ``mse_over``: that mean runs over each trajectory's pictures, then over trajectories ("pictures"), or over all
    latent tokens of the minibatch, as BAGEL trains ("tokens"); they differ where pictures have several sizes, or not
    every trajectory has one.
    ``times_per_image`` velocities per picture and pass, at stratified times (``supervised.sample_times``) shifted by
    ``shift``.
    """

    ce_weight: float = 1.0
    mse_weight: float = 1.0
    shift: float = 1.0
    times_per_image: int = 1
    times: Times = "logit_normal"
    mse_over: Literal["pictures", "tokens"] = "pictures"
    image_grad_through_context: bool = True
    advantage: AdvantageSettings | None = field(default=None, init=False)
    needs_reference_velocity: bool = field(default=False, init=False)
    needs_reference_log_probs: bool = field(default=False, init=False)
    needs_behaviour_velocity: bool = field(default=False, init=False)
    needs_old_values: bool = field(default=False, init=False)
    uses_advantages: bool = field(default=False, init=False)

    def draws(self, trajectory: Trajectory, generator: torch.Generator) -> tuple[Draw, ...]:
        """Return noised target images at fresh times, with the velocities that would undo the noise."""
        if self.mse_weight == 0.0:
            return ()
        drawn: list[Draw] = []
        for i, segment in enumerate(trajectory.segments):
            if isinstance(segment, Image) and segment.target:
                t = sample_times(self.times_per_image, self.shift, generator=generator, times=self.times)
                x, target = noised(segment.latents, t, generator=generator)
                drawn.append(Draw(i, x, t, target))
        return tuple(drawn)

    def losses(
        self,
        trajectories: Sequence[Trajectory],
        answers: Sequence[Answers],
        draws: Sequence[Sequence[Draw]],
        *,
        per_row: TargetsPerRow | None = None,
    ) -> Losses:
        """Return both losses of B trajectories; ``per_row`` is the minibatch's, None where these are all of it."""
        check_rows(trajectories=trajectories, answers=answers, draws=draws)
        per_row = targets_per_row(trajectories, draws) if per_row is None else per_row
        text_loss = image_loss = None
        stats: Statistics = {}
        if per_row.text == 0.0 and self.mse_weight > 0.0:  # a minibatch of pictures alone: nothing to say of words
            stats["sft/cross_entropy"] = torch.full((len(trajectories),), float("nan"), dtype=torch.float64)
        elif self.ce_weight > 0.0:
            text = token_cross_entropy([a.log_probs for a in answers], tokens_per_row=per_row.text)
            text_loss, stats = self.ce_weight * text.loss, {**stats, **text.stats}
        velocities = [v for a in answers for v in a.velocities]
        if self.mse_weight > 0.0 and velocities:
            targets = present([d.target for row in draws for d in row], "a target velocity")
            image = flow_matching_mse(velocities, targets)
            owners = [i for i, row in enumerate(draws) for _ in row]
            if self.mse_over == "tokens":
                weights = [latents_of(draw) / per_row.image for row in draws for draw in row]
                rows = owner_sums(image.loss * image.loss.new_tensor(weights), owners, len(trajectories))
            else:
                rows = owner_means(image.loss, owners, len(trajectories))
            image_loss = self.mse_weight * rows
            stats = {**stats, **image.stats}
        return Losses(text_loss, image_loss, stats)


METHODS: dict[str, PolicyGradient | Supervised] = {
    "unigrpo": PolicyGradient(),
    "text_grpo": PolicyGradient(image=None),
    "flow_grpo": PolicyGradient(text=None),
    "fpo": PolicyGradient(text=None, image=FPOSettings()),
    "unifpo": PolicyGradient(image=FPOSettings()),
    "diffusion_nft": PolicyGradient(text=None, image=DiffusionNFTSettings()),
    "supervised": Supervised(),
}
"""The methods by name, with their default terms; ReFL is not here, because it needs a decoder and a reward."""
