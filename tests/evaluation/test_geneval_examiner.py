"""GenEval's prompt file, its examiner over a detector, and the figures of its summary."""

import json
import math
from collections import Counter

import pytest
import torch

from unigrpo.evaluation import geneval
from unigrpo.evaluation.geneval import Geneval, figures, read_prompts, variant
from unigrpo.evaluation.geneval_rules import judge
from unigrpo.geneval_names import TAGS
from unigrpo.ranges import ConfigError
from unigrpo.trajectory import Prompt
from unigrpo.worlds.geneval import fixed

DOG = {"tag": "single_object", "include": [{"class": "dog", "count": 1}]}
RED = {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}]}
TWO = {**DOG, "tag": "counting", "include": [{"class": "dog", "count": 2}], "exclude": [{"class": "dog", "count": 3}]}


def dog(score=0.95, color=None, box=(0.0, 0.0, 10.5, 10.0)):
    return {"class": "dog", "box": list(box), "score": score, "color": color}


class Recorded:
    """A detector with answers by the height of the picture."""

    def __init__(self, *answers):
        self.about = {"name": "recorded", "version": 3}
        self.answers, self.shown = dict(enumerate(answers, 1)), []

    def __call__(self, picture, wanted):
        self.shown.append((tuple(picture.shape), tuple(wanted)))
        return self.answers[picture.shape[1]]


def examined(metadata, *answers):
    detector = Recorded(*answers)
    pictures = [torch.zeros(3, height, 5, dtype=torch.uint8) for height in range(1, len(answers) + 1)]
    prompts = [Prompt(i, f"prompt {i}", one) for i, one in enumerate(metadata)]
    return Geneval(detector=detector)(pictures, prompts, [None] * len(prompts)), detector


def test_a_record_says_what_was_found_and_can_be_judged_again():
    records, detector = examined([RED, DOG], [dog(0.4, "pink"), dog(0.95, "red"), dog(0.1)], [dog(0.3)])
    assert records[0] == {
        "category": "colors",
        "correct": True,
        "exam": None,
        "reasons": [],
        "failed": None,
        "values": {},
        "detail": {
            "asked": {"prompt": "prompt 0", **RED},
            "found": {"dog": [[0.0, 0.0, 10.5, 10.0, 0.95, "red"], [0.0, 0.0, 10.5, 10.0, 0.4, "pink"]]},
        },
    }
    assert records[1]["correct"] is False and records[1]["reasons"] == ["1 dog wanted, 0 found"]
    assert detector.shown == [((3, 1, 5), ("dog",)), ((3, 2, 5), ())]  # colours are asked for where they matter
    for record in json.loads(json.dumps(records)):
        found = [
            {"class": name, "box": one[:4], "score": one[4], "color": one[5]}
            for name, group in record["detail"]["found"].items()
            for one in reversed(group)
        ]
        assert judge(record["detail"]["asked"], found).correct is record["correct"]


def test_who_examines_is_told():
    about = Geneval(detector=Recorded()).about
    assert json.loads(json.dumps(about)) == {
        "rules": "geneval",
        "threshold": 0.3,
        "counting_threshold": 0.9,
        "max_objects": 16,
        "detector": {"name": "recorded", "version": 3},
    }


@pytest.mark.parametrize(
    ("metadata", "answer", "why"),
    [(DOG, [dog(math.nan)], "NaN"), (RED, [dog(0.9)], "without a colour"), (DOG, [{"class": "dog"}], "must have")],
)
def test_what_cannot_be_judged_is_failed_and_not_wrong(metadata, answer, why):
    records, _ = examined([metadata], answer)
    assert records[0]["correct"] is None and why in records[0]["failed"]
    assert figures(records)["overall"] is None and figures(records)["failed"] == 1


def test_prompts_of_another_kind_are_refused():
    with pytest.raises(ConfigError, match=r"the prompt 'prompt 0'.*tag and include"):
        examined([{"category": "all"}], [])


def test_all_prompts_of_ours_can_be_examined():
    metadata = [p.metadata for p in fixed(120)]
    records, _ = examined(metadata, *[[dog()]] * 120)
    assert Counter(r["category"] for r in records) == dict.fromkeys(TAGS, 20)
    assert figures(records)["images"] == 120


# figures


def record(tag, correct, prompt="p"):
    return {"category": tag, "correct": correct, "detail": {"asked": {"prompt": prompt, "tag": tag}}}


def test_overall_is_the_mean_of_categories_however_many_pictures_they_have():
    records = [record("colors", i == 0, "a" if i < 2 else "b") for i in range(4)]
    records += [record("counting", True), record("counting", None)]
    assert figures(records) == {
        "overall": (0.25 + 1.0) / 2,
        **dict.fromkeys(TAGS),
        "colors": 0.25,
        "counting": 1.0,
        "correct_images": 2 / 5,
        "correct_prompts": 2 / 3,  # a and counting's have a correct picture, b has none
        "images": 5,
        "prompts": 3,
        "failed": 1,
    }
    assert list(figures(records))[:7] == ["overall", *TAGS]


def test_nothing_examined_has_no_figures():
    assert figures([])["overall"] is None and figures([])["correct_prompts"] is None and figures([])["prompts"] == 0


# the file


def written(tmp_path, *lines):
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_prompts_come_in_the_order_of_the_file(tmp_path):
    prompts = read_prompts(written(tmp_path, {**DOG, "prompt": "a photo of a dog"}, "", {**TWO, "prompt": "two dogs"}))
    assert prompts == [
        Prompt(0, "a photo of a dog", {**DOG, "category": "single_object"}),
        Prompt(1, "two dogs", {**TWO, "category": "counting"}),
    ]
    assert variant(prompts) == "other prompts"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{tag", "line 2 is no JSON"),
        ("3", "line 2: GenEval's rules need metadata"),
        ({**DOG, "tag": "colour", "prompt": "p"}, "line 2: GenEval metadata: tag = 'colour'"),
        ({**DOG, "include": [{"class": "doge", "count": 1}], "prompt": "p"}, r"line 2: .*include\[0\].class = 'doge'"),
        ({**TWO, "exclude": [{"class": "dog"}], "prompt": "p"}, r"line 2: .*exclude\[0\].count = None"),
        (DOG, "line 2: prompt = None must be the words"),
        ({**DOG, "prompt": " "}, "line 2: prompt = ' '"),
    ],
)
def test_every_line_is_checked(tmp_path, line, said):
    with pytest.raises(ConfigError, match=said):
        read_prompts(written(tmp_path, {**DOG, "prompt": "a photo of a dog"}, line))


def test_files_that_hold_nothing(tmp_path):
    with pytest.raises(ConfigError, match="holds no prompts"):
        read_prompts(written(tmp_path, ""))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_prompts(tmp_path / "absent.jsonl")


def test_a_list_is_known_by_its_tasks_and_its_words(monkeypatch):
    prompts = [Prompt(0, "a photo of a dog", {**DOG, "category": "single_object"})]
    monkeypatch.setattr(
        geneval, "_ASKED", geneval._hash([{"tag": DOG["tag"], "include": DOG["include"], "exclude": None}])
    )
    assert variant(prompts) == "rewritten"
    monkeypatch.setattr(geneval, "_WORDED", geneval._hash(["a photo of a dog"]))
    assert variant(prompts) == "official"
    assert variant(prompts * 2) == "other prompts"
