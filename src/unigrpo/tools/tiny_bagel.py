"""A random BAGEL of a few MB in exactly the public layout, with samples to try recipes on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image as Picture
from PIL import ImageDraw
from torch import Tensor

from unigrpo.files import replacing, whole_folder
from unigrpo.models.bagel.config import BagelConfig, VisionConfig
from unigrpo.models.bagel.transformer import BagelModel, sincos_table
from unigrpo.models.bagel_files.flux import FluxConfig, original_shapes
from unigrpo.models.bagel_files.public import AUTOENCODER
from unigrpo.models.bagel_files.public_config import LANGUAGE, VISION, WHOLE
from unigrpo.models.bagel_files.tensor_files import WEIGHTS, Shape, write_stream
from unigrpo.models.bagel_files.tokenizer import special_ids, train_tiny_tokenizer
from unigrpo.seeds import generator

NUM_TOKENS, PADDING = 512, 64  # like the real one, the model scores more ids than the tokenizer has
AUTOENCODER_SIZES = FluxConfig(ch=32, multipliers=(1, 1, 1, 1))
VISION_SIZES = VisionConfig(hidden_size=48, intermediate_size=96, num_layers=2, num_heads=4)
# Embeddings below, and a text head above, the usual scale: the thinking then wanders, and ends after some tokens.
EMBEDDING_SCALE, END_SCALE = 0.5, 2.5


@dataclass(frozen=True)
class TinyBagel:
    """What was made: weights of the model and of its autoencoder, tokens of the tokenizer, bytes of the folder."""

    folder: Path
    parameters: int
    autoencoder_parameters: int
    tokens: int
    num_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.folder}: {self.parameters:,} parameters, an autoencoder of {self.autoencoder_parameters:,}, "
            f"{self.tokens} tokens, {self.num_bytes / 1e6:.1f} MB; prompts and demonstrations are in samples/"
        )


def full_autoencoder_bytes() -> int:
    """Bytes of an autoencoder in the real sizes, in fp32."""
    return 4 * sum(math.prod(shape) for shape in original_shapes(FluxConfig()).values())


def make_tiny_bagel(folder: Path, *, seed: int = 0, full_autoencoder: bool = False) -> TinyBagel:
    """Write a random BAGEL (bf16, and an fp32 autoencoder) and ``samples``; one seed gives the same bytes each time.

    It thinks nonsense (with some seeds, nothing) and draws noise, but its files are those of the real folder. Programs
    that take all sizes from the files open it; the original code's autoencoder has the real sizes built in, so for that
    one ``full_autoencoder`` gives the autoencoder those (335 MB). The folder is there whole or not at all; ValueError
    if it has anything in it, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not an empty folder: give a new one, so that nothing is overwritten")
    with whole_folder(folder) as draft:
        made = _make(draft, seed, FluxConfig() if full_autoencoder else AUTOENCODER_SIZES)
    return replace(made, folder=folder)


def _make(folder: Path, seed: int, sizes: FluxConfig) -> TinyBagel:
    tokenizer = train_tiny_tokenizer(NUM_TOKENS)
    special = special_ids(tokenizer)
    config = _sizes((special.bos, special.eos, special.vision_start, special.vision_end))
    tokenizer.save_files(folder)
    for name, values in _configs(config).items():
        _write(folder / name, json.dumps(values, indent=2) + "\n")
    _write(folder / "README.md", README.format(seed=seed) + (SMALL_AUTOENCODER if sizes == AUTOENCODER_SIZES else ""))
    _write_samples(folder / "samples")
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in BagelModel(config).state_dict().items()}
    weights = {name: _draw(name, shape, config, seed) for name, shape in shapes.items()}
    coder = {name: _draw_autoencoder(name, shape, seed) for name, shape in original_shapes(sizes).items()}
    write_stream(folder / AUTOENCODER, coder)
    write_stream(folder / WEIGHTS[0], weights, dtype_of=lambda name: torch.bfloat16)
    return TinyBagel(
        folder,
        sum(value.numel() for value in weights.values()),
        sum(value.numel() for value in coder.values()),
        NUM_TOKENS,
        sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
    )


def _sizes(special: tuple[int, int, int, int]) -> BagelConfig:
    bos, eos, start, end = special
    return BagelConfig(
        vocab_size=NUM_TOKENS + PADDING,
        hidden_size=64,
        intermediate_size=160,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        latent_channels=AUTOENCODER_SIZES.latent_channels,
        max_latent_size=64,
        bos_token_id=bos,
        eos_token_id=eos,
        vision_start_id=start,
        vision_end_id=end,
        image_size=(1024, 1024),
        vae_downsample=AUTOENCODER_SIZES.downsample,
        vision=VISION_SIZES,
    )


def _configs(config: BagelConfig) -> dict[str, dict[str, object]]:
    whole = {
        "architectures": ["BagelForConditionalGeneration"],
        "connector_act": "gelu_pytorch_tanh",
        "interpolate_pos": False,
        "latent_patch_size": config.latent_patch_size,
        "max_latent_size": config.max_latent_size,
        "model_type": "bagel",
        "vit_max_num_patch_per_side": VISION_SIZES.max_patches_per_side,
    }
    generation = {"bos_token_id": config.bos_token_id, "do_sample": False, "eos_token_id": config.eos_token_id}
    return {LANGUAGE: _language(config), VISION: _vision(), WHOLE: whole, "generation_config.json": generation}


def _language(config: BagelConfig) -> dict[str, object]:
    """As in the real folder, the bos is not BAGEL's."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": config.eos_token_id,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": 32768,
        "max_window_layers": config.num_layers,
        "model_type": "qwen2",
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": config.vocab_size,
    }


def _vision() -> dict[str, object]:
    """As in the real folder, one layer more than there is."""
    return {
        "hidden_size": VISION_SIZES.hidden_size,
        "image_size": VISION_SIZES.image_size,
        "intermediate_size": VISION_SIZES.intermediate_size,
        "model_type": "siglip_vision_model",
        "num_attention_heads": VISION_SIZES.num_heads,
        "num_hidden_layers": VISION_SIZES.num_layers + 1,
        "patch_size": VISION_SIZES.patch_size,
    }


# Weights


def _draw(name: str, shape: Shape, config: BagelConfig, seed: int) -> Tensor:
    """fp32 N(0, 1/fan_in); norms near 1 and biases near 0, but not there; the public position tables."""
    if name.endswith("pos_embed"):
        return sincos_table(math.isqrt(shape[0]), shape[1])
    draws = torch.randn(shape, generator=generator(seed, 0, 0, 0, f"tiny-bagel/{name}"))
    if len(shape) == 1:
        return 0.1 * draws + (0.0 if name.endswith("bias") else 1.0)
    if "embed_tokens" in name:
        return EMBEDDING_SCALE * draws
    value = draws / math.sqrt(shape[1])
    if "lm_head" in name:
        value[config.eos_token_id] *= END_SCALE
        # What a trained model never writes is unlikely: the other control tokens, and ids that no token has.
        value[[config.bos_token_id, config.vision_start_id, config.vision_end_id]] = 0.0
        value[NUM_TOKENS:] = 0.0
    return value


def _draw_autoencoder(name: str, shape: Shape, seed: int) -> Tensor:
    """fp32 N(0, 1/fan_in) with latents of about unit variance, hardly any posterior noise, and muted pictures."""
    draws = torch.randn(shape, generator=generator(seed, 0, 0, 0, f"tiny-bagel-autoencoder/{name}"))
    if len(shape) == 1:
        value = 0.1 * draws + (0.0 if name.endswith("bias") else 1.0)
    else:
        value = draws / math.sqrt(math.prod(shape[1:]))
    if name.startswith("encoder.conv_out."):
        means = AUTOENCODER_SIZES.latent_channels
        value[:means] /= AUTOENCODER_SIZES.scale
        value[means:] *= 0.1
        value[means:] -= 6.0 if name.endswith("bias") else 0.0
    elif name.startswith("decoder.conv_out."):
        value *= 0.5
    return value


# Samples


README = """# tiny-bagel

A random BAGEL (seed {seed}) of a few MB in the public layout, for trying programs and recipes: it thinks nonsense and
draws noise. `samples/` has prompts and demonstrations of its size.
"""
SMALL_AUTOENCODER = """
Its autoencoder is a small one. unigrpo takes the sizes from the file; a program that has those of the real autoencoder
built in, as the original BAGEL code, cannot load it: `unigrpo make-tiny-bagel --full-autoencoder` makes one for it.
"""
PROMPTS: Mapping[str, str] = {
    "a photo of a red circle": "single_object",
    "a photo of a blue square": "single_object",
    "a photo of a green circle and a yellow square": "two_object",
    "a photo of three red circles": "counting",
    "a photo of a blue circle left of a red square": "position",
    "a photo of a yellow circle above a green square": "position",
}
# One demonstration per prompt: shapes as (kind, colour, centre x, centre y) of a 64 x 64 picture.
PICTURES = (
    (("circle", "red", 32, 32),),
    (("square", "blue", 32, 32),),
    (("circle", "green", 18, 32), ("square", "yellow", 46, 32)),
    (("circle", "red", 14, 32), ("circle", "red", 32, 32), ("circle", "red", 50, 32)),
    (("circle", "blue", 18, 32), ("square", "red", 46, 32)),
    (("circle", "yellow", 32, 18), ("square", "green", 32, 46)),
)
SIDE, RADIUS = 64, 8


def _write_samples(folder: Path) -> None:
    """prompts.txt, prompts.jsonl, and demonstrations.jsonl with its pictures."""
    folder.mkdir()
    _write(folder / "prompts.txt", "".join(f"{prompt}\n" for prompt in PROMPTS))
    _write_lines(folder / "prompts.jsonl", [{"prompt": prompt, "tag": tag} for prompt, tag in PROMPTS.items()])
    lines = []
    for number, (prompt, shapes) in enumerate(zip(PROMPTS, PICTURES, strict=True)):
        name = f"{number}.png"
        with replacing(folder / name) as file:
            _picture(shapes).save(file, format="PNG")
        plan = ", ".join(f"a {colour} {kind} at ({x}, {y})" for kind, colour, x, y in shapes)
        lines.append({"prompt": prompt, "thinking": f"<think> White background, {plan}. </think>", "image": name})
    _write_lines(folder / "demonstrations.jsonl", lines)


def _picture(shapes: tuple[tuple[str, str, int, int], ...]) -> Picture.Image:
    picture = Picture.new("RGB", (SIDE, SIDE), "white")
    pen = ImageDraw.Draw(picture)
    for kind, colour, x, y in shapes:
        paint = pen.ellipse if kind == "circle" else pen.rectangle
        paint((x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS), fill=colour)
    return picture


def _write_lines(path: Path, lines: list[dict[str, str]]) -> None:
    _write(path, "".join(json.dumps(line) + "\n" for line in lines))


def _write(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode("utf-8"))
