"""A reward behind HTTP and its client: the numbers of the process, in order, through every fault, and never a zero."""

import math
import random
import sys
import threading
import time
from contextlib import ExitStack

import fault_server as faults
import pytest
import torch

import reward_server
from unigrpo import build
from unigrpo.ranges import ConfigError
from unigrpo.rewards import registry, remote_service, wire
from unigrpo.rewards.composite import CompositeReward, WeightedReward
from unigrpo.rewards.protocol import RewardFault, RewardInput, RewardOutput, call, metadata_of
from unigrpo.rewards.remote import RemoteHttp, weight
from unigrpo.rewards.serving import Limits
from unigrpo.trajectory import Prompt

QUICK = {"connect_s": 0.5, "read_s": 0.5, "deadline_s": 20.0}


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """The same tries with shorter waits."""
    monkeypatch.setattr(remote_service, "backoff", lambda attempt, longest: 0.01)
    monkeypatch.setattr("unigrpo.rewards.remote.START_S", 0.3)
    monkeypatch.setattr(remote_service, "PAUSE", 0.01)


def noise(count, height=32, width=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, height, width), dtype=torch.uint8, generator=generator).float() / 255.0


def given(count, **other):
    """Pictures of noise whose prompts are their numbers."""
    chosen = {"metadata": [{}] * count, "thinking": [None] * count, **other}
    return RewardInput(noise(count, 4, 4), [str(number) for number in range(count)], **chosen)


def ask(reward, count=5, **other):
    return call("remote/http", reward, given(count, **other), strict=False)


def remote(*servers, **other):
    urls = [server.url for server in servers]
    return RemoteHttp(**{"url": urls if len(urls) > 1 else urls[0], **QUICK, **other})


def right(output, count=5):
    values = [float(number) for number in range(count)]
    return output == RewardOutput(values, {"twice": [2 * v for v in values]}, {})


def same(name, reward, asked, **client):
    """What a reward says, in process and through a service, which must be the same bits."""
    here = call(name, reward, asked, strict=False)
    with reward_server.serving(reward, name=name) as url:
        there = call(name, RemoteHttp(url=url, reward=name, **client), asked, strict=False)
    for ours, theirs in ((here.values, there.values), *((here.parts[n], there.parts[n]) for n in here.parts)):
        assert [v.hex() for v in map(float, ours)] == [v.hex() for v in map(float, theirs)]
    assert here.parts.keys() == there.parts.keys() and here.errors == there.errors
    return here


# ---------------------------------------------------------------- the same numbers


def test_the_verifier_of_shapes():
    prompts = build.prompts("shapes:train", 0).batch(0, 12)
    asked = RewardInput(noise(12), [p.text for p in prompts], metadata_of(prompts), ["<think> x </think>"] * 12)
    output = same("shapes/verifier", registry.build("shapes/verifier"), asked, batch=5)
    assert len(set(output.values)) > 3 and len(output.parts) > 2


@pytest.mark.parametrize("name", ["image/jpeg-compressibility", "image/jpeg-incompressibility"])
def test_the_sizes_as_jpeg(name):
    asked = RewardInput(noise(3, 16, 24), ["a"] * 3, [{}] * 3, [None] * 3)
    assert len(set(same(name, registry.build(name), asked).values)) > 1


def test_parts_errors_and_numbers_that_are_hard_to_write():
    numbers = [0.1 + 0.2, 1e-310, -0.0, 2.0**70, 1 / 3, -5e300]

    def reward(images, prompts, metadata, thinking):
        values = [numbers[int(prompt)] * len(metadata[int(prompt) % 1].get("ä", "1")) for prompt in prompts]
        return RewardOutput([*values[:2], math.nan, *values[3:]], {"x": [math.inf, *values[1:]]}, {3: "no → way"})

    asked = given(6, metadata=[{"ä": "ö", "deep": [{"n": 0.1}, None, True]}] * 6)
    output = same("mine", reward, asked)
    assert set(output.errors) == {0, 2, 3} and output.errors[3] == "no → way" and math.isnan(output.values[3])


@pytest.mark.parametrize("bad", [0.5, math.nan])
def test_several_values_by_name(bad):
    async def reward(images, prompts, metadata, thinking):
        return {"a": [float(p) for p in prompts], "b": [bad if p == "3" else 2 * float(p) for p in prompts]}

    with reward_server.serving(reward) as url:
        there, asked = RemoteHttp(url=url, batch=2), given(5)
        ours, theirs = (call("m", r, asked, value="b", strict=False) for r in (reward, there))
        assert str((ours.values, ours.parts)) == str((theirs.values, theirs.parts)) and theirs.values[2] == 4.0
        assert set(ours.errors) == set(theirs.errors) == (set() if math.isfinite(bad) else {3})
        for one in (reward, there):
            with pytest.raises(RewardFault, match="no value 'c'"):
                call("m", one, asked, value="c", strict=False)
        if math.isfinite(bad):
            with pytest.raises(RewardFault, match=r"gives several values .a, b.: say which one counts"):
                call("m", there, asked)


def test_the_source_pictures_of_an_edit():
    shown = tuple(torch.randint(256, (3, h, w), dtype=torch.uint8) for h, w in ((5, 7), (9, 3)))
    prompts = [Prompt(0, "a", {"k": [1, 2.5]}, shown), Prompt(1, "b", {}), Prompt(2, "c", {}, shown[:1])]

    def reward(images, prompts, metadata, thinking):
        assert all(picture.dtype == torch.float32 for row in metadata for picture in row.get("images", []))
        return [sum(float(p.double().sum()) * (n + 1) for n, p in enumerate(row.get("images", []))) for row in metadata]

    asked = RewardInput(noise(3), ["a", "b", "c"], metadata_of(prompts), [None] * 3)
    values = same("edit", reward, asked, batch=2).values
    assert values[1] == 0 and values[0] > values[2] > 0


def test_a_large_number_of_pictures_keeps_its_order_over_several_services():
    delays = random.Random(0)

    def scattered(nth):
        threading.Event().wait(delays.random() * 0.02)

    with (
        reward_server.faulty(scattered) as one,
        reward_server.faulty(scattered) as two,
        reward_server.faulty() as three,
    ):
        assert right(ask(remote(one, two, three, batch=3), 200), 200)
        assert min(server.count for server in (one, two, three)) >= 5
        assert sum(server.count for server in (one, two, three)) == 67


# ---------------------------------------------------------------- what cannot be sent


def test_what_cannot_be_sent_is_an_error_of_its_picture_alone():
    asked = given(6, metadata=[{}, {"n": math.nan}, {"t": (1, 2)}, {"k": {1: 2}}, {"p": torch.ones(2)}, {}])
    asked.images[5, 0, 0, 0] = math.nan
    with reward_server.faulty() as server:
        output = call("remote/http", remote(server), asked, strict=False)
        assert output.values[0] == 0.0 and set(output.errors) == {1, 2, 3, 4, 5} and server.count == 1
    assert output.errors[2].startswith("cannot be sent: its metadata hold 't': (1, 2), which JSON would change")
    assert output.errors[5] == "cannot be sent: a picture holds NaN or infinity, which no PNG can hold"
    assert all(math.isnan(output.values[i]) for i in output.errors)


# ---------------------------------------------------------------- faults

NAN = '{"values": [NaN, 0, 0, 0, 0], "parts": {}, "errors": {}}'


def says(values=(0, 1, 2, 3, 4), parts=None, errors=None, **other):
    said = {"values": list(values), "parts": parts or {}, "errors": errors or {}, **other}
    return lambda handler: handler.answer(200, said)


ONCE = {
    "429": faults.status(429),
    "500": faults.status(500),
    "503 with Retry-After": faults.status(503, [("Retry-After", "0.05")]),
    "408": faults.status(408),
    "502 as a page": lambda handler: handler.answer(502, "<html>", kind="text/html"),
    "a page with status 200": faults.page,
    "a page that says it is JSON": faults.page_as_json,
    "another object": faults.error_as_success,
    "too few": says([1, 2]),
    "one number": lambda handler: handler.answer(200, {"values": 1, "parts": {}, "errors": {}}),
    "NaN": lambda handler: handler.answer(200, NAN),
    "infinite": lambda handler: handler.answer(200, NAN.replace("NaN", "1e999")),
    "a long integer": lambda handler: handler.answer(200, NAN.replace("NaN", "1" + "0" * 400)),
    "null without an error": says([None, 1, 2, 3, 4]),
    "neither values nor parts": lambda handler: handler.answer(200, {"values": None, "parts": {}, "errors": {}}),
    "texts": says(["0", 1, 2, 3, 4]),
    "verdicts": says([True, 1, 2, 3, 4]),
    "parts of another length": says(parts={"p": [1.0]}),
    "parts without names": lambda handler: handler.answer(200, {"values": [0] * 5, "parts": [], "errors": {}}),
    "errors of other pictures": says(errors={"7": "no"}),
    "errors that are none": says(errors={"0": None}),
    "nested": lambda handler: handler.answer(200, "[" * 100_000),
    "dropped": faults.dropped,
    "cut": faults.cut,
    "slow": faults.slow(1.5),
}


@pytest.mark.parametrize("fault", ONCE)
def test_a_fault_that_passes_changes_no_number(fault):
    with reward_server.faulty(lambda nth: ONCE[fault] if nth == 1 else None) as server:
        assert right(ask(remote(server))) and server.count == 2


@pytest.mark.parametrize("fault", [f for f in ONCE if f != "slow"])
def test_a_fault_that_stays_is_an_error_and_never_a_zero(fault):
    with reward_server.faulty(lambda nth: ONCE[fault]) as server:
        output = ask(remote(server, retries=2, deadline_s=0.5))
        assert all(math.isnan(value) for value in output.values) and set(output.errors) == set(range(5))
        assert output.errors[0].startswith("got no answer") and server.url in output.errors[0]
        counts = not fault.startswith(("429", "502", "503"))
        assert server.count == 3 if counts else server.count > 3
        with pytest.raises(RewardFault, match=r"failed on 5 of 5 pictures; picture 0 .'0'.: got no answer"):
            call("remote/http", remote(server, retries=0, deadline_s=0.5), given(5))


def test_a_refusal_is_told_at_once_and_the_others_have_their_numbers():
    with reward_server.faulty(lambda nth: faults.status(413) if nth == 1 else None) as server:
        server.fault = lambda nth: (lambda h: h.answer(413, {"error": "send fewer"})) if nth == 1 else None
        output = ask(remote(server, batch=2, concurrency=1))
        assert set(output.errors) == {0, 1} and output.values[2:] == [2, 3, 4] and server.count == 3
        assert output.errors[0] == f"{server.url}: status 413: send fewer"
        assert math.isnan(output.parts["twice"][0]) and output.parts["twice"][2:] == [4, 6, 8]


def test_a_request_that_fails_at_one_service_goes_to_another():
    with reward_server.faulty(lambda nth: faults.status(500)) as broken, reward_server.faulty() as fine:
        assert right(ask(remote(broken, fine, batch=1, retries=1), 40), 40)
        assert fine.count == 40 and broken.count < 40


def test_a_service_that_comes_back_is_used_again():
    with (
        reward_server.faulty(lambda nth: faults.status(503) if nth < 9 else None) as back,
        reward_server.faulty() as fine,
    ):
        reward = remote(back, fine, batch=1, concurrency=1)
        latest = time.monotonic() + 60  # it is left alone for a second or so after each fault
        while back.count <= 20:
            assert right(ask(reward, 20), 20)
            assert time.monotonic() < latest


def test_a_service_that_is_down_is_waited_for():
    with reward_server.faulty() as server:
        reward, port = remote(server, retries=0), server.server_address[1]
    with ExitStack() as later:
        start = threading.Timer(0.3, lambda: later.enter_context(reward_server.faulty(port=port)))
        start.start()
        assert right(ask(reward))
        start.join()


def test_a_service_that_stays_away_is_an_error_within_the_deadline():
    with reward_server.faulty() as server:
        reward = remote(server, deadline_s=0.3, batch=2)
    output = ask(reward)
    assert set(output.errors) == set(range(5)) and all(math.isnan(value) for value in output.values)
    assert "no connection to http://127.0.0.1" in output.errors[4] and "deadline_s = 0.3" in output.errors[4]
    named = WeightedReward("remote/http", reward, value="twice")
    scored = CompositeReward((named,), on_error="drop_sample")(given(5))
    assert set(scored.failures) == set(range(5)) and "no connection" in scored.failures[0]
    with pytest.raises(RewardFault, match="failed on 5 of 5 pictures"):
        CompositeReward((named,))(given(5))


def test_a_wait_beyond_the_deadline_is_not_waited():
    with reward_server.faulty(lambda nth: faults.status(429, [("Retry-After", "3600")])) as server:
        output = ask(remote(server))
        assert "the next try, in 3.6e+03 s, is after deadline_s = 20" in output.errors[0] and server.count == 1


def test_at_most_so_many_requests_at_a_time():
    busy, most, lock = [0], [0], threading.Lock()

    def counted(nth):
        with lock:
            busy[0] += 1
            most[0] = max(most[0], busy[0])
        threading.Event().wait(0.03)
        with lock:
            busy[0] -= 1

    with reward_server.faulty(counted) as server:
        assert right(ask(remote(server, batch=1, concurrency=3), 12), 12)
    assert most[0] == 3


# ---------------------------------------------------------------- tokens


def test_a_token_comes_from_the_environment_and_is_never_told(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "s3cret-0123456789")
    with reward_server.serving(lambda *given: [0.5] * 5, token="s3cret-0123456789") as url:
        reward = RemoteHttp(url=url, token_env="MY_TOKEN")
        assert ask(reward).values == [0.5] * 5
        assert "s3cret" not in repr(reward)
        monkeypatch.setenv("MY_TOKEN", "s3cret-other")
        with pytest.raises(ConfigError, match=r"status 401: the token is missing or wrong.*token_env") as caught:
            RemoteHttp(url=url, token_env="MY_TOKEN")
        assert "s3cret" not in str(caught.value)
    says_it = lambda handler: handler.answer(400, {"error": f"you sent {handler.headers['Authorization']}"})  # noqa: E731
    with reward_server.faulty(lambda nth: says_it) as server:
        output = ask(remote(server, token_env="MY_TOKEN"))
        assert output.errors[0].endswith("status 400: you sent Bearer ***")


# ---------------------------------------------------------------- the start


def test_the_name_and_the_limits_of_a_service_are_looked_at():
    with reward_server.faulty() as one, reward_server.faulty() as two:
        assert ask(remote(one, reward="r"))
        assert {body["reward"] for body in one.bodies} == {"r"}
        with pytest.raises(ConfigError, match=r"has the reward 'r', and reward is 'shapes/verifier': correct url"):
            remote(one, reward="shapes/verifier")
        two.about["reward"] = "q"
        with pytest.raises(ConfigError, match=f"{two.url} has the reward 'q', and {one.url} has 'r'"):
            remote(one, two)
        two.about["reward"], two.about["limits"]["max_pictures"] = "r", 8
        with pytest.raises(ConfigError, match=f"batch is 16, and {two.url} takes 8 pictures"):
            remote(one, two)
        two.about = ["x"]
        with pytest.raises(ConfigError, match="is no service of unigrpo rewards serve"):
            remote(two)
    with pytest.raises(ConfigError, match=r"cannot be used .no connection .*: start it"):
        remote(one)
    with faults.running() as judge, pytest.raises(ConfigError, match="is no service of unigrpo rewards serve"):
        remote(judge)


def test_a_service_with_another_reward_in_its_place_is_an_error():
    with reward_server.serving(lambda *given: [1.0], name="r") as url:
        reward = RemoteHttp(url=url)
        reward._served = "q"
        assert "status 404: this service has the reward 'r', not 'q'" in ask(reward).errors[0]


def test_requests_fit_into_what_the_services_take():
    noisy = RewardInput(noise(24, 128, 128), [str(n) for n in range(24)], [{}] * 24, [None] * 24)
    reward = lambda images, prompts, metadata, thinking: [float(p) for p in prompts]  # noqa: E731
    with reward_server.serving(reward, limits=Limits(64, 2**26, 1)) as url:  # 24 of them are 1.6 MB
        assert call("m", RemoteHttp(url=url, batch=64), noisy).values == list(range(24))
    with reward_server.serving(reward, limits=Limits(64, 5 * 128**2, 64)) as url:
        assert call("m", RemoteHttp(url=url), noisy).values == list(range(24))


def test_a_body_is_never_larger_than_its_weight():
    for height, width, thinking in ((1, 40, None), (40, 1, "\n" * 500), (64, 64, "\U0001f600" * 3000), (1, 1, "")):
        shown = Prompt(0, "a", {"ö": ["\x01" * 50] * 9}, (torch.randint(256, (3, 31, 17), dtype=torch.uint8),))
        asked = RewardInput(noise(3, height, width), ["ü" * 99] * 3, metadata_of([shown] * 3), [thinking] * 3)
        weights = [
            weight(*each) for each in zip(asked.images, asked.prompts, asked.metadata, asked.thinking, strict=True)
        ]
        assert len(wire.request(asked, "r")) <= sum(w.body for w in weights)
        assert weights[0].pixels == height * width + 31 * 17


def test_what_a_service_refuses_is_told_in_its_words():
    with reward_server.serving(lambda *given: [1.0] * 5, limits=Limits(64, 15, 1)) as url:
        output = ask(RemoteHttp(url=url))
    assert "status 413: images[0] with its 4 x 4 pixels makes a request of more than 15" in output.errors[0]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"url": "127.0.0.1:8000"}, "url '127.0.0.1:8000' is no address of a service"),
        ({"url": "http://"}, "is no address of a service"),
        ({"url": "http://h:99999"}, "is no address of a service"),
        ({"url": "http://me:pass@host"}, "holds a user or a password"),
        ({"url": []}, "url is []: write a service's address, or a list of them"),
        ({"url": 3}, "url is 3"),
        ({"reward": ""}, "reward is ''"),
        ({"token_env": "NO_SUCH"}, "the environment variable NO_SUCH is not set"),
        ({"batch": 0}, "batch is 0: write a whole number, at least 1"),
        ({"batch": 2.5}, "batch is 2.5"),
        ({"concurrency": True}, "concurrency is True"),
        ({"deadline_s": "long"}, "deadline_s is 'long'"),
        ({"read_s": math.nan}, "read_s is nan"),
    ],
)
def test_settings_that_cannot_work_are_told(args, said):
    with pytest.raises(ConfigError) as caught:
        RemoteHttp(**{"url": "http://127.0.0.1:1", **QUICK, **args})
    assert said in str(caught.value) and "pass@" not in str(caught.value)


def test_a_missing_package_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(ConfigError, match=r"needs the package httpx2: pip install '.\[serve\]'"):
        RemoteHttp(url="http://127.0.0.1:1")


def test_it_is_built_by_name_with_args(monkeypatch):
    monkeypatch.setattr(registry, "_FACTORIES", {"remote/http": RemoteHttp})
    with reward_server.faulty() as server:
        assert right(ask(registry.build("remote/http", {"url": server.url, **QUICK})))
    with pytest.raises(ConfigError, match="did you mean url"):
        registry.build("remote/http", {"ur": server.url})
