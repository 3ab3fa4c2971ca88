"""A judge on this machine that answers rightly about colours, and misbehaves as a test wishes: threads, no network."""

import base64
import io
import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

MODEL = "colours-7b"
COLOURS = ("red", "green", "blue")


def share(question, picture):
    """P(yes) that the picture has the colour of the question: that channel's share of the light."""
    light = picture.reshape(-1, 3).mean(0).astype(float)
    (colour,) = [number for number, name in enumerate(COLOURS) if name in question.lower()]
    return float(light[colour] / light.sum())


def logprobs(yes, words=("Yes", " yes", "No", "no")):
    """Log probabilities of a one-word answer, its mass cut over variants of both words."""
    masses = [0.75 * yes, 0.25 * yes, 0.5 * (1 - yes), 0.5 * (1 - yes)]
    top = [{"token": w, "logprob": float(np.log(max(m, 1e-12)))} for w, m in zip(words, masses, strict=True)]
    best = words[0] if yes > 0.5 else words[2]
    return {"content": [{"token": best, "logprob": 0.0, "top_logprobs": top}]}


def completion(text, tokens=None):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": tokens}
    return {"id": "1", "object": "chat.completion", "model": MODEL, "choices": [choice]}


class Judge(ThreadingHTTPServer):
    """``fault(nth, question)`` of the nth chat request: None, or what happens in place of a right answer."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, fault=lambda nth, question: None, seconds=0.0, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.fault, self.seconds = fault, seconds
        self.asked, self.requests, self.keys = Counter(), [], set()
        self.lock, self.busy, self.busiest = threading.Lock(), 0, 0
        self.models, self.connections = [MODEL], set()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address):
        pass  # clients that hang up are part of the tests


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        self.server.connections.add(self.connection)

    def log_message(self, *given):
        pass

    def do_GET(self):
        rows = [{"id": name, "object": "model"} for name in self.server.models]
        self.answer(200, {"object": "list", "data": rows})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = next(m["content"] for m in body["messages"] if not isinstance(m["content"], str))  # no system message
        image, words = ([part for part in said if part["type"] == kind][-1] for kind in ("image_url", "text"))
        server = self.server
        with server.lock:
            server.asked[words["text"]] += 1
            server.requests.append(body)
            server.keys.add(self.headers["Authorization"])
            server.busy += 1
            server.busiest = max(server.busiest, server.busy)
            nth = len(server.requests)
        try:
            time.sleep(server.seconds)
            if (happens := server.fault(nth, words["text"])) is not None:
                happens(self)
            else:
                self.right(image, words["text"], body)
        finally:
            with server.lock:
                server.busy -= 1

    def right(self, image, words, body):
        assert image["image_url"]["url"].startswith("data:image/png;base64,")
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(image["image_url"]["url"].partition(",")[2]))))
        if "JSON list" in words:
            questions = re.findall(r"^\d+\. (.*)$", words, re.M)
            said = ["yes" if share(question, picture) > 0.5 else "no" for question in questions]
            return self.answer(200, completion(json.dumps(said)))
        yes = share(words, picture)
        return self.answer(200, completion("Yes" if yes > 0.5 else "No", logprobs(yes) if "logprobs" in body else None))

    def answer(self, status, value, headers=(), kind="application/json"):
        body = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        for key, text in (("Content-Type", kind), ("Content-Length", str(len(body))), *headers):
            self.send_header(key, text)
        self.end_headers()
        self.wfile.write(body)


# What may happen in place of an answer.


def status(code, headers=(), message="no luck"):
    return lambda handler: handler.answer(code, {"error": {"message": message, "type": "x"}}, headers)


def sends(body, headers=(), code=200):
    """These bytes and no other."""

    def send(handler):
        handler.send_response(code)
        for key, text in (("Content-Type", "application/json"), ("Content-Length", str(len(body))), *headers):
            handler.send_header(key, text)
        handler.end_headers()
        handler.wfile.write(body)

    return send


def says(text, tokens=None):
    return lambda handler: handler.answer(200, completion(text, tokens))


def page(handler):
    handler.answer(200, "<html><body>Bad gateway</body></html>", kind="text/html")


def page_as_json(handler):
    handler.answer(200, "<html><body>Bad gateway</body></html>")


def error_as_success(handler):
    handler.answer(200, {"error": {"message": "overloaded"}})


def no_choices(handler):
    handler.answer(200, {**completion(""), "choices": []})


def dropped(handler):
    """The connection is reset without an answer."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def cut(handler):
    """The answer ends in its middle."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True


def slow(seconds):
    """Bytes come one by one, so that no single read takes long."""

    def drip(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(int(seconds / 0.05)):
            handler.wfile.write(b" ")
            time.sleep(0.05)
        handler.close_connection = True

    return drip


@contextmanager
def running(fault=lambda nth, question: None, seconds=0.0, port=0):
    server = Judge(fault, seconds, port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        for connection in server.connections:  # those that are kept open would be served on
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
