"""The public BAGEL folder in and out: every oddity of its configs, every fault named, every byte handed back."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unigrpo.models.bagel.config import VisionConfig
from unigrpo.models.bagel.transformer import BagelModel
from unigrpo.models.bagel_files import public
from unigrpo.models.bagel_files.checkpoint import restore_weights, save_policy
from unigrpo.models.bagel_files.flux import FluxAutoencoder, FluxConfig
from unigrpo.models.bagel_files.pretrained import Bagel
from unigrpo.models.bagel_files.public import fetch, is_public, load_public, save_public
from unigrpo.models.bagel_files.public_config import read_public_config
from unigrpo.models.bagel_files.tensor_files import TensorFiles, write_stream
from unigrpo.models.bagel_files.tokenizer import special_ids, train_tiny_tokenizer, word_tokenizer
from unigrpo.tools.tiny_bagel import make_tiny_bagel

NAMES = Path(__file__).parents[2] / "golden" / "tensors_7b.txt"
EMBED, FIRST = "language_model.model.embed_tokens.weight", "language_model.model.layers.0."
TOWER = ("vit_model.", "connector.", "vit_pos_embed.")
BF16, FP32 = torch.bfloat16, torch.float32


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny public folder that no test changes."""
    folder = tmp_path_factory.mktemp("public") / "tiny"
    make_tiny_bagel(folder)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy of it to spoil, without the samples."""
    return shutil.copytree(made, tmp_path / "model", ignore=shutil.ignore_patterns("samples"))


def tensors(path):
    files = TensorFiles.of(path)
    return {name: files.read(name) for name in files.names}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def change(path, **values):
    """Change keys of a JSON file; None takes a key away."""
    said = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in said.items() if value is not None}))


def change_weights(folder, edit):
    """Edit the weights of a folder, a dict of tensors by name."""
    held = tensors(folder / "ema.safetensors")
    edit(held)
    write_stream(folder / "ema.safetensors", held)


def denoising(name):
    return "_moe_gen" in name or name.startswith(("vae2llm.", "llm2vae.", "time_embedder."))


# In


def test_the_7b_configs_and_tensors_make_exactly_the_public_model(tmp_path):
    lines = (line.split("\t") for line in NAMES.read_text().splitlines() if line)
    shapes = {name: tuple(int(n) for n in re.findall(r"\d+", shape)) for name, shape in lines}
    assert len(shapes) == 1223
    for name in ("llm_config.json", "vit_config.json"):  # absent keys take the 7B values; config.json may be absent
        (tmp_path / name).write_text("{}")
    config = read_public_config(tmp_path, shapes, train_tiny_tokenizer(), FluxConfig())
    with torch.device("meta"):
        model = BagelModel(config)
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == shapes
    assert set(dict(model.named_parameters())) == set(shapes)
    assert sum(parameter.numel() for parameter in model.parameters()) == 14_607_260_128
    assert config.vision == VisionConfig(1152, 4304, 26, 16, 980, 14, 70)
    assert (config.vocab_size, config.hidden_size, config.intermediate_size, config.num_layers) == (
        152064,
        3584,
        18944,
        28,
    )
    assert (config.num_heads, config.num_kv_heads, config.rope_theta, config.rms_norm_eps) == (28, 4, 1e6, 1e-6)
    assert (config.max_latent_size, config.latent_patch_size, config.latent_channels) == (64, 2, 16)
    assert config.image_size == (1024, 1024) and config.vae_downsample == 8


def test_what_bagel_takes_by_default(made):
    config = load_public(made).model.config
    assert (config.timestep_shift, config.num_points, config.guidance) == (3.0, 50, 4.0)
    assert (config.temperature, config.max_think_tokens, config.image_size) == (0.0, 1024, (1024, 1024))
    assert config.system_prompt == (
        "You should first think about the planning process in the mind and then generate the image. \nThe planning "
        "process is enclosed within <think> </think> tags, i.e. <think> planning process here </think> image here"
    )
    assert config.answer_prompt == (
        "You should first think about the reasoning process in the mind and then provide the user with the answer. \n"
        "The reasoning process is enclosed within <think> </think> tags, i.e. <think> reasoning process here </think> "
        "answer here"
    )


def test_every_tensor_arrives_in_the_dtype_that_its_use_asks_for(made):
    source = tensors(made / "ema.safetensors")
    policy = load_public(made, compute_dtype=BF16, trained=denoising)
    state = policy.model.state_dict()
    assert set(state) == set(source) and policy.compute_dtype == BF16
    for name, value in state.items():
        assert value.dtype == (FP32 if denoising(name) else BF16), name
        assert torch.equal(value, source[name].to(value.dtype)), name
    whole = [*policy.model.parameters(), *policy.model.buffers(), *policy.autoencoder.parameters()]
    assert not any(value.is_meta for value in whole)
    assert all(p.dtype == FP32 and not p.requires_grad for p in policy.autoencoder.parameters())
    assert not policy.autoencoder.training and policy.autoencoder.memory == "whole"
    frozen = {name for name, p in policy.model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n in source if n.startswith(TOWER)} | {"latent_pos_embed.pos_embed"}
    original = tensors(made / "ae.safetensors")
    assert all(torch.equal(original[n], value) for n, value in policy.autoencoder.original_tensors().items())


def test_the_autoencoder_runs_in_the_memory_that_was_asked_for_and_pictures_in_the_size(made):
    policy = Bagel.load(made, autoencoder_memory="sliced", image_size=(64, 32))
    assert policy.autoencoder.memory == "sliced" and policy.spec.grid == (4, 2)
    with pytest.raises(ValueError, match="does not fit this model"):
        Bagel.load(made, image_size=(20, 20))


def test_a_folder_is_public_by_its_llm_config_or_its_ema(tmp_path):
    for name in ("llm_config.json", "ema.safetensors", "ema.safetensors.index.json"):
        (tmp_path / name).mkdir()
        assert not is_public(tmp_path)
        (tmp_path / name).rmdir()
        (tmp_path / name).touch()
        assert is_public(tmp_path)
        (tmp_path / name).unlink()


def test_control_tokens_come_from_the_tokenizer_and_never_from_the_config(folder):
    change(folder / "llm_config.json", bos_token_id=7, eos_token_id=8)
    policy = Bagel.load(folder)
    special, config = special_ids(policy.tokenizer), policy.config
    assert (config.bos_token_id, config.eos_token_id) == (special.bos, special.eos) == (508, 509)
    assert (config.vision_start_id, config.vision_end_id) == (special.vision_start, special.vision_end)


@pytest.mark.parametrize("config", [None, {}, {"max_latent_size": 32}, {"timestep_shift": 1.0, "visual_gen": True}])
def test_config_json_is_optional_and_its_max_latent_size_is_not_believed(folder, config):
    before = Bagel.load(folder).config
    (folder / "config.json").unlink()
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    assert Bagel.load(folder).config == before and before.max_latent_size == 64


def test_what_the_original_overrides_is_overridden(folder):
    before = Bagel.load(folder).config
    change(folder / "llm_config.json", tie_word_embeddings=True, qk_norm=False, layer_module="Qwen2DecoderLayer")
    change(folder / "vit_config.json", rope=True, vision_use_head=True)
    policy = Bagel.load(folder)
    assert policy.config == before
    assert policy.model.language_model.lm_head.weight is not policy.model.language_model.model.embed_tokens.weight


def test_rope_theta_is_found_where_newer_transformers_put_it(folder):
    change(folder / "llm_config.json", rope_theta=None, rope_parameters={"rope_theta": 5e5, "rope_type": "default"})
    assert Bagel.load(folder).config.rope_theta == 5e5
    change(folder / "llm_config.json", rope_parameters={"rope_theta": 5e5, "rope_type": "yarn", "factor": 4.0})
    with pytest.raises(ValueError, match=r"llm_config\.json says rope_scaling 'yarn'; this version only runs"):
        Bagel.load(folder)


def test_a_folder_without_a_tower_reads_and_draws_but_does_not_see(folder):
    change_weights(folder, lambda held: [held.pop(name) for name in list(held) if name.startswith(TOWER)])
    (folder / "vit_config.json").unlink()
    policy = Bagel.load(folder)
    assert policy.config.vision is None and not any(n.startswith(TOWER) for n in policy.model.state_dict())
    save_public(policy, folder.parent / "out")
    assert contents(folder.parent / "out") == contents(folder)


@pytest.mark.parametrize(("side", "pixels"), [(7, 112), (65, 1024)])
def test_pictures_are_of_the_usual_size_or_the_largest_that_the_table_has(folder, side, pixels):
    change_weights(folder, lambda held: held.update({"latent_pos_embed.pos_embed": torch.zeros(side**2, 64)}))
    config = Bagel.load(folder).config
    assert config.max_latent_size == side and config.image_size == (pixels, pixels)


# Faults


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (["llm_config.json"], "is not a public BAGEL folder: it has no llm_config.json"),
        (["ae.safetensors"], "is not a public BAGEL folder: it has no ae.safetensors"),
        (["ema.safetensors"], r"has no weights: it needs ema\.safetensors .* or model\.safetensors"),
        (["vit_config.json"], r"has the tensors of a vision tower \(vit_model\.\*\), but no vit_config\.json: add it"),
        (["tokenizer.json", "merges.txt"], "has no tokenizer: it needs tokenizer.json, or vocab.json and merges.txt"),
    ],
)
def test_a_missing_file_is_named(folder, lost, message):
    for name in lost:
        (folder / name).unlink()
    with pytest.raises(ValueError, match=message) as caught:
        Bagel.load(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["ema.safetensors", "ae.safetensors", "llm_config.json", "vit_config.json", "config.json", "tokenizer.json"]
)
def test_a_torn_file_is_named(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        Bagel.load(folder)
    assert "\n" not in str(caught.value)


def test_a_config_that_is_no_object_is_named(folder):
    (folder / "vit_config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"vit_config\.json is not a JSON object"):
        Bagel.load(folder)


def test_a_tokenizer_without_the_control_tokens_or_of_another_model_is_named(folder):
    words = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "a"]
    word_tokenizer(words).save(folder / "tokenizer.json")
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match=r"model: the tokenizer lacks <\|vision_end\|>"):
        Bagel.load(folder)
    word_tokenizer([*(f"w{i}" for i in range(600)), *words, "<|vision_end|>"]).save(folder / "tokenizer.json")
    with pytest.raises(ValueError, match="gives a special token the id 604, but the weights have 576 tokens"):
        Bagel.load(folder)


CONTRADICTIONS = [
    (
        "llm_config.json",
        {"vocab_size": 577},
        r"says vocab_size 577, but the weights have 576 \(.*embed_tokens.*576, 64",
    ),
    ("llm_config.json", {"hidden_size": 128}, "says hidden_size 128, but the weights have 64"),
    ("llm_config.json", {"hidden_size": None}, r"does not say hidden_size \(so it is 3584\), but the weights have 64"),
    ("llm_config.json", {"intermediate_size": 161}, "says intermediate_size 161, but the weights have 160"),
    ("llm_config.json", {"num_hidden_layers": 4}, "says num_hidden_layers 4, but the weights have 3"),
    ("llm_config.json", {"num_attention_heads": 8}, "says num_attention_heads 8, but the weights have 4"),
    ("llm_config.json", {"num_key_value_heads": 4}, "says num_key_value_heads 4, but the weights have 2"),
    ("llm_config.json", {"hidden_size": "64"}, "says hidden_size '64', which should be a whole number from 1 to"),
    ("llm_config.json", {"rope_theta": -1}, "says rope_theta -1, which should be a number from 1 to"),
    ("llm_config.json", {"rms_norm_eps": True}, "says rms_norm_eps True, which should be a number"),
    ("llm_config.json", {"hidden_act": "gelu"}, "says hidden_act 'gelu'; this version only runs BAGEL with .* 'silu'"),
    ("llm_config.json", {"rope_scaling": {"type": "yarn"}}, "says rope_scaling .*; this version only runs"),
    ("llm_config.json", {"use_sliding_window": True}, "says use_sliding_window True; this version only runs"),
    (
        "vit_config.json",
        {"num_hidden_layers": 2},
        "says num_hidden_layers 2, the last 1 of which is not used, but .* 2",
    ),
    ("vit_config.json", {"hidden_size": 96}, "says hidden_size 96, but the weights have 48"),
    ("vit_config.json", {"intermediate_size": 97}, "says intermediate_size 97, but the weights have 96"),
    ("vit_config.json", {"patch_size": 16}, "says patch_size 16, but the weights have 14"),
    ("vit_config.json", {"image_size": 384}, "says image_size 384, but the weights have 980"),
    ("vit_config.json", {"num_attention_heads": 5}, "says num_attention_heads 5, but hidden_size 48 is not a multiple"),
    ("vit_config.json", {"hidden_act": "gelu"}, "says hidden_act 'gelu'; this version only runs"),
    ("config.json", {"latent_patch_size": 4}, "says latent_patch_size 4 and ae.safetensors has 16 .* but vae2llm.* 64"),
    ("config.json", {"vit_max_num_patch_per_side": 80}, "says vit_max_num_patch_per_side 80, but the weights have 70"),
    ("config.json", {"interpolate_pos": True}, "says interpolate_pos True; this version only runs"),
    ("config.json", {"connector_act": "relu"}, "says connector_act 'relu'; this version only runs"),
]


@pytest.mark.parametrize(("name", "values", "message"), CONTRADICTIONS)
def test_a_config_that_contradicts_the_tensors_is_named(folder, name, values, message):
    change(folder / name, **values)
    with pytest.raises(ValueError, match=f"^{re.escape(str(folder / name))} {message}") as caught:
        Bagel.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda held: held.pop("llm2vae.bias"), "ema.safetensors does not fit the model: missing llm2vae.bias$"),
        (lambda held: held.update({"x": torch.zeros(1)}), "ema.safetensors does not fit the model: unexpected x$"),
        (lambda held: held.update({"llm2vae.bias": torch.zeros(3)}), r"llm2vae.bias has shape \(3,\), .* \(64,\)$"),
        (lambda held: held.pop("connector.fc1.weight"), "missing connector.fc1.weight$"),
        (lambda held: held.pop(EMBED), f"are not those of a BAGEL: {EMBED} is missing"),
        (lambda held: held.clear(), f"are not those of a BAGEL: {EMBED} is missing"),
        (lambda held: held.update({"latent_pos_embed.pos_embed": torch.zeros(50, 64)}), "50 rows, which is not the sq"),
        (lambda held: [held.pop(n) for n in list(held) if "layers.1." in n], "says num_hidden_layers 3, but .* 2"),
    ],
)
def test_weights_that_do_not_fit_are_named(folder, edit, message):
    change_weights(folder, edit)
    with pytest.raises(ValueError, match=message) as caught:
        Bagel.load(folder)
    assert str(folder) in str(caught.value)


def test_another_autoencoder_is_named(folder):
    coder = tensors(folder / "ae.safetensors")
    write_stream(folder / "ae.safetensors", {n: v for n, v in coder.items() if n != "decoder.conv_in.bias"})
    with pytest.raises(ValueError, match=r"ae\.safetensors does not fit the model: missing decoder\.conv_in\.bias"):
        Bagel.load(folder)


# Out


def test_load_and_save_gives_back_every_byte_even_when_the_source_is_gone(folder, tmp_path):
    (folder / "LICENSE").write_bytes(b"free\r\n")
    (folder / "assets").mkdir()
    before = contents(folder)
    policy = load_public(folder, compute_dtype=BF16, trained=denoising)
    shutil.rmtree(folder)
    save_public(policy, tmp_path / "a" / "out")
    assert contents(tmp_path / "a" / "out") == before
    assert {"config.json", "merges.txt", "LICENSE", "README.md", "generation_config.json"} < set(before)


@pytest.mark.parametrize("metadata", [{}, {"format": "pt", "by": "someone"}])
def test_a_file_named_model_goes_back_under_its_name(folder, tmp_path, metadata):
    held = tensors(folder / "ema.safetensors")
    (folder / "ema.safetensors").unlink()
    held["llm2vae.bias"] = held["llm2vae.bias"].float()  # also where not every tensor has the same dtype
    write_stream(folder / "model.safetensors", held, metadata=dict(sorted(metadata.items())))
    before = contents(folder)
    save_public(Bagel.load(folder), tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_shards_go_back_as_one_file(folder, tmp_path):
    whole = (folder / "ema.safetensors").read_bytes()
    held = tensors(folder / "ema.safetensors")
    places = {name: f"ema-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(sorted(held))}
    for shard in set(places.values()):
        write_stream(folder / shard, {name: held[name] for name in held if places[name] == shard})
    (folder / "ema.safetensors").unlink()
    (folder / "ema.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    save_public(Bagel.load(folder), tmp_path / "out")
    out = contents(tmp_path / "out")
    assert tensors(tmp_path / "out" / "ema.safetensors").keys() == held.keys()
    write_stream(tmp_path / "x", held)  # with the metadata that other libraries look for
    assert out.pop("ema.safetensors") == (tmp_path / "x").read_bytes() and len(whole) > len(out)
    assert out == {n: c for n, c in contents(folder).items() if not n.startswith("ema")}


def test_an_index_that_is_not_used_is_a_file_like_others(folder, tmp_path):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "ema.safetensors"}}')
    save_public(Bagel.load(folder), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(folder)


@torch.no_grad()
def trained_policy(folder):
    """As after some training: weights that bf16 cannot hold."""
    policy = load_public(folder, compute_dtype=BF16, trained=denoising)
    for name, parameter in policy.model.named_parameters():
        if denoising(name):
            parameter.mul_(1.01)
    return policy


def test_a_checkpoint_keeps_every_bit_and_still_knows_what_it_came_from(made, tmp_path):
    policy = trained_policy(made)
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "training_state.json").write_text("{}")  # what a run puts beside it
    save_policy(policy, tmp_path / "held")
    back = load_public(tmp_path / "held", compute_dtype=BF16, trained=denoising)
    ours, theirs = policy.model.state_dict(), back.model.state_dict()
    assert all(ours[n].dtype == theirs[n].dtype and torch.equal(ours[n], theirs[n]) for n in ours)
    for number, one in enumerate((policy, back)):
        save_public(one, tmp_path / f"{number}")
    source = tensors(made / "ema.safetensors")
    for name, value in tensors(tmp_path / "1" / "ema.safetensors").items():
        assert value.dtype == BF16 and torch.equal(value, ours[name].to(BF16))
        assert torch.equal(value, source[name]) != denoising(name)
    assert contents(tmp_path / "0") == contents(tmp_path / "1")
    assert contents(tmp_path / "1").keys() == contents(made).keys()
    # a checkpoint of the resumed run is the very same file
    save_policy(back, tmp_path / "again")
    assert (tmp_path / "again" / "ema.safetensors").read_bytes() == (tmp_path / "held/ema.safetensors").read_bytes()


def test_a_checkpoint_whose_note_is_damaged_is_named(made, tmp_path):
    save_policy(load_public(made), tmp_path / "held")
    path = tmp_path / "held" / "ema.safetensors"
    (tmp_path / "held" / "README.md").unlink()
    with pytest.raises(ValueError, match=r"held/ema\.safetensors is damaged: its note on where it came from"):
        Bagel.load(tmp_path / "held")
    write_stream(path, tensors(path), metadata={"unigrpo.origin": "[]"})
    with pytest.raises(ValueError, match=r"held/ema\.safetensors is damaged: its note on where it came from"):
        Bagel.load(tmp_path / "held")


def test_a_run_goes_on_from_a_checkpoint_with_the_parameters_it_has(made, tmp_path):
    policy = trained_policy(made)
    save_policy(policy, tmp_path / "held")
    other = load_public(made, compute_dtype=BF16, trained=denoising)
    before = dict(other.model.named_parameters())
    restore_weights(other, tmp_path / "held")
    assert all(parameter is before[name] for name, parameter in other.model.named_parameters())
    assert all(torch.equal(v, policy.model.state_dict()[n]) for n, v in other.model.state_dict().items())


def test_what_cannot_be_written_is_refused(made, tmp_path):
    policy = Bagel.load(made)
    with pytest.raises(ValueError, match="is the folder that the model came from: write it to another one"):
        save_public(policy, made / ".." / made.name)
    policy.model.register_parameter("lora_A", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(ValueError, match=r"has other tensors than the folder it came from \(lora_A\): merge or remove"):
        save_public(policy, tmp_path / "out")
    policy.origin = None
    with pytest.raises(ValueError, match="did not come from a public BAGEL folder"):
        save_public(policy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_class_loads_and_saves(made, tmp_path):
    policy = Bagel.from_pretrained(str(made), compute_dtype=BF16)
    assert {value.dtype for value in policy.model.state_dict().values()} == {BF16}
    policy.save_pretrained(tmp_path / "out")
    assert contents(tmp_path / "out") == contents(made)


def test_the_policy_written_again_gives_the_same_numbers(made, tmp_path):
    save_public(load_public(made), tmp_path / "out")
    ours, theirs = (Bagel.load(f, image_size=(32, 32)) for f in (made, tmp_path / "out"))
    assert isinstance(theirs.autoencoder, FluxAutoencoder) and replace(theirs.config) == ours.config
    x, t = torch.randn(1, 4, 64), torch.tensor([0.5])
    with torch.no_grad():
        assert torch.equal(ours.velocity(ours.prefill([()]), x, t), theirs.velocity(theirs.prefill([()]), x, t))
        assert torch.equal(ours.decode_image(x), theirs.decode_image(x))


# From the hub


class Hub:
    """A stand-in for the hub that keeps what it was asked for."""

    def __init__(self, folder, files, fault=None):
        self.folder, self.files, self.fault, self.asked = folder, files, fault, []

    def __call__(self, name, *, allow_patterns):
        self.asked.append((name, allow_patterns))
        if self.fault is not None:
            raise self.fault
        for file in self.files:
            (self.folder / file).touch()
        return str(self.folder)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    import huggingface_hub

    def install(files=("ema.safetensors",), fault=None):
        stand_in = Hub(tmp_path, files, fault)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", stand_in)
        return stand_in

    return install


def test_a_folder_is_itself_and_needs_no_hub(hub, tmp_path):
    stand_in = hub()
    assert fetch(str(tmp_path)) == tmp_path and not stand_in.asked


def test_a_hub_id_is_downloaded_without_what_is_not_needed(hub, tmp_path):
    stand_in = hub()
    assert fetch("owner/name-1.0") == tmp_path
    ((name, patterns),) = stand_in.asked
    assert name == "owner/name-1.0" and {"ema*.safetensors", "ae.safetensors", "*.json", "*.txt"} <= set(patterns)
    assert not any(pattern.startswith(("model", "*.safe", "*.bin", "*.pt")) for pattern in patterns)


def test_model_safetensors_is_downloaded_where_there_is_no_ema(hub):
    stand_in = hub(files=["model-00001-of-00001.safetensors"])
    fetch("owner/name")
    assert ["model*.safetensors" in patterns for _, patterns in stand_in.asked] == [False, True]


def test_a_fault_names_both_readings(hub):
    stand_in = hub(fault=RuntimeError("401 Client Error.\n\nRepository Not Found"))
    with pytest.raises(ValueError, match=r"^there is no folder o/n, and the hub said: 401 Client Error\.$"):
        fetch("o/n")
    stand_in.fault = ConnectionError()
    with pytest.raises(ValueError, match=r"^there is no folder o/n, and the hub said: ConnectionError$"):
        fetch("o/n")
    for name in ("n", "./o/n", "/no/where", "a/b/c"):
        with pytest.raises(
            ValueError, match=rf"^there is no folder {name}, and it is not a hub id \(owner/name\) either$"
        ):
            fetch(name)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"needs the package huggingface_hub: pip install "):
        fetch("o/n")


def test_the_names_of_the_small_files_cover_a_public_folder(made):
    patterns = (*public.SMALL_FILES, "ema*.safetensors")
    assert all(any(path.match(p) for p in patterns) for path in made.iterdir() if path.is_file())
