"""Small random models that look at what they drew: with a vision tower, with latents alone, and the tiny BAGEL."""

from dataclasses import replace

import torch

from small_models import normal, randomise, small_policy
from unigrpo.models.bagel.autoencoder import ConvAutoencoder, ConvAutoencoderConfig
from unigrpo.models.bagel.config import VisionConfig
from unigrpo.models.bagel.transformer import BagelModel
from unigrpo.models.bagel_files.pretrained import Bagel
from unigrpo.models.bagel_files.tokenizer import word_tokenizer
from unigrpo.models.micro import SPECIAL_WORDS, micro_config
from unigrpo.policy import ReplayItem, VelocityQuery
from unigrpo.rollout.engine import RandomKeys, Sampling, rollout
from unigrpo.rollout.episode import rounds_of
from unigrpo.tools.tiny_bagel import make_tiny_bagel
from unigrpo.trajectory import Prompt, is_drawing
from unigrpo.worlds.shapes import vocabulary

SAMPLING = Sampling(num_points=5, shift=4.0, window=(0, 3), window_size=2, noise_level=0.8, max_think_tokens=6)


def seeing_policy(*, image_size=(32, 16)):
    """A micro BAGEL with a vision tower of two layers."""
    autoencoder = ConvAutoencoder(ConvAutoencoderConfig(width=4, groups=2))
    randomise(autoencoder, 1)
    words = [*SPECIAL_WORDS, *vocabulary()]
    config = micro_config(len(words), autoencoder, hidden_size=32, num_layers=2)
    vision = VisionConfig(24, 40, 2, 2, image_size=40, patch_size=4, max_patches_per_side=10)
    model = BagelModel(replace(config, image_size=image_size, vision=vision))
    randomise(model, 0)
    return Bagel(model, word_tokenizer(words), autoencoder.requires_grad_(False))


def tiny_policy(folder):
    """The tiny BAGEL with smaller tables of places, so that a picture of 64 x 32 is looked at as 128 x 64 and not as
    1024 x 512."""
    whole = Bagel.load(make_tiny_bagel(folder).folder, image_size=(64, 32))
    assert whole.config.vision is not None
    vision = replace(whole.config.vision, max_patches_per_side=8, image_size=8 * whole.config.vision.patch_size)
    model = BagelModel(replace(whole.config, max_latent_size=8, vision=vision, image_size=(64, 32)))
    state = whole.model.state_dict()
    place = "vit_model.vision_model.embeddings.position_embedding.weight"
    own = {n: v for n, v in state.items() if "pos_embed" not in n and n != place} | {place: state[place][:64]}
    model.load_state_dict(own, strict=False)
    return Bagel(model.float(), whole.tokenizer, whole.autoencoder, image_size=(64, 32))


def policy_of(kind, folder):
    return {"latents": small_policy, "tower": seeing_policy}[kind]() if kind != "tiny" else tiny_policy(folder)


def some_prompts(count=2):
    return [Prompt(position, text) for position, text in enumerate(("a red circle", "two blue squares")[:count])]


def in_rounds(policy, count=2, *, some=None, sampling=SAMPLING, group_size=2, seed=0, first_sample=0, **episode):
    turns = rounds_of(count, **{"think": True, **episode})
    chosen = some_prompts() if some is None else some
    keys = RandomKeys(seed, 0)
    return rollout(policy, turns, chosen, sampling, group_size=group_size, keys=keys, first_sample=first_sample)


def item_of(trajectory):
    """What a replay is asked of a trajectory: the SDE steps of every drawing."""
    asked = [(i, s.path) for i, s in enumerate(trajectory.segments) if is_drawing(s)]
    return ReplayItem(trajectory.segments, tuple(VelocityQuery(i, path.x, path.t) for i, path in asked if path))


def picture(height=40, width=64, seed=0):
    numbers = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=numbers)


__all__ = ["SAMPLING", "in_rounds", "item_of", "normal", "picture", "policy_of", "seeing_policy", "some_prompts"]
