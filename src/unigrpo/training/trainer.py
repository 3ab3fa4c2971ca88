"""The loop: collect, annotate, update, log; it never asks which method it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from unigrpo import doing, seeds
from unigrpo.evaluation.evaluator import Evaluation, describe_summary, summarise
from unigrpo.objectives.image_terms import LatentReward
from unigrpo.objectives.method import Method
from unigrpo.policy import Policy, SavesLater, Scorer
from unigrpo.ranges import NotFiniteError
from unigrpo.recipe import Recipe
from unigrpo.reports import runlog
from unigrpo.reports.progress import Progress
from unigrpo.rewards.answers import alike
from unigrpo.training.alarms import Alarm, Alarms, sentence
from unigrpo.training.clock import Clock
from unigrpo.training.metrics import metrics_line
from unigrpo.training.optimizer import ExpertOptimizer, MovingAverage, TrainingFault
from unigrpo.training.parallel import ONE_PROCESS, LostRank, World, drifted
from unigrpo.training.recorder import NoRecorder, Recorder, gathered, training_canaries
from unigrpo.training.replay import Batch, Ranks
from unigrpo.training.saving import Saver, Snapshot, Whole, as_held
from unigrpo.training.sharing import tokens_of
from unigrpo.training.signal import Movement, SignalWatch, missing_signal
from unigrpo.training.sinks import Place, opened
from unigrpo.training.sources import RolloutBatch, Source
from unigrpo.training.stopping import Haste, Stop
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
from unigrpo.trajectory import Trajectory

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
class RunComponents:
    """Everything a run is made of; ``build`` turns a recipe's names into these."""

    policy: Policy
    reference: Scorer | None
    method: Method
    source: Source
    evaluator: Evaluator
    snapshot: Snapshot
    load_model: Callable[[Path], None]
    compute_dtype: torch.dtype = torch.float32
    latent_reward: LatentReward | None = None
    world: World = ONE_PROCESS
    reference_hash: str | None = None
    whole: Whole = as_held
    spread: SavesLater | None = None


@dataclass
class Trainer:
    """One run in one folder."""

    recipe: Recipe
    parts: RunComponents
    run_dir: Path
    stop: Stop = field(default_factory=Stop)
    milestone: Callable[[], None] = lambda: None  # called after a validation or a checkpoint

    def __post_init__(self) -> None:
        recipe, policy, self.world = self.recipe, self.parts.policy, self.parts.world
        self.alarms = Alarms(recipe, self.run_dir)
        self.recorder = Recorder(self.run_dir, self.alarms) if self.world.first else NoRecorder(self.run_dir)
        self.optimizer = ExpertOptimizer(policy, recipe.optimizer, recipe.iterations)
        self.average = MovingAverage(policy, recipe.optimizer.ema) if recipe.optimizer.ema else None
        self.saver = Saver(
            recipe,
            self.run_dir,
            policy,
            self.parts.reference,
            self.optimizer,
            self.average,
            self.parts.snapshot,
            self.parts.load_model,
            world=self.world,
            known_reference=self.parts.reference_hash,
            whole=self.parts.whole,
            spread=self.parts.spread,
        )
        self.haste = Haste(self.stop, recipe.checkpoint.stop_within_s)
        self.done = 0
        self.steps = 0  # optimizer steps of the ``done`` iterations
        self.under_way = ""  # what would be lost of unfinished work, in words
        self.notes: list[str] = []  # of resuming, for a person
        self.trained_seconds = 0.0
        self.warned: set[str] = set()
        self.sounding: set[str] = set()  # alarms of the last validation
        self.movement, self.watch = Movement(self.optimizer), SignalWatch()

    def run(self, progress: Progress) -> bool:
        """Train to the end (True) or until stopped (False); a fault saves what was finished and is raised again."""
        place = Place(self.run_dir, self.recipe.name, asdict(self.recipe))
        loggers = self.recipe.log if self.world.first else ()
        told = self.recorder.watched(opened(loggers, place, progress.note))
        # of several ranks, one breaks off only where none waits for another (``World.together``)
        with told, doing.checked(self._look), doing.breakable(not self.world.many):
            try:
                return self._train(progress)
            except doing.GivenUp:
                self._give_up(progress)
                return False
            finally:
                if (fault := self.saver.end()) is not None:
                    progress.note(f"the checkpoint that was being written is not complete: {fault}")

    @property
    def changed(self) -> bool:
        """Whether the weights are further than those of the finished iterations."""
        return self.optimizer.steps != self.steps

    def _look(self) -> None:
        """Give up what is under way, where it would take longer than a stop may."""
        if self.haste.late(changed=self.changed):
            raise doing.GivenUp

    def _look_together(self) -> None:
        """The same before an iteration's first step, after which giving up loses more: all ranks agree."""
        if any(self.world.gather(self.haste.late(changed=False))):
            raise doing.GivenUp

    def _give_up(self, progress: Progress) -> None:
        """Save what is finished, where the weights are still those."""
        self.haste.over = True
        if not self.changed:
            self.save()
        self.saver.wait()
        lost = self.unsaved()
        progress.note(f"{lost} is given up: it would take longer than checkpoint.stop_within_s" if lost else "saved")

    def _train(self, progress: Progress) -> bool:
        for note in self.notes:
            progress.note(note)
        self._evaluate("before", progress)
        self.saver.start_clock()
        if self._stopping() and self.done < self.recipe.iterations:
            self.save()
            return False
        if self.done < self.recipe.iterations:
            self.recorder.forget("after", "paired", "alarms", "stopped")
        try:
            while self.done < self.recipe.iterations:
                self.under_way = f"what is done of iteration {self.done + 1}"
                self.haste.begin()
                line = self.iterate(self.done)
                self.haste.end()
                self.done, self.steps, self.under_way = self.done + 1, self.optimizer.steps, ""
                self.trained_seconds += line["seconds"]["total"]
                self.recorder.metrics(line)
                progress.update(line)
                self._warn(line, progress)
                self.saver.look()
                if self.world.told(self.saver.due(self.done)):
                    self.save(wait=False)
                    progress.aside("checkpoint")
                    self.milestone()
                elif "validation" in line:
                    self.milestone()
                if self._stopping() and self.done < self.recipe.iterations:
                    self.save()
                    return False
            self.saver.wait()
        except Exception as error:
            # else this iteration is half made, and the last checkpoint stands; so it does where ranks are not together
            apart = self.world.sharded or isinstance(error, LostRank)
            if self.optimizer.steps == self.steps and not (apart or self.saver.failed):
                self.save()
            self.recorder.stopped(self.done, str(error), diverged=isinstance(error, NotFiniteError))
            raise
        self._evaluate("after", progress)
        return True

    def _stopping(self) -> bool:
        """Whether any rank was asked to stop: all stop after the same iteration."""
        asked = [by for by in self.world.gather(self.stop.by if self.stop.requested else None) if by is not None]
        if asked and self.world.many:
            self.stop.requested, self.stop.by = True, asked[0]
        return self.stop.requested

    # One iteration

    def iterate(self, iteration: int) -> dict[str, Any]:
        """Collect, annotate, update; return the metric line."""
        clock, recipe = Clock(), self.recipe
        started = time.perf_counter()
        rates = self.optimizer.set_iteration(iteration)
        collected = self.parts.source.collect(self.parts.policy, iteration, clock)
        doing.say("asking the reference, and what else stays the same over epochs")
        with clock.phase("annotate"):
            batch, gap = self.annotate(collected, iteration)
        with clock.phase("update"):
            self.movement.mark()
            updates = self.update(batch, collected.trained if self.world.many else ())
            still = self.movement.still(self.world)
            self._check_drift()
        collected = gathered(self.world, collected)
        if self.average is not None:
            self.average.update(iteration)
        self.recorder.rewards(collected, iteration)
        canaries = training_canaries(self.parts.policy, collected)
        validation, alarms = None, []
        if (iteration + 1) % recipe.eval.every == 0:
            with clock.phase("validation"):
                validation, alarms = self.validate(collected, canaries, iteration)
                self.recorder.samples(self.parts.policy, collected, iteration)
        return metrics_line(
            iteration=iteration,
            collected=collected,
            updates=updates,
            rates=rates,
            canaries=canaries,
            validation=validation,
            gap=gap,
            no_signal=missing_signal(collected.metrics, self.parts.method, updates, still),
            seconds={**clock.seconds, "total": time.perf_counter() - started},
            alarms=alarms,
        )

    def validate(
        self, collected: RolloutBatch, canaries: Mapping[str, float], iteration: int
    ) -> tuple[dict[str, Any], list[Alarm]]:
        """The figures and canaries of the cadence evaluation, and its alarms; ``canaries``: of the training samples."""
        result = self._with_average(self.parts.evaluator.validate)
        if not self.world.first:  # who has no records, and keeps no history
            return summarise(result.records), []
        now = {"iteration": iteration, **collected.metrics, "canaries": canaries}
        lines = [*runlog.read_metrics(self.run_dir), now]
        own, alarms = self.alarms.validation(result, iteration, lines)
        return {**summarise(result.records), "canaries": own}, alarms

    def annotate(self, collected: RolloutBatch, iteration: int) -> tuple[Batch, dict[str, float]]:
        """Fix what stays the same over epochs: the queries, the reference's answers, below fp32 the old values.

        Also returns how far the rollout and its replay are apart in low precision (nothing in fp32).
        """
        method, optimizer, recipe, world = self.parts.method, self.recipe.optimizer, self.recipe, self.world
        temperature = recipe.rollout.temperature
        queries = [
            method.queries(
                t,
                seeds.generator(recipe.seed, iteration, t.prompt.position, t.sample, "draws"),
                shift=recipe.rollout.shift,
            )
            for t in collected.trajectories
        ]
        reference = self.parts.reference if method.needs_reference else None
        if method.needs_reference and reference is None:
            raise ValueError("this method regularises towards a reference, but the run was built without one")
        rounds = self.parts.compute_dtype != torch.float32 and method.needs_old_values
        ready, gap = Batch([], []), {"text": 0.0, "image": 0.0}
        whole = Batch(collected.trajectories, queries)
        how: Any = {"micro_batch": optimizer.micro_batch, "temperature": temperature, "ranks": self._ranks(whole)}
        with nullcontext() if world.sharded else world.together():
            for part in minibatches(whole, optimizer.minibatches, collected.trained if world.many else ()):
                # cut into the very micro-batches that are trained on: other shapes would round otherwise
                if reference is not None:
                    part = annotate_reference(reference, part, **how)
                if method.needs_behaviour_velocity:
                    part = annotate_behaviour(self.parts.policy, part, **how)
                if rounds:
                    part, apart = rescore(self.parts.policy, part, **how)
                    gap = {kind: max(gap[kind], apart[kind]) for kind in gap}
                ready = Batch(ready.trajectories + part.trajectories, ready.queries + part.queries)
        if not rounds:
            return ready, {}
        return ready, {kind: max(said[kind] for said in world.gather(gap)) for kind in gap}

    def _ranks(self, batch: Batch) -> Ranks:
        """How ranks keep step: each has its shortest trajectory to replay where another has more to do."""
        if not self.world.sharded:
            return Ranks(self.world)
        rows = sorted(range(len(batch)), key=lambda row: tokens_of(batch.trajectories[row]))
        return Ranks(self.world, batch.part(rows[0], rows[0] + 1) if rows else None)

    def _check_drift(self) -> None:
        """TrainingFault where ranks that hold all weights do not hold the same ones."""
        if not self.world.many or self.world.sharded:
            return
        if others := drifted(self.world, [self.movement.numbers()]):
            raise TrainingFault(
                f"the weights of rank {others[0]} are not those of rank 0: their updates were not the same. Nothing of "
                "this iteration is saved; go on with --resume, and if it happens again, report it"
            )

    def update(self, batch: Batch, everybody: Sequence[Trajectory] = ()) -> list[Updated]:
        """ppo_epochs passes over disjoint minibatches, one optimizer step each; the very first checks the ratios.

        ``everybody``: the trajectories of all ranks that are trained on, where there are several.
        """
        config, updates = self.recipe.optimizer, []
        ranks = self._ranks(batch)
        for _ in range(config.ppo_epochs):
            for part in minibatches(batch, config.minibatches, everybody):
                updates.append(
                    update(
                        self.parts.policy,
                        self.optimizer,
                        self.parts.method,
                        part,
                        micro_batch=config.micro_batch,
                        temperature=self.recipe.rollout.temperature,
                        check=self.bounds() if not updates else None,
                        latent_reward=self.parts.latent_reward,
                        ranks=ranks,
                        before_step=None if updates else self._look_together,
                    )
                )
        self.optimizer.zero_grad()  # gradients take memory that the next rollout can use
        return updates

    def bounds(self) -> RatioBounds:
        """How far the first ratios may be from 1."""
        return ratio_bounds(self.parts.compute_dtype, self.clip_range)

    @property
    def clip_range(self) -> float | None:
        """The range to which ratios of SDE steps are clipped; None for a method without any."""
        return self.parts.method.clip_range_for(self.parts.policy.spec.num_elements)

    def _warn(self, line: dict[str, Any], progress: Progress) -> None:
        """Say when nothing is learned, or when rollout and replay round so differently that clipping acts on it."""
        if told := self.watch.note(line.get("no_signal", []), line["iteration"]):
            progress.note(told)
        if "validation" in line:
            self._sound(line.get("alarms", []), line["iteration"], progress)
        for reason in line.get("failures", []):
            kind = alike(reason.partition(": ")[2])
            if kind not in self.warned:
                self.warned.add(kind)
                progress.note(f"warning: samples that could not be scored are left out of training, {reason}")
        gap, limits = line.get("rollout_gap", {}), {"text": TEXT_GAP_LIMIT, "image": self.clip_range}
        for kind, limit in limits.items():
            if limit is not None and gap.get(kind, 0.0) > limit and kind not in self.warned:
                self.warned.add(kind)
                progress.note(
                    f"warning: rollout and replay differ by {gap[kind]:.2g} in the {kind} log ratio "
                    f"(limit {limit:.2g}): training uses the replay's values; model.dtype float32 has no gap"
                )

    def _sound(self, alarms: Sequence[Mapping[str, Any]], iteration: int, progress: Progress) -> None:
        """Say at once what has left its band, where the look before did not say so."""
        for alarm in alarms:
            if alarm["title"] not in self.sounding:
                progress.note(sentence(alarm, iteration))
        self.sounding = {alarm["title"] for alarm in alarms}

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
        if self.world.told(self.recorder.evaluated(when)):
            return
        progress.note(f"evaluating {when} training ...")
        self.under_way = f"the evaluation {when} training"
        result = self._with_average(self.parts.evaluator.compare)
        if not self.world.first:
            self.under_way = ""
            return
        summary = self.recorder.evaluation(when, result, self.recipe.eval.limit, self.done)
        self.under_way = ""
        progress.aside("evaluation")
        progress.note(f"{when} training: {describe_summary(summary[when])}")
        if when == "after":
            last = [alarm for alarm in summary.get("alarms", []) if alarm["when"] == "after"]
            self._sound(last, self.done - 1, progress)

    def save(self, *, wait: bool = True) -> None:
        """Write a complete checkpoint of the finished iterations (nothing to do if it is there); or only begin it."""
        self.saver.save(self.done)
        if wait:
            self.saver.wait()
        self.haste.saved(self.saver.seconds)

    def resume(self) -> int:
        """Go back to the last complete checkpoint (or the start), cut later metric lines; return the iterations."""
        self.done = self.saver.restore()
        if self.world.first:
            self.notes += runlog.settle_metrics(self.run_dir, self.done)
            self.alarms.settle(self.done)
            validations = [line for line in runlog.read_metrics(self.run_dir) if "validation" in line]
            self.sounding = {alarm["title"] for line in validations[-1:] for alarm in line.get("alarms", [])}
        return self.done

    def unsaved(self) -> str:
        """What would be lost if the run ended now, in words; empty if nothing would."""
        count = self.done - (self.saver.complete or 0)
        finished = f"{count} finished iteration{'s' if count > 1 else ''} since the last checkpoint" if count else ""
        return " and ".join(part for part in (finished, self.under_way) if part)
