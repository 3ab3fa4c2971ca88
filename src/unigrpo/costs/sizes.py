"""What a model is made of, in numbers: the sizes that its cost follows from, and exact parameter counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Expert = Literal["reasoning", "denoising"]
EXPERTS: tuple[Expert, Expert] = ("reasoning", "denoising")
FREQUENCIES = 256  # of the time embedder


@dataclass(frozen=True)
class VisionSizes:
    """A vision tower (SigLIP without a head): ``layers`` are those that are instantiated, ``places`` the table's rows.

    connector_places: rows of the table that is added after the connector (70 x 70).
    """

    hidden: int
    intermediate: int
    layers: int
    patch_dim: int = 588
    places: int = 4900
    connector_places: int = 4900

    @property
    def parameters(self) -> int:
        """Parameters of the tower: patches, places, layers with biases and layer norms, and the last norm."""
        h, i = self.hidden, self.intermediate
        layer = 4 * (h * h + h) + (2 * h * i + h + i) + 4 * h
        return h * self.patch_dim + h + self.places * h + self.layers * layer + 2 * h

    def flops(self, patches: int) -> float:
        """FLOPs to see a picture of so many patches: their embedding, then matrices and attention of every layer."""
        h, n = self.hidden, patches
        layer = 2 * n * (4 * h * h + 2 * h * self.intermediate) + 4 * n * n * h
        return 2 * n * self.patch_dim * h + self.layers * layer


@dataclass(frozen=True)
class AutoencoderSizes:
    """An autoencoder, as far as drawing costs: a picture is decoded once, and encoded to be looked at.

    decode_flops, encode_flops: of the convolutions, per pixel. attention, downsample: channels and pixels per side of
    the one attention layer in its middle (0: none). widest: most numbers per pixel of one tensor in the decoder.
    """

    parameters: int
    decode_flops: float
    widest: float
    attention: int = 0
    downsample: int = 8
    encode_flops: float = 0.0

    def flops(self, pixels: int) -> float:
        """FLOPs to decode a picture of so many pixels: convolutions, and 4 N^2 c of the attention."""
        tokens = pixels / self.downsample**2
        return self.decode_flops * pixels + 4 * tokens**2 * self.attention

    def encode(self, pixels: int) -> float:
        """The same to encode one."""
        return self.flops(pixels) + (self.encode_flops - self.decode_flops) * pixels


Piece = tuple[int, int, int]  # weights of convolutions, all other parameters, and the level at which they run


def _residual(inputs: int, outputs: int, level: int) -> Piece:
    shortcut = inputs != outputs
    weights = 9 * inputs * outputs + 9 * outputs * outputs + inputs * outputs * shortcut
    return weights, 2 * (inputs + outputs) + outputs * (2 + shortcut), level


def _convolution(inputs: int, outputs: int, level: int, norm: bool = False) -> Piece:
    return 9 * inputs * outputs, outputs + 2 * inputs * norm, level


def _middle(channels: int, level: int) -> list[Piece]:
    return [_residual(channels, channels, level)] * 2 + [(4 * channels * channels, 6 * channels, level)]


def flux_autoencoder(
    width: int = 128, multipliers: tuple[int, ...] = (1, 2, 4, 4), blocks: int = 2, latent_channels: int = 16
) -> AutoencoderSizes:
    """The FLUX autoencoder: level i has width * multipliers[i] channels at 1 / 2^i of the side.

    Source: docs/bagel-architecture.md#autoencoder.
    """
    widths, top = [width * m for m in multipliers], len(multipliers) - 1
    encoder, before = [_convolution(3, width, 0)], width
    for level, channels in enumerate(widths):
        encoder += [_residual(i, channels, level) for i in [before] + [channels] * (blocks - 1)]
        encoder += [_convolution(channels, channels, level + 1)] * (level < top)
        before = channels
    encoder += [*_middle(before, top), _convolution(before, 2 * latent_channels, top, norm=True)]
    decoder, widest = [_convolution(latent_channels, before, top), *_middle(before, top)], 0.0
    for level, channels in reversed(list(enumerate(widths))):
        widest = max(widest, max(before, channels) / 4**level)
        decoder += [_residual(i, channels, level) for i in [before] + [channels] * blocks]
        decoder += [_convolution(channels, channels, level - 1)] * (level > 0)  # after doubling the side
        before = channels
    decoder.append(_convolution(width, 3, 0, norm=True))
    parameters = sum(weights + others for weights, others, _ in encoder + decoder)
    flops, back = (sum(2 * weights / 4**level for weights, _, level in half) for half in (decoder, encoder))
    return AutoencoderSizes(parameters, flops, widest, widths[-1], 2**top, back)


def small_autoencoder(channels: int = 4, width: int = 20) -> AutoencoderSizes:
    """The autoencoder of the micro models (``ConvAutoencoder``): three stages, two halvings, no attention."""
    stage, halving = 9 * width * width + 3 * width, 16 * width * width + width
    body = 3 * stage + 2 * halving + 2 * width
    encoder = 27 * width + width + body + 18 * width * channels + 2 * channels
    decoder = 9 * channels * width + width + body + 27 * width + 3
    stages = 9 * width * width * (1 + 1 / 4 + 1 / 16)
    # a transposed convolution of 4 x 4 and stride 2 multiplies every input pixel by all 16 weights
    halvings = 16 * width * width * (1 / 4 + 1 / 16)
    flops = 2 * (9 * channels * width / 16 + stages + halvings + 27 * width)
    back = 2 * (27 * width + stages + halvings + 18 * width * channels / 16)
    return AutoencoderSizes(encoder + decoder, flops, width, downsample=4, encode_flops=back)


@dataclass(frozen=True)
class ModelSizes:
    """The integers of a BAGEL that its cost follows from (``BagelConfig`` has the meaning of each).

    storage_bytes: per number of the checkpoint on disk (2: bf16). head_dim * heads = hidden.
    """

    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    latent_dim: int
    pixels_per_token: int
    max_latent_size: int
    image_size: tuple[int, int] = (1024, 1024)
    vision: VisionSizes | None = None
    autoencoder: AutoencoderSizes | None = None
    storage_bytes: int = 2

    @property
    def kv(self) -> int:
        """Numbers of one token's keys (and of its values) in a layer."""
        return self.kv_heads * self.head_dim

    @property
    def layer_matrices(self) -> int:
        """Weights of the seven matrices of one expert in one layer: q, k, v, o, gate, up, down."""
        h = self.hidden
        return 2 * h * h + 2 * h * self.kv + 3 * h * self.intermediate

    @property
    def mlp_matrices(self) -> int:
        """Those of them that are of the MLP: gate, up, down."""
        return 3 * self.hidden * self.intermediate

    @property
    def layer_parameters(self) -> int:
        """All parameters of one expert in one layer: matrices, biases of q, k, v, and four norms."""
        return self.layer_matrices + self.hidden + 2 * self.kv + 2 * self.hidden + 2 * self.head_dim

    def expert(self, expert: Expert) -> int:
        """Parameters of an expert: layers and final norm; reasoning with embeddings and text head, denoising with
        what turns latents and times into tokens and tokens into velocities.
        """
        h, body = self.hidden, self.layers * self.layer_parameters + self.hidden
        if expert == "reasoning":
            return body + 2 * self.vocab * h
        time = FREQUENCIES * h + h + h * h + h
        return body + time + (self.latent_dim * h + h) + (h * self.latent_dim + self.latent_dim)

    def cast(self, expert: Expert) -> int:
        """Weights of an expert that meet tokens in a matrix product under autocast (the text head runs in fp32)."""
        h = self.hidden
        ends = 2 * self.latent_dim * h + FREQUENCIES * h + h * h if expert == "denoising" else 0
        return self.layers * self.layer_matrices + ends

    @property
    def tables(self) -> int:
        """Frozen position tables: of the latents, and of the connector's tokens where there is a vision tower."""
        places = self.max_latent_size**2 + (self.vision.connector_places if self.vision else 0)
        return places * self.hidden

    @property
    def connector(self) -> int:
        """Parameters of the two layers between the vision tower and the language model."""
        h = self.hidden
        return (self.vision.hidden * h + h + h * h + h) if self.vision else 0

    def see(self, patches: int) -> float:
        """FLOPs of the tower and the connector for one picture; 0 without a tower."""
        h = self.hidden
        return 0.0 if self.vision is None else self.vision.flops(patches) + 2 * patches * h * (self.vision.hidden + h)

    @property
    def vision_parameters(self) -> int:
        """Parameters of the vision tower."""
        return self.vision.parameters if self.vision else 0

    @property
    def autoencoder_parameters(self) -> int:
        """Parameters of the autoencoder."""
        return self.autoencoder.parameters if self.autoencoder else 0

    @property
    def model_parameters(self) -> int:
        """All parameters of the checkpoint but the autoencoder's."""
        experts = sum(self.expert(expert) for expert in EXPERTS)
        return experts + self.tables + self.connector + self.vision_parameters

    def adapter_sides(self) -> int:
        """Sum of inputs and outputs of the seven matrices of a layer: an adapter of rank r has r times that."""
        h, i = self.hidden, self.intermediate
        return 4 * h + 2 * (h + self.kv) + 3 * (h + i)

    def adapter(self, rank: int) -> int:
        """Parameters of one expert's adapters."""
        return self.layers * rank * self.adapter_sides()

    def tokens(self, side: int | None) -> int:
        """Latent tokens of a square picture of ``side`` pixels (None: the model's own size)."""
        height, width = (side, side) if side is not None else self.image_size
        return (height // self.pixels_per_token) * (width // self.pixels_per_token)


BAGEL_7B = ModelSizes(
    vocab=152064,
    hidden=3584,
    intermediate=18944,
    layers=28,
    heads=28,
    kv_heads=4,
    head_dim=128,
    latent_dim=64,
    pixels_per_token=16,
    max_latent_size=64,
    vision=VisionSizes(hidden=1152, intermediate=4304, layers=26),
    autoencoder=flux_autoencoder(),
)
"""ByteDance-Seed/BAGEL-7B-MoT (docs/bagel-architecture.md#tensors)."""
