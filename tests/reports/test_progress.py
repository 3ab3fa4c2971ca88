"""What the person at the terminal reads."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from unigrpo.reports.pace import Pace, Schedule
from unigrpo.reports.progress import Progress, duration


class Clock:
    """A clock that is moved by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def run(progress: Progress, clock: Clock, lines: list[dict], step: float = 2.0) -> None:
    with progress:
        for line in lines:
            clock.now += step
            progress.update(line)


def lines_of(count: int, start: int = 0) -> list[dict]:
    return [
        {"iteration": k, "reward_mean": 0.5, "validation": {"score": 0.6} if k == 4 else None}
        for k in range(start, count)
    ]


def test_plain_lines_come_first_every_n_and_last() -> None:
    output, clock = io.StringIO(), Clock()
    progress = Progress("demo", 25, every=10, seconds=1e9, console=Console(file=output, width=60), clock=clock)
    run(progress, clock, lines_of(25))
    printed = output.getvalue().splitlines()
    assert [line.split(" | ")[0] for line in printed] == [f"iteration {k} of 25" for k in (1, 11, 21, 25)]
    assert printed[1] == (
        "iteration 11 of 25 | training reward 0.500 | validation score 0.600 (after iteration 5) | 2.00 s per iteration"
        " | about 28 s left"
    )
    assert printed[3].endswith("all iterations done")


def test_plain_lines_come_by_time_too_and_after_a_resume() -> None:
    output, clock = io.StringIO(), Clock()
    progress = Progress("demo", 60, start=50, every=100, seconds=5, console=Console(file=output), clock=clock)
    run(progress, clock, lines_of(60, start=50))
    heads = [line.split(" | ")[0] for line in output.getvalue().splitlines()]
    assert heads == [f"iteration {k} of 60" for k in (51, 54, 57, 60)]


def test_supervised_lines_show_their_losses(supervised_line: Callable[[int], dict]) -> None:
    output, clock = io.StringIO(), Clock()
    progress = Progress("sft", 2, console=Console(file=output), clock=clock)
    run(progress, clock, [supervised_line(0)])
    assert "cross-entropy (words) 1.2500 | flow matching (velocity) 0.5000" in output.getvalue()
    assert "reward" not in output.getvalue()


def test_supervised_table_has_a_column_for_each_loss(supervised_line: Callable[[int], dict]) -> None:
    output, clock = io.StringIO(), Clock()
    console = Console(file=output, force_terminal=True, width=120)
    run(Progress("sft", 2, console=console, clock=clock), clock, [supervised_line(0)])
    for words in ("cross-entropy (words)", "flow matching (velocity)", "1.2500", "0.5000"):
        assert words in output.getvalue()


def test_terminal_gets_a_table_with_filled_columns_only() -> None:
    output, clock = io.StringIO(), Clock()
    console = Console(file=output, force_terminal=True, width=120)
    run(Progress("demo", 25, console=console, clock=clock), clock, lines_of(6))
    text = output.getvalue()
    assert "demo: iteration 6 of 25, about 38 s left" in text
    assert "training reward" in text and "validation score" in text
    assert "cross-entropy" not in text and "plan right" not in text


def test_table_keeps_whole_words_on_a_narrow_terminal() -> None:
    output, clock = io.StringIO(), Clock()
    line = {"iteration": 0, "reward_mean": 0.5, "text": {"think_length": 9.0}}
    line["validation"] = {"score": 0.6, "plan_right": 0.7, "follow": 0.8}
    console = Console(file=output, force_terminal=True, width=80)
    run(Progress("demo", 25, console=console, clock=clock), clock, [line])
    assert "validation" in output.getvalue() and "…" not in output.getvalue()


@pytest.mark.parametrize(
    ("seconds", "said"), [(8.4, "8 s"), (59.7, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="above 0"):
        Progress("demo", 3, every=0)


def test_an_evaluation_is_no_iteration() -> None:
    """Two minutes of evaluation before the first of 100 iterations of a second: minutes are left, not hours."""
    output, clock = io.StringIO(), Clock()
    progress = Progress("demo", 100, schedule=Schedule(validate_every=50), console=Console(file=output), clock=clock)
    with progress:
        clock.now += 120.0
        progress.aside("evaluation")
        clock.now += 1.0
        progress.update({"iteration": 0, "reward_mean": 0.5, "seconds": {"total": 1.0}})
        assert progress.sentence().endswith("1.00 s per iteration | about 3 min 39 s left")  # 99 s, and 120 s after
        for k in range(1, 50):
            clock.now += 1.0 + (20.0 if k == 49 else 0.0)
            progress.update({"iteration": k, "seconds": {"total": 21.0, "validation": 20.0 if k == 49 else 0.0}})
    assert progress.sentence().endswith("1.00 s per iteration | about 3 min 10 s left")  # 50 s, 20 s, 120 s


@pytest.mark.parametrize("width", [40, 41, 50, 60, 70, 80, 120, 200])
def test_a_table_of_any_width_shows_whole_numbers(width: int, metric_line: Callable[..., dict]) -> None:
    output = io.StringIO()
    console = Console(file=output, width=width, force_terminal=True, color_system=None)
    clock = Clock()
    progress = Progress("demo", 20, console=console, clock=clock)
    with progress:
        for k in range(20):
            clock.now += 0.9
            progress.update(metric_line(k))
    shown = output.getvalue().split("demo: iteration 20 of 20")[-1]
    assert f"{metric_line(19)['reward_mean']:.3f}" in shown
    assert all(line.rstrip().endswith("│") for line in shown.splitlines() if "0.90 s" in line)
    assert f"{metric_line(19)['validation']['score']:.3f}" in shown and "0.90 s" in shown
    assert "\u2026" not in shown and max(len(line) for line in shown.splitlines()) <= width
    assert ("for more, widen" in " ".join(shown.split())) == (width < 70)


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_narrow_table_of_losses_shows_them_all(width: int, supervised_line: Callable[[int], dict]) -> None:
    output, clock = io.StringIO(), Clock()
    console = Console(file=output, width=width, force_terminal=True, color_system=None)
    run(Progress("sft", 2, console=console, clock=clock), clock, [supervised_line(0)])
    shown = output.getvalue().split("sft: iteration 1 of 2")[-1]
    assert "1.2500" in shown and "0.5000" in shown and "2.00 s" in shown and "\u2026" not in shown
    assert max(len(line) for line in shown.splitlines()) <= width


def test_a_number_too_wide_for_the_terminal_is_left_out_with_a_word() -> None:
    output, clock = io.StringIO(), Clock()
    console = Console(file=output, width=40, force_terminal=True, color_system=None)
    run(Progress("demo", 2, console=console, clock=clock), clock, [{"iteration": 0, "reward_mean": 1e40}])
    shown = " ".join(output.getvalue().split())
    assert "for more, widen the window: training reward" in shown and "1000000" not in shown


def test_a_checkpoint_is_no_iteration() -> None:
    """Ten iterations of a second, a checkpoint of a minute after the tenth: one more is to come, at the end."""
    output, clock = io.StringIO(), Clock()
    progress = Progress("demo", 19, schedule=Schedule(save_every=10), console=Console(file=output), clock=clock)
    with progress:
        for k in range(11):
            clock.now += 1.0
            progress.update({"iteration": k})
            if k == 9:
                clock.now += 60.0
                progress.aside("checkpoint")
    assert progress.sentence().endswith("1.00 s per iteration | about 1 min 08 s left")


def test_what_has_not_been_seen_is_estimated_from_its_like() -> None:
    """A validation draws a tenth of the evaluation's pictures: either tells about the other."""
    schedule = Schedule(validate_every=5, validation_share=0.1)
    fresh, resumed = Pace(10, schedule), Pace(10, schedule)
    fresh.aside("evaluation", 100.0)
    fresh.iteration(1.0)
    assert fresh.left(1) == pytest.approx(9 + 2 * 10 + 100)
    resumed.iteration(1.0)
    assert resumed.left(5) == pytest.approx(5)  # nothing is known of evaluations
    resumed.iteration(9.0, validation=8.0)
    assert resumed.left(5) == pytest.approx(5 + 8 + 80)
