"""The paper's tables and figures: its facts, means over seeds, verdicts, Markdown and pictures from made-up results."""

from __future__ import annotations

import io
import json
import math
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import paper_results as made
import pytest
from PIL import Image

from unigrpo.reports import grids
from unigrpo.tools.paper import figures as paper_figures
from unigrpo.tools.paper import gains as paper_gains
from unigrpo.tools.paper import pictures as paper_pictures
from unigrpo.tools.paper import rows as paper
from unigrpo.tools.paper import tables as paper_tables
from unigrpo.tools.paper import words as paper_words


def verdict_of(results: dict[str, Any], start: str) -> str:
    (found,) = [item for item in paper.findings(results) if item.claim.startswith(start)]
    return found.verdict


def line_of(text: str, start: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start} |")]
    return line


def size_of(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        return image.size


# ------------------------------------------------------------------------------------------------------- the numbers


@pytest.mark.parametrize("degrees", range(1, 30))
def test_quantiles_hold_95_percent_of_students_t(degrees: int) -> None:
    """Integrate the density between the two quantiles: x = sqrt(n) tan(u) turns it into c cos(u)^(n-1)."""
    n = degrees
    log_c = math.lgamma((n + 1) / 2) - math.lgamma(n / 2) - 0.5 * math.log(math.pi)
    end = math.atan(paper.T_975[n - 1] / math.sqrt(n))
    nodes, weights = np.polynomial.legendre.leggauss(60)
    inside = 2 * math.exp(log_c) * end / 2 * float(weights @ np.cos(end / 2 * (nodes + 1)) ** (n - 1))
    assert inside == pytest.approx(0.95, abs=2e-10)


def test_mean_interval_against_known_values() -> None:
    found = paper.mean_interval([1.0, 2.0, 3.0, 4.0])  # s = sqrt(5/3), half = 3.182446305 s / 2
    assert found.mean == 2.5
    assert found.high - found.mean == pytest.approx(3.182446305 * math.sqrt(5 / 3) / 2, abs=1e-12)
    assert found.mean - found.low == pytest.approx(found.high - found.mean, abs=1e-12)
    assert str(found) == "2.500 ± 2.054"
    many = paper.mean_interval([0.0, 1.0] * 16)  # 32 values: the normal quantile
    assert many.high - 0.5 == pytest.approx(1.959963985 * math.sqrt(0.25 * 32 / 31 / 32), abs=1e-12)


def test_one_value_has_no_interval_and_none_is_an_error() -> None:
    alone = paper.mean_interval([0.5])
    assert alone.mean == 0.5 and math.isnan(alone.low) and math.isnan(alone.high) and str(alone) == "0.500"
    for equal in ([0.7, 0.7, 0.7], [0.0, 0.0], [0.1 + 0.2, 0.3]):  # seeds that do not differ show no spread
        assert not paper.mean_interval(equal).known and "±" not in str(paper.mean_interval(equal))
    for values in ([], [0.5, math.nan]):
        with pytest.raises(ValueError, match="finite values"):
            paper.mean_interval(values)


def test_rows_are_the_papers() -> None:
    rows = {row.key: row for row in paper.ROWS}
    assert len(rows) == 15 and list(rows)[-1] == "unigrpo"
    sums = (sum(row.text_alignment or 0 for row in paper.ROWS), sum(row.geneval or 0 for row in paper.ROWS))
    assert sums == pytest.approx((10.9725, 11.85))  # of the columns of the paper's Table 1
    assert sum(sum(row.by_category or ()) for row in paper.ROWS) == pytest.approx(71.23)  # of its Table 2
    assert rows["unifpo"].geneval is None and not rows["fpo-no"].thinking
    for row in paper.ROWS:  # the overall figure is the mean of the six, to the paper's rounding
        if row.by_category and row.geneval:
            assert np.mean(row.by_category) == pytest.approx(row.geneval, abs=0.009), row.key


def test_categories_are_the_worlds() -> None:
    from unigrpo.worlds.shapes.prompts import CATEGORIES

    assert paper.CATEGORIES == CATEGORIES


@pytest.mark.parametrize(
    ("change", "said"),
    [({"row": "grpo"}, "no row 'grpo'"), ({"status": "good"}, "not one of"), ({"seed": 1}, "occurs twice")],
)
def test_results_that_cannot_be(change: dict[str, Any], said: str) -> None:
    cells = [made.cell_of("unigrpo", 0) | change, made.cell_of("unigrpo", 1)]
    with pytest.raises(ValueError, match=said):
        paper.cells_by_row(made.results_of("table1", cells), "table1")
    with pytest.raises(ValueError, match="results of 'table1'"):
        paper_figures.draw_fig4(made.results_of("table1", []))


def test_collapsed_seeds_are_not_left_out_of_a_mean() -> None:
    fallen = made.cell_of("fpo-no", 1, 0.1, status="collapsed")
    assert paper.interval([made.cell_of("fpo-no", 0, 0.7), fallen], "score") == paper.mean_interval([0.7, 0.1])
    blank = made.cell_of("fpo-no", 1, None, status="collapsed")
    assert paper.interval([made.cell_of("fpo-no", 0, 0.7), blank], "score") is None
    failed = made.cell_of("fpo-no", 1, None, status="failed")
    assert paper.interval([made.cell_of("fpo-no", 0, 0.7), failed], "score") == paper.mean_interval([0.7])


# ----------------------------------------------------------------------------------------------------------- findings


def test_verdicts_follow_the_intervals() -> None:
    assert verdict_of(made.table1(noise=1e-4, unigrpo=0.8), "UniGRPO is best") == "holds"
    assert verdict_of(made.table1(noise=0.02, unigrpo=0.7), "Joint training (UniGRPO) beats text").startswith(
        "points that way (intervals overlap)"
    )
    assert verdict_of(made.table1(noise=1e-4, textgrpo=0.75), "Joint training (UniGRPO) beats text") == "does not hold"
    assert verdict_of(made.table1(noise=1e-4, textgrpo=0.75), "UniGRPO is best") == "does not hold"  # as its weakest
    assert verdict_of(made.table1(noise=1e-4), "Thinking helps SFT") == "does not hold"  # as in the paper's GenEval
    assert verdict_of(made.table1(noise=1e-4, sft_yes=0.65), "Thinking helps SFT") == "holds"


def test_a_claim_about_both_measures_needs_both() -> None:
    results = made.table1(noise=1e-4, unigrpo=0.8)
    for cell in results["cells"]:
        cell["exam_score"] -= 0.2 if cell["row"] == "unigrpo" else 0.0
    assert verdict_of(results, "Joint training (UniGRPO) beats text") == "does not hold"


def test_one_seed_and_missing_rows_are_said() -> None:
    cells = [made.cell_of("unigrpo", 0, 0.7), made.cell_of("sft-yes", 0, 0.5), made.cell_of("textgrpo", 0, 0.6)]
    results = made.results_of("table1", cells)
    assert verdict_of(results, "Joint training (UniGRPO) beats text") == "points that way (no interval)"
    assert verdict_of(results, "UniGRPO is best") == "points that way (no interval), as far as run"
    assert verdict_of(results, "Thinking helps SFT") == verdict_of(results, "UniFPO collapses") == "not run"
    failed = made.results_of("table1", [*cells[:2], made.cell_of("textgrpo", 0, None, status="failed")])
    assert verdict_of(failed, "Joint training (UniGRPO) beats text") == "not run"


def test_a_collapse_is_below_everything() -> None:
    fallen = [made.cell_of("textgrpo", seed, None, status="collapsed") for seed in range(2)]
    good = [made.cell_of("unigrpo", seed, 0.7) for seed in range(2)]
    assert verdict_of(made.results_of("table1", fallen + good), "Joint training (UniGRPO) beats text") == "holds"
    for cell in [*fallen, *good]:
        cell["row"] = "textgrpo" if cell["row"] == "unigrpo" else "unigrpo"
    swapped = made.results_of("table1", fallen + good)
    assert verdict_of(swapped, "Joint training (UniGRPO) beats text") == "does not hold"


@pytest.mark.parametrize(
    ("fallen", "verdict"), [(3, "holds"), (1, "points that way (some seeds)"), (0, "does not hold")]
)
def test_unifpo_collapses(fallen: int, verdict: str) -> None:
    cells = [made.cell_of("unifpo", seed, status="collapsed" if seed < fallen else "done") for seed in range(3)]
    assert verdict_of(made.results_of("table1", cells), "UniFPO collapses") == verdict


# ------------------------------------------------------------------------------------------------------------- tables


def test_table1_has_every_row_and_its_special_cases() -> None:
    results = made.table1(noise=1e-4)
    for cell in results["cells"]:
        if cell["row"] == "refl-no":
            cell |= {"status": "n/a", "reason": "the reward has no gradient", "score": None, "exam_score": None}
        if cell["row"] == "fpo-yes" and cell["seed"] == 2:
            cell |= {"status": "collapsed", "reason": "blank pictures", "score": 0.1}
    results["cells"] = [cell for cell in results["cells"] if cell["row"] != "textgrpo"]
    text = paper_tables.table1_markdown(results)
    table = text.split("## Which")[0]
    assert table.count("\n| ") == 2 + 15
    assert line_of(table, "UniGRPO | yes | 0.8381").count("**") == 4  # best on both, nothing else bold
    assert table.count("**") == 4
    assert "n/a <sup>1</sup>" in line_of(table, "ReFL | no | 0.7786") and "<sup>1</sup> n/a: the reward" in text
    assert "collapse in 1 of 3" in line_of(table, "FPO | yes | 0.8159")
    assert "collapsed (seed 2): blank pictures" in text and "collapsed (seed 0, 1, 2): reward fell" in text
    assert line_of(table, "TextGRPO | yes | 0.8078").count("not run") == 2
    assert line_of(table, "UniFPO | yes | collapse").count("collapse") == 4  # the paper's two and ours
    assert "`unigrpo reproduce table1 --seeds 3`" in text and "`shapes/preference`" in text
    assert paper.QUICK_SCALE not in text
    results["scale"] = "quick"
    assert paper_tables.table1_markdown(results).index(paper.QUICK_SCALE) < 120


def test_a_collapsed_row_is_never_the_best() -> None:
    text = paper_tables.table1_markdown(made.table1(noise=1e-4, unifpo=0.95))
    assert line_of(text, "UniGRPO | yes | 0.8381").count("**") == 4


def test_table2_puts_the_papers_row_under_ours() -> None:
    cells = [made.cell_of("sft-no", seed, by_category=dict(zip(paper.CATEGORIES, range(6), strict=True)))
             for seed in range(2)]  # fmt: skip
    lines = paper_tables.table2_markdown(made.results_of("table1", cells)).splitlines()
    place = next(index for index, line in enumerate(lines) if line.startswith("| SFT | no"))
    values = [cell.strip().split(" ")[0] for cell in lines[place].split("|")[3:-1]]
    assert values == ["0.500", "0.000", "1.000", "2.000", "3.000", "4.000", "5.000"]
    assert lines[place + 1] == "| *paper* |  | *0.83* | *0.99* | *0.95* | *0.83* | *0.89* | *0.58* | *0.75* |"
    assert sum("*paper*" in line for line in lines) == 14


def test_traces_and_tuning() -> None:
    text = paper_tables.traces_markdown(made.traces(), "traces.png")
    assert "| prompt | Bagel | SFT | UniGRPO |" in text and "](traces.png)" in text
    assert "*no thinking* (wrong)" in text and "`red circle b1 blue square b3` (right)" in text
    entry = {"method": "FPO", "values": {"lr": 1e-4, "clip": "auto"}, "score": 0.5, "exam_score": 0.7,
             "reward": None, "chosen": True, "command": "unigrpo train a | tee log"}  # fmt: skip
    text = paper_tables.tuning_markdown([entry, entry | {"values": {"lr": 2e-4}, "chosen": False}], "How.")
    assert "## FPO" in text and "| lr 0.0002 | 0.500" in text
    assert "| **lr 0.0001, clip auto** | 0.500 | 0.700 | – | `unigrpo train a \\| tee log` |" in text
    with pytest.raises(ValueError, match="FPO has more than one chosen"):
        paper_tables.tuning_markdown([entry, entry], "How.")


# ------------------------------------------------------------------------------------------------------------ figures


def test_figures_are_drawn_whole_and_at_readme_width(tmp_path: Path) -> None:
    five = made.courses("fig5", none=0.4)
    sheet = grids.contact_sheet(made.pictures(10), ["a"] * 10, [True] * 10)
    grids.save_png_atomic(sheet, tmp_path / "sheet.png")
    bare = paper_figures.draw_fig5(five)
    for cell in five["cells"]:
        cell["picture"] = "sheet.png"
    striped = paper_figures.draw_figure(five, tmp_path)
    assert size_of(striped)[1] > size_of(bare)[1]  # the strips add height
    for results in (made.table1(), made.courses("fig3"), made.courses("fig4", cfg_on=0.1)):
        assert size_of(paper_figures.draw_figure(results, tmp_path))[0] == 1800
    with pytest.raises(ValueError, match="no figure is made of 'table2'"):
        paper_figures.draw_figure(made.results_of("table2", []), tmp_path)


def test_figures_of_half_finished_results() -> None:
    short = [made.cell_of("cfg-on", 0, curve=made.curve_of("a", 0, iterations=3))]
    for draw, results in (
        (paper_figures.draw_fig4, made.results_of("fig4", short, scale="quick")),
        (paper_figures.draw_fig3, made.results_of("table1", [])),
        (paper_figures.draw_table1, made.results_of("table1", [made.cell_of("unifpo", 0, None, status="collapsed")])),
    ):
        assert size_of(draw(results))[0] == 1800


def test_a_mean_is_drawn_where_all_seeds_have_figures() -> None:
    cells = [made.cell_of("cfg-on", seed, curve=made.curve_of("a", seed, iterations=n)) for seed, n in ((0, 4), (1, 6))]
    x, values = paper_figures.common(paper_figures.courses(cells, "reward"))
    assert x.tolist() == [1, 2, 3, 4] and values.shape == (2, 4)
    assert values[1].tolist() == [line["reward"] for line in cells[1]["curve"][:4]]


def test_strips_are_the_tiles_of_a_sheet_or_the_picture_itself(tmp_path: Path) -> None:
    pictures = made.pictures(10)
    grids.save_png_atomic(grids.contact_sheet(pictures, ["a"] * 10, [True] * 10), tmp_path / "sheet.png")
    Image.fromarray(pictures[3]).save(tmp_path / "one.png")
    cells = [made.cell_of("none", 0, picture="sheet.png"), made.cell_of("latent_kl", 0, picture="one.png"),
             made.cell_of("velocity_mse", 0)]  # fmt: skip
    found = paper_pictures.read_strips(made.results_of("fig5", cells), tmp_path)
    assert list(found) == ["none", "latent_kl"] and len(found["none"]) == paper_pictures.STRIP
    assert np.array_equal(found["none"][1], pictures[1]) and np.array_equal(found["latent_kl"][0], pictures[3])


def test_traces_picture_has_a_row_per_prompt() -> None:
    items = made.traces()
    both, one = size_of(paper_pictures.draw_traces(items)), size_of(paper_pictures.draw_traces(items[:1]))
    assert both[0] == one[0] and both[1] > 1.8 * one[1]
    with pytest.raises(ValueError, match="no traces"):
        paper_pictures.draw_traces([])


def test_tables_need_no_matplotlib() -> None:
    code = "import sys, unigrpo.tools.paper.tables, unigrpo.tools.paper.figures; print([m in sys.modules for m in "
    code += "('matplotlib', 'torch')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.lower()) == [False, False]


def test_gains_name_the_two_halves() -> None:
    """Mean over seeds of the paired differences, and the outer ends of their intervals; absent without any."""
    results = made.table1()
    assert paper_gains.gains_markdown(results) == ""
    entry = {"difference": 0.1, "low": 0.05, "high": 0.15}
    for cell in results["cells"]:
        if cell["row"] == "flowgrpo-yes":
            shift = 0.01 * cell["seed"]
            cell["paired"] = {"follow": {key: value + shift for key, value in entry.items()}, "score": entry}
    text = paper_tables.table1_markdown(results)
    assert "| FlowGRPO | yes | \u2013 | +0.110 (+0.050 to +0.170) | +0.100 (+0.050 to +0.150) | 3 |" in text


@pytest.mark.parametrize(
    "without",
    [{"difference": 0.0, "low": 0.0, "high": 0.0}, {"difference": 0.0, "low": None, "high": None, "why": "few"}],
)
def test_gains_without_spread_have_no_interval(without: dict[str, Any]) -> None:
    """Also those of results that were written before: an interval of width 0 is none."""
    results = made.table1()
    for cell in results["cells"]:
        if cell["row"] == "flowgrpo-yes":
            cell["paired"] = {"plan_right": without}
    assert "| FlowGRPO | yes | +0.000 (no interval) |" in paper_gains.gains_markdown(results)


def test_unigrpo_is_compared_seed_by_seed() -> None:
    """A difference that is the same in every seed shows no spread, and has no interval, however the seeds differ."""
    results = made.table1(noise=0.0)
    for cell in results["cells"]:
        cell |= {"score": 0.5 + 0.1 * cell["seed"] + (0.02 if cell["row"] == "unigrpo" else 0.0), "exam_score": 0.5}
    text = paper_gains.against_markdown(results)
    assert "| TextGRPO | yes | +0.000 (no interval) | 0 of 3 | +0.020 (no interval) | 3 of 3 |" in text
    for cell in results["cells"]:
        cell["score"] += 0.01 * cell["seed"] if cell["row"] == "unigrpo" else 0.0
    assert "| +0.000 (no interval) | 0 of 3 | +0.030 (+0.005 to +0.055) | 3 of 3 |" in paper_gains.against_markdown(
        results
    )
    results["cells"] = [cell for cell in results["cells"] if cell["seed"] == 0]
    assert paper_gains.against_markdown(results) == ""


def test_the_words_beside_figures_say_what_holds() -> None:
    three = paper_words.figure_markdown(made.courses("fig3"), "fig3.png", "about")
    assert "![Figure 3: UniGRPO over training](fig3.png)" in three and "rise: **holds**" in three
    four = made.courses("fig4", cfg_on=0.1)
    for cell in four["cells"]:
        cell["score"] = 0.5 + 0.01 * cell["seed"]
    assert "equal or better: **holds**" in paper_words.figure_markdown(four, "fig4.png", "")
    for cell in four["cells"]:
        cell["score"] += 0.4 if cell["row"] == "cfg-on" else 0.0
    assert "equal or better: **does not hold**" in paper_words.figure_markdown(four, "fig4.png", "")
    five = made.courses("fig5", none=0.4)
    for cell in five["cells"]:
        cell["before"] = {"reward": 0.1}
    text = paper_words.figure_markdown(five, "fig5.png", "")
    assert "the judge stays pleased: **holds**" in text and "above no regulariser: **does not hold**" in text
    for cell in five["cells"]:
        lead = 0.02 + 0.001 * cell["seed"] if cell["row"] == "velocity_mse" else 0.0
        cell["score"] = 0.5 + 0.1 * cell["seed"] + lead
    assert "above no regulariser: **holds**" in paper_words.figure_markdown(five, "fig5.png", "")


def claim_of(text: str, start: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith(f"* {start}")]
    return line


def one_seed(results: dict[str, Any]) -> dict[str, Any]:
    return results | {"cells": [cell for cell in results["cells"] if cell["seed"] == 0]}


def test_words_of_one_seed_decide_nothing() -> None:
    """Neither "holds" nor "the intervals overlap" where there are none, and no nan."""
    four = one_seed(made.courses("fig4", cfg_on=0.1))
    text = paper_words.figure_markdown(four, "fig4.png", "")
    equal = claim_of(text, "Drawn with guidance")
    assert "**points that way (no interval)**" in equal and "overlap" not in equal
    for cell in four["cells"]:
        cell["score"] += 0.1 if cell["row"] == "cfg-on" else 0.0
    assert "**open (no interval)**" in claim_of(paper_words.figure_markdown(four, "", ""), "Drawn with guidance")
    assert "holds" not in claim_of(text, "Training with guidance")
    five = one_seed(made.courses("fig5", none=0.4))
    for cell in five["cells"]:
        cell |= {"before": {"reward": 0.1}, "score": 0.5 + (0.02 if cell["row"] == "velocity_mse" else 0.0)}
    text = paper_words.figure_markdown(five, "fig5.png", "")
    assert "**points that way (no interval)** (score, seed by seed: +0.020 (no interval))" in text and "nan" not in text


def test_a_score_that_only_fell_has_not_risen_first() -> None:
    five = made.courses("fig5")
    for cell in five["cells"]:
        cell["before"] = {"reward": 0.1}
        seen = [point["validation"] for point in cell["curve"] if point["validation"]]
        for number, validation in enumerate(seen):
            validation["score"] = 0.6 - 0.1 * number
    text = paper_words.figure_markdown(five, "fig5.png", "")
    assert "**does not hold** (0 of 3 seeds" in claim_of(text, "Without a regulariser")


def test_grid_artefacts_are_measured() -> None:
    """The verdict on the latent KL comes from the edges of its pictures."""
    five = made.courses("fig5")
    for cell in five["cells"]:
        cell["before"] = {"reward": 0.1}
        more = 0.01 + 0.001 * cell["seed"] if cell["row"] == "latent_kl" else 0.0
        cell["canaries"] = {**cell["canaries"], "edge_energy": 0.05 + more}
    edges = claim_of(paper_words.figure_markdown(five, "fig5.png", ""), "The latent KL leaves more edges")
    assert "**holds** (edge energy, seed by seed: +0.0110 (" in edges


def test_the_table_of_runs_says_why_an_interval_is_missing() -> None:
    place = Path(__file__).parents[2] / "scripts" / "collect_results.py"
    script: dict[str, Any] = runpy.run_path(str(place))
    sides = {"before": {"score": 0.5, "plan_right": None}, "after": {"score": 0.524, "plan_right": None}}
    few = {"difference": 0.024, "low": None, "high": None, "why": "6 prompts are too few to say, 20 are needed"}
    row = script["row"]({**sides, "paired": {"score": few}, "seed": 0, "training_seconds": 1.0})
    assert "| 0.500 → **0.524** (+0.024, no interval: 6 prompts are too few to say, 20 are needed) | – |" in row
