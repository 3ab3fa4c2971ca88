"""A run as an object: what its folder holds, read when it is asked for."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unigrpo.api.models import load
from unigrpo.api.training import go_on
from unigrpo.evaluation.evaluator import describe_comparison
from unigrpo.plurals import counted
from unigrpo.ranges import ConfigError
from unigrpo.recipe import Recipe, StagedRecipe, load_experiment, stage_folders
from unigrpo.reports import runlog
from unigrpo.reports.html import write_report
from unigrpo.runs import stages
from unigrpo.training import checkpoint

if TYPE_CHECKING:
    import pandas

    from unigrpo.models.bagel_files.pretrained import Bagel

STAGE = "stage"
"""The column that tells the stages of a run apart."""


class Run:
    """A run's folder, finished or not: of this program or of another one, of this machine or of another."""

    def __init__(self, path: str | Path) -> None:
        """Look at the run in a folder; ConfigError where there is none."""
        self.path = Path(path).expanduser().absolute()
        if not (self.path / runlog.RECIPE).is_file():
            what = f"has no {runlog.RECIPE}" if self.path.is_dir() else "is not there"
            raise ConfigError(f"{self.path} is no run: it {what}; give the folder that train wrote, its out")

    # What it is

    @property
    def recipe(self) -> Recipe | StagedRecipe:
        """The recipe, whole, as the run resolved it."""
        return load_experiment(self.path / runlog.RECIPE)

    @property
    def stages(self) -> list[Run]:
        """The runs of the stages that have begun; none where the recipe has no stages."""
        return [Run(folder) for folder in stage_folders(self.path) if stages.begun(folder)]

    @property
    def iterations(self) -> int:
        """How many iterations ``metrics`` has; of several stages, of all together."""
        return sum(len(lines) for _, lines in self._lines())

    @property
    def finished(self) -> bool:
        """Whether the run is trained and evaluated to its end; of several stages, all of them."""
        asked = self.recipe
        if isinstance(asked, StagedRecipe):
            return all(stages.finished(asked, number, self.path) for number in range(len(asked.stages)))
        return checkpoint.finished(self.path) >= asked.iterations and "after" in self.summary

    def _parts(self) -> list[tuple[str, Path]]:
        """(name of the stage, folder) of all that was trained: the stages that have begun, or the run itself."""
        inner = [folder for folder in stage_folders(self.path) if stages.begun(folder)]
        return [(folder.name, folder) for folder in inner] or [("", self.path)]

    def _lines(self) -> list[tuple[str, list[dict[str, Any]]]]:
        return [(name, runlog.read_metrics(folder)) for name, folder in self._parts()]

    # What came of it

    @property
    def metrics(self) -> pandas.DataFrame:
        """A row for every iteration, a column for every key of metrics.jsonl: ``reward_mean`` and so on.

        Nested keys are joined by dots (``grad_norm.reasoning``), lists by the place of their items
        (``flow.steps.0.mse``); what an iteration has not, or what was no finite number, is NaN. Of several stages all
        rows, with a column ``stage``.
        """
        import pandas

        rows = [({STAGE: stage} if stage else {}) | flat(line) for stage, lines in self._lines() for line in lines]
        return pandas.DataFrame(rows)

    @property
    def summary(self) -> dict[str, Any]:
        """The evaluations ``before`` and ``after``, and their ``paired`` differences (of several stages, the last)."""
        return runlog.read_json(self._parts()[-1][1] / runlog.SUMMARY)

    @property
    def samples(self) -> list[dict[str, Any]]:
        """The training samples that were kept: prompt, thinking, reward, its parts ...; ``iteration`` counts from 1."""
        found = []
        for _, folder in self._parts():
            for path in sorted((folder / "samples").glob("iteration-*.jsonl")):
                number = int(path.stem.removeprefix("iteration-"))
                found += [{"iteration": number, **record} for record in runlog.read_records(path)]
        return found

    @cached_property
    def model(self) -> Bagel:
        """The model of the newest checkpoint, loaded once (of a family of one's own: that family's policy)."""
        return load(self.path)

    def report(self) -> Path:
        """Write report.html (of several stages, of each) and return its path, that of the last stage."""
        return [write_report(folder) for _, folder in self._parts()][-1]

    def resume(self, iterations: int | None = None) -> Run:
        """Go on to the end, or to more ``iterations``, as ``unigrpo.train`` does; returns the run as it is then."""
        go_on(self.path, iterations)
        return Run(self.path)

    # For people

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}: {self.recipe.name}, {self._state()})"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        compared = "<br>".join(html.escape(line) for line in describe_comparison(self.summary))
        name, place = html.escape(self.recipe.name), html.escape(str(self.path))
        return f"<p><b>{name}</b>: {html.escape(self._state())}<br><code>{place}</code><br>{compared}</p>"

    def _state(self) -> str:
        asked = self.recipe
        count = sum(r.iterations for r in (asked.stages if isinstance(asked, StagedRecipe) else (asked,)))
        parts = [f"{self.iterations} of {counted(count, 'iteration')}", *(["finished"] if self.finished else [])]
        rewards = [line["reward_mean"] for _, lines in self._lines() for line in lines if "reward_mean" in line]
        known = [reward for reward in rewards if reward is not None]
        return ", ".join([*parts, *([f"training reward {known[0]:.3f} -> {known[-1]:.3f}"] if known else [])])


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """A line of metrics with dotted names for what is nested; null is NaN, words stay words."""
    return dict(_leaves(value, name))


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        inner = value.items()
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        inner = ((str(number), item) for number, item in enumerate(value))
    else:
        yield name, float("nan") if value is None else value
        return
    for key, item in inner:
        yield from _leaves(item, f"{name}.{key}" if name else key)
