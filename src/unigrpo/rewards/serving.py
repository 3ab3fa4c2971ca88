"""Any reward behind HTTP: ``POST /score`` and ``GET /health``, for models that need their own machine or environment.

``remote/http`` (``remote``) is the client, ``wire`` what both say, ``serving_processes`` the workers.
"""

from __future__ import annotations

import asyncio
import hmac
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from unigrpo import version
from unigrpo.ranges import ConfigError, Range, check_numbers, lacking, shown
from unigrpo.rewards import wire
from unigrpo.rewards.answers import alike
from unigrpo.rewards.calling import Worker, apart
from unigrpo.rewards.protocol import TIMEOUT, RewardFault, RewardFunction, RewardInput, RewardOutput, call
from unigrpo.rewards.wire import Limits, Refused

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

TOKEN_ENV = "UNIGRPO_REWARD_TOKEN"
"""The environment variable with the token of services and clients, unless another one is named."""
LIMITS = Limits(max_pictures=64, max_pixels=2**26, max_body_mb=64)
MOST_WAITING = 32
"""Requests that one process holds, read or being read; more are told to come again."""
UNPACKED = 2
"""Of these, requests whose pictures are unpacked: one at work, and the next."""
BODY_S = 120.0
"""Seconds that a body may take to arrive."""
RANGES = {
    "port": Range(0, 65_535),
    "workers": Range(1, 256),
    "max_pictures": Range(1, 100_000),
    "max_pixels": Range(1, 2**40),
    "max_body_mb": Range(1, 100_000),
    "timeout_s": Range(0, 86_400, open_low=True),
}


@dataclass(frozen=True, kw_only=True)
class Served:
    """What is served: the reward's name, how it is built, what a request may hold, and who may ask.

    token: None lets everybody ask; setup: a module to import first, which makes names known.
    """

    name: str
    args: Mapping[str, Any]
    limits: Limits = LIMITS
    token: str | None = None
    timeout_s: float = TIMEOUT
    setup: str | None = None


def app(served: Served, reward: RewardFunction, stopping: Callable[[], bool] = lambda: False) -> Starlette:
    """The service as an ASGI application; a reward is called by one request at a time, the others wait for it.

    ``stopping``: whether the process is about to end; requests that wait are then sent to other services.
    """
    try:
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.routing import Route
    except ModuleNotFoundError as error:
        raise missing(error) from error
    service = _Service(served, reward, stopping)
    return Starlette(
        routes=[Route("/score", service.score, methods=["POST"]), Route("/health", service.health, methods=["GET"])],
        exception_handlers={Refused: _refused, HTTPException: _no_such_thing, Exception: _broken},
    )


def missing(error: ModuleNotFoundError) -> ConfigError:
    """What to say where a package of the extra ``serve`` is not installed."""
    return lacking("a reward over HTTP", str(error.name), "serve")


class _Service:
    """What the two addresses do."""

    def __init__(self, served: Served, reward: RewardFunction, stopping: Callable[[], bool]) -> None:
        self.served, self.reward, self.stopping = served, reward, stopping
        self.one_at_a_time = asyncio.Lock()
        self.unpacked = asyncio.Semaphore(UNPACKED)
        self.held = 0
        self.told: set[str] = set()
        self.worker: list[Worker] = []

    async def health(self, request: Request) -> Response:
        """What is served here; also while the reward is at work."""
        self._check_token(request)
        about = {"reward": self.served.name, "version": version.of("unigrpo"), "differentiable": False}
        return _json(200, about | {"limits": asdict(self.served.limits)})

    async def score(self, request: Request) -> Response:
        """The rewards of the pictures of a request."""
        self._check_token(request)
        # pages in browsers cannot send this type to another address, such as this machine's, without asking first
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, "the body must be JSON: send it with Content-Type: application/json")
        if self.held >= MOST_WAITING:
            raise Refused(429, f"{MOST_WAITING} requests are waiting here already: come again", {"Retry-After": "1"})
        self.held += 1
        try:
            body = await self._body(request)
            async with self.unpacked:
                given = await asyncio.to_thread(wire.read_request, body, self.served.name, self.served.limits)
                async with self.one_at_a_time:
                    return await self._answered(request, given)
        finally:
            self.held -= 1

    async def _answered(self, request: Request, given: RewardInput) -> Response:
        from starlette.responses import Response

        if self.stopping():
            raise Refused(503, "this service is being stopped", {"Retry-After": "1"})
        if await request.is_disconnected():  # whoever asked has given up while it waited
            return Response(status_code=408)
        try:
            output = await asyncio.to_thread(self._called, given)
        except RewardFault as fault:
            self._tell(str(fault))
            raise Refused(500, str(fault)) from None
        return Response(wire.answer(output), media_type="application/json")

    def _tell(self, fault: str) -> None:
        """Say on stderr what fails in the reward, every kind once."""
        if (kind := alike(fault)) not in self.told:
            self.told.add(kind)
            print(fault, file=sys.stderr, flush=True)

    def _called(self, given: RewardInput) -> RewardOutput:
        asked = _Asked(self.reward)
        with apart(self.worker):
            output = call(self.served.name, asked, given, timeout_s=self.served.timeout_s, strict=False)
        return replace(output, values=[]) if asked.named else output

    def _check_token(self, request: Request) -> None:
        if self.served.token is None:
            return
        expected = f"Bearer {self.served.token}".encode()
        if not hmac.compare_digest(request.headers.get("authorization", "").encode("utf-8", "replace"), expected):
            raise Refused(
                401, "the token is missing or wrong: send Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
            )

    async def _body(self, request: Request) -> bytes:
        """The body; Refused where it is too long, whatever its header announced. The server throws the rest away."""
        limits = self.served.limits
        too_long = Refused(413, f"the body has more than {limits.max_body_mb} MB: send fewer pictures in one request")
        announced = request.headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > limits.body:
            raise too_long
        parts, length = [], 0
        try:
            async with asyncio.timeout(BODY_S):
                async for part in request.stream():
                    length += len(part)
                    if length > limits.body:
                        raise too_long
                    parts.append(part)
        except TimeoutError:
            raise Refused(408, f"the body has not arrived within {BODY_S:g} s", {"Connection": "close"}) from None
        return b"".join(parts)


class _Asked:
    """A reward that is asked once; ``named``: it gave several values by name, of which a recipe chooses one."""

    def __init__(self, reward: RewardFunction) -> None:
        self.reward, self.named = reward, False

    def __call__(self, images: Any, prompts: Any, metadata: Any, thinking: Any) -> Any:
        answer = self.reward(images, prompts, metadata, thinking)
        return self._awaited(answer) if inspect.isawaitable(answer) else self._noted(answer)

    async def _awaited(self, answer: Any) -> Any:
        return self._noted(await answer)

    def _noted(self, answer: Any) -> Any:
        self.named = isinstance(answer, Mapping) and len(answer) > 1
        return RewardOutput(next(iter(answer.values())), answer) if self.named else answer


def _json(status: int, value: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    from starlette.responses import Response

    return Response(json.dumps(value).encode(), status, headers, media_type="application/json")


async def _refused(request: Request, refused: Any) -> Response:
    return _json(refused.status, {"error": str(refused)}, refused.headers)


async def _no_such_thing(request: Request, error: Any) -> Response:
    """An unknown address, or another method; whoever hung up while sending hears nothing."""
    here = "POST /score and GET /health"
    sentence = f"there is no {request.method} {request.url.path[:60]} here: there are {here}"
    return _json(error.status_code, {"error": sentence}, error.headers)


async def _broken(request: Request, error: Exception) -> Response:
    return _json(500, {"error": f"the service failed ({type(error).__name__}); its own output says where"})


def serve(
    name: str,
    args: Mapping[str, Any],
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    workers: int = 1,
    token_env: str | None = None,
    max_pictures: int = LIMITS.max_pictures,
    max_pixels: int = LIMITS.max_pixels,
    max_body_mb: int = LIMITS.max_body_mb,
    timeout_s: float = TIMEOUT,
    setup: str = "unigrpo.build",
) -> None:
    """Serve the reward called ``name`` until SIGTERM or SIGINT, in ``workers`` processes that each build it.

    host: other than this machine's own needs a token; port: 0 finds a free one; token_env: the NAME of the environment
    variable with the token; setup: the module that makes names known. ConfigError where it cannot work; nothing listens
    before the reward is built.
    """
    from unigrpo.rewards import serving_processes

    whole = {"port": port, "workers": workers, "max_pictures": max_pictures, "max_pixels": max_pixels}
    whole["max_body_mb"] = max_body_mb
    check_numbers({**whole, "timeout_s": timeout_s}, RANGES, whole=list(whole))
    served = Served(
        name=name,
        args=dict(args),
        limits=Limits(max_pictures, max_pixels, max_body_mb),
        token=token(token_env),
        timeout_s=timeout_s,
        setup=setup,
    )
    if served.token is None and not is_loopback(host):
        raise ConfigError(
            f"host {shown(host)} can be reached from other machines, so a token is needed: export one as "
            f"{token_env or TOKEN_ENV} here and where the reward is used, or leave host at 127.0.0.1"
        )
    serving_processes.run(served, host, port, workers)


def token(token_env: str | None) -> str | None:
    """The token in the environment variable of this name; without a name, in UNIGRPO_REWARD_TOKEN, or None."""
    found = os.environ.get(token_env or TOKEN_ENV, "").strip()
    if token_env is not None and not found:
        raise ConfigError(f"token_env: the environment variable {token_env} is not set; export it, with the token")
    if not all("!" <= letter <= "~" for letter in found):
        raise ConfigError(
            f"the token in the environment variable {token_env or TOKEN_ENV} has letters that no HTTP header can hold: "
            "choose one of plain letters, digits and signs"
        )
    return found or None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
