"""What a judge meant: yes or no, and how surely, from its log probabilities or from its words."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL | re.IGNORECASE)
ANCHORED = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
FENCE = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL | re.IGNORECASE)
END = "</think>"
LEAST = -10_000  # a log probability of nothing; JSON may hold integers that are no float


def first_message(reply: Any) -> tuple[str | None, Sequence[Any]]:
    """Text and token log probabilities of a chat completion's first choice; None and none where it holds none."""
    choices = reply.get("choices") if isinstance(reply, Mapping) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, Mapping):
        return None, ()
    message, logprobs = choice.get("message"), choice.get("logprobs")
    text = message.get("content") if isinstance(message, Mapping) else None
    tokens = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    if not isinstance(text, str) or not text.strip():  # cut in its thinking, which may begin with "No, ..."
        return None, ()
    return text, tokens if isinstance(tokens, list) else ()


def probability_of_yes(text: str | None, tokens: Sequence[Any]) -> float | None:
    """P(yes) / (P(yes) + P(no)) of an answer; 1 or 0 where only its words tell; None where it is neither yes nor no.

    In this order: log probabilities; the words after the thinking, which begin with yes or no; a JSON value.
    """
    if (soft := from_logprobs(tokens)) is not None:
        return soft
    words = without_thinking(text or "")
    if found := ANCHORED.match(words):
        return float(found[1].lower() == "yes")
    said = _verdict(_json_in(words))
    return None if said is None else float(said)


def from_logprobs(tokens: Sequence[Any]) -> float | None:
    """The soft answer at the first word after the thinking, over all its variants (" yes", "Yes", "YES.", ...).

    None where that word is neither yes nor no, or the alternatives do not hold it.
    """
    place = _answer(tokens)
    if place is None or _bare(place.get("token")) not in ("yes", "no"):
        return None
    mass = {"yes": 0.0, "no": 0.0}
    alternatives = place.get("top_logprobs")
    for choice in alternatives if isinstance(alternatives, list) else ():
        word, logprob = (_bare(choice.get("token")), choice.get("logprob")) if isinstance(choice, Mapping) else ("", 0)
        if word in mass and isinstance(logprob, int | float) and logprob == logprob:  # no NaN
            mass[word] += math.exp(max(min(logprob, 0), LEAST))
    both = mass["yes"] + mass["no"]
    return mass["yes"] / both if both > 0.0 else None


def _answer(tokens: Sequence[Any]) -> Mapping[str, Any] | None:
    """The first token that is a word, after the last end of thinking; none where the thinking does not end."""
    if not all(isinstance(token, Mapping) and isinstance(token.get("token"), str) for token in tokens):
        return None
    whole = "".join(token["token"] for token in tokens).lower()
    start = whole.rfind(END) + len(END) if END in whole else 0
    if whole.find("<think>", start) >= 0:
        return None
    begins = 0
    for token in tokens:
        if begins >= start and _bare(token["token"]):
            return token
        begins += len(token["token"])
    return None


def _bare(token: Any) -> str:
    """A token without the spaces and signs around it, in small letters (byte-level markers of spaces count as such)."""
    return re.sub(r"^[\W_ĠĊ▁]+|[\W_]+$", "", token).casefold() if isinstance(token, str) else ""


def without_thinking(text: str) -> str:
    """What follows the thinking: without <think>...</think>, before a lone </think>, or after a lone <think>."""
    rest = THOUGHT.sub("", text)
    after = re.split(END, rest, flags=re.IGNORECASE)[-1]
    return re.split("<think>", after, flags=re.IGNORECASE)[0].strip()


def answers_in(text: str | None, count: int) -> list[float] | None:
    """The answers 1 and 0 of a JSON list of exactly ``count`` times yes or no; None for anything else."""
    found = _json_in(without_thinking(text or ""))
    verdicts = [_verdict(item) for item in found] if isinstance(found, list) else []
    told = [float(verdict) for verdict in verdicts if verdict is not None]
    return told if len(told) == len(verdicts) == count else None


def _json_in(words: str) -> Any:
    """The JSON value that some words are, or hold between fences or brackets; None where there is none."""
    fenced = FENCE.search(words)
    between = [words[words.find(left) : words.rfind(right) + 1] for left, right in ("[]", "{}") if left in words]
    for text in (words, fenced[1] if fenced else "", *between):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            continue
    return None


def _verdict(value: Any) -> bool | None:
    """Yes or no of a JSON value: true, "Yes", {"answer": "no"}, ["yes"]."""
    match value:
        case bool():
            return value
        case str():
            return {"yes": True, "no": False, "true": True, "false": False}.get(_bare(value))
        case {"answer": inner} | [inner]:
            return _verdict(inner) if not isinstance(inner, dict | list) else None
        case _:
            return None
