"""Questions about a picture: how they are put, read, put once more where the answer is none, and remembered."""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from unigrpo.rewards.judge_answers import (
    answers_in,
    first_message,
    from_logprobs,
    probability_of_yes,
    without_thinking,
)
from unigrpo.rewards.judge_cache import Cache
from unigrpo.rewards.judge_endpoint import Batch, Endpoint, NoAnswer, texts
from unigrpo.rewards.png import as_bytes, as_png

VERSION = 1
"""Of the sentences below; another number, and nothing that is remembered counts."""
ONE = "Judge only what is visible. Question: {question} Answer with exactly one word: Yes or No."
MANY = (
    "Judge only what is visible. Answer each of these {count} questions with yes or no.\n{questions}\n"
    'Answer with nothing but a JSON list of {count} strings, each "yes" or "no", in the order of the questions.'
)
AGAIN = "That is not an answer. Answer with exactly one word: Yes or No."
AGAIN_MANY = 'That is not an answer. Answer with nothing but a JSON list of {count} strings, each "yes" or "no".'
GIVEN = (
    "The last picture was made from the {count} before it, as somebody asked: judge the last one. You may compare it "
    "with what was given."
)
WORDS_EACH = 8  # tokens of one answer in a list


HERE = "<picture>"
"""Stands for the picture while a request is written as JSON."""
PLACE = b'"url": "%s"'
"""Where it stands; no text can hold this, because the quotes in texts are escaped."""


class Picture:
    """One picture: its pixels' digest, and its PNG as a data URL, which is made once and only if it is asked about.

    before: pictures that are shown before it, which it was made from.
    """

    def __init__(self, pixels: np.ndarray, *, readable: bool = True, before: Sequence[Picture] = ()) -> None:
        self._pixels, self.readable, self.before = pixels, readable, tuple(before)
        self._url: asyncio.Task[bytes] | None = None

    @functools.cached_property
    def digest(self) -> str:
        """The sha256 of size and pixels; with pictures before it, of all digests."""
        own = hashlib.sha256(str(self._pixels.shape).encode() + self._pixels.tobytes()).hexdigest()
        if not self.before:
            return own
        return hashlib.sha256(" ".join([*(picture.digest for picture in self.before), own]).encode()).hexdigest()

    async def url(self) -> bytes:
        """The picture as a data URL of a PNG."""
        if self._url is None:
            self._url = asyncio.ensure_future(asyncio.to_thread(_data_url, self._pixels))
        return await asyncio.shield(self._url)  # the others wait for it, too


def pictures(images: Tensor, given: Sequence[Sequence[Tensor]] = ()) -> list[Picture]:
    """Pictures float [B, 3, H, W] in [0, 1], one by one; ``given``: those float [3, H, W] that each was made from."""
    finite = images.sum((1, 2, 3)).isfinite().tolist()  # six times as fast as looking at each value
    before = [[Picture(as_bytes(one[None])[0]) for one in some] for some in given] or [[]] * len(finite)
    parts = zip(as_bytes(images), finite, before, strict=True)
    return [Picture(pixels, readable=good, before=shown) for pixels, good, shown in parts]


def _data_url(pixels: np.ndarray) -> bytes:
    return b"data:image/png;base64," + base64.b64encode(as_png(pixels))


@dataclass(frozen=True)
class Chat:
    """Words of the caller's own about a picture, and how their answer is read.

    words: the user's; system: of a message before them; first: whether the picture comes before the words. read: values
    in [0, 1] of an answer's text (without its thinking) and log probabilities, None for no answer; kind: stands for
    ``read`` in what is remembered; wanted: what an answer is, in words; again: what is said where there was none.
    """

    words: str
    read: Callable[[str, Sequence[Any]], list[float] | None]
    kind: str
    wanted: str
    again: str
    system: str | None = None
    first: bool = True


class Asker:
    """Asks one model of a service; ``parameters`` are those of the request beside model and messages."""

    def __init__(self, endpoint: Endpoint, model: str, parameters: Mapping[str, Any], cache: Cache | None) -> None:
        self.endpoint, self.model, self.parameters, self.cache = endpoint, model, parameters, cache

    async def one(self, picture: Picture, question: str, batch: Batch) -> float:
        """P(yes) of a question; NoAnswer where a second try gives neither yes nor no."""
        (yes,) = await self._remembered(picture, "one", [question], batch)
        return yes

    async def many(self, picture: Picture, questions: Sequence[str], batch: Batch) -> list[float]:
        """1 or 0 for each of several questions in one request; NoAnswer where a second try gives no such list."""
        return await self._remembered(picture, "many", questions, batch)

    async def read(self, picture: Picture, chat: Chat, batch: Batch) -> list[float]:
        """What is read in the answer to a chat; NoAnswer where a second try gives none."""
        asked = [chat.kind, chat.system or "", chat.words, chat.first]
        return await self._known(picture, asked, lambda: self._chatted(picture, chat, batch))

    async def _chatted(self, picture: Picture, chat: Chat, batch: Batch) -> list[float]:
        system = texts([("system", chat.system)]) if chat.system else []
        messages = [*system, *_about(chat.words, first=chat.first, before=len(picture.before))]
        text, tokens = await self._reply(picture, messages, 1, batch)
        if (found := chat.read(without_thinking(text or ""), tokens)) is not None:
            return found
        if text:
            messages = [*messages, *texts([("assistant", text), ("user", chat.again)])]
        text, tokens = await self._reply(picture, messages, 1, batch)
        if (found := chat.read(without_thinking(text or ""), tokens)) is not None:
            return found
        said = self.endpoint.clean(text or "nothing")[-80:]
        raise NoAnswer(f"asked twice, the judge did not give {chat.wanted}: {said!r}")

    async def shades(self, picture: Picture, question: str, batch: Batch) -> bool:
        """Whether the service gives log probabilities of its answers."""
        for _ in range(2):  # one answer may be none
            _, tokens = await self._reply(picture, _about(_one(question)), 1, batch)
            if from_logprobs(tokens) is not None:
                return True
        return False

    async def _remembered(self, picture: Picture, how: str, questions: Sequence[str], batch: Batch) -> list[float]:
        answer = lambda: self._asked(picture, how, questions, batch)  # noqa: E731
        known = await self._known(picture, [how, list(questions)], answer)
        return known if len(known) == len(questions) else await answer()

    async def _known(
        self, picture: Picture, asked: Sequence[Any], answer: Callable[[], Awaitable[list[float]]]
    ) -> list[float]:
        """What is remembered of what was asked of a picture, or else the answer, which is remembered then."""
        if not picture.readable:
            raise NoAnswer("the picture holds NaN or infinity")
        if self.cache is None:
            return await answer()
        key = self._key(picture, asked)
        if (known := self.cache.get(key)) is not None:
            return known
        answers = await answer()
        self.cache.put(key, answers)
        return answers

    def _key(self, picture: Picture, asked: Sequence[Any]) -> str:
        whole = [VERSION, self.model, *asked, self.parameters, picture.digest]
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()

    async def _asked(self, picture: Picture, how: str, questions: Sequence[str], batch: Batch) -> list[float]:
        """Ask, and where the answer is none, once more with what was said before it."""
        count = len(questions)
        messages = _about(_one(questions[0]) if how == "one" else _many(questions), before=len(picture.before))
        for last in (False, True):
            text, tokens = await self._reply(picture, messages, count, batch)
            answers = answers_in(text, count) if how == "many" else _single(probability_of_yes(text, tokens))
            if answers is not None:
                return answers
            if last:
                wanted = "yes nor no" if how == "one" else f"a list of {count} answers"
                said = self.endpoint.clean(text or "nothing")[-80:]
                raise NoAnswer(f"asked twice, the judge gave no {wanted}: {said!r}")
            if text:
                again = AGAIN if how == "one" else AGAIN_MANY.format(count=count)
                messages = [*messages, *texts([("assistant", text), ("user", again)])]
        raise AssertionError("unreachable")

    async def _reply(
        self, picture: Picture, messages: Sequence[Mapping[str, Any]], count: int, batch: Batch
    ) -> tuple[str | None, Sequence[Any]]:
        room = self.parameters["max_tokens"] + WORDS_EACH * (count - 1)
        request = {"messages": messages, "model": self.model, **self.parameters, "max_tokens": room}
        body, here = json.dumps(request).encode(), PLACE % HERE.encode()
        for shown in (*picture.before, picture):
            body = body.replace(here, PLACE % await shown.url(), 1)  # a data URL needs no escapes
        return first_message(await self.endpoint.chat(body, batch))


def _single(yes: float | None) -> list[float] | None:
    return None if yes is None else [yes]


def _about(words: str, *, first: bool = True, before: int = 0) -> list[dict[str, Any]]:
    """The messages that show a picture, first or last, and say something; ``before``: pictures that it was made from.

    Where there are such, the words begin by saying which one is meant.
    """
    shown = [{"type": "image_url", "image_url": {"url": HERE}}] * (before + 1)
    said = {"type": "text", "text": f"{GIVEN.replace('{count}', str(before))} {words}" if before else words}
    return texts([("user", [*shown, said] if first else [said, *shown])])


def _one(question: str) -> str:
    return ONE.replace("{question}", question)


def _many(questions: Sequence[str]) -> str:
    listed = "\n".join(f"{number}. {question}" for number, question in enumerate(questions, 1))
    return MANY.replace("{count}", str(len(questions))).replace("{questions}", listed)
