"""A thousand broken recipes: each is refused with exit code 2 and one sentence, as a file, an override, or a run's."""

import copy
import functools
import os
import random
from collections.abc import Callable

import pytest
import yaml

from unigrpo import cli, options
from unigrpo.commands import train as training
from unigrpo.recipe import keys, load_stages, sources
from unigrpo.recipe.notation import LARGEST

BROKEN, BYTES, OVERRIDES = 1000, 150, 100
BASES = ("shapes/unigrpo", "shapes/pretrain", "shapes/diffusion-nft", "paper/refl-textgrpo", "bagel/unigrpo-lora-1gpu")
REQUIRED = ("name", "iterations", "model", "model.path", "data", "reward", "reward.validation", "eval", "eval.prompts")
HOLE = "HOLE"
ANYWHERE = (  # what no key takes
    *("!!bool maybe", "!!timestamp x", "!!timestamp 2024-01-01", "!!int x", "!!float x", "!!null x", "!!binary aGk="),
    *("!!set {a, b}", "!!omap [a: 1]", "!!python/name:os.system", "!!python/object/apply:os.system [ls]", "!mine 3"),
    *("!!seq {a: 1}", "!!map [1]", "!!str [1]", "!!merge x", "&a 3", "*a", "&a [*a]", "{a: 1}", "{<<: {a: 1}}", "[{}]"),
    *("[" * 2000, "[" * 40 + "]" * 40, "{a: " * 2000, "{a: " * 40 + "1" + "}" * 40, "? " * 2000, "[[1, 2], [3]]"),
    *(".inf", "-.inf", ".nan", "2024-01-01", "2024-01-01 10:00:00", "9" * 60, "-" + "9" * 70, "9" * 5000, "1e400"),
    *(
        '"\\ud800"',
        '"\\UFFFFFFFF"',
        '"\\0"',
        '"\\e[31m"',
        '"unclosed',
        "[1, 2",
        "{a: 1",
        "'",
        "a: b: c",
        "%",
        "@x",
        "`",
    ),
)
KEYS = (
    "1",
    "1.5",
    "true",
    "null",
    "~",
    "[a]",
    "{a: b}",
    "[[a]]",
    "2024-01-01",
    ".inf",
    "!!int 3",
    "<<",
    "&a b",
    "x" * 200,
)


@functools.cache
def shipped(name: str) -> dict:
    return sources.resolved(sources.find(name, sources.Path()))


def written(name: str) -> dict:
    return copy.deepcopy(shipped(name))


def places(section: dict, before: tuple = ()) -> list[tuple]:
    """The paths of all keys, also of those in stages."""
    found = []
    for key, value in section.items():
        inner = enumerate(value) if key == "stages" else [(None, value)]
        found += [] if key == "stages" else [(*before, key)]
        for number, part in inner:
            if isinstance(part, dict):
                found += places(part, (*before, key) if number is None else (*before, key, number))
    return found


def section_of(recipe: dict, place: tuple) -> dict:
    for part in place[:-1]:
        recipe = recipe[part]
    return recipe


def dumped(recipe: dict, rng: random.Random) -> str:
    return yaml.dump(recipe, default_flow_style=rng.choice((None, False, True)), sort_keys=False, width=10**6)


def filled(recipe: dict, place: tuple, token: str, rng: random.Random) -> str:
    """A recipe in which one value is a token, as it stands."""
    section_of(recipe, place)[place[-1]] = HOLE
    return dumped(recipe, rng).replace(HOLE, token, 1)


# Each of these breaks a recipe for certain


def value(recipe: dict, rng: random.Random) -> str:
    return filled(recipe, rng.choice(places(recipe)), rng.choice(ANYWHERE), rng)


def number(recipe: dict, rng: random.Random) -> str:
    """A number beyond its range, or of the wrong type."""
    numbers = [p for p in places(recipe) if isinstance(section_of(recipe, p)[p[-1]], int | float)]
    too_much = ("-1", "1e10", "-1e300", "9" * 19, "-0.5", "words", "'3'", "[3]", "true", "false", "yes", "0x10", "1_0")
    numbers = [p for p in numbers if not isinstance(section_of(recipe, p)[p[-1]], bool)]
    place = rng.choice(numbers)
    return filled(recipe, place, rng.choice([t for t in too_much if place[-1] != "seed" or t != "9" * 19]), rng)


def unknown_key(recipe: dict, rng: random.Random) -> str:
    section_of(recipe, place := rng.choice(places(recipe)))[f"{place[-1]}{rng.choice('xyz_-é')}"] = 1
    return dumped(recipe, rng)


def strange_key(recipe: dict, rng: random.Random) -> str:
    section_of(recipe, rng.choice(places(recipe)))[HOLE] = 1
    key = rng.choice(KEYS)
    return dumped(recipe, rng).replace(HOLE, key, 1)


def twice(recipe: dict, rng: random.Random) -> str:
    key = rng.choice([key for key in recipe if key != "stages"])
    return yaml.dump(recipe, default_flow_style=None, sort_keys=False) + f"{key}: 1\n"


def without(recipe: dict, rng: random.Random) -> str:
    place = tuple(rng.choice(REQUIRED).split("."))
    del section_of(recipe, place)[place[-1]]
    return dumped(recipe, rng)


def no_section(recipe: dict, rng: random.Random) -> str:
    sections = [key for key in recipe if isinstance(recipe[key], dict | list)]
    return filled(recipe, (rng.choice(sections),), rng.choice(("3", "words", "[1, 2]", "true", "''", "[]", "1.5")), rng)


def another_whole(recipe: dict, rng: random.Random) -> str:
    return rng.choice(("", "# nothing", "words", "3", "- a\n- b", "[]", "{}", "---\n", "null", "--- a\n--- b", "..."))


def stages(recipe: dict, rng: random.Random) -> str:
    token = rng.choice(("3", "[]", "{}", "[1]", "[{}]", "[{name: 3}]", "[{name: a/b}]", "null", f"[{'a, ' * 101}]"))
    return filled(recipe, ("stages",), token, rng)


def extends(recipe: dict, rng: random.Random) -> str:
    token = rng.choice(
        ("3", "[]", "shapes/unigrp", "none.yaml", "broken.yaml", "recipe.yaml", ".", "''", "paper/refl-textgrpo")
    )
    recipe["extends"] = HOLE
    return dumped(recipe, rng).replace(HOLE, token, 1)


def layout(recipe: dict, rng: random.Random) -> str:
    text = yaml.dump(recipe, default_flow_style=None, sort_keys=False)
    end = rng.choice(
        ("\n---\na: 1\n", "\tseed: 1\n", "extra: [1, 2\n", "seed\n", "  seed: 1\n  - a\n", "]\n", "extra: 'a\n")
    )
    return text + end


def characters(recipe: dict, rng: random.Random) -> bytes:
    """Bytes that no text has, anywhere (in a comment, too)."""
    data = ("# words\n" + dumped(recipe, rng)).encode()
    place = rng.randrange(len(data))
    bad = rng.choice((b"\0", b"\x07", b"\x1b", b"\x7f", b"\xff", b"\xc3(", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80"))
    return data[:place] + bad + data[place:]


def another_encoding(recipe: dict, rng: random.Random) -> bytes:
    return dumped(recipe, rng).encode(rng.choice(("utf-16", "utf-16-le", "utf-32")))


def junk(recipe: dict, rng: random.Random) -> bytes:
    return rng.choice((b"\x89PNG\r\n", b"PK\3\4", b"\0\0", b"\x7fELF")) + rng.randbytes(rng.randrange(1, 400))


def too_large(recipe: dict, rng: random.Random) -> bytes:
    return dumped(recipe, rng).encode() + b"#" * LARGEST


FILES: tuple[Callable, ...] = (
    value,
    value,
    value,
    value,
    number,
    number,
    number,
    unknown_key,
    strange_key,
    strange_key,
)
FILES += (twice, without, no_section, another_whole, stages, extends, layout, characters, another_encoding, junk)


def refused_as(capsys, verb: options.Train, overrides=()) -> str:
    """The one line that a command says before it ends with exit code 2."""
    assert cli.guarded(lambda: training.run(verb, overrides)) == 2
    said = capsys.readouterr()
    assert not said.out and said.err.startswith("unigrpo: error: ") and said.err.endswith("\n")
    assert said.err[:-1].isprintable() and 40 < len(said.err) < 1000, said.err
    return said.err


def broken(number: int) -> bytes:
    rng = random.Random(number)
    recipe = written(BASES[number % len(BASES)])
    made = FILES[number // len(BASES) % len(FILES)](recipe, rng)
    return made if isinstance(made, bytes) else made.encode()


@pytest.mark.parametrize("part", range(8))
def test_a_thousand_broken_recipes_are_refused_with_a_sentence(part, tmp_path, monkeypatch, capsys):
    """Every fourth of them is the recipe of a run that is to be resumed."""
    monkeypatch.chdir(tmp_path)
    for number in range(part, BROKEN, 8):
        path = tmp_path / ("recipe.yaml" if number % 4 == 0 else "broken.yaml")
        path.write_bytes(broken(number))
        verb = options.Train(str(path), dry_run=True)
        if number % 4 == 0:
            verb = options.Train("shapes/unigrpo", out=tmp_path, resume=True, dry_run=True)
        try:
            refused_as(capsys, verb)
        except BaseException as error:
            raise AssertionError(f"recipe {number}: {path.read_bytes()[:2000]!r}") from error


def test_broken_overrides_are_refused_with_a_sentence(capsys):
    rng = random.Random(0)
    for number in range(OVERRIDES):
        base = BASES[number % 3]
        names = [key.name for key in keys.keys_of(written(base)["method"]["name"]) if "[]" not in key.name]
        key, token = rng.choice(names), rng.choice(ANYWHERE)
        said = refused_as(capsys, options.Train(base, dry_run=True), [f"--{key}={token}"])
        assert key.split(".")[-1] in said or key.split(".")[0] in said
    for words in (
        ["--" + "a." * 3000 + "b=1"],
        ["--\udcff=1"],
        ["--a\tb=1"],
        ["--\x1b[31m=1"],
        ["--seed", "9" * 200_000],
    ):
        refused_as(capsys, options.Train("shapes/unigrpo", dry_run=True), words)


def test_a_recipe_file_that_is_too_large_is_refused(tmp_path, capsys):
    path = tmp_path / "large.yaml"
    path.write_bytes(too_large(written("shapes/unigrpo"), random.Random(0)))
    assert f"more than {LARGEST} bytes" in refused_as(capsys, options.Train(str(path), dry_run=True))


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_what_is_no_file_is_refused_and_not_waited_for(kind, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "link": lambda: path.symlink_to("nowhere")}[kind]()
    said = refused_as(capsys, options.Train(str(path), dry_run=True))
    assert ("cannot be read" if kind == "link" else "is not a file") in said


def test_damaged_bytes_never_end_in_a_traceback(tmp_path, capsys):
    """What is left may still be a recipe."""
    path, codes = tmp_path / "damaged.yaml", set()
    for number in range(BYTES):
        rng = random.Random(number)
        data = bytearray(yaml.dump(written(BASES[number % len(BASES)]), sort_keys=False).encode())
        for _ in range(rng.randrange(1, 6)):
            place, byte = rng.randrange(len(data)), rng.choice(b"\0\n\t :-[]{}&*!|>'\"%@`#,?0159eEx.\xff\xc3")
            data[place : place + rng.randrange(2)] = bytes([byte])
        path.write_bytes(data)
        codes.add(cli.guarded(lambda: load_stages(path) and 0))
        capsys.readouterr()
    assert codes == {0, 2}
