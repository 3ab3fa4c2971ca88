"""Check this BAGEL against a folder of reference numbers of the original code (layout: tests/golden/bagel_a/README.md).

Each check yields one line: the group, its largest absolute error, and the tolerance. What needs the vision tower is
listed as skipped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from unigrpo import flow
from unigrpo.models.bagel.autoencoder import patchify, unpatchify
from unigrpo.models.bagel.cache import Cache
from unigrpo.models.bagel.checkpoint import load_weights, read_weights
from unigrpo.models.bagel.config import BagelConfig
from unigrpo.models.bagel.packing import pack
from unigrpo.models.bagel.policy import BagelPolicy
from unigrpo.models.bagel.transformer import Bagel
from unigrpo.policy import ReplayItem, VelocityQuery
from unigrpo.trajectory import Image, Text

TOLERANCE, TEXT_TOLERANCE, GUIDED_TOLERANCE = 1e-4, 2e-4, 3e-4
NEEDS_VISION = ("edit", "vit", "und", "train sample 1", "train gradients")


@dataclass(frozen=True)
class Check:
    """One line of the report; ``error`` is the largest absolute difference (inf: shapes or ids differ)."""

    group: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance (NaN is not)."""
        return self.error <= self.tolerance


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference; inf when the shapes differ, NaN when a value is."""
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours.detach().double() - theirs.double()).abs().max()) if theirs.numel() else 0.0


def read_config(values: dict[str, Any]) -> BagelConfig:
    """The folder's config.json (a format of its own) as a BagelConfig."""
    llm, tokens = values["llm_config"], values["special_tokens"]
    return BagelConfig(
        vocab_size=llm["vocab_size"],
        hidden_size=llm["hidden_size"],
        intermediate_size=llm["intermediate_size"],
        num_layers=llm["num_hidden_layers"],
        num_heads=llm["num_attention_heads"],
        num_kv_heads=llm["num_key_value_heads"],
        rms_norm_eps=llm["rms_norm_eps"],
        rope_theta=llm["rope_theta"],
        latent_channels=values["vae_config"]["z_channels"],
        vae_downsample=values["vae_config"]["downsample"],
        latent_patch_size=values["latent_patch_size"],
        max_latent_size=values["max_latent_size"],
        bos_token_id=tokens["bos_token_id"],
        eos_token_id=tokens["eos_token_id"],
        vision_start_id=tokens["start_of_image"],
        vision_end_id=tokens["end_of_image"],
        image_size=(values["image_hw"][0], values["image_hw"][1]),
    )


class Golden:
    """A reference folder, its model, and the contexts that the checks share."""

    def __init__(self, folder: Path) -> None:
        names = ("config.json", "weights.safetensors", "golden.safetensors")
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise ValueError(f"{folder} is not a parity folder: it has no {', '.join(missing)}")
        try:
            self.values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            config = read_config(self.values)
            self.num_points, self.shift = int(self.values["num_timesteps"]), float(self.values["timestep_shift"])
            self.first_length = int(self.values["meta"]["train_sample_lens"][0])
        except (KeyError, IndexError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{folder / 'config.json'} is not a parity config: {error!r}") from error
        self.data = read_weights(folder / "golden.safetensors")
        model = Bagel(config)
        source = str(folder / "weights.safetensors")
        self.dropped = load_weights(model, read_weights(folder / "weights.safetensors"), source)
        self.policy = BagelPolicy(model.eval(), None, None)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.data:
            raise ValueError(f"golden.safetensors has no tensor {name!r}")
        return self.data[name]

    def text(self, name: str, *, target: bool = False) -> Text:
        """A given text of the folder."""
        return Text(self[f"t2i.{name}_ids"], target=target)

    @cached_property
    def prompt(self) -> tuple[Text, Text]:
        """[system] [prompt]."""
        return self.text("system"), self.text("prompt")

    @cached_property
    def full(self) -> Cache:
        """The context that the image sees: [system] [prompt] [think]."""
        return self.policy.prefill([(*self.prompt, self.text("think"))])

    @cached_property
    def guidance_contexts(self) -> tuple[Cache, Cache]:
        """Text-unconditional [system] and image-unconditional [system] [prompt]."""
        return self.policy.prefill([self.prompt[:1]]), self.policy.prefill([self.prompt])

    def velocity(self, context: Cache, x: Tensor, t: float) -> Tensor:
        """One velocity [n, d] of one image [n, d]."""
        return self.policy.velocity(context, x[None], torch.tensor([t]))[0]

    def guided(
        self, x: Tensor, t: float, text_scale: float, image_scale: float, renorm: flow.Renorm, renorm_min: float
    ) -> Tensor:
        """A guided velocity in the thinking context."""
        text, image = self.guidance_contexts
        return flow.guided_velocity(
            self.velocity(self.full, x, t)[None],
            self.velocity(text, x, t)[None],
            self.velocity(image, x, t)[None],
            text_scale=text_scale,
            image_scale=image_scale,
            renorm=renorm,
            renorm_min=renorm_min,
        )[0]


def cache_error(golden: Golden, cache: Cache, name: str) -> float:
    """Largest error of keys and values over the filled slots of row 0 (reference layout: layers, slots, heads, d)."""
    ours = [cache.layer(index) for index in range(golden.policy.config.num_layers)]
    filled = cache.valid[0]
    worst = 0.0
    for position, kind in enumerate(("keys", "values")):
        stacked = torch.stack([layer[position][0][:, filled].transpose(0, 1) for layer in ours if layer is not None])
        worst = max(worst, difference(stacked, golden[f"t2i.{name}.{kind}"]))
    return worst


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
    after_prompt = golden.policy.prefill([golden.prompt])
    yield Check("t2i cache after prompt", cache_error(golden, after_prompt, "kv_after_prompt"), TOLERANCE)
    yield Check("t2i cache after think (prefilled)", cache_error(golden, golden.full, "kv_final"), TOLERANCE)
    yield Check("t2i cache after think (decoded)", cache_error(golden, decode(golden)[1], "kv_final"), TOLERANCE)


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
    yield Check("t2i euler timesteps", difference(torch.tensor(times[:-1]), golden["t2i.euler.timesteps"]), TOLERANCE)
    for guided, tolerance in ((False, TOLERANCE), (True, GUIDED_TOLERANCE)):
        x, xs, vs = golden["t2i.noise"], [], []
        for t, t_next in pairwise(times):
            active = guided and 0.4 < t <= 1.0
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
    table = model.latent_pos_embed(golden.policy.places(torch.device("cpu")))
    yield Check("unit position table", difference(table, golden["unit.latent_pos_embed"]), TOLERANCE)


def packed(golden: Golden) -> Iterator[Check]:
    """The packed training forward of sample 0: hidden states, CE and velocity of its noise tokens."""
    policy, n = golden.policy, golden.policy.spec.num_tokens
    size = golden.first_length
    latents = _first_latents(golden)
    t = golden["train.shifted_timesteps"][0]
    x = flow.interpolate(latents[None], golden["train.noise"][None, :n], t.reshape(1)).float()
    segments = (*golden.prompt, golden.text("think", target=True), Image(latents, policy.spec.grid))
    items = pack([ReplayItem(segments, (VelocityQuery(3, x, t.reshape(1)),))], policy.config, policy.model.device)
    assert items.noise is not None
    (text, _), (markers, image) = policy.model([items.context, items.noise])
    hidden = torch.cat([text[0], markers[0, :1], image[0], markers[0, 1:]])
    yield Check(
        "train hidden states (sample 0)", difference(hidden, golden["train.out.last_hidden_state"][:size]), TOLERANCE
    )
    where = golden["train.ce_loss_indexes"]
    count = int((where < size).sum())
    log_p = policy.model.logits(hidden[where[:count]]).log_softmax(-1)
    ce = -log_p.gather(1, golden["train.packed_label_ids"][:count, None])[:, 0]
    yield Check("train CE (sample 0)", difference(ce, golden["train.out.ce"][:count]), TEXT_TOLERANCE)
    v = policy.model.velocity_head(image[0])
    yield Check("train velocity (sample 0)", difference(v, golden["train.out.velocity_pred"][:n]), TOLERANCE)
    squared = (v - (golden["train.noise"][:n] - latents)).square()
    yield Check("train squared error (sample 0)", difference(squared, golden["train.out.mse"][:n]), TOLERANCE)


def _first_latents(golden: Golden) -> Tensor:
    rows, columns = golden.policy.spec.grid
    p = golden.policy.config.latent_patch_size
    return patchify(golden["train.padded_latent"][:1, :, : rows * p, : columns * p], p)[0]


CHECKS: tuple[Callable[[Golden], Iterator[Check]], ...] = (
    thinking,
    caches,
    velocities,
    euler,
    guidance,
    plain,
    unit,
    packed,
)


@torch.no_grad()
def run(folder: Path) -> tuple[list[Check], list[str]]:
    """All checks of a folder, and the weights that were left out (the vision tower's)."""
    golden = Golden(folder)
    return [check for group in CHECKS for check in group(golden)], golden.dropped
