"""What a report says first: what came of the run, whether it collapsed, which alarms it raised, and how far it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unigrpo.plurals import counted
from unigrpo.reports import curves
from unigrpo.reports.alarms import Raised, sentence
from unigrpo.reports.differences import COLLAPSED, MEANING, interval_of, verdict, why_none

Json = Mapping[str, Any]


def headline(
    before: Json,
    after: Json,
    paired: Json,
    lines: Sequence[Json] = (),
    alarms: Sequence[Raised] = (),
    stopped: Json | None = None,
) -> str:
    """Say in a few sentences what came of the run: of the score, or of the reward where nobody judged.

    A verdict needs an interval; without one there is the reason for that. lines: the run's metrics, whose last
    ``SILENT`` say where nothing is being learned. alarms: what was raised, which stands here too. stopped: the error
    that ended the run, from its summary.
    """
    parts = (
        collapse(before, after, paired, alarms, stopped),
        _outcome(before, after, paired),
        sentence(alarms),
        _stopped(stopped),
        _silence(lines),
        _failures(lines),
    )
    return " ".join(part for part in parts if part)


def collapse(before: Json, after: Json, paired: Json, alarms: Sequence[Raised], stopped: Json | None) -> str:
    """ "The run collapsed" where it did, with the reason if the next sentence does not hold it; else "".

    It did if its score (of a run that nobody judged, its reward) fell by more than chance, or if at the last look less
    than half of a diversity was left and the alarm of that canary is on, or if it stopped over a number that is none.
    """
    measure = _measured(before, after)[0]
    both = before.get(measure) is not None and after.get(measure) is not None
    fell = both and verdict(paired.get(measure)) == "fell"
    reasons = [alarm.words for alarm in alarms if alarm.collapsed]
    if stopped and stopped.get("diverged"):
        reasons.insert(0, "training made numbers that are not finite")
    if not fell and not reasons:
        return ""
    return f"The run collapsed{': ' if reasons else ''}{'; '.join(reasons)}."


def _stopped(stopped: Json | None) -> str:
    if not stopped:
        return ""
    done = counted(stopped.get("iterations", 0), "iteration")
    return f"It was stopped by an error after {done}: {stopped.get('why', '')}."


def _measured(before: Json, after: Json) -> tuple[str, str]:
    """What the run is judged by: its score, or its reward where nobody gave one; its key and its name."""
    return ("score", "Score") if {before.get("score"), after.get("score")} != {None} else ("reward", "Reward")


def _outcome(before: Json, after: Json, paired: Json) -> str:
    key, name = _measured(before, after)
    start, end = before.get(key), after.get(key)
    if start is None or end is None:
        return f"{name} before training: {start:.3f}." if start is not None else "Not evaluated yet."
    found, why = interval_of(paired.get(key)), why_none(paired.get(key))
    left = " Less than half of the score is left." if key == "score" and end < COLLAPSED * start else ""
    if found is None:
        return f"{name} {start:.3f} → {end:.3f} ({end - start:+.3f}{f'; no interval: {why}' if why else ''}).{left}"
    low, high = found
    figures = f"{start:.3f} → {end:.3f} ({end - start:+.3f}, 95 % interval {low:+.3f} to {high:+.3f})"
    return f"{name} {figures}. {MEANING[verdict(paired.get(key))]}{left}"


SILENT = 3
"""Iterations in a row without signal after which a run is said not to learn (as in the terminal)."""


def _silence(lines: Sequence[Json]) -> str:
    """Why nothing is being learned at the end of the run, if so."""
    reasons = [line.get("no_signal") or [] for line in lines[-SILENT:]]
    if len(reasons) < SILENT or not all(reasons):
        return ""
    return f"Something is not learning: {'; '.join(reasons[-1])}."


def _failures(lines: Sequence[Json]) -> str:
    """How many of the samples were left out because they could not be scored, and why in most cases; or nothing."""
    shares = [float(line.get("failed_share") or 0.0) for line in lines]
    reasons = [reason for line in lines for reason in line.get("failures") or []]
    if not any(shares):
        return ""
    why = f" The latest: {reasons[-1]}." if reasons else ""
    return (
        f"{sum(shares) / len(shares):.1%} of the samples of training could not be scored and were left out (at most "
        f"{max(shares):.1%} in one iteration).{why}"
    )


def status(done: int, total: Any, before: Json, after: bool, lines: Sequence[Json]) -> str:
    """Say how far the run is, and what is missing of it."""
    length = f"{done} of {counted(total, 'iteration')}" if isinstance(total, int) else counted(done, "iteration")
    if after:
        return f"{length}, finished."
    missing = "the evaluation after training" if before else "the evaluations before and after training"
    sentence = f"This run is not finished: {length} done, {missing} missing."
    for measure in ("score", "reward"):
        iterations, values = curves.series(lines, f"validation.{measure}")
        if len(values):
            untrained = (before.get("validation") or {}).get(measure)
            at = f"at iteration {iterations[-1]}" + ("" if untrained is None else f" (before training {untrained:.3f})")
            return f"{sentence} Last validation {measure}: {values[-1]:.3f}, {at}."
    return sentence
