"""The guide names every key that a run writes, and no other."""

import json
import re
from pathlib import Path

import pytest

import tiny_runs
from unigrpo.reports import runlog
from unigrpo.rewards import registry

ROOT = Path(__file__).parents[1]

GUIDE = (Path(__file__).parents[1] / "docs" / "guide.md").read_text(encoding="utf-8")
METRICS, RECORDS = GUIDE.split("## metrics.jsonl, key by key")[1].split("## What stops a run")[0].split("### Samples")
NAMED_BY_THE_WORLD = {"reward_by_category": "<category>", "by_category": "<category>", "verdict": "<part>"}
NAMED_BY_THE_WORLD |= {"reward_values": "<reward>", "values": "<reward>"}
RUNS = {
    "rl": {},
    "penalties": {
        "model__dtype": "bfloat16",
        "method__text__kl_weight": 0.01,
        "method__regulariser": "{kind: latent_kl, weight: 0.3}",
    },
    "thoughts": {
        "rollout__images_per_thinking": 2,
        "data__group_size": 4,
        "reward__train": "[{name: tests/fails-one}]",
        "reward__on_error": "drop_sample",
        "reward__max_failed_share": 0.5,
        "rollout__batch": 4,
    },
    "fpo": {"method": "{name: fpo, fpo: {pairs: 2}}"},
    "nft": {"method": "{name: diffusion_nft, nft: {pairs: 2}}"},
    "refl": {"method": "{name: refl}", "reward__train": "[{name: shapes/preference}]"},
    "rounds": {"rollout__rounds": 2},
    "supervised": {"recipe": tiny_runs.PRETRAIN, "optimizer__warmup": 0},
    "edit": {"recipe": tiny_runs.EDIT},
    "unjudged": {"reward__validation": "[{name: image/jpeg-compressibility}]"},
}


def fails_one(images, prompts, metadata, thinking):
    """A reward that cannot judge the first of several pictures."""
    return [None if i == 0 and len(prompts) > 1 else float(image.mean()) for i, image in enumerate(images)]


def rows(part):
    """What stands in code in the first column of the guide's tables."""
    cells = [line.split("|")[1] for line in part.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def paths(value, path=""):
    """Dotted paths of all leaves; places in lists are [], names that belong to the world <...>."""
    if isinstance(value, dict):
        general = NAMED_BY_THE_WORLD.get(path.rsplit(".", 1)[-1])
        return {p for key, v in value.items() for p in paths(v, f"{path}.{general or key}".lstrip("."))}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return {p for v in value for p in paths(v, f"{path}[]")}
    return {path}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One iteration of every kind of run, with everything that is optional switched on in one of them."""
    registry.register("tests/fails-one", fails_one)
    made, prompts = {}, tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    lines = [{"prompt": "a red circle", "tag": "colors"}, {"prompt": "two squares", "tag": "counting"}]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, options in RUNS.items():
        made[name] = tmp_path_factory.mktemp(name)
        options = {**options, "eval__prompts": prompts} if name == "unjudged" else options
        tiny_runs.train(tiny_runs.trainer_of(made[name], iterations=1, eval__every=1, **options))
    return made


def test_every_metric_is_explained_and_every_explained_metric_exists(folders):
    written = {p for folder in folders.values() for line in runlog.read_metrics(folder) for p in paths(line)}
    assert written == rows(METRICS)


def test_names_of_categories_are_in_the_guide(folders):
    (line,) = runlog.read_metrics(folders["rl"])
    assert all(f"`{name}`" in METRICS for name in line["validation"]["by_category"])


def test_every_key_of_samples_and_evaluations_is_explained(folders):
    folder = folders["rl"]
    records = [
        record
        for name in ("rl", "thoughts", "rounds", "edit")
        for record in runlog.read_records(runlog.samples_file(folders[name], 1, "jsonl"))
    ]
    for name in ("rl", "rounds", "edit"):
        records += runlog.read_records(runlog.evaluation_file(folders[name], "after", "jsonl"))
    written = {p for record in records for p in paths(record)}
    summary = json.loads((folder / runlog.SUMMARY).read_text())
    written |= {f"paired.<measure>.{key}" for measure in summary["paired"].values() for key in measure}
    written |= {f"{side}.{key}" for side in ("before", "after") for key in ("<key>", "validation.<key>")}
    assert written == rows(RECORDS)
    sides = paths(summary["before"])
    assert all(p in rows(METRICS) or f"validation.{p}" in rows(METRICS) for p in sides)


def test_no_text_names_a_package_index_that_does_not_have_us():
    """The package is not published: what is optional comes from the checkout (``config.how_to_install``)."""
    root = Path(__file__).parents[1]
    texts = [root / "README.md", *root.glob("docs/*.md"), *root.glob("src/**/*.py"), *root.glob("examples/*.py")]
    assert not [
        path.name for path in texts if 'install "unigrpo' in path.read_text() or "install unigrpo" in path.read_text()
    ]
    assert "git clone" in (root / "README.md").read_text()


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings have, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def code_files() -> list[Path]:
    places = ("src/**/*.py", "src/**/*.yaml", "tests/**/*.py", "benchmarks/*.py", "scripts/**/*.py", "examples/*.py")
    return [path for place in places for path in ROOT.glob(place)]


def test_what_the_code_cites_is_here():
    """A citation is a page of docs/ with an anchor that is there, or an equation of the paper."""
    known = {page.name: anchors(page) for page in (ROOT / "docs").glob("*.md")}
    for path in code_files():
        text = path.read_text(encoding="utf-8")
        for name, anchor in re.findall(r"docs/([\w-]+\.md)(?:#([\w-]+))?", text):
            assert name in known, f"{path}: docs/{name} is not there"
            assert not anchor or anchor in known[name], f"{path}: docs/{name} has no heading #{anchor}"


def test_nothing_cites_what_no_reader_can_open():
    outside = re.compile(r"\bspec [a-hI1](?:\.\d|\))|spec/\w+\.md|\(design: |design/\w+\.md")
    found = {str(path): outside.findall(path.read_text(encoding="utf-8")) for path in code_files()}
    assert not {path: words for path, words in found.items() if words and "test_docs" not in path}
