"""How far two states of a model are from each other: one small forward in fp32, whatever the weights are kept in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unigrpo import seeds
from unigrpo.models.bagel_files.pretrained import Bagel
from unigrpo.trajectory import Text

NUM_IDS, TIME = 12, 0.7


@dataclass(frozen=True)
class Answers:
    """What a model says in a small fixed context: logits [V] of the next token, and a velocity [n, d]."""

    logits: Tensor
    velocity: Tensor

    def distance(self, other: Answers) -> tuple[float, float]:
        """Relative L2 of the other's logits and velocity to these."""
        return _relative(self.logits, other.logits), _relative(self.velocity, other.velocity)


@torch.no_grad()
def probe(policy: Bagel) -> Answers:
    """Ask a model, in fp32: after ``NUM_IDS`` ids spread over the vocabulary, for a word and for a picture of 2 x 2."""
    config = policy.config
    side = min(2, config.max_latent_size) * config.pixels_per_token
    small = policy.at_size((side, side))
    small.compute_dtype = torch.float32
    ids = torch.arange(1, NUM_IDS + 1) * (config.vocab_size // (NUM_IDS + 1))
    noise = torch.randn(
        (1, small.spec.num_tokens, config.latent_dim), generator=seeds.generator(0, 0, 0, 0, "export probe")
    )
    device = policy.model.device
    with _widened(policy.model):
        cache = small.prefill([(Text(ids),)])
        velocity = small.velocity(cache, noise.to(device), torch.tensor([TIME], device=device))[0]
        start = torch.tensor([config.bos_token_id], device=device)
        logits = small.feed(cache, start, torch.ones(1, dtype=torch.bool, device=device))[0]
    return Answers(logits.float().cpu(), velocity.float().cpu())


@torch.no_grad()
def round_weights(model: nn.Module, dtype_of: Callable[[str], torch.dtype]) -> bool:
    """Round every weight to the dtype that it is written in, but keep it as it is kept; whether any changed."""
    changed = False
    for name, weight in model.state_dict().items():
        rounded = weight.to(dtype_of(name)).to(weight.dtype)
        if not torch.equal(rounded, weight):
            weight.copy_(rounded)
            changed = True
    return changed


@contextmanager
def _widened(model: nn.Module) -> Iterator[None]:
    """Inside, every weight is fp32: of the transformer one layer at a time, so that no second model is needed."""
    layers = list(model.get_submodule("language_model.model.layers").children())
    inner = {id(parameter) for layer in layers for parameter in layer.parameters()}
    unused = ("vit_model.", "connector.", "vit_pos_embed.")  # no picture is seen
    outer = [p for name, p in model.named_parameters() if id(p) not in inner and not name.startswith(unused)]
    kept: dict[nn.Module, list[tuple[nn.Parameter, Tensor]]] = {}

    def enter(layer: nn.Module, given: object) -> None:
        kept[layer] = _widen(layer.parameters())

    def leave(layer: nn.Module, given: object, answer: object) -> None:
        _restore(kept.pop(layer))

    hooks = [layer.register_forward_pre_hook(enter) for layer in layers]
    hooks += [layer.register_forward_hook(leave) for layer in layers]
    narrow = _widen(outer)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for left in (*kept.values(), narrow):
            _restore(left)


def _widen(parameters: Iterable[nn.Parameter]) -> list[tuple[nn.Parameter, Tensor]]:
    kept = [(parameter, parameter.data) for parameter in parameters if parameter.dtype.itemsize < 4]
    for parameter, data in kept:
        parameter.data = data.float()
    return kept


def _restore(kept: list[tuple[nn.Parameter, Tensor]]) -> None:
    for parameter, data in kept:
        parameter.data = data


def _relative(ours: Tensor, theirs: Tensor) -> float:
    gap, size = float((ours - theirs).norm()), float(ours.norm())
    return gap / size if size > 0 else (0.0 if gap == 0 else float("inf"))
