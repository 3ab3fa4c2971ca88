"""A BAGEL folder in the public layout, from the command line: draw, edit, answer, train, resume, hand back."""

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from unigrpo import cli, options
from unigrpo.reports import runlog

SMALL = ["--rollout.image_size", "64", "--rollout.max_think_tokens", "6", "--eval.limit", "2", "--eval.compare_limit",
         "2", "--eval.compare_samples", "1", "--eval.num_points", "4"]  # fmt: skip
RL = [*SMALL, "--data.prompts_per_iteration", "2", "--data.group_size", "2", "--rollout.num_points", "7",
      "--rollout.batch", "2", "--optimizer.micro_batch", "2", "--checkpoint.every", "1"]  # fmt: skip
DRAWN = ["--size", "64x48", "--steps", "4", "--max-think-tokens", "6"]
LORA = ["--model.lora", "{rank: 4, alpha: 8}"]
LOOKS = pytest.param("unigrpo-rounds-lora", marks=pytest.mark.slow)  # a small picture is looked at as 512 x 512


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bagel") / "tiny"
    assert cli.run(["make-tiny-bagel", str(folder)]) == 0
    return folder


def unigrpo(*words):
    assert cli.run([str(word) for word in words]) == 0


def picture(path):
    with Image.open(path) as image:
        return image.size, image.convert("RGB").tobytes()


@pytest.mark.parametrize("think", [[], ["--no-think"]])
def test_draw(tiny, tmp_path, capsys, think):
    unigrpo("generate", "a red cup", "--model", tiny, *DRAWN, *think, "--out", tmp_path / "one.png")
    assert picture(tmp_path / "one.png")[0] == (64, 48)
    assert ("did not think" in capsys.readouterr().out) == bool(think)


def test_the_same_seed_draws_the_same_and_another_does_not(tiny, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        unigrpo("generate", "a red cup", "--model", tiny, *DRAWN, "--seed", seed, "--out", tmp_path / f"{name}.png")
    a, b, c = (picture(tmp_path / f"{name}.png")[1] for name in "abc")
    assert a == b and a != c


def test_a_file_of_prompts_makes_a_folder(tiny, tmp_path):
    options = ["--num", "2", "--batch", "3", "--out", tmp_path / "out"]
    unigrpo("generate", "--prompts", tiny / "samples" / "prompts.txt", "--model", tiny, *DRAWN, *options)
    records = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    prompts = (tiny / "samples" / "prompts.txt").read_text().split("\n")
    assert [r["prompt"] for r in records] == [p for p in prompts if p for _ in range(2)]
    assert all(picture(tmp_path / "out" / r["picture"])[0] == (64, 48) for r in records)


def test_results_keep_what_the_file_said_and_how_it_was_drawn(tiny, tmp_path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "x.png")
    row = {"prompt": "make it blue", "images": ["x.png"], "tag": "edit", "objects": [{"shape": "cup"}]}
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n" + '{"prompt": "a cup"}\n')
    options = ["--model", tiny, *DRAWN, "--seed", "3", "--out", tmp_path / "out"]
    unigrpo("generate", "--prompts", tmp_path / "p.jsonl", *options)
    edit, drawing = runlog.read_records(tmp_path / "out" / "results.jsonl")
    assert edit["metadata"] == {"tag": "edit", "category": "edit", "objects": [{"shape": "cup"}]}
    assert edit["sources"] == [str(tmp_path / "x.png")] and drawing["sources"] == [] and drawing["metadata"] == {}
    expected = {"model": str(tiny), "num_points": 4, "size": "64x48", "max_think_tokens": 6, "think": True}
    for record, guidance, renorm in ((edit, 2.0, "text_channel"), (drawing, 1.0, "global")):
        assert record["seed"] == 3 and expected.items() <= record["settings"].items()
        assert record["settings"]["guidance"] == 4.0 and record["settings"]["dtype"] == "float32"
        assert record["settings"]["image_guidance"] == guidance and record["settings"]["renorm"] == renorm


def test_edit(tiny, tmp_path):
    given = sorted((tiny / "samples").glob("*.png"))[0]
    options = ["--steps", "3", "--max-think-tokens", "6", "--size", "64x64"]
    unigrpo("generate", "make it blue", "--image", given, "--model", tiny, *options, "--out", tmp_path / "e.png")
    unigrpo("generate", "make it blue", "--model", tiny, *options, "--guidance", 4, "--out", tmp_path / "t.png")
    assert picture(tmp_path / "e.png")[0] == (64, 64)
    assert picture(tmp_path / "e.png")[1] != picture(tmp_path / "t.png")[1]


def test_an_edit_keeps_the_shape_of_its_picture(tiny):
    from unigrpo import Bagel

    bagel = Bagel.from_pretrained(tiny)
    sizes = {(300, 1200): (256, 1024), (600, 600): (608, 608), (64, 64): (512, 512), (2000, 1000): (1024, 512)}
    for given, drawn in sizes.items():
        assert bagel.edit_size(torch.zeros((3, *given), dtype=torch.uint8)) == drawn


def test_understand(tiny, tmp_path, capsys):
    given = sorted((tiny / "samples").glob("*.png"))[0]
    options = ["--understand", "--image", given, "--max-think-tokens", "8", "--out", tmp_path / "answers.jsonl"]
    unigrpo("generate", "what is it?", "--model", tiny, *options)
    (record,) = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert record["prompt"] == "what is it?" and record["answer"] in capsys.readouterr().out
    assert not (tmp_path / "generated.png").exists()


def test_fine_tuning_20_steps_learns(tiny, tmp_path):
    run = tmp_path / "sft"
    data = ["--data.demonstrations", tiny / "samples" / "demonstrations.jsonl", "--data.batch_size", "4"]
    rates = ["--optimizer.lr_reasoning", "2e-3", "--optimizer.lr_denoising", "2e-3", "--optimizer.micro_batch", "4"]
    unigrpo("train", "bagel/sft", "--model.path", tiny, "--iterations", 20, *SMALL, *data, *rates, "--out", run)
    lines = runlog.read_metrics(run)
    assert len(lines) == 20
    assert lines[-1]["loss"]["cross_entropy"] < lines[0]["loss"]["cross_entropy"] - 0.3
    unigrpo("generate", "a red cup", "--model", run, *DRAWN, "--out", tmp_path / "after.png")


@pytest.fixture(scope="module", params=["full", "lora"])
def run(request, tiny, tmp_path_factory):
    """Three iterations of bagel/unigrpo, shrunk by overrides alone."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    lora = LORA if request.param == "lora" else []
    rates = ["--optimizer.lr_reasoning", "1e-3", "--optimizer.lr_denoising", "1e-3"]
    unigrpo("train", "bagel/unigrpo", "--model.path", tiny, "--iterations", 3, *RL, *lora, *rates, "--out", folder)
    return request.param, folder


def test_rl_trains_and_every_first_ratio_is_1(run):
    lines = runlog.read_metrics(run[1])
    assert [line["iteration"] for line in lines] == [0, 1, 2]
    for line in lines:
        first = line["first_update"]
        assert first["text_log_ratio_max"] <= 1e-3 and first["image_log_ratio_max"] <= 0.1 * 5.12e-4 / (16 * 64) ** 0.5
        assert line["grad_norm"]["reasoning"] > 0 and line["grad_norm"]["denoising"] > 0
    summary = json.loads((run[1] / "evaluations" / "summary.json").read_text())
    assert summary["after"]["reward"] != summary["before"]["reward"] and "reward" in summary["paired"]


def test_a_resumed_run_is_the_uninterrupted_one(run, tmp_path):
    kind, folder = run
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    shutil.rmtree(again / "checkpoints" / "iteration-000003")
    unigrpo("train", "bagel/unigrpo", "--out", again, "--resume")
    name = "adapter_model.safetensors" if kind == "lora" else "ema.safetensors"
    before, after = (load_file(f / "checkpoints" / "iteration-000003" / name) for f in (folder, again))
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)


def test_the_export_is_the_public_folder_again(run, tiny, tmp_path):
    unigrpo("export", run[1], tmp_path / "out")
    names = {p.name for p in tiny.iterdir() if p.is_file()}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names
    ours, theirs = (load_file(folder / "ema.safetensors") for folder in (tmp_path / "out", tiny))
    assert {n: (t.dtype, t.shape) for n, t in ours.items()} == {n: (t.dtype, t.shape) for n, t in theirs.items()}
    changed = {n for n in ours if not torch.equal(ours[n], theirs[n])}
    assert changed and not any(n.startswith(("vit_model", "connector", "latent_pos", "vit_pos")) for n in changed)
    for name in names - {"ema.safetensors", "README.md"}:  # which is a card of this model
        assert (tmp_path / "out" / name).read_bytes() == (tiny / name).read_bytes(), name
    unigrpo("generate", "a red cup", "--model", tmp_path / "out", *DRAWN, "--out", tmp_path / "e.png")
    unigrpo("generate", "a red cup", "--model", run[1], *DRAWN, "--out", tmp_path / "r.png")
    assert picture(tmp_path / "e.png")[0] == picture(tmp_path / "r.png")[0] == (64, 48)


def test_an_adapter_loads_in_plain_peft(run, tiny, tmp_path):
    peft = pytest.importorskip("peft")
    from unigrpo.models.bagel_files.pretrained import Bagel

    kind, folder = run
    if kind == "full":
        assert cli.main(["export", str(folder), str(tmp_path / "none"), "--adapter"]) == 2
        assert not (tmp_path / "none").exists()
        return
    unigrpo("export", folder, tmp_path / "adapter", "--adapter")
    wrapped = peft.PeftModel.from_pretrained(Bagel.from_pretrained(tiny).model, str(tmp_path / "adapter"))
    moved = [p for n, p in wrapped.named_parameters() if "lora_B" in n]
    assert len(moved) == 3 * 14 and all(float(p.detach().abs().max()) > 0 for p in moved)


@pytest.mark.parametrize("recipe", ["flowgrpo", "textgrpo", "unigrpo-lora-1gpu", "unigrpo-edit-lora", LOOKS])
def test_the_other_recipes_run(tiny, tmp_path, recipe):
    run = tmp_path / "run"
    words = ["--model.lora.rank", "4"] if "lora" in recipe else []
    unigrpo("train", f"bagel/{recipe}", "--model.path", tiny, "--iterations", 1, *RL, *words, "--out", run)
    (line,) = runlog.read_metrics(run)
    assert ("image_log_ratio_max" in line["first_update"]) == (recipe != "textgrpo")
    assert ("text_log_ratio_max" in line["first_update"]) == (recipe != "flowgrpo")


def test_edits_of_a_file_with_pictures_train(tiny, tmp_path):
    for number, size in enumerate(((80, 48), (40, 40))):
        Image.new("RGB", size, (200, 40 * number, 0)).save(tmp_path / f"{number}.png")
    rows = [{"prompt": "make it blue", "images": [f"{k}.png"], "points": ["Is it blue?"]} for k in (0, 1)]
    (tmp_path / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "like.py").write_text(
        "def like(images, prompts, metadata, thinking):\n"
        "    return [float(p.mean() - m['images'][0].mean()) for p, m in zip(images, metadata, strict=True)]\n"
    )
    reward = "[{name: " + f"'{tmp_path / 'like.py'}:like'" + "}]"
    words = ["--data.prompts", tmp_path / "edits.jsonl", "--eval.prompts", tmp_path / "edits.jsonl"]
    words += ["--reward.train", reward, "--reward.validation", reward, "--model.lora.rank", "4"]
    words += ["--iterations", "1", "--model.dtype", "float32", *RL, "--out", tmp_path / "run"]
    unigrpo("train", "bagel/unigrpo-edit-lora", "--model.path", tiny, *words)
    (line,) = runlog.read_metrics(tmp_path / "run")
    assert line["first_update"]["text_log_ratio_max"] <= 1e-5
    assert line["first_update"]["image_log_ratio_max"] <= max(1e-7, 0.01 * 5.12e-4 / (16 * 64) ** 0.5)
    assert line["grad_norm"]["reasoning"] > 0 and line["grad_norm"]["denoising"] > 0
    records = runlog.read_records(tmp_path / "run" / "evaluations" / "after.jsonl")
    assert [record["images"] for record in records] == [[f"evaluations/source-{k}-0.png"] for k in (0, 1)]


@pytest.mark.parametrize("lora", [[], LORA], ids=["full", "lora"])
def test_in_fp32_the_first_ratios_are_within_the_tight_bounds(tiny, tmp_path, lora):
    words = ["--model.path", tiny, "--model.dtype", "float32", "--iterations", 1, *RL, *lora, "--out", tmp_path / "run"]
    unigrpo("train", "bagel/unigrpo", *words)
    (line,) = runlog.read_metrics(tmp_path / "run")
    clip = 5.12e-4 / (16 * 64) ** 0.5
    assert line["first_update"]["text_log_ratio_max"] <= 1e-5
    assert line["first_update"]["image_log_ratio_max"] <= max(1e-7, 0.01 * clip)
    assert "rollout_gap" not in line


@pytest.mark.parametrize("memory", ["whole", "sliced", "tiled"])
def test_gradients_of_a_reward_on_pixels_reach_the_latents(tiny, memory):
    from unigrpo import Bagel

    policy = Bagel.load(tiny, image_size=(64, 64), autoencoder_memory=memory)
    latents = torch.randn((2, 16, 64), generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    pictures = policy.decode_image(latents)
    assert pictures.shape == (2, 3, 64, 64) and float(pictures.detach().min()) >= 0.0
    pictures[0].mean().backward()
    assert float(latents.grad[0].abs().max()) > 0 and float(latents.grad[1].abs().max()) == 0


def test_the_python_interface_of_the_readme(tiny, tmp_path):
    from unigrpo import Bagel

    bagel = Bagel.from_pretrained(tiny)
    bagel.save_pretrained(tmp_path / "copy")
    ours, theirs = (load_file(folder / "ema.safetensors") for folder in (tmp_path / "copy", tiny))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for name in ("ae.safetensors", "config.json", "llm_config.json", "tokenizer.json", "vit_config.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (tiny / name).read_bytes()


def test_pictures_without_thinking_can_be_learned(tiny, tmp_path):
    rows = [{"prompt": "a red cup", "image": str(sorted((tiny / "samples").glob("*.png"))[0])}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--data.demonstrations", tmp_path / "pairs.jsonl", "--data.batch_size", "2", "--data.drop_prompt", "0.5"]
    lora = ["--model.lora", "{rank: 2, alpha: 4, experts: [denoising]}", "--optimizer.warmup", "0"]
    options = ["--model.path", tiny, "--iterations", 2, *SMALL, *words, *lora, "--out", tmp_path / "run"]
    unigrpo("train", "bagel/sft", *options)
    lines = runlog.read_metrics(tmp_path / "run")
    assert all(line["loss"]["cross_entropy"] is None and line["loss"]["flow_matching"] > 0 for line in lines)


def test_a_resumed_adapter_notices_another_base(tiny, tmp_path, capsys):
    base = tmp_path / "base"
    shutil.copytree(tiny, base)
    run = ["train", "bagel/textgrpo", "--out", str(tmp_path / "run")]
    assert cli.run([*run, "--model.path", str(base), "--iterations", "1", *RL, *LORA]) == 0
    shutil.rmtree(base)
    assert cli.run(["make-tiny-bagel", str(base), "--seed", "3"]) == 0
    assert cli.run([*run, "--resume", "--iterations", "2"]) == 2
    assert "is not the one it was started with" in capsys.readouterr().err


def test_edits_and_drawings_of_one_file_are_guided_apart(tiny, monkeypatch):
    from unigrpo import Bagel
    from unigrpo.commands import generate as drawing
    from unigrpo.trajectory import Prompt

    shown = (torch.zeros((3, 1024, 1024), dtype=torch.uint8),)
    prompts = [Prompt(0, "a"), Prompt(1, "b", images=shown), Prompt(2, "c", images=shown), Prompt(3, "d")]
    parts = drawing.together(Bagel.from_pretrained(tiny), prompts, options.Generate(model=str(tiny)))
    assert [[prompt.position for prompt in part] for part in parts] == [[0], [1, 2], [3]]


def test_a_prompt_that_cannot_be_read_is_found_before_the_first_is_drawn(tiny, tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "a cup"}\n{"prompt": "put <image> on <image>", "images": ["x.png"]}\n'
    )
    Image.new("RGB", (32, 32), "red").save(tmp_path / "x.png")
    options = ["--prompts", str(tmp_path / "p.jsonl"), "--model", str(tiny), *DRAWN, "--out", str(tmp_path / "out")]
    assert cli.run(["generate", *options]) == 2
    assert "2 places <image>, but 1 picture to put there" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_pictures_that_are_done_stay_when_a_later_prompt_fails(tiny, tmp_path, monkeypatch, capsys):
    from unigrpo.commands import generate as drawing

    draw = drawing.draw

    def failing(policy, call, *more):
        if call.prompts[0].images:
            raise ValueError("no more paint")
        return draw(policy, call, *more)

    monkeypatch.setattr(drawing, "draw", failing)
    (tmp_path / "p.jsonl").write_text('{"prompt": "a cup"}\n{"prompt": "make it blue", "images": ["x.png"]}\n')
    Image.new("RGB", (32, 32), "red").save(tmp_path / "x.png")
    words = ["--prompts", str(tmp_path / "p.jsonl"), "--model", str(tiny), *DRAWN, "--out", str(tmp_path / "out")]
    assert cli.run(["generate", *words]) == 2
    assert "no more paint" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"00000-0.png", "results.jsonl"}
