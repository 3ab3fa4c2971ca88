"""LoRA through peft: W x + (alpha / rank) B A x on named linear layers, everything else frozen.

The module is changed in place and keeps its class; folders are peft's own (adapter_config.json and
adapter_model.safetensors), so that ``peft.PeftModel.from_pretrained`` reads them.
Source: docs/math.md#precision, #regularisers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialise
from torch import Tensor, nn

from unigrpo import seeds
from unigrpo.files import write_bytes_atomic, write_text_atomic
from unigrpo.policy import Replayed, ReplayItem, Scorer
from unigrpo.ranges import lacking
from unigrpo.training.adapter_files import CONFIG, WEIGHTS, Base, read_config, read_weights
from unigrpo.training.quantized import require_whole

NAME, PREFIX = "default", "base_model.model."  # peft's name of the only adapter, and of the module inside its wrapper
# What an adapter made elsewhere may set; anything else off its default is more than W x + s B A x.
PLAIN = (
    "peft_type task_type auto_mapping peft_version base_model_name_or_path revision inference_mode runtime_config r "
    "lora_alpha lora_dropout use_rslora rank_pattern alpha_pattern target_modules exclude_modules layers_to_transform "
    "layers_pattern init_lora_weights"
)
PLAIN_STARTS = (True, False, "gaussian")  # of init_lora_weights; others change the base weights


class Adapter:
    """One LoRA adapter in a module: fp32 matrices A (rank x in) and B (out x rank) beside each target's weight.

    Only A and B have ``requires_grad``. ``layers`` maps the targets' names to peft's layers. A module below fp32 must
    run under autocast. Made by :meth:`create` or :meth:`load`.
    """

    def __init__(self, module: nn.Module, config: Any, base: Base | None = None) -> None:
        if adapted(module):
            raise ValueError("the model has a LoRA adapter already: merge that one first")
        self.module, self.config, self.base = module, config, base
        name, config.base_model_name_or_path = config.base_model_name_or_path, None  # else peft warns that it renames
        # low_cpu_mem_usage: on the meta device nothing is drawn, so the global generator is left alone
        self.wrapper = _peft().get_peft_model(module, config, NAME, low_cpu_mem_usage=True)
        config.base_model_name_or_path = name
        self.layers = adapted(module)
        for name, layer in self.layers.items():
            if not isinstance(layer.get_base_layer(), nn.Linear):
                self._unload()
                raise ValueError(f"the LoRA target {name!r} is no linear layer")
            weight = layer.get_base_layer().weight
            for part in (layer.lora_A, layer.lora_B):
                part[NAME].to_empty(device=weight.device).float()
            # Inputs below fp32 are autocast's business: peft would copy each to fp32, and autocast that copy back.
            layer.cast_input_dtype_enabled = weight.is_floating_point() and torch.finfo(weight.dtype).bits > 32

    @classmethod
    def create(
        cls,
        module: nn.Module,
        targets: Sequence[str],
        *,
        rank: int,
        alpha: float,
        seed: int,
        base_name: str | None,
        base_key: str | None = None,
        quantize: str | None = None,
    ) -> Adapter:
        """Add a new adapter to the linear layers that ``targets`` names in full: A ~ N(0, 1 / rank^2), B = 0.

        The A of a name has a generator of its own, so neither the order nor the number of targets matters.
        ``base_name`` (a hub id or folder) is what the saved adapter says it belongs to, and ``base_key`` a hash of that
        base's weights, by which it is known again; ``quantize``: how that base is held meanwhile. ValueError for a
        target that is no linear layer.
        """
        kinds = {name: type(layer) for name, layer in module.named_modules()}
        if odd := [target for target in targets if not issubclass(kinds.get(target, nn.Module), nn.Linear)]:
            raise ValueError(
                f"the LoRA target {odd[0]!r} is no linear layer of the model: name its linear layers in full"
            )
        config = _peft().LoraConfig(
            r=rank,
            lora_alpha=int(alpha) if float(alpha).is_integer() else alpha,  # other programs read an integer
            target_modules=target_pattern(kinds, targets),
            init_lora_weights="gaussian",
            lora_dropout=0.0,
            bias="none",
            base_model_name_or_path=base_name,
        )
        base = None if base_name is None or base_key is None else Base(base_name, base_key, seed, None, quantize)
        adapter = cls(module, config, base)
        weights = {name: torch.zeros(tensor.shape) for name, tensor in adapter.state().items()}
        for target in targets:
            name, draws = f"{PREFIX}{target}.lora_A.weight", seeds.generator(seed, 0, 0, 0, f"lora {target}")
            weights[name] = torch.randn(weights[name].shape, generator=draws) / rank
        adapter._copy(weights)
        return adapter

    @classmethod
    def load(cls, module: nn.Module, folder: Path) -> Adapter:
        """Add the adapter of a folder to a bare module, to go on training it; its dropout is left out.

        ValueError, and the module stays bare, where the adapter is more than LoRA on linear layers or does not fit.
        """
        weights, config = read_weights(folder), _plain_config(folder)
        try:
            adapter = cls(module, config, Base.read(folder))
        except ValueError as error:  # peft found no target, or one that is not linear
            raise ValueError(f"the adapter in {folder} does not fit the model: {error}") from error
        try:
            adapter._check(weights, folder)
        except ValueError:
            adapter._unload()
            raise
        adapter._copy(weights)
        return adapter

    def load_weights(self, folder: Path) -> None:
        """Replace A and B by those of a folder with the same targets, rank and alpha; ValueError says what differs."""
        weights, saved = read_weights(folder), read_config(folder)
        for key, ours in (("r", self.config.r), ("lora_alpha", self.config.lora_alpha)):
            if saved.get(key) != ours:
                raise ValueError(
                    f"the adapter in {folder} has {key} = {saved.get(key)}, but this run has {ours}: "
                    f"set model.lora.{'rank' if key == 'r' else 'alpha'} to {saved.get(key)}, or name another adapter"
                )
        self._check(weights, folder)
        self._copy(weights)

    def save(self, folder: Path) -> None:
        """Write the two files as ``PeftModel.save_pretrained`` does, each atomically; nothing is pickled."""
        self.snapshot(folder)()

    def snapshot(self, folder: Path) -> Callable[[], None]:
        """Copy the adapter as it is now, and return what writes it as :meth:`save` does."""
        tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in self.state().items()}
        return partial(self._write, folder, tensors)

    def _write(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(folder / WEIGHTS, serialise(dict(tensors), metadata={"format": "pt"}))
        kind = type(self.module)
        origin = {"base_model_class": kind.__name__, "parent_library": kind.__module__}
        values = self.config.to_dict() | {"inference_mode": True, "auto_mapping": origin}
        plain = {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}
        write_text_atomic(folder / CONFIG, json.dumps(plain, indent=2, sort_keys=True))
        if self.base is not None:
            self.base.write(folder)

    @staticmethod
    def base_of(folder: Path) -> str | None:
        """The base model that an adapter folder names (None: it names none); ValueError if it is no adapter folder."""
        return read_config(folder).get("base_model_name_or_path")

    def parameters(self) -> dict[str, nn.Parameter]:
        """A and B of all targets by their names in the module (``...q_proj.lora_A.default.weight``)."""
        return {name: parameter for name, parameter in self.module.named_parameters() if ".lora_" in name}

    def state(self) -> dict[str, Tensor]:
        """A and B by their names in the file; the tensors share memory with the parameters."""
        if not self.layers:
            raise ValueError("the adapter was merged into its model: there is nothing left to save")
        return _peft().get_peft_model_state_dict(self.wrapper, adapter_name=NAME, save_embedding_layers=False)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside, the module is its base (v_ref); afterwards, also after a fault, all is as before.

        For passes without gradients: a backward pass after the end would compute checkpointed layers with the adapter.
        Source: docs/math.md#regularisers.
        """
        before = [(layer, layer.disable_adapters) for layer in self.layers.values()]
        matrices = [part[NAME].weight for layer, _ in before for part in (layer.lora_A, layer.lora_B)]
        trained = [matrix.requires_grad for matrix in matrices]
        try:
            for layer, _ in before:
                layer.enable_adapters(False)
            yield
        finally:
            for layer, off in before:
                layer.enable_adapters(not off)
            for matrix, flag in zip(matrices, trained, strict=True):  # peft switches gradients with the adapter
                matrix.requires_grad_(flag)

    @torch.no_grad()
    def merge(self) -> nn.Module:
        """W <- W + (alpha / rank) B A, in fp32 (fp64 for an fp64 W), rounded once; ConfigError for 4 bits."""
        require_whole(layer.get_base_layer() for layer in self.layers.values())
        for layer in self.layers.values():
            weight = layer.get_base_layer().weight
            wide = torch.promote_types(weight.dtype, torch.float32)
            weight.copy_(weight.to(wide) + layer.get_delta_weight(NAME).to(wide))
        self._unload()
        return self.module

    def _unload(self) -> None:
        self.wrapper.unload()
        self.layers = {}

    def _check(self, weights: Mapping[str, Tensor], folder: Path) -> None:
        """ValueError where names or shapes are not those of this adapter."""
        wanted = self.state()
        problems = [f"it lacks {name}" for name in sorted(wanted.keys() - weights.keys())]
        problems += [f"it has {name}, which is no target here" for name in sorted(weights.keys() - wanted.keys())]
        problems += [
            f"{name} has shape {tuple(weights[name].shape)}, not {tuple(wanted[name].shape)}"
            for name in sorted(wanted.keys() & weights.keys())
            if wanted[name].shape != weights[name].shape
        ]
        if problems:
            more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
            raise ValueError(f"the adapter in {folder} does not fit the model: {'; '.join(problems[:3])}{more}")

    @torch.no_grad()
    def _copy(self, weights: Mapping[str, Tensor]) -> None:
        for name, tensor in self.state().items():
            tensor.copy_(weights[name])


@dataclass(frozen=True)
class WithoutAdapter:
    """The frozen reference of a LoRA run: the trained policy with its adapter off, so it needs no memory of its own."""

    policy: Scorer
    adapter: Adapter

    @property
    def module(self) -> nn.Module:
        """The policy's module; its :func:`base_state_dict` holds the reference's weights."""
        return self.policy.module

    def replay(self, items: Sequence[ReplayItem], *, temperature: float = 1.0) -> list[Replayed]:
        """Score with the base weights."""
        with self.adapter.disabled():
            return self.policy.replay(items, temperature=temperature)


def base_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of a module as it is without its adapter (if any): base weights under their own names."""
    return {n.replace(".base_layer.", "."): t for n, t in module.state_dict().items() if ".lora_" not in n}


def adapted(module: nn.Module) -> dict[str, Any]:
    """The layers that peft has put around others, by name; found without importing peft."""
    names = [name.removesuffix(".lora_A") for name, _ in module.named_modules() if name.endswith(".lora_A")]
    return {name: module.get_submodule(name) for name in names}


def target_pattern(names: Iterable[str], targets: Sequence[str]) -> str:
    r"""A regular expression for exactly the ``targets`` among ``names``, short enough to be read in the saved config.

    Where all layers of a kind are targets their numbers become ``\d+``; else every name is written out.
    """
    if not targets:
        raise ValueError("a LoRA adapter needs at least one target")
    pattern = _alternatives(sorted({re.sub(r"(?<=\.)\d+(?=\\\.)", r"\\d+", re.escape(target)) for target in targets}))
    if {name for name in names if re.fullmatch(pattern, name)} == set(targets):
        return pattern
    return _alternatives(sorted(map(re.escape, set(targets))))


def _alternatives(patterns: Sequence[str]) -> str:
    """``prefix.(a|b)``: the names that all have in common are written once."""
    split = [pattern.split(r"\.") for pattern in patterns]
    shared = 0
    while all(len(parts) > shared + 1 and parts[shared] == split[0][shared] for parts in split):
        shared += 1
    tails = [r"\.".join(parts[shared:]) for parts in split]
    return r"\.".join([*split[0][:shared], tails[0] if len(tails) == 1 else f"({'|'.join(tails)})"])


def _plain_config(folder: Path) -> Any:
    """The peft config of a folder, trainable and without dropout; ValueError for what is more than W x + s B A x."""
    values, peft = read_config(folder), _peft()
    try:
        config = peft.LoraConfig.from_pretrained(str(folder))
        if isinstance(config.target_modules, str):
            re.compile(config.target_modules)
    except (TypeError, ValueError, AttributeError, KeyError, re.error) as error:
        raise ValueError(f"{folder / CONFIG} is no config of an adapter that peft can read: {error}") from error
    defaults = peft.LoraConfig().to_dict()
    for key, value in config.to_dict().items():
        known = value in PLAIN_STARTS if key == "init_lora_weights" else key in PLAIN.split() or value == defaults[key]
        if not known:
            raise ValueError(f"the adapter in {folder} has {key} = {values.get(key)!r}: only plain LoRA can be used")
    config.inference_mode, config.lora_dropout = False, 0.0
    return config


def _peft() -> Any:
    """The package, imported when it is needed: it takes seconds."""
    try:
        return import_module("peft")
    except ImportError as error:
        raise lacking("model.lora", "peft", "bagel") from error
