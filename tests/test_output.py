"""What a command says: printing stops nothing, --quiet keeps the result, --json is one object and nothing else."""

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import tiny_runs
import unigrpo
from unigrpo import cli
from unigrpo.recipe import list_recipes
from unigrpo.tools.parity import parity
from unigrpo.tools.parity.golden import Check

SOURCE = Path(unigrpo.__file__).parents[1]


class Ascii(io.TextIOBase):
    """Somebody's own stdout: no ``reconfigure``, and letters above 127 are an error, as in a narrow terminal."""

    encoding = "ascii"

    def __init__(self):
        self.text = ""

    def write(self, text):
        text.encode("ascii")
        self.text += text
        return len(text)


class Bare:
    """An object that can only write."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text


class Full(io.TextIOBase):
    """A disk without room."""

    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


class Gone(io.TextIOBase):
    """A reader who has seen enough."""

    def write(self, text):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


class Closed(io.TextIOBase):
    """A stream that is closed."""

    def write(self, text):
        raise ValueError("I/O operation on closed file.")


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Draw into a picture with some stdout, the thinking being a letter that few terminals know; the exit code."""
    monkeypatch.setattr("unigrpo.rollout.sample.words_of", lambda policy, thinking: "\N{SNOWMAN}")

    def drawn(stdout):
        with monkeypatch.context() as now:
            now.setattr(sys, "stdout", stdout)
            return tiny_runs.unigrpo(
                "generate", "a red circle", "--model", tiny_runs.model_folder(), "--num", 1, "--max-think-tokens", 4,
                "--out", tmp_path / "drawn.png",
            )  # fmt: skip

    yield drawn
    with Image.open(tmp_path / "drawn.png") as picture:
        picture.verify()


@pytest.mark.parametrize("stdout", [Ascii(), Bare(), Gone(), Closed(), None], ids=lambda s: type(s).__name__)
def test_no_stdout_loses_a_picture(draw, stdout):
    assert draw(stdout) == 0


def test_what_a_terminal_cannot_show_is_escaped(draw):
    stdout = Ascii()
    assert draw(stdout) == 0
    assert "\\u2603" in stdout.text and "wrote" in stdout.text


def test_a_full_disk_under_stdout_is_told_when_all_is_done(draw, capsys):
    assert draw(Full()) == 2
    assert "what was printed has not arrived (No space left on device)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "redirect"), [("eval --help", ""), ("--version", ">&-"), ("--version", ">/dev/full")]
)
def test_a_process_whose_stdout_is_odd_tells_or_works(arguments, redirect):
    words = f'"{sys.executable}" -m unigrpo {arguments} {redirect}'
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONIOENCODING": "ascii", "LANG": "C"}
    done = subprocess.run(words, shell=True, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == (2 if "full" in redirect else 0), done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_a_run_goes_on_when_nobody_reads_its_progress_any_more(tmp_path, monkeypatch):
    words = tiny_runs.overrides(iterations=1, checkpoint__every=25)
    with monkeypatch.context() as now:
        now.setattr(sys, "stdout", Gone())
        assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", tmp_path / "run", *words) == 0
    assert (tmp_path / "run" / "report.html").is_file()


# ---------------------------------------------------------------- version, quiet, json


@pytest.mark.parametrize("word", ["--version", "-V"])
def test_the_version_comes_without_torch(word):
    script = (
        f"import sys; from unigrpo import cli; code = cli.run([{word!r}]); "
        "print(code, sorted({'torch', 'numpy', 'unigrpo.commands'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first.startswith("unigrpo ") and ", python 3." in first and ", torch 2." in first
    assert second == "0 []"


EVALUATE = ("eval", "--limit", 6, "--samples", 1, "--max-think-tokens", 4)


def evaluate(*options):
    return tiny_runs.unigrpo(*EVALUATE, "--model", tiny_runs.model_folder(), *options)


def test_quiet_keeps_the_figures_and_where_they_are(tmp_path, capsys):
    assert evaluate("-q", "--out", tmp_path / "out") == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert "score 0." in lines[0] and lines[-1].startswith("wrote ") and shown.err == ""
    assert not any(line.startswith("drawn with") for line in lines)


def test_a_quiet_run_says_where_its_report_is(tmp_path, capsys):
    words = tiny_runs.overrides(iterations=1, checkpoint__every=25)
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--quiet", "--out", tmp_path / "run", *words) == 0
    assert capsys.readouterr().out == f"report: {tmp_path / 'run' / 'report.html'}\n"


def test_quiet_errors_are_told(capsys):
    assert tiny_runs.unigrpo("report", "nowhere", "-q") == 2
    assert "nowhere is not a folder" in capsys.readouterr().err


def only_object(capsys):
    """The one JSON object on stdout, and what is on stderr."""
    shown = capsys.readouterr()
    return json.loads(shown.out), shown.err


def test_json_of_eval_is_the_summary_and_the_result(tmp_path, capsys):
    assert evaluate("--json", "--out", tmp_path / "out") == 0
    figures, notes = only_object(capsys)
    assert {"score", "by_category", "n", "settings", "wrote"} <= set(figures)
    assert figures["settings"]["num_points"] == 9 and "(8 forwards)" in notes
    assert figures["result"] == json.loads((tmp_path / "out" / "result.json").read_text())


def test_json_of_the_other_verbs(tmp_path, capsys, monkeypatch):
    assert tiny_runs.unigrpo("recipes", "--json") == 0
    names = [entry["name"] for entry in only_object(capsys)[0]["recipes"]]
    assert names == [name for name, _ in list_recipes()]

    monkeypatch.setattr(parity, "run", lambda folder: [Check("a", 1e-9, 1e-6), Check("b", float("nan"), 1e-6)])
    assert tiny_runs.unigrpo("parity", tmp_path, "--json") == 1
    figures, _ = only_object(capsys)
    assert figures["failed"] == ["b"] and [check["error"] for check in figures["checks"]] == [1e-9, None]

    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--dry-run", "--json", "--iterations", 7) == 0
    (stage,) = only_object(capsys)[0]["stages"]
    assert stage["recipe"]["iterations"] == 7 and stage["forwards_per_picture"] == 8
    assert stage["seconds"]["total"] > 0 and stage["memory_bytes"]["peak"] > 1e6

    run = tiny_runs.copied_run(tmp_path / "run")
    capsys.readouterr()  # of the run, where nobody had made it yet
    assert tiny_runs.unigrpo("report", run, "--json") == 0
    assert only_object(capsys)[0] == {"wrote": [str(run / "report.html")]}


def test_json_of_a_run_is_its_comparison(tmp_path, capsys):
    words = tiny_runs.overrides(iterations=1, checkpoint__every=25)
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--json", "--out", tmp_path / "run", *words) == 0
    figures, notes = only_object(capsys)
    assert figures["finished"] and figures["iterations"] == 1 and "iteration 1 of 1" in notes
    summary = json.loads((tmp_path / "run" / "evaluations" / "summary.json").read_text())
    assert {key: figures[key] for key in summary} == summary


def test_an_error_prints_no_object(capsys):
    assert tiny_runs.unigrpo("report", "nowhere", "--json") == 2
    shown = capsys.readouterr()
    assert shown.out == "" and "nowhere is not a folder" in shown.err


def test_options_before_the_verb_are_explained(capsys):
    assert tiny_runs.unigrpo("--json", "recipes") == 2
    assert "--json stands before the verb: write it after" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["train", "generate", "eval", "report", "recipes", "parity", "export", "reproduce"])
def test_every_verb_can_be_quiet_and_machine_readable(verb, capsys):
    assert tiny_runs.unigrpo(verb, "--help") == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("-q, --quiet", "--json"))


@pytest.mark.parametrize("words", [("--prompts", "504"), ("--prompts=504",), ("--prompts", "mine.txt")])
def test_prompts_means_a_file_everywhere(capsys, words):
    assert cli.run(["eval", *words]) == 2
    message = capsys.readouterr().err
    assert "how many prompts is --limit" in message and "--suite FILE" in message
