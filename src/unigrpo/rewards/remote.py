"""The reward ``remote/http``: another reward, behind ``unigrpo rewards serve`` on this or other machines.

Pictures go out in requests of a few; what a service cannot answer in time is an error of its pictures, never a zero.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import Tensor

from unigrpo.ranges import ConfigError, Range, check_numbers, shown
from unigrpo.rewards import wire
from unigrpo.rewards.awaiting import wait_for
from unigrpo.rewards.protocol import RewardInput, RewardOutput
from unigrpo.rewards.remote_service import NoAnswer, Round, Service, health
from unigrpo.rewards.serving import token

RANGES = {
    "batch": Range(1, 100_000),
    "concurrency": Range(1, 1024),
    "retries": Range(0, 100),
    "connect_s": Range(0, 3600, open_low=True),
    "read_s": Range(0, 86_400, open_low=True),
    "deadline_s": Range(0, 86_400, open_low=True),
}
WHOLE = ("batch", "concurrency", "retries")
NAME = "remote/http"


@dataclass(kw_only=True, eq=False)
class RemoteHttp:
    """A reward that other processes compute; it gives their numbers, parts and errors in the order of the pictures.

    url: of the service, or of several that share the load, such as http://127.0.0.1:8765; reward: its name there (None:
    whichever it is); token_env: the NAME of the environment variable with the token (None: UNIGRPO_REWARD_TOKEN, where
    that is set); batch: pictures of a request at most; concurrency: requests at a time to each service; retries:
    further tries of a request that a service answered wrongly or not at all; connect_s, read_s: of one try; deadline_s:
    of one call of the reward: so long it waits for services that are down.
    """

    url: str | Sequence[str]
    reward: str | None = None
    token_env: str | None = None
    batch: int = 16
    concurrency: int = 4
    retries: int = 5
    connect_s: float = 5.0
    read_s: float = 120.0
    deadline_s: float = 300.0
    name: ClassVar[str] = NAME

    def __post_init__(self) -> None:
        self._check()
        urls = [self.url] if isinstance(self.url, str) else list(self.url)
        key = token(self.token_env)
        self._services = [Service(u, key, self.concurrency, self.connect_s, self.read_s) for u in urls]
        self._slots = asyncio.Semaphore(self.concurrency * len(urls))
        self._served, self._room = wait_for(self._learnt())

    def _check(self) -> None:
        """ConfigError for what cannot work."""
        check_numbers(asdict(self), RANGES, whole=WHOLE, where=f"{NAME}: ")
        several = isinstance(self.url, list | tuple) and self.url and all(isinstance(u, str) for u in self.url)
        if not (isinstance(self.url, str) or several):
            raise ConfigError(f"{NAME}: url is {shown(self.url)}: write a service's address, or a list of them")
        for key in ("reward", "token_env"):
            if not isinstance(text := asdict(self)[key], str | None) or text == "":
                raise ConfigError(f"{NAME}: {key} is {shown(text)}: write a name, or leave it out")

    async def _learnt(self) -> tuple[str, Weight]:
        """The reward that all services have, and what all take in a request; ConfigError where one cannot be used."""
        abouts = await asyncio.gather(*(health(service, min(self.deadline_s, START_S)) for service in self._services))
        wanted = abouts[0].reward if self.reward is None else self.reward
        for service, about in zip(self._services, abouts, strict=True):
            if about.reward != wanted:
                first = f"{self._services[0].url} has {wanted!r}" if self.reward is None else f"reward is {wanted!r}"
                raise ConfigError(
                    f"{NAME}: {service.url} has the reward {about.reward!r}, and {first}: correct url or reward"
                )
            if self.batch > about.max_pictures:
                raise ConfigError(
                    f"{NAME}: batch is {self.batch}, and {service.url} takes {about.max_pictures} pictures in one "
                    "request: lower it, or serve with a higher --max-pictures"
                )
        return wanted, Weight(min(a.max_pixels for a in abouts), min(a.max_body_mb for a in abouts) * 1_000_000)

    async def __call__(
        self,
        images: Tensor,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
        thinking: Sequence[str | None],
    ) -> RewardOutput | Mapping[str, Sequence[float]]:
        """Ask for the rewards of pictures float [B, 3, H, W] in [0, 1]; those without an answer are in ``errors``.

        A reward that gives several values by name does so here, too: ``value`` of the recipe's entry says which counts.
        """
        errors: dict[int, str] = {}
        weights: dict[int, Weight] = {}
        for index, image in enumerate(images):
            try:
                weights[index] = weight(image, prompts[index], metadata[index], thinking[index])
            except wire.Unsendable as error:
                errors[index] = f"cannot be sent: {error}"
        chunks = portions(weights, self.batch, self._room)
        this = Round.within(self.deadline_s, self.retries)

        async def asked(chunk: Sequence[int]) -> RewardOutput:
            texts, rows = [prompts[i] for i in chunk], [metadata[i] for i in chunk]
            given = RewardInput(images[list(chunk)], texts, rows, [thinking[i] for i in chunk])
            try:
                return await this.answer(self._services, self._slots, given, self._served)
            except NoAnswer as error:
                return RewardOutput([math.nan] * len(chunk), {}, dict.fromkeys(range(len(chunk)), str(error)))

        answers = await asyncio.gather(*(asked(chunk) for chunk in chunks))
        output = merged(len(prompts), chunks, answers, errors)
        return output.parts if any(not said.values for said in answers) and not output.errors else output


START_S = 5.0
"""Seconds that a service has at the start to be there."""


@dataclass(frozen=True)
class Weight:
    """What pictures take of a request: pixels, and bytes of its body at most."""

    pixels: int
    body: int

    def __add__(self, other: Weight) -> Weight:
        return Weight(self.pixels + other.pixels, self.body + other.body)

    def fits(self, room: Weight) -> bool:
        """Whether a request with so much room takes it."""
        return self.pixels <= room.pixels and self.body <= room.body


def weight(image: Tensor, prompt: str, metadata: Mapping[str, Any], thinking: str | None) -> Weight:
    """What a picture takes of a request, were it noise; wire.Unsendable where it cannot be sent."""
    wire.check(image)
    row, sources = wire.about(metadata)
    sizes = [picture.shape[1:] for picture in (image, *sources)]
    unpacked = sum(height * (3 * width + 1) for height, width in sizes)  # a PNG has one more byte a line
    letters = len(prompt) + len(thinking or "") + len(json.dumps(row))
    told = 12 * letters + 1000 * len(sizes)  # a letter has at most two escapes
    return Weight(sum(height * width for height, width in sizes), int(1.01 * unpacked * 4 / 3) + told)


def portions(weights: Mapping[int, Weight], most: int, room: Weight) -> list[list[int]]:
    """Pictures, by their places, in requests of at most ``most`` that fit; one that is too large goes alone."""
    found: list[list[int]] = []
    load = Weight(0, 0)
    for index, own in weights.items():
        if not found or len(found[-1]) == most or not (load + own).fits(room):
            found.append([])
            load = Weight(0, 0)
        found[-1].append(index)
        load = load + own
    return found


def merged(
    count: int, chunks: Sequence[Sequence[int]], answers: Sequence[RewardOutput], errors: Mapping[int, str]
) -> RewardOutput:
    """The answers about chunks of pictures as one, in the order of the pictures; NaN where there is no number."""
    values = [math.nan] * count
    parts: dict[str, list[float]] = {name: [math.nan] * count for said in answers for name in said.parts}
    failed = dict(errors)
    for chunk, said in zip(chunks, answers, strict=True):
        failed |= {chunk[index]: message for index, message in said.errors.items()}
        for to, numbers in (
            (values, said.values or [math.nan] * len(chunk)),
            *((parts[name], part) for name, part in said.parts.items()),
        ):
            for index, number in zip(chunk, numbers, strict=True):
                to[index] = number
    return RewardOutput(values, parts, dict(sorted(failed.items())))
