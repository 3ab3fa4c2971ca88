"""A judge that answers: scores, what it remembers, and how it is tried at the start."""

import base64
import dataclasses
import io
import json
import math
import re
import sqlite3
import subprocess
import sys
from datetime import date
from pathlib import Path

import fault_server as faults
import numpy as np
import pytest
import torch
import yaml
from judge_asked import BLUE, EXAM, MOSTLY_RED, QUICK, RED, SHARES, ask, exam, pictures, question, quickly  # noqa: F401
from PIL import Image

from unigrpo.build.row_checks import metadata_check
from unigrpo.ranges import ConfigError
from unigrpo.recipe import Scorer
from unigrpo.rewards import judge, registry
from unigrpo.rewards.judge import JudgeExam, JudgeScore
from unigrpo.rewards.judge_cache import Cache
from unigrpo.rewards.judge_points import points_of
from unigrpo.rewards.protocol import RewardFault, RewardInput, RewardOutput, call
from unigrpo.worlds.prompt_files import Row

# ---------------------------------------------------------------- answers


def test_soft_and_hard_scores_of_an_exam():
    with faults.running() as server:
        output = ask(exam(server))
        assert output.values == pytest.approx([1.0, 0.875, 0.0], abs=1e-6) and not output.errors
        assert output.parts["hard"] == [1, 1, 0] and output.parts["all"] == [1, 1, 0]
        (first, *_) = server.requests
        image, words = first["messages"][0]["content"]
        assert (image["type"], words["type"], len(server.requests)) == ("image_url", "text", 6)
        assert words["text"].startswith("Judge only what is visible. Question: Is it")
        assert (first["temperature"], first["logprobs"], first["top_logprobs"]) == (0, True, 20)


def test_one_request_for_all_points_of_a_picture():
    with faults.running() as server:
        output = ask(exam(server, mode="batch"))
        assert output.values == [1, 1, 0] and len(server.requests) == 3
        assert "logprobs" not in server.requests[0] and "1. Is it red?\n2. Is it blue?" in next(iter(server.asked))


def test_one_question_of_ones_own():
    with faults.running() as server:
        output = ask(question(server, question="Is {prompt} red?", extra={"priority": 3}))
        assert output.values == pytest.approx(SHARES, abs=1e-6) and output.parts["hard"] == [1, 1, 0]
        assert "Question: Is a cup red? Answer" in str(server.asked) and server.requests[0]["priority"] == 3


def shown_in(request):
    """The mean colour of every picture of a request, in order, and its words."""
    content = request["messages"][0]["content"]
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    read = [np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))) for url in urls]
    return [tuple(picture.mean((0, 1)).astype(int)) for picture in read], content[-1]["text"]


@pytest.mark.parametrize("mode", ["points", "batch"])
def test_a_judge_may_be_shown_what_an_edit_was_given(mode):
    green = torch.tensor([0.0, 1.0, 0.0])[:, None, None].expand(3, 4, 6)
    with faults.running() as server:
        sources = [[green], [green, green], []]
        output = ask(exam(server, mode=mode, sources=True), sources=sources)
        assert output.parts["hard"] == [1, 1, 0]  # of the last picture of each request
        shown = {tuple(colours): words for colours, words in map(shown_in, server.requests)}
        assert set(shown) == {((0, 255, 0), RED), ((0, 255, 0), (0, 255, 0), MOSTLY_RED), (BLUE,)}
        assert shown[(0, 255, 0), RED].startswith("The last picture was made from the 1 before it")
        assert shown[(BLUE,)].startswith("Judge only")
        before = len(server.requests)
        ask(exam(server, mode=mode), sources=sources)  # not unless it is asked for
        assert all(len(shown_in(request)[0]) == 1 for request in server.requests[before:])


def test_one_question_about_an_edit():
    green = torch.tensor([0.0, 1.0, 0.0])[:, None, None].expand(3, 8, 8)
    with faults.running() as server:
        output = ask(question(server, sources=True), sources=[[green]] * 3)
        assert output.values == pytest.approx(SHARES, abs=1e-6)
        assert all(len(shown_in(request)[0]) == 2 for request in server.requests)


def test_answers_about_edits_of_other_pictures_are_not_mixed_up(tmp_path):
    cache, half = str(tmp_path / "answers.sqlite"), torch.full((3, 8, 8), 0.5)
    with faults.running() as server:
        for number, sources in enumerate(([[half]] * 3, [[half / 2]] * 3, [[half, half]] * 3), 1):
            for _ in range(2):
                ask(exam(server, cache=cache, sources=True), sources=sources)
            assert len(server.requests) == 6 * number
        ask(exam(server, cache=cache), sources=[[half]] * 3)
        assert len(server.requests) == 24


def test_at_most_so_many_requests_at_a_time():
    with faults.running(seconds=0.03) as server:
        ask(exam(server, concurrency=3), [RED] * 8)
        assert server.busiest == 3 and len(server.requests) == 16


# ---------------------------------------------------------------- memory


def test_a_second_run_asks_nothing_and_failures_are_asked_again(tmp_path):
    broken = {"on": True}
    fault = lambda nth, question: faults.says("?") if broken["on"] and "blue" in question else None  # noqa: E731
    with faults.running(fault) as server:
        cache = str(tmp_path / "deep" / "answers.sqlite")
        assert len(ask(exam(server, cache=cache)).errors) == 3
        broken["on"], before = False, len(server.requests)
        first = ask(exam(server, cache=cache))
        assert not first.errors and len(server.requests) == before + 3  # the points without an answer
        assert ask(exam(server, cache=cache)) == first and len(server.requests) == before + 3
        for other in ({"max_tokens": 17}, {"model": "other"}, {"mode": "batch"}, {"extra": {"seed": 1}}):
            before = len(server.requests)
            ask(exam(server, cache=cache, **other))
            assert len(server.requests) > before, other
        ask(exam(server, cache=str(tmp_path)))
        assert (tmp_path / "judge.sqlite").is_file()


WRITER = """
import sys
from unigrpo.rewards.judge_cache import Cache
from unigrpo.rewards.judge_points import points_of
sys.stdin.read()  # until all are there
for number in range(20):
    Cache(sys.argv[1] + str(number)).put("made at once", [1.0])
cache = Cache(sys.argv[1])
for number in range(200):
    cache.put(str(number), [number / 200])
    assert cache.get(str(number)) == [number / 200]
"""


def test_processes_share_a_cache(tmp_path):
    path = str(tmp_path / "cache.sqlite")
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, path], stdin=subprocess.PIPE) for _ in range(3)]
    for writer in writers:
        writer.stdin.close()
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    assert sqlite3.connect(path).execute("SELECT count(*) FROM answers").fetchone() == (200,)


def test_another_programs_database_is_told_and_left_as_it_is(tmp_path):
    path = tmp_path / "notes.sqlite"
    with sqlite3.connect(path) as notes:
        notes.execute("CREATE TABLE notes (text)")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"another program, with a table 'notes'\): name a file that a judge made"):
        Cache(str(path))
    assert path.read_bytes() == before


def damaged(path):
    """A cache whose first half is sound, and whose second is not."""
    cache = Cache(str(path))
    for number in range(500):
        cache.put(f"{number:064}", [0.5])
    cache._file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + b"\x77" * (len(content) - len(content) // 2))
    return cache


def test_a_damaged_cache_is_told(tmp_path):
    damaged(tmp_path / "c")
    with pytest.raises(ConfigError, match=r"c' cannot be used \(.*\): name a file that a judge made, or a new one"):
        Cache(str(tmp_path / "c"))


def test_a_cache_that_breaks_in_a_run_ends_the_call_with_a_sentence(tmp_path):
    with faults.running() as server:
        reward = exam(server, cache=str(tmp_path / "c"))
        reward._asker.cache._file.execute("DROP TABLE answers")
        with pytest.raises(RewardFault, match=r"cache '.*' of the judge cannot be used any more: no such table"):
            ask(reward)


def test_a_picture_without_values_is_an_error_of_that_picture(tmp_path):
    with faults.running() as server:
        given = RewardInput(pictures(BLUE, RED), ["a"] * 2, [{"points": EXAM}] * 2, [None] * 2)
        given.images[0, 1, 2, 3] = float("nan")
        for reward in (exam(server, cache=str(tmp_path / "c")), question(server), exam(server, mode="batch")):
            output = call("judge", reward, given, strict=False)
            assert list(output.errors) == [0] and "the picture holds NaN or infinity" in output.errors[0]
            assert output.values[1] == pytest.approx(1.0)
        assert len(server.requests) == 4


def test_a_file_that_is_no_cache_is_told(tmp_path):
    (tmp_path / "notes.txt").write_text("not a database" * 100)
    with faults.running() as server, pytest.raises(ConfigError, match=r"notes.txt' cannot be used .*: name a file"):
        exam(server, cache=str(tmp_path / "notes.txt"))


def test_damaged_answers_are_asked_again(tmp_path):
    with faults.running() as server:
        reward = exam(server, cache=str(tmp_path / "c"))
        first = ask(reward)
        for damage in ("x", "[2]", "{}", "[]"):
            sqlite3.connect(tmp_path / "c", isolation_level=None).execute("UPDATE answers SET answer = ?", (damage,))
            assert ask(reward) == first
        assert len(server.requests) == 30


# ---------------------------------------------------------------- the start


def test_the_probe_asks_of_a_red_square_once_in_a_process():
    with faults.running() as server:
        for mode in ("points", "batch", "points"):
            exam(server, mode=mode, probe=True)
        assert len(server.requests) == 4 and all("picture" in words for words in server.asked)


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_the_probe_forgives_one_answer_that_is_none(nth):
    with faults.running(lambda n, q: faults.no_choices if n == nth else None) as server:
        exam(server, probe=True)
        assert len(server.requests) == 4


PROBES = {
    "has no model 'colours-7b' (did you mean colours-70b?); it has: colours-70b": lambda s: s.models.__setitem__(
        0, "colours-70b"
    ),
    "says no: it does not see pictures": lambda s: setattr(
        s, "fault", lambda n, q: faults.says("No", faults.logprobs(0.1))
    ),
    "gives no log probabilities": lambda s: setattr(
        s, "fault", lambda n, q: faults.says("Yes" if "red" in q else "No")
    ),
    "refuses": lambda s: setattr(s, "fault", lambda n, q: faults.status(400, message="refuses")),
    "asked twice, the judge gave no yes nor no": lambda s: setattr(s, "fault", lambda n, q: faults.says("a square")),
}  # fmt: skip


@pytest.mark.parametrize("said", PROBES)
def test_a_judge_that_cannot_work_is_told_in_a_sentence(said):
    with faults.running() as server:
        PROBES[said](server)
        with pytest.raises(ConfigError, match=r"^judge/exam: ") as caught:
            exam(server, probe=True)
        assert said in str(caught.value) and "\n" not in str(caught.value)


def test_no_service_and_no_shades():
    with faults.running(lambda n, q: faults.says("Yes" if "red" in q else "No")) as server:
        exam(server, probe=True, top_logprobs=0)
    with pytest.raises(ConfigError, match=r"cannot be used .*: start the service, or correct url"):
        exam(server, probe=True)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"url": "127.0.0.1:8000"}, "is no address of a service"),
        ({"url": "http://me:pass@host/v1"}, "holds a user, a password or a query"),
        ({"url": ""}, "url is ''"),
        ({"key_env": "NO_SUCH_KEY"}, "the environment variable NO_SUCH_KEY is not set"),
        ({"concurrency": 0}, "concurrency is 0: write a whole number, at least 1"),
        ({"deadline_s": "long"}, "deadline_s is 'long'"),
        ({"mode": "all"}, "mode is 'all': write points or batch"),
        ({"extra": {"temperature": 1}}, "extra has 'temperature', which the judge sets itself"),
        ({"extra": 3}, "extra has 3"),
        ({"extra": {"day": date(2026, 1, 1)}}, "extra cannot be written as JSON"),
        ({"extra": {"seed": float("nan")}}, "extra cannot be written as JSON"),
        ({"retries": 2.5}, "retries is 2.5: write a whole number"),
        ({"probe": "no"}, "probe is 'no': write true or false"),
        ({"cache": True}, "cache is no text"),
        ({"url": "http://host:port/v1"}, "is no address of a service"),
    ],
)
def test_settings_that_cannot_work_are_told(args, said):
    with pytest.raises(ConfigError) as caught:
        JudgeExam(**{"url": "http://127.0.0.1:1/v1", **QUICK, **args})
    assert said in str(caught.value) and "pass" not in str(caught.value).replace("password", "")


def test_it_is_built_by_name_with_args(monkeypatch):
    monkeypatch.setattr(registry, "_FACTORIES", {"judge/exam": JudgeExam})
    with faults.running() as server:
        reward = registry.build("judge/exam", {"url": server.url, **QUICK})
        assert isinstance(ask(reward), RewardOutput) and len(server.requests) == 6
    with pytest.raises(ConfigError, match="did you mean url"):
        registry.build("judge/exam", {"ur": server.url, **QUICK})


def test_points_that_are_missing_are_an_error_of_their_picture(monkeypatch):
    """Two pictures, of which the second has no exam: the first is examined all the same."""
    whole = judge.points_of
    with faults.running() as server:
        found = iter([whole, lambda prompt, about: whole(prompt, {})])
        monkeypatch.setattr(judge, "points_of", lambda prompt, about: next(found)(prompt, about))
        output = ask(exam(server), [RED, BLUE])
    assert set(output.errors) == {1} and "there are none; give every prompt a list" in output.errors[1]
    assert output.values[0] == output.values[0] and math.isnan(output.values[1])


def test_rows_without_points_are_told_before_anything_is_drawn():
    look = metadata_check([Scorer("judge/exam")])
    look(Row("line 1", "a cup", {"points": ["Is there a cup?"]}))
    with pytest.raises(ConfigError, match="line 2: judge/exam: points of the prompt 'of this row': there are none"):
        look(Row("line 2", "a cup", {}))


# ---------------------------------------------------------------- the page

PAGE = (Path(__file__).parents[2] / "docs/rewards-judge.md").read_text(encoding="utf-8")
JUDGES = {"judge/exam": JudgeExam, "judge/score": JudgeScore}


def test_the_entries_of_the_page_build_judges(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789")
    monkeypatch.chdir(tmp_path)
    blocks = [yaml.safe_load(block)["reward"] for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.S)]
    entries = [entry for block in blocks for entry in (*block["train"], *block.get("validation", ()))]
    assert {entry["name"] for entry in entries} == set(JUDGES)
    for entry in entries:
        assert JUDGES[entry["name"]](**entry["args"], probe=False)._asker.model
        assert entry.get("value", "soft") in ("soft", "hard")


def test_the_points_of_the_page_are_points():
    (row,) = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE, re.S))
    there, red, second = points_of(row["prompt"], row)
    assert (there.expected, red.depends_on, second.expected) == (True, (there.id,), False)


def test_the_page_names_every_argument_and_its_default():
    told = {}
    for line in PAGE.split("## Arguments")[1].split("## Keys")[0].splitlines()[3:]:
        _, names, defaults, *_ = line.split("|") if "|" in line else ("", "", "")
        both = defaults.split(",") * (1 if "," in defaults else 2)
        told |= dict(zip(re.findall(r"`(\w+)`", names), both, strict=False))
    fields = {f.name: f.default for judge in (JudgeExam, JudgeScore) for f in dataclasses.fields(judge)}
    assert told.keys() == fields.keys()
    for name, default in fields.items():
        if isinstance(default, int | float) and not isinstance(default, bool):
            assert float(told[name]) == default, name
