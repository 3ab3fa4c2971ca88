"""Numbers of things in words: one of a thing is never called by its plural."""

import re
from pathlib import Path

import pytest

import tiny_runs
import unigrpo
from unigrpo.plurals import counted

NOUNS = (
    "iteration sample prompt picture image row step epoch rank round record question stage forward demonstration run"
)
PLURAL = re.compile(rf"(?<![\d.,:x/-])\b1 (?:{'|'.join(f'{noun}s' for noun in NOUNS.split())})\b")


@pytest.mark.parametrize(
    ("number", "noun", "said"),
    [
        (1, "iteration", "1 iteration"),
        (0, "iteration", "0 iterations"),
        (2, "minibatch", "2 minibatches"),
        (3, "epoch", "3 epochs"),
        (2, "try", "2 tries"),
        (2, "day", "2 days"),
        (1, "noisy copy", "1 noisy copy"),
        (2, "noisy copy", "2 noisy copies"),
    ],
)
def test_a_number_of_things(number, noun, said):
    assert counted(number, noun) == said


def test_large_numbers_as_they_are_asked_for():
    assert counted(1200, "row", ",") == "1,200 rows" and counted(1200, "row") == "1200 rows"


def test_the_dry_run_of_one_of_everything_has_no_plural_of_one(capsys):
    ones = {"data.prompts_per_iteration": 1, "data.group_size": 2, "rollout.num_points": 9, "eval.every": 1}
    ones |= {"iterations": 1, "optimizer.micro_batch": 1, "optimizer.ppo_epochs": 1, "eval.limit": 1}
    ones |= {"checkpoint.every": 1, "eval.compare_limit": 1, "eval.compare_samples": 1, "rollout.window_size": 1}
    words = [f"--{key}={value}" for key, value in ones.items()]
    assert tiny_runs.unigrpo("train", "shapes/unigrpo", "--dry-run", *words) == 0
    said = capsys.readouterr().out
    assert "1 iteration" in said and PLURAL.findall(said) == []


def test_no_number_is_followed_by_a_plural_that_nobody_counted():
    """In what is said of a run while it goes on and after it: f"{number} iterations" is ``counted``."""
    root, found = Path(unigrpo.__file__).parent, []
    written = re.compile(r"\{[^{}]*\} (?:iterations|samples|prompts|pictures|images|rows|steps|epochs|questions)\b")
    for room in ("runs", "commands", "reports", "rollout", "tools/planning", "api", "evaluation"):
        for path in sorted((root / room).rglob("*.py")):
            lines = path.read_text(encoding="utf-8").splitlines()
            found += [f"{path.name}: {line.strip()}" for line in lines if written.search(line) and "raise" not in line]
    assert [line for line in found if not any(known in line for known in AT_LEAST_TWO)] == []


AT_LEAST_TWO = ("lists of questions", "official file", "the resampled")
