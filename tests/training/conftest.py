"""What the tests of runs share."""

import pytest

import tiny_runs
from unigrpo.reports import runlog
from unigrpo.runs import training as train_command


@pytest.fixture
def quick(monkeypatch):
    """Leave out the report (seconds of drawing), which the end-to-end tests look at."""
    tiny_runs.finished_run()  # is made with its report, whoever asks for it first
    monkeypatch.setattr(train_command, "write_report", lambda run_dir: run_dir / runlog.REPORT)
