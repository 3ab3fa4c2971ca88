"""Checkpoints are copied when an iteration ends and written beside training; ranks write them together."""

import shutil
import threading
from pathlib import Path

import pytest
import torch

import rank_runs
import sharded_folders
import tiny_runs
from unigrpo.models.bagel_files.tensor_files import TensorFiles
from unigrpo.policy import SavesLater
from unigrpo.shard_index import FOLDER, SUFFIX
from unigrpo.training import checkpoint, shards
from unigrpo.training.saving import snapshot_of

SCRIPT = Path(__file__).parents[1] / "rank_checkpoints.py"


class Gate:
    """Holds the writer up until it is opened."""

    def __init__(self, monkeypatch):
        self.open, self.entered, plain = threading.Event(), threading.Event(), checkpoint.finish

        def held(*given, **named):
            self.entered.set()
            assert self.open.wait(60)
            return plain(*given, **named)

        monkeypatch.setattr(checkpoint, "finish", held)


def weights_now(trainer):
    return {n: t.detach().clone() for n, t in trainer.parts.policy.module.state_dict().items()}


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """It has the weights of the moment it was begun, and counts only once it is complete."""
    gate, seen = Gate(monkeypatch), {}
    trainer = tiny_runs.trainer_of(tmp_path, iterations=2, checkpoint__every=1)

    def after(line):
        if line["iteration"] == 0:
            seen.update(weights_now(trainer))
        else:
            assert gate.entered.wait(60) and not checkpoint.complete(tmp_path)
            assert trainer.saver.saved is None and trainer.saver.complete is None
            assert trainer.unsaved().startswith("2 finished iterations")
            gate.open.set()

    assert tiny_runs.train(trainer, after)
    assert trainer.saver.saved == 2 and trainer.unsaved() == ""
    first = checkpoint.load_file(checkpoint.folder_of(tmp_path, 1) / "model.safetensors")
    assert all(torch.equal(value, seen[name]) for name, value in first.items())
    assert any(
        not torch.equal(value, now) for value, now in zip(seen.values(), weights_now(trainer).values(), strict=True)
    )
    assert "checkpoint" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError])
def test_leaving_on_a_fault_waits_for_the_checkpoint_under_way(tmp_path, monkeypatch, fault):
    gate = Gate(monkeypatch)
    trainer = tiny_runs.trainer_of(tmp_path, iterations=2, checkpoint__every=1)
    plain = trainer.iterate

    def iterate(iteration):
        if iteration == 1:
            assert gate.entered.wait(60) and not checkpoint.complete(tmp_path)
            threading.Timer(0.3, gate.open.set).start()
            raise fault
        return plain(iteration)

    trainer.iterate = iterate
    with pytest.raises(fault):
        tiny_runs.train(trainer)
    assert [folder.name for folder in checkpoint.complete(tmp_path)] == ["iteration-000001"]
    assert trainer.saver.saved == 1 and trainer.saver.complete == 1


def test_a_fault_of_the_writer_is_told_when_the_next_iteration_ends(tmp_path, monkeypatch):
    trainer = tiny_runs.trainer_of(tmp_path, iterations=4, checkpoint__every=1)
    plain, ended = checkpoint.finish, []

    def finish(run_dir, state, write_model, *, keep):
        if state.done == 2:
            raise RuntimeError("a broken disk")
        return plain(run_dir, state, write_model, keep=keep)

    monkeypatch.setattr(checkpoint, "finish", finish)
    with pytest.raises(RuntimeError, match="a broken disk"):
        tiny_runs.train(trainer, ended.append)
    assert len(ended) == 3 and trainer.saver.saved == 1 and trainer.unsaved().startswith("2 finished")
    assert [folder.name for folder in checkpoint.complete(tmp_path)] == ["iteration-000001"]


def test_a_policy_that_cannot_be_written_later_is_written_before_training_goes_on(tmp_path):
    class Plain:
        def save(self, folder):
            (folder / "weights").write_text("now")

    assert not isinstance(Plain(), SavesLater)
    rest = snapshot_of(Plain())(tmp_path)
    assert (tmp_path / "weights").read_text() == "now"
    rest()


# Pieces that ranks wrote


@pytest.fixture(scope="module")
def cut_run(tmp_path_factory):
    """A finished run whose newest two checkpoints are as two ranks write them."""
    run_dir = tiny_runs.copied_run(tmp_path_factory.mktemp("cut") / "run")
    for folder in checkpoint.complete(run_dir)[-2:]:
        sharded_folders.cut(folder)
    return run_dir


def test_pieces_are_gone_on_from_bit_for_bit(tmp_path, cut_run, quick):
    run_dir = Path(shutil.copytree(cut_run, tmp_path / "run"))
    shutil.rmtree(checkpoint.complete(run_dir)[-1])
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", run_dir, "--resume") == 0
    tiny_runs.assert_same_run(run_dir, tiny_runs.finished_run())


def test_pieces_are_a_model_for_every_reader(tmp_path, cut_run, capsys):
    """One process reads them: export makes the one file of them, which is that of the run that was never cut."""
    whole = checkpoint.complete(tiny_runs.finished_run())[-1]
    assert tiny_runs.unigrpo("export", cut_run, tmp_path / "out") == 0, capsys.readouterr().err
    ours = TensorFiles.open(tmp_path / "out", ("model.safetensors",))
    theirs, pieces = TensorFiles.open(whole, ("model.safetensors",)), TensorFiles.open(checkpoint.complete(cut_run)[-1])
    assert not (tmp_path / "out" / FOLDER).exists()
    assert ours.key() == theirs.key() == pieces.key()
    assert all(torch.equal(ours.read(name), theirs.read(name)) for name in theirs.names)
    drawn = [
        tiny_runs.unigrpo("generate", "a red circle", "--model", model, "--out", tmp_path / f"{index}.png")
        for index, model in enumerate((cut_run, whole))
    ]
    assert drawn == [0, 0]
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / "1.png").read_bytes()


def shorten(path):
    path.write_bytes(path.read_bytes()[:-8])


def of_another(folder, name):
    """The same shard of the checkpoint before: names and shapes agree."""
    before = checkpoint.complete(folder.parent.parent)[-2]
    shutil.copyfile(before / FOLDER / name, folder / FOLDER / name)


FAULTS = {
    "a shard is cut short": lambda folder, name: shorten(folder / FOLDER / name),
    "a shard is gone": lambda folder, name: (folder / FOLDER / name).unlink(),
    "a shard of another checkpoint": of_another,
    "an index is gone": lambda folder, name: (folder / f"{checkpoint.STATE_TENSORS}{SUFFIX}").unlink(),
    "an index is cut short": lambda folder, name: shorten(folder / f"model.safetensors{SUFFIX}"),
}


@pytest.mark.parametrize("number", [1, 2], ids=["moments", "weights"])
@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_pieces_are_named_and_the_checkpoint_before_serves(tmp_path, cut_run, fault, number):
    run_dir = Path(shutil.copytree(cut_run, tmp_path / "run"))
    newest, name = checkpoint.complete(run_dir)[-1], f"shard-00002-model-0000{number}-of-00002.safetensors"
    FAULTS[fault](newest, name)
    named = SUFFIX if "index" in fault else name
    with pytest.raises(ValueError, match=rf"is damaged .*{named}.*remove this folder and resume from the one before"):
        checkpoint.load(newest)
    if number == 2 and "index is gone" not in fault:
        with pytest.raises(ValueError, match=named):
            TensorFiles.open(newest)
    shutil.rmtree(newest)
    assert len(shards.read_whole(checkpoint.complete(run_dir)[-1])) == len(tiny_runs.final_state(run_dir)) - 1


def test_what_does_not_fit_is_not_read(cut_run):
    """A dtype or a shape is never changed without a word, and nothing is read then."""
    index = checkpoint.load(checkpoint.complete(cut_run)[-1]).shards["model.safetensors"]
    name = next(name for name, (_, shape) in index.tensors.items() if len(shape) == 2)
    kind, shape = index.tensors[name]
    for place in (torch.zeros(shape, dtype=torch.int64), torch.zeros(shape[0] + 1, shape[1])):
        with pytest.raises(ValueError, match=rf"has {kind}, shape .* for {name}, not"):
            shards.fill(index, {name: place})
        assert not place.any()
    with pytest.raises(ValueError, match=r"has nothing for no\.such\.weight"):
        shards.fill(index, {"no.such.weight": torch.zeros(1)})


# Ranks


@pytest.mark.slow
def test_two_ranks_write_together_and_any_number_reads(tmp_path):
    said = rank_runs.together(2, SCRIPT, tmp_path, seconds=600)
    assert all(set(out.split()) >= {"full", "adapters", "public_layout", "no_room_on_one_rank"} for out in said)


# (ranks, mode, other keys)
HSDP = {"--parallel.replicas": 2}
WAYS = {
    "short": [(2, "shard", {}), (1, "replicate", {}), (4, "shard", {})],
    "full": [
        (2, "shard", {}),
        (1, "replicate", {}),
        (4, "shard", {}),
        (4, "shard", HSDP),
        (2, "replicate", {}),
        (4, "replicate", {}),
        (2, "shard", {}),
    ],
    "lora": [(2, "shard", {}), (1, "replicate", {}), (4, "shard", HSDP), (2, "replicate", {}), (2, "shard", {})],
}
LORA = {"--model.lora": "{rank: 4, alpha: 8, experts: [reasoning, denoising]}"}
GOES_ON = {
    "--model.path": "builtin:shapes-sft",
    "--data.prompts_per_iteration": 4,
    "--data.group_size": 2,
    "--rollout.max_think_tokens": 8,
    "--rollout.num_points": 6,
    "--rollout.window": "[0,4]",
    "--optimizer.ppo_epochs": 1,
    "--optimizer.minibatches": 1,
    "--optimizer.micro_batch": 2,
    "--optimizer.ema": 0.9,
    # with the recipe's epsilon a gradient of nothing but rounding moves its weight by a whole rate
    "--optimizer.eps_denoising": 1e-7,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", WAYS)
def test_a_run_goes_on_with_other_ranks_in_another_mode(tmp_path, kind):
    """What is read is what was saved, bit for bit, and the whole way is that of one process, but for rounding."""
    keys = {**GOES_ON, **(LORA if kind == "lora" else {})}
    ways, one = WAYS[kind], tmp_path / "one"
    one.mkdir()
    for done, (ranks, mode, more) in enumerate(ways):
        words = [word for pair in {**keys, **more}.items() for word in pair]
        rank_runs.together(ranks, SCRIPT, tmp_path, "go-on", mode, done + 1, *words, seconds=600)
        if done:
            read, ended = (torch.load(tmp_path / f"{name}-{done}.pt") for name in ("read", "ended"))
            assert read.keys() == ended.keys()
            assert [name for name in read if not torch.equal(read[name], ended[name])] == []
    words = [word for pair in keys.items() for word in pair]
    rank_runs.together(1, SCRIPT, one, "go-on", "replicate", len(ways), *words, seconds=600)
    ours, theirs = (torch.load(folder / f"ended-{len(ways)}.pt") for folder in (tmp_path, one))
    gap, worst = rank_runs.gap_of_weights(
        *({n: t for n, t in state.items() if not n.startswith("optimizer/")} for state in (ours, theirs))
    )
    assert gap <= 1e-5, worst
