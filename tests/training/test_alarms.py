"""Alarms of a run in its folder: what is kept, what sounds, and that a resumed run sounds the same."""

import json

import pytest
import torch

import tiny_runs
from unigrpo.evaluation.evaluator import Evaluation
from unigrpo.ranges import ConfigError
from unigrpo.reports import html, runlog
from unigrpo.training import alarms, checkpoint
from unigrpo.training.alarms import Alarms, firsts, look, sentence
from unigrpo.training.optimizer import NotFinite

PROMPTS = 30
LEARNED = ("[{name: shapes/preference}]", "[{name: shapes/preference}]")


def evaluation(*, noise=0.0, follow=1.0, reward=0.5, samples=1, words="red square a1"):
    """Made-up pictures of flat colours, and a judge that knows them; ``noise``: added to every pixel."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.rand(PROMPTS, 3, generator=generator)[:, :, None, None].expand(-1, -1, 8, 8).clone()
    colours[..., 4:] = 1 - colours[..., 4:]
    pictures = colours.repeat_interleave(samples, 0)
    pictures = pictures + noise * torch.rand(pictures.shape, generator=generator)
    records = [
        {"position": p, "sample": s, "prompt": f"prompt {p}", "category": "all", "thinking": f"{words} {p}",
         "correct": True, "exam": 1.0, "reward": reward + 0.01 * (p % 3), "parsable": True, "plan_right": True,
         "follow": p < follow * PROMPTS}
        for p in range(PROMPTS) for s in range(samples)
    ]  # fmt: skip
    return Evaluation(records, (pictures.clamp(0, 1) * 255).to(torch.uint8))


def begun(run_dir, **other):
    """The alarms of a run whose first evaluation is there."""
    recipe = tiny_runs.tiny_recipe(eval__limit=PROMPTS, eval__compare_limit=PROMPTS, **other)
    made, first = Alarms(recipe, run_dir), evaluation(samples=2)
    bands = made.first(first, firsts(first.records, PROMPTS), look(first))
    (run_dir / runlog.SUMMARY).write_text(json.dumps({"bands": bands}))
    return made


def names(found):
    return {alarm["name"] for alarm in found}


def test_the_same_pictures_raise_nothing(tmp_path):
    made = begun(tmp_path)
    values, found = made.validation(evaluation(), 1, [])
    assert found == [] and values["reference_distance"] == 0.0
    assert set(values) == set(json.loads((tmp_path / runlog.SUMMARY).read_text())["bands"]) - {"group_diversity"}


def test_noise_in_the_pictures_is_an_alarm_with_words(tmp_path):
    _, found = begun(tmp_path).validation(evaluation(noise=0.6), 24, [])
    (edge,) = [alarm for alarm in found if alarm["name"] == "edge_energy"]
    assert edge["kind"] == "canary" and edge["value"] > edge["limit"] > edge["start"]
    said = sentence(edge, 24)
    assert said.startswith("ALARM after iteration 25: edge energy is 0.") and "above its band, which ends at" in said
    assert "before training). Look at the pictures: noise or a grid" in said and "\n" not in said


def test_padded_thinking_is_an_alarm(tmp_path):
    _, found = begun(tmp_path).validation(evaluation(words="red square a1 " * 6), 1, [])
    assert {"think_words", "think_repetition"} <= names(found)


@pytest.mark.parametrize(("reward", "sounds"), [(0.9, True), (0.5, False), (0.1, False)])
def test_a_gold_that_falls_is_an_alarm_where_the_proxy_rose(tmp_path, reward, sounds):
    made = begun(tmp_path, reward__train=LEARNED[0], reward__validation=LEARNED[1])
    _, found = made.validation(evaluation(follow=0.3, reward=reward), 1, [])
    assert names(found) == ({"follow"} if sounds else set())
    if sounds:
        assert "picture follows plan fell by 0.700" in found[0]["words"]
        assert "since before training, and the validation reward is up by 0.400 since the start" in found[0]["words"]


def test_the_training_reward_is_the_proxy_where_validation_has_another(tmp_path):
    made = begun(tmp_path, reward__train=LEARNED[0], eval__every=8)
    lines = [{"iteration": i, "reward_mean": 0.3 + 0.05 * i + 0.001 * (i % 2)} for i in range(16)]
    _, found = made.validation(evaluation(reward=0.1), 15, lines)
    assert names(found) == {"reward"} and found[0]["title"] == "validation reward"
    flat = [{**line, "reward_mean": 0.3 + 0.01 * (line["iteration"] % 2)} for line in lines]
    made.settle(0)
    assert made.validation(evaluation(reward=0.1), 15, flat)[1] == []


def test_groups_of_training_that_all_draw_the_same_are_an_alarm(tmp_path):
    made = begun(tmp_path, data__prompts_per_iteration=10)
    part = {"group_diversity": 0.1, "group_diversity_error": 0.004}
    lines = [{"iteration": i, "canaries": part} for i in range(6)]
    assert made.validation(evaluation(), 5, lines)[1] == []
    lines[-2:] = [{"iteration": i, "canaries": {**part, "group_diversity": 0.01}} for i in (4, 5)]
    (alarm,) = made.check(look(evaluation()).values(), evaluation().records, 5, lines)
    assert alarm["title"] == "distance inside a group of training" and alarm["collapsed"]


def test_supervised_training_has_canaries_and_no_bands(tmp_path):
    made, first = Alarms(tiny_runs.tiny_recipe(tiny_runs.PRETRAIN), tmp_path), evaluation(samples=2)
    assert made.first(first, firsts(first.records, PROMPTS), look(first)) == {}
    values, found = made.validation(evaluation(noise=0.9), 1, [])
    assert values and found == []


def test_a_run_from_before_there_were_bands_goes_on_without(tmp_path):
    made = Alarms(tiny_runs.tiny_recipe(), tmp_path)
    values, found = made.validation(evaluation(noise=0.9), 1, [])
    assert found == [] and "reference_distance" not in values
    made.settle(1)
    assert runlog.read_records(tmp_path / alarms.HISTORY) == []


def test_a_damaged_reference_is_named(tmp_path):
    made = begun(tmp_path)
    (tmp_path / alarms.REFERENCE).write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"reference\.safetensors is damaged"):
        made.settle(0)


# A whole run


def alarming(monkeypatch):
    """Let every run sound: bands of no width, however few the prompts."""
    monkeypatch.setattr("unigrpo.evaluation.bands.FEWEST", 2)
    monkeypatch.setattr("unigrpo.evaluation.bands.FACTOR", 1.0)
    monkeypatch.setattr("unigrpo.evaluation.bands.ERRORS", 0.0)


def test_alarms_are_told_at_once_kept_and_in_the_headline(tmp_path, monkeypatch):
    alarming(monkeypatch)
    trainer = tiny_runs.trainer_of(tmp_path / "run", iterations=2)
    said = []
    monkeypatch.setattr(tiny_runs.Silent, "note", lambda self, text: said.append(text))
    assert tiny_runs.train(trainer)
    lines = runlog.read_metrics(tmp_path / "run")
    first = lines[1]["alarms"]
    assert first and "alarms" not in lines[0] and sentence(first[0], 1) in said
    assert len([text for text in said if text.startswith("ALARM")]) == len({text for text in said if "ALARM" in text})
    summary = runlog.read_json(tmp_path / "run" / runlog.SUMMARY)
    assert {alarm["when"] for alarm in summary["alarms"]} == {"validation", "after"}
    page = html.report_content(tmp_path / "run")
    assert f"{first[0]['title']} left its band (iteration" in page["headline"].replace("iterations", "iteration")


@pytest.mark.slow
def test_a_resumed_run_raises_the_alarms_of_one_that_was_never_stopped(tmp_path, monkeypatch):
    alarming(monkeypatch)
    assert tiny_runs.train(tiny_runs.trainer_of(tmp_path / "run"))
    first = runlog.read_metrics(tmp_path / "run")[1]["alarms"]
    cut = tiny_runs.trainer_of(tmp_path / "cut", checkpoint__every=25)

    def after(line):
        cut.stop.requested = line["iteration"] + 1 >= 3

    assert not tiny_runs.train(cut, after)
    again = tiny_runs.trainer_of(tmp_path / "cut", checkpoint__every=25)
    assert again.resume() == 3 and again.voice.sounding == {alarm["title"] for alarm in first}
    assert tiny_runs.train(again)
    tiny_runs.assert_same_run(tmp_path / "cut", tmp_path / "run")
    for name in (runlog.SUMMARY, alarms.HISTORY, alarms.REFERENCE):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "run" / name).read_bytes(), name


def test_what_is_done_again_is_validated_again(tmp_path):
    """Resuming from a checkpoint before the last validation forgets that one."""
    run_dir = tiny_runs.copied_run(tmp_path / "run")
    for folder in checkpoint.complete(run_dir)[-2:]:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    left = checkpoint.finished(run_dir)
    trainer = tiny_runs.trainer_of(run_dir)
    assert trainer.resume() == left
    kept = runlog.read_records(run_dir / alarms.HISTORY)
    assert [row["iteration"] for row in kept] == [i for i in (-1, 1, 3) if i < left]


def test_a_run_that_made_nan_says_so_until_it_goes_on(tmp_path, monkeypatch):
    trainer = tiny_runs.trainer_of(tmp_path)

    def broken(*_, **__):
        raise NotFinite("the text loss is nan; nothing was updated")

    monkeypatch.setattr("unigrpo.training.trainer.update", broken)
    with pytest.raises(NotFinite):
        tiny_runs.train(trainer)
    said = html.report_content(tmp_path)["headline"]
    assert said.startswith("The run collapsed: training made numbers that are not finite. Score before training")
    assert said.endswith("It was stopped by an error after 0 iterations: the text loss is nan; nothing was updated.")
    monkeypatch.undo()
    again = tiny_runs.trainer_of(tmp_path)
    assert again.resume() == 0 and tiny_runs.train(again)
    assert "stopped" not in runlog.read_json(tmp_path / runlog.SUMMARY)


def test_the_verifier_can_forgive_extra_objects():
    """The option that one of the three runs of docs/results/alarms.md needs."""
    from unigrpo.build.rewards import shapes_verifier
    from unigrpo.worlds.shapes import fixed, parse_plan, render

    (prompt,) = fixed("held-out", 1)
    wanted = prompt.metadata["objects"][0]
    plan = parse_plan(f"<think> {wanted.get('color') or 'red'} {wanted['shape']} a1 blue ring c3 </think>")
    assert plan is not None
    pictures = render([plan]).float()
    strict, kind = (
        shapes_verifier(pictures, [prompt.text], [prompt.metadata], [None], tidy=tidy).values[0] for tidy in (0.5, 1.0)
    )
    assert strict == pytest.approx(kind / 2)
    with pytest.raises(ConfigError, match=r"must be in \(0, 1\]"):
        shapes_verifier(pictures, [prompt.text], [prompt.metadata], [None], tidy=0)
