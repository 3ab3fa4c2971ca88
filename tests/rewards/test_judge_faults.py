"""A judge through every fault: right scores where there is an answer, an error where there is none, never a zero."""

import asyncio
import json
import math
import threading
from contextlib import ExitStack

import fault_server as faults
import pytest
from judge_asked import BLUE, EXAM, QUICK, RED, SHARES, ask, exam, pictures, question, quickly  # noqa: F401

from unigrpo.ranges import ConfigError
from unigrpo.rewards.judge import JudgeScore, together
from unigrpo.rewards.protocol import RewardFault, RewardInput, call
from unigrpo.rewards.retrying import Breaker, retry_after

# ---------------------------------------------------------------- faults


ONCE = {
    "429": faults.status(429),
    "429 with Retry-After": faults.status(429, [("Retry-After", "0.05")]),
    "500": faults.status(500),
    "503 as a page": faults.status(503),
    "a page with status 200": faults.page,
    "a page that says it is JSON": faults.page_as_json,
    "an error with status 200": faults.error_as_success,
    "an empty answer": faults.sends(b""),
    "JSON that is no object": faults.sends(b"[1, 2]"),
    "JSON that is null": faults.sends(b"null"),
    "JSON too deep": faults.sends(b"[" * 100_000),
    "bytes that are no text": faults.sends(b'{"choices": "\xff\xfe\x00"}'),
    "broken compression": faults.sends(b"no gzip", [("Content-Encoding", "gzip")]),
    "204": faults.sends(b"", code=204),
    "no choices": faults.no_choices,
    "a choice that is null": faults.sends(b'{"choices": [null]}'),
    "no content": faults.says(None),
    "no content, cut in a thinking that begins with No": faults.says(None, faults.logprobs(0.1)),
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
        ((index, why),) = output.errors.items()
        assert "status 400: no luck" in why and len(server.requests) == 3  # no second try
        others = [share for number, share in enumerate(SHARES) if number != index]
        assert [value for value in output.values if value == value] == pytest.approx(others, abs=1e-6)


def test_a_refused_key_is_tried_once_and_never_repeated(monkeypatch):
    monkeypatch.setenv("MY_JUDGE_KEY", "sk-secret-0123456789")
    refuse = faults.status(401, message="no such key: sk-secret-0123456789")
    with faults.running(lambda nth, question: refuse) as server:
        output = ask(question(server, concurrency=1, key_env="MY_JUDGE_KEY"))
        assert server.keys == {"Bearer sk-secret-0123456789"} and len(server.requests) == 1
        assert len(output.errors) == 3 and "secret" not in str(output) and "status 401: no such key: ***" in str(output)


LEAKS = {
    "in an error": lambda key: faults.status(400, message=f"bad key {key}"),
    "where an error is cut": lambda key: faults.status(400, message="x" * 180 + key),
    "where a page is cut": lambda key: faults.sends(b"<p>" + b"x" * 170 + key.encode(), code=400),
    "in an answer": lambda key: faults.says(f"Your key is {key}"),
    "where an answer is cut": lambda key: faults.says(key + "x" * 70),
    "in an address": lambda key: faults.status(307, [("Location", f"http://127.0.0.1:9/?key={key}")]),
}


@pytest.mark.parametrize("where", LEAKS)
def test_a_service_that_repeats_the_key_does_not_get_it_into_an_error(monkeypatch, where):
    monkeypatch.setenv("MY_JUDGE_KEY", key := "sk-secret-0123456789-0123456789")
    with faults.running(lambda nth, question: LEAKS[where](key)) as server:
        output = ask(question(server, retries=0, key_env="MY_JUDGE_KEY"))
        assert len(output.errors) == 3 and not any(key[n : n + 6] in str(output) for n in range(len(key) - 5))


@pytest.mark.parametrize("key", ["sk-one\nX-Other: 1", "sk-ön-0123456", "sk one"])
def test_a_key_that_cannot_be_sent_is_told_without_it(monkeypatch, key):
    monkeypatch.setenv("MY_JUDGE_KEY", key)
    with faults.running() as server, pytest.raises(ConfigError, match="what is in MY_JUDGE_KEY is no key") as caught:
        question(server, key_env="MY_JUDGE_KEY")
    assert key[:6] not in str(caught.value)


@pytest.mark.parametrize(
    "args",
    [
        {"key_env": "sk-secret-0123456789"},
        {"url": "http://me:secret@127.0.0.1/v1"},
        {"url": "me:secret@127.0.0.1/v1"},
        {"url": "http://me:secret@:x/v1"},
        {"url": "http://127.0.0.1/v1?api-key=secret"},
        {"url": "http://127.0.0.1/v1#secret"},
    ],
)
def test_a_key_in_the_wrong_place_is_refused_without_it(args):
    with pytest.raises(ConfigError) as caught:
        JudgeScore(**{"url": "http://127.0.0.1:1/v1", **QUICK, **args})
    assert "secret" not in str(caught.value) and "environment variable" in str(caught.value)


def test_a_key_that_was_exported_anew_is_used(monkeypatch):
    with faults.running() as server:
        for key in ("sk-first-01234567", "sk-second-01234567"):
            monkeypatch.setenv("MY_JUDGE_KEY", key)
            ask(question(server, key_env="MY_JUDGE_KEY"), [RED])
        assert server.keys == {"Bearer sk-first-01234567", "Bearer sk-second-01234567"}


def test_a_redirection_is_told_and_not_followed():
    with faults.running() as other:
        away = faults.status(307, [("Location", f"{other.url}/chat/completions")])
        with faults.running(lambda nth, question: away) as server:
            output = ask(question(server))
            assert "status 307: the service is at http://127.0.0.1" in output.errors[0]
            assert len(server.requests) == 3 and not other.requests


def test_who_asks_for_time_is_left_alone_by_all():
    wants = {"time": True}
    fault = lambda nth, question: faults.status(429, [("Retry-After", "0.6")]) if wants["time"] else None  # noqa: E731
    with faults.running(fault) as server:
        later = threading.Timer(0.3, lambda: wants.update(time=False))
        later.start()
        output = ask(question(server, concurrency=2), [RED] * 30)
        assert not output.errors and len(server.requests) <= 32  # two tries told it to all thirty
        later.join()


def test_where_one_question_breaks_the_others_are_not_left_asking():
    ended = []

    async def breaks():
        raise ZeroDivisionError

    async def asks():
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("asks")

    async def lives():
        with pytest.raises(ZeroDivisionError):
            await together([asks(), breaks(), asks()])
        await asyncio.sleep(0)

    asyncio.run(lives())
    assert ended == ["asks", "asks"]


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


# ---------------------------------------------------------------- waiting


def test_what_retry_after_may_say():
    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert retry_after({"retry-after": "Fri, 31 Dec 2100 23:59:59 GMT"}) > 1e9
    for said in (
        "",
        "soon",
        "-1",
        "nan",
        "inf",
        "Fri, 31 Dec 1999 23:59:59 GMT",
        "Fri, 31 Dec 99999999999 23:59:59 GMT",
    ):
        assert retry_after({"retry-after": said}) == 0.0


def test_a_breaker_lets_one_try_and_is_not_stuck_when_that_is_cancelled():
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
        assert server.keys == {None} and "sk-" not in json.dumps(server.requests)


def test_an_outage_is_said_once_and_its_end_too(capsys):
    async def out_and_back():
        breaker = Breaker(limit=2, name="http://there")
        for _ in range(3):
            breaker.failed()
        breaker.worked()
        breaker.worked()

    asyncio.run(out_and_back())
    waiting, back = capsys.readouterr().err.splitlines()
    assert waiting.startswith("note: http://there does not answer") and back == "note: http://there answers again"
