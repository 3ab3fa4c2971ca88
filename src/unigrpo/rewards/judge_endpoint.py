"""An OpenAI-compatible chat service, asked as often as it takes: the transport under every judge.

One client with its connections serves the whole process, on the event loop of ``awaiting``.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from unigrpo.ranges import ConfigError, how_to_install
from unigrpo.rewards.retrying import Breaker, backoff, retry_after

if TYPE_CHECKING:
    from openai import AsyncOpenAI

AGAIN = (408, 409, 425, 429)
"""Statuses below 500 after which the same request may succeed."""
REFUSED = (401, 403, 404)
"""Statuses that every other request would get, too."""
SHOWN = 200  # characters of what a service said


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


@functools.cache
def endpoint(service: Service) -> Endpoint:
    """The one endpoint of a service in this process."""
    return Endpoint(service, _client(service.url, service.key_env))


@functools.cache
def _client(url: str, key_env: str | None) -> AsyncOpenAI:
    try:
        from openai import AsyncOpenAI
    except ModuleNotFoundError as error:
        raise ConfigError(f"a judge needs the package openai: {how_to_install('judge')}") from error
    _check_url(url)
    return AsyncOpenAI(base_url=url, api_key=_key(key_env) or "none", max_retries=0)


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"url {url!r} is no address of a service: write one such as http://127.0.0.1:8000/v1")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            f"url of the service at {parts.hostname} holds a user or a password, which would be written into the run: "
            "put the key into an environment variable and name it with key_env"
        )


def _key(key_env: str | None) -> str | None:
    if key_env is None:
        return None
    if not (key := os.environ.get(key_env, "").strip()):
        raise ConfigError(f"key_env: the environment variable {key_env} is not set; export it, with the service's key")
    return key


@dataclass
class Endpoint:
    """A service under load: at most ``concurrency`` requests at a time, tries with jitter, a circuit breaker."""

    service: Service
    client: AsyncOpenAI
    breaker: Breaker = field(default_factory=Breaker)
    probed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        from openai import Timeout

        read, connect = self.service.read_s, self.service.connect_s
        self.asking = self.client.with_options(timeout=Timeout(read, connect=connect))
        self.slots = asyncio.Semaphore(self.service.concurrency)

    async def chat(self, request: Mapping[str, Any], batch: Batch) -> Mapping[str, Any]:
        """The reply to a chat request (model, messages, parameters) as JSON; NoAnswer where there is none in time."""
        return await self._asked(lambda: self.asking.chat.completions.with_raw_response.create(**request), batch)

    async def models(self, batch: Batch) -> list[str]:
        """What the service calls its models."""
        reply = await self._asked(self.asking.models.with_raw_response.list, batch)
        rows = reply.get("data")
        rows = rows if isinstance(rows, list) else []
        return [row["id"] for row in rows if isinstance(row, Mapping) and isinstance(row.get("id"), str)]

    async def _asked(self, request: Any, batch: Batch) -> Mapping[str, Any]:
        try:
            async with asyncio.timeout_at(batch.deadline):
                return await self._tried(request, batch)
        except TimeoutError:
            raise NoAnswer(f"no answer within deadline_s = {batch.seconds:g}; last: {batch.last}") from None

    async def _tried(self, request: Any, batch: Batch) -> Mapping[str, Any]:
        attempt = 0
        while True:
            try:
                async with self.slots, self.breaker.turn():
                    if batch.refused is not None:
                        raise NoAnswer(batch.refused)
                    return await self._once(request, batch)
            except _Again as fault:
                batch.last = str(fault)
                if attempt == batch.retries:
                    raise NoAnswer(f"{fault} ({attempt + 1} tries)") from None
                wait = max(fault.wait, backoff(attempt))
            if asyncio.get_running_loop().time() + wait > batch.deadline:
                raise NoAnswer(f"{batch.last}; the next try, in {wait:.3g} s, is after deadline_s = {batch.seconds:g}")
            attempt += 1
            await asyncio.sleep(wait)

    async def _once(self, request: Any, batch: Batch) -> Mapping[str, Any]:
        """One try; the breaker is told how it went."""
        try:
            reply = await self._sent(request, batch)
        except _Again as fault:
            if fault.out:
                self.breaker.failed()
            raise
        except NoAnswer:
            self.breaker.worked()
            raise
        self.breaker.worked()
        return reply

    async def _sent(self, request: Any, batch: Batch) -> Mapping[str, Any]:
        import openai

        service = self.service
        limit = asyncio.timeout(service.connect_s + service.read_s)  # the client's own is for each piece of an answer
        try:
            async with limit:
                raw = await request()
                return _json_object(raw.http_response.text, self._clean)
        except openai.APIStatusError as error:
            raise self._status(error.status_code, error.response.headers, error.response.text, batch) from None
        except (openai.APITimeoutError, TimeoutError) as error:
            if isinstance(error, TimeoutError) and not limit.expired():
                raise
            raise _Again(f"no answer within read_s = {service.read_s:g}") from None
        except openai.APIConnectionError as error:
            raise _Again(self._clean(f"no connection to {service.url}: {error.__cause__ or error}")) from None

    def _status(self, status: int, headers: Mapping[str, str], text: str, batch: Batch) -> Exception:
        """What an answer of another status than 200 means."""
        said = self._clean(f"status {status}: {_error_in(text)}")
        if status in AGAIN or status >= 500:
            return _Again(said, retry_after(headers), out=status >= 500)
        if status in REFUSED:
            batch.refused = said
        return NoAnswer(said)

    def _clean(self, text: str) -> str:
        """What a service said, short, on one line, and without the key, should it repeat it."""
        key = self.client.api_key
        return " ".join((text if len(key) < 8 else text.replace(key, "***")).split())[:SHOWN]


def _json_object(text: str, clean: Any) -> Mapping[str, Any]:
    """The object of an answer with status 200; gateways send pages and errors with that status, too."""
    try:
        reply = json.loads(text)
    except (ValueError, RecursionError):
        raise _Again(clean(f"status 200, but no JSON: {text[:SHOWN]}")) from None
    if not isinstance(reply, Mapping):
        raise _Again(clean(f"status 200, but no JSON object: {text[:SHOWN]}"))
    if reply.get("error") and not reply.get("choices"):
        raise _Again(clean(f"status 200, but an error: {_error_in(text)}"))
    return reply


def _error_in(text: str) -> str:
    """The message of an error, or the text as it is."""
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        return text[:SHOWN]
    for key in ("error", "message"):
        if isinstance(found, Mapping) and found.get(key):
            found = found[key]
    return found if isinstance(found, str) else text[:SHOWN]


def texts(contents: Sequence[tuple[str, Any]]) -> list[dict[str, Any]]:
    """Messages of a chat from pairs of role and content."""
    return [{"role": role, "content": content} for role, content in contents]
