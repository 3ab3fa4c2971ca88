"""The named methods: one frozen dataclass each, whose fields are the keys of a recipe's ``method`` (paper section 3).

Defaults are those of the paper's Table 3; where the paper is silent, the docstring says so. The line below a field is
what ``train --keys``, ``recipe`` and docs/recipe-keys.md say of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch

from unigrpo.objectives.advantage import Advantage
from unigrpo.objectives.diffusion_nft import DiffusionNFT
from unigrpo.objectives.flow_grpo import FlowGRPO
from unigrpo.objectives.fpo import FPO
from unigrpo.objectives.image_terms import ImageBatch, ImageTerm, LatentReward, collect, owner_means
from unigrpo.objectives.method import Losses, Method, TargetsPerRow
from unigrpo.objectives.refl import ReFL
from unigrpo.objectives.regularisers import Regulariser
from unigrpo.objectives.rounds import ratios_by_round
from unigrpo.objectives.supervised import Supervised
from unigrpo.objectives.terms import Term, check_rows
from unigrpo.objectives.text_grpo import TextGRPO
from unigrpo.policy import Replayed, VelocityQuery
from unigrpo.ranges import ConfigError, Name, NonNegative
from unigrpo.trajectory import Image, Trajectory

_T = TypeVar("_T")


class PolicyGradient(Method):
    """A text term, an image term, or both, found among the fields; a term that is not there is not trained.

    loss_i = -J_Text,i + lambda_flow (image_i + regulariser.weight * regulariser_i)   (paper eq. 7; docs/math.md#joint)
    The methods of RL differ in their terms alone. With several pictures in a trajectory, image_i is their mean.
    """

    regulariser = Regulariser("none")

    def __post_init__(self) -> None:
        """Refuse a method without terms, and a latent KL without transitions."""
        if self.text_term is None and self.image_term is None:
            raise ConfigError("method: it needs a text term, an image term, or both")
        if self.image_term is not None and self.regulariser.needs_sde and not self.needs_sde:
            raise ConfigError(
                f"method.regulariser.kind = latent_kl: it compares SDE steps, and {self.name} draws by the ODE; "
                "set it to velocity_mse or none"
            )

    @property
    def text_term(self) -> TextGRPO | None:
        """What trains the thinking."""
        return self._term(TextGRPO)

    @property
    def image_term(self) -> ImageTerm | None:
        """What trains the drawing."""
        return self._term(ImageTerm)

    def _term(self, kind: type[_T]) -> _T | None:
        return next((value for value in vars(self).values() if isinstance(value, kind)), None)

    # What it needs, which its terms decide

    @property
    def trains_thinking(self) -> bool:
        """True if there is a text term."""
        return self.text_term is not None

    @property
    def needs_thinking(self) -> bool:
        """True if there is a text term."""
        return self.text_term is not None

    @property
    def trains_drawing(self) -> bool:
        """True if there is an image term."""
        return self.image_term is not None

    @property
    def needs_sde(self) -> bool:
        """True if the image term is about SDE steps."""
        return self.image_term is not None and self.image_term.needs_sde

    @property
    def of_guided_pictures(self) -> bool:
        """True unless the image term cannot be."""
        return self.image_term is None or self.image_term.of_guided_pictures

    @property
    def needs_reference_velocity(self) -> bool:
        """True if there is an image term whose regulariser has a weight."""
        return self.image_term is not None and self.regulariser.on

    @property
    def needs_reference_log_probs(self) -> bool:
        """True if there is a text term whose KL has a weight."""
        return self.text_term is not None and self.text_term.needs_reference

    @property
    def needs_behaviour_velocity(self) -> bool:
        """True if the image term compares with the velocities of before."""
        return self.image_term is not None and self.image_term.needs_behaviour_velocity

    @property
    def needs_reward_gradient(self) -> bool:
        """True if the image term follows it."""
        return self.image_term is not None and self.image_term.needs_reward_gradient

    @property
    def uses_advantages(self) -> bool:
        """True unless the reward's own gradient is all that is followed."""
        return self.text_term is not None or not self.needs_reward_gradient

    def clip_range_for(self, num_elements: int) -> float | None:
        """The image term's."""
        return None if self.image_term is None else self.image_term.clip_range_for(num_elements)

    def kept_steps(self, num_points: int) -> tuple[int, int] | None:
        """The image term's."""
        return None if self.image_term is None else self.image_term.kept_steps(num_points)

    def copies(self, window_size: int) -> int:
        """The image term's."""
        return 0 if self.image_term is None else self.image_term.copies(window_size)

    # What it does

    def queries(self, trajectory: Trajectory, generator: torch.Generator, *, shift: float) -> tuple[VelocityQuery, ...]:
        """Return what the image term wants of every picture."""
        term = self.image_term
        if term is None:
            return ()
        images = [(i, s) for i, s in enumerate(trajectory.segments) if isinstance(s, Image)]
        wanted = (term.query(i, image, generator, shift=shift) for i, image in images)
        return tuple(query for query in wanted if query is not None)

    def losses(
        self,
        trajectories: Sequence[Trajectory],
        answers: Sequence[Replayed],
        queries: Sequence[Sequence[VelocityQuery]],
        *,
        per_row: TargetsPerRow | None = None,
        latent_reward: LatentReward | None = None,
    ) -> Losses:
        """Return text and image loss of B trajectories; ``per_row`` has no meaning here."""
        check_rows(trajectories=trajectories, answers=answers, queries=queries)
        text_term, image_term = self.text_term, self.image_term
        text = text_term.loss(trajectories, answers) if text_term else None
        image = None
        if image_term is not None:
            image = self._image_loss(image_term, collect(trajectories, answers, queries, latent_reward))
        stats = {**(text.stats if text else {}), **(image.stats if image else {})}
        if any(len(t.rounds) > 1 for t in trajectories):
            stats |= ratios_by_round(trajectories, answers, queries, stats.get("flow/log_ratio"))
        return Losses(text.loss if text else None, self.lambda_flow * image.loss if image else None, stats)

    def _image_loss(self, term: ImageTerm, batch: ImageBatch) -> Term:
        image = term.loss(batch, batch.advantages)
        loss, stats = image.loss, image.stats
        if self.needs_reference_velocity:
            regulariser = self.regulariser.loss(batch)
            loss = loss + self.regulariser.weight * regulariser.loss
            stats = {**stats, **regulariser.stats}
        return Term(owner_means(loss, batch.owners, len(batch.trajectories)), stats)


@dataclass(frozen=True)
class UniGRPO(PolicyGradient):
    """J = J_Text + lambda J_Flow (paper eq. 7)."""

    name: Literal["unigrpo"] = "unigrpo"
    lambda_flow: NonNegative = 1.0
    """Weight of the image term beside the text term (Table 3: 1)."""
    image_grad_through_context: bool = False
    """Whether the loss of pictures also trains the weights that read words, and the other way round (paper silent)."""
    text: TextGRPO = field(default_factory=TextGRPO)
    flow: FlowGRPO = field(default_factory=FlowGRPO)
    regulariser: Regulariser = field(default_factory=Regulariser)
    advantage: Advantage = field(default_factory=Advantage)


@dataclass(frozen=True)
class OnlyText(PolicyGradient):
    """J_Text alone: the picture is drawn by the ODE, and the denoising parameters stay as they are."""

    name: Literal["text_grpo"] = "text_grpo"
    text: TextGRPO = field(default_factory=TextGRPO)
    advantage: Advantage = field(default_factory=Advantage)


@dataclass(frozen=True)
class OnlyFlow(PolicyGradient):
    """J_Flow alone: the thinking (if any) is sampled, and the reasoning parameters stay as they are."""

    name: Literal["flow_grpo"] = "flow_grpo"
    flow: FlowGRPO = field(default_factory=FlowGRPO)
    regulariser: Regulariser = field(default_factory=Regulariser)
    advantage: Advantage = field(default_factory=Advantage)


@dataclass(frozen=True)
class OnlyFPO(PolicyGradient):
    """The FPO image term alone: the picture is drawn by the ODE, and the reasoning parameters stay as they are."""

    name: Literal["fpo"] = "fpo"
    fpo: FPO = field(default_factory=FPO)
    regulariser: Regulariser = field(default_factory=Regulariser)
    advantage: Advantage = field(default_factory=Advantage)


@dataclass(frozen=True)
class UniFPO(PolicyGradient):
    """Text GRPO and the FPO image term together (the paper reports that it collapses)."""

    name: Literal["unifpo"] = "unifpo"
    lambda_flow: NonNegative = 1.0
    """Weight of the image term beside the text term (Table 3: 1)."""
    image_grad_through_context: bool = False
    """Whether the loss of pictures also trains the weights that read words, and the other way round (paper silent)."""
    text: TextGRPO = field(default_factory=TextGRPO)
    fpo: FPO = field(default_factory=FPO)
    regulariser: Regulariser = field(default_factory=Regulariser)
    advantage: Advantage = field(default_factory=Advantage)


@dataclass(frozen=True)
class OnlyReFL(PolicyGradient):
    """The gradient of a differentiable reward through one late step and the decoder; the thinking is only sampled.

    advantage is for the logs alone. The rewards of reward.train must be differentiable.
    """

    name: Literal["refl"] = "refl"
    refl: ReFL = field(default_factory=ReFL)
    regulariser: Regulariser = field(default_factory=Regulariser)
    advantage: Advantage = field(default_factory=Advantage)


@dataclass(frozen=True)
class OnlyNFT(PolicyGradient):
    """DiffusionNFT on the picture alone (not in the paper's table)."""

    name: Literal["diffusion_nft"] = "diffusion_nft"
    nft: DiffusionNFT = field(default_factory=DiffusionNFT)
    regulariser: Regulariser = field(default_factory=Regulariser)
    advantage: Advantage = field(default_factory=Advantage)


@dataclass(frozen=True)
class WithOwnTerm(PolicyGradient):
    """An image term of one's own (``name``: path/file.py:Term or package.module:Term), alone or beside text GRPO.

    ``text: null`` (the default) leaves the reasoning parameters as they are.
    """

    name: Name
    lambda_flow: NonNegative = 1.0
    """Weight of the image term beside the text term (Table 3: 1)."""
    image_grad_through_context: bool = False
    """Whether the loss of pictures also trains the weights that read words, and the other way round (paper silent)."""
    text: TextGRPO | None = None
    """Text GRPO beside it, for example {clip_range: 0.2}; null: the thinking is only sampled."""
    image: ImageTerm | None = None
    """The settings of the term."""
    regulariser: Regulariser = field(default_factory=Regulariser)
    advantage: Advantage = field(default_factory=Advantage)


METHODS: dict[str, type[Method]] = {
    "unigrpo": UniGRPO,
    "text_grpo": OnlyText,
    "flow_grpo": OnlyFlow,
    "fpo": OnlyFPO,
    "unifpo": UniFPO,
    "refl": OnlyReFL,
    "diffusion_nft": OnlyNFT,
    "supervised": Supervised,
}
"""The methods by the names that recipes give them."""
