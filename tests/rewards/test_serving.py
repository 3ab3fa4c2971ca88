"""A reward behind HTTP: the same numbers as in process, and a sentence for whatever is no request."""

import base64
import http.client
import io
import json
import signal
import socket
import struct
import sys
import threading
import time
import zlib
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

import reward_server
from unigrpo import build  # noqa: F401 (makes names known)
from unigrpo.ranges import ConfigError
from unigrpo.rewards import registry, serving
from unigrpo.rewards.protocol import DifferentiableReward, RewardOutput
from unigrpo.rewards.serving import LIMITS, Limits, Served, app, serve
from unigrpo.rewards.serving_processes import announce

JSON = {"Content-Type": "application/json"}


def lengths(images, prompts, metadata, thinking):
    """A reward with values, parts, and an error for the prompt "no"."""
    errors = {i: "it says no" for i, prompt in enumerate(prompts) if prompt == "no"}
    return RewardOutput([len(p) / 3 for p in prompts], {"light": images.mean((1, 2, 3)).tolist()}, errors)


def client(reward=lengths, **other):
    served = Served(name="r", args={}, **{"limits": Limits(4, 1000, 1), **other})
    return TestClient(app(served, reward), raise_server_exceptions=False)


def png(mode="RGB", size=(8, 6), colour=0):
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, format="PNG")
    return buffer.getvalue()


def coded(data):
    return base64.b64encode(data).decode()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width, height, bytes_=100):
    """A small PNG that says it has so many pixels, and holds fewer."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(bytes_))) + chunk(b"IEND", b"")


GOOD = {"images": [coded(png())], "prompts": ["a"]}


def png_size(data):
    with Image.open(io.BytesIO(data)) as file:
        return np.array(file).shape[1::-1]


def with_(**other):
    return {**GOOD, **other}


def test_an_answer():
    asked = {
        "reward": "r",
        "images": [coded(png()), coded(png(colour=(255, 0, 51)))],
        "prompts": ["abcd", "no"],
        "metadata": [{}, {"word": "x"}],
        "thinking": [None, "t"],
    }
    answer = client().post("/score", json=asked)
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
    light = torch.tensor([255, 0, 51]).float().div(255).view(1, 3, 1, 1).expand(1, 3, 6, 8).mean().item()
    wanted = {"values": [4 / 3, None], "parts": {"light": [0.0, light]}, "errors": {"1": "it says no"}}
    assert answer.json() == wanted


def test_what_a_reward_is_given():
    seen = []

    def reward(*given):
        seen.extend(given)
        return [1.0]

    source = coded(png(size=(3, 2), colour=(1, 2, 3)))
    assert client(reward).post("/score", json=with_(sources=[[source]], metadata=[{"n": 0.1}])).json()["values"] == [1]
    images, prompts, metadata, thinking = seen
    assert images.dtype == torch.float32 and images.shape == (1, 3, 6, 8) and (prompts, thinking) == (["a"], [None])
    assert metadata[0]["n"] == 0.1 and torch.equal(
        metadata[0]["images"][0], (torch.tensor([1, 2, 3]).float() / 255.0).view(3, 1, 1).expand(3, 2, 3)
    )


def test_a_reward_with_gradients_is_served_plainly():
    class Light(DifferentiableReward):
        def score(self, images, prompts, metadata):
            return images.mean((1, 2, 3))

    assert client(Light()).post("/score", json=GOOD).json()["values"] == [0.0]


def test_health():
    said = client().get("/health").json()
    limits = {"max_pictures": 4, "max_pixels": 1000, "max_body_mb": 1}
    assert said == {"reward": "r", "version": said["version"], "differentiable": False, "limits": limits}


MALFORMED = {
    "no JSON": (400, b"{", "the body is no JSON: Expecting property name"),
    "no UTF-8": (400, b"\xff{}", "the body is no JSON"),
    "nested": (400, b'{"images":' + b"[" * 100_000, "the body is no JSON: it is nested too deep"),
    "NaN": (400, b'{"metadata": NaN}', "NaN is no number in JSON"),
    "digits": (400, b'{"metadata": ' + b"1" * 5000 + b"}", "the body is no JSON"),
    "a list": (400, b"[]", "the body must be a JSON object"),
    "empty": (400, b"", "the body is no JSON"),
    "unknown": (400, with_(image="x"), "the body has 'image', which is none of reward, images"),
    "another reward": (404, with_(reward="q"), "this service has the reward 'r', not 'q'"),
    "a reward of another type": (404, with_(reward=[1]), "this service has the reward 'r', not [1]"),
    "no pictures": (400, with_(images=[], prompts=[]), "images has 0 pictures: send 1 to 4"),
    "no list of pictures": (400, with_(images="x"), "images must be a list with one entry a picture, and is 'x'"),
    "nothing": (400, {}, "the body has no images"),
    "no prompts": (400, {"images": GOOD["images"]}, "the body has no prompts"),
    "too few prompts": (400, with_(prompts=[]), "prompts has 0 entries for 1 picture"),
    "prompt": (400, with_(prompts=[3]), "prompts[0] must be a text, and is 3"),
    "half a letter": (400, with_(prompts=["\ud800"]), "prompts[0] must be a text, and is '\\ud800'"),
    "metadata": (400, with_(metadata=["x"]), "metadata[0] must be an object, and is 'x'"),
    "metadata of another length": (400, with_(metadata=[{}, {}]), "metadata has 2 entries for 1 picture"),
    "thinking": (400, with_(thinking=[1]), "thinking[0] must be a text or null, and is 1"),
    "sources": (400, with_(sources=["x"]), "sources[0] must be a list of pictures, and is 'x'"),
    "a source": (400, with_(sources=[["eA=="]]), "sources[0][0] is no PNG"),
    "a picture of another type": (400, with_(images=[1]), "images[0] must be a PNG as base64, and is 1"),
    "no base64": (400, with_(images=["data:image/png;base64,AAAA"]), "images[0] is no base64"),
    "no ASCII": (400, with_(images=["ä"]), "images[0] is no base64"),
    "no PNG": (400, with_(images=[coded(b"GIF89a" + bytes(50))]), "images[0] is no PNG"),
    "a JPEG": (400, with_(images=[coded(b"\xff\xd8\xff\xe0" + bytes(50))]), "images[0] is no PNG"),
    "grey": (400, with_(images=[coded(png("L"))]), "images[0] is a PNG of another kind than 8-bit RGB"),
    "alpha": (400, with_(images=[coded(png("RGBA"))]), "images[0] is a PNG of another kind than 8-bit RGB"),
    "cut": (400, with_(images=[coded(png()[:-28])]), "images[0] is a broken PNG"),
    "only a header": (400, with_(images=[coded(png()[:30])]), "images[0] is a broken PNG"),
    "a wrong sum": (400, with_(images=[coded(png().replace(b"IDAT", b"IDAT\0"))]), "images[0] is a broken PNG"),
    "no pixels": (400, with_(images=[coded(bomb(0, 5))]), "images[0] has 0 x 5 pixels"),
    "a bomb": (413, with_(images=[coded(bomb(60_000, 60_000))]), "images[0] with its 60000 x 60000 pixels makes"),
    "too few rows": (400, with_(images=[coded(bomb(30, 30))]), "images[0] is a broken PNG"),
    "sizes": (400, {"images": [coded(png()), coded(png(size=(6, 8)))], "prompts": ["a"] * 2}, "different sizes (8 x 6"),
    "too many": (413, {"images": [coded(png())] * 5, "prompts": ["a"] * 5}, "images has 5 pictures: send 1 to 4"),
    "too large": (413, {"images": [coded(png(size=(20, 20)))] * 3, "prompts": ["a"] * 3}, "images[2] with its 20 x 20"),
    "too large a source": (413, with_(sources=[[coded(png(size=(31, 32)))]]), "sources[0][0] with its 31 x 32 pixels"),
    "too long": (413, with_(prompts=["a" * 1_000_001]), "the body has more than 1 MB"),
}  # fmt: skip


@pytest.fixture(scope="module")
def service():
    with reward_server.serving(lengths, limits=Limits(4, 1000, 1)) as url:
        yield url


def post(url, body, headers=JSON, path="/score", method="POST"):
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    data = body if isinstance(body, bytes) or not isinstance(body, dict) else json.dumps(body).encode()
    connection.request(method, path, data, headers)
    answer = connection.getresponse()
    status, said = answer.status, json.loads(answer.read())
    connection.close()
    return status, said


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_request_is_told_why_and_the_service_lives_on(case, service):
    status, body, said = MALFORMED[case]
    found, answer = post(service, body)
    assert found == status and said in answer["error"] and answer.keys() == {"error"} and len(answer["error"]) < 400
    assert post(service, GOOD)[0] == 200


def test_a_second_header_does_not_hide_a_bomb(service):
    small, large = bomb(8, 6), bomb(40, 30, 30 * 121)
    assert png_size(large) == (40, 30)  # it is whole
    both = small[:33] + large[8:]
    status, answer = post(service, with_(images=[coded(both)]))
    assert status == 400 and "images[0] is a broken PNG" in answer["error"]


def test_a_body_of_unknown_length_is_measured_too(service):
    pieces = (b" " * 100_000 for _ in range(30))
    assert post(service, pieces)[0] == 413  # chunked
    assert post(service, GOOD)[0] == 200


def test_other_addresses_methods_and_types(service):
    assert post(service, None, path="/", method="GET")[0] == 404
    status, answer = post(service, GOOD, path="/scores")
    assert status == 404 and answer["error"] == "there is no POST /scores here: there are POST /score and GET /health"
    assert post(service, None, method="GET")[0] == 405 and post(service, GOOD, path="/health")[0] == 405
    assert post(service, GOOD, {"Content-Type": "text/plain"})[0] == 415 and post(service, GOOD, {})[0] == 415


def test_what_is_no_http_at_all(service):
    address = urlsplit(service)
    for sent in (b"\x16\x03\x01 hello\r\n\r\n", b"POST /score HTTP/1.1\r\nContent-Length: -3\r\n\r\n", b""):
        with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(100).startswith(b"HTTP/1.1 400") or not sent
    assert post(service, GOOD)[0] == 200


def test_a_token():
    one = client(token="s3cret")
    for headers in ({}, {"Authorization": "s3cret"}, {"Authorization": "Bearer s3cre"}, {"Authorization": "Bearer ä"}):
        coded_headers = {key: value.encode() for key, value in headers.items()}
        for answer in (one.post("/score", json=GOOD, headers=coded_headers), one.get("/health", headers=coded_headers)):
            assert answer.status_code == 401 and "the token is missing or wrong" in answer.json()["error"]
            assert "s3cret" not in answer.text
    right = {"Authorization": "Bearer s3cret"}
    assert one.get("/health", headers=right).status_code == 200
    assert one.post("/score", json=GOOD, headers=right).status_code == 200


FAULTS = {
    "raised ZeroDivisionError": lambda *given: 1 / 0,
    "reward 'r' gave 2 values for 1 picture": lambda *given: [1.0, 2.0],
    "gave nothing (None; is a return missing?)": lambda *given: None,
    "gave 2 values for 1 picture": lambda *given: {"a": [1.0, 2.0], "b": [2.0]},
    "did not answer within 0.2 s": lambda *given: time.sleep(1),
}


@pytest.mark.parametrize("said", FAULTS)
def test_a_reward_that_fails_is_a_500_with_its_sentence(said):
    one = client(FAULTS[said], timeout_s=0.2 if "within" in said else 60.0)
    answer = one.post("/score", json=GOOD)
    assert answer.status_code == 500 and said in answer.json()["error"]
    assert one.get("/health").status_code == 200


def test_a_number_that_is_none_is_an_error_of_its_picture():
    two = {"images": [coded(png())] * 2, "prompts": ["a"] * 2}
    said = client(lambda *given: [float("nan"), 0.5]).post("/score", json=two).json()
    assert said["values"] == [None, 0.5] and "gave nan" in said["errors"]["0"]


def test_one_call_at_a_time_and_health_meanwhile():
    busy, most, go = [], [], threading.Event()

    def slow(images, prompts, metadata, thinking):
        busy.append(1)
        most.append(len(busy))
        go.wait(20)
        busy.pop()
        return [1.0]

    with reward_server.serving(slow) as url:
        found = []
        askers = [threading.Thread(target=lambda: found.append(post(url, GOOD)[0])) for _ in range(4)]
        for asker in askers:
            asker.start()
        while not busy:
            time.sleep(0.01)
        assert post(url, None, path="/health", method="GET")[0] == 200
        go.set()
        for asker in askers:
            asker.join(20)
    assert found == [200] * 4 and set(most) == {1} and len(most) == 4


def test_too_many_at_a_time_are_told_to_come_again(monkeypatch):
    monkeypatch.setattr(serving, "MOST_WAITING", 1)
    began, go = threading.Event(), threading.Event()

    def slow(*given):
        began.set()
        go.wait(20)
        return [1.0]

    with reward_server.serving(slow) as url:
        first = threading.Thread(target=post, args=(url, GOOD))
        first.start()
        assert began.wait(20) and post(url, GOOD)[0] == 429
        go.set()
        first.join(20)
        assert post(url, GOOD)[0] == 200


def test_who_waits_while_the_service_is_stopped_is_sent_away():
    stopped = TestClient(app(Served(name="r", args={}), lengths, lambda: True))
    answer = stopped.post("/score", json=GOOD)
    assert (answer.status_code, answer.json()) == (503, {"error": "this service is being stopped"})
    assert answer.headers["retry-after"] == "1" and stopped.get("/health").status_code == 200


def test_who_hangs_up_while_waiting_costs_no_call():
    calls, go = [], threading.Event()

    def slow(images, prompts, metadata, thinking):
        calls.append(prompts[0])
        go.wait(20)
        return [1.0]

    with reward_server.serving(slow) as url:
        first = threading.Thread(target=post, args=(url, GOOD))
        first.start()
        while not calls:
            time.sleep(0.01)
        body = json.dumps(with_(prompts=["gone"])).encode()
        with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)) as connection:
            head = f"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
            connection.sendall(head.encode() + b"\r\n\r\n" + body)
            time.sleep(0.3)
        time.sleep(0.2)
        go.set()
        first.join(20)
        assert post(url, with_(prompts=["last"]))[0] == 200
    assert calls == ["a", "last"]


# ---------------------------------------------------------------- as a process


def test_a_signal_lets_the_request_end_and_the_exit_code_is_0(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import time\ndef slow(images, prompts, metadata, thinking):\n    time.sleep(0.7)\n    return [1.0]\n"
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        process = reward_server.Process("slow.py:slow", tmp_path)
        found = []
        asker = threading.Thread(target=lambda url=process.url, found=found: found.append(post(url, GOOD)))
        asker.start()
        time.sleep(0.3)
        assert process.stop(number) == (0, "")
        asker.join(20)
        assert found == [(200, {"values": [1.0], "parts": {}, "errors": {}})]


@pytest.mark.slow  # three processes start
def test_workers_share_a_port_and_one_that_dies_is_replaced(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import os\n"
        "def pid(images, prompts, metadata, thinking):\n"
        "    if prompts[0] == 'die':\n        os._exit(7)\n"
        "    return [float(os.getpid())]\n"
    )
    process = reward_server.Process("mine.py:pid", tmp_path, workers=2)
    assert process.said.startswith("reward 'mine.py:pid' answers at http://127.0.0.1:")

    def pids():
        return {post(process.url, GOOD)[1]["values"][0] for _ in range(40)}

    before = pids()
    with pytest.raises((OSError, http.client.HTTPException)):
        post(process.url, with_(prompts=["die"]))
    assert "ended with exit code 7: starting another" in process.process.stdout.readline()
    assert len(before) >= 1 and len(before - pids()) <= 1
    assert process.stop(signal.SIGTERM) == (0, "")
    with pytest.raises(OSError):
        post(process.url, GOOD)


@pytest.mark.slow  # three processes start
def test_workers_end_with_the_first_process():
    process = reward_server.Process(workers=2)
    process.stop(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            post(process.url, None, path="/health", method="GET")
        except OSError:
            return
        time.sleep(0.1)
    raise AssertionError("orphans still answer")


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_reward_that_cannot_be_built_is_told_before_anything_listens(tmp_path, workers):
    process = reward_server.Process("shapes/verifer", tmp_path, workers=workers)
    code, err = process.ended()
    assert code == 2 and "there is no reward called 'shapes/verifer' (did you mean shapes/verifier" in err
    assert "Traceback" not in err and process.said == ""


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"host": "0.0.0.0"},
            "host '0.0.0.0' can be reached from other machines, so a token is needed: export one as ",
        ),
        ({"host": "::"}, "so a token is needed"),
        ({"token_env": "NO_SUCH"}, "the environment variable NO_SUCH is not set"),
        ({"workers": 0}, "workers is 0: write a whole number, at least 1"),
        ({"port": 65_536}, "port is 65536"),
        ({"port": "80"}, "port is '80'"),
        ({"max_pixels": 1.5}, "max_pixels is 1.5"),
        ({"timeout_s": 0}, "timeout_s is 0"),
        ({"host": "127.0.0.999", "token_env": "TOKEN"}, "host '127.0.0.999' is no address of this machine"),
        ({"name": "shapes/verifer"}, "there is no reward called"),
    ],
)
def test_settings_that_cannot_work_are_told(settings, said, monkeypatch):
    monkeypatch.setenv("TOKEN", "x" * 20)
    monkeypatch.delenv(serving.TOKEN_ENV, raising=False)
    with pytest.raises(ConfigError) as caught:
        serve(**{"name": "shapes/verifier", "args": {}, "port": 0, **settings})
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_port_that_is_taken_and_a_token_that_no_header_holds(monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 cannot be had .*: choose another port"):
            serve("shapes/verifier", {}, port=port)
    monkeypatch.setenv(serving.TOKEN_ENV, "zwölf")
    with pytest.raises(ConfigError, match="has letters that no HTTP header can hold"):
        serve("shapes/verifier", {}, port=0)


def test_two_that_start_on_one_port_at_the_same_time():
    with reward_server.bound("127.0.0.1", 0) as one, reward_server.bound(*one.getsockname()) as two:
        announce(Served(name="r", args={}), one)
        with pytest.raises(ConfigError, match="cannot be had"):
            announce(Served(name="r", args={}), two)


def test_a_missing_package_is_told(monkeypatch):
    for name, without in (("starlette", "starlette.applications"), ("uvicorn", "uvicorn")):
        with monkeypatch.context() as patch, pytest.raises(ConfigError, match=f"needs the package {name}.*serve"):
            patch.setitem(sys.modules, without, None)
            serve("shapes/verifier", {}, port=0)


def test_what_ships_is_not_changed():
    assert Limits(64, 2**26, 64) == LIMITS and "shapes/verifier" in registry.names()
