"""The loop: collect, annotate, update, log; it never asks which method it runs (design: The loop, whole)."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from unigrpo import seeds
from unigrpo.config import Recipe
from unigrpo.evaluation.evaluator import Evaluation, describe_summary, summarise
from unigrpo.objectives.flow_grpo import resolve_clip_range
from unigrpo.objectives.methods import Method
from unigrpo.policy import Policy, Scorer
from unigrpo.reports.progress import Progress
from unigrpo.reports.runlog import truncate_metrics
from unigrpo.training import checkpoint
from unigrpo.training.agreement import check_adapter
from unigrpo.training.clock import Clock
from unigrpo.training.lora import base_state_dict
from unigrpo.training.metrics import metrics_line
from unigrpo.training.optimizer import ExpertOptimizer, MovingAverage
from unigrpo.training.recorder import Recorder, training_canaries
from unigrpo.training.replay import Batch
from unigrpo.training.signal import Movement, SignalWatch, missing_signal
from unigrpo.training.sources import Collected, Source
from unigrpo.training.update import (
    RatioBounds,
    Updated,
    annotate_behaviour,
    annotate_reference,
    minibatches,
    ratio_bounds,
    rescore,
    update,
)

TEXT_GAP_LIMIT = 0.3  # of the log ratio between rollout and replay in low precision, above which a person is told


class Evaluator(Protocol):
    """Evaluates the policy: few pictures while training, many before and after."""

    def validate(self, policy: Policy) -> Evaluation:
        """The cadence evaluation."""
        ...

    def compare(self, policy: Policy) -> Evaluation:
        """The large one, before and after training."""
        ...


@dataclass
class Parts:
    """Everything a run is made of; the command line resolves a recipe's names into these."""

    policy: Policy
    reference: Scorer | None
    method: Method
    source: Source
    evaluator: Evaluator
    save_model: Callable[[Path], None]
    load_model: Callable[[Path], None]
    compute_dtype: torch.dtype = torch.float32
    clip_range: float | str | None = None


@dataclass
class Stop:
    """Set from outside (Ctrl-C) to end the run after the iteration under way."""

    requested: bool = False


@dataclass
class Trainer:
    """One run in one folder."""

    recipe: Recipe
    parts: Parts
    run_dir: Path
    stop: Stop = field(default_factory=Stop)

    def __post_init__(self) -> None:
        recipe, policy = self.recipe, self.parts.policy
        self.recorder = Recorder(self.run_dir)
        self.optimizer = ExpertOptimizer(policy, recipe.optimizer, recipe.iterations)
        self.average = MovingAverage(policy, recipe.optimizer.ema) if recipe.optimizer.ema else None
        self.done = 0
        self.saved: int | None = None
        self.steps = 0  # optimizer steps of the ``done`` iterations
        self.trained_seconds = 0.0
        self.warned: set[str] = set()
        self.movement, self.watch = Movement(self.optimizer), SignalWatch()

    def run(self, progress: Progress) -> bool:
        """Train to the end (True) or until stopped (False); a fault saves what was finished and is raised again."""
        self._evaluate("before", progress)
        if self.stop.requested and self.done < self.recipe.iterations:
            self.save()
            return False
        if self.done < self.recipe.iterations:
            self.recorder.forget("after")
        try:
            while self.done < self.recipe.iterations:
                line = self.iterate(self.done)
                self.done, self.steps = self.done + 1, self.optimizer.steps
                self.trained_seconds += line["seconds"]["total"]
                self.recorder.metrics(line)
                progress.update(line)
                self._warn(line, progress)
                if self.done % self.recipe.checkpoint.every == 0 or self.done == self.recipe.iterations:
                    self.save()
                if self.stop.requested and self.done < self.recipe.iterations:
                    self.save()
                    return False
        except Exception:
            if self.optimizer.steps == self.steps:  # else this iteration is half made, and the last checkpoint stands
                self.save()
            raise
        self._evaluate("after", progress)
        return True

    # One iteration

    def iterate(self, iteration: int) -> dict[str, Any]:
        """Collect, annotate, update; return the metric line."""
        clock, recipe = Clock(), self.recipe
        started = time.perf_counter()
        rates = self.optimizer.set_iteration(iteration)
        collected = self.parts.source.collect(self.parts.policy, iteration, clock)
        with clock.phase("annotate"):
            batch, gap = self.annotate(collected, iteration)
        with clock.phase("update"):
            self.movement.mark()
            updates = self.update(batch)
            still = self.movement.still()
        if self.average is not None:
            self.average.update(iteration)
        validation = None
        if (iteration + 1) % recipe.eval.every == 0:
            with clock.phase("validation"):
                validation = summarise(self._with_average(self.parts.evaluator.validate).records)
                self.recorder.samples(self.parts.policy, collected, iteration)
        return metrics_line(
            iteration=iteration,
            collected=collected,
            updates=updates,
            rates=rates,
            canaries=training_canaries(self.parts.policy, collected),
            validation=validation,
            gap=gap,
            no_signal=missing_signal(collected.metrics, self.parts.method, updates, still),
            seconds={**clock.seconds, "total": time.perf_counter() - started},
        )

    def annotate(self, collected: Collected, iteration: int) -> tuple[Batch, dict[str, float]]:
        """Fix what stays the same over epochs: the draws, the reference's answers, and in low precision the old values.

        Also returns how far the rollout and its replay are apart in low precision (nothing in fp32).
        """
        method, optimizer, recipe = self.parts.method, self.recipe.optimizer, self.recipe
        temperature = recipe.rollout.temperature
        draws = [
            method.draws(t, seeds.generator(recipe.seed, iteration, t.prompt.position, t.sample, "draws"))
            for t in collected.trajectories
        ]
        compares = method.needs_reference_velocity or method.needs_reference_log_probs
        reference = self.parts.reference if compares else None
        if compares and reference is None:
            raise ValueError("this method regularises towards a reference, but the run was built without one")
        rounds = self.parts.compute_dtype != torch.float32 and method.needs_old_values
        ready, gap = Batch([], []), {"text": 0.0, "image": 0.0}
        size = optimizer.micro_batch
        for part in minibatches(Batch(collected.trajectories, draws), optimizer.minibatches):
            # cut into the very micro-batches that are trained on: other shapes would round otherwise
            if reference is not None:
                part = annotate_reference(reference, part, micro_batch=size, temperature=temperature)
            if method.needs_behaviour_velocity:
                part = annotate_behaviour(self.parts.policy, part, micro_batch=size, temperature=temperature)
            if rounds:
                part, apart = rescore(self.parts.policy, part, micro_batch=size, temperature=temperature)
                gap = {kind: max(gap[kind], apart[kind]) for kind in gap}
            ready = Batch(ready.trajectories + part.trajectories, ready.draws + part.draws)
        return ready, gap if rounds else {}

    def update(self, batch: Batch) -> list[Updated]:
        """ppo_epochs passes over disjoint minibatches, one optimizer step each; the very first checks the ratios."""
        config, updates = self.recipe.optimizer, []
        for _ in range(config.ppo_epochs):
            for part in minibatches(batch, config.minibatches):
                updates.append(
                    update(
                        self.parts.policy,
                        self.optimizer,
                        self.parts.method,
                        part,
                        micro_batch=config.micro_batch,
                        temperature=self.recipe.rollout.temperature,
                        check=self.bounds() if not updates else None,
                    )
                )
        self.optimizer.zero_grad()  # gradients take memory that the next rollout can use
        return updates

    def bounds(self) -> RatioBounds:
        """How far the first ratios may be from 1."""
        return ratio_bounds(self.parts.compute_dtype, self.clip_range())

    def clip_range(self) -> float | None:
        """The image clip range as a number; None for a method without an image term."""
        clip = self.parts.clip_range
        return None if clip is None else resolve_clip_range(clip, self.parts.policy.spec.num_elements)

    def _warn(self, line: dict[str, Any], progress: Progress) -> None:
        """Say when nothing is learned, or when rollout and replay round so differently that clipping acts on it."""
        if sentence := self.watch.note(line.get("no_signal", []), line["iteration"]):
            progress.note(sentence)
        gap, limits = line.get("rollout_gap", {}), {"text": TEXT_GAP_LIMIT, "image": self.clip_range()}
        for kind, limit in limits.items():
            if limit is not None and gap.get(kind, 0.0) > limit and kind not in self.warned:
                self.warned.add(kind)
                progress.note(
                    f"warning: rollout and replay differ by {gap[kind]:.2g} in the {kind} log ratio "
                    f"(limit {limit:.2g}): training uses the replay's values; model.dtype float32 has no gap"
                )

    # Evaluation and checkpoints

    def _with_average(self, measure: Callable[[Policy], Evaluation]) -> Evaluation:
        """Evaluate the averaged weights where the run keeps an average."""
        if self.average is None:
            return measure(self.parts.policy)
        self.average.swap()
        try:
            return measure(self.parts.policy)
        finally:
            self.average.swap()

    def _evaluate(self, when: Any, progress: Progress) -> None:
        if self.recorder.evaluated(when):
            return
        progress.note(f"evaluating {when} training ...")
        result = self._with_average(self.parts.evaluator.compare)
        summary = self.recorder.evaluation(when, result, self.recipe.eval.limit)[when]
        progress.evaluated()
        progress.note(f"{when} training: {describe_summary(summary)}")

    @cached_property
    def reference_hash(self) -> str | None:
        """The frozen reference's fingerprint, taken once a run: of a large model it reads many gigabytes."""
        return fingerprint(self.parts.reference)

    def save(self) -> None:
        """Write a complete checkpoint of the finished iterations (nothing to do if it is there)."""
        if self.saved == self.done:
            return
        tensors = checkpoint.prefixed("optimizer", self.optimizer.state())
        if self.average is None:
            save_model = self.parts.save_model
        else:
            raw = {n: p.detach().clone() for n, p in self.average.parameters.items()}
            tensors |= checkpoint.prefixed("raw", raw)
            save_model = self._save_averaged
        facts = {"recipe": self.recipe.name, "reference": self.reference_hash}
        state = checkpoint.TrainingState(self.done, tensors, facts)
        checkpoint.save(self.run_dir, state, save_model, keep=self.recipe.checkpoint.keep)
        self.saved = self.done

    def _save_averaged(self, folder: Path) -> None:
        assert self.average is not None
        self.average.swap()
        try:
            self.parts.save_model(folder)
        finally:
            self.average.swap()

    def resume(self) -> int:
        """Go back to the last complete checkpoint (or the start), cut later metric lines; return the iterations."""
        checkpoint.clean(self.run_dir)
        folders = checkpoint.complete(self.run_dir)
        if folders:
            state = checkpoint.load(folders[-1])
            check_adapter(self.recipe.model.lora, self.parts.policy.module, folders[-1])
            if state.facts.get("reference") != self.reference_hash:
                raise ValueError(
                    f"the reference model of {self.run_dir} is not the one it was started with: "
                    f"restore model.path {self.recipe.model.path}, or start a new run"
                )
            try:
                self.parts.load_model(folders[-1])
            except ValueError as error:
                raise checkpoint.damaged(folders[-1], error) from error
            self.optimizer.load_state(checkpoint.unprefixed("optimizer", state.tensors))
            if self.average is not None:
                self._restore_average(checkpoint.unprefixed("raw", state.tensors))
            self.done = self.saved = state.done
        truncate_metrics(self.run_dir, self.done)
        return self.done

    @torch.no_grad()
    def _restore_average(self, raw: dict[str, torch.Tensor]) -> None:
        """The checkpoint's model is the average, and the raw weights lie beside it."""
        assert self.average is not None
        for name, parameter in self.average.parameters.items():
            self.average.shadow[name].copy_(parameter)
            parameter.copy_(raw[name])


def fingerprint(reference: Scorer | None) -> str | None:
    """A hash of a model's weights (without an adapter's), to notice that a reference was exchanged."""
    if reference is None:
        return None
    digest = hashlib.sha256()
    for name, tensor in sorted(base_state_dict(reference.module).items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
