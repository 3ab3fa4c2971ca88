"""A reward behind HTTP under load, bad requests and kills: is every answer right? Prints JSON; exits with 1 where a
limit is missed.

    OMP_NUM_THREADS=1 python benchmarks/serve.py [--requests 10000] [--workers 1] [--out FILE] [--quick]

Of all requests 1 % are malformed and 1 % too long; the others ask shapes/verifier about 4 pictures each, through the
client of remote/http, 8 at a time. Meanwhile the server is killed (SIGKILL) and started again three times. right:
answers that have all values and parts as in process, to the bit; refused: bad requests that got a status of 4xx with a
sentence; retried: further tries; zeros: values of 0 where another number belongs; latency_ms: of a try that succeeded,
alone (one at a time) and under load, seen by the client.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import torch

from unigrpo import build  # noqa: F401 (makes names known)
from unigrpo.rewards import registry, wire
from unigrpo.rewards.protocol import RewardInput, RewardOutput, call, metadata_of
from unigrpo.rewards.remote_service import NoAnswer, Round, Service
from unigrpo.worlds.shapes import render, sample_scene
from unigrpo.worlds.shapes.prompts import PromptStream

NAME = "shapes/verifier"
PICTURES = 4  # of a request
DISTINCT = 100  # requests that are asked again and again
AT_A_TIME = 8
BODY_MB = 1
LIMITS = {"right_share": 1.0, "refused_share": 1.0, "zeros": 0, "alive": True, "exit_code": 0}
SERVER = """
import json, sys
from unigrpo.rewards.serving import serve
serve(sys.argv[1], {}, **json.loads(sys.argv[2]))
"""


@dataclass
class Server:
    """The server as a process that can be killed; always on the same port."""

    workers: int
    port: int = 0
    kills: int = 0
    down_s: float = 0.0

    def start(self) -> None:
        if not self.port:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.port = probe.getsockname()[1]
        settings = {"port": self.port, "workers": self.workers, "max_body_mb": BODY_MB}
        command = [sys.executable, "-c", SERVER, NAME, json.dumps(settings)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.process.stdout.readline()

    async def killed(self) -> None:
        """Kill it in the middle of whatever it does, and start it again."""
        began = time.perf_counter()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        await asyncio.to_thread(self.start)
        self.kills, self.down_s = self.kills + 1, self.down_s + time.perf_counter() - began

    def ended(self) -> int:
        """Its exit code after SIGTERM."""
        self.process.terminate()
        return self.process.wait(60)


@dataclass
class Tally:
    """What has happened so far."""

    right: int = 0
    wrong: list[str] = field(default_factory=list)
    zeros: int = 0
    refused: int = 0
    not_refused: list[str] = field(default_factory=list)
    tries: int = 0
    seconds: list[float] = field(default_factory=list)


class Timed(Service):
    """A service whose tries are counted and timed."""

    tally = Tally()

    async def once(self, body: bytes, count: int) -> RewardOutput:
        self.tally.tries += 1
        began = time.perf_counter()
        output = await super().once(body, count)
        self.tally.seconds.append(time.perf_counter() - began)
        return output


def asked(seed: int) -> list[RewardInput]:
    """Requests about pictures that satisfy their prompts, but every other one is noise."""
    stream, draws = PromptStream("train", seed), random.Random(seed)
    noise = torch.Generator().manual_seed(seed)
    found = []
    for number in range(DISTINCT):
        prompts = stream.batch(number, PICTURES)
        images = render([sample_scene(prompt.metadata, draws) for prompt in prompts])
        images[::4] = torch.rand(images[::4].shape, generator=noise)
        images = images.clamp(0, 1).mul(255).round() / 255.0
        found.append(RewardInput(images, [p.text for p in prompts], metadata_of(prompts), ["a plan"] * PICTURES))
    return found


def malformed(good: bytes) -> Iterator[tuple[str, str, bytes | Iterator[bytes], str]]:
    """Bad requests, over and over: method, path, body and type."""
    fields = json.loads(good)

    def changed(**other: object) -> bytes:
        return json.dumps({**fields, **other}).encode()

    bodies = (
        b"{", b"[" * 50_000, b"\xff", b"{}", good[:-40], changed(prompts=["a"]), changed(images=["x"] * PICTURES),
        changed(images=[fields["images"][0][:200]] * PICTURES), changed(metadata=[1] * PICTURES),
        changed(prompts=[None] * PICTURES), changed(reward="no/such"), changed(images=[], prompts=[]),
        changed(thinking="x"), good.replace(b"iVBORw0KGgo", b"iVBORw0KGgp"), changed(value="x"), b"NaN",
    )  # fmt: skip
    plain = [("POST", "/score", body, "application/json") for body in bodies]
    others = [("POST", "/score", good, "text/plain"), ("POST", "/scores", good, "application/json")]
    return itertools.cycle([*plain, *others, ("GET", "/score", b"", "application/json")])


def too_long(good: bytes) -> Iterator[tuple[str, str, bytes | Iterator[bytes], str]]:
    """Requests of more than a body, pictures or pixels, over and over; every third says no length."""
    fields = json.loads(good)
    size = BODY_MB * 1_000_000 + 1
    many = {key: fields[key] * 17 for key in ("images", "prompts")}
    while True:
        yield "POST", "/score", b" " * size + good, "application/json"
        yield "POST", "/score", itertools.repeat(b" " * 50_000, 2 * size // 50_000), "application/json"
        yield "POST", "/score", json.dumps(many).encode(), "application/json"


async def refused(client: httpx2.AsyncClient, url: str, request: tuple, tally: Tally) -> None:
    """Send a bad request until the server is there to refuse it."""
    method, path, body, kind = request
    pieces = body if isinstance(body, bytes) else list(body)
    while True:
        content = pieces if isinstance(pieces, bytes) else _chunks(pieces)
        try:
            answer = await client.request(method, url + path, content=content, headers={"Content-Type": kind})
            break
        except httpx2.TransportError:
            await asyncio.sleep(0.1)
    said = answer.json().get("error") if answer.headers["content-type"] == "application/json" else None
    if 400 <= answer.status_code < 500 and said:
        tally.refused += 1
    else:
        tally.not_refused.append(f"{answer.status_code} {said} for {str(body)[:60]}")


async def _chunks(pieces: Sequence[bytes]):
    for piece in pieces:
        yield piece


async def measure(requests: int, workers: int, seed: int) -> dict:
    """Send all requests; the figures."""
    given = asked(seed)
    reward = registry.build(NAME)
    expected = [call(NAME, reward, one) for one in given]
    server = Server(workers)
    server.start()
    url = f"http://127.0.0.1:{server.port}"
    service, slots, tally = Timed(url, None, AT_A_TIME, 5.0, 60.0), asyncio.Semaphore(AT_A_TIME), Timed.tally
    for number in range(min(requests, 200)):
        await Round.within(60, 5).answer([service], slots, given[number % DISTINCT], NAME)
    alone, tally.seconds, tally.tries = tally.seconds, [], 0
    bad, long = malformed(good := wire.request(given[0], NAME)), too_long(good)
    kinds = ["malformed"] * (requests // 100) + ["long"] * (requests // 100)
    kinds += ["good"] * (requests - len(kinds))
    random.Random(seed).shuffle(kinds)
    queue, at = iter(enumerate(kinds)), [requests * k // 4 for k in (1, 2, 3)]
    killing: list[asyncio.Task] = []

    async def worker(client: httpx2.AsyncClient) -> None:
        for number, kind in queue:
            if number in at:
                killing.append(asyncio.create_task(server.killed()))
            if kind != "good":
                await refused(client, url, next(bad if kind == "malformed" else long), tally)
                continue
            wanted = expected[number % DISTINCT]
            try:
                output = await Round.within(300, 5).answer([service], slots, given[number % DISTINCT], NAME)
            except NoAnswer as error:
                tally.wrong.append(str(error))
                continue
            tally.zeros += sum(v == 0 != w for v, w in zip(output.values, wanted.values, strict=True))
            if output == wanted:
                tally.right += 1
            else:
                tally.wrong.append(f"{output} for {wanted}")

    began = time.perf_counter()
    async with httpx2.AsyncClient(timeout=60) as client:
        await asyncio.gather(*(worker(client) for _ in range(AT_A_TIME)))
        seconds = time.perf_counter() - began
        await asyncio.gather(*killing)
        alive = (await client.get(f"{url}/health")).status_code == 200
    good_ones = kinds.count("good")
    code = await asyncio.to_thread(server.ended)
    return {
        "requests": requests,
        "good": good_ones,
        "right": tally.right,
        "malformed": kinds.count("malformed"),
        "too_long": kinds.count("long"),
        "refused": tally.refused,
        "retried": tally.tries - good_ones,
        "kills": server.kills,
        "zeros": tally.zeros,
        "right_share": tally.right / good_ones,
        "refused_share": tally.refused / max(1, requests - good_ones),
        "values_that_are_not_zero": sum(v != 0 for one in expected for v in one.values) / (DISTINCT * PICTURES),
        "alive": alive,
        "exit_code": code,
        "seconds": seconds,
        "seconds_down": server.down_s,
        "requests_per_second": requests / (seconds - server.down_s),
        "latency_ms": {"alone": spread(alone), "load": spread(tally.seconds)},
        "faults": [*tally.wrong, *tally.not_refused][:5],
    }


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median and upper quantiles, in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100)
    return {"median": cuts[49] * 1e3, "p95": cuts[94] * 1e3, "p99": cuts[98] * 1e3}


def main() -> int:
    """Measure, print, and compare with the limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the figures there")
    parser.add_argument("--quick", action="store_true", help="300 requests")
    arguments = parser.parse_args()
    if arguments.requests < 100:
        parser.error(f"--requests {arguments.requests} has no bad ones among them: give at least 100")
    count = 300 if arguments.quick else arguments.requests
    figures = asyncio.run(measure(count, arguments.workers, arguments.seed))
    missed = [name for name, limit in LIMITS.items() if figures[name] != limit]
    setting = {"reward": NAME, "pictures_a_request": PICTURES, "at_a_time": AT_A_TIME, "workers": arguments.workers}
    machine = {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "load": os.getloadavg()[0]}
    line = {"benchmark": "serve", "command": " ".join(["python", "benchmarks/serve.py", *sys.argv[1:]]), **setting}
    text = json.dumps({**line, **figures, "machine": machine, "limits": LIMITS, "missed": missed}, indent=2)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
