"""The configs of a public BAGEL folder, with all their oddities, as one :class:`BagelConfig`.

``llm_config.json`` is a Qwen2 config and ``vit_config.json`` a SigLIP one; ``config.json`` may be absent. The tensors
have the last word: where a config says otherwise, the two are named. What no tensor shows and no file says has the
value of BAGEL-7B-MoT.
Source: docs/bagel-architecture.md#tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

from unigrpo.files import read_json_object
from unigrpo.models.bagel import limits
from unigrpo.models.bagel.config import BagelConfig, VisionConfig
from unigrpo.models.bagel_files.flux import FluxConfig
from unigrpo.models.bagel_files.tensor_files import Shape
from unigrpo.models.bagel_files.tokenizer import ADVICE, SpecialTokens, Tokenizer, require_ids, special_ids

LANGUAGE, VISION, WHOLE = "llm_config.json", "vit_config.json", "config.json"
VISION_PREFIXES = ("vit_model.", "connector.", "vit_pos_embed.")

# The words of docs/bagel-architecture.md#drawing, with the space before the line end.
DRAWING_PROMPT = (
    "You should first think about the planning process in the mind and then generate the image. \n"
    "The planning process is enclosed within <think> </think> tags, "
    "i.e. <think> planning process here </think> image here"
)
ANSWER_PROMPT = (
    "You should first think about the reasoning process in the mind and then provide the user with the answer. \n"
    "The reasoning process is enclosed within <think> </think> tags, "
    "i.e. <think> reasoning process here </think> answer here"
)
USUAL_SIDE = 1024  # pixels
DEFAULTS: dict[str, Any] = {  # docs/bagel-architecture.md#drawing, thinking
    "system_prompt": DRAWING_PROMPT,
    "answer_prompt": ANSWER_PROMPT,
    "timestep_shift": 3.0,
    "num_points": 50,
    "guidance": 4.0,
    "guidance_interval": (0.4, 1.0),
    "temperature": 0.0,
    "max_think_tokens": 1024,
}

_LANGUAGE_7B: dict[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "hidden_act": "silu",
    "rope_scaling": None,
    "use_sliding_window": False,
}
_VISION_7B: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 980,
    "patch_size": 14,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu_pytorch_tanh",
}
_WHOLE_7B: dict[str, Any] = {
    "latent_patch_size": 2,
    "max_latent_size": 64,
    "vit_max_num_patch_per_side": 70,
    "connector_act": "gelu_pytorch_tanh",
    "interpolate_pos": False,
}


@dataclass(frozen=True)
class _File:
    """One config file: what it says, over the 7B values for what it leaves out; and the tensors it must agree with."""

    path: Path
    said: Mapping[str, Any]
    usual: Mapping[str, Any]
    shapes: Mapping[str, Shape]

    @classmethod
    def read(cls, path: Path, usual: Mapping[str, Any], shapes: Mapping[str, Shape], optional: bool = False) -> _File:
        """ValueError for a file that is missing (unless it may be) or that is not a JSON object."""
        if not path.is_file():
            if not optional:
                raise ValueError(f"{path.parent} is not a public BAGEL folder: it has no {path.name}")
            return cls(path, {}, usual, shapes)
        return cls(path, read_json_object(path, ADVICE), usual, shapes)

    def says(self, key: str) -> str:
        """How a message begins: the file, and what it says of a key."""
        if key in self.said:
            return f"{self.path} says {key} {limits.shown(self.said[key])}"
        return f"{self.path} does not say {key} (so it is {self.usual[key]!r})"

    def value(self, key: str) -> Any:
        """What the file says, else the 7B value."""
        return self.said.get(key, self.usual[key])

    def number(self, key: str) -> Any:
        """A number of the type and within the range that ``limits`` has for it."""
        value, limit = self.value(key), limits.PUBLIC[key]
        if not limit.allows(value):
            raise ValueError(f"{self.says(key)}, which should be {limit}")
        return value if limit.whole else float(value)

    def only(self, key: str) -> None:
        """Refuse all but the 7B value: this model has no other way to compute."""
        if self.value(key) != self.usual[key]:
            raise ValueError(f"{self.says(key)}; this version only runs BAGEL with {key} {self.usual[key]!r}")

    def agreed(self, key: str, tensor: str, found: int, *, left_out: int = 0) -> int:
        """The size ``found`` in a tensor, which the file must say too (or that much more, where some are not used)."""
        if self.number(key) - left_out != found:
            less = f", the last {left_out} of which is not used" if left_out else ""
            raise ValueError(
                f"{self.says(key)}{less}, but the weights have {found} ({tensor} has shape {self.shape(tensor)}): "
                "take both from one model"
            )
        return found

    def shape(self, tensor: str) -> Shape:
        """Shape of a tensor that every BAGEL has."""
        if not self.shapes.get(tensor) or 0 in self.shapes[tensor]:
            where = self.path.parent
            raise ValueError(f"the weights of {where} are not those of a BAGEL: {tensor} is missing or empty")
        return self.shapes[tensor]


def read_public_config(
    folder: Path, shapes: Mapping[str, Shape], tokenizer: Tokenizer, autoencoder: FluxConfig
) -> BagelConfig:
    """Read llm_config.json, vit_config.json and config.json of a folder with weights of these ``shapes``.

    Not taken from the files: the special tokens (the tokenizer's), qk_norm (always) and tied embeddings (never), and
    max_latent_size (the rows of latent_pos_embed are its square). One vision layer less is used than vit_config.json
    says. Weights without a vision tower give a model that cannot see. ValueError names what contradicts what.
    """
    whole = _File.read(folder / WHOLE, _WHOLE_7B, shapes, optional=True)
    language = _language(folder / LANGUAGE, shapes)
    sees = any(name.startswith(VISION_PREFIXES) for name in shapes)
    vision = _vision(folder / VISION, whole) if sees else None
    whole.only("interpolate_pos")
    side = _side(whole)
    patch = _latent_patch(whole, autoencoder)
    whole.number("max_latent_size")  # not believed, but what is no number at all is a sign of damage
    stride = patch * autoencoder.downsample
    pixels = min(USUAL_SIDE // stride, side) * stride
    special = _special(tokenizer, language["vocab_size"], folder)
    try:
        return BagelConfig(
            **language,
            latent_channels=autoencoder.latent_channels,
            max_latent_size=side,
            bos_token_id=special.bos,
            eos_token_id=special.eos,
            vision_start_id=special.vision_start,
            vision_end_id=special.vision_end,
            image_size=(pixels, pixels),
            latent_patch_size=patch,
            vae_downsample=autoencoder.downsample,
            vision=vision,
            **DEFAULTS,
        )
    except ValueError as error:
        raise ValueError(f"{folder / LANGUAGE} cannot work: {error}") from error


def _language(path: Path, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """The sizes of the decoder, as :class:`BagelConfig` names them."""
    file = _with_flat_rope(_File.read(path, _LANGUAGE_7B, shapes))
    for key in ("hidden_act", "rope_scaling", "use_sliding_window"):
        file.only(key)
    names = {
        "embed": "language_model.model.embed_tokens.weight",
        "gate": "language_model.model.layers.0.mlp.gate_proj.weight",
        "norm": "language_model.model.layers.0.self_attn.q_norm.weight",
        "q": "language_model.model.layers.0.self_attn.q_proj.weight",
        "k": "language_model.model.layers.0.self_attn.k_proj.weight",
    }
    rows = {part: file.shape(name)[0] for part, name in names.items()}
    width, head = file.shape(names["embed"])[-1], rows["norm"]
    return {
        "vocab_size": file.agreed("vocab_size", names["embed"], rows["embed"]),
        "hidden_size": file.agreed("hidden_size", names["embed"], width),
        "intermediate_size": file.agreed("intermediate_size", names["gate"], rows["gate"]),
        "num_layers": file.agreed("num_hidden_layers", names["q"], _layers(shapes, "language_model.model.layers.")),
        "num_heads": file.agreed("num_attention_heads", names["q"], rows["q"] // head),
        "num_kv_heads": file.agreed("num_key_value_heads", names["k"], rows["k"] // head),
        "rms_norm_eps": file.number("rms_norm_eps"),
        "rope_theta": file.number("rope_theta"),
    }


def _with_flat_rope(file: _File) -> _File:
    """Newer transformers write rope_theta inside ``rope_parameters``; a rope_type there is a kind of scaling."""
    if (inner := file.said.get("rope_parameters")) is None:
        return file
    if not isinstance(inner, dict):
        raise ValueError(f"{file.says('rope_parameters')}, which should be an object with rope_theta")
    kind = inner.get("rope_type", "default")
    flat = {key: inner[key] for key in ("rope_theta",) if key in inner}
    return replace(file, said={**file.said, **flat, "rope_scaling": None if kind == "default" else kind})


def _layers(shapes: Mapping[str, Shape], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)})


def _vision(path: Path, whole: _File) -> VisionConfig:
    """The sizes of the vision tower; the table that the language model reads pictures with has the same side."""
    if not path.is_file():
        raise ValueError(f"{path.parent} has the tensors of a vision tower (vit_model.*), but no {path.name}: add it")
    file = _File.read(path, _VISION_7B, whole.shapes)
    file.only("hidden_act")
    whole.only("connector_act")
    start = "vit_model.vision_model."
    patches, table = f"{start}embeddings.patch_embedding.weight", f"{start}embeddings.position_embedding.weight"
    first, places = f"{start}encoder.layers.0.mlp.fc1.weight", "vit_pos_embed.pos_embed"
    patch = file.agreed("patch_size", patches, math.isqrt(file.shape(patches)[-1] // 3))
    side = math.isqrt(file.shape(table)[0])
    if file.number("image_size") // patch != side:
        file.agreed("image_size", table, side * patch)
    heads, width = file.number("num_attention_heads"), file.agreed("hidden_size", patches, file.shape(patches)[0])
    if width % heads:
        raise ValueError(f"{path} says num_attention_heads {heads}, but hidden_size {width} is not a multiple of that")
    return VisionConfig(
        hidden_size=width,
        intermediate_size=file.agreed("intermediate_size", first, file.shape(first)[0]),
        num_layers=file.agreed(
            "num_hidden_layers", first, _layers(whole.shapes, f"{start}encoder.layers."), left_out=1
        ),
        num_heads=heads,
        image_size=file.number("image_size"),
        patch_size=patch,
        max_patches_per_side=whole.agreed("vit_max_num_patch_per_side", places, math.isqrt(whole.shape(places)[0])),
        layer_norm_eps=file.number("layer_norm_eps"),
    )


def _side(whole: _File) -> int:
    """Rows of the largest latent grid; config.json's max_latent_size is known to be stale, so the table decides."""
    rows = whole.shape("latent_pos_embed.pos_embed")[0]
    if math.isqrt(rows) ** 2 != rows:
        raise ValueError(
            f"the weights of {whole.path.parent} are damaged: latent_pos_embed.pos_embed has {rows} rows, "
            "which is not the square of a side"
        )
    return math.isqrt(rows)


def _latent_patch(whole: _File, autoencoder: FluxConfig) -> int:
    patch, channels = whole.number("latent_patch_size"), autoencoder.latent_channels
    if (numbers := whole.shape("vae2llm.weight")[-1]) != patch**2 * channels:
        raise ValueError(
            f"{whole.says('latent_patch_size')} and ae.safetensors has {channels} latent channels, which makes "
            f"{patch**2 * channels} numbers per token, but vae2llm.weight in the weights takes {numbers}: "
            "take both from one model"
        )
    return patch


def _special(tokenizer: Tokenizer, vocab_size: int, folder: Path) -> SpecialTokens:
    special = special_ids(tokenizer)
    if (largest := max(astuple(special))) >= vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer gives a special token the id {largest}, but the weights have {vocab_size} "
            "tokens: take both from one model"
        )
    require_ids(tokenizer, vocab_size, folder)
    return special
