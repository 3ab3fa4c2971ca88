"""BAGEL's own autoencoder: the FLUX one, read and written as the public ``ae.safetensors``.

The network is diffusers' ``AutoencoderKL``; this file knows the original's tensor names, sizes and normalisation.
Source: docs/bagel-architecture.md#autoencoder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unigrpo.models.bagel_files.tensor_files import Shape, require_fit
from unigrpo.ranges import lacking

Memory = Literal["whole", "sliced", "tiled"]
GROUPS = 32
_BLOCK = re.compile(r"encoder\.down\.(\d+)\.block\.(\d+)\.conv1\.weight")
_PIECES = {
    "block_1": "resnets.0",
    "block_2": "resnets.1",
    "attn_1.norm": "attentions.0.group_norm",
    "attn_1.q": "attentions.0.to_q",
    "attn_1.k": "attentions.0.to_k",
    "attn_1.v": "attentions.0.to_v",
    "attn_1.proj_out": "attentions.0.to_out.0",
}


@dataclass(frozen=True)
class FluxConfig:
    """Sizes of a FLUX autoencoder, and the numbers that normalise its latents; the defaults are the public ones.

    Level i has ``ch * multipliers[i]`` channels at 1 / 2**i of the side in pixels. latents = scale * (sample - shift).
    """

    ch: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    latent_channels: int = 16
    scale: float = 0.3611
    shift: float = 0.1159

    def __post_init__(self) -> None:
        if self.ch <= 0 or self.ch % GROUPS:
            raise ValueError(f"ch is {self.ch}; the group norms need a multiple of {GROUPS}")
        if not self.multipliers or min(*self.multipliers, self.num_res_blocks, self.latent_channels) < 1:
            raise ValueError(f"every size of a FLUX autoencoder must be at least 1, got {self}")
        if self.scale == 0:
            raise ValueError("scale is 0, so latents could not be decoded; the public value is 0.3611")

    @property
    def downsample(self) -> int:
        """Pixels per latent along a side."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(self.ch * multiplier for multiplier in self.multipliers)

    @classmethod
    def infer(cls, shapes: Mapping[str, Shape], source: str = "ae.safetensors") -> FluxConfig:
        """Sizes from the tensors of an ``ae.safetensors`` in the original's names (it comes without a config).

        Scale and shift are in no tensor and take their public values. ValueError names what is missing, unexpected
        or of another shape.
        """
        blocks = [(int(m[1]), int(m[2])) for m in map(_BLOCK.fullmatch, shapes) if m]
        levels = 1 + max((level for level, _ in blocks), default=0)

        def size(name: str) -> int:
            if not shapes.get(name):
                raise ValueError(
                    f"{source} is not a FLUX autoencoder in the original's names: missing {name}; "
                    "give the ae.safetensors that comes with BAGEL or FLUX"
                )
            return shapes[name][0]

        ch, moments = size("encoder.conv_in.weight"), size("encoder.conv_out.weight")
        widths = [size(f"encoder.down.{level}.block.0.conv1.weight") for level in range(levels)]
        try:
            multipliers = tuple(width // max(ch, 1) for width in widths)
            config = cls(ch, multipliers, 1 + max(block for _, block in blocks), moments // 2)
        except ValueError as error:
            raise ValueError(f"{source} is not a FLUX autoencoder: {error}") from error
        require_fit(shapes, original_shapes(config), source)
        return config


def _conv(name: str, inputs: int, outputs: int, kernel: int = 3) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (outputs, inputs, kernel, kernel)
    yield f"{name}.bias", (outputs,)


def _norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _resnet(name: str, inputs: int, outputs: int) -> Iterator[tuple[str, Shape]]:
    yield from _norm(f"{name}.norm1", inputs)
    yield from _conv(f"{name}.conv1", inputs, outputs)
    yield from _norm(f"{name}.norm2", outputs)
    yield from _conv(f"{name}.conv2", outputs, outputs)
    if inputs != outputs:
        yield from _conv(f"{name}.nin_shortcut", inputs, outputs, kernel=1)


def _middle(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield from _resnet(f"{name}.block_1", width, width)
    yield from _norm(f"{name}.attn_1.norm", width)
    for projection in ("q", "k", "v", "proj_out"):
        yield from _conv(f"{name}.attn_1.{projection}", width, width, kernel=1)
    yield from _resnet(f"{name}.block_2", width, width)


def _encoder(config: FluxConfig) -> Iterator[tuple[str, Shape]]:
    width = config.ch
    yield from _conv("encoder.conv_in", 3, width)
    for level, outputs in enumerate(config.widths):
        for block in range(config.num_res_blocks):
            yield from _resnet(f"encoder.down.{level}.block.{block}", width, outputs)
            width = outputs
        if level < len(config.widths) - 1:
            yield from _conv(f"encoder.down.{level}.downsample.conv", width, width)
    yield from _middle("encoder.mid", width)
    yield from _norm("encoder.norm_out", width)
    yield from _conv("encoder.conv_out", width, 2 * config.latent_channels)


def _decoder(config: FluxConfig) -> Iterator[tuple[str, Shape]]:
    width = config.widths[-1]
    yield from _conv("decoder.conv_in", config.latent_channels, width)
    yield from _middle("decoder.mid", width)
    for level, outputs in reversed(list(enumerate(config.widths))):
        for block in range(config.num_res_blocks + 1):
            yield from _resnet(f"decoder.up.{level}.block.{block}", width, outputs)
            width = outputs
        if level > 0:
            yield from _conv(f"decoder.up.{level}.upsample.conv", width, width)
    yield from _norm("decoder.norm_out", width)
    yield from _conv("decoder.conv_out", width, 3)


def original_shapes(config: FluxConfig) -> dict[str, Shape]:
    """Every tensor of ``ae.safetensors`` at these sizes: original name -> shape (244 at full size)."""
    return dict([*_encoder(config), *_decoder(config)])


def diffusers_name(name: str, levels: int) -> str:
    """The name in diffusers' ``AutoencoderKL`` of an original tensor; its ``up_blocks`` count from the coarsest."""
    half, stage, rest = name.split(".", 2)
    if stage == "mid":
        piece = next(piece for piece in _PIECES if rest.startswith(f"{piece}."))
        return f"{half}.mid_block.{_PIECES[piece]}{rest.removeprefix(piece)}"
    if stage == "norm_out":
        return f"{half}.conv_norm_out.{rest}"
    if stage not in ("down", "up"):
        return name
    level, kind, tail = rest.split(".", 2)
    place = int(level) if stage == "down" else levels - 1 - int(level)
    if kind == "block":
        return f"{half}.{stage}_blocks.{place}.resnets.{tail.replace('nin_shortcut', 'conv_shortcut')}"
    return f"{half}.{stage}_blocks.{place}.{stage}samplers.0.{tail}"


def _build(config: FluxConfig, tile: int) -> nn.Module:
    try:
        from diffusers import AutoencoderKL  # pyright: ignore[reportPrivateImportUsage]  # lazy, but public
    except ImportError as error:
        raise lacking("the FLUX autoencoder", "diffusers", "bagel") from error
    levels = len(config.multipliers)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,  # type: ignore[arg-type]  # annotated as tuples of one
        up_block_types=("UpDecoderBlock2D",) * levels,  # type: ignore[arg-type]
        block_out_channels=config.widths,  # type: ignore[arg-type]
        layers_per_block=config.num_res_blocks,
        latent_channels=config.latent_channels,
        norm_num_groups=GROUPS,
        sample_size=tile,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


class FluxAutoencoder(nn.Module):
    """The FLUX autoencoder as an :class:`~unigrpo.models.bagel.autoencoder.Autoencoder`.

    ``memory`` says how a batch goes through:

    * ``whole``: at once.
    * ``sliced``: one picture after the other, each exactly as it would be alone; a whole batch agrees to rounding, as
      convolutions add up in another order for another batch size. With gradient, the blocks are computed again in
      the backward pass, so a batch holds only the blocks' inputs.
    * ``tiled``: as ``sliced``, and pictures with a side above ``tile`` pixels go through in overlapping tiles that are
      blended. This is an approximation: group norm and attention see one tile, not the picture.

    Inputs are cast to the parameters' dtype; outputs are fp32 (fp64 from fp64 parameters).
    """

    def __init__(self, config: FluxConfig, memory: Memory = "whole", tile: int = 512) -> None:
        super().__init__()
        if memory not in get_args(Memory):
            raise ValueError(f"memory is {memory!r}; choose one of {', '.join(get_args(Memory))}")
        if tile <= 0 or tile % (4 * config.downsample):
            raise ValueError(
                f"tile is {tile} pixels; tiles overlap by a quarter, so it must be a multiple of "
                f"4 x {config.downsample} (downsample)"
            )
        self.config = config
        self.memory: Memory = memory
        self.channels, self.downsample = config.latent_channels, config.downsample
        self.kl: Any = _build(config, tile)
        if memory != "whole":
            self.kl.enable_slicing()
            # Nothing random happens inside, so the random state is left alone.
            self.kl.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False, preserve_rng_state=False))
        if memory == "tiled":
            self.kl.enable_tiling()

    def moments(self, pixels: Tensor) -> Tensor:
        """The encoder's output [B, 2z, h, w] (mean, then log-variance) of pixels [B, 3, H, W] in [-1, 1]."""
        out = self.kl.encode(pixels.to(self.kl.encoder.conv_in.weight)).latent_dist.parameters
        return out.to(torch.promote_types(out.dtype, torch.float32))

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents [B, z, h, w] = scale * (mean + exp(logvar / 2) * noise - shift) of pixels in [-1, 1].

        The original always samples: ``noise`` [B, z, h, w] is the caller's standard normal draw, None takes the mean.
        The log-variance is not clamped (diffusers' own posterior clamps it; the original does not).
        """
        mean, log_variance = self.moments(pixels).chunk(2, dim=1)
        if noise is None:
            return self.config.scale * (mean - self.config.shift)
        if noise.shape != mean.shape:
            raise ValueError(f"the noise has shape {tuple(noise.shape)}, but these latents have {tuple(mean.shape)}")
        sample = mean + torch.exp(0.5 * log_variance) * noise.to(mean)
        return self.config.scale * (sample - self.config.shift)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, z, h, w] -> pixels [B, 3, H, W], not clamped; gradients reach the latents.

        z = latents / scale + shift (in fp32, before the cast to the parameters' dtype).
        """
        z = latents.to(torch.promote_types(latents.dtype, torch.float32)) / self.config.scale + self.config.shift
        out = self.kl.decode(z.to(self.kl.decoder.conv_in.weight)).sample
        return out.to(torch.promote_types(out.dtype, torch.float32))

    def load_original(self, tensors: Mapping[str, Tensor], source: str = "ae.safetensors") -> None:
        """Load tensors under their original names; ValueError names what does not fit, and nothing is loaded then.

        Values are copied into the parameters' dtype and device. A module built on the meta device takes the tensors
        themselves instead, with their dtype and device.
        """
        require_fit({name: tuple(value.shape) for name, value in tensors.items()}, original_shapes(self.config), source)
        state = self.kl.state_dict()
        levels = len(self.config.multipliers)
        # Attention projections are 1x1 convolutions there and linear layers here: the same numbers in the same order.
        renamed = {diffusers_name(name, levels): value for name, value in tensors.items()}
        ready = {name: value.reshape(state[name].shape) for name, value in renamed.items()}
        self.kl.load_state_dict(ready, strict=True, assign=self.kl.encoder.conv_in.weight.is_meta)

    def original_tensors(self) -> dict[str, Tensor]:
        """The parameters under their original names and shapes, ready to be written as ``ae.safetensors``."""
        state, levels = self.kl.state_dict(), len(self.config.multipliers)
        shapes = original_shapes(self.config)
        return {name: state[diffusers_name(name, levels)].reshape(shape) for name, shape in shapes.items()}
