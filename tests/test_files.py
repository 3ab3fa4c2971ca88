"""A JSON file that anybody may have touched is read, or refused in a sentence that names it."""

import os
import subprocess
import sys

import pytest

from unigrpo import files
from unigrpo.files import parse_json_object, read_json_object

BROKEN = {
    b'{"a": 1,': r"is not JSON \(.* at column 9\): repair it, or remove it",
    b'{"a": 1,\n"b" 2}': r"is not JSON \(.* at line 2, column 5\)",
    b"": r"is not JSON",
    b"[1, 2]": r"is not a JSON object but \[1, 2\]: ",
    b"3": r"is not a JSON object but 3: ",
    b'{"a": \xff}': r"is not UTF-8 text \(byte 6\)",
    '{"a": 1}'.encode("utf-16"): r"is not UTF-8 text",
    b'{"done": 1e400}': r"1e400 is not a finite number",
    b'{"done": -1e999}': r"-1e999 is not a finite number",
    b'{"done": NaN}': r"NaN is not a finite number",
    b'{"done": ' + b"9" * 400 + b"}": r"9{20}\.\.\. is not a finite number",
    b'{"done": ' + b"9" * 5000 + b"}": r"9{20}\.\.\. is not a finite number",
    b'{"a":' * 65 + b"1" + b"}" * 65: r"is nested too deep \(above 64 levels\)",
    b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}": r"is nested too deep",
    b'{"a": ' + b"[" * 100_000: r"is nested too deep",
}


@pytest.mark.parametrize("content", BROKEN, ids=[str(number) for number in range(len(BROKEN))])
def test_a_broken_file_is_named(tmp_path, content):
    path = tmp_path / "facts.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=BROKEN[content]) as caught:
        read_json_object(path)
    assert str(caught.value).startswith(str(path)) and len(str(caught.value)) < len(str(path)) + 200


def test_what_is_no_file_is_named(tmp_path):
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ValueError, match=r"folder\.json is a folder, but a file belongs there"):
        read_json_object(tmp_path / "folder.json")
    with pytest.raises(ValueError, match=r"none\.json is not there"):
        read_json_object(tmp_path / "none.json")


def test_what_a_file_may_hold(tmp_path):
    path = tmp_path / "facts.json"
    path.write_bytes(b'\xef\xbb\xbf{"length": 1000000000000000019884624838656, "x": [1e300, -0.5, null, "\xc3\xa9"]}')
    assert read_json_object(path) == {"length": 1000000000000000019884624838656, "x": [1e300, -0.5, None, "é"]}
    assert parse_json_object('{"a":' * 64 + "1" + "}" * 64, "here")["a"]


def test_only_temporaries_of_the_dead_are_cleared(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead = tmp_path / "evaluations" / f".summary.json.{gone.pid}.0123abcd.tmp"
    living = tmp_path / f".report.html.{os.getppid()}.0123abcd.tmp"
    other = [tmp_path / ".hidden.tmp", tmp_path / "x.12.0123abcd.tmp"]
    dead.parent.mkdir()
    for path in (dead, living, *other):
        path.write_text("half")
    assert files.is_temporary(dead.name) and not any(files.is_temporary(path.name) for path in other)
    files.clear_temporaries(tmp_path)
    assert not dead.exists() and living.exists() and all(path.exists() for path in other)


def test_a_full_disk_says_where(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")

    def full(*_):
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: '.*facts\.json'"):
            files.write_text_atomic(tmp_path / "facts.json", "{}")
    assert os.listdir(tmp_path) == []
