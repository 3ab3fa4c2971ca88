"""When a run is saved, what of it, and how it comes back: checkpoints of the weights, the average, the optimizer.

What is saved is copied when an iteration ends, and written while training goes on (docs/ranks.md).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from unigrpo.policy import Policy, SavesLater, Scorer
from unigrpo.recipe import Recipe
from unigrpo.training import checkpoint, shards
from unigrpo.training.agreement import check_adapter
from unigrpo.training.lora import base_state_dict
from unigrpo.training.optimizer import ExpertOptimizer, MovingAverage
from unigrpo.training.parallel import ONE_PROCESS, World, put, shared_out
from unigrpo.training.writing import Background

Whole = Callable[[bool], AbstractContextManager[None]]
"""Inside, the model is saved (True: read) as one process does it, wherever its weights are."""
Snapshot = Callable[[Path], Callable[[], None]]
"""Takes what is written of a model into a folder, as it is now, and returns what writes it."""


def as_held(read: bool) -> AbstractContextManager[None]:
    """Every rank holds all weights."""
    return nullcontext()


def snapshot_of(policy: Policy) -> Snapshot:
    """How a whole model is saved: copied now and written later, or, where it cannot be, written now."""

    def taken(folder: Path) -> Callable[[], None]:
        if not isinstance(policy, SavesLater):
            policy.save(folder)
            return nothing
        return partial(policy.save_state, folder, {n: shards.copy_of(t) for n, t in policy.module.state_dict().items()})

    return taken


def nothing() -> None:
    """There is nothing left to write."""


@dataclass
class Saver:
    """Writes and reads the checkpoints of one run; ``saved`` is the number of iterations that the newest one has.

    ``spread``: the policy whose weights all ranks write together, each its shares; None: ``snapshot`` takes them all.
    """

    recipe: Recipe
    run_dir: Path
    policy: Policy
    reference: Scorer | None
    optimizer: ExpertOptimizer
    average: MovingAverage | None
    snapshot: Snapshot
    load_model: Callable[[Path], None]
    world: World = ONE_PROCESS
    known_reference: str | None = None
    whole: Whole = as_held
    spread: SavesLater | None = None
    saved: int | None = None
    since: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.background = Background()
        self.under_way: int | None = None  # the iterations of the checkpoint that is being written
        self.failed = False  # a checkpoint could not be written, and that was said
        self.taking = 0.0  # seconds that training stood still for the longest one
        self.shared = shards.SharedFiles(self.world, self.recipe.parallel.timeout_s) if self.world.sharded else None

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

    @property
    def seconds(self) -> float:
        """How long a checkpoint takes, from its copy to its name, by the slowest so far."""
        return self.taking + self.background.seconds

    @property
    def complete(self) -> int | None:
        """The iterations of the newest complete checkpoint, also where :meth:`look` has not noted it yet."""
        writes = self.world.first or self.shared is not None
        written = writes and not self.background.busy and self.background.error is None
        return self.under_way if self.under_way is not None and written else self.saved

    # Writing

    def save(self, done: int) -> None:
        """Begin a complete checkpoint of the finished iterations (nothing to do if it is there, or under way).

        The one before is waited for; what went wrong with that is raised here.
        """
        if done in (self.saved, self.under_way):
            return
        self.wait()
        started = time.perf_counter()
        work = self._take(done)
        if work is not None:
            self.background.begin(work)
        self.under_way = done
        self.taking = max(self.taking, time.perf_counter() - started)
        self.start_clock()

    def look(self) -> None:
        """Note that the checkpoint under way is complete, if it is; raise, on all ranks together, why it failed."""
        if self.under_way is None:
            return
        busy = self.background.busy  # before its error is looked at
        try:
            with self.world.together():
                if not busy:
                    self.background.check()
        except Exception:
            self.failed, self.under_way = True, None
            raise
        if not any(self.world.gather(busy)):
            self.saved, self.under_way = self.under_way, None

    def wait(self) -> None:
        """Until the checkpoint under way is complete, on all ranks; raise why it is not."""
        self.background.wait()
        self.look()

    def end(self) -> Exception | None:
        """The same on the way out, of this rank alone: nothing is left over; give what nobody was told of."""
        self.background.wait()
        self.saved, self.under_way = self.complete, None
        error, self.background.error = self.background.error, None
        return error

    def _take(self, done: int) -> Callable[[], object] | None:
        """Copy what is saved, and return what is left to do beside training; None: nothing, on this rank."""
        optimizer = self._copies(checkpoint.prefixed("optimizer", self.optimizer.state()))
        raw = {} if self.average is None else self._copies(checkpoint.prefixed("raw", self.average.parameters))
        write_model, weights = nothing, {}
        with self._averaged(), nullcontext() if self.spread else self.whole(False), self.world.together():
            if self.spread is not None:
                weights = self._copies(self.policy.module.state_dict(), all_ranks=True)
            if self.world.first:
                folder = checkpoint.begin(self.run_dir, done)
                with checkpoint.or_dropped(folder):
                    write_model = self.snapshot(folder)
        state = checkpoint.TrainingState(
            done, optimizer | raw, {"recipe": self.recipe.name, "reference": self.reference_hash}
        )
        if self.shared is not None:
            return partial(self._write_shared, state, weights, write_model)
        return partial(self._write, state, write_model) if self.world.first else None

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Inside, the weights are their average, where the run keeps one."""
        if self.average is not None:
            self.average.swap()
        try:
            yield
        finally:
            if self.average is not None:
                self.average.swap()

    def _copies(self, tensors: Mapping[str, Tensor], *, all_ranks: bool = False) -> dict[str, Tensor]:
        """Copies of what this rank writes: of what is shared out its rows, of all else everything on rank 0."""
        wanted = {n: t for n, t in tensors.items() if all_ranks or self.world.first or shared_out(t)}
        return {name: shards.copy_of(tensor) for name, tensor in wanted.items()}

    def _write(self, state: checkpoint.TrainingState, write_model: Callable[[], None]) -> None:
        checkpoint.finish(self.run_dir, state, write_model, keep=self.recipe.checkpoint.keep)

    def _write_shared(
        self, state: checkpoint.TrainingState, weights: dict[str, Tensor], write_model: Callable[[], None]
    ) -> None:
        """All ranks write their rows; then rank 0 the rest, and gives the whole its name."""
        assert self.shared is not None
        shared, rows = self.shared, {n: t for n, t in state.tensors.items() if shared_out(t)}
        sets: dict[str, Mapping[str, Tensor]] = {checkpoint.STATE_TENSORS: rows}
        notes: dict[str, Mapping[str, str]] = {}
        if self.spread is not None:
            name, notes[name] = self.spread.weights_file()
            sets[name] = weights
        folder = checkpoint.partial_of(self.run_dir, state.done)

        def write_all() -> None:
            shared.write(folder, sets, notes)  # first, so that no rank waits for one that has failed before
            write_model()

        failed: Exception | None = None
        try:
            if self.world.first:
                rest = {n: t for n, t in state.tensors.items() if n not in rows}
                facts = {**state.facts, "shards": sorted(sets)}
                self._write(checkpoint.TrainingState(state.done, rest, facts), write_all)
            else:
                shared.write(folder, sets, notes)
        except Exception as error:
            failed = error
        shared.agree(failed)

    # Reading

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
            self._read_model(folders[-1], state)
        except ValueError as error:
            raise checkpoint.damaged(folders[-1], error) from error
        self.optimizer.load_state(checkpoint.unprefixed("optimizer", state.tensors))
        spread = self.optimizer.places(checkpoint.unprefixed("optimizer", described(state)))
        self._fill(folders[-1], state, checkpoint.prefixed("optimizer", spread))
        if self.average is not None:
            self._read_average(self.average, folders[-1], state)
        self.saved = state.done
        return state.done

    def _read_model(self, folder: Path, state: checkpoint.TrainingState) -> None:
        index = None if self.spread is None else state.shards.get(self.spread.weights_file()[0])
        if index is not None:
            shards.fill(index, self.policy.module.state_dict())
            return
        with self.whole(True):
            self.load_model(folder)

    def _fill(self, folder: Path, state: checkpoint.TrainingState, places: Mapping[str, Tensor]) -> None:
        """Read what ranks have written together of the training state; no places, where one has written it all."""
        try:
            if (index := state.shards.get(checkpoint.STATE_TENSORS)) is not None:
                shards.fill(index, places)
            elif places:
                raise ValueError(f"{checkpoint.STATE_TENSORS} has no {next(iter(places))}")
        except ValueError as error:
            raise checkpoint.damaged(folder, error) from error

    @torch.no_grad()
    def _read_average(self, average: MovingAverage, folder: Path, state: checkpoint.TrainingState) -> None:
        """The checkpoint's model is the average, and the raw weights lie beside it."""
        for name, parameter in average.parameters.items():
            average.shadow[name].copy_(parameter)
        raw = checkpoint.unprefixed("raw", state.tensors)
        for name, value in raw.items():
            put(average.parameters[name], value)
        spread = {name: p for name, p in average.parameters.items() if name not in raw}
        self._fill(folder, state, checkpoint.prefixed("raw", spread))


def described(state: checkpoint.TrainingState) -> dict[str, Tensor]:
    """The tensors of a training state that lie in pieces, by dtype and whole shape alone (on the meta device)."""
    index = state.shards.get(checkpoint.STATE_TENSORS)
    kinds = {} if index is None else index.tensors
    return {n: torch.empty(shape, dtype=getattr(torch, kind), device="meta") for n, (kind, shape) in kinds.items()}


def fingerprint(reference: Scorer | None) -> str | None:
    """A hash of a model's weights (without an adapter's), to notice that a reference was exchanged."""
    if reference is None:
        return None
    digest = hashlib.sha256()
    for name, tensor in sorted(base_state_dict(reference.module).items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
