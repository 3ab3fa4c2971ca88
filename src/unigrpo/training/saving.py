"""When a run is saved, what of it, and how it comes back: checkpoints of the weights, the average, the optimizer."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from unigrpo.policy import Policy, Scorer
from unigrpo.recipe import Recipe
from unigrpo.training import checkpoint
from unigrpo.training.agreement import check_adapter
from unigrpo.training.lora import base_state_dict
from unigrpo.training.optimizer import ExpertOptimizer, MovingAverage
from unigrpo.training.parallel import ONE_PROCESS, World, put, whole

Whole = Callable[[bool], AbstractContextManager[None]]
"""Inside, the model is saved (True: read) as one process does it, wherever its weights are."""


def as_held(read: bool) -> AbstractContextManager[None]:
    """Every rank holds all weights."""
    return nullcontext()


@dataclass
class Saver:
    """Writes and reads the checkpoints of one run; ``saved`` is the number of iterations that the newest one has."""

    recipe: Recipe
    run_dir: Path
    policy: Policy
    reference: Scorer | None
    optimizer: ExpertOptimizer
    average: MovingAverage | None
    save_model: Callable[[Path], None]
    load_model: Callable[[Path], None]
    world: World = ONE_PROCESS
    known_reference: str | None = None
    whole: Whole = as_held
    saved: int | None = None
    since: float = field(default_factory=time.monotonic)

    def start_clock(self) -> None:
        """Count the minutes to the next checkpoint from now."""
        self.since = time.monotonic()

    def due(self, done: int) -> bool:
        """Whether to save after this iteration: at the end, every so many iterations, or so many minutes."""
        rule = self.recipe.checkpoint
        late = rule.minutes is not None and time.monotonic() - self.since >= 60 * rule.minutes
        return late or done % rule.every == 0 or done == self.recipe.iterations

    @cached_property
    def reference_hash(self) -> str | None:
        """The frozen reference's fingerprint, taken once a run: of a large model it reads many gigabytes."""
        return self.known_reference or fingerprint(self.reference)

    def save(self, done: int) -> None:
        """Write a complete checkpoint of the finished iterations (nothing to do if it is there)."""
        if self.saved == done:
            return
        tensors = checkpoint.prefixed("optimizer", self.optimizer.state())
        if self.average is None:
            self._write(done, tensors)
        else:
            raw = {n: whole(p.detach()).clone() for n, p in self.average.parameters.items()}
            self.average.swap()
            try:
                self._write(done, tensors | checkpoint.prefixed("raw", raw))
            finally:
                self.average.swap()
        self.saved = done
        self.start_clock()

    def _write(self, done: int, tensors: dict[str, torch.Tensor]) -> None:
        """Rank 0 writes what one process would; where weights are shared out, all give it their shares."""
        with self.whole(False), self.world.together():
            if self.world.first:
                facts = {"recipe": self.recipe.name, "reference": self.reference_hash}
                state = checkpoint.TrainingState(done, tensors, facts)
                checkpoint.save(self.run_dir, state, self.save_model, keep=self.recipe.checkpoint.keep)

    def restore(self) -> int:
        """Go back to the last complete checkpoint, or the start; return its iterations."""
        if self.world.first:
            checkpoint.clean(self.run_dir)
        folders = self.world.told(checkpoint.complete(self.run_dir))
        if not folders:
            return 0
        with self.world.together() if not self.world.sharded else nullcontext():
            return self._read(folders)

    def _read(self, folders: list[Path]) -> int:
        state = checkpoint.load(folders[-1])
        check_adapter(self.recipe.model.lora, self.policy.module, folders[-1])
        if state.facts.get("reference") != self.reference_hash:
            raise ValueError(
                f"the reference model of {self.run_dir} is not the one it was started with: "
                f"restore model.path {self.recipe.model.path}, or start a new run"
            )
        try:
            with self.whole(True):
                self.load_model(folders[-1])
        except ValueError as error:
            raise checkpoint.damaged(folders[-1], error) from error
        self.optimizer.load_state(checkpoint.unprefixed("optimizer", state.tensors))
        if self.average is not None:
            self._restore_average(checkpoint.unprefixed("raw", state.tensors))
        self.saved = state.done
        return state.done

    @torch.no_grad()
    def _restore_average(self, raw: dict[str, torch.Tensor]) -> None:
        """The checkpoint's model is the average, and the raw weights lie beside it."""
        assert self.average is not None
        for name, parameter in self.average.parameters.items():
            self.average.shadow[name].copy_(parameter)
            put(parameter, raw[name])


def fingerprint(reference: Scorer | None) -> str | None:
    """A hash of a model's weights (without an adapter's), to notice that a reference was exchanged."""
    if reference is None:
        return None
    digest = hashlib.sha256()
    for name, tensor in sorted(base_state_dict(reference.module).items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
