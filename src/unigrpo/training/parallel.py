"""The ranks of a run: who there is, and the few things that they tell each other (docs/ranks.md).

One process is :data:`ONE_PROCESS`: no process group, and every function here gives back what it was given.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from unigrpo import doing, memory
from unigrpo.output import Told, launched
from unigrpo.policy import Policy
from unigrpo.ranges import ConfigError
from unigrpo.training import messages

BUCKET = 2**24
"""Numbers of gradients that are summed over the ranks in one call: 64 MiB of fp32."""

Value = TypeVar("Value")
Drawing = Callable[[Policy], AbstractContextManager[Policy]]
"""What samples are drawn with: from the policy that is trained to one to draw with, for as long as the block takes."""


class LostRank(ConfigError):
    """Another rank does not answer: it has died, or it is somewhere else in the program."""


class OtherRank(ConfigError):
    """Another rank could not do its part; the message is that rank's own."""


class DriftedRank(ValueError):
    """Ranks that should hold the same weights do not."""


@dataclass(frozen=True)
class World:
    """The ranks of a run as one of them sees them: its own number, and how many there are.

    ``sharded``: the weights are shared out over them (``training.sharding``); else each holds them all.
    """

    rank: int = 0
    size: int = 1
    sharded: bool = False

    @property
    def many(self) -> bool:
        """Whether there is more than one."""
        return self.size > 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which alone writes, prints and shows."""
        return self.rank == 0

    # Objects: small things, by way of the CPU

    def gather(self, value: Value) -> list[Value]:
        """What every rank says, in the order of ranks; the same list on all."""
        if not self.many:
            return [value]
        with _answered():
            return messages.gather(value, self.size)

    def to_first(self, value: Value) -> list[Value] | None:
        """The same for rank 0 alone (None on all others): for what is not small."""
        if not self.many:
            return [value]
        said: Any = [None] * self.size if self.first else None
        with _answered():
            dist.gather_object(messages.dumps(value), said, dst=0)
        return [messages.loads(message) for message in said] if self.first else None

    def told(self, value: Value) -> Value:
        """What rank 0 says."""
        if not self.many:
            return value
        said = [value]
        with _answered():
            dist.broadcast_object_list(said, src=0)
        return said[0]

    def sums(self, *numbers: float) -> list[float]:
        """The sums of the ranks' numbers, in fp64 and in the order of ranks, the same on all."""
        return [sum(column) for column in zip(*self.gather(numbers), strict=True)]

    def most(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        if not self.many:
            return number
        largest = torch.tensor([number])
        with _answered():
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Inside, work without collectives: where any rank fails, all fail at the end of it, and nobody waits.

        Rank 0 raises its own exception, or :class:`OtherRank` with the words of the first that failed; the others raise
        :class:`~unigrpo.output.Told`, for rank 0 says it. Where one gives up (``doing.GivenUp``), all do.
        """
        failed: Exception | None = None
        given_up: doing.GivenUp | None = None
        try:
            with doing.breakable(True):
                yield
        except doing.GivenUp as error:
            if not self.many:
                raise
            given_up = error
        except Exception as error:
            if not self.many or isinstance(error, LostRank):
                raise
            failed = memory.told(error)
        if not self.many:
            return
        other = failed if isinstance(failed, OtherRank) else None
        if other is not None:  # this rank knows that one failed, and here it learns which
            failed = None
        answers = self.gather((None if failed is None else str(failed), given_up is not None))
        said = [words for words, _ in answers]
        if failed is not None:
            if self.first or not isinstance(failed, ValueError | OSError):
                raise failed
            raise Told(str(failed)) from failed
        for rank, words in enumerate(said):
            if words is not None:
                raise OtherRank(f"rank {rank}: {words}") if self.first else Told(words)
        if any(late for _, late in answers):
            raise given_up or doing.GivenUp
        if other is not None:
            raise other

    # Gradients

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace the gradient of every parameter by its sum over the ranks, in buckets of ``BUCKET`` numbers.

        The losses are divided by the trajectories of all ranks, so that a sum is what one process would have. A
        parameter that has a gradient nowhere keeps none; one that has it somewhere has it everywhere. Where weights are
        shared out, their backward pass has summed already.
        """
        if not self.many or self.sharded:
            return
        present = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.uint8)
        with _answered():
            dist.all_reduce(present, dist.ReduceOp.MAX)
            having = [parameter for parameter, there in zip(parameters, present.tolist(), strict=True) if there]
            for bucket in buckets(having):
                _sum_bucket(bucket)


def buckets(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Neighbours of one device and dtype, at most ``BUCKET`` numbers together (a larger one by itself)."""
    held: list[nn.Parameter] = []
    for parameter in parameters:
        alike = not held or (held[0].device, held[0].dtype) == (parameter.device, parameter.dtype)
        if held and (not alike or sum(p.numel() for p in held) + parameter.numel() > BUCKET):
            yield held
            held = []
        held.append(parameter)
    if held:
        yield held


def _sum_bucket(parameters: Sequence[nn.Parameter]) -> None:
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([grad.detach().reshape(-1) for grad in grads])
    dist.all_reduce(flat)
    parts = flat.split([p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter).clone()


@contextmanager
def _answered() -> Iterator[None]:
    """A collective that fails says that somebody else is gone: that is what a person needs to read."""
    try:
        yield
    except RuntimeError as error:
        raise lost(error) from error


def lost(error: Exception) -> LostRank:
    """The sentence for a collective that failed."""
    first = str(error).strip().partition("\n")[0][:200]
    return LostRank(
        f"another rank has ended or did not answer within parallel.timeout_s ({first}): look at what that one said; "
        "what was saved is whole, go on with --resume"
    )


ONE_PROCESS = World()


def as_it_is(policy: Policy) -> AbstractContextManager[Policy]:
    """Samples are drawn with the policy itself."""
    return nullcontext(policy)


@contextmanager
def joined(*, cuda: bool, timeout_s: float, sharded: bool = False) -> Iterator[World]:
    """The ranks that torchrun started, for as long as the block takes; :data:`ONE_PROCESS` where it did not.

    gloo between CPUs, NCCL between GPUs (each rank has the one of its LOCAL_RANK); objects always go over gloo. A
    collective that is not answered within ``timeout_s`` ends the run. All ranks leave together, unless one fails.
    """
    if not launched():
        yield ONE_PROCESS
        return
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    world = World(dist.get_rank(), dist.get_world_size(), sharded)
    try:
        yield world
        world.gather(None)
    finally:
        dist.destroy_process_group()


def drifted(world: World, numbers: Sequence[Tensor]) -> list[int]:
    """The ranks whose numbers are not those of rank 0, bit for bit: weights that should be the same everywhere."""
    said = world.gather([zlib.crc32(number.detach().cpu().contiguous().numpy().tobytes()) for number in numbers])
    return [rank for rank, theirs in enumerate(said) if theirs != said[0]]


def check_drift(world: World, numbers: Callable[[], Tensor]) -> None:
    """DriftedRank where ranks that hold all weights do not hold the same ones, by some ``numbers`` of them."""
    if not world.many or world.sharded:
        return
    if others := drifted(world, [numbers()]):
        raise DriftedRank(
            f"the weights of rank {others[0]} are not those of rank 0: their updates were not the same. Nothing of "
            "this iteration is saved; go on with --resume, and if it happens again, report it"
        )


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be shared out over the ranks, whole on each: then all must ask for it together."""
    return tensor.full_tensor() if shared_out(tensor) else tensor  # type: ignore[attr-defined]


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor that may be shared out."""
    return tensor.to_local() if shared_out(tensor) else tensor  # type: ignore[attr-defined]


@torch.no_grad()
def put(place: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be shared out; every rank has the whole and keeps its share."""
    if not shared_out(place):
        place.copy_(value)
        return
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = place.device_mesh, place.placements  # type: ignore[attr-defined]
    place.copy_(distribute_tensor(value.to(place.device, place.dtype), mesh, placements, src_data_rank=None))


def shared_out(tensor: Tensor) -> bool:
    """Whether a rank holds only its rows of a tensor."""
    if not (dist.is_available() and dist.is_initialized()):
        return False  # one process need not load what knows such tensors, which takes a second
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)
