"""Every command that README.md and docs/*.md name is run, in small, with the document's own words.

A command that is new in a document fails here until a line of RULES fits it. The first line whose pattern is found in
the command decides: ``small(words)`` runs it with words behind it that make it small, ``script(words)`` does so for a
script of ours, ``usage`` checks the options of a summary such as `unigrpo eval [--model DIR]`, ``covered(test)`` names
the test that runs it already.
"""

import functools
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from PIL import Image

import tiny_runs

ROOT = Path(__file__).parents[1]
STARTS = ("unigrpo ", "make ", "python ", "pytest ")
NAMES = {"MODEL": "tiny", "BAGEL": "tiny", "RUN": "run", "RUN_DIR": "run", "DIR": "new", "FOLDER": "golden", "N": "3"}
NAMES |= {"tests/golden/bagel_a": "golden", "KEY": "--optimizer.lr-denoising", "VALUE": "1e-4"}
_KEPT = tempfile.TemporaryDirectory(prefix="unigrpo-commands-")


# ---------------------------------------------------------------- what the documents say


BLOCK = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands_in(text):
    """The commands of a document: lines of its code blocks, and pieces of code in its sentences."""
    lines = "\n".join(BLOCK.findall(text)).replace("\\\n", " ").splitlines()
    pieces = re.findall(r"`([^`]+)`", BLOCK.sub("", text))
    cut = (re.split(r"\s#\s", line)[0] for line in [*lines, *pieces])
    said = (re.sub(r"\s+", " ", line).strip().replace(".venv/bin/", "") for line in cut)
    said = (re.sub(r"^(OMP_NUM_THREADS=\d+|python -m(?= unigrpo)) ", "", line) for line in said)
    return list(dict.fromkeys(line for line in said if line.startswith(STARTS)))


def files_in(text):
    """The files that a document shows: code blocks that begin with ``# name.py``."""
    named = ((re.match(r"# ([\w-]+\.\w+)\n", block), block) for block in BLOCK.findall(text))
    return {name[1]: block for name, block in named if name}


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = [path.read_text(encoding="utf-8") for path in DOCUMENTS]
COMMANDS = list(dict.fromkeys(line for text in TEXTS for line in commands_in(text)))
FILES = {name: block for text in TEXTS for name, block in files_in(text).items()}


# ---------------------------------------------------------------- ways to run a command in small


def small(extra=""):
    """In this process, the words of ``extra`` behind the document's: of options that stand twice the last one holds."""

    def run(command, monkeypatch):
        verb, *words = [NAMES.get(word, word) for word in shlex.split(command)[1:]]
        assert tiny_runs.unigrpo(verb, *words, *[word.replace("MICRO", micro()) for word in shlex.split(extra)]) == 0

    return run


def script(extra=""):
    """A Python file of ours, as ``python FILE`` runs it, but in this process."""

    def run(command, monkeypatch):
        file, *words = [NAMES.get(word, word) for word in shlex.split(command.removeprefix("python "))]
        monkeypatch.setattr(sys, "argv", [file, *words, *shlex.split(extra)])
        monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # it would hold for all tests after it
        try:
            runpy.run_path(file, run_name="__main__")
        except SystemExit as left:
            assert not left.code

    return run


def covered(test):
    """Another test runs it: ``file::function``."""

    def run(command, monkeypatch):
        file, function = test.split("::")
        assert f"\ndef {function}(" in (ROOT / file).read_text(encoding="utf-8"), f"there is no test {test}"

    return run


def usage(command, monkeypatch):
    """A summary of options: the verb exists, and its help has every option but keys of recipes."""
    verb = command.split()[1]
    done = subprocess.run([sys.executable, "-m", "unigrpo", verb, "--help"], capture_output=True, text=True, check=True)
    named = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*(?![\w.-])", command))
    known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*(?![\w.-])", done.stdout))
    assert named <= known, f"`unigrpo {verb} --help` knows no {sorted(named - known)}"


def paths_exist(command, monkeypatch):
    """``pytest PATHS``: they are part of the suite, which runs them."""
    paths = [word for word in shlex.split(command)[1:] if word.startswith("tests")]
    assert all((ROOT / path.split("::")[0]).exists() for path in paths)
    assert paths or "slow" in command


def make(command, monkeypatch):
    """``make TARGET`` with stand-ins for the tools: it starts what it should, and what that does other tests show."""
    done = make_with_stand_ins(Path("bin"), *shlex.split(command)[1:])
    assert done.returncode == 0 and "ran " in done.stdout, done.stdout + done.stderr


def make_with_stand_ins(folder, *words):
    """Run make with tools that print their names; a word ``fails`` in their arguments makes them fail."""
    folder.mkdir(parents=True)
    for tool in ("python", "pytest", "unigrpo", "ruff", "pyright", "lint-imports"):
        body = f'#!/bin/sh\necho "ran {tool} $@ (threads $OMP_NUM_THREADS)"\ncase "$*" in *fails*) exit 3;; esac\n'
        (folder / tool).write_text(body)
        (folder / tool).chmod(0o755)
    (folder / "ready").touch()  # newer than pyproject.toml, so that nothing is installed
    tools = [f"BIN={folder.resolve()}", f"READY={folder.resolve() / 'ready'}"]
    return subprocess.run(
        ["make", "--no-print-directory", "-C", str(ROOT), *tools, *words], capture_output=True, text=True, check=False
    )


SMALL = tiny_runs.overrides(model__path="MICRO", iterations=1, eval__limit=2, eval__compare_limit=2)
AT = SMALL.index("--method.text.kl_weight")  # not every method that the documents name has one
TRAIN = shlex.join([*SMALL[:AT], *SMALL[AT + 2 :]])
EVALUATED = "tests/end_to_end/test_evaluations.py"
SERVED = "tests/end_to_end/test_remote_rewards.py"
BAGEL = "tests/end_to_end/test_bagel.py"
WORDS = "tests/end_to_end/test_words_world.py"
EDITS = "tests/end_to_end/test_editing.py"
SERVING = "tests/rewards/test_serving.py"
DRAWN = "--size 64x48 --steps 2 --max-think-tokens 2"
RULES = [
    (r"^make ", make),
    (r"^unigrpo parity( DIR)?$", usage),
    (r"^pytest ", paths_exist),
    (
        r"^python benchmarks/run.py",
        covered("tests/test_benchmarks.py::test_sections_are_measured_in_one_table_and_one_json"),
    ),
    (r"bagel_7b.py", script("--tiny")),
    (r"^python benchmarks/", script("--quick")),
    (r"^python scripts/(collect_results|write_recipe_keys).py", script()),
    (r"^python scripts/measure_rounds.py", script("--limit 2 --samples 1 --questions 4")),
    (
        r"^python scripts/write_scaling.py",
        covered("tests/test_scaling.py::test_the_script_would_change_no_table_and_misses_none"),
    ),
    (
        r"^python scripts/chaos.py",
        covered("tests/training/test_injected_faults.py::test_kills_at_random_moments_lose_nothing"),
    ),
    (r"^python scripts/study_rounds.py", covered("tests/test_study_rounds.py::test_the_page_says_what_was_measured")),
    (r"^python scripts/study.py", covered("tests/test_study.py::test_runs_that_are_there_are_read_and_not_made_again")),
    (r"^unigrpo reproduce .*\|", usage),
    (r"^unigrpo reproduce ", covered("tests/end_to_end/test_reproduce.py::test_results_say_how_they_were_made")),
    (
        r"^unigrpo train RECIPE --dry-run",
        covered("tests/test_cli.py::test_a_dry_run_writes_nothing_and_prints_a_recipe"),
    ),
    (r"remote/http", covered(f"{SERVED}::test_a_server_that_is_killed_three_times_changes_nothing")),
    (r"^unigrpo rewards (\[|serve)", covered(f"{SERVING}::test_workers_share_a_port_and_one_that_dies_is_replaced")),
    (r"\[-|\bRECIPE\b|\bFILE\b|\bDIR$", usage),
    (r"^unigrpo train bagel/\S+ --out .*--resume", covered(f"{BAGEL}::test_a_resumed_run_is_the_uninterrupted_one")),
    (r"^unigrpo train .*--dry-run", small()),
    (r"^unigrpo train bagel/sft ", covered(f"{BAGEL}::test_fine_tuning_20_steps_learns")),
    (r"^unigrpo train bagel/unigrpo ", covered(f"{BAGEL}::test_rl_trains_and_every_first_ratio_is_1")),
    (r"^unigrpo train bagel/", covered(f"{BAGEL}::test_the_other_recipes_run")),
    (r"^unigrpo train .*--resume", small()),
    (r"--log ", small(TRAIN)),
    (r"^unigrpo eval score ", covered(f"{EVALUATED}::test_anybodys_folder_is_scored_elsewhere_by_the_same_figures")),
    (r"^unigrpo eval .*--guidance 1,", covered(f"{EVALUATED}::test_guidance_gap_is_a_table_with_paired_differences")),
    (r"^unigrpo compare results/", covered(f"{EVALUATED}::test_what_was_measured_otherwise_is_marked_or_refused")),
    (r"^unigrpo compare ", covered("tests/reports/test_comparison.py::test_runs_stand_over_each_other_on_one_page")),
    (r"^unigrpo train shapes/edit", covered(f"{EDITS}::test_records_and_metrics_tell_both_halves_of_an_edit")),
    (r"^unigrpo train words/", covered(f"{WORDS}::test_both_halves_are_trained_by_what_the_ocr_reads")),
    (r"^unigrpo train ", small(TRAIN)),
    (r"^unigrpo export ", covered(f"{BAGEL}::test_the_export_is_the_public_folder_again")),
    (r"^unigrpo --version$", small()),
    (r"^unigrpo eval .*:questions", small("--limit 6")),
    (r"^unigrpo eval ", small("--limit 6 --samples 1")),
    (r"^unigrpo generate .*--understand", small("--max-think-tokens 4")),
    (r"^unigrpo generate .*--model", small(DRAWN)),
    (r"^unigrpo generate ", small()),
    (
        r"^unigrpo rewards try (NAME|words)",
        covered("tests/test_rewards_verb.py::test_pictures_are_scored_and_values_told_by_name"),
    ),
    (
        r"^unigrpo rewards try shapes/edit",
        covered("tests/test_rewards_verb.py::test_an_edit_is_tried_with_the_picture_that_it_was_made_from"),
    ),
    (r"^unigrpo doctor", small("--no-self-test")),
    (r"^unigrpo (report|recipes?|rewards|parity|make-tiny-bagel)", small()),
]
SLOW = r"--part gradient|put <image> beside|train shapes/unigrpo --seed N| KEY VALUE|--nproc |serve.py"
"""Others like them are quick."""


# ---------------------------------------------------------------- where they run


@functools.cache
def micro():
    return str(tiny_runs.model_folder())


@functools.cache
def tiny_bagel():
    """The folder that `unigrpo make-tiny-bagel` makes."""
    folder = Path(_KEPT.name) / "tiny"
    assert tiny_runs.unigrpo("make-tiny-bagel", folder) == 0
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A function that makes an empty working directory with what a command's words name."""
    monkeypatch.setattr(sys, "path", [*sys.path])  # what is found beside files of a document is forgotten again

    def prepare(command):
        monkeypatch.chdir(tmp_path)
        for place in ("scripts", "benchmarks"):  # copies: what they write beside themselves is not the repository's
            shutil.copytree(ROOT / place, place, ignore=shutil.ignore_patterns("results", "__pycache__"))
        Path("docs").mkdir()
        Path("golden").symlink_to(ROOT / "tests" / "golden" / "bagel_a")
        words = [NAMES.get(word, word) for word in shlex.split(command)]
        if "tiny" in words and "make-tiny-bagel" not in words:
            Path("tiny").symlink_to(tiny_bagel())
        for word in (word for word in words if word.endswith((".png", ".txt"))):
            if words[words.index(word) - 1] in ("--image", "--prompts"):
                make_input(Path(word))
        for name in (name for name in FILES if name in command):
            Path(name).write_text(FILES[name], encoding="utf-8")
        if {"--resume", "--towards", "report", "run"} & set(words):
            tiny_runs.copied_run(Path("run"))
            Path("runs").mkdir()
            for name in ("mine", "lr1e-4", "lr1e-4-late"):
                Path("runs", name).symlink_to("../run")

    return prepare


def make_input(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.new("RGB", (64, 48), (200, 30, 30)).save(path)
    else:
        path.write_text("a red cup\n")


# ---------------------------------------------------------------- the tests


@pytest.mark.parametrize(
    "command", [pytest.param(c, id=c, marks=[pytest.mark.slow] if re.search(SLOW, c) else []) for c in COMMANDS]
)
def test_what_the_documents_name_works(command, here, monkeypatch):
    found = [way for pattern, way in RULES if re.search(pattern, command)]
    assert found, f"the documents name `{command}`: add a line to RULES that says how it is run in small"
    here(command)
    found[0](command, monkeypatch)


@pytest.mark.parametrize("pattern", [pattern for pattern, _ in RULES])
def test_no_rule_is_left_over(pattern):
    first = {next((p for p, _ in RULES if re.search(p, command)), None) for command in COMMANDS}
    assert pattern in first, "no document names such a command: remove the line"


def test_commands_are_found_in_blocks_and_in_sentences():
    block = "```\n.venv/bin/unigrpo eval \\\n  --model a  # says\nx = 1\n```\n"
    text = f"Try `unigrpo recipes`,\n`unigrpo` or `make\ntest`.\n{block}"
    assert commands_in(text) == ["unigrpo eval --model a", "unigrpo recipes", "make test"]


def test_a_command_that_nobody_runs_is_noticed(here, monkeypatch):
    with pytest.raises(AssertionError, match="add a line to RULES"):
        test_what_the_documents_name_works("unigrpo conquer", here, monkeypatch)
    with pytest.raises(AssertionError, match="knows no"):
        usage("unigrpo eval [--modle DIR]", monkeypatch)
    with pytest.raises(AssertionError, match="there is no test"):
        covered("tests/test_commands.py::test_of_nothing")("", monkeypatch)


# Benchmarks and make


SCRIPTS = [p.name for p in sorted((ROOT / "benchmarks").glob("*.py")) if p.name != "run.py"]
UNNAMED = [name for name in SCRIPTS if not any(name in command for command in COMMANDS)]


@pytest.mark.parametrize("file", UNNAMED)
def test_benchmarks_that_no_document_names_run_in_small(file, here, monkeypatch):
    here("")
    script("--quick")(f"benchmarks/{file}", monkeypatch)


def test_bench_is_one_command(tmp_path):
    done = make_with_stand_ins(tmp_path / "bin", "bench", "QUICK=1", "AGAINST=abc", "OUT=x.json")
    assert "ran python benchmarks/run.py --quick --against abc --out x.json" in done.stdout and not done.returncode
    assert make_with_stand_ins(tmp_path / "other", "bench", "AGAINST=fails").returncode != 0


def test_the_suite_runs_in_five_settings_and_a_line_says_of_each(tmp_path):
    done = make_with_stand_ins(tmp_path / "bin", "test-settings")
    settings = ("MKL_CBWR=COMPATIBLE", "MKL_CBWR=AVX2", "ATEN_CPU_CAPABILITY=default", "OMP_NUM_THREADS=1")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and [line.split(":")[0] for line in lines] == [*settings, "OMP_NUM_THREADS=2"]
    assert "(threads 2)" in lines[-1] and all("passed" in line and "(threads 1)" in line for line in lines[:-1])
