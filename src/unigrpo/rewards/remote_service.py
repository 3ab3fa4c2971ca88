"""Services that share the rewards of one client: which is asked, what its answer means, and when it is asked again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from unigrpo.ranges import ConfigError, shown
from unigrpo.rewards import wire
from unigrpo.rewards.protocol import RewardInput, RewardOutput
from unigrpo.rewards.retrying import Breaker, backoff, retry_after
from unigrpo.rewards.serving import is_loopback, missing

if TYPE_CHECKING:
    from httpx2 import AsyncClient, Response

DOWN = (429, 502, 503, 504)
"""Statuses of a service, or a gateway before it, that is too busy or away: asked again until the deadline."""
AGAIN = (408, 409, 425)
"""Other statuses below 500 after which the same request may succeed."""
LONGEST = 5.0
"""Seconds between two tries at most, unless a service asks for more."""
PAUSE = 0.5
"""Seconds for which a service that is down is left alone at first; twice as many after each try, up to LONGEST."""
SHOWN = 500  # characters of what a service said


class NoAnswer(Exception):
    """A request has no answer; the message says why."""


class _Again(Exception):
    """A try failed, and another may not.

    wait: seconds that the service asks for; counts: among ``retries``; out: the service may be down.
    """

    def __init__(self, why: str, wait: float = 0.0, *, counts: bool = True, out: bool = True) -> None:
        super().__init__(why)
        self.wait, self.counts, self.out = wait, counts, out


class Service:
    """One service under load: its connections, at most ``concurrency`` requests at a time, a circuit breaker."""

    def __init__(self, url: str, token: str | None, concurrency: int, connect_s: float, read_s: float) -> None:
        host = _checked(url)
        self.url, self.connect_s, self.read_s = url.rstrip("/"), connect_s, read_s
        self.token = token
        self.client = _client(token, host, concurrency, connect_s, read_s)
        self.slots, self.busy = asyncio.Semaphore(concurrency), 0
        self.breaker = Breaker(limit=3, pause=PAUSE, longest=LONGEST, name=self.url)

    @property
    def is_out(self) -> bool:
        """Whether it counts as being down, and is being tried, or not to be tried yet."""
        breaker = self.breaker
        return breaker.is_open and (breaker.trying or asyncio.get_running_loop().time() < breaker.until)

    async def once(self, body: bytes, count: int) -> RewardOutput:
        """One try of a request about ``count`` pictures; the breaker is told how it went."""
        self.busy += 1
        try:
            async with self.slots, self.breaker.turn():
                try:
                    answer = wire.read_answer((await self._sent("POST", "/score", body)).content, count)
                except wire.WrongAnswer as error:
                    self.breaker.worked()
                    raise _Again(self._clean(f"{self.url}: {error}")) from None
                except _Again as fault:
                    self.breaker.failed() if fault.out else self.breaker.worked()
                    raise
                except NoAnswer:
                    self.breaker.worked()
                    raise
                self.breaker.worked()
                return answer
        finally:
            self.busy -= 1

    async def health(self) -> bytes:
        """What it says of itself."""
        return (await self._sent("GET", "/health", None)).content

    async def _sent(self, method: str, path: str, body: bytes | None) -> Response:
        """An answer with status 200; NoAnswer for one that will not change, _Again else."""
        import httpx2

        headers = {} if body is None else {"Content-Type": "application/json"}
        limit = asyncio.timeout(self.connect_s + self.read_s)  # the client's own is for each piece of an answer
        try:
            async with limit:
                answer = await self.client.request(method, self.url + path, content=body, headers=headers)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise _Again(self._clean(f"no connection to {self.url}: {_said(error)}"), counts=False) from None
        except (httpx2.TimeoutException, TimeoutError) as error:
            if isinstance(error, TimeoutError) and not limit.expired():
                raise
            raise _Again(f"{self.url}: no answer within read_s = {self.read_s:g}") from None
        except httpx2.HTTPError as error:
            raise _Again(self._clean(f"{self.url}: the connection broke: {_said(error)}")) from None
        return self._looked_at(answer)

    def _looked_at(self, answer: Response) -> Response:
        status = answer.status_code
        if status == 200:
            return answer
        why = self._clean(f"{self.url}: status {status}: {_sentence(answer.text)}")
        if status in DOWN or status in AGAIN or status >= 500:
            wait = retry_after(answer.headers)
            raise _Again(why, wait, counts=status not in DOWN, out=status in (502, 503, 504))
        raise NoAnswer(why)

    def _clean(self, text: str) -> str:
        """What a service said, short, on one line, and without the token, should it repeat it."""
        return " ".join((text.replace(self.token, "***") if self.token else text).split())[:SHOWN]


def _checked(url: str) -> str:
    """The host of an address; ConfigError where it is none, or holds what must not be written into a run."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            f"remote/http: url of the service at {host} holds a user or a password, which would be written into the "
            "run: put a token into an environment variable and name it with token_env"
        )
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise ConfigError(
            f"remote/http: url {shown(url)} is no address of a service: write one such as http://127.0.0.1:8765"
        )
    return host


def _client(token: str | None, host: str, concurrency: int, connect_s: float, read_s: float) -> AsyncClient:
    try:
        import httpx2
    except ModuleNotFoundError as error:
        raise missing(error) from error
    return httpx2.AsyncClient(
        headers={} if token is None else {"Authorization": f"Bearer {token}"},
        timeout=httpx2.Timeout(read_s, connect=connect_s, pool=None),
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=concurrency),
        trust_env=not is_loopback(host),  # no proxy is asked for this machine
    )


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _sentence(text: str) -> str:
    """The sentence of a refusal, or its text as it is."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text[:SHOWN]
    sentence = found.get("error") if isinstance(found, Mapping) else None
    return sentence if isinstance(sentence, str) else text[:SHOWN]


@dataclass
class Round:
    """What the requests of one call share: when to give up (loop time), and tries after the first."""

    deadline: float
    seconds: float
    retries: int
    last: str = field(default="no service has answered yet")

    @classmethod
    def within(cls, seconds: float, retries: int) -> Round:
        """A round that begins now."""
        return cls(asyncio.get_running_loop().time() + seconds, seconds, retries)

    async def answer(
        self, services: Sequence[Service], slots: asyncio.Semaphore, given: RewardInput, reward: str
    ) -> RewardOutput:
        """The rewards of some pictures by whichever service gives them first; NoAnswer where none does in time."""
        try:
            async with asyncio.timeout_at(self.deadline):
                return await self._tried(services, slots, given, reward)
        except TimeoutError:
            raise NoAnswer(f"got no answer within deadline_s = {self.seconds:g}; last: {self.last}") from None

    async def _tried(
        self, services: Sequence[Service], slots: asyncio.Semaphore, given: RewardInput, reward: str
    ) -> RewardOutput:
        body, counted, rounds = b"", 0, 0
        asked: set[int] = set()  # services that failed since it last waited
        while True:
            async with slots:
                body = body or await asyncio.to_thread(wire.request, given, reward)
                chosen = min(range(len(services)), key=lambda i: (services[i].is_out, i in asked, services[i].busy))
                try:
                    return await services[chosen].once(body, len(given.prompts))
                except _Again as fault:
                    self.last = str(fault)
                    counted += fault.counts
                    if counted > self.retries:
                        raise NoAnswer(f"got no answer: {fault} ({counted} tries)") from None
                    wait = fault.wait
            asked.add(chosen)
            if any(i not in asked and not service.is_out for i, service in enumerate(services)):
                continue
            wait, rounds = max(wait, backoff(rounds, longest=LONGEST)), rounds + 1
            if asyncio.get_running_loop().time() + wait > self.deadline:
                raise NoAnswer(
                    f"got no answer: {self.last}; the next try, in {wait:.3g} s, is after deadline_s = {self.seconds:g}"
                )
            asked.clear()
            await asyncio.sleep(wait)


@dataclass(frozen=True)
class About:
    """What a service says of itself."""

    reward: str
    max_pictures: int
    max_pixels: int
    max_body_mb: int


async def health(service: Service, seconds: float) -> About:
    """What a service says of itself within some seconds; ConfigError where it cannot be used."""
    this, attempt = Round.within(seconds, 0), 0
    while True:
        try:
            async with asyncio.timeout_at(this.deadline):
                return _about(await service.health(), service.url)
        except NoAnswer as error:
            raise ConfigError(f"remote/http: {error}: {_advice(str(error))}") from None
        except (_Again, TimeoutError) as error:
            this.last = str(error) or this.last
        wait = backoff(attempt, longest=1.0)
        if asyncio.get_running_loop().time() + wait > this.deadline:
            raise ConfigError(
                f"remote/http: {service.url} cannot be used ({this.last}): start it (unigrpo rewards serve NAME), or "
                "correct url"
            )
        attempt += 1
        await asyncio.sleep(wait)


def _advice(said: str) -> str:
    if "status 401" in said or "status 403" in said:
        return "export the token of the service, and name its variable with token_env"
    return "is it a service of unigrpo rewards serve? correct url"


def _about(body: bytes, url: str) -> About:
    try:
        said = json.loads(body)
        limits = [said["limits"][key] for key in ("max_pictures", "max_pixels", "max_body_mb")]
        reward = said["reward"]
    except (ValueError, RecursionError, TypeError, KeyError):
        reward, limits = None, []
    if not isinstance(reward, str) or not all(isinstance(limit, int) and limit > 0 for limit in limits):
        raise ConfigError(f"remote/http: {url} is no service of unigrpo rewards serve: correct url")
    return About(reward, *limits)
