"""CLIP and its children: the library's own numbers, gradients, truncation, heads, open_clip's weights."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional

from reward_models import assert_gradient, clip_config, letters, make_clip, pictures
from unigrpo.ranges import ConfigError
from unigrpo.rewards.clip import Aesthetic, ClipScore, HpsV2, PickScore
from unigrpo.rewards.pixels import PIL_LEVELS, Preprocessing, resize

PROMPTS = ["a red circle", "two blue squares", "a red circle"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    make_clip(folder)
    return str(folder)


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """LAION's second predictor in small: linear layers with numbers of a Sequential that has dropouts."""
    torch.manual_seed(3)
    layers = {f"layers.{n}": torch.nn.Linear(a, b) for n, (a, b) in {0: (12, 8), 2: (8, 4), 10: (4, 1)}.items()}
    file = tmp_path_factory.mktemp("head") / "head.pth"
    torch.save({f"{n}.{k}": v.detach() for n, layer in layers.items() for k, v in layer.state_dict().items()}, file)
    return str(file), list(layers.values())


def as_bytes(images):
    """The pictures that Pillow and tensors both hold exactly."""
    return (images * 255).round() / 255


def pil(picture):
    return Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy())


# ------------------------------------------------------------------------------------------------ preprocessing


@pytest.mark.parametrize(
    "sizes", [((9, 11), (33, 41)), ((64, 48), (21, 16)), ((90, 40), (40, 40)), ((31, 64), (31, 20))]
)
@pytest.mark.parametrize("kind", ["noise", "black and white"])
def test_resizing_is_pillows_within_its_two_roundings(sizes, kind):
    (height, width), size = sizes
    picture = as_bytes(torch.rand(3, height, width, generator=torch.Generator().manual_seed(height)))
    picture = picture.round() if kind == "black and white" else picture
    theirs = np.array(pil(picture).resize(size[::-1], Image.Resampling.BICUBIC)).astype(float)
    ours = resize(picture[None], size)[0].permute(1, 2, 0).numpy() * 255
    assert 0.3 < np.abs(ours - theirs).max() <= PIL_LEVELS


@pytest.mark.parametrize("size", [(16, 16), (20, 28), (61, 16), (7, 10), (300, 200)])
def test_preprocessing_is_the_librarys_within_the_rounding_to_bytes(folder, size):
    from transformers import CLIPImageProcessor

    theirs = CLIPImageProcessor.from_pretrained(folder)
    images = as_bytes(torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1)))
    wanted = theirs([pil(picture) for picture in images], return_tensors="pt")["pixel_values"]
    found = ClipScore(model=folder).clip.preprocessing(images)
    assert found.shape == wanted.shape == (2, 3, 16, 16)
    assert float((found - wanted).abs().max()) <= PIL_LEVELS / 255 / min(theirs.image_std)


def test_the_older_files_of_preprocessing_mean_the_same(folder, tmp_path):
    """Plain numbers for sizes, as the published folders of CLIP have them."""
    make_clip(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    written |= {"size": 16, "crop_size": 16, "feature_extractor_type": "CLIPFeatureExtractor"}
    written.pop("image_processor_type")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(written))
    assert ClipScore(model=str(tmp_path)).clip.preprocessing == ClipScore(model=folder).clip.preprocessing


def test_the_picture_for_hpsv2_is_padded_not_cut():
    way = Preprocessing(16, (0.0,) * 3, (1.0,) * 3)
    wide = way(torch.ones(1, 3, 8, 32))
    assert wide.shape == (1, 3, 16, 16)
    assert torch.equal(wide[0, 0, :, 0], torch.tensor([0.0] * 6 + [1.0] * 4 + [0.0] * 6))
    tall = way(torch.ones(1, 3, 32, 10))
    assert torch.equal(tall[0, 0, 0], torch.tensor([0.0] * 5 + [1.0] * 5 + [0.0] * 6))
    assert torch.allclose(way(torch.ones(1, 3, 5, 5)), torch.ones(1, 3, 16, 16), atol=1e-6)


# ------------------------------------------------------------------------------------------------ the numbers


def test_the_score_is_the_models_own(folder):
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    model, images = CLIPModel.from_pretrained(folder), as_bytes(pictures(height=16, width=16))
    ids = CLIPTokenizer.from_pretrained(folder)(PROMPTS, padding=True, return_tensors="pt")
    pixels = CLIPImageProcessor.from_pretrained(folder)([pil(p) for p in images], return_tensors="pt")
    with torch.no_grad():
        wanted = model(**ids, **pixels).logits_per_image.diagonal()
    for reward in (ClipScore(model=folder), PickScore(model=folder, batch=2)):
        found = reward(images, PROMPTS, [{}] * 3, [None] * 3)
        assert np.allclose(found.values, wanted, rtol=1e-4, atol=1e-4)
    assert float(wanted.std()) > 0.1


def test_what_transformers_gives_for_features(folder):
    """Since transformers 5 an object; should it become a tensor again, the rewards must be changed."""
    from transformers import CLIPModel

    output = CLIPModel.from_pretrained(folder).get_image_features(pixel_values=torch.zeros(2, 3, 16, 16))
    assert not isinstance(output, torch.Tensor | tuple)
    assert output.pooler_output is not None and output.pooler_output.shape == (2, 12)


def test_hpsv2_is_the_cosine_and_pickscore_can_have_another_processor(folder, tmp_path):
    from transformers import CLIPModel

    CLIPModel.from_pretrained(folder).save_pretrained(tmp_path)  # no tokenizer, no preprocessing
    images = pictures(height=16, width=16)
    scores = PickScore(model=str(tmp_path), processor=folder).score(images, PROMPTS, [{}] * 3)
    cosines = HpsV2(model=folder, weights="").score(images, PROMPTS, [{}] * 3)
    scale = float(CLIPModel.from_pretrained(folder).logit_scale.detach().exp())
    assert torch.allclose(scores, scale * cosines, rtol=1e-5) and float(cosines.abs().max()) <= 1


def test_the_aesthetic_head_is_applied_in_the_order_of_its_numbers(folder, head):
    file, layers = head
    reward, images = Aesthetic(model=folder, head=file), pictures()
    with torch.no_grad():
        hidden = reward.clip.of_pictures(images)
        for layer in layers:
            hidden = layer(hidden)
    assert torch.allclose(reward.score(images, PROMPTS, [{}] * 3), hidden[:, 0], atol=1e-6)
    assert torch.equal(reward.score(images, PROMPTS, []), reward.score(images, ["other"] * 3, []))


def test_a_batch_has_a_bound_and_changes_no_number(folder, monkeypatch):
    images, seen = pictures(5), []
    whole, few = ClipScore(model=folder, batch=5), ClipScore(model=folder, batch=2)
    plain = few.clip.model.get_image_features
    monkeypatch.setattr(
        few.clip.model, "get_image_features", lambda **g: seen.append(len(g["pixel_values"])) or plain(**g)
    )
    prompts = ["a", "b", "c", "d", "a"]
    assert torch.allclose(few.score(images, prompts, []), whole.score(images, prompts, []), atol=1e-5)
    assert seen == [2, 2, 1]
    grown = images.clone().requires_grad_()
    few.score(grown, prompts, []).sum().backward()
    assert seen[3:6] == [2, 2, 1] and sorted(seen[6:]) == [1, 2, 2]  # once forward, and once again on the way back


def test_a_prompt_is_cut_to_77_tokens_and_keeps_its_end(folder):
    reward, images = ClipScore(model=folder), pictures(2)
    long, shown = "x" * 300, "x" * 75
    ids = reward.clip.tokens([long, "ab"])["input_ids"]
    end = letters("<|startoftext|>", "<|endoftext|>")["<|endoftext|>"]
    assert ids.shape == (2, 77) and ids[0, -1] == end and ids[0, -2] != end
    assert ids[1].tolist()[:4] == [end - 1, 0, letters()["b</w>"], end]
    first, other = reward.score(images, [long, long], []), reward.score(images, [f"{shown}yyyy", f"y{long}"], [])
    assert abs(first[0] - other[0]) < 1e-5 and abs(first[1] - other[1]) > 1e-3


# ------------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("kind", ["score", "pickscore", "hpsv2", "aesthetic"])
@pytest.mark.parametrize("size", [(20, 28), (12, 10)])
def test_finite_differences(folder, head, kind, size):
    made = {
        "score": lambda: ClipScore(model=folder, batch=2),
        "pickscore": lambda: PickScore(model=folder, batch=2),
        "hpsv2": lambda: HpsV2(model=folder, weights="", batch=2),
        "aesthetic": lambda: Aesthetic(model=folder, head=head[0], batch=2),
    }
    reward = made[kind]()
    reward.clip.model.double()
    assert_gradient(lambda images: reward.score(images, PROMPTS, [{}] * 3), pictures(3, *size, dtype=torch.float64))
    assert not any(parameter.requires_grad for parameter in reward.clip.model.parameters())


# ------------------------------------------------------------------------------------------------ open_clip's layout


def open_clip_weights(config, seed):
    """Random weights of open_clip's CLIP under its names."""
    eye, text, d = config.vision_config, config.text_config, config.projection_dim
    shapes = {
        "logit_scale": (), "positional_embedding": (77, text.hidden_size), "text_projection": (text.hidden_size, d),
        "token_embedding.weight": (text.vocab_size, text.hidden_size), "ln_final.weight": (text.hidden_size,),
        "ln_final.bias": (text.hidden_size,), "visual.class_embedding": (eye.hidden_size,),
        "visual.positional_embedding": (17, eye.hidden_size), "visual.proj": (eye.hidden_size, d),
        "visual.conv1.weight": (eye.hidden_size, 3, 4, 4),
    }  # fmt: skip
    for norm in ("visual.ln_pre", "visual.ln_post"):
        shapes |= {f"{norm}.weight": (eye.hidden_size,), f"{norm}.bias": (eye.hidden_size,)}
    for tower, part in (("", text), ("visual.", eye)):
        w, m = part.hidden_size, part.intermediate_size
        block = {"attn.in_proj_weight": (3 * w, w), "attn.in_proj_bias": (3 * w,), "attn.out_proj.weight": (w, w)}
        block |= {"attn.out_proj.bias": (w,), "mlp.c_fc.weight": (m, w), "mlp.c_fc.bias": (m,)}
        block |= {"mlp.c_proj.weight": (w, m), "mlp.c_proj.bias": (w,)}
        block |= {f"{norm}.{kind}": (w,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")}
        shapes |= {f"{tower}transformer.resblocks.{n}.{k}": s for n in range(2) for k, s in block.items()}
    draw = torch.Generator().manual_seed(seed)
    made = {k: torch.randn(s, generator=draw) / (math.sqrt(s[-1]) if len(s) > 1 else 3.0) for k, s in shapes.items()}
    return {k: v + (1.0 if "ln_" in k and k.endswith("weight") else 0.0) for k, v in made.items()}


def tower(w, prefix, x, heads, mask=None):
    """Two pre-norm blocks of open_clip, by torch's own multi-head attention."""
    for n in range(2):
        p = {k.removeprefix(f"{prefix}transformer.resblocks.{n}."): v for k, v in w.items()}
        attention = torch.nn.MultiheadAttention(x.shape[-1], heads, batch_first=True)
        attention.load_state_dict({k.removeprefix("attn."): v for k, v in p.items() if k.startswith("attn.")})
        h = functional.layer_norm(x, x.shape[-1:], p["ln_1.weight"], p["ln_1.bias"])
        x = x + attention(h, h, h, attn_mask=mask, need_weights=False)[0]
        h = functional.layer_norm(x, x.shape[-1:], p["ln_2.weight"], p["ln_2.bias"])
        h = functional.gelu(functional.linear(h, p["mlp.c_fc.weight"], p["mlp.c_fc.bias"]))
        x = x + functional.linear(h, p["mlp.c_proj.weight"], p["mlp.c_proj.bias"])
    return x


def norm(w, name, x):
    return functional.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


@torch.no_grad()
def open_clip_cosine(w, pixels, ids):
    """cos(picture, text) as open_clip computes it: the text read at its end token."""
    x = functional.conv2d(pixels, w["visual.conv1.weight"], stride=4).flatten(2).transpose(1, 2)
    x = torch.cat([w["visual.class_embedding"].expand(len(x), 1, -1), x], 1) + w["visual.positional_embedding"]
    seen = norm(w, "visual.ln_post", tower(w, "visual.", norm(w, "visual.ln_pre", x), 2)[:, 0]) @ w["visual.proj"]
    x = w["token_embedding.weight"][ids] + w["positional_embedding"]
    x = norm(w, "ln_final", tower(w, "", x, 2, torch.full((77, 77), -torch.inf).triu(1)))
    read = x[torch.arange(len(ids)), ids.argmax(-1)] @ w["text_projection"]
    return functional.cosine_similarity(seen, read)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_of_open_clip_give_open_clips_numbers(tmp_path, suffix):
    make_clip(tmp_path / "clip")
    config, _ = clip_config()
    config.vision_config.hidden_act = config.text_config.hidden_act = "gelu"
    config.save_pretrained(tmp_path / "clip")
    weights, file = open_clip_weights(config, seed=5), tmp_path / f"weights{suffix}"
    if suffix == ".pt":  # as HPS v2.1 is published
        torch.save({"epoch": 0, "state_dict": {k: v.half() for k, v in weights.items()}}, file)
        weights = {k: v.half().float() for k, v in weights.items()}
    else:
        save_file(weights, file)
    reward, images = HpsV2(model=str(tmp_path / "clip"), weights=str(file)), pictures(3, 16, 16)
    wanted = open_clip_cosine(weights, reward.clip.preprocessing(images), reward.clip.tokens(PROMPTS)["input_ids"])
    assert float(wanted.std()) > 0.01
    assert torch.allclose(reward.score(images, PROMPTS, []), wanted, atol=1e-5)
    weights.pop("ln_final.bias")
    save_file(weights, tmp_path / "short.safetensors")
    with pytest.raises(ConfigError, match=r"do not fit the config of its model \(.*final_layer_norm.bias"):
        HpsV2(model=str(tmp_path / "clip"), weights=str(tmp_path / "short.safetensors"))
    save_file({**weights, "mine": torch.zeros(1)}, tmp_path / "more.safetensors")
    with pytest.raises(ConfigError, match="mine is no tensor of an open_clip CLIP"):
        HpsV2(model=str(tmp_path / "clip"), weights=str(tmp_path / "more.safetensors"))


# ------------------------------------------------------------------------------------------------ what cannot work


def test_what_cannot_be_read_is_said_in_one_sentence(folder, head, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match=r"'clip/score': there is no folder .*nowhere"):
        ClipScore(model=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="batch = 0 must be a whole number, at least 1"):
        ClipScore(model=folder, batch=0)
    with pytest.raises(ConfigError, match="device = 'moon' is no device"):
        ClipScore(model=folder, device="moon")
    with pytest.raises(ConfigError, match="head = 'here' is no file, and no HUB/ID:FILE either"):
        Aesthetic(model=folder, head="here")
    torch.save({"0.weight": torch.zeros(1, 7), "0.bias": torch.zeros(1)}, tmp_path / "wide.pth")
    with pytest.raises(ConfigError, match=r"takes 7 numbers, but the model .* gives 12"):
        Aesthetic(model=folder, head=str(tmp_path / "wide.pth"))
    torch.save({"0.weight": torch.zeros(2, 12), "0.bias": torch.zeros(2)}, tmp_path / "two.pth")
    with pytest.raises(ConfigError, match="no linear layers that follow each other and end in one number"):
        Aesthetic(model=folder, head=str(tmp_path / "two.pth"))
    torch.save(torch.nn.Linear(12, 1), tmp_path / "pickled.pth")
    with pytest.raises(ConfigError, match="holds no tensors that can be read safely"):
        Aesthetic(model=folder, head=str(tmp_path / "pickled.pth"))
    make_clip(tmp_path / "other", shortest=20, crop=20)
    with pytest.raises(ConfigError, match="sees 16 pixels, but its preprocessing gives 20"):
        ClipScore(model=str(tmp_path / "other"))
    make_clip(tmp_path / "linear", resample=2)
    with pytest.raises(ConfigError, match=r"has resample 2, but only 3 \(bicubic\) is done with gradients"):
        ClipScore(model=str(tmp_path / "linear"))
    make_clip(tmp_path / "cut", shortest=12)
    with pytest.raises(ConfigError, match="cuts 16 pixels out of 12"):
        ClipScore(model=str(tmp_path / "cut"))


def test_a_missing_package_is_named_with_its_extra(folder, monkeypatch):
    monkeypatch.setattr("unigrpo.rewards.frozen.find_spec", lambda package: None)
    with pytest.raises(
        ConfigError, match=r"reward 'clip/score' needs the package transformers: pip install '\.\[clip\]'"
    ):
        ClipScore(model=folder)
