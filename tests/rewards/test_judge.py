"""A judge through every fault: right scores where there is an answer, an error where there is none, never a zero."""

import json
import math
import sqlite3
import subprocess
import sys
import threading
from contextlib import ExitStack

import fault_server as faults
import pytest
import torch

from unigrpo.ranges import ConfigError
from unigrpo.rewards import judge_endpoint, registry
from unigrpo.rewards.judge import JudgeExam, JudgeScore
from unigrpo.rewards.protocol import RewardFault, RewardInput, RewardOutput, call
from unigrpo.rewards.retrying import Breaker, retry_after

RED, MOSTLY_RED, BLUE = (255, 0, 0), (192, 64, 0), (0, 0, 255)
SHARES = [1.0, 0.75, 0.0]  # of red in the light of the three pictures
EXAM = ["Is it red?", {"question": "Is it blue?", "expected": "no"}]
QUICK = {"probe": False, "deadline_s": 30.0, "connect_s": 0.5, "read_s": 0.5, "model": faults.MODEL}


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """The same tries with shorter waits, and no client of another test (ports come back)."""
    monkeypatch.setattr(judge_endpoint, "backoff", lambda attempt: 0.01)
    judge_endpoint.endpoint.cache_clear()
    judge_endpoint._client.cache_clear()


def pictures(*colours):
    return torch.stack([torch.tensor(c).float()[:, None, None].expand(3, 8, 8) for c in colours]) / 255.0


def ask(reward, colours=(RED, MOSTLY_RED, BLUE), points=EXAM):
    count = len(colours)
    given = RewardInput(pictures(*colours), ["a cup"] * count, [{"points": points}] * count, [None] * count)
    return call("judge", reward, given, strict=False)


def question(server, **other):
    return JudgeScore(**{"url": server.url, "question": "Is it red?", **QUICK, **other})


def exam(server, **other):
    return JudgeExam(**{"url": server.url, **QUICK, **other})


# ---------------------------------------------------------------- answers


def test_soft_and_hard_scores_of_an_exam():
    with faults.running() as server:
        output = ask(exam(server))
        assert output.values == pytest.approx([1.0, 0.875, 0.0], abs=1e-6) and not output.errors
        assert output.parts["hard"] == [1, 1, 0] and output.parts["all"] == [1, 1, 0]
        (first, *_) = server.requests
        image, words = first["messages"][0]["content"]
        assert (image["type"], words["type"], len(server.requests)) == ("image_url", "text", 6)
        assert words["text"].startswith("Judge only what is visible. Question: Is it")
        assert (first["temperature"], first["logprobs"], first["top_logprobs"]) == (0, True, 20)


def test_one_request_for_all_points_of_a_picture():
    with faults.running() as server:
        output = ask(exam(server, mode="batch"))
        assert output.values == [1, 1, 0] and len(server.requests) == 3
        assert "logprobs" not in server.requests[0] and "1. Is it red?\n2. Is it blue?" in next(iter(server.asked))


def test_one_question_of_ones_own():
    with faults.running() as server:
        output = ask(question(server, question="Is {prompt} red?", extra={"priority": 3}))
        assert output.values == pytest.approx(SHARES, abs=1e-6) and output.parts["hard"] == [1, 1, 0]
        assert "Question: Is a cup red? Answer" in str(server.asked) and server.requests[0]["priority"] == 3


def test_at_most_so_many_requests_at_a_time():
    with faults.running(seconds=0.03) as server:
        ask(exam(server, concurrency=3), [RED] * 8)
        assert server.busiest == 3 and len(server.requests) == 16


# ---------------------------------------------------------------- faults


ONCE = {
    "429": faults.status(429),
    "429 with Retry-After": faults.status(429, [("Retry-After", "0.05")]),
    "500": faults.status(500),
    "503 as a page": faults.status(503),
    "a page with status 200": faults.page,
    "a page that says it is JSON": faults.page_as_json,
    "an error with status 200": faults.error_as_success,
    "no choices": faults.no_choices,
    "no content": faults.says(None),
    "neither yes nor no": faults.says("It depends."),
    "dropped": faults.dropped,
    "cut": faults.cut,
    "slow": faults.slow(1.5),
}


@pytest.mark.parametrize("fault", ONCE)
def test_a_fault_that_passes_changes_no_score(fault):
    with faults.running(lambda nth, question: ONCE[fault] if nth == 2 else None) as server:
        output = ask(question(server))
        assert output.values == pytest.approx(SHARES, abs=1e-6) and not output.errors
        assert len(server.requests) == 4


@pytest.mark.parametrize("fault", [fault for fault in ONCE if fault != "slow"])
def test_a_fault_that_stays_is_an_error_and_never_a_zero(fault):
    with faults.running(lambda nth, question: ONCE[fault] if "blue" in question else None) as server:
        output = ask(exam(server, retries=2), [RED, BLUE], ["Is it red?", "Is it blue?"])
        assert all(math.isnan(value) for value in output.values) and set(output.errors) == {0, 1}
        assert "1 of 2 points have no answer; 'Is it blue?': " in output.errors[0]
        assert len(server.requests) <= 2 + 2 * 3
        with pytest.raises(RewardFault, match="failed on 2 of 2 pictures"):
            given = RewardInput(pictures(RED, BLUE), ["a"] * 2, [{"points": EXAM}] * 2, [None] * 2)
            call("judge", exam(server, retries=0), given)


def test_one_picture_that_fails_leaves_the_others():
    with faults.running(lambda nth, question: faults.status(400) if nth == 1 else None) as server:
        output = ask(question(server, concurrency=1))
        assert list(output.errors) == [0] and "status 400: no luck" in output.errors[0]
        assert output.values[1:] == pytest.approx(SHARES[1:], abs=1e-6) and len(server.requests) == 3  # no second try


def test_a_refused_key_is_tried_once_and_never_repeated(monkeypatch):
    monkeypatch.setenv("MY_JUDGE_KEY", "sk-secret-0123456789")
    refuse = faults.status(401, message="no such key: sk-secret-0123456789")
    with faults.running(lambda nth, question: refuse) as server:
        output = ask(question(server, concurrency=1, key_env="MY_JUDGE_KEY"))
        assert server.keys == {"Bearer sk-secret-0123456789"} and len(server.requests) == 1
        assert len(output.errors) == 3 and "secret" not in str(output) and "status 401: no such key: ***" in str(output)


def test_a_list_of_the_wrong_length_is_asked_for_once_more():
    with faults.running(lambda nth, question: faults.says('["yes"]') if nth == 1 else None) as server:
        assert ask(exam(server, mode="batch"), [RED]).values == [1.0]
        again = server.requests[1]["messages"]
        assert [m["role"] for m in again] == ["user", "assistant", "user"]
        assert "list of 2 strings" in again[2]["content"]
    with faults.running(lambda nth, question: faults.says('["yes"]')) as server:
        output = ask(exam(server, mode="batch"), [RED])
        assert math.isnan(output.values[0]) and "2 of 2 points have no answer" in output.errors[0]
        assert len(server.requests) == 2


def test_the_time_of_a_call_is_bounded():
    with faults.running(lambda nth, question: faults.status(429, [("Retry-After", "3600")])) as server:
        output = ask(question(server))
        assert len(output.errors) == 3 and "the next try, in 3.6e+03 s, is after deadline_s = 30" in output.errors[0]
    with faults.running(lambda nth, question: faults.slow(2.0)) as server:
        output = ask(question(server, deadline_s=0.3))
        assert len(output.errors) == 3 and "no answer within deadline_s = 0.3" in output.errors[0]


def test_nobody_there_is_an_error_and_a_service_that_comes_back_is_found():
    with faults.running() as server:
        port = server.server_address[1]
    reward = JudgeScore(url=f"http://127.0.0.1:{port}/v1", question="Is it red?", **{**QUICK, "retries": 3})
    output = ask(reward)
    assert len(output.errors) == 3 and "no connection to http://127.0.0.1" in output.errors[0]
    reward.retries, reward.deadline_s = 100, 20.0
    with ExitStack() as later:
        start = threading.Timer(0.3, lambda: later.enter_context(faults.running(port=port)))
        start.start()
        assert ask(reward).values == pytest.approx(SHARES, abs=1e-6)
        start.join()


def test_an_outage_costs_few_requests():
    with faults.running(lambda nth, question: faults.status(500)) as server:
        output = ask(exam(server, retries=100, deadline_s=0.6), [RED] * 40)
        assert len(output.errors) == 40 and len(server.requests) < 60
        server.fault = lambda nth, question: None
        assert not ask(exam(server, retries=100, deadline_s=30), [RED] * 40).errors


# ---------------------------------------------------------------- memory


def test_a_second_run_asks_nothing_and_failures_are_asked_again(tmp_path):
    broken = {"on": True}
    fault = lambda nth, question: faults.says("?") if broken["on"] and "blue" in question else None  # noqa: E731
    with faults.running(fault) as server:
        cache = str(tmp_path / "deep" / "answers.sqlite")
        assert len(ask(exam(server, cache=cache)).errors) == 3
        broken["on"], before = False, len(server.requests)
        first = ask(exam(server, cache=cache))
        assert not first.errors and len(server.requests) == before + 3  # the points without an answer
        assert ask(exam(server, cache=cache)) == first and len(server.requests) == before + 3
        for other in ({"max_tokens": 17}, {"model": "other"}, {"mode": "batch"}, {"extra": {"seed": 1}}):
            before = len(server.requests)
            ask(exam(server, cache=cache, **other))
            assert len(server.requests) > before, other
        ask(exam(server, cache=str(tmp_path)))
        assert (tmp_path / "judge.sqlite").is_file()


WRITER = """
import sys
from unigrpo.rewards.judge_cache import Cache
cache = Cache(sys.argv[1])
for number in range(200):
    cache.put(str(number), [number / 200])
    assert cache.get(str(number)) == [number / 200]
"""


def test_processes_share_a_cache(tmp_path):
    path = str(tmp_path / "cache.sqlite")
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, path]) for _ in range(3)]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    assert sqlite3.connect(path).execute("SELECT count(*) FROM answers").fetchone() == (200,)


def test_a_file_that_is_no_cache_is_told(tmp_path):
    (tmp_path / "notes.txt").write_text("not a database" * 100)
    with faults.running() as server, pytest.raises(ConfigError, match=r"notes.txt' cannot be used .*: name a file"):
        exam(server, cache=str(tmp_path / "notes.txt"))


def test_damaged_answers_are_asked_again(tmp_path):
    with faults.running() as server:
        reward = exam(server, cache=str(tmp_path / "c"))
        first = ask(reward)
        for damage in ("x", "[2]", "{}", "[]"):
            sqlite3.connect(tmp_path / "c", isolation_level=None).execute("UPDATE answers SET answer = ?", (damage,))
            assert ask(reward) == first
        assert len(server.requests) == 30


# ---------------------------------------------------------------- the start


def test_the_probe_asks_of_a_red_square_once_in_a_process():
    with faults.running() as server:
        for mode in ("points", "batch", "points"):
            exam(server, mode=mode, probe=True)
        assert len(server.requests) == 4 and all("picture" in words for words in server.asked)


PROBES = {
    "has no model 'colours-7b' (did you mean colours-70b?); it has: colours-70b": lambda s: s.models.__setitem__(
        0, "colours-70b"
    ),
    "says no: it does not see pictures": lambda s: setattr(
        s, "fault", lambda n, q: faults.says("No", faults.logprobs(0.1))
    ),
    "gives no log probabilities": lambda s: setattr(
        s, "fault", lambda n, q: faults.says("Yes" if "red" in q else "No")
    ),
    "refuses": lambda s: setattr(s, "fault", lambda n, q: faults.status(400, message="refuses")),
    "asked twice, the judge gave no yes nor no": lambda s: setattr(s, "fault", lambda n, q: faults.says("a square")),
}  # fmt: skip


@pytest.mark.parametrize("said", PROBES)
def test_a_judge_that_cannot_work_is_told_in_a_sentence(said):
    with faults.running() as server:
        PROBES[said](server)
        with pytest.raises(ConfigError, match=r"^judge/exam: ") as caught:
            exam(server, probe=True)
        assert said in str(caught.value) and "\n" not in str(caught.value)


def test_no_service_and_no_shades():
    with faults.running(lambda n, q: faults.says("Yes" if "red" in q else "No")) as server:
        exam(server, probe=True, top_logprobs=0)
    with pytest.raises(ConfigError, match=r"cannot be used .*: start the service, or correct url"):
        exam(server, probe=True)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"url": "127.0.0.1:8000"}, "is no address of a service"),
        ({"url": "http://me:pass@host/v1"}, "holds a user or a password"),
        ({"url": ""}, "url is ''"),
        ({"key_env": "NO_SUCH_KEY"}, "the environment variable NO_SUCH_KEY is not set"),
        ({"concurrency": 0}, "concurrency is 0: write a number, at least 1"),
        ({"deadline_s": "long"}, "deadline_s is 'long'"),
        ({"mode": "all"}, "mode is 'all': write points or batch"),
        ({"extra": {"temperature": 1}}, "extra has 'temperature', which the judge sets itself"),
        ({"extra": 3}, "extra has 3"),
    ],
)
def test_settings_that_cannot_work_are_told(args, said):
    with pytest.raises(ConfigError) as caught:
        JudgeExam(**{"url": "http://127.0.0.1:1/v1", **QUICK, **args})
    assert said in str(caught.value) and "pass" not in str(caught.value).replace("password", "")


def test_it_is_built_by_name_with_args(monkeypatch):
    monkeypatch.setattr(registry, "_FACTORIES", {"judge/exam": JudgeExam})
    with faults.running() as server:
        reward = registry.build("judge/exam", {"url": server.url, **QUICK})
        assert isinstance(ask(reward), RewardOutput) and len(server.requests) == 6
    with pytest.raises(ConfigError, match="did you mean url"):
        registry.build("judge/exam", {"ur": server.url, **QUICK})


def test_points_that_are_missing_are_a_fault_with_the_prompt():
    with faults.running() as server, pytest.raises(RewardFault, match="points of the prompt 'a cup': there are none"):
        ask(exam(server), points=[])


# ---------------------------------------------------------------- waiting


def test_what_retry_after_may_say():
    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert retry_after({"retry-after": "Fri, 31 Dec 2100 23:59:59 GMT"}) > 1e9
    for said in ("", "soon", "-1", "nan", "inf", "Fri, 31 Dec 1999 23:59:59 GMT"):
        assert retry_after({"retry-after": said}) == 0.0


def test_a_breaker_lets_one_try_and_is_not_stuck_when_that_is_cancelled():
    import asyncio

    async def lives():
        breaker, entered = Breaker(limit=2, pause=0.01), []
        for _ in range(2):
            breaker.failed()

        async def take(seconds, then):
            async with breaker.turn():
                entered.append(then)
                await asyncio.sleep(seconds)
                getattr(breaker, then)()

        cancelled = asyncio.ensure_future(take(60, "failed"))
        await asyncio.sleep(0.1)
        others = [asyncio.ensure_future(take(0.0, "worked")) for _ in range(5)]
        await asyncio.sleep(0.1)
        assert entered == ["failed"] and breaker.is_open
        cancelled.cancel()
        await asyncio.gather(*others)
        assert len(entered) == 6 and not breaker.is_open

    asyncio.run(lives())


def test_nothing_of_a_key_is_in_requests(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-somebody-elses")
    with faults.running() as server:
        ask(question(server))
        assert server.keys == {"Bearer none"} and "sk-" not in json.dumps(server.requests)
