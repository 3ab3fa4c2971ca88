"""One rank of a small run without evaluations or files: ``python rank_worker.py SPEC.json``, started by rank_runs.

spec: recipe, overrides, iterations, mode ("replicate" or "shard"), out (rank 0 leaves lines, weights and trajectories
there), stretch ({rank: tokens}: the thinking of that rank never ends before so many), sheet (whether rank 0 leaves the
last iteration's sample sheet there).
"""

import contextlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from unigrpo import build
from unigrpo.recipe import load_recipe
from unigrpo.training.parallel import joined, whole
from unigrpo.training.recorder import Recorder, gathered
from unigrpo.training.sources import RolloutBatch
from unigrpo.training.trainer import Stop, Trainer


def main(spec):
    sharded = spec["mode"] == "shard"
    with joined(cuda=False, timeout_s=50, sharded=sharded) as world:
        recipe = load_recipe(
            spec["recipe"], [word for key, value in spec["overrides"].items() for word in (f"--{key}", str(value))]
        )
        parts = build.parts(recipe, world)
        seen = []
        source = Watched(parts.source, seen)
        parts = replace(parts, source=source)
        trainer = Trainer(recipe, parts, Path(spec["out"]).parent / "none", Stop())
        stretched = stretch(parts, spec.get("stretch", {}).get(str(world.rank)))
        with stretched:
            lines = [trainer.iterate(iteration) for iteration in range(spec["iterations"])]
        trained = {
            n: whole(p.detach()).clone() for named in parts.policy.parameter_groups().values() for n, p in named.items()
        }
        drawn = [row for rows in world.gather(seen) for row in rows]
        if spec.get("sheet"):
            shown = gathered(world, source.last)
            if world.first:
                Recorder(Path(spec["out"]).with_suffix("")).samples(parts.policy, shown, spec["iterations"] - 1)
        if world.first:
            drawn.sort(key=lambda row: row[0])
            torch.save({"lines": lines, "weights": trained, "drawn": drawn}, spec["out"])


def letters(images, prompts, metadata, thinking):
    """A reward that no rounding of a picture changes: how many different letters were thought, and their sum."""
    return [len(set(words or "")) + sum(map(ord, words or "")) % 11 / 11 for words in thinking]


class Watched:
    """A source that notes what it drew: (iteration, position, sample), ids, latents, advantages, of this rank."""

    def __init__(self, source, seen):
        self.source, self.seen, self.last = source, seen, RolloutBatch([])

    def collect(self, policy, iteration, clock):
        made = self.source.collect(policy, iteration, clock)
        for t in made.trajectories:
            ids = [text.ids.tolist() for text in t.sampled_texts]
            latents = t.drawings[-1].latents.clone()
            self.seen.append(((iteration, t.prompt.position, t.sample), ids, latents, t.advantage))
        self.last = made
        return made


def stretch(parts, tokens):
    """One rank's thinking goes on for ``tokens``: the word that ends it is not drawn before."""
    if tokens is None:
        return contextlib.nullcontext()
    kind = type(parts.policy)
    plain = kind.think

    def long(self, context, *, uniforms, temperature):
        # u near 1 draws the last words, whose ids are above the one that ends a text
        return plain(self, context, uniforms=torch.full((uniforms.shape[0], tokens), 0.999999), temperature=temperature)

    kind.think = long
    return contextlib.nullcontext()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
    os._exit(0)  # as the command does: beside torch's threads Python's way out may abort
