"""Damaged and foreign model folders: a sentence for each of some hundred damages, and never a traceback."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import tiny_runs
from unigrpo import build, cli
from unigrpo.models.bagel_files.checkpoint import restore_weights
from unigrpo.models.bagel_files.public import load_public
from unigrpo.models.bagel_files.sound import Sound
from unigrpo.models.bagel_files.tensor_files import TensorFiles, write_stream
from unigrpo.recipe import Model
from unigrpo.tools.tiny_bagel import make_tiny_bagel
from unigrpo.training.lora import Adapter

RAW = {"infinite": "1e400", "Infinity": "Infinity", "NaN": "NaN", "sixty digits": "9" * 60, "deep": "[" * 2000}
VALUES = {"a text": '"12"', "a list": "[1]", "a fraction": "1.5", "2^31": str(2**31), "nothing": "0", "negative": "-3",
          "a truth": "true", "null": "null", "an object": "{}", "five thousand digits": "9" * 5000, **RAW}  # fmt: skip
WHOLE = {
    "llm_config.json": "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
    "num_key_value_heads",
    "vit_config.json": "hidden_size intermediate_size num_hidden_layers num_attention_heads image_size patch_size",
    "config.json": "latent_patch_size max_latent_size vit_max_num_patch_per_side",
}
OWN_WHOLE = (
    "vocab_size hidden_size intermediate_size num_layers num_heads num_kv_heads latent_channels max_latent_size "
    "bos_token_id vision_end_id latent_patch_size vae_downsample num_points max_think_tokens image_size"
)


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged") / "tiny"
    make_tiny_bagel(folder)
    shutil.rmtree(folder / "samples")
    return folder


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged") / "adapter"
    policy = build.policy(Model(str(tiny_runs.model_folder())))
    targets = policy.adapter_targets(["denoising"])
    base = str(tiny_runs.model_folder())
    Adapter.create(policy.model, targets, rank=2, alpha=4, seed=0, base_name=base).save(folder)
    return folder


def spoiled(source, folder, name, content):
    """A copy (of links) in which one file has another content."""
    shutil.copytree(source, folder, copy_function=os.link)
    (folder / name).unlink()
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def with_value(path, key, raw):
    """A JSON file in which a key has another value, given as JSON text."""
    return json.dumps({**json.loads(path.read_text()), key: "@"}).replace('"@"', raw)


def fault(folder):
    """What loading says; None if it says nothing. Anything but a ValueError is a traceback, and fails the test."""
    try:
        build.policy(Model(str(folder)))
    except ValueError as error:
        return str(error)
    return None


def assert_refused(source, scratch, cases):
    """Every case (label, file name, content) ends in one sentence that names the place."""
    bad = {}
    for number, (label, name, content) in enumerate(cases):
        folder = spoiled(source, scratch / str(number), name, content)
        said = fault(folder)
        if said is None or "\n" in said or str(folder) not in said or len(said) > 900:
            bad[label] = said
    assert not bad


@pytest.mark.parametrize("name", WHOLE)
def test_no_number_of_a_public_config_is_believed(public, tmp_path, name):
    cases = [
        (f"{key}: {label}", name, with_value(public / name, key, raw))
        for key in WHOLE[name].split()
        for label, raw in VALUES.items()
        if (key, label) not in {("max_latent_size", "null")}
    ]
    assert_refused(public, tmp_path, cases)


def test_no_fraction_of_a_public_config_is_believed(public, tmp_path):
    keys = (
        ("llm_config.json", "rms_norm_eps"),
        ("llm_config.json", "rope_theta"),
        ("vit_config.json", "layer_norm_eps"),
    )
    legal = {("rope_theta", "a fraction"), ("rope_theta", "2^31")}
    cases = [
        (f"{key}: {label}", name, with_value(public / name, key, raw))
        for name, key in keys
        for label, raw in VALUES.items()
        if (key, label) not in legal
    ]
    assert_refused(public, tmp_path, cases)


def test_no_number_of_an_own_config_is_believed(tmp_path):
    folder = tiny_runs.model_folder()
    cases = [
        (f"{key}: {label}", "config.json", with_value(folder / "config.json", key, raw))
        for key in OWN_WHOLE.split()
        for label, raw in VALUES.items()
        if not (key.endswith("_id") and label == "nothing")
    ]
    cases += [
        (f"{key}: {raw}", "config.json", with_value(folder / "config.json", key, raw))
        for key, raws in {
            "image_size": ("[32]", "[]", "[32, 32, 32]", '["32", 32]', "[32.0, 32]", "[1e400, 32]", "[31, 32]"),
            "guidance_interval": ("[]", "[0.4]", '["a", "b"]', "[0, 2]", "7"),
            "temperature": ("-1", '"hot"', "1e400", "null"),
            "timestep_shift": ("0", "[3]", "NaN"),
            "rope_theta": ("0", '"big"', "1e300"),
            "system_prompt": ("5", "[]"),
            "vision": ("5", "[]", "{}", '{"hidden_size": 0, "intermediate_size": 1, "num_layers": 1, "num_heads": 0}'),
            "vocab_size": ("3",),
        }.items()
        for raw in raws
    ]
    cases += [
        (f"autoencoder {key}: {label}", "autoencoder.json", with_value(folder / "autoencoder.json", key, raw))
        for key in ("channels", "width", "groups")
        for label, raw in VALUES.items()
    ]
    assert_refused(folder, tmp_path, cases)


def test_no_value_of_an_adapter_is_believed(adapted, tmp_path):
    pytest.importorskip("peft")
    bad = {
        "r": VALUES,
        "lora_alpha": {key: raw for key, raw in VALUES.items() if key not in ("a fraction", "nothing", "negative")},
        "lora_dropout": {key: raw for key, raw in VALUES.items() if key != "nothing"},
        "base_model_name_or_path": {"a number": "5", "a list": "[]", "nothing": '""', "deep": RAW["deep"]},
        "target_modules": {"a number": "5", "numbers": "[5]", "no pattern": '"(("', "none of them": '"nowhere"'},
        "rank_pattern": {"a list": "[1]", "a text": '{"a": "b"}', "nothing": '{"a": 0}'},
        "peft_type": {"a list": "[]", "another": '"IA3"'},
        "use_rslora": {"a text": '"yes"'},
        "bias": {"all": '"all"'},
    }
    cases = [
        (f"{key}: {label}", "adapter_config.json", with_value(adapted / "adapter_config.json", key, raw))
        for key, raws in bad.items()
        for label, raw in raws.items()
    ]
    cases += [(f"a file of {raw[:4]}", "adapter_config.json", raw) for raw in ("", "[]", "5", "[" * 2000, "\ufeff{")]
    assert_refused(adapted, tmp_path, cases)


JSON_FILES = ("llm_config.json", "vit_config.json", "config.json", "tokenizer.json", "tokenizer_config.json")
TORN = {"nothing": "", "no object": "[1]", "deep lists": "[" * 2000, "deep objects": '{"a":' * 2000, "a letter": "x",
        "not UTF-8": b"\xff\xfe{}", "a picture": b"\x89PNG\r\n\x1a\n" + bytes(64)}  # fmt: skip


@pytest.mark.parametrize("name", JSON_FILES)
def test_a_json_file_of_anything_else_is_named(public, tmp_path, name):
    cases = [(label, name, content) for label, content in TORN.items()]
    closed = json.loads((public / name).read_text())
    cases.append(("deep and closed", name, json.dumps({**closed, "x": "@"}).replace('"@"', "[" * 200 + "]" * 200)))
    assert_refused(public, tmp_path, cases)


def test_tokens_that_cannot_be_are_named(public, tmp_path):
    (tmp_path / "plain").mkdir()
    for name in os.listdir(public):
        if name != "tokenizer.json":
            os.link(public / name, tmp_path / "plain" / name)
    words = json.loads((public / "vocab.json").read_text())
    first = next(iter(words))
    cases = [
        (f"an id {raw[:9]}", "vocab.json", with_value(public / "vocab.json", first, raw))
        for raw in ('"1"', "1.5", "[1]", "-1", "true", "null", RAW["sixty digits"], str(2**31), RAW["infinite"])
    ]
    added = json.loads((public / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    entry = next(iter(added.values()))
    for label, tokens in {
        "an id of 60 digits": {"9" * 60: entry},
        "an id of letters": {"one": entry},
        "no letters": {"508": {**entry, "content": ""}},
        "a list": [entry],
        "a number": {"508": 5},
    }.items():
        raw = with_value(public / "tokenizer_config.json", "added_tokens_decoder", json.dumps(tokens))
        cases.append((label, "tokenizer_config.json", raw))
    assert_refused(tmp_path / "plain", tmp_path, cases)


# Weights


def header(path, change):
    """The bytes of a safetensors file whose header (a dict) was changed."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    said = json.loads(raw[8 : 8 + length])
    change(said)
    new = json.dumps(said).encode()
    return len(new).to_bytes(8, "little") + new + raw[8 + length :]


def first_of(said):
    return next(value for key, value in said.items() if key != "__metadata__")


HEADERS = {
    "F32 called I32": lambda said: [e.update(dtype="I32") for e in said.values() if e.get("dtype") == "F32"],
    "one F32 called I32": lambda said: first_of(said).update(dtype="I32"),
    "a dtype of nobody": lambda said: first_of(said).update(dtype="F4"),
    "a dtype that is a list": lambda said: first_of(said).update(dtype=["F32"]),
    "a size of text": lambda said: first_of(said).update(shape=["2"]),
    "a size with a fraction": lambda said: first_of(said).update(shape=[1.5]),
    "a size of 60 digits": lambda said: first_of(said).update(shape=[10**60]),
    "no shape": lambda said: first_of(said).pop("shape"),
    "a place of text": lambda said: first_of(said).update(data_offsets=["0", "4"]),
    "three places": lambda said: first_of(said).update(data_offsets=[0, 1, 2]),
    "metadata in a list": lambda said: said.update(__metadata__=[1]),
    "metadata of numbers": lambda said: said.update(__metadata__={"format": 1}),
    "an entry that is a number": lambda said: said.update(x=5),
}


@pytest.mark.parametrize("name", ["model.safetensors", "ae.safetensors"])
def test_a_damaged_header_is_named(tmp_path, name):
    folder = tiny_runs.model_folder()
    cases = [(label, name, header(folder / name, change)) for label, change in HEADERS.items()]
    for label, text in {"deep": "[" * 2000, "deep objects": '{"a":' * 2000, "infinite": '{"a": 1e400}'}.items():
        cases.append((label, name, len(text).to_bytes(8, "little") + text.encode()))
    assert_refused(folder, tmp_path, cases)


@torch.no_grad()
def spoil(folder, scratch, name, change):
    files = TensorFiles.of(folder / name)
    held = {key: files.read(key) for key in files.names}
    change(held)
    scratch.mkdir()
    write_stream(scratch / name, held)
    return (scratch / name).read_bytes()


def fill(part, value):
    return lambda held: [tensor.fill_(value) for key, tensor in held.items() if key.startswith(part)]


def one(name, value):
    return lambda held: held[name].view(-1)[0].fill_(value)


LAST, EMBED = "llm2vae.bias", "language_model.model.embed_tokens.weight"
NUMBERS = {
    "all NaN": ("model.safetensors", fill("", float("nan")), "holds NaN"),
    "one NaN": ("model.safetensors", one(LAST, float("nan")), f"{LAST} holds NaN"),
    "one infinite": ("model.safetensors", one(EMBED, float("-inf")), f"{EMBED} holds infinite numbers"),
    "all zero": ("model.safetensors", fill("", 0.0), "is all zeros"),
    "embeddings of zeros": ("model.safetensors", fill(EMBED, 0.0), f"{EMBED} is all zeros"),
    "layers of zeros": ("model.safetensors", lambda held: [fill("language_model.model.layers", 0.0)(held),
        fill("language_model.lm_head", 0.0)(held)], None),  # embeddings are left: a whole part is not
    "a decoder of zeros": ("ae.safetensors", fill("decoder.", 0.0), "all weights of decoder are zero"),
    "an autoencoder of NaN": ("ae.safetensors", one("shift", float("nan")), "shift holds NaN"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "change", "said"), NUMBERS.values(), ids=NUMBERS)
def test_numbers_that_are_no_weights_are_named_at_loading(tmp_path, name, change, said):
    source = tiny_runs.model_folder()
    folder = spoiled(source, tmp_path / "model", name, spoil(source, tmp_path / "x", name, change))
    told = fault(folder)
    assert told is None if said is None else said in told


def test_a_public_folder_and_a_resumed_run_look_too(public, tmp_path):
    nan = spoil(public, tmp_path / "x", "ema.safetensors", one(LAST, float("nan")))
    assert f"{LAST} holds NaN" in fault(spoiled(public, tmp_path / "a", "ema.safetensors", nan))
    coder = spoil(public, tmp_path / "y", "ae.safetensors", fill("encoder.", 0.0))
    assert "all weights of encoder are zero" in fault(spoiled(public, tmp_path / "b", "ae.safetensors", coder))
    with pytest.raises(ValueError, match=r"llm2vae\.bias holds NaN"):
        restore_weights(load_public(public), tmp_path / "a")


def test_an_adapter_that_is_not_finite_is_named(adapted, tmp_path):
    pytest.importorskip("peft")
    name = "adapter_model.safetensors"
    nan = spoil(adapted, tmp_path / "x", name, lambda held: next(iter(held.values())).view(-1)[:1].fill_(float("nan")))
    assert "is not finite" in fault(spoiled(adapted, tmp_path / "a", name, nan))
    whole = header(adapted / name, HEADERS["F32 called I32"])
    assert "weights are floating-point numbers" in fault(spoiled(adapted, tmp_path / "b", name, whole))


def test_what_a_lower_precision_cannot_hold_is_named():
    with pytest.raises(ValueError, match=r"a holds 1e\+39, which is too large for float32"):
        Sound("x").look("a", torch.tensor([1e39], dtype=torch.float64), torch.float32)
    Sound("x").look("a", torch.tensor([3e38]), torch.float32)


def test_zeros_that_are_legal_are_loaded(tmp_path):
    source = tiny_runs.model_folder()
    bytes_of = spoil(source, tmp_path / "x", "model.safetensors", fill("llm2vae.", 0.0))
    assert fault(spoiled(source, tmp_path / "a", "model.safetensors", bytes_of)) is None


def test_the_command_line_says_it_and_ends_with_2(public, tmp_path, capsys):
    content = with_value(public / "llm_config.json", "vocab_size", RAW["deep"])
    folder = spoiled(public, tmp_path / "model", "llm_config.json", content)
    for words in (
        ["generate", "a", "--model", str(folder), "--out", str(tmp_path / "a.png")],
        ["train", "bagel/unigrpo", "--model.path", str(folder), "--dry-run"],
        ["export", str(folder), str(tmp_path / "out")],
    ):
        assert cli.run(words) == 2
        message = capsys.readouterr().err
        assert message.startswith("unigrpo: error: ") and "llm_config.json" in message and "Traceback" not in message
    assert not Path(tmp_path / "out").exists()
