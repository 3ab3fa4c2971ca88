"""The mixture-of-transformers layer: two experts per layer, one joint attention.

Source: docs/bagel-architecture.md#the-layer.

Routing is static: a stream is a pair (und [B, U, H], gen [B, G, H]); each half goes through its own weights and both
meet in one attention. Parameter names are those of the public checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from unigrpo.models.bagel.blocks import Block, Compact
from unigrpo.models.bagel.config import BagelConfig
from unigrpo.models.bagel.functions import gated, rms_norm

Stream = tuple[Tensor, Tensor]
KeyValue = tuple[Tensor, Tensor]
Rope = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Place:
    """Where all layers read a block: the block, its rope tables (None: nothing is rotated) and its additive mask.

    The mask is [B, 1, Lq, Lk], or [B, 1, 1, Lk] where all queries of a row see the same.
    """

    block: Block
    rope: Rope | None
    mask: Tensor


class RMSNorm(nn.Module):
    """x * rsqrt(mean(x^2) + eps) in fp32, cast back, times weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return rms_norm(x, self.weight, self.eps)


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x), without biases."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] -> [..., H]."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        if torch.is_grad_enabled():
            return self.down_proj(gated(gate, up))
        return self.down_proj(F.silu(gate, inplace=True).mul_(up))


def rope_tables(positions: Tensor, head_dim: int, theta: float) -> Rope:
    """cos [f, f] and sin [-f, f] of the angles f = p * theta^(-2j/d): [B, L, 1, head_dim] each (fp32)."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = (positions.float()[..., None] * theta**-exponents)[:, :, None, :]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, llama style, by :func:`rope_tables`: x cos + [x2, x1] sin; x is [B, L, heads, d]."""
    return (x * cos + x.roll(x.shape[-1] // 2, -1) * sin).to(x.dtype)


def attends_wide(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether texts attend in fp64.

    Text in fp32 does: a decoded token and the same token in a packed replay sum over keys of different padding, and
    those roundings alone made rare tokens differ by more than the 1e-5 that a first update may (with it: not at all;
    LOG.md). Images, whose blocks have one shape, need no such care.
    """
    return dtype == torch.float32 and device.type in ("cpu", "cuda")


def attention(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d) + mask) v: q [B, heads, Lq, d], keys and values [B, kv heads, Lk, d] -> like q.

    Where all queries of a row see the same, the heads that share keys are laid into one long row of queries.
    """
    batch, heads, length, d = q.shape
    kv_heads = keys.shape[1]
    if mask.shape[2] == 1:
        rows = q.reshape(batch, kv_heads, -1, d)
        return F.scaled_dot_product_attention(rows, keys, values, attn_mask=mask).reshape(batch, heads, length, d)
    if heads > kv_heads and q.device.type != "cpu":  # fused kernels take a mask, or grouped heads, but not both
        keys, values = (u.repeat_interleave(heads // kv_heads, 1) for u in (keys, values))
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=heads > keys.shape[1])


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
        self, stream: Stream, rope: Rope | None, compact: Compact | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q [B, heads, L, d], k and v [B, kv heads, L, d] of a stream, und tokens (padded if compact) first."""
        halves = [self._project(x, twin) for x, twin in zip(stream, ("", "_moe_gen"), strict=True) if x.shape[1]]
        if compact is not None:
            q, k, v = halves[0]
            halves[0] = compact.padded(q), compact.padded(k), compact.padded(v)
        q, k, v = halves[0]
        for other in halves[1:]:
            q, k, v = (torch.cat(pair, dim=1) for pair in zip((q, k, v), other, strict=True))
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, num_und: int) -> Tensor:
        """Attention over the given keys (mask: of a :class:`Place`): [B, heads, L, d].

        Texts attend in fp64 by :func:`attends_wide`.
        """
        dtype = q.dtype
        if num_und == q.shape[2] and attends_wide(dtype, q.device):
            q, keys, values, mask = (u.double() for u in (q, keys, values, mask))
        return attention(q, keys, values, mask).to(dtype)

    def output(self, out: Tensor, num_und: int, compact: Compact | None = None) -> Stream:
        """The output projections of both experts, of attention's [B, heads, L, d].

        Each half is laid out for itself: a slice of both would go through a product for every row of the batch.
        """
        und, gen = (half.transpose(1, 2).flatten(2) for half in out.split([num_und, out.shape[2] - num_und], dim=2))
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
                if past is not None:
                    past = continued(past[0], place.block.rows), continued(past[1], place.block.rows)
            elif again:
                stream, past = checkpoint(self.read, stream, place, past, use_reentrant=False, preserve_rng_state=False)
            else:
                stream, past = self.read(stream, place, past, append, sparing=torch.is_grad_enabled())
            out.append(stream)
        return out

    def read(
        self,
        stream: Stream,
        place: Place,
        past: KeyValue | None = None,
        append: Callable[[Tensor, Tensor], KeyValue] | None = None,
        *,
        sparing: bool = False,
    ) -> tuple[Stream, KeyValue]:
        """One block through this layer: its stream, and the keys and values of all that was read so far and of itself.

        past: what the block attends to besides itself (the cache, earlier blocks), in the rows that it continues.
        ``append`` writes the block's keys and values into the cache and returns all of them. ``sparing``: what was read
        before is not kept again for every row that continues it, but joined again in the backward pass.
        """
        block = place.block
        q, k, v = self.self_attn.project(self.by_expert("input_layernorm", stream), place.rope, block.compact)
        joined = [Joined(None if past is None else past[i], block.rows, own) for i, own in enumerate((k, v))]
        seen = (joined[0].make(), joined[1].make()) if append is None else append(k, v)
        with made_again(seen, joined) if sparing and block.rows is not None else nullcontext():
            out = self.self_attn.attend(q, *seen, place.mask, block.num_und)
        return self.mix(add(stream, self.self_attn.output(out, block.num_und, block.compact))), seen

    def mix(self, stream: Stream) -> Stream:
        """h + mlp(norm(h)) in each expert."""
        return add(stream, self.by_expert("mlp", self.by_expert("post_attention_layernorm", stream)))


def continued(past: Tensor, rows: Tensor | None) -> Tensor:
    """Keys or values [rows of the block before, ...] in the rows that a block continues (None: its own)."""
    return past if rows is None else past.index_select(0, rows)


class Joined:
    """Keys or values of all that a block sees: those of ``past`` in the rows that it continues, then its own."""

    def __init__(self, past: Tensor | None, rows: Tensor | None, own: Tensor) -> None:
        self.past, self.rows, self.own = past, rows, own

    def make(self) -> Tensor:
        """[B, kv heads, Lk, d]."""
        return self.own if self.past is None else torch.cat([continued(self.past, self.rows), self.own], 2)

    def detached(self) -> Joined:
        """The same without a graph, for the backward pass."""
        return Joined(None if self.past is None else self.past.detach(), self.rows, self.own.detach())


def made_again(made: Sequence[Tensor], joined: Sequence[Joined]) -> AbstractContextManager[None]:
    """Where the backward pass needs what was ``made``, it is joined again: K noisy copies share what they continue."""
    parts = {tensor.data_ptr(): how for tensor, how in zip(made, joined, strict=True)}
    shapes = {tensor.shape for tensor in made}

    def pack(saved: Tensor) -> Tensor | Joined:
        known = parts.get(saved.data_ptr()) if saved.shape in shapes else None
        return saved.detach() if known is None else known.detached()

    def unpack(kept: Tensor | Joined) -> Tensor:
        return kept.make() if isinstance(kept, Joined) else kept

    return saved_tensors_hooks(pack, unpack)


def add(a: Stream, b: Stream) -> Stream:
    """Residual sum of two streams, of which the second was made for it alone."""
    if torch.is_grad_enabled():
        return a[0] + b[0], a[1] + b[1]
    und, gen = b
    return und.add_(a[0]) if und.shape[1] else und, gen.add_(a[1]) if gen.shape[1] else gen
