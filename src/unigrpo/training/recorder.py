"""What a run leaves in its folder while it goes on (the formats are those of ``reports.runlog``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from unigrpo.evaluation.canaries import colour_diversity, edge_energy, group_distances, plan_diversity, small
from unigrpo.evaluation.evaluator import Evaluation, compare, summarise
from unigrpo.files import write_json_atomic, write_records_atomic, write_text_atomic
from unigrpo.policy import Policy
from unigrpo.reports import runlog
from unigrpo.reports.grids import record_sheet, save_png_atomic
from unigrpo.reports.grids import thinking_of as whole_thinking
from unigrpo.reports.source_pictures import with_rounds, with_sources
from unigrpo.rollout.sample import thinking_of
from unigrpo.training.alarms import Alarms, firsts, look
from unigrpo.training.parallel import World
from unigrpo.training.records import looked_at, rounds_of, thinking_advantage, window_of
from unigrpo.training.sharing import key_of
from unigrpo.training.sinks import Shown, Sinks
from unigrpo.training.sources import RolloutBatch

SHEET_PICTURES, SAMPLED_TRAJECTORIES = 24, 12
CANARY_NUMBERS = 2**26
"""Floats that canaries are made from: all of small pictures, 85 pictures of 512 x 512, 21 of 1024 x 1024."""


class Recorder:
    """Writes one run's files; every write is whole or not there."""

    def __init__(self, run_dir: Path, alarms: Alarms | None = None) -> None:
        self.run_dir, self.sinks, self.alarms = run_dir, Sinks(run_dir, print), alarms

    @contextmanager
    def watched(self, sinks: Sinks) -> Iterator[None]:
        """Inside, other places to watch the run are told what the folder is told; they are closed whatever happens.

        One that is new to a run that was begun is told first what the folder holds.
        """
        self.sinks = sinks
        if before := runlog.read_json(self.run_dir / runlog.SUMMARY).get("before"):
            self._tell_start(before)
        for line in runlog.read_metrics(self.run_dir):
            sinks.scalars(line["iteration"] + 1, counted(line))
        try:
            yield
        except BaseException:
            sinks.close(failed=True)
            raise
        finally:
            sinks.close()

    def _tell_start(self, before: Mapping[str, Any]) -> None:
        point = before.get("validation", before)  # for curves of validations
        self.sinks.scalars(0, {"evaluation_before": before, "validation": point})

    def start(self, recipe_yaml: str, facts: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Write what the run was started with, or add where it is resumed; ``facts``: more of the environment."""
        path, now = self.run_dir / runlog.ENVIRONMENT, {**runlog.environment(), **facts}
        before = runlog.read_json(path)  # first, so that a damaged one is told before anything is written
        write_text_atomic(self.run_dir / runlog.RECIPE, recipe_yaml)
        if before:
            now = {**before, "resumed": [*before.get("resumed", []), now]}
        write_json_atomic(path, now)

    def metrics(self, line: Mapping[str, Any]) -> None:
        """Append one iteration."""
        runlog.append_metrics(self.run_dir, line)
        self.sinks.scalars(line["iteration"] + 1, counted(line))

    def rewards(self, collected: RolloutBatch, iteration: int) -> None:
        """Tell the sinks how the rewards of an iteration are spread."""
        if rewards := [t.reward for t in collected.trained if t.reward is not None]:
            self.sinks.histogram(iteration + 1, "rewards", rewards)

    def samples(self, policy: Policy, collected: RolloutBatch, iteration: int) -> None:
        """Keep a few training trajectories: two groups side by side, with words, reward and picture."""
        if collected.pictures is None:
            return
        some = collected.samples[:SAMPLED_TRAJECTORIES]
        records = [
            {
                "position": t.prompt.position,
                "sample": t.sample,
                "prompt": t.prompt.text,
                "thinking": thinking_of(policy, t),
                "reward": t.reward,
                "advantage": t.advantage,
                "window": window_of(t),
                **rounds_of(policy, t),
                "correct": bool(t.verdict["correct"]) if "correct" in t.verdict and t.failure is None else None,
                "verdict": dict(t.verdict),
                "values": dict(t.values),
                **thinking_advantage(t),
                **({"failure": t.failure} if t.failure else {}),
            }
            for t in some
        ]
        given = {t.prompt.position: t.prompt.images for t in some if t.prompt.images}
        jsonl = runlog.samples_file(self.run_dir, iteration + 1, "jsonl")
        records = with_sources(records, self.run_dir, f"samples/{jsonl.stem}-source", given)
        write_records_atomic(jsonl, records)
        pictures = collected.pictures[: len(some)].permute(0, 2, 3, 1).numpy()
        sheet = record_sheet(pictures, records, given=given, earlier=looked_at(some, collected.earlier))
        save_png_atomic(sheet, runlog.samples_file(self.run_dir, iteration + 1, "png"))
        shown = [Shown(Image.fromarray(p), caption(r)) for p, r in zip(pictures, records, strict=True)]
        self.sinks.pictures(iteration + 1, "samples", shown)

    def evaluation(
        self, when: Literal["before", "after"], result: Evaluation, limit: int, done: int = 0
    ) -> dict[str, Any]:
        """Write records, contact sheet and summary of the evaluation before or after training; return the summary.

        Before training, the bands of the canaries are learned from it; after, it is held against them.

        The part of it that a validation in mid-run looks at too (one picture of each of the first ``limit`` prompts,
        the same draws) is summed up by itself, so that curves of validations have their point before training.
        """
        # the first sample of each of the first prompts, so that both sheets show the same prompts and draws
        chosen = [i for i, r in enumerate(result.records) if r["sample"] == 0][:SHEET_PICTURES]
        shown = {result.records[i]["position"] for i in chosen}
        given = {position: images for position, images in result.sources.items() if position in shown}
        records = with_sources(result.records, self.run_dir, "evaluations/source", given)
        shown_before = {i: list(result.earlier[i].numpy()) for i in chosen if i in result.earlier}
        records = with_rounds(records, self.run_dir, f"evaluations/{when}-round", shown_before)
        write_records_atomic(runlog.evaluation_file(self.run_dir, when, "jsonl"), records)
        pictures = result.pictures[chosen].permute(0, 2, 3, 1).numpy()
        before = {place: shown_before[i] for place, i in enumerate(chosen) if i in shown_before}
        sheet = record_sheet(pictures, [result.records[i] for i in chosen], given=given, earlier=before)
        save_png_atomic(sheet, runlog.evaluation_file(self.run_dir, when, "png"))
        summary = runlog.read_json(self.run_dir / runlog.SUMMARY)
        summary[when], own = self._looked_at(when, result, limit, summary)
        if validation := as_validation(result.records, limit):
            summary[when]["validation"] = {**summarise(validation), "canaries": own}
        if when == "after":
            before = runlog.read_records(runlog.evaluation_file(self.run_dir, "before", "jsonl"))
            summary["paired"] = compare(before, result.records)
            summary |= self._all_alarms(result.records, own, summary[when]["canaries"], done)
        write_json_atomic(self.run_dir / runlog.SUMMARY, summary)
        if when == "before":
            self._tell_start(summary[when])
        else:
            self.sinks.figures(done, {"evaluation_after": summary[when]}, again=True)
        return summary

    def _looked_at(
        self, when: str, result: Evaluation, limit: int, summary: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, float]]:
        """The figures of an evaluation with its canaries, and those of the pictures that a validation has too.

        Of the first one the bands are learned, and put into the summary.
        """
        whole, part = look(result), firsts(result.records, limit)
        if when == "before" and self.alarms is not None and (bands := self.alarms.first(result, part, whole)):
            summary["bands"] = bands
        own = look(result, part, self.alarms.reference() if self.alarms is not None else None).values()
        return {**summarise(result.records), "canaries": whole.values()}, own

    def _all_alarms(
        self, records: Sequence[Mapping[str, Any]], own: Mapping[str, float], whole: Mapping[str, float], done: int
    ) -> dict[str, Any]:
        """All alarms of a run that has ended, with the iterations (from 1) after which they were raised; {} if none."""
        if self.alarms is None:
            return {}
        lines = runlog.read_metrics(self.run_dir)
        found = [
            {"iteration": line["iteration"] + 1, "when": "validation", **alarm}
            for line in lines
            for alarm in line.get("alarms", [])
        ]
        groups = {name: value for name, value in whole.items() if name == "group_diversity"}
        last = self.alarms.check({**own, **groups}, records, done - 1, lines)
        found += [{"iteration": done, "when": "after", **alarm} for alarm in last]
        return {"alarms": found} if found else {}

    def stopped(self, done: int, why: str, *, diverged: bool) -> None:
        """Write down the error that ended a run after ``done`` iterations; ``diverged``: over a number that is none."""
        summary = runlog.read_json(self.run_dir / runlog.SUMMARY)
        summary["stopped"] = {"iterations": done, "why": why, "diverged": diverged}
        write_json_atomic(self.run_dir / runlog.SUMMARY, summary)

    def forget(self, *names: str) -> None:
        """Drop parts of the summary, because a resumed run trains on past them."""
        summary = runlog.read_json(self.run_dir / runlog.SUMMARY)
        if kept := {name: part for name, part in summary.items() if name not in names}:
            write_json_atomic(self.run_dir / runlog.SUMMARY, kept)

    def evaluated(self, when: Literal["before", "after"]) -> bool:
        """Whether this evaluation is already in the folder (in a resumed run)."""
        return when in runlog.read_json(self.run_dir / runlog.SUMMARY)


class NoRecorder(Recorder):
    """That of ranks other than 0: nothing is written, and nobody watches."""

    def metrics(self, line: Mapping[str, Any]) -> None:
        """Nothing."""

    def rewards(self, collected: RolloutBatch, iteration: int) -> None:
        """Nothing."""

    def samples(self, policy: Policy, collected: RolloutBatch, iteration: int) -> None:
        """Nothing."""

    def forget(self, *names: str) -> None:
        """Nothing."""

    def stopped(self, done: int, why: str, *, diverged: bool) -> None:
        """Nothing."""

    @contextmanager
    def watched(self, sinks: Sinks) -> Iterator[None]:
        """Nobody."""
        yield


def caption(record: Mapping[str, Any]) -> str:
    """What led to a sampled picture, and what it earned."""
    reward = "" if record["reward"] is None else f" (reward {record['reward']:.3f})"
    thinking = whole_thinking(record)
    return record["prompt"] + (f" | {thinking}" if thinking else "") + reward


def as_validation(records: Sequence[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """The records that a validation of ``limit`` prompts has too; none where these are fewer prompts than that."""
    first = [record for record in records if record["sample"] == 0]
    return first[:limit] if len(first) >= limit else []


def canaries(pictures: Tensor, plans: Sequence[str]) -> dict[str, float]:
    """Colour diversity and edge energy of uint8 pictures [N, 3, H, W], and plan diversity where there are plans.

    Of many large pictures every k-th is taken, so that no more than ``CANARY_NUMBERS`` floats are made of them.
    """
    step = canary_step(pictures.numel())
    images = pictures[::step].float() / 255.0
    found = {"colour_diversity": colour_diversity(images), "edge_energy": edge_energy(images)}
    return {**found, "plan_diversity": plan_diversity(plans)} if plans else found


def canary_step(numel: int) -> int:
    """Every how many-th picture canaries look at, where all of them together have so many numbers."""
    return -(-numel // CANARY_NUMBERS)


def gathered(world: World, collected: RolloutBatch) -> RolloutBatch:
    """An iteration as rank 0 shows it: with the pictures of all ranks in order, of which only those travel that are
    looked at (the first few with their earlier rounds', and the canaries'), and thumbnails of all; without pictures on
    the other ranks."""
    mine = collected.pictures
    if not world.many or mine is None:
        return collected
    place = {key_of(t): index for index, t in enumerate(collected.samples)}
    step = canary_step(len(place) * mine[0].numel())
    wanted = [(i, place[key]) for i, key in enumerate(collected.drawn)]
    wanted = [(i, at) for i, at in wanted if at < SAMPLED_TRAJECTORIES or at % step == 0]
    looked_at = mine[[i for i, _ in wanted]], [at for _, at in wanted]
    earlier = {key: shown for key, shown in collected.earlier.items() if place[key] < SAMPLED_TRAJECTORIES}
    sent = world.to_first((looked_at, (small(mine), [place[key] for key in collected.drawn]), earlier))
    if sent is None:
        return replace(collected, pictures=None, earlier={})
    return replace(
        collected,
        pictures=_placed([pictures for pictures, _, _ in sent], len(place)),
        thumbnails=_placed([thumbnails for _, thumbnails, _ in sent], len(place)),
        earlier={key: shown for _, _, some in sent for key, shown in some.items()},
    )


def _placed(parts: Sequence[tuple[Tensor, list[int]]], count: int) -> Tensor:
    """Pictures of several ranks at their places among ``count``; black where there is none."""
    whole = parts[0][0].new_zeros((count, *parts[0][0].shape[1:]))
    for pictures, places in parts:
        whole[places] = pictures
    return whole


def training_canaries(policy: Policy, collected: RolloutBatch) -> dict[str, float]:
    """The canaries of an iteration's training samples, and of its groups; empty without pictures."""
    if collected.pictures is None:
        return {}
    texts = (thinking_of(policy, t) for t in collected.samples)
    found = canaries(collected.pictures, [text for text in texts if text is not None])
    thumbnails = small(collected.pictures) if collected.thumbnails is None else collected.thumbnails
    apart = group_distances(thumbnails, [t.prompt.position for t in collected.samples])
    if len(apart) < 2:
        return found
    each = torch.tensor(list(apart.values()), dtype=torch.float64)
    error = float(each.std()) / len(each) ** 0.5
    return {**found, "group_diversity": float(each.mean()), "group_diversity_error": error}


def counted(line: Mapping[str, Any]) -> Mapping[str, Any]:
    """A metric line as curves show it: of its alarms, how many there are."""
    return {**line, "alarms": len(line.get("alarms", []))} if "validation" in line else line
