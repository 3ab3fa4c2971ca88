"""Which runs a table or figure of the paper is made of: every cell is one ordinary command line."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from unigrpo import build
from unigrpo.recipe import PromptData, Recipe, load_stages, to_yaml

Target = Literal["table1", "table2", "fig3", "fig4", "fig5", "traces"]
Scale = Literal["quick", "full"]
Judge = Literal["preference", "verifier"]

BAGEL, SFT = "builtin:shapes-pretrain", "builtin:shapes-sft"
GUIDANCE = "2"
"""The scale of figure 4, in training (cfg-on) and in every evaluation; the paper gives none."""


@dataclass(frozen=True)
class Row:
    """A line of a table: a recipe that is trained, or a model (or another row's) that is only evaluated."""

    id: str
    recipe: str | None = None
    model: str | None = None
    of: str | None = None
    think: bool = True
    overrides: tuple[str, ...] = ()


NO_THINKING = ("--rollout.think", "false")
TABLE1 = (
    Row("bagel-no", model=BAGEL, think=False),
    Row("bagel-yes", model=BAGEL),
    Row("sft-no", model=SFT, think=False),
    Row("sft-yes", model=SFT),
    Row("refl-no", "paper/refl", think=False, overrides=NO_THINKING),
    Row("refl-yes", of="refl-no"),
    Row("fpo-no", "paper/fpo", think=False, overrides=NO_THINKING),
    Row("fpo-yes", "paper/fpo"),
    Row("flowgrpo-no", "paper/flowgrpo", think=False, overrides=NO_THINKING),
    Row("flowgrpo-yes", "paper/flowgrpo"),
    Row("textgrpo", "paper/textgrpo"),
    Row("refl-thinking", "paper/refl"),
    Row("refl-textgrpo", "paper/refl-textgrpo"),
    Row("unifpo", "paper/unifpo"),
    Row("unigrpo", "paper/unigrpo"),
)
"""In the paper's order. A "yes" row of an image method is trained with thinking, but ReFL's: that one is the run
without thinking, asked to think, since "ReFL (w/ Thinking)" is a row of its own."""

_GUIDED = ("--model.path", BAGEL, "--eval.guidance", GUIDANCE)
FIG4 = (
    Row("cfg-off", "paper/unigrpo", overrides=_GUIDED),
    Row("cfg-on", "paper/unigrpo", overrides=(*_GUIDED, "--rollout.guidance", GUIDANCE)),
)
LATENT_KL = "{kind: latent_kl, weight: 0.32}"
"""As strong on average as the velocity MSE of weight 0.003: KL / D is h kappa^2 / (2 sigma^2) times it
(docs/math.md#regularisers), and the mean of that over the places of the window is 1 / 107.5."""
FIG5 = (
    Row("none", "paper/regulariser", overrides=("--method.regulariser", "{kind: none, weight: 0.0}")),
    Row("latent_kl", "paper/regulariser", overrides=("--method.regulariser", LATENT_KL)),
    Row("velocity_mse", "paper/regulariser"),
)
ROWS: dict[Target, tuple[Row, ...]] = {
    "table1": TABLE1,
    "table2": TABLE1,
    "fig3": tuple(row for row in TABLE1 if row.id == "unigrpo"),
    "fig4": FIG4,
    "fig5": FIG5,
    "traces": tuple(row for row in TABLE1 if row.id == "unigrpo"),
}
QUICK = (
    "--iterations", "4", "--data.prompts_per_iteration", "4", "--data.group_size", "3", "--eval.every", "2",
    "--eval.limit", "12", "--eval.compare_limit", "24", "--eval.compare_samples", "1", "--checkpoint.every", "4",
)  # fmt: skip
PROMPTS: dict[Scale, tuple[str, str]] = {"quick": ("24", "1"), "full": ("504", "4")}
"""Held-out prompts and pictures of each, of the evaluations that are no part of a run."""
NEEDS_GRADIENT = ("paper/refl", "paper/refl-textgrpo")


@dataclass(frozen=True)
class Cell:
    """One row with one seed: the command that makes it, where, and what must be there first.

    arguments: of ``unigrpo``, without --out. fingerprint: hash of everything that decides the numbers: the recipe (of
    an evaluation that of the run), and the weights that ship with the package. missing: why the cell cannot be made.
    """

    row: Row
    seed: int
    group: str
    arguments: tuple[str, ...]
    fingerprint: str
    rollouts: int = 0
    missing: str | None = None

    @property
    def name(self) -> str:
        """Path below the work folder."""
        return f"{self.group}/{self.row.id}-seed{self.seed}"

    @property
    def trains(self) -> bool:
        """Whether this is a training run."""
        return self.row.recipe is not None


def cells_of(target: Target, seeds: Sequence[int], scale: Scale, judge: Judge, work: Path) -> list[Cell]:
    """All cells of a target, evaluations after the runs that they need."""
    made: list[Cell] = []
    for seed in seeds:
        own: dict[str, Cell] = {}
        for row in sorted(ROWS[target], key=lambda row: row.of is not None):
            base = None if row.of is None else own[row.of]
            own[row.id] = _cell(row, seed, group_of(target, scale, judge), scale, judge, work, base)
        made += own.values()
    return sorted(made, key=lambda cell: cell.row.of is not None)


def group_of(target: Target, scale: Scale, judge: Judge) -> str:
    """Cells of one group are shared: table 1, table 2, figure 3 and the traces are about the same runs."""
    kind = target if target in ("fig4", "fig5") else "table1"
    return f"{scale}/{kind}-{judge}"


def _cell(row: Row, seed: int, group: str, scale: Scale, judge: Judge, work: Path, base: Cell | None) -> Cell:
    if row.recipe is None:
        return _evaluation(row, seed, group, scale, judge, work, base)
    if judge == "verifier" and row.recipe in NEEDS_GRADIENT:
        why = "needs a differentiable reward, and the verifier is none"
        return Cell(row, seed, group, (), "", missing=why)
    overrides = ["--seed", str(seed), "--eval.think", str(row.think).lower(), *row.overrides]
    if judge == "verifier":
        overrides += ["--reward.train", "[{name: shapes/verifier}]", "--reward.validation", "[{name: shapes/verifier}]"]
    if scale == "quick":
        overrides += QUICK
    stages = load_stages(row.recipe, overrides)
    written = "\n".join([weights_digest(), *map(_deciding, stages)])
    rollouts = sum(_rollouts(stage) for stage in stages)
    return Cell(row, seed, group, ("train", row.recipe, *overrides), _hash(written), rollouts)


def _deciding(stage: Recipe) -> str:
    """A recipe without the keys that decide no number and came later: cells from before them are still good."""
    return re.sub(r", minutes: [^,}]+|^log: .*\n", "", to_yaml(stage), flags=re.MULTILINE)


def _rollouts(recipe: Recipe) -> int:
    data = recipe.data
    assert isinstance(data, PromptData)
    return recipe.iterations * data.prompts_per_iteration * data.group_size


def _evaluation(row: Row, seed: int, group: str, scale: Scale, judge: Judge, work: Path, base: Cell | None) -> Cell:
    if base is not None and base.missing is not None:
        return Cell(row, seed, group, (), "", missing=base.missing)
    model = row.model if base is None else str(work / base.name)
    assert model is not None
    prompts, samples = PROMPTS[scale]
    thinks = () if row.think else ("--no-think",)
    options = ("--seed", str(seed), "--limit", prompts, "--samples", samples, "--reward", f"shapes/{judge}")
    exact = ("--device", "cpu", "--dtype", "float32")  # as the runs are, also where there is an accelerator
    hashed = ["--prompts" if word == "--limit" else word for word in options]  # its name when the first ones were made
    lasting = (weights_digest(), model if base is None else base.fingerprint, *thinks, *hashed)
    return Cell(row, seed, group, ("eval", "--model", model, *thinks, *options, *exact), _hash(" ".join(lasting)))


WEIGHTS = ("autoencoder", "preference", "pretrain", "sft")


@cache
def weights_digest() -> str:
    """Hash of the shipped weights of the shapes world that the paper's rows rest on: models, autoencoder, judge."""
    digest, assets = hashlib.sha256(), build.builtin_folder("shapes-sft").parent
    for file in sorted(file for kind in WEIGHTS for file in (assets / f"shapes-{kind}").glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
