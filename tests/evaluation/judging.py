"""What the tests of judged suites share: pictures, a judge on this machine, and files in the official formats."""

import json
import sys
from pathlib import Path

import pytest
import torch

from unigrpo.rewards import judge_endpoint

sys.path.append(str(Path(__file__).parents[1] / "rewards"))
import fault_server as faults

RED, MOSTLY_RED, BLUE = (255, 0, 0), (192, 64, 0), (0, 0, 255)
NOWHERE = {"url": "http://127.0.0.1:9/v1", "probe": False}


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """The same tries with shorter waits, and no client of another test (ports come back)."""
    monkeypatch.setattr(judge_endpoint, "backoff", lambda attempt: 0.01)
    judge_endpoint._endpoint.cache_clear()


def picture(colour, height=8, width=8):
    return torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(3, height, width).contiguous()


def judge(server, model=faults.MODEL, **other):
    return {
        "url": server.url,
        "model": model,
        "probe": False,
        "deadline_s": 30.0,
        "read_s": 0.5,
        "connect_s": 0.5,
        **other,
    }


def examined(examiner, prompts, colours=None):
    shown = [picture(RED if colours is None else colours[i]) for i in range(len(prompts))]
    return examiner(shown, prompts, [None] * len(prompts))


def lines(path: Path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answers(texts):
    """A fault that says the nth of some texts, and the last for ever."""
    return lambda nth, words: faults.says(texts[min(nth, len(texts)) - 1])


def first_token(**masses):
    """Log probabilities of a first token: its alternatives by their probability (``_`` before a word is a space)."""
    top = [{"token": t.replace("_", " "), "logprob": float(torch.tensor(p).log())} for t, p in masses.items()]
    best = max(top, key=lambda choice: choice["logprob"])
    return {"content": [{**best, "top_logprobs": top}]}
