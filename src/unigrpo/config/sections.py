"""The keys of a recipe: one frozen dataclass per section (the methods are in ``methods``).

Defaults are those of the paper's Table 3; where the paper is silent, the docstring says so (source: design "A recipe,
whole", spec g.1). ``num_points`` counts grid points: M points are M - 1 forwards. Numbers carry their :class:`Range`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal


class ConfigError(ValueError):
    """A recipe or an override that cannot work; the message is for the user."""


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return " (did you mean ...?)" where ``known`` has close matches of ``word``, else nothing."""
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def how_to_install(extra: str) -> str:
    """Return the command that brings an optional part of this package (it is not on a package index)."""
    return f"pip install '.[{extra}]' in the checkout of unigrpo"


@dataclass(frozen=True)
class Range:
    """Allowed numbers: low <= x <= high, the ends excluded where ``open_*`` says so."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, number: float) -> bool:
        above = number > self.low if self.open_low else number >= self.low
        return above and (number < self.high if self.open_high else number <= self.high)

    def __str__(self) -> str:
        low = f"{'above' if self.open_low else 'at least'} {self.low:g}"
        return low if self.high == math.inf else f"{low} and {'below' if self.open_high else 'at most'} {self.high:g}"


Count = Annotated[int, Range(1)]
CountOrZero = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, open_low=True)]
NonNegative = Annotated[float, Range(0)]
Probability = Annotated[float, Range(0, 1)]
Memory = Annotated[float, Range(0, 1, open_high=True)]  # of a moving average: 1 would never forget
Guidance = Annotated[float, Range(1)]  # 1 is no guidance
GridPoints = Annotated[int, Range(2)]

BUILTIN_MODELS = ("builtin:shapes-sft", "builtin:shapes-pretrain", "init:micro")


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters on q, k, v, o and the three MLP matrices of the named experts; all else is frozen.

    W x + (alpha / rank) B A x with B = 0 at the start; rank 64 and alpha 128 are flow_grpo's (spec g.2), the paper is
    silent. The adapters are fp32 whatever ``model.dtype`` is (spec h.4).
    """

    rank: Count = 64
    alpha: Positive = 128.0
    experts: tuple[Literal["reasoning", "denoising"], ...] = ("reasoning", "denoising")

    def __post_init__(self) -> None:
        if not self.experts or len(set(self.experts)) < len(self.experts):
            raise ConfigError(
                f"model.lora.experts = {list(self.experts)}: name reasoning, denoising or both, each once; "
                "set model.lora to null to train all weights"
            )


@dataclass(frozen=True)
class Model:
    """The start checkpoint: a name of ``BUILTIN_MODELS``, a folder, or a hub id (``owner/name``).

    dtype: the precision of the computation; what is trained is kept in fp32, what is frozen in ``dtype``. lora: null
    trains all weights of the method's experts. device: auto is the accelerator where there is one, but the CPU for the
    shipped models, which are too small for it. activation_checkpointing: compute layers again in the backward pass and
    keep only what goes in between. autoencoder: sliced decodes one picture at a time (the same numbers), tiled parts
    of a picture (nearly the same), both in less memory.
    """

    path: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    lora: Lora | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    activation_checkpointing: bool = False
    autoencoder: Literal["whole", "sliced", "tiled"] = "whole"

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("model.path is empty: name a checkpoint folder or one of " + ", ".join(BUILTIN_MODELS))
        if self.path.startswith(("builtin:", "init:")) and self.path not in BUILTIN_MODELS:
            raise ConfigError(
                f"model.path = {self.path!r} does not ship with the package{did_you_mean(self.path, BUILTIN_MODELS)}: "
                f"use one of {', '.join(BUILTIN_MODELS)}, or a folder"
            )


@dataclass(frozen=True)
class PromptData:
    """Prompts for RL: where from, prompts per iteration P and samples per prompt G.

    prompts: a world's stream (``shapes:train``, ``geneval:train``), a file (.txt, one a line; .jsonl with ``prompt``
    and anything else as metadata), or a data set of the hub (``hf:owner/name``, ``hf:owner/name:split:column``).
    """

    prompts: str
    prompts_per_iteration: Count = 32
    group_size: Count = 24


@dataclass(frozen=True)
class Mix:
    """Shares of the demonstrations that are made imperfect on purpose (probabilities; design: MICRO).

    bad_plan: the plan misses the prompt; mismatch: the picture misses the plan; no_think, unconditional: without
    thinking, without a prompt; dense: random plans of many objects without a prompt, until the share ``dense_until``
    of the run and ``dense_late`` after it; plan_only: a prompt and its plan, no picture; unsorted: plans in random
    order.
    """

    bad_plan: Probability = 0.0
    mismatch: Probability = 0.0
    no_think: Probability = 0.0
    unconditional: Probability = 0.0
    dense: Probability = 0.0
    dense_late: Probability = 0.0
    dense_until: Probability = 0.0
    unsorted: Probability = 0.0
    plan_only: Probability = 0.0


@dataclass(frozen=True)
class DemonstrationData:
    """Demonstrations for supervised runs: where from, how many per step, and (shapes only) how imperfect.

    demonstrations: ``shapes``, a .jsonl file with ``prompt``, ``image`` (a path beside the file) and, where there is
    one, ``thinking``, or a data set of the hub (``hf:owner/name``) with these columns. drop_prompt: share of the
    pictures that are drawn without words, for the guidance's unconditional branch (shapes have mix.unconditional).
    """

    demonstrations: str
    batch_size: Count = 48
    drop_prompt: Probability = 0.0
    mix: Mix = field(default_factory=Mix)


@dataclass(frozen=True)
class Rollout:
    """How training samples are drawn (Table 3; the paper is silent on sde, think, max_think_tokens and the noise).

    window: [lo, hi), the step indices from which ``window_size`` consecutive SDE steps are drawn. noise_level: a of
    sigma = a sqrt(t / (1 - t)), or eta of the kinds cps and dance. image_size: pixels of a side, null = the model's.
    batch: samples that are drawn together (also in evaluations), null = all at once; it changes memory, not draws.
    guidance: scale of classifier-free guidance in training rollouts (Table 3: 1, none); window_motion: random draws the
    window per prompt (the paper), sliding moves it by window_stride after every window_every iterations (MixGRPO).
    """

    num_points: GridPoints = 25
    shift: Positive = 3.0
    guidance: Guidance = 1.0
    window: tuple[CountOrZero, CountOrZero] = (0, 5)
    window_size: CountOrZero = 3
    window_motion: Literal["random", "sliding"] = "random"
    window_every: Count = 25
    window_stride: Count = 1
    noise_level: NonNegative = 0.8
    sde: Literal["flow", "cps", "dance", "flow_cp"] = "flow"
    temperature: NonNegative = 1.0
    think: bool = True
    max_think_tokens: Count = 1024
    same_initial_noise: bool = False
    image_size: Count | None = None
    batch: Count | None = None


@dataclass(frozen=True)
class Scorer:
    """One reward by name, ``path/file.py:thing`` or ``package.module:thing``, and its weight in the sum."""

    name: str
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Reward:
    """What is optimised (train) and what is watched (validation); on_error raise: a fault ends the run."""

    train: tuple[Scorer, ...] = ()
    validation: tuple[Scorer, ...]
    on_error: Literal["raise"] = "raise"


@dataclass(frozen=True)
class Optimizer:
    """AdamW per expert (learning rates and ppo_epochs: Table 3 has 1e-6, 3e-5 and 2; the paper is silent on the rest).

    ppo_epochs: passes over an iteration's trajectories; minibatches: disjoint sets of whole groups in a pass, one
    optimizer step each; micro_batch: sequences per forward. warmup: iterations of linear rise; decay: share of the run,
    at its end, with linear fall to 0; ema: memory of the weight average, 0 = off. max_grad_norm is per expert.
    kind: the 8-bit ones (bitsandbytes) keep the moments in a quarter of the memory, paged ones also in the CPU's.
    """

    kind: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"

    lr_reasoning: NonNegative = 1e-6
    lr_denoising: NonNegative = 3e-5
    betas: tuple[Memory, Memory] = (0.9, 0.999)
    eps_reasoning: Positive = 1e-8
    eps_denoising: Positive = 1e-15
    weight_decay: NonNegative = 0.0
    max_grad_norm: Positive = 1.0
    ppo_epochs: Count = 1
    minibatches: Count = 1
    micro_batch: Count = 1
    warmup: CountOrZero = 0
    decay: Probability = 0.0
    ema: Memory = 0.0


@dataclass(frozen=True)
class Eval:
    """Evaluation: in the run one picture for each of the first ``limit`` prompts, every so many iterations.

    Before and after: ``compare_samples`` pictures for each of the first ``compare_limit`` prompts, the same draws.
    guidance: its scale, on where interval[0] < t <= interval[1], brought back to size by renorm (spec/bagel.md, CFG).
    """

    prompts: str
    every: Count = 25
    limit: Count = 200
    compare_limit: Count = 504
    compare_samples: Count = 4
    num_points: GridPoints = 50
    guidance: Guidance = 1.0
    interval: tuple[Probability, Probability] = (0.0, 1.0)
    renorm: Literal["global", "channel", "text_channel"] = "global"
    think: bool = True

    def __post_init__(self) -> None:
        if not self.interval[0] < self.interval[1]:
            raise ConfigError(
                f"eval.interval = {list(self.interval)}: guidance is on where low < t <= high; set low below high"
            )


@dataclass(frozen=True)
class Checkpoint:
    """Save every so many iterations, and after ``minutes`` since the last time (null: never); keep the newest ``keep``.

    minutes: an iteration of a large model takes minutes, and what is not saved is lost; it changes no number of a run.
    """

    every: Count = 25
    minutes: Positive | None = None
    keep: Count = 2
