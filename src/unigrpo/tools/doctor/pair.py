"""Two processes that add up numbers over gloo: whether ranks can talk to each other here. Also the program of one.

python -m unigrpo.tools.doctor.pair RANK PORT
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from unigrpo.tools.doctor.finding import Finding

TALKING, SECONDS = 30, 120.0
"""Longest that two started ranks may take, and the pair altogether: two pythons start slowly on a busy machine."""
ADVICE = (
    "ranks of one machine must reach each other: set GLOO_SOCKET_IFNAME to an interface that is up (lo, eth0), let "
    "127.0.0.1 and the host's own name through the firewall, and see that the name resolves (/etc/hosts)"
)


def rank(number: int, port: int) -> None:
    """One of the two: 1 + 2 must be 3 on both. Whatever hangs is ended by the system's alarm."""
    import torch
    import torch.distributed as dist

    if sys.platform != "win32":
        signal.alarm(TALKING)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=number, world_size=2, timeout=timedelta(seconds=TALKING)
    )
    numbers = torch.full((1000,), float(number + 1))
    dist.all_reduce(numbers)
    if not bool((numbers == 3.0).all()):
        raise SystemExit(f"the sum over two ranks is {float(numbers[0])}, not 3")
    dist.destroy_process_group()


def free_port() -> int:
    """A port of this machine that is free now; OSError where none can be bound."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Pair:
    """The two processes, started at once and asked for later, so that other checks run meanwhile."""

    def __init__(self, command: Sequence[str] = (sys.executable, "-m", "unigrpo.tools.doctor.pair")) -> None:
        self.began, self.started, self.refused = time.monotonic(), [], ""
        source = str(Path(__file__).parents[3])
        path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        try:
            port = free_port()
            for number in range(2):
                words = [*command, str(number), str(port)]
                self.started.append(
                    subprocess.Popen(
                        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, text=True
                    )
                )
        except OSError as error:
            self.refused = f"no process or port to be had: {error.strerror or error}"

    def finding(self, seconds: float = SECONDS) -> Finding:
        """Wait for both, at most so long since they were started, and say how it went; then none is left."""
        if self.refused:
            self.close()
            return Finding("gloo pair", "failed", self.refused, ADVICE, {})
        try:
            for process in self.started:
                left = max(0.1, seconds - (time.monotonic() - self.began))
                _, errors = process.communicate(timeout=left)
                if process.returncode == -signal.SIGALRM:
                    said = f"two processes found no way to each other within {TALKING} s"
                    return Finding("gloo pair", "failed", said, ADVICE, {})
                if process.returncode:
                    return Finding("gloo pair", "failed", _last_line(errors, process.returncode), ADVICE, {})
        except subprocess.TimeoutExpired:
            said = f"two processes did not add up their numbers within {seconds:g} s"
            return Finding("gloo pair", "failed", said, ADVICE, {})
        finally:
            self.close()
        taken = time.monotonic() - self.began
        said = f"two processes added up their numbers (after {taken:.1f} s, most of it starting them)"
        return Finding("gloo pair", "ok", said, "", {"seconds": taken})

    def close(self) -> None:
        """End what still runs."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
            with contextlib.suppress(ValueError):  # read already
                process.communicate()


def _last_line(errors: str, code: int) -> str:
    lines = [line for line in errors.strip().splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else f"one of two processes ended with {code}"


if __name__ == "__main__":
    rank(int(sys.argv[1]), int(sys.argv[2]))
