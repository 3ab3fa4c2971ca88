"""The embedded worlds by name: prompts, demonstrations, a judge, and the micro model that is grown for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from unigrpo.evaluation.evaluator import Judge
from unigrpo.evaluation.suites import Figures
from unigrpo.ranges import lacking
from unigrpo.rewards.answers import RewardFault
from unigrpo.rewards.ocr import PACKAGES, OcrText, plain
from unigrpo.rewards.protocol import RewardOutput
from unigrpo.training.sources import PromptSource
from unigrpo.trajectory import Prompt
from unigrpo.worlds import shapes
from unigrpo.worlds.demonstrations import Teacher
from unigrpo.worlds.shapes import demonstrations as shapes_demonstrations
from unigrpo.worlds.shapes import edit_prompts, revisions
from unigrpo.worlds.shapes import looking as shapes_looking
from unigrpo.worlds.shapes import tasks as shapes_tasks
from unigrpo.worlds.shapes.edit_reading import parse_edit, read_source
from unigrpo.worlds.shapes.edit_verifier import is_multiple
from unigrpo.worlds.shapes.edits import edit_of, is_edit
from unigrpo.worlds.shapes.scenes import requirements
from unigrpo.worlds.words import demonstrations as words_demonstrations
from unigrpo.worlds.words import planner as words_planner
from unigrpo.worlds.words import prompts as words_prompts
from unigrpo.worlds.words import renderer as words_renderer
from unigrpo.worlds.words import tasks as words_tasks


@dataclass(frozen=True)
class EmbeddedWorld:
    """A small world that ships with the package.

    splits: of its prompts, ``name:split``; stream, fixed: prompts to train and to evaluate on; teacher: demonstrations;
    vocabulary, spells, image_size, autoencoder: what its micro model is grown from (``start`` is that model's name);
    understand: a person's prompt in the world's spelling, with the requirements to judge it by; requires: their key;
    judge: of evaluations; packages, extra: what the judge needs, and what brings it; rewards: names of rewards that
    judge this world's pictures, each with what raises a ValueError where metadata lack what it reads (None: it reads
    none); questions: held-out (kind, question, answer, picture) about its pictures, None where it has none;
    looking_words: further words of demonstrations that look at pictures; further: more figures of an evaluation, from
    its records; understand_edit: an instruction and the picture that it is about, read as ``understand`` does (None:
    nothing is edited); seeing: the shipped model that edits pictures ("": there is none).
    """

    name: str
    splits: tuple[str, ...]
    stream: Callable[[str, int], PromptSource]
    fixed: Callable[[str, int], list[Prompt]]
    teacher: Teacher[Any]
    start: str
    vocabulary: Callable[[], list[str]]
    spells: bool
    image_size: tuple[int, int]
    autoencoder: str
    understand: Callable[[str], tuple[str, Mapping[str, Any]]]
    requires: str
    judge: Judge
    rewards: Mapping[str, Callable[[Mapping[str, Any]], object] | None]
    packages: tuple[str, ...] = ()
    extra: str = ""
    questions: Callable[[int], list[tuple[str, str, str, Tensor]]] | None = None
    looking_words: Callable[[], tuple[str, ...]] = tuple
    understand_edit: Callable[[str, Tensor], tuple[str, Mapping[str, Any]]] | None = None
    further: Figures | None = None
    seeing: str = ""

    @property
    def can_judge(self) -> bool:
        """Whether the packages of the judge are installed; a picture can be drawn without."""
        return not self._lacks

    @property
    def _lacks(self) -> list[str]:
        return [package for package in self.packages if find_spec(package) is None]

    def check_judge(self) -> None:
        """ConfigError where the judge lacks a package."""
        if self._lacks:
            raise lacking(f"the judge of the {self.name} world", self._lacks[0], self.extra)


def _shapes_understood(text: str) -> tuple[str, Mapping[str, Any]]:
    known = dict(shapes.parse_prompt(text))
    return shapes.normalise_prompt(text), known


def _shapes_edit_understood(text: str, picture: Tensor) -> tuple[str, Mapping[str, Any]]:
    edit = parse_edit(text, read_source(picture))
    return edit.instruction, edit.metadata()


def _shapes_stream(split: str, seed: int) -> PromptSource:
    return edit_prompts.EditStream(split, seed) if split in edit_prompts.SPLITS else shapes.PromptStream(split, seed)


def _shapes_fixed(split: str, n: int) -> list[Prompt]:
    return edit_prompts.fixed_edits(split, n) if split in edit_prompts.SPLITS else shapes.fixed(split, n)


def _words_understood(text: str) -> tuple[str, Mapping[str, Any]]:
    known = words_prompts.parse_prompt(text)
    return words_prompts.normalise_prompt(text), known


class LineReader(OcrText):
    """The OCR of the words world: every picture is one line of text, and has that world's size."""

    def __init__(self) -> None:
        super().__init__(detect=False)

    def __call__(
        self,
        images: Tensor,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
        thinking: Sequence[str | None],
    ) -> RewardOutput:
        """Read pictures of the words world."""
        check_pictures(READER, images, words_renderer.IMAGE_SIZE)
        return super().__call__(images, prompts, metadata, thinking)


@cache
def line_reader() -> OcrText:
    """The OCR of the words world, loaded when it is first asked."""
    return LineReader()


def check_pictures(reward: str, images: Tensor, size: tuple[int, int]) -> None:
    """RewardFault where pictures have another size than the world that a reward judges."""
    (height, width), (high, wide) = images.shape[-2:], size
    if (height, width) != size:
        raise RewardFault(
            f"reward {reward!r} judges pictures of {high} x {wide} pixels, and these have {height} x {width}: is it a "
            "sheet? unigrpo generate --out FOLDER writes pictures one by one"
        )


def _read(images: Tensor) -> list[str]:
    return [plain(text).upper() for text in line_reader().read(images)]


def _words_judge(images: Tensor, prompts: Sequence[Prompt], thinking: Sequence[str | None]) -> list[dict[str, Any]]:
    return words_tasks.judge_pictures(_read, images, prompts, thinking)


VERIFIER, EDIT, PREFERENCE = "shapes/verifier", "shapes/edit", "shapes/preference"
READER = "words/ocr"
SHAPES = EmbeddedWorld(
    name="shapes",
    splits=(*shapes.SPLITS, *edit_prompts.SPLITS),
    stream=_shapes_stream,
    fixed=_shapes_fixed,
    teacher=shapes_demonstrations.TEACHER,
    start="init:micro",
    vocabulary=shapes.vocabulary,
    spells=False,
    image_size=(shapes.IMAGE_SIZE, shapes.IMAGE_SIZE),
    autoencoder="shapes-autoencoder",
    understand=_shapes_understood,
    requires="objects",
    judge=shapes_tasks.judge_pictures,
    rewards={VERIFIER: requirements, EDIT: edit_of, PREFERENCE: None},
    questions=shapes_looking.held_out_questions,
    looking_words=shapes_looking.further_words,
    understand_edit=_shapes_edit_understood,
    further=revisions.further,
    seeing="builtin:shapes-edits",
)
WORDS = EmbeddedWorld(
    name="words",
    splits=words_prompts.SPLITS,
    stream=words_prompts.PromptStream,
    fixed=words_prompts.fixed,
    teacher=words_demonstrations.TEACHER,
    start="init:micro-words",
    vocabulary=words_planner.vocabulary,
    spells=True,
    image_size=words_renderer.IMAGE_SIZE,
    autoencoder="words-autoencoder",
    understand=_words_understood,
    requires="word",
    judge=_words_judge,
    rewards={READER: words_prompts.wanted},
    packages=PACKAGES,
    extra="ocr",
)
EMBEDDED = {world.name: world for world in (SHAPES, WORDS)}


def is_scaled(name: str) -> bool:
    """Whether a data set or a reward of edits takes pictures that are larger than the world's, k times a side."""
    return name == EDIT or name.startswith("shapes:edit-large")


def reads(world: EmbeddedWorld, prompt: Prompt, size: tuple[int, int]) -> bool:
    """Whether the rules of a world read a picture of (height, width) that was drawn for a prompt."""
    return size == world.image_size or (is_edit(prompt.metadata) and is_multiple(*size))


def can_judge(world: EmbeddedWorld, prompt: Prompt, size: tuple[int, int]) -> bool:
    """Whether the rules of a world are here, know what a prompt asks for, and read a picture of (height, width)."""
    known = world.requires in prompt.metadata or is_edit(prompt.metadata)
    return world.can_judge and known and reads(world, prompt, size)


def named(name: str) -> EmbeddedWorld | None:
    """The world of ``shapes``, ``words:train`` ...; None where the name is of something else."""
    return EMBEDDED.get(name.partition(":")[0])


def started_by(path: str) -> EmbeddedWorld | None:
    """The world whose micro model a name of a new model means (``init:micro``)."""
    return next((world for world in EMBEDDED.values() if world.start == path), None)


def judging(reward: str) -> EmbeddedWorld | None:
    """The world whose pictures a reward judges; None for rewards of any pictures."""
    return next((world for world in EMBEDDED.values() if reward in world.rewards), None)


def speaking(words: frozenset[str] | None) -> EmbeddedWorld | None:
    """The world that a model of a closed vocabulary was made for; None for all others."""
    if words is None:
        return None
    return next((world for world in EMBEDDED.values() if words >= set(world.vocabulary())), None)


def seeing(name: str, words: frozenset[str] | None) -> str:
    """The shipped model that can edit pictures, of the world of a prompt set or of a model's words; "" if none."""
    world = speaking(words) or (None if is_scaled(name) else named(name))
    return "" if world is None else world.seeing


def known_of(reward: str, prompt: str, given: Sequence[Tensor] = ()) -> Mapping[str, Any]:
    """What a reward of a world is told of a prompt in that world's words; ValueError for other words.

    given: the pictures uint8 [3, H, W] that the prompt is about, where it is an edit.
    """
    world = judging(reward)
    if world is None or world.rewards[reward] is None:
        return {}
    if reward != EDIT:
        return world.understand(prompt)[1]
    if len(given) != 1 or tuple(given[0].shape[1:]) != world.image_size:
        high, wide = world.image_size
        raise ValueError(f"{EDIT} needs the one picture of {wide} x {high} pixels that was edited: --source FILE")
    return _shapes_edit_understood(prompt, given[0])[1]
