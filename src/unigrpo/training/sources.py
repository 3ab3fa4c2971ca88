"""Where an iteration's trajectories come from: rollouts that were scored, or demonstrations."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from unigrpo import doing, memory, suspects
from unigrpo.objectives.advantage import Advantage, Share
from unigrpo.policy import Policy
from unigrpo.ranges import NotFiniteError
from unigrpo.rewards.answers import RewardFault, commonest, no_number
from unigrpo.rewards.calling import Worker, abandon
from unigrpo.rollout.engine import RandomKeys, Sampling
from unigrpo.rollout.episode import Episode
from unigrpo.rollout.sample import Drawn, sample
from unigrpo.training.clock import Clock
from unigrpo.training.figures import describe, failures
from unigrpo.training.full_memory import REWARD
from unigrpo.training.parallel import ONE_PROCESS, Drawing, World, as_it_is
from unigrpo.training.scores import Rewarding, of_owners
from unigrpo.training.scores import score as score
from unigrpo.training.sharing import (
    balanced,
    key_of,
    light,
    minibatch_of,
    portions_of,
    with_verdict,
)
from unigrpo.trajectory import Prompt, Trajectory


@dataclass(frozen=True)
class RolloutBatch:
    """One iteration's trajectories that are trained on, what to log of them, and everything that was made.

    samples: all trajectories, also those that could not be scored, beside their pictures (uint8 [B, 3, H, W]).
    Of several ranks, ``trajectories`` are this one's to train on, and ``samples`` those of all, without the numbers of
    their pictures; ``pictures`` are those that this rank drew, of the samples whose keys are ``drawn``.
    thumbnails: all pictures made small (``canaries.small``), where ``pictures`` no longer has them all. earlier: of
    several ranks and rounds the drawings before the last uint8 [3, H, W] of a sample, by its key: those that this rank
    drew, and then (``recorder.gathered``) those that are shown.
    """

    trajectories: list[Trajectory]
    metrics: dict[str, Any] = field(default_factory=dict)
    pictures: Tensor | None = None
    samples: list[Trajectory] = field(default_factory=list)
    drawn: list[tuple[int, int]] = field(default_factory=list)
    thumbnails: Tensor | None = None
    earlier: Mapping[tuple[int, int], tuple[Tensor, ...]] = field(default_factory=dict)

    @property
    def trained(self) -> list[Trajectory]:
        """All that are trained on, in order: those of ``samples`` that could be scored."""
        return [t for t in self.samples if t.failure is None]


class Source(Protocol):
    """Gives the trajectories of an iteration, the same for the same iteration."""

    def collect(self, policy: Policy, iteration: int, clock: Clock) -> RolloutBatch:
        """Make (or read) one iteration's trajectories."""
        ...


class PromptSource(Protocol):
    """A stream of prompts with random access."""

    def batch(self, iteration: int, n: int) -> list[Prompt]:
        """The n prompts of an iteration."""
        ...


@dataclass(frozen=True)
class RolloutSource:
    """Think, draw, score, compare: rollouts of the policy with group advantages, ``batch`` samples at a time."""

    prompts: PromptSource
    episode: Episode
    sampling: Sampling
    reward: Rewarding
    prompts_per_iteration: int
    group_size: int
    seed: int
    advantage: Advantage
    shares: tuple[Share, ...] = ()
    batch: int | None = None
    minibatches: int = 1
    world: World = ONE_PROCESS
    drawing: Drawing = as_it_is

    def collect(self, policy: Policy, iteration: int, clock: Clock) -> RolloutBatch:
        """Sample, decode, score and assign advantages; one portion is scored while the next is drawn.

        Of several ranks each does this for its share of every minibatch; what is compared is compared over all ranks.
        """
        prompts = self.prompts.batch(iteration, self.prompts_per_iteration)
        with self.world.together(), self.drawing(policy) as drawer:
            pictures, scored = self._scored_meanwhile(self._drawn(drawer, prompts, iteration, clock), clock)
        if not self.world.many:
            self.reward.check_failures([t.failure for t in scored])
            ready = self._assigned(scored)
            trained = [t for t in ready if t.failure is None]
            return RolloutBatch(trained, {**describe(trained), **failures(scored)}, pictures, ready)
        return self._of_all(policy, prompts, pictures, scored)

    def _drawn(self, policy: Policy, prompts: Sequence[Prompt], iteration: int, clock: Clock) -> Iterator[Drawn]:
        """This rank's samples: of one process, all of them."""
        together = self.sampling.images_per_thinking if self.episode.think else 1
        shares = portions_of(self.world, len(prompts), self.group_size, together=together, minibatches=self.minibatches)
        for portion in shares:
            yield from sample(
                policy,
                self.episode,
                [prompts[index] for index in portion.prompts],
                self.sampling,
                RandomKeys(self.seed, iteration),
                samples=portion.count,
                batch=self.batch,
                first_sample=portion.first,
                timed=lambda phase: clock.phase("rollout" if phase == "rollout" else "reward"),
            )

    def _of_all(
        self, policy: Policy, prompts: Sequence[Prompt], pictures: Tensor, scored: list[Trajectory]
    ) -> RolloutBatch:
        """The same of all ranks' samples: advantages of all, this rank's trajectories, evenly loaded."""
        order = {prompt.position: place for place, prompt in enumerate(prompts)}
        everybody = [t for some in self.world.gather([light(t) for t in scored]) for t in some]
        everybody.sort(key=lambda t: (order[t.prompt.position], t.sample))
        everybody = [replace(t, prompt=prompts[order[t.prompt.position]]) for t in everybody]
        self.reward.check_failures([t.failure for t in everybody])
        ready = self._assigned(everybody)
        trained = [t for t in ready if t.failure is None]
        known = {key_of(t): t for t in ready}
        mine = [with_verdict(t, known[key_of(t)]) for t in scored]
        mine = [t for t in mine if t.failure is None]
        device = next(policy.module.parameters()).device
        parts = minibatch_of([t.prompt.position for t in trained], self.minibatches)
        for k in range(max(parts.values()) + 1):
            inside = [t for t in mine if parts[t.prompt.position] == k]
            outside = [t for t in mine if parts[t.prompt.position] != k]
            mine = outside + balanced(self.world, inside, device)
        mine.sort(key=lambda t: (order[t.prompt.position], t.sample))
        drawn = [key_of(t) for t in scored]
        earlier = {key_of(t): t.looked_at for t in scored if t.looked_at}
        return RolloutBatch(mine, {**describe(trained), **failures(everybody)}, pictures, ready, drawn, earlier=earlier)

    def _scored_meanwhile(self, made: Iterable[Drawn], clock: Clock) -> tuple[Tensor, list[Trajectory]]:
        """All pictures, and their trajectories scored in a thread of its own: only the last portion is waited for.

        A portion's fault is raised when the next one has been drawn; then, and after Ctrl-C, no further one is scored.
        """
        pictures: list[Tensor] = []
        waiting: list[tuple[Drawn, Future[tuple[list[Trajectory], float]]]] = []
        scoring = Worker("scoring")
        try:
            for part in made:
                if any(future.done() and future.exception() for _, future in waiting):
                    break
                pictures.append(part.pictures)
                waiting.append((part, scoring.submit(lambda part=part: _timed_score(self.reward, part))))
            doing.say("scoring")
            with clock.phase("reward"), clock.phase("reward_wait"):
                done = [_scored(part, future) for part, future in waiting]
        except BaseException:
            for _, future in waiting:
                future.cancel()
            abandon()
            raise
        finally:
            scoring.close()
        if len(done) > 1:
            clock.add("reward_hidden", max(0.0, sum(seconds for _, seconds in done) - clock.seconds["reward_wait"]))
        together, scored = torch.cat(pictures), [t for trajectories, _ in done for t in trajectories]
        _name_no_numbers(scored, together)
        return together, scored

    def _assigned(self, scored: Sequence[Trajectory]) -> list[Trajectory]:
        """All samples, with advantages where they could be scored; a sample alone in its group teaches nothing."""
        size, left = (Counter(t.prompt.position for t in some) for some in (scored, _valid(scored)))
        alone = {position for position, count in left.items() if count < 2 <= size[position]}
        marked = [replace(t, failure=ALONE) if t.prompt.position in alone and not t.failure else t for t in scored]
        if not _valid(marked):
            reasons = commonest((t.failure for t in scored if t.failure is not None), 1)
            why = "".join(f"; most often ({times} of {len(scored)}): {reason}" for reason, times in reasons)
            raise RewardFault(f"no prompt has two samples that could be scored: there is nothing to learn from{why}")
        try:
            ready = iter(self.advantage.assign(_valid(marked), self.shares))
        except NotFiniteError as error:
            if self.world.first:  # all ranks compare the same
                suspects.note("advantage", str(error), sorted(_valid(marked), key=_finite_reward))
            raise
        return [next(ready) if t.failure is None else t for t in marked]


ALONE = "the other samples of its prompt could not be scored"


def _valid(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    return [t for t in trajectories if t.failure is None]


def _finite_reward(trajectory: Trajectory) -> bool:
    return trajectory.reward is not None and math.isfinite(trajectory.reward)


def _name_no_numbers(scored: Sequence[Trajectory], pictures: Tensor) -> None:
    """Name the samples for which a reward gave no finite number, with their pictures."""
    rows = [i for i, t in enumerate(scored) if t.failure is not None and no_number(t.failure)]
    if rows:
        suspects.note("reward", str(scored[rows[0]].failure), [scored[i] for i in rows], pictures[rows])


def _scored(part: Drawn, future: Future[tuple[list[Trajectory], float]]) -> tuple[list[Trajectory], float]:
    """Wait for a portion's scores; where a fault ends the run, the samples that gave no number are named first."""
    try:
        with memory.phase(REWARD):
            return doing.result_of(future)
    except RewardFault as fault:
        errors = of_owners(fault.errors, part.every.owners)
        told = [replace(t, failure=errors.get(i)) for i, t in enumerate(part.trajectories)]
        _name_no_numbers(told, part.pictures)
        raise


def _timed_score(reward: Rewarding, drawn: Drawn) -> tuple[list[Trajectory], float]:
    start = time.perf_counter()
    return score(reward, drawn), time.perf_counter() - start


@dataclass(frozen=True)
class DemonstrationSource:
    """Supervised data: ``make(policy, iteration, share)`` gives a rank's share of trajectories with targets."""

    make: Callable[[Policy, int, World], list[Trajectory]]
    world: World = ONE_PROCESS

    def collect(self, policy: Policy, iteration: int, clock: Clock) -> RolloutBatch:
        """Make one batch of demonstrations."""
        with clock.phase("data"), torch.no_grad(), self.world.together():
            made = self.make(policy, iteration, self.world)
        if not self.world.many:
            return RolloutBatch(made, samples=made)
        everybody = [t for some in self.world.gather([light(t) for t in made]) for t in some]
        return RolloutBatch(made, samples=everybody)
