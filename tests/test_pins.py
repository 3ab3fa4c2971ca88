"""Short runs of every method end where they ended when tests/pinned.json was recorded (tests/pinned_runs.py).

On the machine type of the record all figures are equal to the bit, recipe, metrics and weights. Another one rounds
otherwise, and one word that is drawn differently changes all that follows: there, the recipe, the names of all metrics
and the norms of weights and optimizer's state must agree.
"""

from __future__ import annotations

import json

import pytest

import pinned_runs

RECORD = json.loads(pinned_runs.RECORD.read_text(encoding="utf-8"))
TOLERANCE = 2e-2
"""Relative, of norms after a run of three iterations on another machine."""


def test_every_case_is_recorded():
    assert RECORD["cases"].keys() == pinned_runs.CASES.keys()


@pytest.mark.parametrize("name", pinned_runs.CASES)
def test_a_short_run_is_the_one_that_was_recorded(name):
    ours, recorded = pinned_runs.run(name, pinned_runs.here), RECORD["cases"][name]
    assert ours["recipe"] == recorded["recipe"]
    if RECORD["made on"] == pinned_runs.machine():
        assert ours == recorded
        return
    assert [line.keys() for line in ours["metrics"]] == [line.keys() for line in recorded["metrics"]]
    for file, expected in recorded["tensors"].items():
        assert ours["tensors"][file]["n"] == expected["n"]
        assert ours["tensors"][file]["norm"] == pytest.approx(expected["norm"], rel=TOLERANCE)
