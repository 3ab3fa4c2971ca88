"""Alarms while it trains: what every validation is held against, and what is said where something has left its band.

Everything is learned from the evaluation before training and kept in the run folder, so that a resumed run raises the
alarms of one that was never stopped. Nothing is drawn, and no figure of training depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor

from unigrpo.evaluation import bands, proxies
from unigrpo.evaluation.evaluator import MEASURES, Evaluation
from unigrpo.evaluation.statistics import FEWEST
from unigrpo.files import write_bytes_atomic, write_records_atomic
from unigrpo.recipe import PromptData, Recipe
from unigrpo.reports import runlog

Alarm = dict[str, Any]
REFERENCE, HISTORY = "evaluations/reference.safetensors", "evaluations/validations.jsonl"
PAGE = "docs/alarms.md"


def firsts(records: Sequence[Mapping[str, Any]], limit: int) -> list[int]:
    """Where the records lie that a validation of ``limit`` prompts has too, as far as they are there."""
    return [i for i, record in enumerate(records) if record["sample"] == 0][:limit]


def look(
    result: Evaluation, chosen: Sequence[int] | None = None, reference: Mapping[int, Tensor] | None = None
) -> bands.Measured:
    """The canaries of an evaluation's pictures, of all or of the chosen ones."""
    picked = range(len(result.records)) if chosen is None else chosen
    records = [result.records[i] for i in picked]
    pictures = result.pictures if chosen is None else result.pictures[list(chosen)]
    return bands.measured(pictures, [r["position"] for r in records], [r["thinking"] for r in records], reference)


class Alarms:
    """The bands, the reference's pictures and the validations of one run, in its folder."""

    def __init__(self, recipe: Recipe, run_dir: Path) -> None:
        self.recipe, self.run_dir = recipe, run_dir
        self.paid = bool(recipe.reward.train)  # supervised training is meant to change everything, and games nothing

    def first(self, result: Evaluation, part: Sequence[int], whole: bands.Measured) -> dict[str, Any]:
        """Learn from the evaluation before training; return the bands, {} where nothing is trained by a reward.

        part: the records that a validation has too (:func:`firsts`); whole: the canaries of all.
        """
        kept = bands.reference_of(result.pictures[list(part)])
        records = [result.records[i] for i in part]
        tensors = {str(record["position"]): kept[k].contiguous() for k, record in enumerate(records)}
        write_bytes_atomic(self.run_dir / REFERENCE, serialise(tensors))
        self._write([proxies.row(proxies.START, records)])
        if not self.paid:
            return {}
        found = look(result, part).bands() | {"reference_distance": bands.reference_band(kept)}
        found |= {name: band for name, band in whole.bands().items() if name == "group_diversity"}
        return {name: band.json() for name, band in found.items()}

    def validation(
        self, result: Evaluation, iteration: int, lines: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, float], list[Alarm]]:
        """The canaries of a validation after ``iteration`` (from 0), which is kept, and its alarms.

        lines: the metrics of all iterations until then.
        """
        values = look(result, None, self.reference()).values()
        found = self.check(values, result.records, iteration, lines)
        self._write([*self._history(), proxies.row(iteration, result.records)])
        return values, found

    def check(
        self,
        values: Mapping[str, float],
        records: Sequence[Mapping[str, Any]],
        iteration: int,
        lines: Sequence[Mapping[str, Any]],
    ) -> list[Alarm]:
        """The alarms of an evaluation with these canaries and records, after ``iteration``."""
        if not self.paid:
            return []
        learned = runlog.read_json(self.run_dir / runlog.SUMMARY).get("bands") or {}
        history = [*self._history(), proxies.row(iteration, [r for r in records if r["sample"] == 0])]
        found = map(of_canary, bands.outside(values, learned))
        return [*found, *self._groups(lines), *self._golds(history, lines)]

    def settle(self, done: int) -> None:
        """Forget the validations of iterations that will be done again, and see that the reference can be read."""
        self.reference()
        if history := self._history():
            self._write([kept for kept in history if kept["iteration"] < done])

    # What the folder keeps

    def reference(self) -> dict[int, Tensor] | None:
        """The small pictures of the evaluation before training, by prompt; None in runs from before they were kept."""
        path = self.run_dir / REFERENCE
        try:
            return {int(name): tensor for name, tensor in load_file(path).items()} if path.exists() else None
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} is damaged ({error}): put it back, or start a new run") from error

    def _history(self) -> list[dict[str, Any]]:
        return runlog.read_records(self.run_dir / HISTORY)

    def _write(self, history: Sequence[Mapping[str, Any]]) -> None:
        write_records_atomic(self.run_dir / HISTORY, history)

    # What is looked at

    def _groups(self, lines: Sequence[Mapping[str, Any]]) -> list[Alarm]:
        """The groups of training: those of the last iterations against those of the first, ``FEWEST`` at least."""
        data = self.recipe.data
        if not isinstance(data, PromptData):
            return []
        size = math.ceil(FEWEST / data.prompts_per_iteration)
        known = [line["canaries"] for line in lines if "group_diversity" in line.get("canaries", {})]
        if len(known) < 2 * size:
            return []
        start = sum(part["group_diversity"] for part in known[:size]) / size
        value = sum(part["group_diversity"] for part in known[-size:]) / size
        error = math.sqrt(sum(part["group_diversity_error"] ** 2 for part in known[:size])) / size
        noise = math.sqrt(2) * error  # both sides are of other prompts each time
        learned = bands.band("group_diversity", start, noise, size * data.prompts_per_iteration).json()
        found = bands.outside({"group_diversity": value}, {"group_diversity": learned})
        return [of_canary(alarm, "of training") for alarm in found]

    def _golds(self, history: Sequence[Mapping[str, Any]], lines: Sequence[Mapping[str, Any]]) -> list[Alarm]:
        """The golds that fell while the proxy stayed up."""
        same = self.recipe.reward.train == self.recipe.reward.validation
        golds = dict(proxies.GOLD) | ({} if same else {"reward": proxies.REWARD})
        found = []
        for name, key in golds.items():
            if (fell := proxies.fallen(history, key)) is not None:
                best = fell[0]
                risen = self._proxy(history, best, lines, same)
                if risen is not None:
                    found.append(of_gold(name, best, history[-1], proxies.mean(best, key), fell[1], risen))
        return found

    def _proxy(
        self,
        history: Sequence[Mapping[str, Any]],
        best: Mapping[str, Any],
        lines: Sequence[Mapping[str, Any]],
        same: bool,
    ) -> tuple[str, proxies.Change] | None:
        """The proxy's name and its rise since the start, if it is beyond noise and was not lost since ``best``."""
        last = history[-1]
        if same:
            name, sides = (
                "validation reward",
                [proxies.change(then, last, proxies.REWARD) for then in (history[0], best)],
            )
        else:
            rewards = {line["iteration"]: line["reward_mean"] for line in lines if line.get("reward_mean") is not None}
            size = max(3, self.recipe.eval.every // 2)
            now = proxies.window(rewards, last["iteration"], size)
            then = [proxies.window(rewards, kept["iteration"], size) for kept in (history[0], best)]
            name, sides = "training reward", [proxies.course(window, now) for window in then]
        since, lost = sides
        return (name, since) if since is not None and since.rose and lost is not None and not lost.fell else None


# What is said


def of_canary(found: Mapping[str, Any], where: str = "") -> Alarm:
    """The alarm of a canary that has left its band."""
    canary = bands.CANARIES[found["canary"]]
    name = f"{canary.name} {where}".strip()
    start = "" if canary.scale == "distance" else f" ({found['start']:.3g} before training)"
    words = (
        f"{name} is {found['value']:.3g} {canary.unit}, {found['side']} its band, which ends at "
        f"{found['limit']:.3g}{start}"
    )
    alarm = {"kind": "canary", "name": found["canary"], "title": name, "value": found["value"], "start": found["start"],
             "limit": found["limit"], "words": words, "look": canary.look}  # fmt: skip
    return alarm | ({"collapsed": True} if bands.collapsed(found["canary"], found["value"], found["start"]) else {})


def of_gold(
    name: str, best: Mapping[str, Any], now: Mapping[str, Any], top: float | None, fell: proxies.Change,
    proxy: tuple[str, proxies.Change],
) -> Alarm:  # fmt: skip
    """The alarm of a measure of the judge that fell while the reward rose."""
    title = MEASURES.get(name, f"validation {name}")
    risen, rise = proxy
    since = "before training" if best["iteration"] < 0 else f"iteration {best['iteration'] + 1}"
    words = (
        f"{title} fell by {-fell.mean:.3f} (standard error {fell.error:.3f}) since {since}, and the {risen} is up by "
        f"{rise.mean:.3f} since the start"
    )
    return {"kind": "proxy", "name": name, "title": title, "value": None if top is None else top + fell.mean,
            "start": top, "limit": None if top is None else top - bands.ERRORS * fell.error, "words": words,
            "look": "pictures with the highest reward: what earns it there?"}  # fmt: skip


def sentence(alarm: Mapping[str, Any], iteration: int) -> str:
    """The line for a terminal; iterations count from 0."""
    return f"ALARM after iteration {iteration + 1}: {alarm['words']}. Look at {alarm['look']} ({PAGE})"
