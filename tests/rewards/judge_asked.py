"""Judges that ask the fault server about three pictures, and the short waits that their tests use."""

import fault_server as faults
import pytest
import torch

from unigrpo.rewards import judge_endpoint
from unigrpo.rewards.judge import JudgeExam, JudgeScore
from unigrpo.rewards.protocol import RewardInput, call

RED, MOSTLY_RED, BLUE = (255, 0, 0), (192, 64, 0), (0, 0, 255)
SHARES = [1.0, 0.75, 0.0]  # of red in the light of the three pictures
EXAM = ["Is it red?", {"question": "Is it blue?", "expected": "no"}]
QUICK = {"probe": False, "deadline_s": 30.0, "connect_s": 0.5, "read_s": 0.5, "model": faults.MODEL}


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """The same tries with shorter waits, and no client of another test (ports come back)."""
    monkeypatch.setattr(judge_endpoint, "backoff", lambda attempt: 0.01)
    judge_endpoint._endpoint.cache_clear()


def pictures(*colours):
    return torch.stack([torch.tensor(c).float()[:, None, None].expand(3, 8, 8) for c in colours]) / 255.0


def ask(reward, colours=(RED, MOSTLY_RED, BLUE), points=EXAM, sources=None):
    """Ask about pictures of one colour each; ``sources``: pictures that the prompt of each gave."""
    count = len(colours)
    rows = [{"points": points}] * count if sources is None else [{"points": points, "images": own} for own in sources]
    given = RewardInput(pictures(*colours), ["a cup"] * count, rows, [None] * count)
    return call("judge", reward, given, strict=False)


def question(server, **other):
    return JudgeScore(**{"url": server.url, "question": "Is it red?", **QUICK, **other})


def exam(server, **other):
    return JudgeExam(**{"url": server.url, **QUICK, **other})
