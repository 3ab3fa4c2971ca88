"""Parity of what is seen: the vision tower, editing (a clean picture and its view before the prompt), understanding."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from unigrpo import flow
from unigrpo.models.bagel.autoencoder import patchify
from unigrpo.models.bagel.vision import grid_of, patches_of, positions
from unigrpo.tools.parity.golden import GUIDED_TOLERANCE, TEXT_TOLERANCE, TOLERANCE, Check, Golden, difference
from unigrpo.trajectory import Image, View


def view(golden: Golden, name: str = "edit.vit_pixels") -> View:
    """One of the folder's small pictures, as the vision tower sees it."""
    config, pixels = golden.policy.config.vision, golden[name]
    assert config is not None
    return View(patches_of(pixels, config), grid_of(pixels.shape[1], pixels.shape[2], config))


def source(golden: Golden) -> Image:
    """The picture that is edited, as latents."""
    latents = patchify(golden["edit.src_latent"], golden.policy.config.latent_patch_size)[0]
    return Image(latents, golden.policy.config.grid_of(golden.edit_size))


def vision(golden: Golden) -> Iterator[Check]:
    """Patches, positions, the tower's output, and what the language model reads."""
    model, config, seen = golden.policy.model, golden.policy.config.vision, view(golden)
    assert config is not None
    yield Check("vit patches", difference(seen.patches, golden["vit.patches"]), TOLERANCE)
    places = positions(seen.grid, config.max_patches_per_side, seen.patches.device)
    yield Check("vit positions", difference(places, golden["vit.position_ids"]), 0)
    (out,) = model.vit_model([(seen.patches, seen.grid)])
    yield Check("vit output", difference(out, golden["vit.out"]), TOLERANCE)
    connected = model.see([(seen.patches, seen.grid)])
    yield Check("vit connected", difference(connected, golden["vit.connected"]), TOLERANCE)


def editing(golden: Golden) -> Iterator[Check]:
    """Context [clean latents] [view] [prompt]: the cache, velocities, and guidance on both branches."""
    policy = golden.policy.at_size(golden.edit_size)
    picture = (source(golden), view(golden))
    shown = policy.prefill([picture])
    yield Check("edit cache after image", golden.cache_error(shown, picture, "edit.kv_after_image"), TOLERANCE)
    full = policy.prefill([(*picture, golden.text("prompt"))])
    words, noise = policy.prefill([(golden.text("prompt"),)]), golden["edit.noise"]
    plain, guided = [], []
    for t in (1.0, 0.5):
        v, v_text, v_image = (golden.velocity(context, noise, t, policy)[None] for context in (full, shown, words))
        plain.append(v[0])
        mixed = flow.guided_velocity(v, v_text, v_image, text_scale=4.0, image_scale=2.0, renorm="text_channel")
        guided.append(mixed[0])
    yield Check("edit velocities", difference(torch.stack(plain), golden["edit.v_nocfg"]), TOLERANCE)
    theirs = golden["edit.v_cfg_text4_img2_text_channel"]
    yield Check("edit cfg text_channel", difference(torch.stack(guided), theirs), GUIDED_TOLERANCE)


def understanding(golden: Golden) -> Iterator[Check]:
    """Context [view] [prompt]: the answer's greedy ids and logits."""
    policy, expected = golden.policy, golden["und.ids"]
    cache = policy.prefill([(view(golden), golden.text("prompt"))])
    here = torch.ones(1, dtype=torch.bool)
    logits = torch.cat([policy.feed(cache, token[None], here) for token in expected])
    yield Check("und logits", difference(logits, golden["und.logits"]), TEXT_TOLERANCE)
    bos = torch.tensor([policy.config.bos_token_id])
    ids = torch.cat([bos, logits.argmax(-1)[:-1]])
    yield Check("und ids (wrong ids)", float((ids != expected).sum()), 0)
