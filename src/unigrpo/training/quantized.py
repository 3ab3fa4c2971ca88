"""A frozen base in 4 bits: NF4 by bitsandbytes, for the matrices under LoRA adapters.

Blocks of 64 weights share a scale, which itself has 8 bits (0.516 bytes a weight); a product makes its matrix anew in
the computation's dtype, so that adapters, activations and gradients are as precise as before. Source:
docs/quantize.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

import torch
from torch import nn

from unigrpo.ranges import ConfigError, lacking

NF4 = "nf4"
QUANTISED = "Params4bit"


def require() -> Any:
    """bitsandbytes; ConfigError says how to install it. Asked for before a large model is read."""
    try:
        return import_module("bitsandbytes")
    except ImportError as error:
        raise lacking(f"model.quantize = {NF4}", "bitsandbytes", "4bit") from error


def quantize(module: nn.Module, targets: Iterable[str], device: torch.device, dtype: torch.dtype) -> None:
    """Put the weights of the linear layers that ``targets`` names into 4 bits, one after the other, on ``device``.

    Biases keep their precision. ``dtype``: of the products. ValueError for a target that is no linear layer. The layers
    stay ``nn.Linear`` by class, so adapters go around them as around any other.
    """
    library = require()
    for name in targets:
        layer = module.get_submodule(name)
        if type(layer) is not nn.Linear:
            raise ValueError(f"{name} is no linear layer of the model: only those can be held in 4 bits")
        parent, _, own = name.rpartition(".")
        setattr(module.get_submodule(parent), own, _packed(library, layer, device, dtype))


def _packed(library: Any, layer: nn.Linear, device: torch.device, dtype: torch.dtype) -> nn.Linear:
    """The same layer with its weight in 4 bits: bitsandbytes packs it as it moves to the device."""
    with torch.device("meta"):
        made = library.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=False, compute_dtype=dtype, quant_type=NF4
        )
    weight = layer.weight.detach().to(dtype).contiguous()
    made.weight = library.nn.Params4bit(weight, requires_grad=False, quant_type=NF4, compress_statistics=True)
    made.weight = made.weight.to(device)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.detach().to(device), requires_grad=False)
    # its CPU kernel for inference packs weights anew and then has no backward pass, which a replay needs
    made.support_avx512bf16_for_cpu = False
    return made


def is_quantized(layer: nn.Module) -> bool:
    """Whether a layer's weight is in 4 bits (known without importing bitsandbytes)."""
    return isinstance(layer, nn.Linear) and type(layer.weight).__name__ == QUANTISED


def require_whole(layers: Iterable[nn.Module]) -> None:
    """ConfigError where an adapter is to be merged into weights in 4 bits, which would round it away."""
    if any(is_quantized(layer) for layer in layers):
        raise ConfigError(
            f"an adapter cannot be merged into a base that is held in 4 bits (model.quantize = {NF4}): the rounding of "
            "4 bits would swallow it; merge it into the base as it is in its files, as `unigrpo export` does"
        )
