"""The keys of a recipe: one frozen dataclass per section (the methods are in ``methods``).

Defaults are those of the paper's Table 3; where the paper is silent, the docstring says so. Numbers carry their range,
texts their length (``ranges``); the line below a field is what ``train --keys``, ``recipe`` and docs/recipe-keys.md say
of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from unigrpo.ranges import (
    Batch,
    ConfigError,
    Count,
    CountOrZero,
    Epsilon,
    GridPoints,
    Guidance,
    Memory,
    Minutes,
    Name,
    Noise,
    NonNegative,
    PathOrName,
    Pixels,
    Positive,
    Probability,
    Rate,
    Rounds,
    Shift,
    Step,
    Temperature,
    Tokens,
    Weight,
    check_shares,
    did_you_mean,
)

BUILTIN_MODELS = (
    "builtin:shapes-sft",
    "builtin:shapes-pretrain",
    "builtin:words-sft",
    "builtin:shapes-rounds",
    "builtin:shapes-edits",
    "init:micro",
    "init:micro-words",
    "init:micro-rounds",
    "init:micro-rounds-tower",
)


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters on q, k, v, o and the three MLP matrices of the named experts; all else is frozen.

    W x + (alpha / rank) B A x with B = 0 at the start; rank 64 and alpha 128 are flow_grpo's, the paper is
    silent. The adapters are fp32 whatever ``model.dtype`` is (docs/math.md#precision).
    """

    rank: Batch = 64
    """Rank of the adapters."""
    alpha: Positive = 128.0
    """The adapters' product is scaled by alpha / rank."""
    experts: tuple[Literal["reasoning", "denoising"], ...] = ("reasoning", "denoising")
    """Which experts have adapters."""

    def __post_init__(self) -> None:
        if not self.experts or len(set(self.experts)) < len(self.experts):
            raise ConfigError(
                f"model.lora.experts = {list(self.experts)}: name reasoning, denoising or both, each once; "
                "set model.lora to null to train all weights"
            )


@dataclass(frozen=True)
class Model:
    """The start checkpoint, and how it computes."""

    path: PathOrName
    """builtin:shapes-sft, builtin:words-sft, init:micro (random), a model or run folder, or a hub id."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the computation, and of frozen weights; what is trained is kept in fp32."""
    lora: Lora | None = None
    """Adapters, for example {rank: 64, alpha: 128}; null trains all weights of the method's experts."""
    quantize: Literal["none", "nf4"] = "none"
    """nf4 holds the frozen MLP matrices under LoRA adapters in 4 bits (bitsandbytes; docs/quantize.md)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto is the accelerator where there is one, but the CPU for shipped models (too small for it)."""
    activation_checkpointing: bool = False
    """Compute layers again in the backward pass, to keep only what goes in between; the same numbers."""
    autoencoder: Literal["whole", "sliced", "tiled"] = "whole"
    """sliced decodes one picture at a time (the same numbers), tiled parts of one (nearly the same)."""

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("model.path is empty: name a checkpoint folder or one of " + ", ".join(BUILTIN_MODELS))
        if self.path.startswith(("builtin:", "init:")) and self.path not in BUILTIN_MODELS:
            raise ConfigError(
                f"model.path = {self.path!r} does not ship with the package{did_you_mean(self.path, BUILTIN_MODELS)}: "
                f"use one of {', '.join(BUILTIN_MODELS)}, or a folder"
            )
        if self.quantize != "none" and self.lora is None:
            raise ConfigError(
                f"model.quantize = {self.quantize} without model.lora: weights in 4 bits cannot be trained, only "
                "adapters on them; set model.lora, for example {rank: 64, alpha: 128}, or quantize to none"
            )


@dataclass(frozen=True)
class PromptData:
    """Prompts for RL: where from, prompts per iteration P and samples per prompt G.

    A file is .txt (one prompt a line), .jsonl, .json, .csv, .tsv, .parquet or a folder of ``save_to_disk``; what is not
    prompt or images is metadata.
    """

    prompts: PathOrName
    """shapes:train, words:train, geneval:train, a file or FILE:COLUMN, a saved folder, or hf:owner/name[:...]."""
    prompts_per_iteration: Batch = 32
    """Prompts of an iteration."""
    group_size: Batch = 24
    """Samples of each prompt, which are compared with each other."""


@dataclass(frozen=True)
class Mix:
    """Shares (probabilities) of the demonstrations that are made imperfect on purpose.

    What they are for: docs/tuning-the-image-half.md.
    """

    bad_plan: Probability = 0.0
    """The plan misses the prompt."""
    mismatch: Probability = 0.0
    """The picture misses the plan."""
    no_think: Probability = 0.0
    """Without thinking."""
    unconditional: Probability = 0.0
    """Without a prompt."""
    dense: Probability = 0.0
    """Random plans of many objects, without a prompt, until dense_until."""
    dense_late: Probability = 0.0
    """The same after dense_until."""
    dense_until: Probability = 0.0
    """Share of the run after which dense_late holds in place of dense."""
    unsorted: Probability = 0.0
    """Plans in random order."""
    plan_only: Probability = 0.0
    """A prompt and its plan, no picture."""
    look: Probability = 0.0
    """A drawn picture that is looked at, a critique with a new plan, and the next picture (shapes alone, as below)."""
    edit: Probability = 0.0
    """A given picture, an instruction, the plan, and the edited picture."""
    look_only: Probability = 0.0
    """As look, without the next picture."""
    question: Probability = 0.0
    """A picture, a question about it, and the answer."""
    misseen: Probability = 0.0
    """The critique is of another picture than the one that is looked at."""
    bad_revision: Probability = 0.0
    """The picture after a look misses its plan."""
    look_edits: Probability = 0.0
    """Of look and look_only: the picture that is looked at came of an edit, and is criticised as one."""

    def __post_init__(self) -> None:
        for key, share in self.dense_shares().items():
            other = {"unconditional": self.unconditional, "no_think": self.no_think, "plan_only": self.plan_only}
            looking = {key: share for key, share in self.looking().items() if share > 0}
            check_shares("data.mix", {key: share, **other, **looking})

    def looking(self) -> dict[str, float]:
        """The shares of demonstrations in which a picture is looked at."""
        return {"look": self.look, "edit": self.edit, "look_only": self.look_only, "question": self.question}

    def dense_shares(self) -> dict[str, float]:
        """The keys of the share of dense plans that a run comes to, and their values."""
        early = {"dense": self.dense} if self.dense_until > 0 else {}
        return {**early, "dense_late": self.dense_late} if self.dense_until < 1 else early


@dataclass(frozen=True)
class DemonstrationData:
    """Demonstrations for supervised runs: where from, how many per step, and (worlds only) how imperfect.

    Rows are as in ``data.prompts`` and also have ``image`` (a path beside the file, or the picture itself) and, where
    there is one, ``thinking``.
    """

    demonstrations: PathOrName
    """shapes, words, a file or folder of rows with prompt, image and perhaps thinking, or hf:owner/name."""
    batch_size: Batch = 48
    """Demonstrations of a step."""
    drop_prompt: Probability = 0.0
    """Share of pictures drawn without words, for guidance (worlds have mix.unconditional)."""
    mix: Mix = field(default_factory=Mix)


@dataclass(frozen=True)
class Rollout:
    """How training samples are drawn (Table 3; the paper is silent on sde, think, max_think_tokens and the noise)."""

    num_points: GridPoints = 25
    """Points of the timestep grid; M points are M - 1 forwards (Table 3)."""
    shift: Shift = 3.0
    """Of the grid towards noise: t -> shift t / (1 + (shift - 1) t) (Table 3)."""
    guidance: Guidance = 1.0
    """Scale of classifier-free guidance in training rollouts; 1 is none (Table 3)."""
    window: tuple[Step, Step] = (0, 5)
    """[lo, hi): the steps from which window_size consecutive SDE steps are drawn (Table 3)."""
    window_size: Step = 3
    """SDE steps of a picture, the ones that are trained (Table 3)."""
    window_motion: Literal["random", "sliding"] = "random"
    """random draws the window per prompt (the paper), sliding moves it through the run (MixGRPO)."""
    window_every: Count = 25
    """Iterations between two moves of a sliding window."""
    window_stride: Count = 1
    """Steps that a sliding window moves at a time."""
    noise_level: Noise = 0.8
    """a of sigma = a sqrt(t / (1 - t)), or eta of the kinds cps and dance (Table 3)."""
    sde: Literal["flow", "cps", "dance", "flow_cp"] = "flow"
    """Kind of the SDE step (Eq. 3: flow)."""
    temperature: Temperature = 1.0
    """Of the thinking; 0 always takes the likeliest token (Table 3)."""
    think: bool = True
    """Whether the model thinks before it draws."""
    images_per_thinking: Batch = 1
    """Pictures that share a thinking (of rounds: the first); a group has group_size / this many thoughts (paper: 1)."""
    max_think_tokens: Tokens = 1024
    """Where the thinking is cut, its end token counted."""
    same_initial_noise: bool = False
    """Whether all samples of a prompt start from one noise."""
    image_size: Pixels | None = None
    """Pixels of a side; null is the model's own."""
    batch: Batch | None = None
    """Samples drawn together (also in evaluations), null is all; it changes memory, not draws."""
    rounds: Rounds = 1
    """Pictures of a sample: think, draw, and each time look at it, think again, draw again (paper: 1)."""
    stop: Literal["never", "said"] = "never"
    """said: a sample ends where a later thinking says so, and the picture before it stands (paper silent)."""
    stop_words: tuple[Name, ...] = ()
    """With stop: said, the whole thinkings (without <think> marks) that end a sample, for example [fine]."""
    look: Literal["seen", "grey", "other"] = "seen"
    """What a look shows: the picture, a grey one, or another prompt's; the latter two are controls (docs/guide.md)."""
    rethink: Name = "own"
    """After a look: own, a thinking; none, no thinking; any other words stand there in place of one (controls)."""


@dataclass(frozen=True)
class Scorer:
    """One reward by name, ``path/file.py:thing`` or ``package.module:thing``, and its weight in the sum."""

    name: PathOrName
    """Name of a reward, for example shapes/verifier; path/file.py:thing or package.module:thing is one's own."""
    weight: Weight = 1.0
    """Its weight in the sum."""
    teaches: Literal["both", "thinking", "drawing"] = "both"
    """Whom it teaches in training: the thinking, the drawing, or both."""
    value: Name | None = None
    """Which of its values counts, where it gives several by name."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the class or factory that builds it, {name: value}."""
    timeout_s: Positive = 600.0
    """Seconds that one call may take; a reward that takes longer failed."""


@dataclass(frozen=True, kw_only=True)
class Reward:
    """What is optimised and what is watched."""

    train: tuple[Scorer, ...] = ()
    """What is optimised: a list of rewards, [{name: shapes/verifier, weight: 1}]."""
    validation: tuple[Scorer, ...]
    """What is watched on held-out prompts: a list of rewards, [{name: shapes/verifier}]."""
    on_error: Literal["raise", "drop_sample"] = "raise"
    """raise: a fault of a reward ends the run; drop_sample: a sample that could not be scored is left out."""
    max_failed_share: Probability = 0.2
    """With drop_sample: a larger share of failed samples in one iteration ends the run all the same."""


@dataclass(frozen=True)
class Optimizer:
    """AdamW per expert (learning rates and ppo_epochs: Table 3 has 1e-6, 3e-5 and 2; the paper is silent on the rest).

    The 8-bit kinds are those of bitsandbytes.
    """

    kind: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    """8-bit ones keep the moments in a quarter of the memory, paged ones also in the CPU's."""
    lr_reasoning: Rate = 1e-6
    """Learning rate of the reasoning expert (Table 3)."""
    lr_denoising: Rate = 3e-5
    """Learning rate of the denoising expert (Table 3)."""
    betas: tuple[Memory, Memory] = (0.9, 0.999)
    """Memories of the two moments."""
    eps_reasoning: Epsilon = 1e-8
    """Adam's epsilon of the reasoning expert."""
    eps_denoising: Epsilon = 1e-15
    """Adam's epsilon of the denoising expert; the image gradient can be as small as 1e-8."""
    weight_decay: NonNegative = 0.0
    """AdamW's decay."""
    max_grad_norm: Positive = 1.0
    """Gradients are clipped to this norm, per expert."""
    ppo_epochs: Batch = 1
    """Passes over an iteration's trajectories (Table 3: 2)."""
    minibatches: Batch = 1
    """Disjoint sets of whole groups in a pass, one optimizer step each."""
    micro_batch: Batch = 1
    """Sequences per forward; it changes memory, not the update."""
    warmup: CountOrZero = 0
    """Iterations of linear rise of the learning rates."""
    decay: Probability = 0.0
    """Share of the run, at its end, in which they fall linearly to 0."""
    ema: Memory = 0.0
    """Memory of the weights' moving average; 0 is off."""


@dataclass(frozen=True)
class Eval:
    """Evaluation: in the run one picture for each of the first ``limit`` prompts, every so many iterations.

    Before and after: ``compare_samples`` pictures for each of the first ``compare_limit`` prompts, the same draws.
    """

    prompts: PathOrName
    """shapes:held-out, words:held-out, geneval:fixed, a .txt or .jsonl file, or hf:owner/name[:split[:column]]."""
    every: Count = 25
    """Iterations between two evaluations in the run."""
    limit: Batch = 200
    """Prompts of an evaluation in the run, one picture each."""
    compare_limit: Batch = 504
    """Prompts of the evaluations before and after."""
    compare_samples: Batch = 4
    """Pictures of each of these prompts."""
    num_points: GridPoints = 50
    """Points of the timestep grid; M points are M - 1 forwards (Table 3)."""
    guidance: Guidance = 1.0
    """Scale of classifier-free guidance; 1 is none."""
    image_guidance: Guidance = 1.0
    """Scale of guidance on the pictures that prompts come with (edits), beside that on the words; 1 is none."""
    interval: tuple[Probability, Probability] = (0.0, 1.0)
    """Guidance is on where low < t <= high."""
    renorm: Literal["global", "channel", "text_channel"] = "global"
    """How guided velocities are brought back to size."""
    think: bool = True
    """Whether the model thinks before it draws."""
    rounds: Rounds | None = None
    """Pictures of a sample in evaluations, of which the last is judged; null: as in rollout."""
    look: Literal["seen", "grey", "other"] | None = None
    """What a look shows in evaluations; null: as in rollout."""
    rethink: Name | None = None
    """What follows a look in evaluations; null: as in rollout."""

    def __post_init__(self) -> None:
        if not self.interval[0] < self.interval[1]:
            raise ConfigError(
                f"eval.interval = {list(self.interval)}: guidance is on where low < t <= high; set low below high"
            )
        if self.image_guidance > 1 and self.guidance == 1:
            raise ConfigError(
                f"eval.image_guidance = {self.image_guidance:g} with eval.guidance = 1: pictures are guided on at the "
                "steps at which words are, and here at none; set eval.guidance above 1, or eval.image_guidance to 1"
            )


@dataclass(frozen=True)
class Checkpoint:
    """When the run saves, and how much of it stays."""

    every: Count = 25
    """Iterations between two checkpoints."""
    minutes: Minutes | None = None
    """Also save when this much time has passed since the last checkpoint; null: never (it changes no number)."""
    keep: Count = 2
    """How many of the newest stay."""
    stop_within_s: Positive = 60.0
    """Seconds from SIGTERM, SIGHUP or Ctrl-C to the end; an iteration that would take longer is given up."""


@dataclass(frozen=True)
class Parallel:
    """How several processes (``train --nproc``, torchrun) share a run; one process needs none of it (docs/ranks.md)."""

    mode: Literal["auto", "replicate", "shard"] = "auto"
    """replicate: every rank holds all weights; shard: they are shared out (FSDP2); auto: replicate where it fits."""
    replicas: Batch = 1
    """With shard: into how many groups the ranks are divided, each of which holds all weights (HSDP)."""
    rollout_weights: Literal["replica", "sharded"] = "replica"
    """With shard: what samples are drawn with, a whole copy on every rank, or the shares in lockstep."""
    cpu_offload: bool = False
    """With shard: keep the shares, gradients and the optimizer's state in the CPU's memory."""
    timeout_s: Positive = 1800.0
    """Seconds that ranks wait for one another before the run ends."""


DATA: dict[str, type[PromptData | DemonstrationData]] = {"RL": PromptData, "supervised": DemonstrationData}
"""The section ``data`` of methods that learn from prompts, and from demonstrations."""
