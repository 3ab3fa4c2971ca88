"""The tiny BAGEL: the public layout to the letter, the same bytes each time; a model that thinks, sees and draws."""

import json

import pytest
import torch
from PIL import Image as Picture
from safetensors.torch import load_file

from unigrpo.models.bagel_files.pretrained import Bagel
from unigrpo.models.bagel_files.public import save_public
from unigrpo.models.bagel_files.tokenizer import special_ids
from unigrpo.tools.tiny_bagel import PROMPTS, make_tiny_bagel
from unigrpo.trajectory import Prompt

CAP = 120


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "new" / "bagel"
    return folder, make_tiny_bagel(folder)


@pytest.fixture(scope="module")
def policy(made):
    return Bagel.load(made[0], image_size=(64, 32))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_seed_gives_the_same_bytes_and_another_others(made, tmp_path):
    torch.manual_seed(99)  # nothing hangs on the global generator
    make_tiny_bagel(tmp_path / "a")
    make_tiny_bagel(tmp_path / "b", seed=1)
    first, second, third = contents(made[0]), contents(tmp_path / "a"), contents(tmp_path / "b")
    assert first == second
    changed = {name for name in first if first[name] != third[name]}
    assert changed == {"ema.safetensors", "ae.safetensors", "README.md"} and first.keys() == third.keys()
    ours, theirs = load_file(made[0] / "ema.safetensors"), load_file(tmp_path / "b" / "ema.safetensors")
    assert {n for n in ours if torch.equal(ours[n], theirs[n])} == {
        "latent_pos_embed.pos_embed",
        "vit_pos_embed.pos_embed",
    }


def test_the_folder_has_the_public_layout_and_is_small(made):
    folder, summary = made
    files = {path.name for path in folder.iterdir() if path.is_file()}
    needed = {
        "llm_config.json",
        "vit_config.json",
        "config.json",
        "ema.safetensors",
        "ae.safetensors",
        "tokenizer.json",
    }
    assert files == needed | {
        "vocab.json", "merges.txt", "tokenizer_config.json", "generation_config.json", "README.md",
    }  # fmt: skip
    weights, coder = load_file(folder / "ema.safetensors"), load_file(folder / "ae.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    assert {value.dtype for value in coder.values()} == {torch.float32} and len(coder) == 236
    assert summary.parameters == sum(value.numel() for value in weights.values()) == 1_247_088
    assert summary.autoencoder_parameters == sum(value.numel() for value in coder.values()) == 526_819
    assert str(summary) == (
        f"{folder}: 1,247,088 parameters, an autoencoder of 526,819, 512 tokens, {summary.num_bytes / 1e6:.1f} MB; "
        "prompts and demonstrations are in samples/"
    )
    assert summary.num_bytes == sum(len(content) for content in contents(folder).values()) < 6_000_000
    assert weights["latent_pos_embed.pos_embed"].shape == (4096, 64) and summary.folder == folder
    assert weights["vit_model.vision_model.embeddings.position_embedding.weight"].shape == (4900, 48)
    assert all(0.02 < value.float().std() < 3 for value in weights.values())  # nothing is zero, ones or huge


def test_the_configs_are_what_transformers_reads(made):
    from transformers import Qwen2Config, SiglipVisionConfig

    language = Qwen2Config.from_json_file(made[0] / "llm_config.json")
    assert (language.hidden_size, language.num_hidden_layers, language.vocab_size) == (64, 3, 576)
    assert (language.num_attention_heads, language.num_key_value_heads, language.tie_word_embeddings) == (4, 2, False)
    vision = SiglipVisionConfig.from_json_file(made[0] / "vit_config.json")
    assert (vision.num_hidden_layers, vision.image_size, vision.patch_size, vision.hidden_size) == (3, 980, 14, 48)


def test_the_traps_of_the_real_folder_are_there(made, policy):
    said, special = json.loads((made[0] / "llm_config.json").read_text()), special_ids(policy.tokenizer)
    assert said["bos_token_id"] != special.bos
    assert said["vocab_size"] > policy.tokenizer.inner.get_vocab_size() == made[1].tokens
    assert policy.config.vision.num_layers == 2


@torch.no_grad()
def test_it_thinks_more_than_one_word_and_comes_to_an_end(policy):
    contexts = policy.prefill([policy.prompt_segments(Prompt(0, prompt), think=True) for prompt in PROMPTS])
    texts, _ = policy.think(contexts, uniforms=torch.zeros(len(PROMPTS), CAP), temperature=0.0)
    assert all(text.ended and len(set(text.ids.tolist())) > 5 for text in texts)
    assert len({policy.decode_text(text.ids) for text in texts}) > len(texts) // 2
    sampled, _ = policy.think(
        policy.prefill([policy.prompt_segments(Prompt(0, "a dog"), think=True)] * 2),
        uniforms=torch.rand(2, 20, generator=torch.Generator().manual_seed(0)),
        temperature=1.0,
    )
    assert not torch.equal(sampled[0].ids, sampled[1].ids)


@torch.no_grad()
def test_velocities_have_the_usual_size_and_hang_on_everything(policy):
    contexts = policy.prefill([policy.prompt_segments(Prompt(0, text), think=False) for text in ("a dog", "two cats")])
    x = torch.randn(1, policy.spec.num_tokens, 64, generator=torch.Generator().manual_seed(0)).expand(2, -1, -1)
    early, late = (policy.velocity(contexts, x, torch.full((2,), t)) for t in (1.0, 0.2))
    assert 0.5 < early.std() < 2 and abs(early.mean()) < 0.3
    assert (early[0] - early[1]).std() > 0.01 and (early - late).std() > 0.01


@torch.no_grad()
def test_pictures_are_sane_both_ways(policy):
    draws = torch.randn(2, policy.spec.num_tokens, 64, generator=torch.Generator().manual_seed(0))
    pictures = policy.decode_image(draws)
    assert pictures.shape == (2, 3, 64, 32)
    assert 0.3 < pictures.mean() < 0.7 and 0.05 < pictures.std() < 0.4
    assert ((pictures == 0) | (pictures == 1)).float().mean() < 0.05
    latents = policy.encode_image(pictures)
    assert 0.2 < latents.std() < 2 and abs(latents.mean()) < 0.5
    _, log_variance = policy.autoencoder.moments(pictures * 2 - 1).chunk(2, dim=1)
    assert log_variance.max() < -2


@torch.no_grad()
def test_it_sees_and_answers(policy, made):
    picture = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    asked = policy.question_segments("what is it?", [picture], think=False)
    other = policy.question_segments("what is it?", [255 - picture], think=False)
    logits = policy.feed(policy.prefill([asked, other]), torch.tensor([508, 508]), torch.tensor([True, True]))
    assert logits.shape == (2, 576) and (logits[0] - logits[1]).std() > 0.01


def test_it_is_exported_as_it_came(made, policy, tmp_path):
    save_public(policy, tmp_path / "out")
    theirs = {name: content for name, content in contents(made[0]).items() if not name.startswith("samples")}
    assert contents(tmp_path / "out") == theirs


def test_the_samples_fit_together(made, policy):
    samples = made[0] / "samples"
    prompts = (samples / "prompts.txt").read_text().splitlines()
    lines = [json.loads(line) for line in (samples / "prompts.jsonl").read_text().splitlines()]
    shown = [json.loads(line) for line in (samples / "demonstrations.jsonl").read_text().splitlines()]
    assert prompts == [line["prompt"] for line in lines] == [line["prompt"] for line in shown] and len(prompts) == 6
    assert all(line["tag"] for line in lines)
    seen = set()
    for line in shown:
        assert line.keys() == {"prompt", "thinking", "image"}
        assert line["thinking"].startswith("<think> ") and line["thinking"].endswith(" </think>")
        picture = Picture.open(samples / line["image"])
        assert picture.size == (64, 64) and picture.mode == "RGB" and picture.getcolors()[0][0] > 100
        seen.add(picture.tobytes())
    assert len(seen) == 6
    assert policy.decode_text(policy.encode_text(shown[0]["thinking"])) == shown[0]["thinking"]


def test_a_used_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "kept.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "kept.txt"):
        with pytest.raises(ValueError, match=r"is not an empty folder: give a new one, so that nothing is overwritten"):
            make_tiny_bagel(path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
    (tmp_path / "empty").mkdir()
    make_tiny_bagel(tmp_path / "empty")
