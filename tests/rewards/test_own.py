"""A reward of one's own: registered, or named by file or module; a function, a class, a factory; found again later."""

import functools
import importlib.util
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from unigrpo import cli, loading
from unigrpo.ranges import ConfigError
from unigrpo.recipe import Scorer as RecipeScorer
from unigrpo.recipe import load_recipe, to_yaml
from unigrpo.recipe.references import absolute_own_name
from unigrpo.rewards import registry
from unigrpo.rewards.making import made
from unigrpo.rewards.origins import origin_of, read_origin
from unigrpo.rewards.protocol import DifferentiableReward

GIVEN = (torch.ones(1, 3, 4, 4), ["a"], [{}], [None])


@pytest.fixture(autouse=True)
def own_names(monkeypatch, tmp_path):
    for name in ("_FACTORIES", "_ORIGINS", "_RECALLED"):
        monkeypatch.setattr(registry, name, {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)


def plain(images, prompts, metadata, thinking):
    return ["plain"]


def with_settings(images, prompts, metadata, thinking, sharpness=2):
    return ["settings"]


def in_another_order(prompts, images, *, thinking, metadata):
    assert isinstance(images, torch.Tensor) and prompts == ["a"]
    return ["order"]


async def waiting(images, prompts, metadata, thinking):
    return ["waits"]


class Scorer:
    def __init__(self, sharpness=2):
        self.sharpness = sharpness

    def __call__(self, images, prompts, metadata, thinking):
        return ["class"]


class Differentiable(DifferentiableReward):
    def score(self, images, prompts, metadata):
        return images.mean((1, 2, 3))


def factory(sharpness=2):
    return plain


@pytest.mark.parametrize(
    "thing",
    [
        plain,
        with_settings,
        in_another_order,
        Scorer,
        Scorer(),
        Differentiable,
        factory,
        functools.partial(plain),
        functools.partial(with_settings, sharpness=3),
        lambda: plain,
        lambda: Scorer(),
        lambda: in_another_order,
        lambda *given: ["any"],
        torch.nn.Identity,
    ],
)
def test_a_reward_may_be_given_itself_or_as_what_builds_it(thing):
    registry.register("mine", thing)
    reward = registry.build("mine")
    if isinstance(reward, torch.nn.Module):
        assert reward(*GIVEN[:1]) is GIVEN[0]  # a module says nothing of what it takes, and is taken at its word
    else:
        assert len(reward(*GIVEN).values if thing is Differentiable else reward(*GIVEN)) == 1


def test_what_needs_more_is_told_what_a_reward_takes():
    class NeedsMore:
        def __init__(self, path):
            pass

    def fails():
        return open("weights.bin")

    for thing, said in (
        (
            lambda images, prompts: [1.0],
            "there is nothing for images, prompts: a reward takes .images, prompts, metadata",
        ),
        (NeedsMore, r"needs path: set its args, .path: "),
        ([1.0], "is an object of the type list, not a function"),
        (lambda: [1.0], "what its factory built is an object of the type list"),
        (lambda: lambda images: [1.0], r"what its factory built takes \(images\)"),
        (lambda: NeedsMore, r"what its factory built takes \(path\)"),
        (fails, "cannot be built: FileNotFoundError: .*weights.bin"),
        (lambda: sys.exit(1), "cannot be built: SystemExit"),
    ):
        with pytest.raises(ConfigError, match=f"reward 'mine'.* {said}"):
            made("mine", thing)


def test_the_examples_of_the_guide_work(monkeypatch, tmp_path):
    guide = (
        (Path(__file__).parents[2] / "docs" / "guide.md").read_text(encoding="utf-8").partition("## Your own reward")[2]
    )
    first, second = (block.partition("```")[0] for block in guide.split("```python\n")[1:3])
    write(tmp_path / "mine.py", first)
    assert registry.build("mine.py:brightness")(*GIVEN).tolist() == [1.0]
    called = []
    monkeypatch.setattr(cli, "main", called.append)
    exec(first + second, {"__name__": "__main__"})
    assert registry.build("mine/brightness")(*GIVEN).tolist() == [1.0] and called[0][:2] == ["train", "shapes/unigrpo"]


# ---------------------------------------------------------------- names that say where


FILE = """
from dataclasses import dataclass
import beside

def brightness(images, prompts, metadata, thinking):
    return images.mean((1, 2, 3)) * beside.FACTOR

@dataclass
class Scaled:
    factor: float = 2.0

    def __call__(self, images, prompts, metadata, thinking):
        return images.mean((1, 2, 3)) * self.factor
"""


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def test_a_file_is_named_with_what_is_in_it(tmp_path):
    path = write(tmp_path / "my rewards" / "mine.py", FILE)
    write(tmp_path / "my rewards" / "beside.py", "FACTOR = 3.0")
    for name in (f"{path}:brightness", "my rewards/mine.py:brightness"):
        assert registry.build(name)(*GIVEN).tolist() == [3.0]
    assert registry.build(f"{path}:Scaled")(*GIVEN).tolist() == [2.0]
    write(path, FILE.replace("beside.FACTOR", "5.0"))
    assert registry.build(f"{path}:brightness")(*GIVEN).tolist() == [5.0]  # the file as it is now
    origin = registry.origins([f"{path}:brightness"])[f"{path}:brightness"]
    assert (origin.file, origin.line, origin.sha256) == (str(path), 5, loading.digest(path))
    assert origin.reference == f"{path}:brightness" and read_origin(origin.record()) == origin


def test_a_module_is_found_from_the_working_folder(tmp_path):
    write(tmp_path / "mypackage" / "rewards.py", FILE.replace("import beside", "from .beside import FACTOR"))
    write(tmp_path / "mypackage" / "beside.py", "FACTOR = 3.0")
    name = "mypackage.rewards:Scaled"
    assert registry.build(name)(*GIVEN).tolist() == [2.0]
    assert registry.origins([name])[name].folder == str(tmp_path)


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        (None, "none.py:brightness", "none.py cannot be read .No such file"),
        ("x = 1", "mine.py:brigthness", "there is no brigthness in mine.py$"),
        ("def brightness(): pass", "mine.py:brigthness", "there is no brigthness in mine.py .did you mean brightness"),
        ("def f(:", "mine.py:f", r"cannot be imported: +File .*mine.py., line 1\n +def f.*\n.*\nSyntaxError"),
        ("x = 1\ny = z", "mine.py:f", r"cannot be imported: NameError: .*\n  File .*mine.py., line 2.*\n    y = z"),
        ("import no_such_library", "mine.py:f", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("import sys; sys.exit(3)", "mine.py:f", "cannot be imported: SystemExit: 3"),
        ("\0", "mine.py:f", "cannot be imported"),
        ("x = 1", "mine.py:x", "is an object of the type int, not a function"),
        (None, "no_such_package.rewards:f", "there is no module no_such_package to import: install it"),
        ("from unigrpo import cli\ncli.main([])", "mine:f", "calls the command line of unigrpo when it is imported"),
        (None, "mine.py", "there is no reward called 'mine.py'.*one of your own is named path/file.py:function"),
    ],
)
def test_what_is_not_there_or_fails_is_told(tmp_path, monkeypatch, text, name, said):
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    if text is not None:
        write(tmp_path / "mine.py", text)
    with pytest.raises(ConfigError, match=said):
        registry.build(name)


def test_a_script_that_starts_a_run_is_read_up_to_there(tmp_path):
    text = "import sys\nfrom unigrpo import cli\ndef f(images, prompts, metadata, thinking): return [1.0]\n"
    path = write(tmp_path / "script.py", text + "sys.exit(cli.main(['recipes']))\ndef later(): ...\n")
    assert registry.build(f"{path}:f")(*GIVEN) == [1.0]
    with pytest.raises(ConfigError, match="there is no later in"):
        registry.build(f"{path}:later")
    assert cli.main(["recipes"]) == 0  # and afterwards everything works as before


def test_names_of_files_become_absolute(tmp_path):
    absolute = absolute_own_name("rewards/mine.py:f", tmp_path)
    assert absolute == f"{tmp_path / 'rewards' / 'mine.py'}:f" == absolute_own_name(absolute, tmp_path / "x")
    for name in ("shapes/verifier", "package.module:f", "mine.py", "a b:c", "mine.py:f()", ":f", "mine.py:"):
        assert absolute_own_name(name, tmp_path) == name


def test_a_recipe_names_files_beside_it_and_the_command_line_those_of_the_working_folder(tmp_path, monkeypatch):
    text = to_yaml(load_recipe("shapes/unigrpo", ["--reward.train", "[{name: mine.py:f, weight: 2}]"]))
    assert f"{tmp_path}/mine.py:f" in text
    recipe = write(tmp_path / "recipes" / "own.yaml", text.replace(f"{tmp_path}/mine.py", "../mine.py"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    loaded = load_recipe("../recipes/own.yaml", ["--reward.validation", "[{name: other.py:g}]"])
    assert loaded.reward.train == (RecipeScorer(f"{tmp_path}/mine.py:f", 2.0),)
    assert loaded.reward.validation == (RecipeScorer(f"{tmp_path}/here/other.py:g"),)
    assert load_recipe(recipe).reward.train == loaded.reward.train


# ---------------------------------------------------------------- registering again


def imported(path, name):
    """Import a file as ``import name`` would, again if need be."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_what_comes_from_the_same_place_replaces_and_another_place_is_named(tmp_path, monkeypatch):
    text = "def f(images, prompts, metadata, thinking): return [{}]\n"
    path = write(tmp_path / "one.py", text.format(1.0))
    registry.register("mine", imported(path, "one").f)
    write(path, "# longer, because Python tells versions apart by size and time\n" + text.format(2.0))
    registry.register("mine", imported(path, "one").f)  # importlib.reload
    assert registry.build("mine")(*GIVEN) == [2.0]
    other = imported(write(tmp_path / "two.py", text.format(3.0)), "two").f
    with pytest.raises(ConfigError, match=r"already a reward called 'mine', from one.f \(.*one.py, line 2\), and this"):
        registry.register("mine", other)
    assert registry.build("mine")(*GIVEN) == [2.0]


def cell(text):
    """What a notebook's cell defines: functions of __main__ without a file."""
    names = {"__name__": "__main__", "registry": registry}
    exec(compile(textwrap.dedent(text), "<cell>", "exec"), names)


def test_a_cell_that_is_run_again_replaces_its_reward():
    text = """
        def f(images, prompts, metadata, thinking): return [1.0]
        registry.register("mine", lambda: f)
    """
    cell(text)
    cell(text.replace("1.0", "2.0"))
    cell(text.replace("1.0", "3.0").replace("lambda: f", "f"))
    assert registry.build("mine")(*GIVEN) == [3.0]
    assert registry.origins(["mine"])["mine"].reference is None


# ---------------------------------------------------------------- found again


def test_a_run_finds_its_reward_again_where_a_file_holds_it(tmp_path):
    path = write(tmp_path / "one.py", "def f(images, prompts, metadata, thinking): return [1.0]\ndef g(): return f")
    module = imported(path, "one")
    for thing in (module.f, lambda: module.f, module.g):
        registry.register("mine", thing)
        registry.build("mine")
        origin = registry.origins(["mine"])["mine"]
        registry._FACTORIES.clear()
        registry.recall({"mine": origin})
        assert registry.build("mine")(*GIVEN) == [1.0]
        registry.recall({})
        with pytest.raises(ConfigError, match="no reward called 'mine'"):
            registry.build("mine")


def test_a_reward_that_only_python_knows_is_told_with_where_it_came_from(tmp_path):
    path = write(tmp_path / "one.py", "def make(n):\n    return lambda *given: [n]")
    registry.recall({"mine": origin_of(lambda: None, imported(path, "one").make(1.0))})
    with pytest.raises(
        ConfigError, match=r"'mine' was registered from Python by .*one.py, line 2: .*one.py:FUNCTION as"
    ):
        registry.build("mine")
    cell_of_notebook = read_origin({"module": "__main__", "line": "x", "file": 3})
    registry.recall({"mine": cell_of_notebook})
    with pytest.raises(ConfigError, match=r"by a Python session .module __main__.*call unigrpo.cli.main from there"):
        registry.build("mine")
