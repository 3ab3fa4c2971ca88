"""What a run says to a person on its way: that nothing is learned, what was left out, what has left its band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unigrpo.reports.progress import Progress
from unigrpo.rewards.answers import alike
from unigrpo.training.alarms import sentence
from unigrpo.training.signal import SignalWatch

TEXT_GAP_LIMIT = 0.3  # of the log ratio between rollout and replay in low precision, above which a person is told


class Voice:
    """Says everything of one kind once. ``sounding``: the alarms of the last look; clip_range: None without ratios."""

    def __init__(self, clip_range: float | None) -> None:
        self.limits = {"text": TEXT_GAP_LIMIT, "image": clip_range}
        self.watch, self.sounding = SignalWatch(), set[str]()
        self._warned = set[str]()

    def warn(self, line: Mapping[str, Any], progress: Progress) -> None:
        """Say when nothing is learned, or when rollout and replay round so differently that clipping acts on it."""
        if told := self.watch.note(line.get("no_signal", []), line["iteration"]):
            progress.note(told)
        if "validation" in line:
            self.sound(line.get("alarms", []), line["iteration"], progress)
        for reason in line.get("failures", []):
            kind = alike(reason.partition(": ")[2])
            if kind not in self._warned:
                self._warned.add(kind)
                progress.note(f"warning: samples that could not be scored are left out of training, {reason}")
        gap = line.get("rollout_gap", {})
        for kind, limit in self.limits.items():
            if limit is not None and gap.get(kind, 0.0) > limit and kind not in self._warned:
                self._warned.add(kind)
                progress.note(
                    f"warning: rollout and replay differ by {gap[kind]:.2g} in the {kind} log ratio "
                    f"(limit {limit:.2g}): training uses the replay's values; model.dtype float32 has no gap"
                )

    def sound(self, alarms: Sequence[Mapping[str, Any]], iteration: int, progress: Progress) -> None:
        """Say at once what has left its band, where the look before did not say so."""
        for alarm in alarms:
            if alarm["title"] not in self.sounding:
                progress.note(sentence(alarm, iteration))
        self.sounding = {alarm["title"] for alarm in alarms}
