"""The mixture-of-transformers layer: two experts per layer, one joint attention.

Source: docs/bagel-architecture.md#the-layer.

Routing is static: a stream is a pair (und [B, U, H], gen [B, G, H]); each half goes through its own weights and both
meet in one attention. Parameter names are those of the public checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unigrpo.models.bagel.blocks import Block, Compact
from unigrpo.models.bagel.config import BagelConfig

Stream = tuple[Tensor, Tensor]
KeyValue = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Place:
    """Where all layers read a block: the block, its rope tables and its additive mask."""

    block: Block
    rope: tuple[Tensor, Tensor]
    mask: Tensor


class RMSNorm(nn.Module):
    """x * rsqrt(mean(x^2) + eps) in fp32, cast back, times weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (normed.to(x.dtype) * self.weight).to(x.dtype)  # weights may be kept wider than the computation


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x), without biases."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] -> [..., H]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def rope_tables(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin [B, L, 1, head_dim] of the angles p * theta^(-2j/d), duplicated [f, f] (fp32)."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = positions.float()[..., None] * theta**-exponents
    angles = torch.cat([angles, angles], dim=-1)[:, :, None, :]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, llama style: x cos + [-x2, x1] sin; x is [B, L, heads, d]."""
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


class MoTAttention(nn.Module):
    """Joint attention of both experts with per-head q/k norms before rope; grouped key/value heads."""

    def __init__(self, config: BagelConfig) -> None:
        super().__init__()
        hidden, d = config.hidden_size, config.head_dim
        self.heads, self.kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, d
        for twin in ("", "_moe_gen"):
            self.add_module(f"q_proj{twin}", nn.Linear(hidden, self.heads * d))
            self.add_module(f"k_proj{twin}", nn.Linear(hidden, self.kv_heads * d))
            self.add_module(f"v_proj{twin}", nn.Linear(hidden, self.kv_heads * d))
            self.add_module(f"o_proj{twin}", nn.Linear(self.heads * d, hidden, bias=False))
            self.add_module(f"q_norm{twin}", RMSNorm(d, config.rms_norm_eps))
            self.add_module(f"k_norm{twin}", RMSNorm(d, config.rms_norm_eps))

    def _project(self, x: Tensor, twin: str) -> tuple[Tensor, Tensor, Tensor]:
        b, length = x.shape[:2]
        q = self.get_submodule(f"q_proj{twin}")(x).view(b, length, self.heads, self.head_dim)
        k = self.get_submodule(f"k_proj{twin}")(x).view(b, length, self.kv_heads, self.head_dim)
        v = self.get_submodule(f"v_proj{twin}")(x).view(b, length, self.kv_heads, self.head_dim)
        return self.get_submodule(f"q_norm{twin}")(q), self.get_submodule(f"k_norm{twin}")(k), v

    def project(
        self, stream: Stream, cos: Tensor, sin: Tensor, compact: Compact | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q [B, heads, L, d], k and v [B, kv heads, L, d] of a stream, und tokens (padded if compact) first."""
        halves = [self._project(x, twin) for x, twin in zip(stream, ("", "_moe_gen"), strict=True) if x.shape[1]]
        if compact is not None:
            q, k, v = halves[0]
            halves[0] = compact.padded(q), compact.padded(k), compact.padded(v)
        q, k, v = halves[0]
        for other in halves[1:]:
            q, k, v = (torch.cat(pair, dim=1) for pair in zip((q, k, v), other, strict=True))
        return rotate(q, cos, sin).transpose(1, 2), rotate(k, cos, sin).transpose(1, 2), v.transpose(1, 2)

    def attend(
        self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, num_und: int, compact: Compact | None = None
    ) -> Stream:
        """Attention over the given keys (mask: additive [B, 1, Lq, Lk]) and the output projections of both experts.

        Text in fp32 attends in fp64: a decoded token and the same token in a packed replay sum over keys of
        different padding, and those roundings alone made rare tokens differ by more than the 1e-5 that a first update
        may (with it: not at all; LOG.md). Images, whose blocks have one shape, need no such care.
        """
        wide = num_und == q.shape[2] and values.dtype == torch.float32 and q.device.type in ("cpu", "cuda")
        if wide:
            q, keys, values, mask = (u.double() for u in (q, keys, values, mask))
        shared = self.heads // self.kv_heads
        if shared > 1 and q.device.type != "cpu":  # fused kernels take a mask, or grouped heads, but not both
            keys, values = keys.repeat_interleave(shared, 1), values.repeat_interleave(shared, 1)
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=keys.shape[1] != self.heads)
        out = out.transpose(1, 2).flatten(2).to(torch.float32 if wide else out.dtype)
        und, gen = out.split([num_und, out.shape[1] - num_und], dim=1)
        if compact is not None:
            und = compact.tokens(und)
        return (
            self.get_submodule("o_proj")(und) if und.shape[1] else und,
            self.get_submodule("o_proj_moe_gen")(gen) if gen.shape[1] else gen,
        )


class MoTLayer(nn.Module):
    """One layer with twins of every weight: names without suffix understand, names with ``_moe_gen`` generate."""

    def __init__(self, config: BagelConfig) -> None:
        super().__init__()
        self.self_attn = MoTAttention(config)
        for twin in ("", "_moe_gen"):
            self.add_module(f"mlp{twin}", SwiGLU(config.hidden_size, config.intermediate_size))
            self.add_module(f"input_layernorm{twin}", RMSNorm(config.hidden_size, config.rms_norm_eps))
            self.add_module(f"post_attention_layernorm{twin}", RMSNorm(config.hidden_size, config.rms_norm_eps))

    def by_expert(self, name: str, stream: Stream) -> Stream:
        """Apply the module ``name`` to the und half and its twin to the gen half; empty halves pass."""
        und, gen = stream
        return (
            self.get_submodule(name)(und) if und.shape[1] else und,
            self.get_submodule(f"{name}_moe_gen")(gen) if gen.shape[1] else gen,
        )

    def forward(
        self,
        streams: Sequence[Stream],
        places: Sequence[Place],
        past: KeyValue | None = None,
        append: Callable[[Tensor, Tensor], KeyValue] | None = None,
        *,
        again: bool = False,
    ) -> list[Stream]:
        """All blocks through this layer, each after the ones before it; the layer is entered once, however many.

        ``again``: compute each block again in the backward pass, to keep only what goes in between. Block by block,
        because the losses of texts and of images go backward apart (docs/math.md#joint): each then computes only its
        own blocks again; and inside of this door, so that a sharded layer is not entered again for it.
        """
        out = []
        for stream, place in zip(streams, places, strict=True):
            if not place.block.rope.shape[1]:  # a replay in which nothing comes between prompts and images
                past = continued(past, place.block)
            elif again:
                stream, past = checkpoint(self.read, stream, place, past, use_reentrant=False, preserve_rng_state=False)
            else:
                stream, past = self.read(stream, place, past, append)
            out.append(stream)
        return out

    def read(
        self,
        stream: Stream,
        place: Place,
        past: KeyValue | None = None,
        append: Callable[[Tensor, Tensor], KeyValue] | None = None,
    ) -> tuple[Stream, KeyValue]:
        """One block through this layer: its stream, and the keys and values of all that was read so far and of itself.

        past: what the block attends to besides itself (the cache, earlier blocks), in the rows that it continues.
        ``append`` writes the block's keys and values into the cache and returns all of them.
        """
        block, past = place.block, continued(past, place.block)
        q, k, v = self.self_attn.project(self.by_expert("input_layernorm", stream), *place.rope, block.compact)
        if append is not None:
            seen = append(k, v)
        else:
            seen = (k, v) if past is None else (torch.cat([past[0], k], 2), torch.cat([past[1], v], 2))
        attended = self.self_attn.attend(q, *seen, place.mask, block.num_und, block.compact)
        return self.mix(add(stream, attended)), seen

    def mix(self, stream: Stream) -> Stream:
        """h + mlp(norm(h)) in each expert."""
        return add(stream, self.by_expert("mlp", self.by_expert("post_attention_layernorm", stream)))


def continued(past: KeyValue | None, block: Block) -> KeyValue | None:
    """Keys and values [rows of the block before, ...] in the rows that a block continues."""
    if block.rows is None or past is None:
        return past
    return past[0].index_select(0, block.rows), past[1].index_select(0, block.rows)


def add(a: Stream, b: Stream) -> Stream:
    """Residual sum of two streams."""
    return a[0] + b[0], a[1] + b[1]
