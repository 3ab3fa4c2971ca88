"""The methods of a recipe: one frozen dataclass each, whose fields are its terms (source: spec b, d, f).

Defaults are those of the paper's Table 3; where the paper is silent, the docstring says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from unigrpo.config.sections import Count, DemonstrationData, NonNegative, Positive, PromptData, Range


@dataclass(frozen=True)
class TextTerm:
    """Text GRPO, Eq. 2 (the paper is silent on the clip): clip r to 1 +- clip_range, minus kl_weight k3."""

    clip_range: Positive = 0.2
    kl_weight: NonNegative = 0.0


@dataclass(frozen=True)
class FlowTerm:
    """Flow GRPO, Eq. 4-6; clip_range auto = 5.12e-4 / sqrt(D), the paper's 1e-6 at 1024 x 1024 (spec b.6)."""

    clip_range: Positive | Literal["auto"] = "auto"
    ratio_norm: bool = True
    grad_reweight: Literal["none", "inv_dt", "inv_dt_norm"] = "none"


@dataclass(frozen=True)
class Regulariser:
    """What keeps the velocity near the start checkpoint on the window steps, Eq. 8 (mean over D, spec e.2)."""

    kind: Literal["velocity_mse", "latent_kl", "none"] = "velocity_mse"
    weight: NonNegative = 1.5e-5


@dataclass(frozen=True)
class Advantage:
    """A = clamp((R - mean) / (std + epsilon), -clip, clip) inside a group, Eq. 1 (paper silent on both; spec b.8)."""

    epsilon: NonNegative = 1e-4
    clip: Positive = 5.0


@dataclass(frozen=True)
class UniGRPO:
    """J = J_Text + lambda J_Flow, Eq. 7; image_grad_through_context is left open by the paper (spec e.4)."""

    name: Literal["unigrpo"] = "unigrpo"
    lambda_flow: NonNegative = 1.0
    image_grad_through_context: bool = False
    text: TextTerm = field(default_factory=TextTerm)
    flow: FlowTerm = field(default_factory=FlowTerm)
    regulariser: Regulariser = field(default_factory=Regulariser)
    advantage: Advantage = field(default_factory=Advantage)


@dataclass(frozen=True)
class TextGRPO:
    """J_Text alone: the picture is drawn by the ODE, and the denoising parameters stay as they are (spec f.4)."""

    name: Literal["text_grpo"] = "text_grpo"
    text: TextTerm = field(default_factory=TextTerm)
    advantage: Advantage = field(default_factory=Advantage)


@dataclass(frozen=True)
class FlowGRPO:
    """J_Flow alone: the thinking (if any) is sampled, and the reasoning parameters stay as they are (spec f.4)."""

    name: Literal["flow_grpo"] = "flow_grpo"
    flow: FlowTerm = field(default_factory=FlowTerm)
    regulariser: Regulariser = field(default_factory=Regulariser)
    advantage: Advantage = field(default_factory=Advantage)


@dataclass(frozen=True)
class Supervised:
    """ce_weight CE(text) + mse_weight MSE(velocity) on demonstrations, each image at noisy_copies times (spec f.5).

    times: the distribution of t (logit_normal is BAGEL's), stratified over the copies, then shifted by timestep_shift.
    mse_over: the mean of the squared errors runs over a trajectory's pictures and then over trajectories (pictures), or
    over all latent tokens of the batch (tokens: as BAGEL trains; another weight for pictures of several sizes).
    train_vision: train the vision tower and its connector too, at the reasoning expert's learning rate.
    """

    name: Literal["supervised"] = "supervised"
    ce_weight: NonNegative = 1.0
    mse_weight: NonNegative = 1.0
    timestep_shift: Positive = 3.0
    noisy_copies: Count = 1
    times: Literal["logit_normal", "uniform"] = "logit_normal"
    mse_over: Literal["pictures", "tokens"] = "pictures"
    train_vision: bool = False


@dataclass(frozen=True)
class ForwardTerm:
    """Noising the finished picture at ``pairs`` fixed (t, eps), kept over epochs; times as in supervised training."""

    pairs: Count = 8
    times: Literal["uniform", "logit_normal"] = "uniform"


@dataclass(frozen=True)
class FPOTerm(ForwardTerm):
    """FPO, spec f.2: r = exp(old loss - loss), averaged over pairs before exp, or one ratio per_pair.

    The paper gives neither pairs nor clip_range; 8 and 0.05 are those of the public FPO.
    """

    clip_range: Positive = 0.05
    per_pair: bool = False


@dataclass(frozen=True)
class NFTTerm(ForwardTerm):
    """DiffusionNFT, spec f.6: beta mixes new and old velocity, r = clip(A / (2 max_advantage) + 1/2, 0, 1)."""

    beta: Positive = 1.0
    max_advantage: Positive = 5.0


@dataclass(frozen=True)
class ReFLTerm:
    """ReFL, spec f.1: one step, uniform in the last share ``late`` of the grid, is trained (the paper: "late")."""

    late: Annotated[float, Range(0, 1, open_low=True)] = 0.25


@dataclass(frozen=True)
class FPO:
    """The FPO image term alone: the picture is drawn by the ODE, and the reasoning parameters stay as they are."""

    name: Literal["fpo"] = "fpo"
    fpo: FPOTerm = field(default_factory=FPOTerm)
    regulariser: Regulariser = field(default_factory=Regulariser)
    advantage: Advantage = field(default_factory=Advantage)


@dataclass(frozen=True)
class UniFPO:
    """Text GRPO and the FPO image term together (spec f.3; the paper reports that it collapses)."""

    name: Literal["unifpo"] = "unifpo"
    lambda_flow: NonNegative = 1.0
    image_grad_through_context: bool = False
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
    refl: ReFLTerm = field(default_factory=ReFLTerm)
    regulariser: Regulariser = field(default_factory=Regulariser)
    advantage: Advantage = field(default_factory=Advantage)


@dataclass(frozen=True)
class DiffusionNFT:
    """DiffusionNFT on the picture alone (not in the paper's table)."""

    name: Literal["diffusion_nft"] = "diffusion_nft"
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
