"""From the name of a suite and a detector of one's own to a suite: what is refused, and what the sentence says."""

import json

import pytest

from unigrpo.build.examiners import OwnDetector
from unigrpo.build.suites import Examining, evaluation_suite
from unigrpo.ranges import ConfigError
from unigrpo.runs.eval_folder import contents
from unigrpo.trajectory import Prompt

DETECTORS = """
class Base:
    about = {"called": "GenEval", "weights": "abc"}

    def __call__(self, picture, wanted):
        return []


class Inherits(Base):
    pass


class Works:
    @property
    def about(self):
        return {"weights": "xyz"}

    def __call__(self, picture, wanted):
        return []


class Words(Base):
    about = "mine"


class Silent:
    def __call__(self, picture, wanted):
        return []
"""


@pytest.fixture
def detectors(tmp_path):
    (tmp_path / "own.py").write_text(DETECTORS)
    return lambda name: OwnDetector(f"{tmp_path}/own.py:{name}", {})


@pytest.mark.parametrize("name", ["exam", "ocr"])
def test_our_own_lists_have_no_path(name):
    with pytest.raises(ConfigError, match=f"--suite {name}:mine.jsonl: {name} is this package's own list.*without :"):
        evaluation_suite(f"{name}:mine.jsonl", None, Examining(on=False))


def test_a_misspelt_suite_is_told_of_all_suites():
    with pytest.raises(ConfigError, match=r"--suite exm is none \(did you mean exam\?\).*tiif:PATH"):
        evaluation_suite("exm", None, Examining(on=False))
    with pytest.raises(ConfigError, match=r"--suite genevl:x.jsonl is none \(did you mean geneval"):
        evaluation_suite("genevl:x.jsonl", None, Examining(on=False))


def test_geneval_without_a_detector_names_it():
    with pytest.raises(ConfigError, match=r'needs a detector: --detector "\{name: mask2former-mmdet.*or.* --reward'):
        evaluation_suite("geneval", 1, Examining())


def test_all_that_a_detector_says_of_itself_is_kept_but_that_its_score_is_genevals(detectors):
    assert detectors("Works").about["weights"] == "xyz"
    inherited = detectors("Inherits").about
    assert inherited["weights"] == "abc" and "called" not in inherited
    assert set(detectors("Silent").about) == {"name", "sha256", "args"}
    with pytest.raises(ConfigError, match="its about is 'mine'"):
        detectors("Words")


def test_the_same_task_has_all_the_metadata_of_the_suite(tmp_path):
    """A line that shares a category alone is of another prompt: its picture would be asked another's questions."""
    prompt = Prompt(0, "two dogs", {"category": "counting", "points": ["Are there two dogs?"]})
    folder = tmp_path / "00000"
    (folder / "samples").mkdir(parents=True)
    (folder / "samples/0000.png").write_bytes(b"")
    (folder / "metadata.jsonl").write_text(json.dumps({"category": "counting", "prompt": "three red circles"}))
    with pytest.raises(ConfigError, match="is of the prompt 'three red circles'"):
        contents(tmp_path, [prompt])
    (folder / "metadata.jsonl").write_text(json.dumps({"points": ["Are there two dogs?"], "prompt": "dogs, two"}))
    assert contents(tmp_path, [prompt]).reworded == 1  # as official files, which have no category
