"""A policy enters its model by the listed doors alone, since a sharded model has its weights only behind them."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from small_models import TRAINING, sample, small_policy
from unigrpo.models.bagel.transformer import BagelModel
from unigrpo.training.replay import Batch, replay


class Watched(TorchDispatchMode):
    """Notes operations on weights outside of a door."""

    def __init__(self, model):
        super().__init__()
        self.weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.inside, self.outside = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        touched = [a for a in args if isinstance(a, torch.Tensor) and a.untyped_storage().data_ptr() in self.weights]
        if touched and not self.inside:
            self.outside.add(str(func))
        return func(*args, **(kwargs or {}))


def test_weights_are_only_used_behind_the_front_doors(monkeypatch):
    policy = small_policy()
    watched = Watched(policy.model)

    def door(plain):
        def entered(*args, **kwargs):
            watched.inside += 1
            try:
                return plain(*args, **kwargs)
            finally:
                watched.inside -= 1

        return entered

    for name in BagelModel.FRONT_DOORS:
        monkeypatch.setattr(policy.model, name, door(policy.model.__getattribute__(name)))
    with watched, torch.no_grad():
        drawn = sample(policy, sampling=TRAINING, group_size=2)
        replay(policy, Batch(drawn, [() for _ in drawn]), 1.0)
    assert not watched.outside
    with watched:
        policy.model.llm2vae(torch.zeros(1, policy.config.latent_dim * 2)[:, : policy.config.hidden_size])
    assert watched.outside  # the watch sees what goes around them
