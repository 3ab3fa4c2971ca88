"""A run whose pictures nobody judges, at 512 pixels: what is not known is not shown, and the files stay small."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unigrpo.evaluation.evaluator import Evaluation, category_of, describe_comparison, describe_summary, unjudged
from unigrpo.files import write_records_atomic
from unigrpo.reports import curves, grids, html, runlog
from unigrpo.reports.progress import Progress
from unigrpo.training.metrics import metrics_line
from unigrpo.training.recorder import Recorder
from unigrpo.training.sources import RolloutBatch
from unigrpo.training.update import Updated
from unigrpo.trajectory import Image, Prompt, Trajectory
from unigrpo.worlds.geneval import fixed

RECIPE = "name: bagel/unigrpo\niterations: 4\neval: {prompts: 'geneval:fixed'}\n"
THINKING = "<think> The picture should show it plainly, in soft light, on a wooden table. </think>"
SIZE = 512

pytestmark = pytest.mark.usefixtures("charts_are_drawn")


def photographs(count: int, seed: int = 0, size: int = SIZE) -> torch.Tensor:
    """Make pictures that are as hard to compress as photographs: smooth blobs with some grain; uint8 [N, 3, H, W]."""
    draws = torch.Generator().manual_seed(seed)
    blobs = torch.nn.functional.interpolate(
        torch.rand(count, 3, 9, 9, generator=draws), size=(size, size), mode="bicubic"
    )
    grain = 0.02 * torch.randn(count, 1, size, size, generator=draws)
    return ((blobs + grain).clamp(0, 1) * 255).round().to(torch.uint8)


def evaluation(prompts: list[Prompt], reward: float, samples: int = 1, size: int = SIZE) -> Evaluation:
    """Make what ``evaluate`` returns for prompts without a judge."""
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    pictures = photographs(len(repeated), seed=round(abs(reward)), size=size)
    verdicts = unjudged(pictures.float() / 255, repeated, [THINKING] * len(repeated))
    records = [
        {
            "position": prompt.position, "sample": index % samples, "prompt": prompt.text, "thinking": THINKING,
            **verdict, "reward": reward + 0.25 * (index % 7),
        }
        for index, (prompt, verdict) in enumerate(zip(repeated, verdicts, strict=True))
    ]  # fmt: skip
    return Evaluation(records, pictures)


class Reader:
    """The part of a policy that writing samples needs."""

    def decode_text(self, ids: torch.Tensor) -> str:
        return THINKING


def line_of(k: int, validation: dict[str, Any] | None) -> dict[str, Any]:
    """Make the metrics of one iteration."""
    return metrics_line(
        iteration=k,
        collected=RolloutBatch([Trajectory(Prompt(0, ""), 0, ())], {"reward_mean": -60.0 + 4 * k, "reward_std": 3.0}),
        updates=[Updated({}, {"reasoning": 0.5, "denoising": 0.2}, entropy=0.8)],
        rates={"reasoning": 1e-6, "denoising": 3e-5},
        canaries={"colour_diversity": 2.5},
        validation=validation,
        gap={},
        no_signal=[],
        seconds={"rollout": 20.0, "update": 9.0, "total": 30.0},
    )


def build(run_dir: Path, prompts: list[Prompt], *, after: bool = True, samples: int = 1, size: int = SIZE) -> Path:
    """Write a whole made-up run folder with the recorder."""
    recorder = Recorder(run_dir)
    recorder.start(RECIPE)
    before = recorder.evaluation("before", evaluation(prompts, -62.0, samples, size), 4)["before"]
    for k in range(4):
        recorder.metrics(line_of(k, {**before, "reward": -60.0 + 4 * k} if k % 2 else None))
    shown = [
        Trajectory(p, i, (Image(torch.zeros(1, 1), (1, 1)),), reward=-50.0 - i, verdict={"kilobytes": 50.0 + i})
        for i, p in enumerate(prompts[:12])
    ]
    recorder.samples(Reader(), RolloutBatch(shown, pictures=photographs(len(shown), 5, size), samples=shown), 3)  # type: ignore[arg-type]
    if after:
        recorder.evaluation("after", evaluation(prompts, -48.0, samples, size), 4)
    html.write_report(run_dir)
    return run_dir


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("runs") / "run", fixed(8))


def test_the_summary_knows_the_reward_and_nothing_else(run_dir: Path) -> None:
    summary = runlog.read_json(run_dir / runlog.SUMMARY)
    for side in (summary["before"], summary["after"]):
        assert {key for key, value in side.items() if value is not None} == {
            "reward", "by_category", "reward_by_category", "n", "canaries", "validation",
        }  # fmt: skip
        assert side["by_category"] == {} and len(side["reward_by_category"]) == 6
    assert set(summary["paired"]) == {"reward"}
    assert summary["paired"]["reward"]["difference"] == pytest.approx(14.0)
    assert describe_summary(summary["before"]) == f"reward {summary['before']['reward']:.3f}, 8 pictures"
    (line,) = describe_comparison(summary)
    assert line.startswith("reward        -61.") and "difference +14.000 (no interval: 8 prompts are too few" in line


def test_the_report_shows_rewards_and_no_scores(run_dir: Path) -> None:
    page = (run_dir / runlog.REPORT).read_text(encoding="utf-8")
    text = re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<svg.*?</svg>|<[^>]*>", " ", page, flags=re.DOTALL))
    assert "Reward -61.344 → -47.344 (+14.000; no interval: 8 prompts" in text and "Reward by category" in text
    assert "Measured on 8 pictures." in text and "reward -62.000" in text
    assert "The same prompts, before and after training" in text
    for word in (
        "score",
        "plan right",
        "exam",
        "picture follows",
        "verdict",
        "held-out",
        "nan",
        "None",
        "✗",
        "✓",
    ):
        assert word not in text, word
    assert not re.search(r"(?<!\d)0\.000", text)
    for chart in ("Training and validation reward", "Validation reward by category"):
        assert chart in text
    assert 'class="bar"' not in page


def test_pictures_in_files_are_thumbnails(run_dir: Path) -> None:
    tiles = grids.read_tiles(runlog.evaluation_file(run_dir, "before", "png"))
    assert [tile.picture.shape for tile in tiles] == [(256, 256, 3)] * 8
    assert (run_dir / runlog.REPORT).stat().st_size < 16 * 40_000 + 500_000  # 16 thumbnails, a sheet, curves
    page = (run_dir / runlog.REPORT).read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") >= 16
    sheet = grids.read_tiles(runlog.samples_file(run_dir, 4, "png"))
    assert max(tile.picture.shape[0] for tile in sheet) == 256


def test_a_sheet_shows_the_reward_where_the_mark_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    badges: list[Any] = []
    monkeypatch.setattr(grids, "_badge", lambda draw, corner, verdict: badges.append(verdict))
    records = [
        {"prompt": "a", "correct": None, "reward": 0.5},
        {"prompt": "b", "correct": True, "reward": 0.5},
        {"prompt": "c", "correct": None, "reward": None},
        {"prompt": "d", "correct": None},
    ]
    assert [grids.reward_note(record) for record in records] == ["reward 0.500", "", "", ""]
    grids.record_sheet(np.zeros((4, 8, 8, 3), dtype=np.uint8), records)
    assert badges == [True, None, None]


@pytest.mark.parametrize(
    ("size", "wanted"), [((32, 32), (32, 32)), ((256, 200), (256, 200)), ((1024, 512), (256, 128))]
)
def test_only_large_pictures_are_reduced(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    pictures = np.full((2, *size, 3), 77, dtype=np.uint8)
    small = grids.reduced(pictures)
    assert small.shape == (2, *wanted, 3) and (small == 77).all()
    assert (small is pictures) == (size == wanted)


def test_an_unfinished_run_tells_its_last_reward(tmp_path: Path) -> None:
    page = (build(tmp_path / "run", fixed(2), after=False, size=64) / runlog.REPORT).read_text(encoding="utf-8")
    assert "Reward before training: -61.875." in page
    assert "Last validation reward: -48.000, at iteration 4." in page


def test_curves_without_categories_have_no_chart_of_them() -> None:
    lines = [line_of(k, {"score": None, "reward": 1.0, "by_category": {}, "plan_right": None}) for k in range(3)]
    found = {chart.name: chart for chart in curves.charts(lines)}
    assert "categories" not in found and "halves" not in found
    assert found["reward"].title == "Training and validation reward"
    assert "validation reward" in curves.svg(found["reward"])


def test_progress_tells_the_reward() -> None:
    import io

    from rich.console import Console

    output = io.StringIO()
    validation = {"score": None, "reward": -48.0, "plan_right": None}
    with Progress("demo", 4, console=Console(file=output, width=200)) as progress:
        progress.update(line_of(1, validation))
    assert "training reward -56.000 | validation reward -48.000 (after iteration 2)" in output.getvalue()
    table = io.StringIO()
    with Progress("demo", 4, console=Console(file=table, force_terminal=True, width=120)) as progress:
        progress.update(line_of(1, validation))
    assert "validation" in table.getvalue() and "-48.000" in table.getvalue() and "plan" not in table.getvalue()


def test_long_thinking_is_folded(tmp_path: Path) -> None:
    run_dir = build(tmp_path / "run", fixed(1), after=False, size=16)
    thinking = "word " * 300
    records = [{"position": 0, "sample": 0, "prompt": "a", "thinking": thinking, "correct": None, "reward": 1.0}]
    sheet = grids.record_sheet(np.zeros((1, 16, 16, 3), dtype=np.uint8), records)
    grids.save_png_atomic(sheet, runlog.evaluation_file(run_dir, "before", "png"))
    write_records_atomic(runlog.evaluation_file(run_dir, "before", "jsonl"), records)
    page = html.write_report(run_dir).read_text(encoding="utf-8")
    assert re.search(r"<details><summary>.*It thought:.*…</summary><p>(word ){300}</p></details>", page)


def test_canaries_look_at_a_bounded_number_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    from unigrpo.training import recorder

    seen: list[int] = []
    monkeypatch.setattr(recorder, "edge_energy", lambda images: seen.append(len(images)) or 0.0)
    pictures = torch.zeros(30, 3, 32, 32, dtype=torch.uint8)
    recorder.canaries(pictures, [])
    monkeypatch.setattr(recorder, "CANARY_NUMBERS", 8 * 3 * 32 * 32)
    recorder.canaries(pictures, [])
    assert seen == [30, 8]


def test_the_category_is_the_metadatas() -> None:
    prompts = [
        Prompt(0, "", {"category": "a", "tag": "b"}),
        Prompt(1, "", {"tag": "b"}),
        Prompt(2, "", {"category": None}),
    ]
    assert [category_of(p) for p in prompts] == ["a", "b", "all"]


def test_samples_that_could_not_be_scored_are_told_and_drawn(tmp_path: Path) -> None:
    """A run that left out a tenth of its samples does not look whole."""
    build(tmp_path / "run", fixed(8))
    lines = runlog.read_metrics(tmp_path / "run")
    lines[2] |= {"failed_share": 0.4, "failures": ["4 of 10: reward 'judge': status 503"]}
    runlog.write_records_atomic(tmp_path / "run" / runlog.METRICS, lines)
    html.write_report(tmp_path / "run")
    page = (tmp_path / "run" / runlog.REPORT).read_text(encoding="utf-8")
    text = re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<svg.*?</svg>|<[^>]*>", " ", page, flags=re.DOTALL))
    assert "10.0% of the samples of training could not be scored and were left out (at most 40.0% in one" in text
    assert "4 of 10: reward &#39;judge&#39;: status 503" in text and "Samples that could not be scored" in page
