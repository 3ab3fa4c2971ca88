"""Prompts in the manner of GenEval, made here: six categories over the 80 classes of COCO and ten colours.

``geneval:train`` is an endless stream with random access and varied wordings, ``geneval:fixed`` a list for evaluations
in GenEval's own wording ("a photo of ..."). Nothing is held out: both are drawn from the same combinations, so what is
evaluated may have been trained on, and training may also meet some of GenEval's own 553 prompts. Metadata is GenEval's
(``tag``, ``include``, ``exclude``), and ``category`` = ``tag``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from unigrpo import seeds
from unigrpo.geneval_names import CLASSES, COLOURS, TAGS
from unigrpo.trajectory import Prompt

CATEGORIES = TAGS
NUMBERS = {2: "two", 3: "three", 4: "four"}
PLURALS = {
    "person": "people", "bicycle": "bicycles", "car": "cars", "motorcycle": "motorcycles", "airplane": "airplanes",
    "bus": "buses", "train": "trains", "truck": "trucks", "boat": "boats", "traffic light": "traffic lights",
    "fire hydrant": "fire hydrants", "stop sign": "stop signs", "parking meter": "parking meters", "bench": "benches",
    "bird": "birds", "cat": "cats", "dog": "dogs", "horse": "horses", "sheep": "sheep", "cow": "cows",
    "elephant": "elephants", "bear": "bears", "zebra": "zebras", "giraffe": "giraffes", "backpack": "backpacks",
    "umbrella": "umbrellas", "handbag": "handbags", "tie": "ties", "suitcase": "suitcases", "frisbee": "frisbees",
    "skis": "pairs of skis", "snowboard": "snowboards", "sports ball": "sports balls", "kite": "kites",
    "baseball bat": "baseball bats", "baseball glove": "baseball gloves", "skateboard": "skateboards",
    "surfboard": "surfboards", "tennis racket": "tennis rackets", "bottle": "bottles", "wine glass": "wine glasses",
    "cup": "cups", "fork": "forks", "knife": "knives", "spoon": "spoons", "bowl": "bowls", "banana": "bananas",
    "apple": "apples", "sandwich": "sandwiches", "orange": "oranges", "broccoli": "heads of broccoli",
    "carrot": "carrots", "hot dog": "hot dogs", "pizza": "pizzas", "donut": "donuts", "cake": "cakes",
    "chair": "chairs", "couch": "couches", "potted plant": "potted plants", "bed": "beds",
    "dining table": "dining tables", "toilet": "toilets", "tv": "tvs", "laptop": "laptops",
    "computer mouse": "computer mice", "tv remote": "tv remotes", "computer keyboard": "computer keyboards",
    "cell phone": "cell phones", "microwave": "microwaves", "oven": "ovens", "toaster": "toasters", "sink": "sinks",
    "refrigerator": "refrigerators", "book": "books", "clock": "clocks", "vase": "vases",
    "scissors": "pairs of scissors", "teddy bear": "teddy bears", "hair drier": "hair driers",
    "toothbrush": "toothbrushes",
}  # fmt: skip
"""COCO's 80 classes by GenEval's names, and several of them in words."""
MEASURES = {"skis": "pair of", "scissors": "pair of", "broccoli": "head of"}
"""How one of what has no plain singular is said: a pair of red skis."""
COUNTED = tuple(name for name in CLASSES if name not in MEASURES)  # what is one pair for us may be two for a detector
COLOURED = tuple(name for name in CLASSES if name != "person")
RELATIONS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above",),
    "below": ("below", "under"),
}
PLAIN_FRAME = "a photo of {0}"
FRAMES = (PLAIN_FRAME, "a picture of {0}", "an image of {0}", "a photograph of {0}", "a photo showing {0}", "{0}")


@dataclass(frozen=True)
class Request:
    """What a prompt asks for, and how that may be said; the first wording is the one of GenEval."""

    tag: str
    include: tuple[Mapping[str, Any], ...]
    wordings: tuple[str, ...]
    exclude: tuple[Mapping[str, Any], ...] = ()

    def prompt(self, position: int, frame: str, wording: str) -> Prompt:
        """The prompt in one wording."""
        exclude = {"exclude": [dict(item) for item in self.exclude]} if self.exclude else {}
        include = [dict(item) for item in self.include]
        return Prompt(
            position, frame.format(wording), {"tag": self.tag, "include": include, **exclude, "category": self.tag}
        )


def one(name: str, colour: str | None = None) -> str:
    """One of a class in words: a bench, an orange bench, a pair of red skis."""
    coloured = name if colour is None else f"{colour} {name}"
    words = f"{MEASURES[name]} {coloured}" if name in MEASURES else coloured
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _single_object(draws: random.Random) -> Request:
    name = draws.choice(CLASSES)
    return Request("single_object", ({"class": name, "count": 1},), (one(name),))


def _two_object(draws: random.Random) -> Request:
    first, second = draws.sample(CLASSES, 2)
    wordings = (
        f"{one(first)} and {one(second)}",
        f"{one(first)} with {one(second)}",
        f"{one(first)} next to {one(second)}",
    )
    return Request("two_object", ({"class": first, "count": 1}, {"class": second, "count": 1}), wordings)


def _counting(draws: random.Random) -> Request:
    name, count = draws.choice(COUNTED), draws.choice(list(NUMBERS))
    words = f"{NUMBERS[count]} {PLURALS[name]}"
    return Request(
        "counting",
        ({"class": name, "count": count},),
        (words, f"exactly {words}"),
        ({"class": name, "count": count + 1},),
    )


def _coloured(draws: random.Random, name: str, other_than: str = "") -> str:
    """A colour for a class; an orange is not asked for in orange, which would read as a slip."""
    return draws.choice([colour for colour in COLOURS if colour not in (name, other_than)])


def _colors(draws: random.Random) -> Request:
    name = draws.choice(COLOURED)
    colour = _coloured(draws, name)
    wordings = (one(name, colour), f"{one(name)} that is {colour}")
    return Request("colors", ({"class": name, "count": 1, "color": colour},), wordings)


def _position(draws: random.Random) -> Request:
    placed, other = draws.sample(CLASSES, 2)
    relation = draws.choice(list(RELATIONS))
    include = ({"class": other, "count": 1}, {"class": placed, "count": 1, "position": [relation, 0]})
    return Request("position", include, tuple(f"{one(placed)} {words} {one(other)}" for words in RELATIONS[relation]))


def _color_attr(draws: random.Random) -> Request:
    first, second = draws.sample(COLOURED, 2)
    colour = _coloured(draws, first)
    another = _coloured(draws, second, other_than=colour)
    include = ({"class": first, "count": 1, "color": colour}, {"class": second, "count": 1, "color": another})
    both = (one(first, colour), one(second, another))
    return Request("color_attr", include, (" and ".join(both), " with ".join(both)))


MAKERS: dict[str, Callable[[random.Random], Request]] = {
    "single_object": _single_object,
    "two_object": _two_object,
    "counting": _counting,
    "colors": _colors,
    "position": _position,
    "color_attr": _color_attr,
}


@dataclass(frozen=True)
class PromptStream:
    """An endless stream of random prompts with random access; the prompt at a position depends on the seed only.

    Of any len(categories) prompts from position k * len(categories) on, each category has one, in a random order: even
    shares by default. A category that is named twice comes twice as often.
    """

    seed: int
    categories: tuple[str, ...] = CATEGORIES

    def __post_init__(self) -> None:
        unknown = [name for name in self.categories if name not in CATEGORIES]
        if unknown or not self.categories:
            raise ValueError(
                f"categories of GenEval prompts are {', '.join(CATEGORIES)}, not {', '.join(unknown) or 'none'}"
            )

    def at(self, position: int) -> Prompt:
        """The prompt at one position of the stream."""
        block, place = divmod(position, len(self.categories))
        order = random.Random(seeds.key(self.seed, 0, block, 0, "geneval category order"))
        category = order.sample(self.categories, len(self.categories))[place]
        draws = random.Random(seeds.key(self.seed, 0, position, 0, "geneval prompt"))
        request = MAKERS[category](draws)
        return request.prompt(position, draws.choice(FRAMES), draws.choice(request.wordings))

    def batch(self, iteration: int, n: int) -> list[Prompt]:
        """The prompts at positions iteration * n ... iteration * n + n - 1."""
        return [self.at(position) for position in range(iteration * n, iteration * n + n)]


def fixed(n: int) -> list[Prompt]:
    """The list for evaluations: n prompts, categories in turn, each in GenEval's own wording.

    Positions are 0..n-1. A shorter list is the beginning of a longer one. Texts repeat only where a category has no
    more: single_object after its 80 classes, counting after most of its 231 requests.
    """
    made: list[Prompt] = []
    classes = random.Random(seeds.key(0, 0, 0, 0, "geneval fixed classes")).sample(CLASSES, len(CLASSES))
    taken: set[str] = set()
    for position in range(n):
        turn, place = divmod(position, len(CATEGORIES))
        draws = random.Random(seeds.key(0, 0, position, 0, "geneval fixed"))
        if CATEGORIES[place] == "single_object":
            name = classes[turn % len(classes)]
            request = Request("single_object", ({"class": name, "count": 1},), (one(name),))
        else:
            request = _new(MAKERS[CATEGORIES[place]], draws, taken)
        taken.add(request.wordings[0])
        made.append(request.prompt(position, PLAIN_FRAME, request.wordings[0]))
    return made


def _new(maker: Callable[[random.Random], Request], draws: random.Random, taken: set[str], tries: int = 100) -> Request:
    """A request that is not taken yet, if one is found in some tries (counting has 231 only)."""
    request = maker(draws)
    for _ in range(tries):
        if request.wordings[0] not in taken:
            break
        request = maker(draws)
    return request
