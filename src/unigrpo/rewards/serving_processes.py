"""The processes of a reward service: one, or several on the same port, each with a reward of its own.

A reward that cannot be built is told before anything listens. SIGTERM and SIGINT let the request at work end.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import multiprocessing.connection
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unigrpo.ranges import ConfigError, shown
from unigrpo.rewards import registry
from unigrpo.rewards.protocol import RewardFunction
from unigrpo.rewards.serving import Served, app, missing

if TYPE_CHECKING:
    from uvicorn import Server

SIGNALS = (signal.SIGTERM, signal.SIGINT)
KEPT_S = 30
"""Seconds that a connection is kept open between requests; longer than clients keep theirs."""
BACKLOG = 2048
"""Connections that wait to be accepted."""
AGAIN_S = 1.0
"""Seconds before a worker that died is started again."""


def run(served: Served, host: str, port: int, workers: int) -> None:
    """Serve until a signal; ConfigError where the reward cannot be built or the port cannot be had."""
    with contextlib.closing(bound(host, port)) as listener:
        if workers > 1:
            _Workers(served, listener, workers).run()
            return
        reward = built(served)
        server = server_of(served, reward)
        announce(served, listener)
        with _quietly():
            server.run(sockets=[listener])


def built(served: Served) -> RewardFunction:
    """The reward that is served."""
    if served.setup is not None:
        importlib.import_module(served.setup)  # what knows all names stands above this package
    return registry.build(served.name, served.args)


def server_of(served: Served, reward: RewardFunction) -> Server:
    """The server of one process; its ``should_exit`` ends it."""
    try:
        import uvicorn
    except ModuleNotFoundError as error:
        raise missing(error) from error
    ends: list[Server] = []
    config = uvicorn.Config(
        app(served, reward, lambda: ends[0].should_exit),
        lifespan="off",
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEPT_S,
    )
    ends.append(uvicorn.Server(config))
    return ends[0]


def bound(host: str, port: int) -> socket.socket:
    """A socket that has the port and does not listen yet; ConfigError where it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"host {shown(host)} is no address of this machine ({error})") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # after a kill, at once again
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _taken(port, host, error) from error
    return listener


def _taken(port: int, host: str, error: OSError) -> ConfigError:
    return ConfigError(
        f"port {port} of {host} cannot be had ({error.strerror}): choose another port, 0 for any that is free, or end "
        "what has it"
    )


def announce(served: Served, listener: socket.socket) -> None:
    """Listen, and print where: whoever reads it can ask at once."""
    host, port = listener.getsockname()[:2]
    try:
        listener.listen(BACKLOG)
    except OSError as error:  # somebody else began to listen there meanwhile
        raise _taken(port, host, error) from error
    print(f"reward {served.name!r} answers at http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Inside, the signals that end a service end nothing else: the server raises them once more when it is done."""
    before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class _Worker:
    """One process, and our end of the pipe to it: it says ready (or what is wrong), and is told to go."""

    process: Any
    pipe: Any


class _Workers:
    """Processes that share a port; one that dies is started again."""

    def __init__(self, served: Served, listener: socket.socket, count: int) -> None:
        self.served, self.listener = served, listener
        self.context = multiprocessing.get_context("spawn")  # a reward may have threads, which no fork survives
        self.count, self.stop = count, threading.Event()
        self.workers: list[_Worker] = []

    def run(self) -> None:
        """Start them, serve, and end them."""
        before = {number: signal.signal(number, lambda *_: self.stop.set()) for number in SIGNALS}
        try:
            self.workers = [self._started() for _ in range(self.count)]
            if all([self._is_ready(worker) for worker in self.workers]):
                announce(self.served, self.listener)
                for worker in self.workers:
                    worker.pipe.send("go")
                self._watch()
        finally:
            self._end()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _started(self) -> _Worker:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=work, args=(self.served, self.listener, theirs), name="reward service")
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _is_ready(self, worker: _Worker) -> bool:
        """Wait for a worker; False where the service was told to stop meanwhile, ConfigError where it cannot work."""
        while not self.stop.is_set():
            if worker.pipe.poll(0.1):
                try:
                    fault = worker.pipe.recv()
                except EOFError:
                    worker.process.join()
                    fault = f"a worker ended with exit code {worker.process.exitcode} while it built the reward"
                if fault is not None:
                    raise ConfigError(fault)
                return True
        return False

    def _watch(self) -> None:
        """Until a signal: start again what dies."""
        while not self.stop.is_set():
            multiprocessing.connection.wait([worker.process.sentinel for worker in self.workers], timeout=0.2)
            for number, worker in enumerate(self.workers):
                if worker.process.is_alive() or self.stop.is_set():
                    continue
                print(f"a worker ended with exit code {worker.process.exitcode}: starting another", flush=True)
                self.stop.wait(AGAIN_S)
                self.workers[number] = again = self._started()
                if self._is_ready(again):
                    again.pipe.send("go")

    def _end(self) -> None:
        for worker in self.workers:
            if worker.process.is_alive():
                worker.process.terminate()
        for worker in self.workers:
            worker.process.join()
            worker.pipe.close()


def work(served: Served, listener: socket.socket, pipe: Any) -> None:
    """A worker: build the reward, say so, and serve when told to."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process tells when to end
    try:
        server = server_of(served, built(served))
    except ConfigError as error:
        pipe.send(str(error))
        return
    pipe.send(None)
    with contextlib.suppress(EOFError, OSError):
        pipe.recv()
        threading.Thread(target=_end_with, args=(pipe, server), daemon=True).start()
        with _quietly():
            server.run(sockets=[listener])


def _end_with(pipe: Any, server: Server) -> None:
    """End the server when the first process is gone, however it went."""
    with contextlib.suppress(EOFError, OSError):
        pipe.recv()
    server.should_exit = True
