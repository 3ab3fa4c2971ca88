"""Where an iteration's trajectories come from: rollouts that were scored, or demonstrations."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from unigrpo import doing
from unigrpo.objectives.advantage import Advantage, Share, advantage_statistics
from unigrpo.policy import Policy
from unigrpo.rewards.answers import RewardFault, commonest
from unigrpo.rewards.calling import Worker, abandon
from unigrpo.rewards.composite import Scored
from unigrpo.rewards.protocol import RewardInput, metadata_of
from unigrpo.rollout.engine import RandomKeys, Sampling
from unigrpo.rollout.episode import Episode
from unigrpo.rollout.sample import Drawn, sample
from unigrpo.training.clock import Clock
from unigrpo.training.parallel import ONE_PROCESS, Drawing, World, as_it_is
from unigrpo.training.sharing import (
    balanced,
    key_of,
    light,
    minibatch_of,
    portions_of,
    with_verdict,
)
from unigrpo.trajectory import Image, Prompt, Text, Trajectory


@dataclass(frozen=True)
class RolloutBatch:
    """One iteration's trajectories that are trained on, what to log of them, and everything that was made.

    samples: all trajectories, also those that could not be scored, beside their pictures (uint8 [B, 3, H, W]).
    Of several ranks, ``trajectories`` are this one's to train on, and ``samples`` those of all, without the numbers of
    their pictures; ``pictures`` are those that this rank drew, of the samples whose keys are ``drawn``.
    thumbnails: all pictures made small (``canaries.small``), where ``pictures`` no longer has them all.
    """

    trajectories: list[Trajectory]
    metrics: dict[str, Any] = field(default_factory=dict)
    pictures: Tensor | None = None
    samples: list[Trajectory] = field(default_factory=list)
    drawn: list[tuple[int, int]] = field(default_factory=list)
    thumbnails: Tensor | None = None

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


class Rewarding(Protocol):
    """Scores pictures, and says when too many of them failed (``rewards.composite.CompositeReward``)."""

    def __call__(self, given: RewardInput) -> Scored:
        """The values of B pictures, by reward."""
        ...

    def check_failures(self, failures: Sequence[str | None]) -> None:
        """RewardFault where too many failed."""
        ...


def score(reward: Rewarding, drawn: Drawn) -> list[Trajectory]:
    """Give every trajectory its reward, its values by name and the named parts of the verdict, or why it failed."""
    trajectories = drawn.trajectories
    given = RewardInput(
        images=drawn.pictures.float() / 255.0,
        prompts=[t.prompt.text for t in trajectories],
        metadata=metadata_of([t.prompt for t in trajectories]),
        thinking=drawn.thinking,
    )
    output = reward(given)
    return [
        replace(
            t,
            reward=None if i in output.failures else float(value),
            values={name: values[i] for name, values in output.by_name.items()},
            verdict={name: part[i] for name, part in output.parts.items()},
            failure=output.failures.get(i),
        )
        for i, (t, value) in enumerate(zip(trajectories, output.values, strict=True))
    ]


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
        return RolloutBatch(mine, {**describe(trained), **failures(everybody)}, pictures, ready, drawn)

    def _scored_meanwhile(self, made: Iterable[Drawn], clock: Clock) -> tuple[Tensor, list[Trajectory]]:
        """All pictures, and their trajectories scored in a thread of its own: only the last portion is waited for.

        A portion's fault is raised when the next one has been drawn; then, and after Ctrl-C, no further one is scored.
        """
        pictures: list[Tensor] = []
        waiting: list[Future[tuple[list[Trajectory], float]]] = []
        scoring = Worker("scoring")
        try:
            for part in made:
                if any(future.done() and future.exception() for future in waiting):
                    break
                pictures.append(part.pictures)
                waiting.append(scoring.submit(lambda part=part: _timed_score(self.reward, part)))
            doing.say("scoring")
            with clock.phase("reward"), clock.phase("reward_wait"):
                done = [doing.result_of(future) for future in waiting]
        except BaseException:
            for future in waiting:
                future.cancel()
            abandon()
            raise
        finally:
            scoring.close()
        if len(done) > 1:
            clock.add("reward_hidden", max(0.0, sum(seconds for _, seconds in done) - clock.seconds["reward_wait"]))
        return torch.cat(pictures), [trajectory for trajectories, _ in done for trajectory in trajectories]

    def _assigned(self, scored: Sequence[Trajectory]) -> list[Trajectory]:
        """All samples, with advantages where they could be scored; a sample alone in its group teaches nothing."""
        size, left = (Counter(t.prompt.position for t in some) for some in (scored, _valid(scored)))
        alone = {position for position, count in left.items() if count < 2 <= size[position]}
        marked = [replace(t, failure=ALONE) if t.prompt.position in alone and not t.failure else t for t in scored]
        if not _valid(marked):
            reasons = commonest((t.failure for t in scored if t.failure is not None), 1)
            why = "".join(f"; most often ({times} of {len(scored)}): {reason}" for reason, times in reasons)
            raise RewardFault(f"no prompt has two samples that could be scored: there is nothing to learn from{why}")
        ready = iter(self.advantage.assign(_valid(marked), self.shares))
        return [next(ready) if t.failure is None else t for t in marked]


ALONE = "the other samples of its prompt could not be scored"


def _valid(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    return [t for t in trajectories if t.failure is None]


def failures(scored: Sequence[Trajectory]) -> dict[str, Any]:
    """The share of samples that could not be scored, and the commonest reasons; nothing where all could."""
    found = [t.failure for t in scored if t.failure is not None]
    if not found:
        return {}
    reasons = [f"{count} of {len(scored)}: {reason}" for reason, count in commonest(found, 3)]
    return {"failed_share": len(found) / len(scored), "failures": reasons}


def _timed_score(reward: Rewarding, drawn: Drawn) -> tuple[list[Trajectory], float]:
    start = time.perf_counter()
    return score(reward, drawn), time.perf_counter() - start


def describe(trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    """Reward and advantage figures of an iteration, and how long the thinking was."""
    rewards = [t.reward or 0.0 for t in trajectories]
    thinking, drawing = (_advantages(trajectories, kind) for kind in (Text, Image))
    advantages = drawing or thinking
    figures = advantage_statistics(rewards, advantages, [t.prompt.position for t in trajectories])
    metrics: dict[str, Any] = {
        "reward_mean": figures["reward_mean"],
        "reward_std": figures["reward_std"],
        "reward_group_std": figures["reward_group_std"],
        "zero_variance_share": figures["zero_std_ratio"],
        "advantage_std": figures["advantage_std"],
    }
    if thinking and thinking != drawing:
        metrics["advantage_std_thinking"] = float(torch.tensor(thinking, dtype=torch.float64).std(correction=0))
    categories = [t.prompt.metadata.get("category") for t in trajectories]
    if all(isinstance(c, str) for c in categories):
        metrics["reward_by_category"] = mean_by(categories, rewards)
    for key, rows in (
        ("reward_values", [t.values for t in trajectories]),
        ("reward_parts", [t.verdict for t in trajectories]),
    ):
        if means := _means(rows):
            metrics[key] = means
    texts = [text for t in trajectories for text in t.sampled_texts]
    if texts:
        metrics["think_length"] = sum(text.num_actions for text in texts) / len(texts)
        metrics["think_cut_share"] = sum(not text.ended for text in texts) / len(texts)
    return metrics


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every name over the rows that have it: a reward may name other parts in another portion."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: sum(column) / len(column) for name, column in columns.items()}


def _advantages(trajectories: Sequence[Trajectory], kind: type[Text | Image]) -> list[float]:
    """The advantages of what was sampled, of one kind of segment."""
    found = (s.advantage for t in trajectories for s in t.segments if isinstance(s, kind))
    return [advantage for advantage in found if advantage is not None]


def mean_by(labels: Sequence[Any], values: Sequence[float]) -> dict[str, float]:
    """Mean of the values of each label, labels sorted."""
    groups: dict[str, list[float]] = {}
    for label, value in zip(labels, values, strict=True):
        groups.setdefault(str(label), []).append(value)
    return {label: sum(group) / len(group) for label, group in sorted(groups.items())}


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
