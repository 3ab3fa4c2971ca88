"""A second family of models: one recurrent backbone shared by words and pictures, nothing of BAGEL.

It is used as any model is: ``model.path: tests/toy_family.py:Toys`` (new), ``tests/toy_family.py:Toys@RUN`` (trained).
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from unigrpo.policy import GenerationDefaults, Policy, PolicySpec, Replayed, UnknownWords
from unigrpo.trajectory import Image, Text, in_context

WORDS = ["<bos>", "<eos>", "a", "red", "green", "blue", "circle", "square", "think"]
HIDDEN, SIDE, PATCH = 32, 8, 4


@dataclass
class Memory:
    state: torch.Tensor  # [B, H]

    def expand(self, repeats):
        return Memory(self.state.repeat_interleave(repeats, 0))

    def take(self, rows):
        return Memory(self.state[list(rows)])


class Net(nn.Module):
    def __init__(self, seed):
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.embed, self.cell = nn.Embedding(len(WORDS), HIDDEN), nn.GRUCell(HIDDEN, HIDDEN)
            self.words = nn.Linear(HIDDEN, len(WORDS))
            self.paint = nn.Sequential(nn.Linear(3 * SIDE**2 + 1 + HIDDEN, 64), nn.Tanh(), nn.Linear(64, 3 * SIDE**2))
            self.see = nn.Linear(3 * SIDE**2, HIDDEN)


class Toy(Policy):
    spec, compute_dtype = PolicySpec((SIDE // PATCH,) * 2, 3 * PATCH**2, (SIDE, SIDE)), torch.float32
    defaults = GenerationDefaults(num_points=6, shift=1.0, max_think_tokens=5, batch=64)
    words, image_size, thinks_after, looks = frozenset(WORDS), (SIDE, SIDE), "think", True

    def __init__(self, seed=0):
        self.net = Net(seed)

    @property
    def module(self):
        return self.net

    def check_size(self, image_size):
        self.at_size(image_size)

    def read(self, text, pictures=0):
        if pictures or set(text.split()) - self.words:
            raise UnknownWords(
                f"the toy reads no pictures in prompts, and the words {' '.join(WORDS[2:])}; not {text!r}"
            )

    def encode_text(self, text):
        self.read(text)
        return torch.tensor([WORDS.index(word) for word in text.split()])

    def decode_text(self, ids):
        return " ".join(WORDS[i] for i in ids.tolist())

    def prompt_segments(self, prompt, *, think):
        given = Text(self.encode_text(prompt.text))
        return (Text(self.encode_text("think")), given) if think else (given,)

    def look_segments(self, pictures):
        return [(Image(latents, self.spec.grid),) for latents in self.encode_image(pictures / 255)]

    def step(self, state, ids):
        return self.net.cell(self.net.embed(ids), state)

    def read_segment(self, state, segment):
        if isinstance(segment, Image):  # one that was looked at
            return self.net.cell(self.net.see(segment.latents.flatten()[None]), state)
        for token in [0, *segment.ids.tolist(), 1]:
            state = self.step(state, torch.tensor([token]))
        return state

    def prefill(self, contexts):
        return self.extend(Memory(torch.zeros(len(contexts), HIDDEN)), contexts)

    def extend(self, context, additions):
        rows = []
        for row, segments in zip(context.state.split(1), additions, strict=True):
            for segment in segments:
                row = self.read_segment(row, segment)
            rows.append(row)
        return Memory(torch.cat(rows))

    def log_probs(self, state, temperature):
        return (self.net.words(state) / (temperature or 1.0)).log_softmax(-1)

    def think(self, context, *, uniforms, temperature):
        texts, states = [], []
        for state, draws in zip(context.state.split(1), uniforms, strict=True):
            state, ids, scores = self.step(state, torch.tensor([0])), [], []
            while len(ids) < len(draws) and 1 not in ids:
                log_p = self.log_probs(state, temperature)[0]
                drawn = int((log_p.exp().cumsum(0) < draws[len(ids)]).sum().clamp(max=len(WORDS) - 1))
                ids.append(int(log_p.argmax()) if temperature == 0 else drawn)
                scores.append(log_p[ids[-1]])
                state = self.step(state, torch.tensor(ids[-1:]))
            ended = 1 in ids
            texts.append(Text(torch.tensor(ids[: len(ids) - ended], dtype=torch.int64), ended, torch.stack(scores)))
            states.append(state if ended else self.step(state, torch.tensor([1])))
        return texts, Memory(torch.cat(states))

    def velocity(self, context, x, t):
        seen = torch.cat([x.flatten(1), t.float().reshape(-1, 1), context.state.expand(len(x), -1)], 1)
        return self.net.paint(seen).view_as(x)

    def replay(self, items, *, temperature=1.0):
        return [self.replayed(item, temperature) for item in items]

    def replayed(self, item, temperature):
        memory, rows, velocities = Memory(torch.zeros(1, HIDDEN)), [], []
        for number, segment in enumerate(item.segments):
            velocities += [self.velocity(memory, q.x, q.t) for q in item.queries if q.segment == number]
            if isinstance(segment, Text) and segment.scored:
                state, targets = memory.state, [0, *segment.ids.tolist(), *([1] if segment.ended else [])]
                for token, target in pairwise(targets):
                    state = self.step(state, torch.tensor([token]))
                    rows.append((self.log_probs(state, temperature)[0], target))
            if in_context(segment):  # all but its own drawings: of these, what a look gave back comes next
                memory = self.extend(memory, [(segment,)])
        log_p = torch.stack([row for row, _ in rows]) if rows else torch.zeros(0, len(WORDS))
        chosen = log_p.gather(1, torch.tensor([target for _, target in rows], dtype=torch.int64)[:, None])[:, 0]
        entropy, spread = -(log_p.exp() * log_p).sum(1).detach(), (log_p.amax(1) - log_p.amin(1)).detach()
        return Replayed(chosen, entropy, spread, tuple(velocities))

    def encode_image(self, pixels):
        return nn.functional.unfold(pixels * 2 - 1, PATCH, stride=PATCH).transpose(1, 2)

    def decode_image(self, latents):
        folded = nn.functional.fold(latents.transpose(1, 2), (SIDE, SIDE), PATCH, stride=PATCH)
        return (folded / 2 + 0.5).clamp(0, 1)

    def parameter_groups(self):
        groups = {"shared": {}, "reasoning": {}, "denoising": {}}
        for name, parameter in self.net.named_parameters():
            if parameter.requires_grad:
                groups[Toys().group_of(name)][name] = parameter
        return groups

    def save(self, folder):
        save_file(self.net.state_dict(), folder / "toy.safetensors")

    def restore(self, folder):
        self.net.load_state_dict(load_file(folder / "toy.safetensors"))


class Toys:
    def look(self, folder):
        return Toy()

    def load(self, folder, how):
        toy = Toy(how.seed)
        if folder is not None:
            toy.restore(folder)
        return toy

    def group_of(self, parameter):
        return {"words": "reasoning", "paint": "denoising"}.get(parameter.split(".")[0], "shared")


def redness(images, prompts, metadata, thinking):
    """A reward for it: how much redder than the rest a picture is."""
    return (images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))).tolist()
