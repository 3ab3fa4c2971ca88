"""Several rounds of a sample as pages show them: the thought of each in order, and what their figures mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Json = Mapping[str, Any]
OF_ROUNDS = {
    "rounds": ("pictures of a sample", "drawn for a prompt, mean; fewer than asked for where samples said stop"),
    "score_first": ("score of first pictures", "the score, had every sample ended with its first picture"),
    "reward_first": ("reward of first pictures", "their mean reward"),
    "revision": ("gained by looking", "score (or else reward) of last pictures less that of first ones"),
}
"""The figures of an evaluation in rounds: name, and what it is."""
OF_CRITIQUES = {
    "n": ("samples with a second picture", "those whose critiques are judged below"),
    "score_second": ("score of second pictures", ""),
    "said": ("critique can be read", "of all"),
    "needed": ("first picture has a fault", "it lacks something that was asked for, or has more"),
    "fine": ("picture called fine", "of all"),
    "critique_right": ("critique right", "all that it says is true, and the picture so changed is what was asked for"),
    "critique_right_needed": ("critique right, with a fault", "of first pictures with a fault"),
    "critique_right_fine": ("critique right, without a fault", "of first pictures without one: called fine"),
    "found": ("fault noticed", "first pictures with a fault that are not called fine"),
    "plan_done": (
        "plan is the critique done",
        "second plans that show the first picture with the critique carried out",
    ),
    "fixed": ("mended", "wrong first pictures whose second is correct"),
    "broken": ("spoiled", "correct first pictures whose second is wrong"),
    "after_right": ("correct after a right critique", "second pictures, of first ones with a fault"),
    "after_wrong": ("correct after a wrong critique", "second pictures, of first ones with a fault"),
}
"""The figures of critiques (``unigrpo.worlds`` makes them), in the same way; a world's own name stays as it is."""


def thoughts(record: Json) -> list[dict[str, str]]:
    """What a record's sample thought, round by round: who says it, the words, and what came of it where nothing did.

    A round without a thinking has no entry; that of one round is called by no number.
    """
    rounds = record.get("rounds") or ()
    if not rounds:
        return [{"who": "It thought:", "words": words, "end": ""}] if (words := record.get("thinking") or "") else []
    return [
        {
            "who": f"Round {turn} thought:",
            "words": str(one["thinking"]),
            "end": "" if "category" in one else "(and drew no more)",
        }
        for turn, one in enumerate(rounds, start=1)
        if one.get("thinking") is not None
    ]


def last_turn(record: Json) -> int:
    """The number of the round whose picture stands; 0 for a sample of one round."""
    rounds = record.get("rounds") or ()
    return sum("category" in one for one in rounds)


def table(result: Json) -> list[tuple[str, str, str]]:
    """Rows of an evaluation's figures of rounds: name, value, meaning; [] for one round."""
    found = result.get("rounds") or {}
    if not found:
        return []
    rows = [(name, found.get(key), meaning) for key, (name, meaning) in OF_ROUNDS.items()]
    further = result["further"]
    rows += [(name, further[key], meaning) for key, (name, meaning) in OF_CRITIQUES.items() if key in further]
    return [(name, _short(value), meaning) for name, value, meaning in rows if value is not None]


def in_table(result: Json) -> set[str]:
    """The further figures that the table of rounds has."""
    return {*OF_ROUNDS, *OF_CRITIQUES} if result.get("rounds") else set()


def _short(value: float) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
