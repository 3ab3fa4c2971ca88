"""Small random models and batches that the tests of models, rollouts, rewards and evaluation share."""

import math
from contextlib import contextmanager
from dataclasses import replace

import torch

from unigrpo.models.bagel.autoencoder import ConvAutoencoder, ConvAutoencoderConfig
from unigrpo.models.bagel.transformer import BagelModel, PositionTable
from unigrpo.models.bagel_files.pretrained import Bagel
from unigrpo.models.bagel_files.tokenizer import word_tokenizer
from unigrpo.models.micro import SPECIAL_WORDS, micro_config
from unigrpo.policy import ReplayItem, VelocityQuery
from unigrpo.rollout.engine import RandomKeys, Sampling, rollout
from unigrpo.rollout.episode import single_round
from unigrpo.trajectory import Image, Prompt, Text
from unigrpo.worlds.shapes import PromptStream, vocabulary

TRAINING = Sampling(num_points=7, shift=4.0, window=(0, 5), window_size=3, noise_level=0.8, max_think_tokens=8)
EVALUATION = Sampling(num_points=5, shift=4.0, max_think_tokens=6)
EOS = 1


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def randomise(module, seed):
    """Every parameter random and none trivial: norm weights differ from 1, biases and the velocity head from 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if "pos_embed" in name:
            continue
        draws = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(draws if "embed_tokens" in name else draws / math.sqrt(parameter[0].numel()))
        else:
            parameter.copy_((0.0 if name.endswith("bias") else 1.0) + 0.2 * draws)


def small_policy(*, seed=0, image_size=(32, 16), hidden_size=32, num_layers=2):
    """A micro BAGEL with random weights: 4 x 2 latent tokens of 16 numbers, and the words of the shapes world."""
    autoencoder = ConvAutoencoder(ConvAutoencoderConfig(width=4, groups=2))
    randomise(autoencoder, seed + 1)
    words = [*SPECIAL_WORDS, *vocabulary()]
    config = micro_config(len(words), autoencoder, hidden_size=hidden_size, num_layers=num_layers)
    model = BagelModel(replace(config, image_size=image_size))
    randomise(model, seed)
    return Bagel(model, word_tokenizer(words), autoencoder.requires_grad_(False))


def position_table(policy):
    return next(m for m in policy.model.modules() if isinstance(m, PositionTable))


def favour(monkeypatch, policy, token, bonus):
    """Make a token likelier (or never drawn, with a bonus of -inf) in everything that reads logits."""
    plain, extra = policy.model.head, torch.zeros(policy.config.vocab_size)
    extra[token] = bonus
    monkeypatch.setattr(policy.model, "head", lambda hidden: plain(hidden) + extra)


def text(*ids, **options):
    return Text(torch.tensor(ids, dtype=torch.int64), **options)


def mixed_items(policy, *, target=True):
    """Replay items of different lengths and shapes: with and without thinking, up to three velocities, a text alone."""
    n, d = policy.spec.num_tokens, policy.spec.latent_dim
    image = Image(normal(n, d, seed=5), policy.spec.grid)

    def item(segments, copies, seed):
        x, t = normal(copies, n, d, seed=seed), torch.linspace(1.0, 0.2, copies, dtype=torch.float64)
        return ReplayItem(segments, (VelocityQuery(len(segments) - 1, x, t),))

    return [
        item((text(4, 5), text(7, 8, 9), text(10, 11, 12, 13, target=target), image), 3, 1),
        item((text(4, 5), text(6), text(20, target=target), image), 3, 2),
        item((text(9, 8, 7, 6, 5, 4, 10), image), 1, 3),
        ReplayItem((text(4, 5), text(30, 31, target=target, ended=False))),
        item((image,), 2, 4),
        item((image, text(14, 15), text(16, target=target), image), 2, 6),
    ]


def prompts(count=2, start=0):
    return [PromptStream("train", 0).at(start + index) for index in range(count)]


def sample(policy, some=None, *, sampling=TRAINING, group_size=3, seed=0, iteration=0, think=True, **options):
    chosen = prompts() if some is None else some
    draws = RandomKeys(seed, iteration)
    return rollout(policy, single_round(think=think), chosen, sampling, group_size=group_size, keys=draws, **options)


def numbered(count, **metadata):
    return [Prompt(index, f"prompt {index}", metadata) for index in range(count)]


@contextmanager
def counted_forwards(policy):
    """Count the calls of the transformer: yields a list with one entry (number of blocks) per forward."""
    calls = []
    handle = policy.model.register_forward_pre_hook(lambda module, given: calls.append(len(given[0])))
    try:
        yield calls
    finally:
        handle.remove()


def gradients(policy):
    return {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None}


def relative(ours, theirs):
    """Relative L2 error of a tensor."""
    return float((ours - theirs).detach().norm() / theirs.detach().norm().clamp_min(1e-30))


def largest(ours, theirs):
    assert ours.shape == theirs.shape
    return float((ours - theirs).detach().abs().max()) if ours.numel() else 0.0
