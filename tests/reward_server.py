"""Reward services for tests: a real one in a thread, one that misbehaves as a test wishes, and one as a process."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import unigrpo
from unigrpo.rewards.serving import LIMITS, Served
from unigrpo.rewards.serving_processes import bound, server_of

SCRIPT = """
import json, sys
from unigrpo.rewards.serving import serve
from unigrpo.ranges import ConfigError
try:
    serve(sys.argv[1], {}, **json.loads(sys.argv[2]))
except ConfigError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""


@contextmanager
def serving(reward, name="r", limits=LIMITS, **other):
    """A service of this process; yields its address."""
    server = server_of(Served(name=name, args={}, limits=limits, **other), reward)
    with closing(bound("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


def free_port():
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Process:
    """``serve`` as a process of its own, which has printed that it is there."""

    def __init__(self, name="shapes/verifier", cwd=None, **settings):
        environment = {**os.environ, "PYTHONPATH": str(Path(unigrpo.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", SCRIPT, name, json.dumps({"port": 0, **settings})]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, cwd=cwd, **pipes)
        self.said = self.process.stdout.readline()
        self.url = self.said.strip().rpartition(" ")[2]

    def ended(self):
        """Its exit code, and what it said on stderr."""
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err

    def stop(self, number=signal.SIGKILL):
        self.process.send_signal(number)
        return self.ended()


class Faulty(ThreadingHTTPServer):
    """``fault(nth)`` of the nth request to /score: None, or what happens in place of an answer (fault_server's too)."""

    daemon_threads = True

    def __init__(self, fault, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.fault, self.count, self.bodies, self.connections = fault, 0, [], set()
        self.about = {"reward": "r", "version": "0", "differentiable": False, "limits": asdict(LIMITS)}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        self.server.connections.add(self.connection)

    def log_message(self, *given):
        pass

    def do_GET(self):
        self.answer(200, self.server.about)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.count += 1
        self.server.bodies.append(body)
        if (happens := self.server.fault(self.server.count)) is not None:
            return happens(self)
        values = [float(prompt) for prompt in body["prompts"]]
        return self.answer(200, {"values": values, "parts": {"twice": [2 * v for v in values]}, "errors": {}})

    def answer(self, status, value, headers=(), kind="application/json"):
        body = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        for key, text in (("Content-Type", kind), ("Content-Length", str(len(body))), *headers):
            self.send_header(key, text)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def faulty(fault=lambda nth: None, port=0):
    server = Faulty(fault, port)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        for connection in server.connections:  # those that are kept open would be served on
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
