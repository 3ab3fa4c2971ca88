"""TIIF-Bench from small files in its format: pairs of files, refusals, answers by lines, and the nine groups."""

import json

import pytest
from judging import NOWHERE, answers, examined, faults, judge, lines, quickly  # noqa: F401

from unigrpo.evaluation import tiif
from unigrpo.ranges import ConfigError

OFFICIAL = "gpt-4o"
SPATIAL, NEGATION = "2d_spatial_relation", "negation"


def asked(exam):
    return {"yn_question_list": list(exam), "yn_answer_list": list(exam.values())}


ROWS = {
    SPATIAL: [
        {
            "type": SPATIAL,
            "short_description": "A heron below a kite.",
            "long_description": "Far below a kite, a heron.",
        },
        {
            "type": SPATIAL,
            "short_description": "An oar left of a tub.",
            "long_description": "Left of a tub, an oar rests.",
        },
    ],
    NEGATION: [
        {"type": NEGATION, "short_description": "A desk without a lamp.", "long_description": "A bare desk, no lamp."},
    ],
}
EXAMS = {
    SPATIAL: [
        {"type": SPATIAL, **asked({"Is there a heron?  ": "yes", "Is there a kite?": "Yes"})},
        {"type": SPATIAL, "yn_question_list": ["Is there an oar?"], "yn_answer_list": ["yes"], "corrspond_idx": 7},
    ],
    NEGATION: [
        {"type": NEGATION, **asked({"Is there a desk?": "yes", "Is a lamp on the desk?": "no"})},
    ],
}  # fmt: skip
SCRIPT = """
raise SystemExit("no script of a benchmark is ever run")
raw_prompt = 'first\\n##YNQuestions##\\nend'
raw_prompt_1 = 'second\\n##YNQuestions##\\nend'
raw_prompt_2 = 'third\\n##YNQuestions##\\nend'

def generate_with_prompt(prompt, path):
    return [{"role": "system", "content": "You look closely."}, {"role": "user", "content": [{"text": prompt}]}]
"""


@pytest.fixture
def folder(tmp_path):
    for kind in ROWS:
        lines(tmp_path / "data" / "testmini_prompts" / f"{kind}_prompts.jsonl", ROWS[kind])
        lines(tmp_path / "data" / "testmini_eval_prompts" / f"{kind}_eval_prompts.jsonl", EXAMS[kind])
    return tmp_path / "data" / "testmini_prompts"


def changed(folder, kind, rows, *, questions=True):
    place = folder.with_name("testmini_eval_prompts") if questions else folder
    return lines(place / f"{kind}{'_eval' if questions else ''}_prompts.jsonl", rows)


def examiner(folder, server, **other):
    return tiif.TiifExaminer(judge=judge(server, OFFICIAL), path=str(folder), **other)


# ---------------------------------------------------------------- the files


def test_every_row_is_a_short_and_a_long_prompt_with_its_questions(folder):
    prompts = tiif.prompts(str(folder))
    assert [p.position for p in prompts] == list(range(6))
    assert [p.text for p in prompts[:2]] == [ROWS[SPATIAL][0][f"{way}_description"] for way in ("short", "long")]
    assert prompts[0].metadata == {
        "category": SPATIAL,
        "length": "short",
        "questions": ["Is there a heron?", "Is there a kite?"],
        "answers": ["yes", "yes"],
    }
    assert tiif.prompts(str(folder / f"{NEGATION}_prompts.jsonl"))[0].metadata["answers"] == ["yes", "no"]
    assert tiif.version(str(folder)) != tiif.version(str(folder / f"{NEGATION}_prompts.jsonl"))


def test_prompts_without_a_file_of_questions_are_refused(folder):
    (folder.with_name("testmini_eval_prompts") / f"{NEGATION}_eval_prompts.jsonl").unlink()
    with pytest.raises(
        ConfigError, match=r"negation_prompts.jsonl has no question list: .*negation_eval_prompts.jsonl"
    ):
        tiif.prompts(str(folder))


@pytest.mark.parametrize("missing", ["yn_question_list", "yn_answer_list"])
@pytest.mark.parametrize("value", [None, [], "none"])
def test_a_row_without_questions_or_answers_is_refused_and_named(folder, missing, value):
    second = {**EXAMS[SPATIAL][1]}
    del second[missing]
    changed(folder, SPATIAL, [EXAMS[SPATIAL][0], {**second, **({} if value is None else {missing: value})}])
    with pytest.raises(ConfigError, match=rf"2d_spatial_relation_eval_prompts.jsonl, line 2 has no {missing}"):
        tiif.prompts(str(folder))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"yn_answer_list": ["yes", "no"]}, "line 2 has 1 question and 2 answers"),
        ({"yn_answer_list": ["maybe"]}, "line 2: the answer 'maybe'"),
        ({"yn_question_list": [3]}, "line 2: 3 is no question"),
        ({"type": NEGATION}, "line 2: type 'negation' for a prompt of type '2d_spatial_relation'"),
    ],
)
def test_unknown_formats_are_refused(folder, change, said):
    changed(folder, SPATIAL, [EXAMS[SPATIAL][0], {**EXAMS[SPATIAL][1], **change}])
    with pytest.raises(ConfigError, match=said):
        tiif.prompts(str(folder))


def test_lists_that_cannot_belong_together_are_refused(folder):
    changed(folder, SPATIAL, EXAMS[SPATIAL][:1])
    with pytest.raises(ConfigError, match=r"has 2 prompts and .* 1 lists of questions"):
        tiif.prompts(str(folder))


def test_other_folders_are_refused(folder, tmp_path):
    for place in (tmp_path, tmp_path / "data", folder.with_name("testmini_eval_prompts")):
        with pytest.raises(ConfigError, match="is no folder of prompts of TIIF-Bench"):
            tiif.prompts(str(place))
    with pytest.raises(ConfigError, match=r"holds no file"):
        (tmp_path / "empty_prompts").mkdir()
        tiif.prompts(str(tmp_path / "empty_prompts"))
    changed(folder, NEGATION, [{**ROWS[NEGATION][0], "long_description": ""}], questions=False)
    with pytest.raises(ConfigError, match=r"negation_prompts\.jsonl, line 1 has no long_description"):
        tiif.prompts(str(folder))


def test_questions_of_other_rows_are_noticed(folder):
    assert tiif.strangers(tiif.prompts(str(folder))) == {}
    changed(folder, SPATIAL, EXAMS[SPATIAL][::-1])  # one row further, as happens in the full set
    with faults.running() as server:
        about = examiner(folder, server).about
    assert about["questions_without_a_word_of_their_prompt"] == {SPATIAL: 2}


# ---------------------------------------------------------------- answers and scores


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("yes, I see one\nNo, it is dark", [1, 0]),
        ("Here you are:\n\nYES\n  no.\n", [1, 0]),
        ("yes\nyes\nyes", None),
        ("yes", None),
        ("1. yes\n2. no", None),
        ("yesterday\nnothing", None),
        ("", None),
    ],
)
def test_lines_that_begin_with_yes_or_no_are_the_answers(text, said):
    assert tiif.read_lines(text, 2) == said


def test_groups_are_means_of_types_and_types_are_shares_of_questions(folder):
    def says(nth, words):
        if "heron" in words:
            return faults.says("yes, a heron\nno kite")
        return faults.says("yes" if "oar" in words else "Yes.\nYes, it is.")

    prompts = tiif.prompts(str(folder))
    with faults.running(says) as server:
        found = examined(examiner(folder, server), prompts)
        assert len(server.requests) == len(prompts)  # one for a picture
    assert [one["exam"] for one in found] == [0.5, 0.5, 1.0, 1.0, 0.5, 0.5]
    assert [one["correct"] for one in found] == [False, False, True, True, False, False]
    assert found[4]["reasons"] == ["Is a lamp on the desk? (should be no)"]
    figures = tiif.figures(found)
    assert figures["basic/relation (short)"] == pytest.approx(2 / 3)  # two of three questions, not (1/2 + 1) / 2
    assert figures["basic/reasoning (long)"] == 0.5 and figures["advanced/text (short)"] is None
    assert figures["overall (short)"] == pytest.approx((2 / 3 + 1 / 2) / 2) and figures["unanswered"] == 0
    assert json.dumps(found)


def test_garbage_is_asked_once_more_and_then_no_answer(folder):
    prompts = tiif.prompts(str(folder))[:2]
    with faults.running(answers(["I see a heron.", "yes\nyes", "I see."])) as server:
        (first, second) = found = examined(examiner(folder, server, batch=1), prompts)
        assert len(server.requests) == 4
        roles = [message["role"] for message in server.requests[1]["messages"]]
    assert roles == ["user", "assistant", "user"] and first["exam"] == 1.0
    assert second["exam"] is None and second["correct"] is None
    assert second["failed"] == "asked twice, the judge did not give 2 lines that begin with yes or no: 'I see.'"
    assert tiif.figures(found)["overall (short)"] == 1.0 and tiif.figures(found)["overall (long)"] is None
    assert tiif.figures(found)["unanswered"] == 1


def test_there_are_nine_groups_of_39_types():
    kinds = [kind for group in tiif.GROUPS.values() for kind in group]
    assert (len(tiif.GROUPS), len(kinds), len(set(kinds))) == (9, 39, 39)


# ---------------------------------------------------------------- judge and template


def test_the_official_templates_are_read_from_the_clone(folder, tmp_path):
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "eval_with_vlm.py").write_text(SCRIPT)
    prompts = tiif.prompts(str(folder))
    with faults.running(answers(["yes\nyes"])) as server:
        asks = examiner(folder, server)
        examined(asks, prompts[:1])
        examined(asks, prompts[:1])
        first, second = server.requests
    assert asks.about["name"] == "tiif" and "temperature 1" in asks.about["official"]
    system, user = first["messages"]
    assert system == {"role": "system", "content": "You look closely."}
    words, image = user["content"]  # the words come first
    kind, *rest = words["text"].split("\n")
    assert kind in ("first", "second", "third") and rest == ["Is there a heron?", "Is there a kite?", "end"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,") and first == second
    assert (first["temperature"], first["max_tokens"]) == (0, 2048) and "logprobs" not in first


def test_without_the_script_the_words_are_ours_and_other_judges_are_refused(folder):
    for model in ("gpt-4o", "Qwen/Qwen2.5-VL-72B-Instruct"):
        name = tiif.TiifExaminer(judge={**NOWHERE, "model": model}, path=str(folder)).about["name"]
        assert name == "tiif (our own wording of the questions)"
    given = {"judge": {**NOWHERE, "model": "gpt-4o-mini"}, "path": str(folder)}
    with pytest.raises(ConfigError, match=r"judged by gpt-4o or Qwen2\.5-VL-72B-Instruct"):
        tiif.TiifExaminer(**given)
    name = tiif.TiifExaminer(**given, any_judge=True).about["name"]
    assert "judge gpt-4o-mini, not gpt-4o or Qwen2.5-VL-72B-Instruct" in name


def test_a_script_of_another_form_is_refused(folder, tmp_path):
    (tmp_path / "eval").mkdir()
    script = tmp_path / "eval" / "eval_with_vlm.py"
    given = {"judge": {**NOWHERE, "model": "gpt-4o"}, "path": str(folder)}
    for text, said in (
        (SCRIPT.replace("raw_prompt_2", "raw_prompt_3"), "has no text raw_prompt_2"),
        (SCRIPT.replace("##YNQuestions##", "##"), "has no place for questions"),
        (SCRIPT.replace('"system"', '"tool"'), "has no message of the role system"),
    ):
        script.write_text(text)
        with pytest.raises(ConfigError, match=said):
            tiif.TiifExaminer(**given)
