"""Check this BAGEL against a folder of reference numbers of the original code (layout: tests/golden/bagel_a/README.md).

Each check yields one line: the group, its largest error, and the tolerance. The checks of pictures that are seen are in
``parity_seeing``, those of the packed training forward and its gradients in ``parity_training``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from unigrpo import flow
from unigrpo.models.bagel.autoencoder import unpatchify
from unigrpo.models.bagel.cache import Cache
from unigrpo.tools.parity.autoencoder import is_vae_folder
from unigrpo.tools.parity.autoencoder import run as run_vae
from unigrpo.tools.parity.golden import GUIDED_TOLERANCE, TEXT_TOLERANCE, TOLERANCE, Check, Golden, difference
from unigrpo.tools.parity.seeing import editing, understanding, vision
from unigrpo.tools.parity.training import training


def decode(golden: Golden) -> tuple[Tensor, Cache]:
    """Teacher-forced decoding: logits after bos and each think id, and the cache with the end token fed."""
    policy, config = golden.policy, golden.policy.config
    cache = policy.prefill([golden.prompt])
    here = torch.ones(1, dtype=torch.bool)
    ids = [config.bos_token_id, *golden["t2i.think_ids"].tolist()]
    logits = torch.cat([policy.feed(cache, torch.tensor([i]), here) for i in ids])
    policy.feed(cache, torch.tensor([config.eos_token_id]), here)
    return logits, cache


def thinking(golden: Golden) -> Iterator[Check]:
    """Greedy ids, and the logits and log-probs that chose them."""
    expected = golden["t2i.think_argmax"]
    context = golden.policy.prefill([golden.prompt])
    (text,), _ = golden.policy.think(context, uniforms=torch.zeros(1, expected.shape[0]), temperature=0.0)
    ended = [golden.policy.config.eos_token_id] if text.ended else []
    ids = torch.cat([text.ids, torch.tensor(ended, dtype=torch.int64)])
    yield Check(
        "t2i think ids (wrong ids)", float("inf") if ids.shape != expected.shape else float((ids != expected).sum()), 0
    )
    logits, _ = decode(golden)
    log_probs = logits.log_softmax(-1)
    yield Check("t2i think logits", difference(logits, golden["t2i.think_logits"]), TEXT_TOLERANCE)
    yield Check("t2i think log-probs", difference(log_probs, golden["t2i.think_logprobs"]), TEXT_TOLERANCE)
    if text.log_probs is not None and ids.shape == expected.shape:
        chosen = golden["t2i.think_logprobs"].gather(1, expected[:, None])[:, 0]
        yield Check("t2i think log-probs (as sampled)", difference(text.log_probs, chosen), TEXT_TOLERANCE)


def caches(golden: Golden) -> Iterator[Check]:
    """Keys and values after the prompt, after re-prefilled thinking, and as decoding leaves them."""
    whole = (*golden.prompt, golden.text("think"))
    for label, cache, context, name in (
        ("prompt", golden.policy.prefill([golden.prompt]), golden.prompt, "kv_after_prompt"),
        ("think (prefilled)", golden.full, whole, "kv_final"),
        ("think (decoded)", decode(golden)[1], whole, "kv_final"),
    ):
        yield Check(f"t2i cache after {label}", golden.cache_error(cache, context, f"t2i.{name}"), TOLERANCE)


def velocities(golden: Golden) -> Iterator[Check]:
    """Velocities without guidance."""
    times = golden["t2i.v_timesteps"].tolist()
    ours = torch.stack([golden.velocity(golden.full, golden["t2i.noise"], t) for t in times])
    yield Check("t2i velocities", difference(ours, golden["t2i.v_nocfg"]), TOLERANCE)
    ours = torch.stack([golden.velocity(golden.full, golden["t2i.x_alt"], t) for t in (0.8, 0.2)])
    yield Check("t2i velocities (other latent)", difference(ours, golden["t2i.v_nocfg_alt"]), TOLERANCE)


def euler(golden: Golden) -> Iterator[Check]:
    """The whole ODE, without guidance and with (text 4, image 1.5, interval [0.4, 1], global)."""
    times = flow.timesteps(golden.num_points, golden.shift).tolist()
    inside = flow.guided_steps(golden.num_points, golden.shift, (0.4, 1.0))
    yield Check("t2i euler timesteps", difference(torch.tensor(times[:-1]), golden["t2i.euler.timesteps"]), TOLERANCE)
    for guided, tolerance in ((False, TOLERANCE), (True, GUIDED_TOLERANCE)):
        x, xs, vs = golden["t2i.noise"], [], []
        for (t, t_next), active in zip(pairwise(times), (guided and step for step in inside), strict=True):
            v = golden.guided(x, t, 4.0, 1.5, "global", 0.0) if active else golden.velocity(golden.full, x, t)
            xs.append(x)
            vs.append(v)
            x = flow.ode_step(x[None], v[None], t, t_next)[0]
        name = "t2i.cfg.euler" if guided else "t2i.euler"
        label = "t2i cfg euler" if guided else "t2i euler"
        yield Check(f"{label} velocities", difference(torch.stack(vs), golden[f"{name}.v"]), tolerance)
        yield Check(f"{label} final", difference(x, golden[f"{name}.final"]), tolerance)
        if not guided:
            yield Check("t2i euler latents", difference(torch.stack(xs), golden["t2i.euler.x"]), tolerance)
            image = unpatchify(x[None], golden.policy.spec.grid, golden.policy.config.latent_patch_size)
            yield Check("t2i euler latent image", difference(image, golden["t2i.euler.final_latent_image"]), tolerance)


def guidance(golden: Golden) -> Iterator[Check]:
    """Guidance of three kinds at t = 0.9 and 0.5."""
    for renorm in get_args(flow.Renorm):
        for image_scale, renorm_min in ((1, 0.0), (2, 0.3)):
            ours = [
                golden.guided(golden["t2i.noise"], t, 4.0, float(image_scale), renorm, renorm_min) for t in (0.9, 0.5)
            ]
            theirs = golden[f"t2i.cfg.{renorm}.v_text4_img{image_scale}"]
            yield Check(
                f"t2i cfg {renorm} image {image_scale}", difference(torch.stack(ours), theirs), GUIDED_TOLERANCE
            )


def plain(golden: Golden) -> Iterator[Check]:
    """Without thinking: context [prompt]; guidance against the empty context at rope 0."""
    context, empty = golden.policy.prefill([(golden.text("prompt"),)]), golden.policy.prefill([()])
    noise = golden["t2i.noise"]
    ours, guided = [], []
    for t in (1.0, 0.4):
        v, v_text = golden.velocity(context, noise, t), golden.velocity(empty, noise, t)
        ours.append(v)
        guided.append(flow.guided_velocity(v[None], v_text[None], text_scale=4.0, renorm="global")[0])
    yield Check("plain velocities", difference(torch.stack(ours), golden["plain.v"]), TOLERANCE)
    yield Check("plain cfg 4 global", difference(torch.stack(guided), golden["plain.v_cfg4_global"]), GUIDED_TOLERANCE)


def unit(golden: Golden) -> Iterator[Check]:
    """The time embedder and the position table alone."""
    model = golden.policy.model
    yield Check(
        "unit time embedding",
        difference(model.time_embedder(golden["unit.time_in"]), golden["unit.time_embed"]),
        TOLERANCE,
    )
    places = golden.policy.places(torch.device("cpu"))
    yield Check(
        "unit position table", difference(model.latent_pos_embed(places), golden["unit.latent_pos_embed"]), TOLERANCE
    )
    yield Check("t2i pack rows of the table", difference(places, golden["t2i.pack.packed_vae_position_ids"]), 0)
    rope = golden["t2i.pack.packed_position_ids"]
    yield Check("t2i pack rope position", difference(golden.full.rope.expand(len(rope)), rope), 0)


CHECKS: tuple[Callable[[Golden], Iterator[Check]], ...] = (
    thinking,
    caches,
    velocities,
    euler,
    guidance,
    plain,
    unit,
    vision,
    editing,
    understanding,
)


def run(folder: Path) -> list[Check]:
    """All checks of a folder of reference numbers: a model's, or an autoencoder's."""
    if is_vae_folder(folder):
        return run_vae(folder)
    golden = Golden(folder)
    with torch.no_grad():
        checks = [check for group in CHECKS for check in group(golden)]
    return [*checks, *training(golden)]
