"""The weights of mmdet's Mask2Former under the names of transformers': every key mapped, every parameter filled.

What differs beyond names: mmdet keeps q, k and v of an attention as one tensor, and merges patches with an unfold,
whose channels run slower than its pixels. Same in both: windows and the index of their relative positions, levels from
low to high resolution, the order of sampling offsets (head, level, point, xy), the classes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unigrpo.ranges import ConfigError, shown

LEVELS, POINTS = 3, 4  # of the deformable attention: fixed in transformers, and in the official config
SWIN = "model.pixel_level_module.encoder"
PIXELS = "model.pixel_level_module.decoder"
QUERIES = "model.transformer_module"
UNUSED = f"{SWIN}.swin.layernorm."
"""A norm that transformers' Swin has but does not apply where it is a backbone: the one thing that is left as it is."""


def _as_is(tensor: Tensor) -> list[Tensor]:
    return [tensor]


def _thirds(tensor: Tensor) -> list[Tensor]:
    """The rows of q, of k and of v."""
    return list(tensor.chunk(3))


def _merged(tensor: Tensor) -> list[Tensor]:
    """Patch merging, [..., 4 C]: from channel * 4 + row * 2 + column to (column * 2 + row) * C + channel."""
    split = tensor.unflatten(-1, (-1, 2, 2))  # channel, row, column
    return [split.movedim((-1, -2), (-3, -2)).flatten(-3).contiguous()]


@dataclass(frozen=True)
class Rule:
    """mmdet's keys of one kind, the keys of transformers that they become (\\1: as in a pattern), and how."""

    pattern: str
    targets: tuple[str, ...]
    change: Callable[[Tensor], list[Tensor]] = _as_is


def _swin_rules() -> list[Rule]:
    block = r"backbone\.stages\.(\d+)\.blocks\.(\d+)\."
    to = rf"{SWIN}.swin.encoder.layers.\1.blocks.\2."
    down = r"backbone\.stages\.(\d+)\.downsample\."
    return [
        Rule(r"backbone\.patch_embed\.projection\.(\w+)", (rf"{SWIN}.swin.embeddings.patch_embeddings.projection.\1",)),
        Rule(r"backbone\.patch_embed\.norm\.(\w+)", (rf"{SWIN}.swin.embeddings.norm.\1",)),
        Rule(block + r"norm1\.(\w+)", (to + r"layernorm_before.\3",)),
        Rule(block + r"norm2\.(\w+)", (to + r"layernorm_after.\3",)),
        Rule(
            block + r"attn\.w_msa\.relative_position_bias_table",
            (to + "attention.relative_position_bias.relative_position_bias_table",),
        ),
        Rule(block + r"attn\.w_msa\.qkv\.(\w+)", tuple(to + rf"attention.{p}_proj.\3" for p in "qkv"), _thirds),
        Rule(block + r"attn\.w_msa\.proj\.(\w+)", (to + r"attention.o_proj.\3",)),
        Rule(block + r"ffn\.layers\.0\.0\.(\w+)", (to + r"mlp.fc1.\3",)),
        Rule(block + r"ffn\.layers\.1\.(\w+)", (to + r"mlp.fc2.\3",)),
        Rule(down + r"(reduction|norm)\.(\w+)", (rf"{SWIN}.swin.encoder.layers.\1.downsample.\2.\3",), _merged),
        *(Rule(rf"backbone\.norm{i}\.(\w+)", (rf"{SWIN}.hidden_states_norms.stage{i + 1}.\1",)) for i in range(4)),
    ]


def _pixel_rules() -> list[Rule]:
    head, layer = r"panoptic_head\.pixel_decoder\.", r"panoptic_head\.pixel_decoder\.encoder\.layers\.(\d+)\."
    to = rf"{PIXELS}.encoder.layers.\1."
    return [
        Rule(head + r"input_convs\.(\d)\.conv\.(\w+)", (rf"{PIXELS}.input_projections.\1.0.\2",)),
        Rule(head + r"input_convs\.(\d)\.gn\.(\w+)", (rf"{PIXELS}.input_projections.\1.1.\2",)),
        Rule(
            layer + r"attentions\.0\.(sampling_offsets|attention_weights|value_proj|output_proj)\.(\w+)",
            (to + r"self_attn.\2.\3",),
        ),
        Rule(layer + r"ffns\.0\.layers\.0\.0\.(\w+)", (to + r"fc1.\2",)),
        Rule(layer + r"ffns\.0\.layers\.1\.(\w+)", (to + r"fc2.\2",)),
        Rule(layer + r"norms\.0\.(\w+)", (to + r"self_attn_layer_norm.\2",)),
        Rule(layer + r"norms\.1\.(\w+)", (to + r"final_layer_norm.\2",)),
        Rule(head + r"level_encoding\.weight", (f"{PIXELS}.level_embed",)),
        Rule(head + r"lateral_convs\.0\.conv\.weight", (f"{PIXELS}.adapter_1.0.weight",)),
        Rule(head + r"lateral_convs\.0\.gn\.(\w+)", (rf"{PIXELS}.adapter_1.1.\1",)),
        Rule(head + r"output_convs\.0\.conv\.weight", (f"{PIXELS}.layer_1.0.weight",)),
        Rule(head + r"output_convs\.0\.gn\.(\w+)", (rf"{PIXELS}.layer_1.1.\1",)),
        Rule(head + r"mask_feature\.(\w+)", (rf"{PIXELS}.mask_projection.\1",)),
    ]


def _query_rules() -> list[Rule]:
    head, layer = r"panoptic_head\.", r"panoptic_head\.transformer_decoder\.layers\.(\d+)\."
    to = rf"{QUERIES}.decoder.layers.\1."
    norms = ("cross_attn_layer_norm", "self_attn_layer_norm", "final_layer_norm")
    embedder = f"{QUERIES}.decoder.mask_predictor.mask_embedder"
    return [
        Rule(layer + r"attentions\.0\.attn\.((?:in_proj_|out_proj\.)\w+)", (to + r"cross_attn.\2",)),
        Rule(
            layer + r"attentions\.1\.attn\.in_proj_(\w+)", tuple(to + rf"self_attn.{p}_proj.\2" for p in "qkv"), _thirds
        ),
        Rule(layer + r"attentions\.1\.attn\.out_proj\.(\w+)", (to + r"self_attn.out_proj.\2",)),
        Rule(layer + r"ffns\.0\.layers\.0\.0\.(\w+)", (to + r"fc1.\2",)),
        Rule(layer + r"ffns\.0\.layers\.1\.(\w+)", (to + r"fc2.\2",)),
        *(Rule(layer + rf"norms\.{i}\.(\w+)", (to + rf"{name}.\2",)) for i, name in enumerate(norms)),
        Rule(head + r"transformer_decoder\.post_norm\.(\w+)", (rf"{QUERIES}.decoder.layernorm.\1",)),
        Rule(head + r"query_embed\.weight", (f"{QUERIES}.queries_embedder.weight",)),
        Rule(head + r"query_feat\.weight", (f"{QUERIES}.queries_features.weight",)),
        Rule(head + r"level_embed\.weight", (f"{QUERIES}.level_embed.weight",)),
        Rule(head + r"cls_embed\.(\w+)", (r"class_predictor.\1",)),
        *(Rule(head + rf"mask_embed\.{2 * i}\.(\w+)", (rf"{embedder}.{i}.0.\1",)) for i in range(3)),
    ]


RULES = [*_swin_rules(), *_pixel_rules(), *_query_rules()]
INDEX = re.compile(r"backbone\.stages\.\d+\.blocks\.\d+\.attn\.w_msa\.relative_position_index")
"""Buffers that transformers computes itself; they are compared, and not needed."""


def converted(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors of mmdet's Mask2Former under transformers' names; ConfigError for a key that is not known."""
    found: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if INDEX.fullmatch(key):
            _check_index(key, tensor, where)
            continue
        rule, match = _rule(key, where)
        for target, part in zip(rule.targets, rule.change(tensor), strict=True):
            found[match.expand(target)] = part
    return found


def _rule(key: str, where: str) -> tuple[Rule, re.Match[str]]:
    for rule in RULES:
        if match := re.fullmatch(rule.pattern, key):
            return rule, match
    raise ConfigError(
        f"{where} has the key {shown(key)}, which mmdet's Mask2Former with a Swin backbone does not have: give the "
        "weights of mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco as mmdet 2.x saves them"
    )


def _check_index(key: str, index: Tensor, where: str) -> None:
    """ConfigError where a window's table is not read as transformers reads it."""
    side = round(len(index) ** 0.5)
    rows, columns = torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)
    expected = (rows[:, None] - rows + side - 1) * (2 * side - 1) + columns[:, None] - columns + side - 1
    if tuple(index.shape) != tuple(expected.shape) or bool((index.long() != expected).any()):
        raise ConfigError(
            f"{where}: {key} orders the relative positions of a window in another way than mmdet 2.x, so the biases "
            "would be mixed up: give the official weights"
        )


def sizes(state: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """The arguments of transformers' Mask2FormerConfig (``backbone_config``: of SwinConfig) that fit the tensors."""
    try:
        return _sizes(state)
    except (KeyError, IndexError) as error:
        raise ConfigError(
            f"{where} has no key {error}, so it is not mmdet's Mask2Former with a Swin backbone: give the weights of "
            "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco"
        ) from error


def _sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    head, first = "panoptic_head", "backbone.stages.0.blocks.0"
    depths = [_count(state, rf"backbone\.stages\.{stage}\.blocks\.(\d+)\.norm1\.weight") for stage in range(4)]
    tables = [state[f"backbone.stages.{s}.blocks.0.attn.w_msa.relative_position_bias_table"].shape for s in range(4)]
    width = state["backbone.patch_embed.projection.weight"].shape[0]
    features = state[f"{head}.query_feat.weight"].shape[1]
    deformable = f"{head}.pixel_decoder.encoder.layers.0"
    return {
        "backbone_config": {
            "embed_dim": width,
            "patch_size": state["backbone.patch_embed.projection.weight"].shape[-1],
            "depths": depths,
            "num_heads": [heads for _, heads in tables],
            "window_size": (round(tables[0][0] ** 0.5) + 1) // 2,
            "mlp_ratio": state[f"{first}.ffn.layers.0.0.weight"].shape[0] / width,
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
        "feature_size": features,
        "hidden_dim": features,
        "mask_feature_size": state[f"{head}.pixel_decoder.mask_feature.weight"].shape[0],
        "num_attention_heads": state[f"{deformable}.attentions.0.sampling_offsets.bias"].shape[0]
        // (LEVELS * POINTS * 2),
        "encoder_layers": _count(state, rf"{head}\.pixel_decoder\.encoder\.layers\.(\d+)\.norms\.0\.weight"),
        "encoder_feedforward_dim": state[f"{deformable}.ffns.0.layers.0.0.weight"].shape[0],
        # transformers counts the prediction before the first layer, too
        "decoder_layers": 1 + _count(state, rf"{head}\.transformer_decoder\.layers\.(\d+)\.norms\.0\.weight"),
        "dim_feedforward": state[f"{head}.transformer_decoder.layers.0.ffns.0.layers.0.0.weight"].shape[0],
        "num_queries": state[f"{head}.query_feat.weight"].shape[0],
        "num_labels": state[f"{head}.cls_embed.weight"].shape[0] - 1,
    }


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many layers there are: one more than the highest number."""
    return 1 + max((int(match[1]) for key in state if (match := re.fullmatch(pattern, key))), default=-1)


def fill(network: torch.nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy converted tensors into a network; ConfigError unless each parameter gets one of its shape, and none is over.

    Parameters under :data:`UNUSED` stay as they are.
    """
    wanted = {name: value for name, value in network.state_dict().items() if not name.startswith(UNUSED)}
    _refuse(where, "lacks what the network needs", sorted(wanted.keys() - tensors.keys()))
    _refuse(where, "has what the network does not take", sorted(tensors.keys() - wanted.keys()))
    odd = [f"{name} {list(tensors[name].shape)}" for name in wanted if tensors[name].shape != wanted[name].shape]
    _refuse(where, "has other sizes than the rest of it asks for", odd)
    network.load_state_dict(tensors, strict=False)


def _refuse(where: str, fault: str, names: Sequence[str]) -> None:
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ConfigError(
            f"{where} {fault} ({', '.join(names[:3])}{more}): give the official weights, and transformers 5.23, whose "
            "names these are"
        )
