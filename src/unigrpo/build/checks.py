"""What can be known before a model is loaded: its folder, and every row that it is to be trained or evaluated on."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from unigrpo import plurals
from unigrpo.build import data, families, models, worlds
from unigrpo.build.grown import grown_by
from unigrpo.build.row_checks import Shown, any_metadata, metadata_check
from unigrpo.data_names import HUB, split_name
from unigrpo.models.bagel_files.checkpoint import load_autoencoder
from unigrpo.models.bagel_files.opening import Opened, open_folder
from unigrpo.models.bagel_files.public import HUB_ID, cached
from unigrpo.models.micro import micro_config, micro_tokenizer
from unigrpo.policy import Reads, SeesNothing, UnknownWords
from unigrpo.ranges import ConfigError
from unigrpo.recipe import DemonstrationData, PromptData, Recipe, Scorer
from unigrpo.training.lora import CONFIG as ADAPTER
from unigrpo.training.lora import Adapter
from unigrpo.training.sinks import openers
from unigrpo.trajectory import Prompt
from unigrpo.worlds.checking import check_pairs, check_prompts
from unigrpo.worlds.pairs import PairRow
from unigrpo.worlds.prompt_files import Row, RowPrompts
from unigrpo.worlds.shapes.edit_verifier import is_multiple

SAMPLE = 1000
"""How many prompts of a stream without end are looked at."""

ALL = 10**9

# Models


def opened(path: str) -> Reads:
    """Look into a model without reading its weights; a hub id is downloaded. ValueError says what is wrong."""
    if (own := families.own(path)) is not None:
        return own.family.look(own.folder)
    if (world := worlds.started_by(path)) is not None:
        tokenizer = micro_tokenizer(world.vocabulary(), spells=world.spells)
        autoencoder = load_autoencoder(models.builtin_folder(world.autoencoder))
        config = micro_config(tokenizer.inner.get_vocab_size(), autoencoder, image_size=world.image_size)
        return Opened(config, tokenizer, public=False)
    if (grown := grown_by(path)) is not None:
        return Opened(*grown.opened(models.builtin_folder(grown.of)), public=False)
    folder = models.model_folder(path)
    if (folder / ADAPTER).is_file() and (base := Adapter.base_of(folder)) is not None:
        return opened(base)
    return open_folder(folder)


def opened_here(path: str) -> Reads | None:
    """The same without a download: None for a hub id that is not on this disk."""
    if (
        path.startswith(("builtin:", "init:"))
        or families.is_own(path)
        or not (Path(path).is_dir() or re.fullmatch(HUB_ID, path))
    ):
        return opened(path)  # a name that cannot be a hub id either is refused there
    folder = models.model_folder(path) if Path(path).is_dir() else cached(path)
    if folder is not None and (folder / ADAPTER).is_file() and (base := Adapter.base_of(folder)) is not None:
        return opened_here(base)
    return None if folder is None else open_folder(folder)


# Runs


def check_data(recipes: Sequence[Recipe]) -> None:
    """Look at loggers and at every row of the data of a run (of all its stages) before anything is loaded.

    ConfigError lists the first rows that cannot be used, by this model or at all.
    """
    _check_loggers(recipes)
    Looked(opened(recipes[0].model.path)).at(recipes)


def _check_loggers(recipes: Sequence[Recipe]) -> None:
    openers([name for recipe in recipes for name in recipe.log])


def check_here(recipes: Sequence[Recipe]) -> list[str]:
    """The same for a dry run, which downloads nothing; returns notes of what is not on this disk."""
    _check_loggers(recipes)
    path = recipes[0].model.path
    looked = Looked(opened_here(path), download=False)
    looked.at(recipes)
    absent = [f"model.path {path}"] if looked.model is None else []
    return [f"{name} is not on this disk: only the run will check it" for name in [*absent, *looked.absent]]


def check_suite(name: str, limit: int, path: str, scorers: Sequence[Scorer] = ()) -> None:
    """Look at the first ``limit`` prompts of a suite, for the model ``path`` and some rewards."""
    Looked(opened(path)).suite(name, limit, metadata_check(scorers))


def check_listed(name: str, prompts: Iterable[Prompt], path: str) -> None:
    """Look at the prompts of a list called ``name``, for the model ``path``."""
    Looked(opened(path)).listed(name, prompts)


def check_drawn(name: str, path: str, read: Callable[[Reads, Row], None]) -> None:
    """Look at all prompts of a file that are to be drawn; ``read`` knows how the model ``path`` is told of them."""
    Looked(opened(path), read=read).suite(name, ALL)


def read_row(model: Reads, row: Row) -> None:
    """Read a row's words as the model does."""
    model.read(row.text, len(row.pictures))


@dataclass
class Looked:
    """What a model (None: it is not here) is to read; each file is looked at once, whoever names it."""

    model: Reads | None
    download: bool = True
    read: Callable[[Reads, Row], None] = read_row
    done: set[tuple[Hashable, str]] = field(default_factory=set)
    absent: list[str] = field(default_factory=list)
    pictures: dict[Path, str | None] = field(default_factory=dict)
    unknown: bool = False

    def at(self, recipes: Sequence[Recipe]) -> None:
        """Look at all data of some recipes."""
        for recipe in recipes:
            given = recipe.data
            if self.model is not None:
                self._model(recipe, self.model)
            if isinstance(given, PromptData):
                judge = metadata_check(recipe.reward.train)
                look = partial(self._prompts, given.prompts, recipe.seed, judge)
                self._once(("prompts", judge), given.prompts, look)
            else:
                words_alone = recipe.method.ignores_pictures
                self._once(
                    ("pairs", words_alone), given.demonstrations, partial(self._pairs, recipe, given, words_alone)
                )
            limit, judge = max(recipe.eval.limit, recipe.eval.compare_limit), metadata_check(recipe.reward.validation)
            judge = judge if recipe.eval.image_guidance == 1 else Shown(judge, recipe.eval.image_guidance)
            look = partial(self.suite, recipe.eval.prompts, limit, judge)
            self._once(("suite", limit, judge), recipe.eval.prompts, look)

    def _model(self, recipe: Recipe, model: Reads) -> None:
        side = recipe.rollout.image_size
        if side is not None:
            model.check_size((side, side))
        check_size(recipe, model.image_size if side is None else (side, side))
        if recipe.rollout.think or recipe.eval.think:
            model.read(model.thinks_after)

    def _once(self, how: Hashable, name: str, look: Callable[[], None]) -> None:
        if not self.download and not is_here(name):
            self.absent += [name] if name not in self.absent else []
        elif (how, name) not in self.done:
            look()
            self.done.add((how, name))

    def _prompts(self, name: str, seed: int, judge: Callable[[Row], None]) -> None:
        source = data.prompts(name, seed)
        if isinstance(source, RowPrompts):
            self._rows(source.name, source.rows, judge)
        else:
            self._world(name, source.batch(0, SAMPLE), judge)

    def suite(self, name: str, limit: int, judge: Callable[[Row], None] = any_metadata) -> None:
        """Look at the first prompts of a suite."""
        suite = data.suite(name)
        if suite.rows is not None:
            self._rows(suite.rows.name, suite.rows.rows, judge, limit)
        else:
            self._world(name, suite.prompts(min(limit, SAMPLE)), judge)

    def listed(self, name: str, prompts: Iterable[Prompt]) -> None:
        """Look at the prompts of a list."""
        self._world(name, prompts, any_metadata)

    def _world(self, name: str, prompts: Iterable[Prompt], judge: Callable[[Row], None]) -> None:
        with self._words():
            for prompt in prompts:
                row = Row(name, prompt.text, prompt.metadata, (b"",) * len(prompt.images))  # which are only counted
                self._text(row)
                judge(row)

    def _rows(self, name: str, rows: Sequence[Row], judge: Callable[[Row], None], limit: int | None = None) -> None:
        def words(row: Row) -> None:
            self._text(row)
            judge(row)

        with self._words(), counted(name, min(len(rows), limit or len(rows))) as advance:
            check_prompts(name, rows, words, self.pictures, limit=limit, advance=advance)

    def _pairs(self, recipe: Recipe, given: DemonstrationData, words_alone: bool) -> None:
        if (world := worlds.EMBEDDED.get(given.demonstrations)) is not None:
            further = world.looking_words() if any(given.mix.looking().values()) else ()
            self._world(world.name, [Prompt(0, word) for word in (*world.vocabulary(), *further)], any_metadata)
            return
        found = data.own_demonstrations(recipe, given)

        def words(pair: PairRow) -> None:
            self._text(pair.row)
            if pair.thinking is not None:
                self._text(Row(pair.row.where, pair.thinking))
            elif words_alone:
                raise ConfigError(
                    f"{pair.row.where} has no thinking, and method.mse_weight = 0 leaves nothing else to learn from it"
                )

        with self._words(), counted(found.name, len(found.rows)) as advance:
            check_pairs(found.name, found.rows, words, self.pictures, advance=advance)

    def _text(self, row: Row) -> None:
        if self.model is None:
            return
        try:
            self.read(self.model, row)
        except ValueError as error:
            self.unknown |= isinstance(error, UnknownWords)
            shipped = worlds.seeing(row.where, self.model.words) if isinstance(error, SeesNothing) else ""
            change = f"; name a model that can: {shipped}" if shipped else ""
            raise ConfigError(f"{row.where}: {error}{change}") from error

    @contextmanager
    def _words(self) -> Iterator[None]:
        """Say once which words a model knows, where one was met that it does not."""
        try:
            yield
        except ConfigError as error:
            if not self.unknown or self.model is None:
                raise
            raise ConfigError(f"{error}\nthe model knows: {', '.join(sorted(self.model.words or ()))}") from error


def is_here(name: str) -> bool:
    """Whether prompts or demonstrations can be read without a download: a world's are in the package."""
    if name.startswith(HUB):
        return Path(name.removeprefix(HUB).split(":")[0]).expanduser().is_dir()
    found = split_name(name)
    return found is None or found[0].exists()


@contextmanager
def counted(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Say on stderr that rows are looked at, and on a terminal how far; yields what is to be told of finished rows."""
    from rich.console import Console
    from rich.progress import Progress

    print(f"checking {plurals.counted(total, 'row', ',')} of {name} ...", file=sys.stderr, flush=True)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("checking", total=total)
        yield lambda rows: progress.advance(task, rows)


def check_size(recipe: Recipe, image_size: tuple[int, int]) -> None:
    """ConfigError where a world is to be drawn at a size that it does not have."""
    given = recipe.data
    names = [given.demonstrations if isinstance(given, DemonstrationData) else given.prompts, recipe.eval.prompts]
    used = [(name, worlds.named(name)) for name in names]
    used += [(s.name, worlds.judging(s.name)) for s in (*recipe.reward.train, *recipe.reward.validation)]
    (height, width) = image_size
    for name, world in used:
        if world is None or world.image_size == image_size or (worlds.is_scaled(name) and is_multiple(*image_size)):
            continue
        high, wide = world.image_size
        back = "" if recipe.rollout.image_size is None else "leave out rollout.image_size, "
        raise ConfigError(
            f"{name} is of the {world.name} world, whose pictures have {high} x {wide} pixels, and the model would "
            f"draw {height} x {width}: {back}name prompts and rewards of one world, or set model.path to a model of "
            f"that world (builtin:{world.name}-sft)"
        )
