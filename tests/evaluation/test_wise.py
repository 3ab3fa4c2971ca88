"""WISE in both editions, from small files in its format: which edition it is, what is refused, read and summed."""

import json

import pytest
from judging import NOWHERE, answers, examined, faults, judge, quickly  # noqa: F401

from unigrpo.evaluation import wise
from unigrpo.evaluation.wise_editions import LEGACY, VERIFIED, read_score, read_scores
from unigrpo.ranges import ConfigError

QWEN, GPT = "Qwen/Qwen3.5-35B-A3B", "gpt-4o-2024-05-13"
NAMES = {"CULTURE": "Cultural knowledge", "TIME": "time", "SPACE": "Space", "BIOLOGY": "Biology"} | {
    "PHYSICS": "Physical Knowledge",
    "CHEMISTRY": "Chemistry",
}
SCRIPT = '''
raise SystemExit("no script of a benchmark is ever run")

def build_evaluation_messages(prompt_data, image_base64):
    return [
        {"role": "system", "content": [{"type": "text", "text": "You are strict."}]},
        {"role": "user", "content": [
            {"type": "text", "text": f"""Say Score: 0 or 1.
P: "{prompt_data['Prompt']}" E: "{prompt_data['Explanation']}" """},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image_base64}"}},
        ]},
    ]
'''


def row(number, category, **other):
    words = {"Prompt": f"What prompt {number} hints at", "Explanation": f"it shows thing {number}"}
    return {**words, "Category": NAMES[category], "Subcategory": "X", "prompt_id": number, **other}


def written(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))
    return path


ENDS = {"verified": (1, 401, 521, 641, 761, 881), "legacy": (400, 567, 700, 800, 900, 1000)}


@pytest.fixture(params=["verified", "legacy"])
def edition(request):
    return request.param


def small(path, edition):
    """A file with the first prompt of every category."""
    rows = [row(number, category) for number, category in zip(ENDS[edition], NAMES, strict=True)]
    return written(path, rows)


def examiner(path, server, edition, **other):
    return wise.WiseExaminer(judge=judge(server, QWEN if edition == "verified" else GPT), path=str(path), **other)


# ---------------------------------------------------------------- files and editions


def test_categories_go_by_the_ids_of_the_edition(tmp_path, edition):
    prompts = wise.prompts(str(small(tmp_path / "x.json", edition)))
    assert [p.metadata["category"] for p in prompts] == list(NAMES)
    assert {p.metadata["edition"] for p in prompts} == {edition}
    assert [p.metadata["prompt_id"] for p in prompts] == list(ENDS[edition])
    assert prompts[0].text == f"What prompt {ENDS[edition][0]} hints at"
    assert prompts[0].metadata["explanation"] == f"it shows thing {ENDS[edition][0]}"
    assert [p.position for p in prompts] == list(range(6))


def test_a_clone_gives_the_verified_edition_and_its_legacy_folder_the_other(tmp_path):
    cuts = {
        "cultural_common_sense": slice(0, 1),
        "spatio-temporal_reasoning": slice(1, 3),
        "natural_science": slice(3, 6),
    }
    for name, cut in cuts.items():
        for edition, place, suffix in (
            ("verified", "data_verified", "_verified.json"),
            ("legacy", "WISE_legacy/data", ".json"),
        ):
            rows = [row(n, c) for n, c in list(zip(ENDS[edition], NAMES, strict=True))[cut]]
            written(tmp_path / place / f"{name}{suffix}", rows)
    for place, edition in (
        (".", "verified"),
        ("data_verified", "verified"),
        ("WISE_legacy", "legacy"),
        ("WISE_legacy/data", "legacy"),
    ):
        prompts = wise.prompts(str(tmp_path / place))
        assert len(prompts) == 6 and prompts[0].metadata["edition"] == edition, place
    with pytest.raises(ConfigError, match="does not hold the official files"):
        wise.prompts(str(tmp_path / "data_verified" / ".." / ".."))


def test_files_that_both_editions_could_have_go_by_their_official_name_or_are_refused(tmp_path):
    rows = [row(1, "CULTURE"), row(400, "CULTURE")]
    for name, edition in (
        ("cultural_common_sense", "legacy"),
        ("cultural_common_sense_verified", "verified"),
        ("merge", "verified"),
    ):
        assert wise.prompts(str(written(tmp_path / f"{name}.json", rows)))[0].metadata["edition"] == edition
    path = str(written(tmp_path / "mine.json", rows))
    with pytest.raises(ConfigError, match="may be of either edition"):
        wise.prompts(path)
    assert wise.prompts(path, edition="legacy")[0].metadata["edition"] == "legacy"
    with pytest.raises(ConfigError, match="edition is 'old'"):
        wise.prompts(path, edition="old")


def test_editions_are_not_mixed(tmp_path):
    rows = [row(530, "SPACE"), row(530, "TIME")]
    with pytest.raises(
        ConfigError, match=r"row 2: prompt_id 530 is TIME, but SPACE in the verified edition, nor do all"
    ):
        wise.prompts(str(written(tmp_path / "x.json", rows)))
    path = str(small(tmp_path / "y.json", "legacy"))
    with pytest.raises(ConfigError, match="prompt_id 567 is TIME, but SPACE in the verified edition"):
        wise.prompts(path, edition="verified")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"Explanation": None}, "row 2 has no Explanation .* what the judge goes by"),
        ({"Explanation": " "}, "row 2 has no Explanation"),
        ({"Prompt": 3}, "row 2 has no Prompt"),
        ({"prompt_id": "2"}, "row 2: prompt_id is '2'"),
        ({"prompt_id": 1001}, "row 2: prompt_id is 1001"),
        ({"prompt_id": 401}, "prompt_id 401 is there twice"),
        ({"answer": "x"}, "row 2 has 'answer', unknown to WISE's format"),
    ],
)
def test_unknown_formats_are_refused_and_the_row_is_named(tmp_path, change, said):
    rows = [
        row(401, "TIME"),
        {**row(530, "SPACE"), **({"Category": "time"} if change.get("prompt_id") == 401 else {}), **change},
    ]
    with pytest.raises(ConfigError, match=said):
        wise.prompts(str(written(tmp_path / "merge.json", rows)))


@pytest.mark.parametrize("content", ["{}", "[]", "[3]", "[", ""])
def test_what_is_no_list_of_rows_is_refused(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ConfigError, match=r"x\.json"):
        wise.prompts(str(tmp_path / "x.json"))


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Score: 1", [1.0]),
        ("**Score**: 0", [0.0]),
        ("**Score:** 1", [1.0]),
        ("score 1\nThe picture is right.", [1.0]),
        ("1", [1.0]),
        ("  0 \n", [0.0]),
        ("Score: 0 or Score: 1", None),
        ("1\n0", None),
        ("Score: 10", None),
        ("Score: 2", None),
        ("The score is good", None),
        ("", None),
    ],
)
def test_a_binary_score(text, said):
    assert read_score(text) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Consistency: 2\nRealism: 1\nAesthetic Quality: 0", [1.0, 0.5, 0.0]),
        ("**Aesthetic Quality**: 1\n**Consistency**: 0\n**Realism:** 2", [0.0, 1.0, 0.5]),
        ("2\n1\n0\n", [1.0, 0.5, 0.0]),
        ("Consistency: 2\nRealism: 1", None),
        ("Consistency: 3\nRealism: 1\nAesthetic Quality: 0", None),
        ("Consistency: 1.5\nRealism: 1\nAesthetic Quality: 0", None),
        ("Consistency: 1\nConsistency: 2\nRealism: 1\nAesthetic Quality: 0", None),
        ("2\n1", None),
        ("fine", None),
    ],
)
def test_three_scores(text, said):
    assert read_scores(text) == said


# ---------------------------------------------------------------- scores


def test_verified_scores_are_weighted_by_category(tmp_path):
    path = small(tmp_path / "x.json", "verified")
    right = ("thing 1.", "thing 401.", "thing 881.")
    says = lambda nth, words: faults.says(f"Score: {int(any(thing in words for thing in right))}")  # noqa: E731
    with faults.running(says) as server:
        asks = examiner(path, server, "verified")
        asks.template = asks.template.replace("{Explanation}", "{Explanation}.")
        found = examined(asks, wise.prompts(str(path)))
        (body, *_) = server.requests
    assert [one["exam"] for one in found] == [1, 1, 0, 0, 0, 1]
    assert [one["correct"] for one in found] == [True, True, False, False, False, True]
    assert found[2]["reasons"] == ["score 0 of 1"] and found[2]["values"] == {"score": 0}
    figures = wise.figures(found)
    assert figures["overall"] == pytest.approx(0.4 + 0.12 + 0.12) and figures["SPACE"] == 0
    assert body["chat_template_kwargs"] == {"enable_thinking": False} and body["max_tokens"] == 500
    assert json.dumps(found)


def test_legacy_scores_are_weighted_twice(tmp_path):
    path = small(tmp_path / "x.json", "legacy")
    with faults.running(answers(["Consistency: 2\nRealism: 1\nAesthetic Quality: 0"])) as server:
        found = examined(examiner(path, server, "legacy"), wise.prompts(str(path)))
    assert [one["exam"] for one in found] == pytest.approx([(0.7 * 2 + 0.2 * 1) / 2] * 6)
    assert found[0]["correct"] is True and found[0]["reasons"] == ["realism 1 of 2", "aesthetic quality 0 of 2"]
    assert found[0]["values"] == {"consistency": 2, "realism": 1, "aesthetic quality": 0}
    assert wise.figures(found)["overall"] == pytest.approx(0.8 * (0.4 + 0.167 + 0.133 + 0.3))


def test_no_score_is_none_and_a_category_without_one_leaves_no_overall(tmp_path, edition):
    path = small(tmp_path / "x.json", edition)
    good = "Score: 1" if edition == "verified" else "2\n2\n2"
    says = lambda nth, words: faults.says("Splendid!" if "881" in words or "1000" in words else good)  # noqa: E731
    with faults.running(says) as server:
        found = examined(examiner(path, server, edition), wise.prompts(str(path)))
    last = found[-1]
    assert last["exam"] is None and last["correct"] is None and set(last["values"].values()) == {None}
    assert last["failed"].startswith("asked twice, the judge did not give") and "Splendid" in last["failed"]
    figures = wise.figures(found)
    assert (figures["overall"], figures["CHEMISTRY"], figures["CULTURE"], figures["unanswered"]) == (None, None, 1.0, 1)


def test_weights_and_ranges_are_whole():
    for edition in (VERIFIED, LEGACY):
        assert sum(edition.weights) == pytest.approx(1.0) and edition.ends[-1] == 1000


# ---------------------------------------------------------------- judge and template


def test_the_judge_of_another_edition_is_refused(tmp_path, edition):
    path, wrong = small(tmp_path / "x.json", edition), GPT if edition == "verified" else QWEN
    given = {"judge": {**NOWHERE, "model": wrong}, "path": str(path)}
    with pytest.raises(ConfigError, match=f"wise-{edition} is judged by"):
        wise.WiseExaminer(**given)
    about = wise.WiseExaminer(**given, any_judge=True).about
    assert about["name"].startswith(f"wise-{edition} (judge {wrong}, not ") and about["edition"] == edition
    for near in ("gpt-4o", "Qwen3.5-35B-A3B-FP8"):
        with pytest.raises(ConfigError, match="is another judge"):
            wise.WiseExaminer(judge={**NOWHERE, "model": near}, path=str(path))


def test_the_official_template_is_read_from_the_clone(tmp_path):
    path = written(tmp_path / "data_verified" / "merge.json", [row(1, "CULTURE", Prompt='say "{Explanation}"')])
    (tmp_path / "vllm_eval.py").write_text(SCRIPT)
    with faults.running(answers(["Score: 1"])) as server:
        asks = examiner(path, server, "verified")
        examined(asks, wise.prompts(str(path)))
        (body,) = server.requests
    system, user = body["messages"]
    assert system == {"role": "system", "content": "You are strict."}
    words, image = user["content"]
    assert words["text"] == 'Say Score: 0 or 1.\nP: "say "{Explanation}"" E: "it shows thing 1" '
    assert image["type"] == "image_url" and asks.about["name"] == "wise-verified"
    assert asks.about["template"]["source"] == "official vllm_eval.py" and list(asks.about["files"]) == ["merge.json"]


def test_our_own_words_and_rewritten_prompts_are_in_the_name(tmp_path):
    path = written(tmp_path / "natural_science_rewrite.json", [row(701, "BIOLOGY"), row(801, "PHYSICS")])
    about = wise.WiseExaminer(judge={**NOWHERE, "model": GPT}, path=str(path)).about
    assert about["name"] == "wise-legacy (rewritten prompts; our own wording of the question)"


def test_pictures_of_one_edition_are_not_scored_as_the_other(tmp_path):
    verified, legacy = (small(tmp_path / f"{name}.json", name) for name in ("verified", "legacy"))
    with faults.running() as server, pytest.raises(ConfigError, match="is of the legacy edition"):
        examined(examiner(verified, server, "verified"), wise.prompts(str(legacy)))
