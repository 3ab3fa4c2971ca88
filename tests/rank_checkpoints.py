"""Checkpoints that two ranks write together: ``python rank_checkpoints.py FOLDER NAME ...``, started by rank_runs.

Each check prints its name. Everything is by the trainer, as a run does it.
``FOLDER go-on MODE UNTIL [--KEY VALUE ...]`` goes on with a run there, and leaves what it read and ends with.
"""

import errno
import os
import sys
import threading
from pathlib import Path

import torch

import tiny_runs
from unigrpo import build
from unigrpo.models.bagel_files.tensor_files import TensorFiles
from unigrpo.recipe import load_recipe
from unigrpo.training import checkpoint, shards
from unigrpo.training.lora import Adapter
from unigrpo.training.parallel import ONE_PROCESS, joined, local, whole
from unigrpo.training.trainer import Stop, Trainer

AVERAGE = {"optimizer__ema": 0.9, "checkpoint__keep": 2}
LORA = {"model__lora": "{rank: 4, alpha: 8, experts: [reasoning, denoising]}"}


def trainer_of(folder, world, **keys):
    recipe = tiny_runs.tiny_recipe(optimizer__ppo_epochs=1, **AVERAGE, **keys)
    return Trainer(recipe, build.parts(recipe, world), folder, Stop())


def held(trainer):
    """Whole copies of everything that a run goes on with."""
    found = {f"model/{n}": whole(t.detach()).clone() for n, t in trainer.parts.policy.module.state_dict().items()}
    found |= {f"optimizer/{n}": whole(t).clone() for n, t in trainer.optimizer.state().items()}
    return found | {f"average/{n}": whole(t).clone() for n, t in trainer.average.shadow.items()}


def same(ours, theirs):
    assert ours.keys() == theirs.keys(), sorted(ours.keys() ^ theirs.keys())[:5]
    assert [n for n in ours if not torch.equal(ours[n], theirs[n]) or ours[n].dtype != theirs[n].dtype] == []


def save(trainer, done):
    trainer.done = done
    trainer.save(wait=False)


def round_trip(folder, world, **keys):
    """Saved before any step and after one, trained on while it is written; read by ranks, and by one process."""
    never, saving = (trainer_of(folder, world, **keys) for _ in range(2))
    save(saving, 0)
    for trainer in (never, saving):
        trainer.iterate(0)
    same(held(saving), held(never))
    expected = held(saving)
    save(saving, 1)
    saving.iterate(1)  # while it is written
    never.iterate(1)
    same(held(saving), held(never))
    saving.saver.wait()
    world.gather(None)
    assert saving.saver.saved == 1 and "checkpoint" not in {t.name for t in threading.enumerate()}
    assert [path.name for path in checkpoint.complete(folder)] == ["iteration-000000", "iteration-000001"]
    again = trainer_of(folder, world, **keys)
    assert again.saver.restore() == 1
    same(held(again), expected)
    if world.first:
        one = trainer_of(folder, ONE_PROCESS, **keys)
        assert one.saver.restore() == 1
        same(held(one), expected)
        save(one, 2)
        one.saver.wait()
    world.gather(None)
    back = trainer_of(folder, world, **keys)  # from what one process wrote
    assert back.saver.restore() == 2
    same(held(back), expected)
    back.iterate(1)
    same(held(back), held(never))
    return expected


def full(folder, world):
    expected = round_trip(folder, world)
    if world.first:
        newest = checkpoint.folder_of(folder, 1)
        assert not (newest / "model.safetensors").exists() and len(list((newest / "shards").iterdir())) == 4
        loaded = build.policy(tiny_runs.tiny_recipe(model__path=newest).model)
        average = {n.removeprefix("average/"): t for n, t in expected.items() if n.startswith("average/")}
        assert all(torch.equal(t, average[n]) for n, t in loaded.module.state_dict().items() if n in average)
        pieces, one = TensorFiles.open(newest), TensorFiles.open(checkpoint.folder_of(folder, 2))
        assert pieces.key() == one.key() and pieces.shapes == one.shapes and pieces.dtypes == one.dtypes
        assert all(torch.equal(pieces.read(name), one.read(name)) for name in one.names)
    world.gather(None)


def adapters(folder, world):
    round_trip(folder, world, **LORA)
    if world.first:  # the adapter itself stays one that peft reads
        bare = build.policy(tiny_runs.tiny_recipe().model)
        Adapter.load(bare.module, checkpoint.folder_of(folder, 1))
    world.gather(None)


def no_room_on_one_rank(folder, world):
    """Only rank 1 cannot write: all ranks are told, nothing half-made stays, and there is a next time."""
    trainer = trainer_of(folder, world)
    save(trainer, 0)
    trainer.saver.wait()
    for place in ("sync", "key_of"):
        plain = getattr(shards, place)
        if not world.first:
            setattr(shards, place, full_disk)
        save(trainer, 1)
        try:
            trainer.saver.wait()
        except (ValueError, OSError) as error:
            words = "rank 1: " if world.first else ""
            assert str(error).startswith(f"{words}[Errno 28] No space left on device"), error
        else:
            raise AssertionError("the full disk went unnoticed")
        finally:
            setattr(shards, place, plain)
        assert trainer.saver.failed and trainer.saver.saved == 0 and trainer.unsaved()
        world.gather(None)
        assert [path.name for path in (folder / "checkpoints").iterdir()] == ["iteration-000000"]
    save(trainer, 1)
    trainer.saver.wait()
    assert trainer.saver.saved == 1 and not trainer.unsaved()


def public_layout(folder, world):
    """A model in the original's layout, frozen bf16 beside trained fp32: it goes out again as it came."""
    source = folder / "tiny"
    if world.first:
        assert command("make-tiny-bagel", source) == 0
    world.gather(None)
    words = {"model.path": source, "rollout.image_size": 64, "optimizer.ema": 0.9, "model.lora": "null"}
    recipe = load_recipe("bagel/unigrpo", [word for key, value in words.items() for word in (f"--{key}", str(value))])
    trainer = Trainer(recipe, build.parts(recipe, world), folder, Stop())
    save(trainer, 0)
    trainer.saver.wait()
    expected = held(trainer)
    again = Trainer(recipe, build.parts(recipe, world), folder, Stop())
    with torch.no_grad():
        for parameter in again.parts.policy.module.parameters():
            local(parameter).zero_()
    assert again.saver.restore() == 0
    same(held(again), expected)
    if world.first:
        newest = checkpoint.folder_of(folder, 0)
        weights = {n.removeprefix("model/"): t for n, t in expected.items() if n.startswith("model/")}
        pieces = TensorFiles.open(newest)
        assert {t.dtype for t in weights.values()} == {torch.float32, torch.bfloat16}
        assert all(torch.equal(pieces.read(n), t) and pieces.dtypes[n] == t.dtype for n, t in weights.items())
        assert command("export", newest, folder / "out") == 0
        ours, theirs = TensorFiles.open(folder / "out"), TensorFiles.open(source)
        assert ours.key() == theirs.key() and ours.dtypes == theirs.dtypes
        assert {p.name for p in (folder / "out").iterdir()} >= {p.name for p in source.iterdir() if p.is_file()}
    world.gather(None)


def command(*words):
    """A command of one process, which would not be started by torchrun."""
    started = os.environ.pop("WORLD_SIZE")
    try:
        return tiny_runs.unigrpo(*words)
    finally:
        os.environ["WORLD_SIZE"] = started


def full_disk(path):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def go_on(folder, mode, until, *words):
    """Some iterations more of the run in a folder, by these ranks in this mode."""
    with joined(cuda=False, timeout_s=100, sharded=mode == "shard") as world:
        recipe = load_recipe(tiny_runs.UNIGRPO, words)
        trainer = Trainer(recipe, build.parts(recipe, world), folder / "run", Stop())
        start = trainer.saver.restore()
        read = held(trainer)
        for iteration in range(start, until):
            trainer.iterate(iteration)
        ended = held(trainer)
        if world.first:
            torch.save(read, folder / f"read-{start}.pt")
            torch.save(ended, folder / f"ended-{until}.pt")
        save(trainer, until)
        trainer.saver.wait()


CHECKS = [full, adapters, public_layout, no_room_on_one_rank]


def main(folder, *names):
    if names[:1] == ("go-on",):
        go_on(Path(folder), names[1], int(names[2]), *names[3:])
        return
    with joined(cuda=False, timeout_s=100, sharded=True) as world:
        for check in CHECKS:
            if not names or check.__name__ in names:
                check(Path(folder) / check.__name__, world)
                print(check.__name__, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)  # as the command does: beside torch's threads Python's way out may abort
