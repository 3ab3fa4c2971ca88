"""Short runs of every method end where they ended when tests/pinned.json was recorded (tests/pinned_runs.py).

On the machine type of the record all figures are equal to the bit, recipe, metrics and weights. Another one rounds
otherwise, and one word that is drawn differently changes all that follows: there, the recipe and the first iteration's
figures must agree (rewards and words of the first rollout, and first gradients, within tolerance).
"""

from __future__ import annotations

import json

import pytest

import pinned_runs

RECORD = json.loads(pinned_runs.RECORD.read_text(encoding="utf-8"))
TOLERANCE = 2e-2
"""Relative, of figures of the first iteration elsewhere: a word or two of a rollout may be drawn differently there."""


def test_every_case_is_recorded():
    assert RECORD["cases"].keys() == pinned_runs.CASES.keys()


@pytest.mark.parametrize("name", pinned_runs.CASES)
def test_a_short_run_is_the_one_that_was_recorded(name):
    ours, recorded = pinned_runs.run(name), RECORD["cases"][name]
    assert ours["recipe"] == recorded["recipe"]
    if RECORD["made on"] == pinned_runs.machine():
        assert ours == recorded
        return
    assert [line.keys() for line in ours["metrics"]] == [line.keys() for line in recorded["metrics"]]
    for file, expected in recorded["tensors"].items():
        assert ours["tensors"][file]["n"] == expected["n"]
        assert ours["tensors"][file]["norm"] == pytest.approx(expected["norm"], rel=TOLERANCE)
