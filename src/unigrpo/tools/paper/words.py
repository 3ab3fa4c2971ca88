"""The text beside a figure: its numbers as a table, and which of the paper's findings they bear out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from unigrpo.reports.markdown import bullets, joined, table
from unigrpo.tools.paper import rows as paper
from unigrpo.tools.paper.rows import Interval, Json, mean_interval

ENDS = 10
"""Iterations over which the reward at the start and at the end of a run is averaged."""
HELD, FALLEN = 0.9, 0.95
"""A validation reward within 10 % of its top is held; a score below 95 % of its top has fallen (noise is about 6 %)."""
OPEN = "open"
"""A claim that these numbers cannot decide."""
Claims = list[tuple[str, str, str]]


def figure_markdown(results: Json, picture: str, about: str) -> str:
    """Write what a figure shows: the picture, what it was made of (``about``), a table, and claims with verdicts."""
    say: Mapping[str, Callable[[Json], tuple[str, str, Claims]]] = {"fig3": _fig3, "fig4": _fig4, "fig5": _fig5}
    title, rows, claims = say[results["target"]](results)
    verdicts = [f"{claim}: **{verdict}** ({why})" for claim, verdict, why in claims]
    parts = [f"# {title}", f"![{title}]({picture})", about, rows, "## What the paper found, and what holds here"]
    return joined([*parts, bullets(verdicts)])


def _fig3(results: Json) -> tuple[str, str, Claims]:
    cells = paper.ran(paper.cells_by_row(results, "fig3")["unigrpo"])
    lines = [
        [str(cell["seed"]), *(f"{start:.3f} → {end:.3f}" for start, end in (_training(cell), *map(_ends, _seen(cell))))]
        for cell in cells
    ]
    rises = [end > start for cell in cells for start, end in (_training(cell), _ends(_validation(cell, "reward")))]
    held = [_validation(cell, "reward")[-1] >= HELD * max(_validation(cell, "reward")) for cell in cells]
    claims = [
        ("Training and validation reward rise", _said(all(rises)), f"{sum(rises)} of {len(rises)} curves"),
        (
            "The validation reward is stable",
            _said(all(held)),
            f"{sum(held)} of {len(held)} seeds end within 10 % of their top",
        ),
    ]
    head = ["seed", "training reward, first → last 10 iterations", "validation reward", "score", "exam score"]
    return "Figure 3: UniGRPO over training", table(head, lines, "lrrrr"), claims


def _fig4(results: Json) -> tuple[str, str, Claims]:
    cells = {row: paper.ran(own) for row, own in paper.cells_by_row(results, "fig4").items()}
    names = {"cfg-off": "without guidance", "cfg-on": "with guidance"}
    trained = {row: mean_interval([_training(cell)[1] for cell in own]) for row, own in cells.items()}
    drawn = {row: {m: _whole(own, m) for m in ("score", "exam_score")} for row, own in cells.items()}
    lines = [[names[row], str(trained[row]), str(drawn[row]["score"]), str(drawn[row]["exam_score"])] for row in names]
    off, on = drawn["cfg-off"]["score"], drawn["cfg-on"]["score"]
    claims = [
        ("Training with guidance has the higher training reward",
         paper.above(trained["cfg-on"], trained["cfg-off"]),
         f"{trained['cfg-on']} against {trained['cfg-off']}"),
        ("Drawn with guidance, the model trained without is equal or better", *_not_below(off, on)),
    ]  # fmt: skip
    head = ["trained", "training reward, last 10 iterations", "score, drawn with guidance", "exam score"]
    return "Figure 4: guidance in training", table(head, lines, "lrrr"), claims


def _fig5(results: Json) -> tuple[str, str, Claims]:
    cells = {row: paper.ran(own) for row, own in paper.cells_by_row(results, "fig5").items()}
    names = {"none": "none", "latent_kl": "latent KL", "velocity_mse": "velocity MSE"}
    lines = []
    for row, own in cells.items():
        tops = [f"{max(scores):.3f} → {scores[-1]:.3f}" for scores in (_validation(cell, "score") for cell in own)]
        edges = mean_interval([cell["canaries"]["edge_energy"] for cell in own])
        figures = [str(_whole(own, measure)) for measure in ("reward", "score", "follow")]
        lines.append([names[row], *figures, f"{edges.mean:.4f}", ", ".join(tops)])
    reward = {row: _whole(own, "reward") for row, own in cells.items()}
    before = mean_interval([cell["before"]["reward"] for cell in cells["none"]])
    falls = [_rises_and_falls(_validation(cell, "score")) for cell in cells["none"]]
    pleased = reward["none"].mean > before.mean
    claims = [
        ("Without a regulariser the validation score rises and falls, while the judge stays pleased",
         _said(all(falls) and pleased),
         f"{sum(falls)} of {len(falls)} seeds; the judge's reward ends at {reward['none']}, from {before.mean:.3f}"),
        ("Velocity MSE ends above no regulariser", *_lead(cells["velocity_mse"], cells["none"])),
        ("Velocity MSE ends above the latent KL", *_lead(cells["velocity_mse"], cells["latent_kl"])),
        ("The latent KL leaves more edges (grid artefacts) than velocity MSE",
         *_lead(cells["latent_kl"], cells["velocity_mse"], "edge energy")),
    ]  # fmt: skip
    head = ["regulariser", "judge's reward", "score", "follow", "edge energy", "validation score, top → end, each seed"]
    return "Figure 5: what holds the drawing in place?", table(head, lines, "lrrrrl"), claims


def _said(holds: bool) -> str:
    return paper.HOLDS if holds else paper.FAILS


def _not_below(left: Interval, right: Interval) -> tuple[str, str]:
    """Verdict and numbers of "equal or better": it fails where the other is better by intervals that do not overlap."""
    if not left.known or not right.known:
        verdict = paper.ALONE if left.mean >= right.mean else f"{OPEN} ({paper.NO_INTERVAL})"
        return verdict, f"score {left} against {right}"
    overlap = left.high >= right.low and right.high >= left.low
    said = f"score {left} against {right}: the intervals {'overlap' if overlap else 'do not overlap'}"
    return _said(left.high >= right.low), said


def _rises_and_falls(scores: Sequence[float]) -> bool:
    """Whether the top is above the start, and the end below the top by more than noise."""
    return scores[0] < max(scores) and scores[-1] < FALLEN * max(scores)


def _lead(better: Sequence[Json], worse: Sequence[Json], measure: str = "score") -> tuple[str, str]:
    """Verdict and numbers of a difference, seed by seed (the same prompts and draws)."""
    other = {cell["seed"]: _figure(cell, measure) for cell in worse}
    lead = mean_interval([_figure(cell, measure) - other[cell["seed"]] for cell in better if cell["seed"] in other])
    if lead.mean <= 0:
        verdict = paper.FAILS
    else:
        verdict = paper.ALONE if not lead.known else paper.HOLDS if lead.low > 0 else paper.LEANS
    digits = 3 if measure == "score" else 4
    ends = f"{lead.low:+.{digits}f} to {lead.high:+.{digits}f}" if lead.known else paper.NO_INTERVAL
    return verdict, f"{measure}, seed by seed: {lead.mean:+.{digits}f} ({ends})"


def _figure(cell: Json, measure: str) -> float:
    return cell["canaries"]["edge_energy"] if measure == "edge energy" else cell[measure]


def _training(cell: Json) -> tuple[float, float]:
    """Mean training reward of the first and of the last iterations."""
    rewards = [point["reward"] for point in cell["curve"] if point["reward"] is not None]
    return sum(rewards[:ENDS]) / len(rewards[:ENDS]), sum(rewards[-ENDS:]) / len(rewards[-ENDS:])


def _validation(cell: Json, measure: str) -> list[float]:
    return [point["validation"][measure] for point in cell["curve"] if point["validation"]]


def _seen(cell: Json) -> list[list[float]]:
    return [_validation(cell, measure) for measure in ("reward", "score", "exam_score")]


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return values[0], values[-1]


def _whole(cells: Sequence[Json], measure: str) -> Interval:
    """Mean and interval over seeds of a figure of the whole evaluation after training."""
    return mean_interval([cell[measure] for cell in cells])
