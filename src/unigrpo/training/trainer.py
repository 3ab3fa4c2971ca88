"""The loop: collect, annotate, update, log; it never asks which method it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unigrpo import doing, memory, seeds, suspects
from unigrpo.evaluation.evaluator import describe_summary
from unigrpo.plurals import counted
from unigrpo.ranges import NotFiniteError
from unigrpo.recipe import Recipe
from unigrpo.reports import runlog
from unigrpo.reports.progress import Progress
from unigrpo.training.alarms import Alarms
from unigrpo.training.annotating import annotated, asked_of
from unigrpo.training.clock import Clock
from unigrpo.training.components import RunComponents as RunComponents
from unigrpo.training.fault_files import FaultFiles
from unigrpo.training.flops import Effort
from unigrpo.training.full_memory import ANNOTATE, ROLLOUT, UPDATE, advice_for
from unigrpo.training.looks import Looks
from unigrpo.training.metrics import metrics_line
from unigrpo.training.optimizer import ExpertOptimizer, MovingAverage
from unigrpo.training.parallel import LostRank, check_drift
from unigrpo.training.recorder import NoRecorder, Recorder, gathered, training_canaries
from unigrpo.training.replay import Batch, minibatches, ranks_of
from unigrpo.training.saving import Saver
from unigrpo.training.signal import Movement, missing_signal
from unigrpo.training.sinks import Place, opened
from unigrpo.training.sources import RolloutBatch
from unigrpo.training.stopping import Haste, Stop
from unigrpo.training.update import RatioBounds, Updated, ratio_bounds, update
from unigrpo.training.voice import Voice
from unigrpo.trajectory import Trajectory


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
        self.effort, self.alarms = Effort.of_run(recipe, self.parts), Alarms(recipe, self.run_dir)
        self.recorder = Recorder(self.run_dir, self.alarms) if self.world.first else NoRecorder(self.run_dir)
        self.optimizer = ExpertOptimizer(policy, recipe.optimizer, recipe.iterations)
        self.average = MovingAverage(policy, recipe.optimizer.ema) if recipe.optimizer.ema else None
        self.looks = Looks(self.parts, self.run_dir, self.alarms, self.average)
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
        self.done, self.trained_seconds = 0, 0.0
        self.steps = 0  # optimizer steps of the ``done`` iterations
        self.under_way = ""  # what would be lost of unfinished work, in words
        self.notes: list[str] = []  # of resuming, for a person
        self.movement, self.voice = Movement(self.optimizer), Voice(self.clip_range)
        self.faults = FaultFiles(self.run_dir, policy, self.world.rank)

    def run(self, progress: Progress) -> bool:
        """Train to the end (True) or until stopped (False); a fault saves what was finished and is raised again."""
        place = Place(self.run_dir, self.recipe.name, asdict(self.recipe))
        loggers = self.recipe.log if self.world.first else ()
        told = self.recorder.watched(opened(loggers, place, progress.note))
        # of several ranks, one breaks off only where none waits for another (``World.together``)
        self.faults.say = progress.note
        with told, doing.checked(self._look), doing.breakable(not self.world.many), suspects.kept(self.faults.keep):
            try:
                with memory.advised(advice_for(self.recipe)):
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
                self.voice.warn(line, progress)
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
        clock, recipe, started = Clock(), self.recipe, time.perf_counter()
        self.faults.iteration = iteration
        rates = self.optimizer.set_iteration(iteration)
        with memory.phase(ROLLOUT):
            collected = self.parts.source.collect(self.parts.policy, iteration, clock)
        doing.say("asking the reference, and what else stays the same over epochs")
        with clock.phase("annotate"), memory.phase(ANNOTATE):
            batch, gap = self.annotate(collected, iteration)
        with clock.phase("update"), memory.phase(UPDATE):
            self.movement.mark()
            updates = self.update(batch, collected.trained if self.world.many else ())
            still = self.movement.still(self.world)
            check_drift(self.world, self.movement.numbers)
        collected = gathered(self.world, collected)
        if self.average is not None:
            self.average.update(iteration)
        self.recorder.rewards(collected, iteration)
        canaries = training_canaries(self.parts.policy, collected)
        validation, alarms = None, []
        if (iteration + 1) % recipe.eval.every == 0:
            with clock.phase("validation"):
                validation, alarms = self.looks.validate(collected, canaries, iteration)
                self.recorder.samples(self.parts.policy, collected, iteration)
        clock.add("total", time.perf_counter() - started)
        return metrics_line(
            iteration=iteration,
            collected=collected,
            updates=updates,
            rates=rates,
            canaries=canaries,
            validation=validation,
            gap=gap,
            no_signal=missing_signal(collected.metrics, self.parts.method, updates, still),
            seconds=clock.seconds,
            alarms=alarms,
            compute=self.effort.of(collected, clock.seconds),
        )

    def annotate(self, collected: RolloutBatch, iteration: int) -> tuple[Batch, dict[str, float]]:
        """Fix what stays the same over epochs: the queries, the reference's answers, below fp32 the old values.

        Also returns how far the rollout and its replay are apart in low precision (nothing in fp32).
        """
        method, recipe = self.parts.method, self.recipe
        queries = [
            method.queries(
                t,
                seeds.generator(recipe.seed, iteration, t.prompt.position, t.sample, "draws"),
                shift=recipe.rollout.shift,
            )
            for t in collected.trajectories
        ]
        whole = Batch(collected.trajectories, queries)
        return annotated(
            asked_of(recipe, self.parts),
            whole,
            ranks_of(self.world, whole),
            collected.trained if self.world.many else (),
        )

    def update(self, batch: Batch, everybody: Sequence[Trajectory] = ()) -> list[Updated]:
        """ppo_epochs passes over disjoint minibatches, one optimizer step each; the very first checks the ratios.

        ``everybody``: the trajectories of all ranks that are trained on, where there are several.
        """
        config, updates = self.recipe.optimizer, []
        ranks = ranks_of(self.world, batch)
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

    # Evaluation and checkpoints

    def _evaluate(self, when: Any, progress: Progress) -> None:
        if self.world.told(self.recorder.evaluated(when)):
            return
        progress.note(f"evaluating {when} training ...")
        self.under_way = f"the evaluation {when} training"
        result = self.looks.measured(self.parts.evaluator.compare)
        if not self.world.first:
            self.under_way = ""
            return
        summary = self.recorder.evaluation(when, result, self.recipe.eval.limit, self.done)
        self.under_way = ""
        progress.aside("evaluation")
        progress.note(f"{when} training: {describe_summary(summary[when])}")
        if when == "after":
            last = [alarm for alarm in summary.get("alarms", []) if alarm["when"] == "after"]
            self.voice.sound(last, self.done - 1, progress)

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
            self.voice.sounding = {alarm["title"] for line in validations[-1:] for alarm in line.get("alarms", [])}
        return self.done

    def unsaved(self) -> str:
        """What would be lost if the run ended now, in words; empty if nothing would."""
        count = self.done - (self.saver.complete or 0)
        finished = f"{counted(count, 'finished iteration')} since the last checkpoint" if count else ""
        return " and ".join(part for part in (finished, self.under_way) if part)
