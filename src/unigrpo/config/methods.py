"""The methods of a recipe: one frozen dataclass each, whose fields are its terms (source: spec b, d, f).

Defaults are those of the paper's Table 3; where the paper is silent, the docstring says so. The line below a field is
what ``train --keys``, ``recipe`` and docs/recipe-keys.md say of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from unigrpo.config.ranges import Batch, NonNegative, Positive, Range, Shift
from unigrpo.config.sections import DemonstrationData, PromptData


@dataclass(frozen=True)
class TextTerm:
    """Text GRPO, Eq. 2 (the paper is silent on the clip): clip r to 1 +- clip_range, minus kl_weight k3."""

    clip_range: Positive = 0.2
    """A ratio is clipped to 1 +- this (paper silent)."""
    kl_weight: NonNegative = 0.0
    """Weight of the k3 estimate of the KL to the start checkpoint (Table 3: 0)."""


@dataclass(frozen=True)
class FlowTerm:
    """Flow GRPO, Eq. 4-6; clip_range auto = 5.12e-4 / sqrt(D), the paper's 1e-6 at 1024 x 1024 (spec b.6)."""

    clip_range: Positive | Literal["auto"] = "auto"
    """A ratio is clipped to 1 +- this; auto is 5.12e-4 / sqrt(D), Table 3's 1e-6 at 1024 x 1024."""
    ratio_norm: bool = True
    """Whether RatioNorm centres and scales the log-ratio of a step (Eq. 4-5)."""
    grad_reweight: Literal["none", "inv_dt", "inv_dt_norm"] = "none"
    """How steps are weighted in the gradient: by 1 / dt, or by that over its mean (the paper: none)."""


@dataclass(frozen=True)
class Regulariser:
    """What keeps the velocity near the start checkpoint on the window steps, Eq. 8 (mean over D, spec e.2)."""

    kind: Literal["velocity_mse", "latent_kl", "none"] = "velocity_mse"
    """Distance on the window steps: of the velocities, or of the SDE steps (latent_kl)."""
    weight: NonNegative = 1.5e-5
    """Its weight (Table 3: 1.5e-5)."""


@dataclass(frozen=True)
class Advantage:
    """A = clamp((R - mean) / (std + epsilon), -clip, clip) inside a group, Eq. 1 (paper silent on both; spec b.8)."""

    epsilon: NonNegative = 1e-4
    """Added to the group's standard deviation (paper silent)."""
    clip: Positive = 5.0
    """Advantages are clipped to +- this (paper silent)."""


@dataclass(frozen=True)
class UniGRPO:
    """J = J_Text + lambda J_Flow, Eq. 7; image_grad_through_context is left open by the paper (spec e.4)."""

    name: Literal["unigrpo"] = "unigrpo"
    """Which method; it decides the keys of this section and of data."""
    lambda_flow: NonNegative = 1.0
    """Weight of the image term beside the text term (Table 3: 1)."""
    image_grad_through_context: bool = False
    """Whether the image loss also trains the thinking's weights through the context (paper silent)."""
    text: TextTerm = field(default_factory=TextTerm)
    flow: FlowTerm = field(default_factory=FlowTerm)
    regulariser: Regulariser = field(default_factory=Regulariser)
    advantage: Advantage = field(default_factory=Advantage)


@dataclass(frozen=True)
class TextGRPO:
    """J_Text alone: the picture is drawn by the ODE, and the denoising parameters stay as they are (spec f.4)."""

    name: Literal["text_grpo"] = "text_grpo"
    """Which method; it decides the keys of this section and of data."""
    text: TextTerm = field(default_factory=TextTerm)
    advantage: Advantage = field(default_factory=Advantage)


@dataclass(frozen=True)
class FlowGRPO:
    """J_Flow alone: the thinking (if any) is sampled, and the reasoning parameters stay as they are (spec f.4)."""

    name: Literal["flow_grpo"] = "flow_grpo"
    """Which method; it decides the keys of this section and of data."""
    flow: FlowTerm = field(default_factory=FlowTerm)
    regulariser: Regulariser = field(default_factory=Regulariser)
    advantage: Advantage = field(default_factory=Advantage)


@dataclass(frozen=True)
class Supervised:
    """ce_weight CE(text) + mse_weight MSE(velocity) on demonstrations, each image at noisy_copies times (spec f.5).

    mse_over: tokens is how BAGEL trains; pictures gives pictures of several sizes another weight.
    """

    name: Literal["supervised"] = "supervised"
    """Which method; it decides the keys of this section and of data."""
    ce_weight: NonNegative = 1.0
    """Weight of the cross-entropy of the text."""
    mse_weight: NonNegative = 1.0
    """Weight of the squared error of the velocity."""
    timestep_shift: Shift = 3.0
    """Of the drawn t towards noise."""
    noisy_copies: Batch = 1
    """Times t at which each picture is noised."""
    times: Literal["logit_normal", "uniform"] = "logit_normal"
    """Distribution of t (logit_normal: BAGEL's), stratified over the copies, then shifted."""
    mse_over: Literal["pictures", "tokens"] = "pictures"
    """Mean of the squared error over pictures and then trajectories, or over all latent tokens (BAGEL)."""
    train_vision: bool = False
    """Train the vision tower and its connector too, at the reasoning expert's learning rate."""


@dataclass(frozen=True)
class ForwardTerm:
    """Noising the finished picture at ``pairs`` fixed (t, eps), kept over epochs; times as in supervised training."""

    pairs: Batch = 8
    """Fixed (t, eps) at which a finished picture is noised."""
    times: Literal["uniform", "logit_normal"] = "uniform"
    """Distribution of their t, as in supervised training."""


@dataclass(frozen=True)
class FPOTerm(ForwardTerm):
    """FPO, spec f.2: r = exp(old loss - loss), averaged over pairs before exp, or one ratio per_pair.

    The paper gives neither pairs nor clip_range; 8 and 0.05 are those of the public FPO.
    """

    clip_range: Positive = 0.05
    """A ratio is clipped to 1 +- this."""
    per_pair: bool = False
    """One ratio per pair in place of one over their mean loss."""


@dataclass(frozen=True)
class NFTTerm(ForwardTerm):
    """DiffusionNFT, spec f.6: beta mixes new and old velocity, r = clip(A / (2 max_advantage) + 1/2, 0, 1)."""

    beta: Positive = 1.0
    """Share of the new velocity in the mix of new and old."""
    max_advantage: Positive = 5.0
    """Advantages beyond +- this count as best or worst."""


@dataclass(frozen=True)
class ReFLTerm:
    """ReFL, spec f.1: one step, uniform in the last share ``late`` of the grid, is trained (the paper: "late")."""

    late: Annotated[float, Range(0, 1, open_low=True)] = 0.25
    """The trained step is drawn from this last share of the grid."""


@dataclass(frozen=True)
class FPO:
    """The FPO image term alone: the picture is drawn by the ODE, and the reasoning parameters stay as they are."""

    name: Literal["fpo"] = "fpo"
    """Which method; it decides the keys of this section and of data."""
    fpo: FPOTerm = field(default_factory=FPOTerm)
    regulariser: Regulariser = field(default_factory=Regulariser)
    advantage: Advantage = field(default_factory=Advantage)


@dataclass(frozen=True)
class UniFPO:
    """Text GRPO and the FPO image term together (spec f.3; the paper reports that it collapses)."""

    name: Literal["unifpo"] = "unifpo"
    """Which method; it decides the keys of this section and of data."""
    lambda_flow: NonNegative = 1.0
    """Weight of the image term beside the text term (Table 3: 1)."""
    image_grad_through_context: bool = False
    """Whether the image loss also trains the thinking's weights through the context (paper silent)."""
    text: TextTerm = field(default_factory=TextTerm)
    fpo: FPOTerm = field(default_factory=FPOTerm)
    regulariser: Regulariser = field(default_factory=Regulariser)
    advantage: Advantage = field(default_factory=Advantage)


@dataclass(frozen=True)
class ReFL:
    """The gradient of a differentiable reward through one late step and the decoder; the thinking is only sampled.

    advantage is for the logs alone. The rewards of reward.train must be differentiable.
    """

    name: Literal["refl"] = "refl"
    """Which method; it decides the keys of this section and of data."""
    refl: ReFLTerm = field(default_factory=ReFLTerm)
    regulariser: Regulariser = field(default_factory=Regulariser)
    advantage: Advantage = field(default_factory=Advantage)


@dataclass(frozen=True)
class DiffusionNFT:
    """DiffusionNFT on the picture alone (not in the paper's table)."""

    name: Literal["diffusion_nft"] = "diffusion_nft"
    """Which method; it decides the keys of this section and of data."""
    nft: NFTTerm = field(default_factory=NFTTerm)
    regulariser: Regulariser = field(default_factory=Regulariser)
    advantage: Advantage = field(default_factory=Advantage)


Method = UniGRPO | TextGRPO | FlowGRPO | FPO | UniFPO | ReFL | DiffusionNFT | Supervised
WithText = UniGRPO | TextGRPO | UniFPO
"""Methods that train the thinking by its log-probs."""
WithSDE = UniGRPO | FlowGRPO
"""Methods that score the SDE steps of a rollout."""
WithForwardNoise = FPO | UniFPO | DiffusionNFT
"""Methods that noise the finished picture again."""
WithImage = UniGRPO | FlowGRPO | FPO | UniFPO | ReFL | DiffusionNFT
"""Methods of RL that train the drawing."""
METHODS: dict[str, type[Method]] = {
    "unigrpo": UniGRPO,
    "text_grpo": TextGRPO,
    "flow_grpo": FlowGRPO,
    "fpo": FPO,
    "unifpo": UniFPO,
    "refl": ReFL,
    "diffusion_nft": DiffusionNFT,
    "supervised": Supervised,
}
DATA: dict[str, type[PromptData | DemonstrationData]] = {"RL": PromptData, "supervised": DemonstrationData}
