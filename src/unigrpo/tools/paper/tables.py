"""The paper's tables with our figures beside them, as Markdown: Tables 1 and 2, thinking traces, tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unigrpo.reports.markdown import NONE, bullets, code, joined, table
from unigrpo.tools.paper import rows as paper
from unigrpo.tools.paper.gains import against_markdown, gains_markdown
from unigrpo.tools.paper.rows import QUICK_SCALE, Cells, Interval, Json

DIFFERENCES = (
    "**Rows.** Bagel and SFT are the shipped checkpoints, with other draws for every seed. The *yes* rows of FPO and "
    "FlowGRPO are trained with thinking; *ReFL yes* is the run without thinking, asked to think, since ReFL (w/ "
    "thinking) is a row of its own. The two stages of ReFL + TextGRPO share the rollouts of the other rows. The SFT "
    "checkpoint saw few demonstrations without thinking (1 in 10 of those with a picture), so *no* rows start low.",
    "**Size.** A BAGEL of 0.43 M parameters (the same architecture, tensor by tensor) that draws 32 x 32 pixels; the "
    "paper's has 14 B and draws 1024 x 1024.",
    "**Reward.** Training rewards here come from what is named above, and a verifier that reads the pixels judges. The "
    "paper trains on RewardDance (preferences of people) and judges with a detector (GenEval) and a VLM (TA).",
    "**World.** Coloured shapes on a grid, in GenEval's six categories, with combinations that were never trained on. "
    "*score* and *exam score* count as GenEval and TA do, but on other prompts: compare orders, not values.",
)
NOT_RUN, COLLAPSE = "not run", "collapse"


def table1_markdown(results: Json) -> str:
    """Write Table 1 with the paper's figures beside ours, which findings hold, and what differs.

    Ours: mean ± half width of the 95 % interval over seeds; the best mean is bold. ValueError: see ``cells_by_row``.
    """
    cells, notes = paper.cells_by_row(results, "table1"), _Notes()
    best = {measure: _best(cells, measure) for measure in paper.MEASURES}
    lines = []
    for row in paper.ROWS:
        own = cells[row.key]
        exam, score = (_figure(own, measure, notes, row.key == best[measure]) for measure in ("exam_score", "score"))
        halves = [_plain(paper.interval(own, measure)) for measure in ("plan_right", "follow")]
        first = [row.method, _yes(row.thinking), _theirs(row.text_alignment, 4), exam, _theirs(row.geneval, 2), score]
        lines.append([*first, *halves, str(len(paper.ran(own)))])
    head = ["method", "thinking", "TA (paper)", "exam score here", "GenEval (paper)", "score here", "plan right"]
    parts = [
        "# Table 1 of the paper, in the world of shapes",
        about(results),
        table([*head, "follow", "seeds"], lines, "llrrrrrrr"),
        notes.text(),
        findings_markdown(results),
        against_markdown(results),
        gains_markdown(results),
        "## What differs",
        bullets(DIFFERENCES),
    ]
    return joined(parts)


def table2_markdown(results: Json) -> str:
    """Write Table 2: the score by category, with the paper's row under ours in italics.

    results: of target table1, or table2. The paper has no figures of UniFPO here. ValueError: see ``cells_by_row``.
    """
    cells, notes = paper.cells_by_row(results, "table1", "table2"), _Notes()
    lines = []
    for row in paper.ROWS:
        own = cells[row.key]
        figures = [paper.interval(own, "by_category", category) for category in paper.CATEGORIES]
        lines.append(
            [row.method, _yes(row.thinking), _figure(own, "score", notes, best=False), *(_plain(x) for x in figures)]
        )
        if row.geneval is not None and row.by_category is not None:
            theirs = [f"*{value:.2f}*" for value in (row.geneval, *row.by_category)]
            lines.append(["*paper*", "", *theirs])
    parts = [
        "# Table 2 of the paper, in the world of shapes: the score by category",
        about(results) + "\n\nUnder each row, in italics, GenEval as the paper reports it.",
        table(["method", "thinking", "overall", *paper.CATEGORY_TITLES], lines, "ll" + "r" * 7),
        notes.text(),
        "## What differs",
        bullets(DIFFERENCES),
    ]
    return joined(parts)


def findings_markdown(results: Json) -> str:
    """Write which of the paper's findings hold here, each with the numbers that decided."""
    lines = [[found.claim, f"**{found.verdict}**", found.numbers or NONE] for found in paper.findings(results)]
    parts = [
        "## Which of the paper's findings hold here",
        "*holds*: the right order, and 95 % intervals that do not overlap. *points that way*: the right order only. "
        "*does not hold*: another order. Several comparisons count as their weakest.",
        table(["claim", "verdict", "numbers"], lines, "lll"),
    ]
    return joined(parts).rstrip()


def traces_markdown(items: Sequence[Json], picture: str | None = None) -> str:
    """Write prompts with what each model thought before it drew, and whether its picture is right.

    items: ``{"prompt", "models": [{"name", "thinking", "correct", "picture"}]}``, the same models in the same order for
    every prompt (the pictures are drawn by ``paper_figures.draw_traces``). picture: link to that drawing, shown on top.
    """
    names = [model["name"] for model in items[0]["models"]] if items else []
    lines = []
    for item in items:
        thoughts = [(model["thinking"], "right" if model["correct"] else "wrong") for model in item["models"]]
        texts = [
            f"{code(thought.strip()) if thought else '*no thinking*'} ({verdict})" for thought, verdict in thoughts
        ]
        lines.append([item["prompt"], *texts])
    parts = [
        "# Thinking, then drawing: the same prompts, three models",
        f"![Prompts as rows, models as columns, thinking under the pictures]({picture})" if picture else "",
        "In brackets what the verifier says of the picture.",
        table(["prompt", *names], lines, "l" * (1 + len(names))),
    ]
    return joined(parts)


def tuning_markdown(entries: Sequence[Json], note: str) -> str:
    """Write what was tried for each method, and what was chosen; ``note`` says how.

    entries: ``{"method", "values": {...}, "score", "exam_score", "reward", "chosen", "command"}``, figures None where a
    run collapsed or failed; ``seed`` if the command does not say it. ValueError if a method has two chosen entries.
    """
    parts = ["# How each method was tuned", f"Chosen values are bold. {note}"]
    for method in dict.fromkeys(entry["method"] for entry in entries):
        tried = [entry for entry in entries if entry["method"] == method]
        if sum(bool(entry["chosen"]) for entry in tried) > 1:
            raise ValueError(f"{method} has more than one chosen entry; mark the one whose values the recipe has")
        head = ["values", "score", "exam score", "reward", *(["seed"] if "seed" in tried[0] else []), "command"]
        lines = [_tried(entry) for entry in tried]
        parts += [f"## {method}", table(head, lines, "l" + "r" * (len(head) - 2) + "l")]
    return joined(parts)


def _tried(entry: Json) -> list[str]:
    values = ", ".join(f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
                       for key, value in entry["values"].items())  # fmt: skip
    figures = [NONE if entry[key] is None else f"{entry[key]:.3f}" for key in ("score", "exam_score", "reward")]
    seed = [str(entry["seed"])] if "seed" in entry else []
    return [f"**{values}**" if entry["chosen"] else values, *figures, *seed, code(entry["command"])]


# --------------------------------------------------------------------------------------------------------- the cells


class _Notes:
    """Footnotes in order of appearance; the same text has the same number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, note: str) -> str:
        number = self._numbers.setdefault(note, len(self._numbers) + 1)
        return f" <sup>{number}</sup>"

    def text(self) -> str:
        return "  \n".join(f"<sup>{number}</sup> {note}" for note, number in self._numbers.items())


def _figure(cells: Sequence[Json], measure: str, notes: _Notes, best: bool) -> str:
    """Our figure of a row, or why it has none; seeds that collapsed, failed or cannot be are footnotes."""
    found, runs, fallen = paper.interval(cells, measure), len(paper.ran(cells)), paper.collapsed(cells)
    marks = [notes.mark(note) for note in _remarks(cells)]
    if fallen and fallen == runs:
        text = COLLAPSE if found is None else f"{COLLAPSE} ({found})"
    elif fallen:
        text = f"{NONE if found is None else found} ({COLLAPSE} in {fallen} of {runs})"
    elif found is not None:
        text = f"**{found}**" if best else str(found)
    else:
        statuses = [cell["status"] for cell in cells]
        text = next((status for status in (paper.FAILED, paper.NOT_APPLICABLE) if status in statuses), NOT_RUN)
    return text + "".join(marks)


def _remarks(cells: Sequence[Json]) -> list[str]:
    """What footnotes say of cells that did not simply end well; seeds with the same reason share one."""
    seeds: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        if cell["status"] != paper.DONE:
            reason = cell["reason"] or "no reason was recorded"
            seeds.setdefault((cell["status"], reason), []).append(str(cell["seed"]))
    return [
        f"n/a: {reason}" if status == paper.NOT_APPLICABLE else f"{status} (seed {', '.join(which)}): {reason}"
        for (status, reason), which in seeds.items()
    ]


def _best(cells: Cells, measure: str) -> str | None:
    """The row with the best mean; rows that collapsed do not compete."""
    found = {row: paper.interval(own, measure) for row, own in cells.items() if not paper.collapsed(own)}
    means = {row: value.mean for row, value in found.items() if value is not None}
    return max(means, key=means.__getitem__) if means else None


def _plain(found: Interval | None) -> str:
    return NONE if found is None else str(found)


def _theirs(value: float | None, digits: int) -> str:
    return COLLAPSE if value is None else f"{value:.{digits}f}"


def _yes(thinking: bool) -> str:
    return "yes" if thinking else "no"


# ------------------------------------------------------------------------------------------------------ the sentences


def about(results: Json) -> str:
    """What the figures are: scale, reward, seeds, machine, cost and the command that makes them again."""
    cells = [cell for cell in results["cells"] if cell["status"] != paper.NOT_APPLICABLE]
    seconds = sum(float(cell["seconds"]) for cell in cells if cell["seconds"])
    rollouts = sorted({int(cell["rollouts"]) for cell in cells if cell["rollouts"]})
    environment: Mapping[str, Any] = results["environment"]
    known = {"device": "{}", "cpu_count": "{} CPU cores", "torch": "torch {}", "git_commit": "commit {:.12}"}
    machine = [text.format(environment[name]) for name, text in known.items() if environment.get(name)]
    seeds = ", ".join(str(seed) for seed in results["seeds"])
    facts = [
        f"Measured in the embedded world of shapes, scale *{results['scale']}*; training reward `{results['reward']}`; "
        f"seeds {seeds}. Figures are means over seeds ± the half width of Student's 95 % interval.",
        f"{len(cells)} runs, {_duration(seconds)} of training in all"
        + (f", {_span(rollouts)} rollouts in each run with RL." if rollouts else "."),
        f"Machine: {', '.join(machine)}." if machine else "",
        f"Made by `{results['command']}`.",
    ]
    banner = f"> **Scale *quick*: {QUICK_SCALE}.**\n\n" if results["scale"] == "quick" else ""
    return banner + "  \n".join(fact for fact in facts if fact)


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _span(counts: Sequence[int]) -> str:
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
