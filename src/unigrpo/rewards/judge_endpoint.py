"""An OpenAI-compatible chat service, asked as often as it takes: the transport under every judge.

One client with its connections serves the whole process, on the event loop of ``awaiting``. It is httpx2 alone: the
client of the package openai, which stands on it, spends two to three times as much of the CPU on a request.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from unigrpo.plurals import counted
from unigrpo.ranges import ConfigError, lacking, shown
from unigrpo.rewards.retrying import Breaker, backoff, retry_after

if TYPE_CHECKING:
    from httpx2 import AsyncClient

AGAIN = (408, 409, 425, 429)
"""Statuses below 500 after which the same request may succeed."""
REFUSED = (401, 403, 404)
"""Statuses that every other request would get, too."""
SHOWN = 200  # characters of what a service said
Request = Callable[[], Awaitable[Mapping[str, Any]]]


class NoAnswer(Exception):
    """A question has no answer; the message says why."""


class _Again(Exception):
    """A try failed, and another may not; ``wait``: seconds that the service asks for; ``out``: it may be down."""

    def __init__(self, why: str, wait: float = 0.0, *, out: bool = True) -> None:
        super().__init__(why)
        self.wait, self.out = wait, out


@dataclass(frozen=True)
class Service:
    """Where a judge answers, under which key (the NAME of an environment variable), and how it is asked."""

    url: str
    key_env: str | None
    concurrency: int
    connect_s: float
    read_s: float


@dataclass
class Batch:
    """What the questions of one call share: when to give up (loop time), tries after the first, and a refusal."""

    deadline: float
    seconds: float
    retries: int
    refused: str | None = None
    last: str = "the service has not answered yet"

    @classmethod
    def within(cls, seconds: float, retries: int) -> Batch:
        """A batch that begins now."""
        return cls(asyncio.get_running_loop().time() + seconds, seconds, retries)


def endpoint(service: Service) -> Endpoint:
    """The one endpoint of a service, and of the key that is in the environment now, in this process."""
    _check_url(service.url)
    return _endpoint(service, _key(service.key_env))


@functools.cache
def _endpoint(service: Service, key: str | None) -> Endpoint:
    try:
        import httpx2
    except ModuleNotFoundError as error:
        raise lacking("a judge", "httpx2", "judge") from error
    client = httpx2.AsyncClient(
        timeout=httpx2.Timeout(service.read_s, connect=service.connect_s),
        limits=httpx2.Limits(max_connections=service.concurrency, max_keepalive_connections=service.concurrency),
        headers={"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})},
    )
    return Endpoint(service, key, client)


def _check_url(url: str) -> None:
    """ConfigError for what is no address, or would write a secret into the run; it is shown only if it holds none."""
    try:
        parts = urlsplit(url)
        secret, host, _ = "@" in url or bool(parts.query) or bool(parts.fragment), parts.hostname, parts.port
    except ValueError:  # brackets, or a port that is no number
        parts, secret, host = urlsplit(""), "@" in url, None
    if secret:
        raise ConfigError(
            f"url of the service at {host or '?'} holds a user, a password or a query, which would be written into the "
            "run: put the key into an environment variable and name it with key_env"
        )
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(f"url {shown(url)} is no address of a service: write one such as http://127.0.0.1:8000/v1")


def _key(key_env: str | None) -> str | None:
    """The key in an environment variable; ConfigError tells neither it nor what may be one written in its place."""
    if key_env is None:
        return None
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key_env):
        raise ConfigError("key_env is no name of an environment variable: export the key as one, and write its NAME")
    if not (key := os.environ.get(key_env, "").strip()):
        raise ConfigError(f"key_env: the environment variable {key_env} is not set; export it, with the service's key")
    if not re.fullmatch(r"[!-~]+", key):
        raise ConfigError(f"key_env: what is in {key_env} is no key (it holds spaces, line ends or other signs)")
    return key


@dataclass
class Endpoint:
    """A service under load: at most ``concurrency`` requests at a time, tries with jitter, a circuit breaker."""

    service: Service
    key: str | None
    client: AsyncClient
    breaker: Breaker = field(init=False)
    probed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.breaker = Breaker(name=self.service.url)
        self.slots = asyncio.Semaphore(self.service.concurrency)

    async def chat(self, body: bytes, batch: Batch) -> Mapping[str, Any]:
        """The reply to a chat request as JSON; NoAnswer where there is none in time."""
        return await self._asked("POST", "chat/completions", body, batch)

    async def models(self, batch: Batch) -> list[str]:
        """What the service calls its models."""
        rows = (await self._asked("GET", "models", None, batch)).get("data")
        rows = rows if isinstance(rows, list) else []
        return [row["id"] for row in rows if isinstance(row, Mapping) and isinstance(row.get("id"), str)]

    async def _asked(self, verb: str, path: str, body: bytes | None, batch: Batch) -> Mapping[str, Any]:
        try:
            async with asyncio.timeout_at(batch.deadline):
                return await self._tried(functools.partial(self._sent, verb, path, body, batch), batch)
        except TimeoutError:
            raise NoAnswer(f"no answer within deadline_s = {batch.seconds:g}; last: {batch.last}") from None

    async def _tried(self, request: Request, batch: Batch) -> Mapping[str, Any]:
        attempt, now = 0, asyncio.get_running_loop().time
        while True:
            try:
                async with self.slots, self.breaker.turn():
                    if batch.refused is not None:
                        raise NoAnswer(batch.refused)
                    return await self._once(request)
            except _Again as fault:
                batch.last = str(fault)
                if attempt == batch.retries:
                    raise NoAnswer(f"{fault} ({counted(attempt + 1, 'try')})") from None
                wait = fault.wait + backoff(attempt)
                if now() + wait > batch.deadline:
                    raise NoAnswer(
                        f"{fault}; the next try, in {wait:.3g} s, is after deadline_s = {batch.seconds:g}"
                    ) from None
                self.breaker.hold(fault.wait)  # who asks for time is left alone by the others, too
            attempt += 1
            await asyncio.sleep(wait)

    async def _once(self, request: Request) -> Mapping[str, Any]:
        """One try; the breaker is told how it went."""
        try:
            reply = await request()
        except _Again as fault:
            if fault.out:
                self.breaker.failed()
            raise
        except NoAnswer:
            self.breaker.worked()
            raise
        self.breaker.worked()
        return reply

    async def _sent(self, verb: str, path: str, body: bytes | None, batch: Batch) -> Mapping[str, Any]:
        import httpx2

        service = self.service
        limit = asyncio.timeout(service.connect_s + service.read_s)  # the client's own is for each piece of an answer
        try:
            async with limit:
                reply = await self.client.request(verb, f"{service.url}/{path}", content=body)
        except (httpx2.TimeoutException, TimeoutError) as error:
            if isinstance(error, TimeoutError) and not limit.expired():
                raise
            raise _Again(f"no answer within read_s = {service.read_s:g}") from None
        except httpx2.HTTPError as error:
            raise _Again(self.clean(f"no connection to {service.url}: {error or type(error).__name__}")) from None
        if not reply.is_success:
            raise self._status(reply.status_code, reply.headers, reply.text, batch)
        return _json_object(reply.status_code, reply.text, self.clean)

    def _status(self, status: int, headers: Mapping[str, str], text: str, batch: Batch) -> Exception:
        """What an answer of another status than 200 means."""
        if 300 <= status < 400:  # not followed: pictures go where the recipe says
            return NoAnswer(self.clean(f"status {status}: the service is at {headers.get('location', '?')}"))
        said = self.clean(f"status {status}: {_error_in(text)}")
        if status in AGAIN or status >= 500:
            return _Again(said, retry_after(headers), out=status >= 500)
        if status in REFUSED:
            batch.refused = said
        return NoAnswer(said)

    def clean(self, text: str) -> str:
        """What a service said, short, on one line, and without the key, should it repeat it."""
        kept = text if self.key is None else text.replace(self.key, "***")
        return " ".join(kept[: 10 * SHOWN].split())[:SHOWN]


def _json_object(status: int, text: str, clean: Callable[[str], str]) -> Mapping[str, Any]:
    """The object of an answer with status 2xx; gateways send pages and errors with that status, too."""
    try:
        reply = json.loads(text)
    except (ValueError, RecursionError):
        raise _Again(clean(f"status {status}, but no JSON: {text}")) from None
    if not isinstance(reply, Mapping):
        raise _Again(clean(f"status {status}, but no JSON object: {text}"))
    if reply.get("error") and not reply.get("choices"):
        raise _Again(clean(f"status {status}, but an error: {_error_in(text)}"))
    return reply


def _error_in(text: str) -> str:
    """The message of an error, or the text as it is."""
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        return text
    for key in ("error", "message"):
        if isinstance(found, Mapping) and found.get(key):
            found = found[key]
    return found if isinstance(found, str) else text


def texts(contents: Sequence[tuple[str, Any]]) -> list[dict[str, Any]]:
    """Messages of a chat from pairs of role and content."""
    return [{"role": role, "content": content} for role, content in contents]
