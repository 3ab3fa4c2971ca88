"""GenEval 2 from small files in its format: what is read, refused and asked, and the scores of recorded answers."""

import json
import math

import pytest
from judging import NOWHERE, answers, examined, faults, first_token, judge, lines, quickly  # noqa: F401

from unigrpo.evaluation import geneval2
from unigrpo.ranges import ConfigError
from unigrpo.trajectory import Prompt

OFFICIAL = "Qwen/Qwen3-VL-8B-Instruct"
ROW = {
    "prompt": "two striped kites above a tent",
    "atom_count": 4,
    "vqa_list": [
        ["How many kites are in the image?", "two"],
        ["Are the kites striped?", "Yes"],
        ["Are there any kites in the image?", "Yes"],
        ["Are the kites above the tent?", "Yes"],
    ],
    "skills": ["count", "attribute", "object", "position"],
}
OTHER = {
    "prompt": "a tin owl",
    "atom_count": 3,
    "vqa_list": [["Is the owl made of tin?", "Yes"]],
    "skills": ["attribute"],
}
SCRIPT = """
raise SystemExit("no script of a benchmark is ever run")

def tifa(vqa_list, image):
    send("another wording: {}".format(question), image)

def soft_tifa(vqa_list, image):
    send("{} One word, please.".format(question), image)
"""


@pytest.fixture
def path(tmp_path):
    return lines(tmp_path / "geneval2_data.jsonl", [ROW, OTHER])


def examiner(path, server, **other):
    return geneval2.GenEval2Examiner(judge=judge(server, OFFICIAL), path=str(path), **other)


# ---------------------------------------------------------------- the file


def test_prompts_of_the_file_or_of_its_folder(path):
    prompts = geneval2.prompts(str(path))
    assert [(p.position, p.text, p.metadata["category"]) for p in prompts] == [
        (0, ROW["prompt"], "4 atoms"),
        (1, OTHER["prompt"], "3 atoms"),
    ]
    assert prompts[0].metadata["vqa_list"] == ROW["vqa_list"]
    assert geneval2.prompts(str(path.parent)) == prompts
    assert geneval2.version(str(path)) == geneval2.version(str(path.parent))


def test_what_takes_no_part_in_the_score_may_be_missing(tmp_path):
    bare = {"prompt": ROW["prompt"], "vqa_list": ROW["vqa_list"]}
    (prompt,) = geneval2.prompts(str(lines(tmp_path / "bare.jsonl", [bare])))
    assert prompt.metadata["category"] == "all" and "skills" not in prompt.metadata


@pytest.mark.parametrize("missing", [None, [], "none", {}])
def test_a_row_without_its_questions_is_refused_and_named(tmp_path, missing):
    row = {key: value for key, value in OTHER.items() if key != "vqa_list"}
    row |= {} if missing is None else {"vqa_list": missing}
    path = lines(tmp_path / "x.jsonl", [ROW, row])
    with pytest.raises(ConfigError, match=r"x\.jsonl, line 2 has no vqa_list .* another metric \(VQAScore"):
        geneval2.prompts(str(path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": " "}, "has no prompt"),
        ({"vqa_list": [["Is it?"]]}, "vqa_list, number 1 is .* no pair"),
        ({"vqa_list": [["Is it?", "No"]]}, "has the answer 'No'"),
        ({"vqa_list": [["How many owls are in the image?", "Yes"]]}, "has the answer 'Yes'"),
        ({"vqa_list": [["How many owls are in the image?", "twelve"]]}, "has the answer 'twelve'"),
        ({"skills": ["attribute", "object"]}, "skills is"),
        ({"skills": ["colour"]}, "skills is"),
        ({"atom_count": "3"}, "atom_count is '3'"),
        ({"questions": []}, "has 'questions', unknown to GenEval 2's format"),
        ({"prompt": ROW["prompt"]}, "the prompt of .*line 1 again"),
    ],
)
def test_unknown_formats_are_refused_and_the_row_is_named(tmp_path, change, said):
    path = lines(tmp_path / "x.jsonl", [ROW, {**OTHER, **change}])
    with pytest.raises(ConfigError, match=said) as error:
        geneval2.prompts(str(path))
    assert "line 2" in str(error.value)


@pytest.mark.parametrize("content", ["", "not json\n", "[1, 2]\n", '{"prompt": NaN}\n'])
def test_a_file_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(ConfigError, match=r"x\.jsonl"):
        geneval2.prompts(str(tmp_path / "x.jsonl"))
    with pytest.raises(ConfigError, match="is not there"):
        geneval2.prompts(str(tmp_path / "absent.jsonl"))


# ---------------------------------------------------------------- one answer


def read(question, answer, **masses):
    return geneval2.read_answer(question, answer, first_token(**masses)["content"])


def test_the_probability_of_an_answer_is_that_of_all_its_spellings():
    yes = read("Is it red?", "Yes", Yes=0.5, yes=0.125, _Yes=0.0625, No=0.25, YES=0.03)
    assert yes == pytest.approx([0.6875, 1.0, 0.6875])  # YES is none of the official spellings
    many = read("How many owls?", "two", **{"2": 0.25, "two": 0.25, "Two": 0.125, "three": 0.3, "_two": 0.05})
    assert many == pytest.approx([0.675, 0.0, 0.675])  # three is the likeliest single token


def test_an_answer_that_is_not_listed_is_nothing_and_at_most_the_least_that_is():
    assert read("How many owls?", "two", three=0.9, four=0.01) == pytest.approx([0.0, 0.0, 0.01])
    assert read("Is it red?", "Yes", No=1.0) == pytest.approx([0.0, 0.0, 1.0])


@pytest.mark.parametrize("tokens", [[], ["x"], [{"token": "Yes"}], [{"token": "Yes", "top_logprobs": "all"}]])
def test_without_log_probabilities_there_is_no_answer(tokens):
    assert geneval2.read_answer("Is it red?", "Yes", tokens) is None


def test_garbage_is_no_answer_rather_than_an_improbable_one():
    assert read("Is it red?", "Yes", The=0.9, It=0.1) is None
    assert read("How many owls?", "two", Yes=0.9, No=0.1) is None
    assert (
        geneval2.read_answer("Is it?", "Yes", [{"top_logprobs": [{"token": 3}, {"token": "Yes", "logprob": math.nan}]}])
        is None
    )


# ---------------------------------------------------------------- the score


def test_arithmetic_and_geometric_means_of_recorded_answers(path):
    said = {
        "How many kites": first_token(two=0.4, three=0.6),
        "striped": first_token(Yes=0.9, No=0.1),
        "any kites": first_token(Yes=1.0),
        "above": first_token(Yes=0.5, No=0.25, Maybe=0.25),
        "tin": first_token(Yes=0.8, No=0.2),
    }
    reply = lambda nth, words: next(faults.says("x", tokens) for key, tokens in said.items() if key in words)  # noqa: E731
    prompts = geneval2.prompts(str(path))
    with faults.running(reply) as server:
        first, second = found = examined(examiner(path, server), prompts)
    assert first["exam"] == first["values"]["soft_tifa_am"] == pytest.approx((0.4 + 0.9 + 1 + 0.5) / 4)
    assert first["values"]["soft_tifa_gm"] == pytest.approx((0.4 * 0.9 * 0.5) ** 0.25)
    assert (first["values"]["tifa"], first["correct"], second["correct"]) == (0.75, False, True)
    assert first["reasons"] == ["How many kites are in the image? (should be two)"]
    figures = geneval2.figures(found)
    assert figures["soft_tifa_am"] == pytest.approx((0.7 + 0.8) / 2)
    assert figures["am_by_skill"] == pytest.approx({"count": 0.4, "attribute": 0.85, "object": 1.0, "position": 0.5})
    assert list(figures["gm_by_atoms"]) == ["3 atoms", "4 atoms"] and figures["unanswered"] == 0


def test_one_question_without_an_answer_leaves_the_picture_without_a_score(path):
    def fault(nth, words):
        return faults.says("x", first_token(The=1.0) if "striped" in words else first_token(Yes=0.9, two=0.1))

    prompts = geneval2.prompts(str(path))
    with faults.running(fault) as server:
        first, second = found = examined(examiner(path, server), prompts)
    assert first["exam"] is None and first["correct"] is None and set(first["values"].values()) == {None}
    assert first["failed"].startswith("1 of 4 questions have no answer; 'Are the kites striped?': asked twice")
    assert first["detail"]["p"] == [pytest.approx(0.1), None, pytest.approx(0.9), pytest.approx(0.9)]
    assert second["exam"] == pytest.approx(0.9)
    assert geneval2.figures(found)["unanswered"] == 1 and geneval2.figures(found)["soft_tifa_am"] == pytest.approx(0.9)


def test_a_judge_without_log_probabilities_scores_nothing(path):
    with faults.running(answers(["Yes"])) as server:
        found = examined(examiner(path, server), geneval2.prompts(str(path)))
    assert all(one["exam"] is None and "log probabilities" in one["failed"] for one in found)


def test_pictures_whose_prompts_have_no_questions_are_refused_before_anything_is_asked(path):
    with faults.running() as server:
        asks = examiner(path, server)
        prompts = [*geneval2.prompts(str(path)), Prompt(2, "a bare prompt", {"category": "all"})]
        with pytest.raises(ConfigError, match="metadata of the prompt 'a bare prompt' have no vqa_list"):
            examined(asks, prompts)
        assert not server.requests


def test_geometric_mean():
    assert geneval2.geometric_mean([0.25, 1.0]) == pytest.approx(0.5)
    assert geneval2.geometric_mean([0.0, 1.0]) == 0.0


# ---------------------------------------------------------------- judge and template


def test_the_official_template_is_read_from_the_users_script_which_does_not_run(path):
    (path.parent / "evaluation.py").write_text(SCRIPT)
    with faults.running(answers(["x"])) as server:
        asks = examiner(path, server)
        examined(asks, geneval2.prompts(str(path))[1:])
        (body, *_) = server.requests
    assert asks.about["name"] == "geneval2" and asks.about["template"]["source"] == "official evaluation.py"
    image, words = body["messages"][0]["content"]
    assert words["text"] == "Is the owl made of tin? One word, please." and image["type"] == "image_url"
    assert (body["max_tokens"], body["temperature"], body["top_logprobs"]) == (1, 0, 20)
    assert list(asks.about["files"]) == ["geneval2_data.jsonl"]


def test_without_the_script_the_result_says_that_the_words_are_ours(path):
    with faults.running() as server:
        about = examiner(path, server).about
    assert about["name"] == "geneval2 (our own wording of the question)"
    assert about["template"]["source"] == "unigrpo, version 1" and len(about["template"]["sha256"]) == 64


def test_a_script_without_the_template_is_refused(path):
    (path.parent / "evaluation.py").write_text("def other(): pass\n")
    with pytest.raises(ConfigError, match=r"evaluation\.py has no function soft_tifa"):
        geneval2.GenEval2Examiner(judge={**NOWHERE, "model": OFFICIAL}, path=str(path))
    (path.parent / "evaluation.py").write_text("def soft_tifa(:\n")
    with pytest.raises(ConfigError, match="is no Python"):
        geneval2.GenEval2Examiner(judge={**NOWHERE, "model": OFFICIAL}, path=str(path))


def test_another_judge_is_refused_unless_the_result_may_say_so(path):
    given = {"judge": {**NOWHERE, "model": "Qwen2.5-VL-7B-Instruct"}, "path": str(path)}
    with pytest.raises(ConfigError, match=r"judged by Qwen3-VL-8B-Instruct.*any_judge: true"):
        geneval2.GenEval2Examiner(**given)
    name = geneval2.GenEval2Examiner(**given, any_judge=True).about["name"]
    assert name.startswith("geneval2 (judge Qwen2.5-VL-7B-Instruct, not Qwen3-VL-8B-Instruct")
    with pytest.raises(ConfigError, match="any_judge is 'yes'"):
        geneval2.GenEval2Examiner(**given, any_judge="yes")
    with pytest.raises(ConfigError, match="top_logprobs: 0"):
        geneval2.GenEval2Examiner(judge={**given["judge"], "top_logprobs": 0}, path=str(path), any_judge=True)


def test_answers_are_remembered(path, tmp_path):
    with faults.running(lambda nth, words: faults.says("Yes", first_token(Yes=0.75, two=0.25))) as server:
        given = {"judge": judge(server, OFFICIAL, cache=str(tmp_path / "cache.sqlite")), "path": str(path)}
        prompts = geneval2.prompts(str(path))
        first = examined(geneval2.GenEval2Examiner(**given), prompts)
        asked = len(server.requests)
        assert examined(geneval2.GenEval2Examiner(**given), prompts) == first and len(server.requests) == asked == 5
    assert json.dumps(first)
