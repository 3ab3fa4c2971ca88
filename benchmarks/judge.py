"""How many exam points a second judge/exam asks, and that it asks none twice. Prints JSON; exits with 1 where a limit
is missed.

    OMP_NUM_THREADS=1 python benchmarks/judge.py [--points 1000] [--side 64] [--repeat 3] [--quick]

The judge is a fake in a process of its own that answers each request after 20 ms, so 32 requests at a time get at most
1600 answers a second; what is missing is the cost of asking (the client, HTTP, the pictures). points_per_second: the
best of ``--repeat`` runs, each with a new cache; cpu_ms_per_point: of the asking process, there; asked: requests of one
run; asked_again: of the same exam with the cache of the run before; cached_points_per_second: then.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import tempfile
import time
from multiprocessing.queues import Queue
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unigrpo.rewards.judge import JudgeExam
from unigrpo.rewards.protocol import RewardInput, call

CONCURRENCY, ANSWER_S, POINTS_EACH = 32, 0.020, 8
LIMITS = {"points_per_second": 400.0, "asked_again": 0}
TOP = [{"token": "Yes", "logprob": -0.1}, {"token": "No", "logprob": -2.4}]
CHOICE = {
    "index": 0,
    "message": {"role": "assistant", "content": "Yes"},
    "logprobs": {"content": [{"token": "Yes", "logprob": -0.1, "top_logprobs": TOP}]},
}
BODY = json.dumps({"id": "1", "object": "chat.completion", "choices": [CHOICE]}).encode()
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY


def serve(ports: Queue[int], asked: Synchronized[int]) -> None:
    """The fake, until it is ended: wait, then say yes; ``asked`` counts the requests."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0]))
                asked.value += 1
                await asyncio.sleep(ANSWER_S)
                writer.write(ANSWER)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def forever() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, limit=2**22)
        ports.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(forever())


def exam(points: int, side: int) -> RewardInput:
    """Smooth pictures [B, 3, side, side], each with POINTS_EACH questions of its own."""
    count = points // POINTS_EACH
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images: Tensor = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    questions = [[f"Is there a thing of kind {i} in the picture?" for i in range(POINTS_EACH)] for _ in range(count)]
    return RewardInput(images, ["a cup"] * count, [{"points": asked} for asked in questions], [None] * count)


def answered(url: str, cache: str, given: RewardInput) -> tuple[float, float]:
    """Seconds, and seconds of this process's CPU, until all points are answered."""
    reward: Any = JudgeExam(url=url, model="fake", concurrency=CONCURRENCY, cache=cache, probe=False)
    began, spent = time.perf_counter(), time.process_time()
    output = call("judge/exam", reward, given)
    assert all(0.9 < value < 1.0 for value in output.values)
    return time.perf_counter() - began, time.process_time() - spent


def measure(points: int, side: int, repeat: int) -> dict[str, float]:
    """All figures."""
    given, processes = exam(points, side), multiprocessing.get_context("spawn")
    ports, asked = processes.Queue(), processes.Value("i", 0)
    fake = processes.Process(target=serve, args=(ports, asked), daemon=True)
    fake.start()
    try:
        url = f"http://127.0.0.1:{ports.get(timeout=60)}/v1"
        with tempfile.TemporaryDirectory() as folder:
            caches = [str(Path(folder) / f"{number}.sqlite") for number in range(repeat)]
            runs = [answered(url, cache, given) for cache in caches]
            before = asked.value
            again, _ = answered(url, caches[-1], given)
        seconds, spent = min(runs)
        return {
            "points_per_second": round(points / seconds, 1),
            "cpu_ms_per_point": round(1e3 * spent / points, 3),
            "asked": before // repeat,
            "asked_again": asked.value - before,
            "cached_points_per_second": round(points / again, 1),
        }
    finally:
        fake.terminate()
        fake.join()


def main() -> int:
    """Measure, print, and compare with the limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1000, help=f"a multiple of {POINTS_EACH}")
    parser.add_argument("--side", type=int, default=64, help="of a picture, in pixels")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="64 points, once, and no limits to miss")
    arguments = parser.parse_args()
    if arguments.points < POINTS_EACH or arguments.points % POINTS_EACH or arguments.repeat < 1:
        parser.error(f"--points {arguments.points} --repeat {arguments.repeat}: a multiple of {POINTS_EACH}, and >= 1")
    points, repeat = (64, 1) if arguments.quick else (arguments.points, arguments.repeat)
    figures = measure(points, arguments.side, repeat)
    missed = [name for name in LIMITS if not within(name, figures[name])]
    setting = {"points": points, "side": arguments.side, "concurrency": CONCURRENCY, "answer_ms": 1e3 * ANSWER_S}
    print(json.dumps({**setting, **figures, "limits": LIMITS, "missed": missed}))
    return 1 if missed and not arguments.quick else 0


def within(name: str, figure: float) -> bool:
    """Whether a figure keeps its limit."""
    return figure <= LIMITS[name] if name == "asked_again" else figure >= LIMITS[name]


if __name__ == "__main__":
    raise SystemExit(main())
