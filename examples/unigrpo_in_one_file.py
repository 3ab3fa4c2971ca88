"""UniGRPO in one file: a model thinks, then draws, and one reward trains both (arXiv 2603.23500).

    J = J_Text + λ J_Flow            (eq. 7: one advantage per sample, for its tokens and for its denoising steps)

The toy world (prompts, judge) and the seeds are the library's, and a test finds the same losses, gradients and weights.

    python examples/unigrpo_in_one_file.py [--iterations 150] [--model FOLDER]

Shapes: B = P prompts x G samples; S tokens read, T of them thinking; C channels; an image x is n latent tokens of d
numbers, D = n d; M grid points t, from noise (1) to data (0); K of the steps between them are stochastic.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from unigrpo import seeds
from unigrpo.worlds.shapes import PromptStream, verify


@dataclass(frozen=True)
class Settings:
    """The numbers of recipes/shapes/unigrpo.yaml."""

    seed: int = 0
    prompts: int = 16  # P
    group_size: int = 6  # G
    num_points: int = 9  # M
    shift: float = 4.0
    window: tuple[int, int] = (0, 5)
    window_size: int = 3  # K
    noise_level: float = 0.8  # a
    temperature: float = 1.0
    max_think_tokens: int = 32
    lambda_flow: float = 1.0  # λ
    clip_text: float = 0.2  # ε
    kl_weight: float = 0.1  # β
    clip_flow: float = 3.2e-5  # ε: 5.12e-4 / √D, which is the paper's 1e-6 at its D = 262,144; here D = 256
    mse_weight: float = 0.003  # w
    advantage_epsilon: float = 1e-4
    advantage_clip: float = 5.0
    lr_reasoning: float = 3e-4
    lr_denoising: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    eps_reasoning: float = 1e-8
    eps_denoising: float = 1e-15
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    ppo_epochs: int = 2


# ---- 1. The model, a mixture of transformers (BAGEL): each layer has its weights twice, for an expert of words and an
# ---- expert of latents, and all tokens meet in one attention. A stream is {expert: its tokens [B, ., C]}.
UND, GEN = "", "_moe_gen"  # the experts, as the suffixes of their weights' names


@dataclass
class Context:
    """What B rows have read: S slots, some of them empty, and what every layer keeps of them."""

    ids: Tensor  # int64 [B, S]
    held: Tensor  # bool [B, S]: the slots that hold a token
    cache: list[tuple[Tensor, Tensor]]  # per layer: keys and values [B, kv heads, S, C / heads]


class Model:
    """Thinks with one expert, draws with the other; the weights are a dictionary, by their public names."""

    def __init__(self, folder: Path, *, trainable: bool) -> None:
        self.config = c = SimpleNamespace(**json.loads((folder / "config.json").read_text()))
        self.words = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
        self.weights = load_file(folder / "model.safetensors")
        for name, weight in self.weights.items():
            weight.requires_grad_(trainable and name != "latent_pos_embed.pos_embed")
        self.decoder, self.shift, self.scale = load_decoder(folder)
        self.grid = [side // (c.vae_downsample * c.latent_patch_size) for side in c.image_size]  # rows, columns
        self.image = (self.grid[0] * self.grid[1], c.latent_patch_size**2 * c.latent_channels)  # n, d

    def expert(self, *, draws: bool) -> list[Tensor]:
        """The trained weights of the denoising or of the reasoning expert, with what only that one uses."""
        own = (GEN, "vae2llm.", "llm2vae.", "time_embedder.")
        return [w for n, w in self.weights.items() if w.requires_grad and draws == any(part in n for part in own)]

    def linear(self, name: str, x: Tensor) -> Tensor:
        """W x + b."""
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def norm(self, name: str, x: Tensor) -> Tensor:
        """w x / √(mean(x²) + ε)."""
        return F.rms_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.config.rms_norm_eps)

    def mlp(self, name: str, x: Tensor) -> Tensor:
        """down(silu(gate x) · up x)."""
        gate, up = (self.linear(f"{name}.{part}_proj", x) for part in ("gate", "up"))
        return self.linear(f"{name}.down_proj", F.silu(gate) * up)

    def heads(self, attention: str, part: str, expert: str, x: Tensor) -> Tensor:
        """q, k or v of every head, [B, L, heads, C / heads]; q and k are normed."""
        out = self.linear(f"{attention}.{part}_proj{expert}", x)
        out = out.unflatten(-1, (-1, self.config.hidden_size // self.config.num_heads))
        return out if part == "v" else self.norm(f"{attention}.{part}_norm{expert}", out)

    def forward(self, stream: dict[str, Tensor], position: Tensor, mask: Tensor, cache: list) -> tuple[dict, list]:
        """h ← h + attention(norm(h)), h ← h + mlp(norm(h)) for L new tokens; mask [B, L, S + L] is who sees whom."""
        sizes, theta, longer = [h.shape[1] for h in stream.values()], self.config.rope_theta, []
        for index, (old_k, old_v) in enumerate(cache):
            layer = f"language_model.model.layers.{index}"
            x = {e: self.norm(f"{layer}.input_layernorm{e}", h) for e, h in stream.items()}
            q, k, v = (torch.cat([self.heads(f"{layer}.self_attn", part, e, x[e]) for e in x], 1) for part in "qkv")
            q, k, v = (u.transpose(1, 2) for u in (rotate(q, position, theta), rotate(k, position, theta), v))
            k, v = torch.cat([old_k, k], 2), torch.cat([old_v, v], 2)
            longer.append((k, v))
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None], enable_gqa=True)
            parts = zip(stream.items(), mixed.transpose(1, 2).flatten(2).split(sizes, 1), strict=True)
            stream = {e: h + self.linear(f"{layer}.self_attn.o_proj{e}", part) for (e, h), part in parts}
            x = {e: self.norm(f"{layer}.post_attention_layernorm{e}", h) for e, h in stream.items()}
            stream = {e: h + self.mlp(f"{layer}.mlp{e}", x[e]) for e, h in stream.items()}
        return {e: self.norm(f"language_model.model.norm{e}", h) for e, h in stream.items()}, longer

    def embed(self, ids: Tensor) -> Tensor:
        """Words, [B, L] -> [B, L, C]."""
        return F.embedding(ids, self.weights["language_model.model.embed_tokens.weight"])

    def embed_image(self, x: Tensor, t: Tensor) -> Tensor:
        """Latents x [B, n, d] at times t [B] -> [B, n, C]: content + MLP(waves of t, f_j = 10⁴^(-j / 128)) + place."""
        angle = t.float()[:, None, None] * 1e4 ** -(torch.arange(128) / 128)
        moment = self.linear("time_embedder.mlp.0", torch.cat([angle.cos(), angle.sin()], -1))
        table = self.weights["latent_pos_embed.pos_embed"].unflatten(0, (self.config.max_latent_size, -1))
        place = table[: self.grid[0], : self.grid[1]].flatten(0, 1)
        return self.linear("vae2llm", x) + self.linear("time_embedder.mlp.2", F.silu(moment)) + place

    def nothing(self, batch: int) -> Context:
        """What B rows have read at the beginning."""
        c, none = self.config, torch.zeros((batch, 0), dtype=torch.int64)
        empty = torch.zeros((batch, c.num_kv_heads, 0, c.hidden_size // c.num_heads))
        return Context(none, none.bool(), [(empty, empty)] * c.num_layers)

    def read(self, context: Context, ids: Tensor, held: Tensor) -> tuple[Tensor, Context]:
        """Read L words, of which each sees those before it (prefill, decoding, replay): hidden states [B, L, C]."""
        before, held = context.held.shape[1], torch.cat([context.held, held], 1)
        position = held.cumsum(1)[:, before:] - 1  # empty slots do not count
        mask = held[:, None].expand(-1, ids.shape[1], -1).tril(before)
        stream, cache = self.forward({UND: self.embed(ids)}, position, mask, context.cache)
        return stream[UND], Context(torch.cat([context.ids, ids], 1), held, cache)

    def velocity(self, context: Context, x: Tensor, t: Tensor) -> Tensor:
        """v = dx/dt [B, n, d] of images x at times t [B]: `start x end`, which sees the context and itself, whole."""
        ends = torch.tensor([self.config.vision_start_id, self.config.vision_end_id]).expand(len(x), 2)
        size = x.shape[1] + 2
        position = context.held.sum(1, keepdim=True).expand(-1, size)  # one for the whole image
        mask = F.pad(context.held, (0, size), value=True)[:, None].expand(-1, size, -1)
        stream = {UND: self.embed(ends), GEN: self.embed_image(x, t)}
        return self.linear("llm2vae", self.forward(stream, position, mask, context.cache)[0][GEN])

    def log_policy(self, hidden: Tensor, temperature: float) -> Tensor:
        """log π(· | c, y_<k), [..., C] -> [..., V]."""
        return torch.log_softmax(self.linear("language_model.lm_head", hidden) / temperature, -1)

    def encode(self, prompts: list) -> tuple[Tensor, Tensor]:
        """Ids and held slots [B, S] of `bos SYSTEM eos bos prompt eos`."""
        bos, eos, system = self.config.bos_token_id, self.config.eos_token_id, self.config.system_prompt
        turns = [[[self.words[w] for w in text.split()] for text in (system, prompt.text)] for prompt in prompts]
        rows = [torch.tensor([bos, *first, eos, bos, *second, eos]) for first, second in turns]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
        return ids.clamp(min=0), ids >= 0

    def decode(self, x: Tensor) -> Tensor:
        """Latents x [B, n, d] -> pictures [B, 3, H, W] in [0, 1], in the 256 steps of a PNG."""
        p = self.config.latent_patch_size
        tiles = x.unflatten(2, (p, p, -1)).unflatten(1, self.grid)  # [B, rows, columns, p, p, channels]
        maps = tiles.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # [B, channels, rows p, columns p]
        pixels = self.decoder(maps * self.scale + self.shift) * 0.5 + 0.5
        return (pixels.clamp(0, 1) * 255).round() / 255


def rotate(x: Tensor, position: Tensor, theta: float) -> Tensor:
    """Rope: (a, b) -> (a cos φ - b sin φ, b cos φ + a sin φ), φ_j = position θ^(-2j/d), on x [B, L, heads, d]."""
    angle = position[..., None, None] * theta ** -(torch.arange(0, x.shape[-1], 2) / x.shape[-1])
    (a, b), cos, sin = x.chunk(2, -1), angle.cos(), angle.sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def load_decoder(folder: Path) -> tuple[nn.Module, Tensor, Tensor]:
    """Half an autoencoder, frozen: normalised latents to pixels, and the latents' shift and scale [channels, 1, 1]."""
    c = SimpleNamespace(**json.loads((folder / "autoencoder.json").read_text()))
    weights, w = load_file(folder / "ae.safetensors"), c.width

    def block(out: int) -> list[nn.Module]:
        return [nn.GroupNorm(c.groups, w), nn.SiLU(), nn.Conv2d(w, out, 3, padding=1)]

    first, (one, two, three) = nn.Conv2d(c.channels, w, 3, padding=1), (nn.Sequential(*block(w)) for _ in range(3))
    up, again = (nn.ConvTranspose2d(w, w, 4, stride=2, padding=1) for _ in range(2))
    decoder = nn.Sequential(first, one, up, two, again, three, *block(3))
    decoder.load_state_dict({n[8:]: value for n, value in weights.items() if n.startswith("decoder.")})
    return decoder.requires_grad_(False), weights["shift"][:, None, None], weights["scale"][:, None, None]


# ---- 2. Think: y_k ~ π(· | c, y_<k) until eos


def think(model: Model, context: Context, u: Tensor, temperature: float) -> tuple[Context, Tensor]:
    """Write `bos y eos` after the context, with uniform draws u [B, most tokens]; return it and log π(y) [B, T]."""
    bos, eos = (torch.full((len(u),), i) for i in (model.config.bos_token_id, model.config.eos_token_id))
    token, writing, log_probs = bos, torch.ones(len(u), dtype=torch.bool), []
    while writing.any():
        hidden, context = model.read(context, token[:, None], writing[:, None])
        writing = writing & (token != eos)  # who is done leaves empty slots while others write
        token, k = eos, len(log_probs)  # who is cut reads an eos that it did not write
        if k < u.shape[1]:
            log_p = model.log_policy(hidden[:, 0], temperature)
            cumulated = log_p.double().exp().cumsum(-1)
            token = (cumulated[:, :-1] <= u[:, k, None] * cumulated[:, -1:]).sum(-1)
            log_probs.append(log_p.gather(1, token[:, None]))
    return context, torch.cat(log_probs, 1)


# ---- 3. Draw, the way of FlowGRPO-Fast: K consecutive steps are stochastic, hence actions; all others follow the ODE


def timesteps(s: Settings) -> Tensor:
    """1 = t_0 > ... > t_{M-1} = 0, t = shift u / (1 + (shift - 1) u), u uniform; fp64, and so is what it touches."""
    u = torch.linspace(1, 0, s.num_points, dtype=torch.float64)
    return s.shift * u / (1 + (s.shift - 1) * u)


def transition(x: Tensor, v: Tensor, k: Tensor, s: Settings) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of p(x_{k+1} | x_k), for x, v [..., n, d] and k [...] (eq. 3), h = t_k - t_{k+1}.

    mean = x - h [v + σ² / 2t (x + (1 - t) v)],    std = σ √h,    σ = a √(t / (1 - min(t, t_1)))
    """
    grid = timesteps(s)[:, None, None]
    t, h = grid[k], grid[k] - grid[k + 1]
    sigma = s.noise_level * torch.sqrt(t / (1 - t.clamp(max=grid[1])))
    return x - h * (v + sigma**2 / (2 * t) * (x + (1 - t) * v)), sigma * h.sqrt()


def draw(model: Model, context: Context, x: Tensor, noise: Tensor, start: Tensor, s: Settings) -> tuple[Tensor, Tensor]:
    """Denoise x [B, n, d], with noise [B, K, n, d] in K steps from start [B] on; return the path and the K means."""
    t, rows, path, means = timesteps(s), torch.arange(len(x)), [x], torch.zeros(noise.shape, dtype=torch.float64)
    for k in range(s.num_points - 1):
        v = model.velocity(context, x, t[k].expand(len(x)))
        mean, std = transition(x, v, torch.tensor(k), s)
        inside, j = (start <= k) & (k < start + s.window_size), (k - start).clamp(0, s.window_size - 1)
        means[rows[inside], j[inside]] = mean[inside]
        x = torch.where(inside[:, None, None], mean + std * noise[rows, j], x - (t[k] - t[k + 1]) * v).float()
        path.append(x)
    return torch.stack(path, 1), means


@dataclass
class Rollout:
    """B samples as the sampler saw them, the G of a prompt adjacent."""

    ids: Tensor  # [B, S]: system, prompt and thinking
    held: Tensor  # [B, S]
    begin: int  # the slot of the thinking's bos; the T slots after it are y
    written: Tensor  # bool [B, T]: the tokens that are the model's own
    log_probs: Tensor  # [B, T]: log π_old(y_k | c, y_<k)
    steps: Tensor  # [B, K]: the stochastic steps k
    x: Tensor  # [B, K, n, d]: x_k
    x_next: Tensor  # [B, K, n, d]: x_{k+1}
    mean: Tensor  # [B, K, n, d]: μ_old
    latents: Tensor  # [B, n, d]: x_0


@torch.no_grad()
def rollout(model: Model, prompts: list, iteration: int, s: Settings) -> Rollout:
    """Think and draw for P prompts, G times each and all together; the image is drawn on the thinking's own cache."""
    samples = [(prompt, sample) for prompt in prompts for sample in range(s.group_size)]

    def randoms(kind, purpose: str, *shape: int, of: list = samples) -> Tensor:
        keys = ((s.seed, iteration, prompt.position, sample, purpose) for prompt, sample in of)
        return torch.stack([kind(shape, generator=seeds.generator(*key)) for key in keys])

    ids, held = model.encode([prompt for prompt, _ in samples])
    _, context = model.read(model.nothing(len(samples)), ids, held)
    context, log_probs = think(model, context, randoms(torch.rand, "think", s.max_think_tokens), s.temperature)
    begin = ids.shape[1]
    written = context.held[:, begin + 1 : begin + 1 + s.max_think_tokens]
    some_start = partial(torch.randint, s.window[0], s.window[1] - s.window_size + 1)
    start = randoms(some_start, "window", of=[(prompt, -1) for prompt, _ in samples])  # the same in a group
    noise = randoms(torch.randn, "sde", s.window_size, *model.image)
    path, mean = draw(model, context, randoms(torch.randn, "noise", *model.image), noise, start, s)
    rows, steps = torch.arange(len(samples))[:, None], start[:, None] + torch.arange(s.window_size)
    x, x_next, log_probs = path[rows, steps], path[rows, steps + 1], log_probs[:, : written.shape[1]]
    return Rollout(context.ids, context.held, begin, written, log_probs, steps, x, x_next, mean, path[:, -1])


# ---- 4. Reward and advantage


def rewards(model: Model, r: Rollout, prompts: list, s: Settings) -> Tensor:
    """R(x_0, c) in [0, 1], [B]; the judge sees the picture and what the prompt requires, nothing else."""
    verdicts = verify(model.decode(r.latents), [prompt.metadata for prompt in prompts for _ in range(s.group_size)])
    return torch.tensor([verdict.reward for verdict in verdicts], dtype=torch.float64)


def advantages(reward: Tensor, s: Settings) -> Tensor:
    """A_i = (R_i - mean(R)) / std(R) over the G samples of a prompt (eq. 1), [B] -> [B]; 0 where all are equal."""
    group = reward.unflatten(0, (-1, s.group_size))
    scaled = (group - group.mean(1, keepdim=True)) / (group.std(1, correction=0, keepdim=True) + s.advantage_epsilon)
    equal = group.amax(1, keepdim=True) == group.amin(1, keepdim=True)
    return scaled.masked_fill(equal, 0).clamp(-s.advantage_clip, s.advantage_clip).flatten()


# ---- 5. Losses
Replay = tuple[Tensor, Tensor]


def replay(model: Model, r: Rollout, s: Settings) -> Replay:
    """What the model says now of what it did then: log π(y_k | c, y_<k) [B, T] and v(x_k, t_k) [B, K, n, d]."""
    hidden, context = model.read(model.nothing(len(r.ids)), r.ids, r.held)
    end, t = r.begin + r.written.shape[1], timesteps(s)[r.steps]
    log_p = model.log_policy(hidden[:, r.begin : end], s.temperature)
    log_probs = log_p.gather(2, r.ids[:, r.begin + 1 : end + 1, None]).squeeze(2)
    return log_probs, torch.stack([model.velocity(context, r.x[:, j], t[:, j]) for j in range(s.window_size)], 1)


def surrogate(log_ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """min(r A, clip(r, 1 - ε, 1 + ε) A), by r - 1 = expm1(log r) in fp64, since ε may be 1e-6."""
    excess = torch.expm1(log_ratio.double())
    return advantage + torch.minimum(excess * advantage, excess.clamp(-clip, clip) * advantage)


def losses(model: Model, r: Rollout, advantage: Tensor, ref: Replay, s: Settings) -> tuple[Tensor, Tensor]:
    """-J_Text and -λ J_Flow, means over the samples; ref: what the start checkpoint says of the same (replay).

    J_Text = mean over y of surrogate(log π(y_k | c, y_<k) - log π_old(y_k | c, y_<k)) - β k3(log π_ref - log π) (eq. 2)
    J_Flow = mean over the K steps of surrogate(mean over D of (x_{k+1} - μ_old) / std · (μ - μ_old))       (eq. 4 to 6)
             - w |v - v_ref|² / D                                                                                (eq. 8)
    """
    (log_probs, v), (log_p_ref, v_ref) = replay(model, r, s), ref
    gap = (log_p_ref - log_probs).double()  # k3 = e^gap - gap - 1
    text = surrogate(log_probs - r.log_probs, advantage[:, None], s.clip_text) - s.kl_weight * (torch.expm1(gap) - gap)
    j_text = (text * r.written).sum(1) / r.written.sum(1)  # long thinking weighs no more than short
    mean, std = transition(r.x, v, r.steps, s)
    log_ratio = ((r.x_next - r.mean) / std * (mean - r.mean)).mean((2, 3))  # RatioNorm
    flow = surrogate(log_ratio, advantage[:, None], s.clip_flow)
    j_flow = (flow - s.mse_weight * (v - v_ref).square().mean((2, 3))).mean(1)
    return -j_text.mean(), -s.lambda_flow * j_flow.mean()


# ---- 6. Update: PPO epochs of AdamW, with a learning rate and a norm clip for each expert


def make_optimizer(model: Model, s: Settings) -> torch.optim.AdamW:
    """One group per expert."""
    reasoning = {"params": model.expert(draws=False), "lr": s.lr_reasoning, "eps": s.eps_reasoning}
    denoising = {"params": model.expert(draws=True), "lr": s.lr_denoising, "eps": s.eps_denoising}
    return torch.optim.AdamW([reasoning, denoising], betas=s.betas, weight_decay=s.weight_decay)


def update(model: Model, adam: torch.optim.AdamW, r: Rollout, advantage: Tensor, ref: Replay, s: Settings) -> None:
    """Climb J; in the first epoch every ratio is 1, in later ones the clips keep it near."""
    for _ in range(s.ppo_epochs):
        adam.zero_grad()
        text_loss, flow_loss = losses(model, r, advantage, ref, s)
        flow_loss.backward(inputs=model.expert(draws=True), retain_graph=True)  # it holds the thinking constant
        text_loss.backward()
        for expert in adam.param_groups:
            nn.utils.clip_grad_norm_(expert["params"], s.max_grad_norm)
        adam.step()


# ---- 7. The loop


def main() -> None:
    """Train, and print one line an iteration."""
    parser = argparse.ArgumentParser(description="UniGRPO in one file")
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument("--model", type=Path, default=Path(str(files("unigrpo") / "assets" / "shapes-sft")))
    options, s, average = parser.parse_args(), Settings(), None
    model, reference = Model(options.model, trainable=True), Model(options.model, trainable=False)
    adam, stream = make_optimizer(model, s), PromptStream("train", s.seed)
    for iteration in range(options.iterations):
        began, prompts = time.perf_counter(), stream.batch(iteration, s.prompts)
        r = rollout(model, prompts, iteration, s)
        reward = rewards(model, r, prompts, s)
        update(model, adam, r, advantages(reward, s), replay(reference, r, s), s)
        now, seconds = float(reward.mean()), time.perf_counter() - began
        average = now if average is None else 0.9 * average + 0.1 * now
        print(f"{iteration:4d}   reward {now:.3f}   running average {average:.3f}   {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
