"""``eval`` of every suite from the command line: drawn, killed at any time, gone on with, scored, compared."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import tiny_runs

sys.path += [str(Path(__file__).parents[1] / "evaluation"), str(Path(__file__).parents[1] / "rewards")]
import fault_server as faults
from test_tiif import EXAMS, ROWS

from unigrpo import build
from unigrpo.recipe import Model
from unigrpo.rollout.episode import single_round
from unigrpo.rollout.generate import EVALUATION, how_to_draw
from unigrpo.runs import eval_folder, examining
from unigrpo.runs.eval_ranks import Ranks
from unigrpo.runs.evaluating import Drawing, draw

ROOT = Path(__file__).parents[2]
MODEL = ("--model", "builtin:shapes-sft")
QUICK = ("--steps", 3, "--max-think-tokens", 6, "--samples", 2, "--batch", 4)
SIX = ("a red circle", "a blue square", "two green circles", "a red square", "a blue circle", "a green square")
DETECTOR = '''
"""Finds a red dog where a picture is dark in one corner, always the same way for the same pixels."""


class Corner:
    about = {"called": "GenEval (a corner)"}

    def __init__(self, least=0):
        self.least = least

    def __call__(self, picture, wanted):
        score = 0.95 if int(picture.sum()) % 3 > self.least else 0.1
        height, width = picture.shape[1:]
        color = "red" if "dog" in wanted else None
        return [{"class": "dog", "box": [0, 0, width, height], "score": score, "color": color}]
'''


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("corner.py").write_text(DETECTOR)
    rows = [{"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}], "prompt": p} for p in SIX]
    written("geneval.jsonl", rows)
    questions = [["Is it red?"], ["Is it red?", {"question": "Is it blue?", "expected": "no"}]]
    written("points.jsonl", [{"prompt": p, "points": questions[i % 2]} for i, p in enumerate(SIX)])
    written("words.jsonl", [{"prompt": p, "category": p.split()[1]} for p in SIX])
    return tmp_path


def written(name, rows):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def judge():
    server = faults.Judge()
    faults.threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def asked(server, **other):
    words = {"url": server.url, "model": faults.MODEL, "probe": "false", **other}
    return "{" + ", ".join(f"{key}: {value}" for key, value in words.items()) + "}"


def evaluate(*words):
    return tiny_runs.unigrpo("eval", *words)


def result(folder="out"):
    found = json.loads((Path(folder) / "result.json").read_text())
    assert set(found.pop("times")) == {"finished", "seconds"}
    return found


def pictures(folder="out"):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).glob("*/*/*"))}


# ---------------------------------------------------------------- every suite


def suites(server):
    """The words of every suite that a model of few words can read."""
    return {
        "shapes": ("--suite", "shapes", "--limit", 6),
        "shapes-reward": ("--suite", "shapes", "--limit", 6, "--reward", "image/jpeg-compressibility"),
        "geneval": ("--suite", "geneval:geneval.jsonl", "--detector", "corner.py:Corner"),
        "file-reward": ("--suite", "words.jsonl", "--reward", "image/jpeg-compressibility"),
        "file-points": ("--suite", "points.jsonl", "--judge", asked(server)),
    }


@pytest.mark.parametrize("name", ["geneval", "file-points"])
def test_a_suite_goes_on_after_being_killed_while_drawing_and_while_examining(here, judge, name, monkeypatch):
    words = (*suites(judge)[name], *MODEL, *QUICK)
    assert evaluate(*words, "--out", "whole") == 0
    for place, killed in ((eval_folder, "write_picture"), (examining, "_examined")):
        with monkeypatch.context() as patched:
            patched.setattr(examining, "TOGETHER", 5)
            patched.setattr(place, killed, dies_at(3 if place is eval_folder else 2, getattr(place, killed)))
            with pytest.raises(Killed):
                evaluate(*words, "--out", "out")
    assert not Path("out/result.json").exists() and Path("out/00005/samples/0001.png").is_file()
    assert evaluate(*words, "--out", "out") == 0
    assert result() == result("whole") and pictures() == pictures("whole")
    assert Path("out/records.jsonl").read_bytes() == Path("whole/records.jsonl").read_bytes()
    assert result()["headline"]["value"] is not None and result()["headline"]["low"] is None
    assert "too few to say, 20 are needed" in Path("out/report.html").read_text()


class Killed(BaseException):
    """What nothing catches."""


def dies_at(call, function):
    calls = []

    def counted(*given):
        calls.append(given)
        if len(calls) == call:
            raise Killed
        return function(*given)

    return counted


KILLS = """
import os, signal, sys
from unigrpo import cli
from unigrpo import build
from unigrpo.recipe import Model
from unigrpo.rollout.generate import EVALUATION, how_to_draw
from unigrpo.runs import eval_folder, examining
from unigrpo.runs.eval_ranks import Ranks
from unigrpo.runs.evaluating import Drawing, draw
place, name, call = {"draw": (eval_folder, "write_picture", 5), "examine": (examining, "_line", 7)}[sys.argv[1]]
function, calls = getattr(place, name), []
def counted(*given):
    calls.append(given)
    if len(calls) == call:
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*given)
setattr(place, name, counted)
examining.TOGETHER = 5
cli.run(sys.argv[2:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shapes", "shapes-reward", "geneval", "file-reward", "file-points"])
def test_sigkill_changes_nothing(here, judge, name):
    words = [str(word) for word in ("eval", *suites(judge)[name], *MODEL, *QUICK, "--out")]
    assert tiny_runs.unigrpo(*words, "whole") == 0
    for when in ("draw", "examine"):
        done = subprocess.run([sys.executable, "-c", KILLS, when, *words, "out"], capture_output=True, timeout=300)
        assert done.returncode == -9, done.stderr.decode()
    assert tiny_runs.unigrpo(*words, "out") == 0
    assert result() == result("whole") and pictures() == pictures("whole")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["exam", "ocr", "geneval", "tiif", "geneval2", "wise"])
def test_every_suite_on_a_tiny_bagel(here, judge, name, monkeypatch):
    assert tiny_runs.unigrpo("make-tiny-bagel", "tiny") == 0
    monkeypatch.setattr(judge, "fault", {"tiif": lines_yes, "wise": score_one}.get(name, yes))
    any_judge = asked(judge, any_judge="true")
    written("tiif/data/testmini_prompts/negation_prompts.jsonl", ROWS["negation"])
    written("tiif/data/testmini_eval_prompts/negation_eval_prompts.jsonl", EXAMS["negation"])
    written("geneval2.jsonl", [{"prompt": "a tin owl", "atom_count": 1, "vqa_list": [["Is it tin?", "Yes"]]}])
    row = {"Prompt": "What falls in winter", "Explanation": "snow", "Category": "time", "Subcategory": "x"}
    Path("cultural_common_sense_verified.json").write_text(json.dumps([{**row, "prompt_id": 401}]))
    given = {
        "exam": ("--suite", "exam", "--judge", asked(judge)),
        "ocr": ("--suite", "ocr"),
        "geneval": ("--suite", "geneval", "--detector", "{name: corner.py:Corner, least: 1}"),
        "tiif": ("--suite", "tiif:tiif/data/testmini_prompts", "--judge", any_judge),
        "geneval2": ("--suite", "geneval2:geneval2.jsonl", "--judge", any_judge),
        "wise": ("--suite", "wise:cultural_common_sense_verified.json", "--judge", any_judge),
    }[name]
    size = ("--steps", 2, "--max-think-tokens", 3, "--samples", 1, "--limit", 2, "--model", "tiny", "--size", "32x32")
    assert evaluate(*given, *size, "--draw-only", "--out", "out") == 0
    assert not Path("out/records.jsonl").exists()
    assert evaluate(*given, *size, "--out", "out") == 0
    assert evaluate(*given, *size, "--out", "whole") == 0
    assert result() == result("whole") and result()["headline"]["value"] is not None
    assert evaluate("score", "whole", *given, "--limit", 2, "--out", "again") == 0
    assert result("again") == result("whole")


def yes(nth, words):
    return faults.says("Yes", faults.logprobs(0.75))


def lines_yes(nth, words):
    return faults.says("yes, it is\nno, it is not")


def score_one(nth, words):
    return faults.says("Score: 1")


# ---------------------------------------------------------------- several ranks


def test_the_parts_of_two_ranks_are_those_of_one(here):
    policy, suite = build.policy(Model("builtin:shapes-sft")), build.evaluation_suite("shapes", 5, build.Examining())
    drawing = Drawing(how_to_draw(policy, EVALUATION, steps=3, max_think_tokens=6), 3, 0, single_round(think=True), 2)
    for size in (1, 2):
        out = Path(f"of-{size}")
        eval_folder.write_prompts(out, suite.prompts)
        made = [draw(policy, suite, drawing, out, Alone(rank, size)) for rank in range(size)]
        assert made == ([15] if size == 1 else [10, 5])  # a group is cut into 2 and 1, and its parts are dealt in turn
    assert pictures("of-1") == pictures("of-2") and len(pictures("of-1")) == 30


class Alone(Ranks):
    """A rank that waits for nobody."""

    def together(self):
        pass


@pytest.mark.slow
def test_two_ranks_draw_what_one_draws(here):
    words = ["eval", *MODEL, *map(str, QUICK), "--limit", "6", "--out"]
    assert tiny_runs.unigrpo(*words, "one") == 0
    assert torchrun(*words, "two")[0] == 0
    assert pictures("two") == pictures("one") and result("two") == result("one")
    code, said = torchrun(*words[:-1])
    assert code != 0 and "they draw into one folder: name it with --out" in said


def torchrun(*words):
    """Two processes that find each other, as torchrun starts them; the worst exit code, and what was said."""
    with faults.socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(2):
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank)}
        command = [sys.executable, "-m", "unigrpo", *words]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, env={**os.environ, **place}, stdout=pipe, stderr=pipe, text=True))
    done = [process.communicate(timeout=200) for process in started]
    return max(abs(process.returncode) for process in started), "".join(out + err for out, err in done)


# ---------------------------------------------------------------- refusals


def test_another_plan_is_refused_and_names_the_key(here, capsys):
    words = (*MODEL, *QUICK, "--limit", 2, "--out", "out")
    assert evaluate(*words) == 0
    before = pictures()
    train = (("--suite", "shapes:train"), "suite")
    for other, key in ((("--seed", 1), "settings.seed"), (("--no-think",), "settings.think"), train):
        assert evaluate(*words, *other) == 2
        assert f"was written with {key}" in capsys.readouterr().err
    assert pictures() == before
    Path("mine").mkdir()
    Path("mine/a.txt").write_text("mine")
    assert evaluate(*words[:-1], "mine") == 2 and "is there and not empty" in capsys.readouterr().err


NOBODY = "{url: 'http://127.0.0.1:9/v1', model: m, connect_s: 0.2, retries: 0}"
MMDET = ("--detector", "{name: mask2former-mmdet, weights: x, clip: y}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--suite", "exam"), "--suite exam needs a judge"),
        (("--suite", "tiif"), "tiif:PATH"),
        (("--suite", "wise:nowhere", "--judge", "{url: x, model: y}"), "nowhere"),
        (("--suite", "geneval:geneval.jsonl"), "needs a detector"),
        (("--suite", "geneval:geneval.jsonl", *MMDET), "is not there"),
        (("--suite", "geneval", "--detector", "corner.py:Nobody"), "there is no Nobody in"),
        (("--suite", "points.jsonl", "--judge", NOBODY), "127.0.0.1:9"),
        (("--suite", "words.jsonl", "--judge", "{url: u, model: m}"), "points of the prompt 'a red circle'"),
        (("--suite", "shapes", "--judge", "{url: u, model: m}"), "has no use for a judge"),
        (("--suite", "ocr", "--detector", "corner.py:Corner"), "has no use for a detector"),
        (("--judge", "[1]"), "write arguments by name"),
        (("--draw-only",), "name it with --out"),
        (("--guidance", "1,1"), "write different numbers"),
        (("--guidance", "0.5"), "--guidance 0.5: it must be a number from 1"),
        (("--guidance", "much"), "write a number, or several"),
        (("score",), "eval score FOLDER"),
        (("score", "nowhere", "--steps", "3"), "draws nothing: leave out --steps"),
        (("score", "nowhere"), "nowhere is not a folder"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_told_before_a_model_is_loaded(here, capsys, monkeypatch, words, said):
    monkeypatch.setattr("unigrpo.commands.eval.load", lambda verb: pytest.fail("it was loaded"))
    assert evaluate(*words) == 2
    assert said in capsys.readouterr().err


def test_ctrl_c_says_what_is_there_and_the_same_command_goes_on(here, capsys, monkeypatch):
    def interrupts(*given):
        raise KeyboardInterrupt

    words = (*MODEL, *QUICK, "--limit", 4, "--out", "out")
    with monkeypatch.context() as patched:
        patched.setattr(examining, "_examined", interrupts)
        assert evaluate(*words) == 130
    assert "8 of 8 pictures are in out: the same command goes on from there" in capsys.readouterr().err
    assert evaluate(*words) == 0 and result()["pictures"] == 8


# ---------------------------------------------------------------- folders, guidance, comparisons


def test_anybodys_folder_is_scored_elsewhere_by_the_same_figures(here, capsys):
    drawn = ("--suite", "geneval:geneval.jsonl", *MODEL, *QUICK)
    assert evaluate(*drawn, "--draw-only", "--out", "out") == 0
    score = ("score", "out", "--suite", "geneval:geneval.jsonl", "--detector", "corner.py:Corner")
    assert evaluate(*score, "--out", "scored") == 0 and not Path("out/records.jsonl").exists()
    found = result("scored")
    assert found["suite"]["note"].startswith("This is no GenEval score") and found["examiner"]["detector"]["sha256"]
    assert found["model"]["name"] == "builtin:shapes-sft" and found["settings"]["num_points"] == 3
    page = Path("scored/report.html").read_text()
    assert "This is no GenEval score" in page and "UniGRPO, thinking" in page and "It thought:" in page
    for path in Path("out").glob("eval.json"):
        path.unlink()
    assert evaluate(*score, "--out", "theirs", "--model", "somebody's") == 0
    assert result("theirs")["model"] == {"name": "somebody's", "sha256": None} and result("theirs")["settings"] is None
    assert result("theirs")["headline"] == found["headline"]
    capsys.readouterr()
    assert evaluate("score", "out", "--suite", "shapes") == 2
    assert "name the suite that was drawn" in capsys.readouterr().err


def test_guidance_gap_is_a_table_with_paired_differences(here, capsys):
    words = (*MODEL, *QUICK[:-2], "--limit", 21, "--samples", 1, "--guidance", "1,3", "--out", "gap")
    assert evaluate(*words) == 0
    found = result("gap")
    one, three = found["guidance"]["rows"]
    assert (one["name"], three["name"]) == ("guidance 1", "guidance 3") and not found["guidance"]["marks"]
    assert one["headline"]["value"] == result("gap/guidance-1")["headline"]["value"]
    difference = three["differences"]["correct"]
    assert difference["difference"] == pytest.approx(three["headline"]["value"] - one["headline"]["value"])
    assert difference["prompts"] == 21 and found["guidance"]["differing"] == [["guidance", [1.0, 3.0]]]
    assert one["figures"]["plan_right"] == three["figures"]["plan_right"]  # guidance draws; the thinking is the same
    check_page(Path("gap/report.html"))
    capsys.readouterr()
    assert tiny_runs.unigrpo("compare", "gap/guidance-1", "gap/guidance-3/result.json", "--out", "both.html") == 0
    assert "What differs in how they were drawn" in check_page(Path("both.html"))
    assert tiny_runs.unigrpo("compare", "gap", "gap/guidance-1") == 2
    assert "table of several guidances" in capsys.readouterr().err


def test_what_was_measured_otherwise_is_marked_or_refused(here, judge, capsys):
    drawn = ("--suite", "geneval:geneval.jsonl", *MODEL, *QUICK)
    assert evaluate(*drawn, "--detector", "corner.py:Corner", "--out", "a") == 0
    assert evaluate("score", "a", *drawn[:2], "--detector", "{name: corner.py:Corner, least: 1}", "--out", "b") == 0
    assert evaluate("score", "a", *drawn[:2], "--detector", "corner.py:Corner", "--limit", 4, "--out", "c") == 0
    assert evaluate(*MODEL, *QUICK, "--limit", 2, "--out", "d") == 0
    capsys.readouterr()
    assert tiny_runs.unigrpo("compare", "a", "b", "c", "--json") == 0
    table = json.loads(capsys.readouterr().out)["table"]
    assert [len(row["marks"]) for row in table["rows"]] == [0, 1, 1]
    assert "another examiner: detector.args.least is 1" in table["marks"][0] and "other prompts" in table["marks"][1]
    assert table["rows"][2]["differences"]["correct"]["prompts"] == 4
    page = check_page(Path("compare.html"))
    assert "b †" in page and "† b: another examiner" in page
    assert tiny_runs.unigrpo("compare", "a", "d") == 2
    assert "share no prompt" in capsys.readouterr().err


def test_without_enough_answers_there_is_no_headline_and_the_command_says_so(here, judge, capsys, monkeypatch):
    monkeypatch.setattr(judge, "fault", lambda nth, words: faults.says("perhaps") if nth % 2 else None)
    words = ("--suite", "points.jsonl", *MODEL, *QUICK, "--judge", asked(judge, retries=0), "--out", "out")
    assert evaluate(*words) == 1
    found, said = result(), capsys.readouterr().out
    assert found["headline"]["value"] is None and found["failed"]["count"] > 2 and "no exam score: " in said
    assert "Without an answer" in check_page(Path("out/report.html"))
    monkeypatch.setattr(judge, "fault", lambda nth, words: None)
    assert evaluate(*words) == 0 and result()["failed"]["count"] == 0  # only these were asked again


# ---------------------------------------------------------------- the page


class Page(HTMLParser):
    """Open tags, and what a page refers to."""

    def __init__(self):
        super().__init__()
        self.open, self.links = [], []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check_page(path):
    """A page is well formed, refers to nothing outside, and has no width that a narrow window lacks."""
    text, page = path.read_text(), Page()
    page.feed(text)
    assert not page.open and all(link.startswith(("data:image/", "#")) for link in page.links)
    assert not re.search(r"url\(|@import|<script|https?://", text)
    wide = [int(number) for number in re.findall(r"(?<!max-)width:\s*(\d+)px", text)]
    assert not [number for number in wide if number > 500]
    return text


def test_the_page_holds_its_pictures_and_says_what_failed(here):
    assert evaluate(*MODEL, *QUICK, "--limit", 12, "--out", "out") == 0
    page = check_page(Path("out/report.html"))
    records = [json.loads(line) for line in Path("out/records.jsonl").read_text().splitlines()]
    wrong = [record for record in records if not record["correct"]]
    assert f"{len(wrong)} pictures that are wrong" in page and page.count("data:image/png") == len(records)
    assert wrong[0]["reasons"][0] in page and "sha256" in page and "num points" in page
