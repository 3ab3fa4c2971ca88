"""The weights of an open_clip CLIP (ViT-H-14 and alike) under the names that transformers' CLIPModel has for them.

In open_clip q, k and v lie in one matrix (``attn.in_proj_*``), and both projections are applied from the right, so they
are the transposes of the linear layers of transformers. Which parts make a block is the same in both towers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")
IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
OUTSIDE = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
UNUSED = {"attn_mask"}  # a constant that some files hold


def to_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename, split and transpose; KeyError names a tensor that such a CLIP does not have."""
    plain = {key.removeprefix("module."): value for key, value in tensors.items()}
    return {new: value for key, tensor in plain.items() if key not in UNUSED for new, value in _renamed(key, tensor)}


def _renamed(key: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if key in OUTSIDE:
        yield OUTSIDE[key], tensor
    elif key in TRANSPOSED:
        yield TRANSPOSED[key], tensor.T.contiguous()
    elif (found := BLOCK.fullmatch(key)) is not None:
        tower = "vision_model" if found[1] else "text_model"
        yield from _in_block(f"{tower}.encoder.layers.{found[2]}", found[3], tensor)
    else:
        raise KeyError(f"{key} is no tensor of an open_clip CLIP")


def _in_block(layer: str, part: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if part in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = part.rpartition("_")[2]
        for letter, piece in zip("qkv", tensor.chunk(3), strict=True):
            yield f"{layer}.self_attn.{letter}_proj.{kind}", piece.contiguous()
        return
    block, _, kind = part.rpartition(".")
    yield f"{layer}.{IN_BLOCK[block]}.{kind}", tensor
