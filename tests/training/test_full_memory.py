"""Out of memory: which phase it was in, on which rank, and which keys to turn down, with their present values."""

import pytest
import torch

import rank_runs
import tiny_runs
from unigrpo import build, cli, doing, memory
from unigrpo.memory import OutOfMemory
from unigrpo.recipe import load_recipe
from unigrpo.rewards import registry
from unigrpo.rollout import sample
from unigrpo.training import annotating, full_memory, parallel
from unigrpo.training import trainer as trainer_module
from unigrpo.training.parallel import World

CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB"


def runs_out(*arguments, **options):
    doing.say("step 3 of 8")
    raise torch.OutOfMemoryError(CUDA)


def in_rollout(monkeypatch, trainer):
    monkeypatch.setattr(sample, "rollout", runs_out)


def in_annotate(monkeypatch, trainer):
    monkeypatch.setattr(annotating, "annotate_reference", runs_out)


def in_update(monkeypatch, trainer):
    monkeypatch.setattr(trainer_module, "update", runs_out)


def in_evaluation(monkeypatch, trainer):
    trainer.parts.evaluator = type("Evaluator", (), {"validate": staticmethod(runs_out)})()


@pytest.mark.parametrize(
    ("where", "phase", "first"),
    [
        (in_rollout, "drawing samples (step 3 of 8)", "rollout.batch (now null): 3 instead of all 6 at a time; "),
        (in_annotate, "asking the reference (step 3 of 8)", "optimizer.micro_batch (now 4): 2, "),
        (in_update, "updating (step 3 of 8)", "optimizer.micro_batch (now 4): 2, which changes no number but rounding; "
         "model.activation_checkpointing (now false): true; optimizer.kind (now adamw): "
         "adamw_8bit with optimizer.eps_denoising 1e-8; "),
        (in_evaluation, "evaluating (step 3 of 8)", "rollout.batch (now null): 3 instead of all 6 at a time; "),
    ],
)  # fmt: skip
def test_the_phase_and_its_keys_are_told(tmp_path, monkeypatch, where, phase, first):
    trainer = tiny_runs.trainer_of(tmp_path, eval__every=1)
    trainer._evaluate = lambda when, progress: None
    where(monkeypatch, trainer)
    with pytest.raises(OutOfMemory) as told:
        tiny_runs.train(trainer)
    words = str(told.value)
    assert words.startswith(f"out of memory while {phase}: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0")
    assert f". Turn down, in this order: {first}" in words and "GB" in words
    assert isinstance(told.value.__cause__, torch.OutOfMemoryError)


def test_a_reward_without_memory_is_no_fault_of_its_pictures(tmp_path, monkeypatch):
    """With drop_sample too: every sample of such a reward would be left out."""
    monkeypatch.setitem(registry._FACTORIES, "tests/large", lambda: large)

    def large(images, prompts, metadata, thinking):
        if len(prompts) > 1:  # the trial at the start has one picture
            runs_out()
        return [0.0]

    keys = {"reward__train": "[{name: tests/large}]", "reward__on_error": "drop_sample"}
    trainer = tiny_runs.trainer_of(tmp_path, **keys)
    trainer._evaluate = lambda when, progress: None
    with pytest.raises(OutOfMemory, match=r"while scoring: .*reward.train \(now tests/large, shapes/verifier\)"):
        tiny_runs.train(trainer)


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, MemoryError])
def test_loading_ends_the_command_with_a_sentence(tmp_path, monkeypatch, capsys, kind):
    def fails(*arguments):
        raise kind("not enough")

    monkeypatch.setattr(build, "parts", fails)
    words = tiny_runs.overrides(model__dtype="float32")
    assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, "--out", tmp_path / "run", *words) == 2
    said = capsys.readouterr().err
    assert said.startswith("unigrpo: error: out of memory while loading the model: not enough")
    assert "in this order: model.dtype (now float32): bfloat16; model.lora (now null)" in said


def test_other_verbs_say_it_too(capsys):
    assert cli.guarded(runs_out) == 2
    assert "draw fewer pictures at a time (--batch)" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="the cable"):
        cli.guarded(lambda: (_ for _ in ()).throw(RuntimeError("the cable is out of memory")))


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (torch.OutOfMemoryError(CUDA), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), True),
        (RuntimeError("Error out of memory at line 380 in file /src/csrc/pythonInterface.cpp"), True),  # bitsandbytes
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (MemoryError(), True),
        (RuntimeError("the judge is out of memory of what was said"), False),
        (ValueError("CUDA out of memory"), False),
        (OutOfMemory("told already"), False),
    ],
)
def test_what_says_that_memory_is_full(error, full):
    assert memory.is_full(error) is full


def test_a_real_allocation_that_fails_is_one():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert memory.is_full(caught.value)


def test_only_what_can_be_turned_down_is_named():
    least = ["--optimizer.micro_batch=1", "--model.activation_checkpointing=true"]
    least += ["--parallel.mode=shard", "--parallel.rollout_weights=sharded"]
    least += ["--parallel.cpu_offload=true", "--model.dtype=bfloat16", "--rollout.batch=1"]
    least += ["--model.lora", "{rank: 4}", "--model.autoencoder=tiled"]
    advice = full_memory.advice_for(load_recipe("bagel/unigrpo", least))
    assert advice(full_memory.UPDATE) == (
        "Turn down, in this order: rollout.max_think_tokens (now 1024): shorter thinking"
    )
    assert advice(full_memory.LOADING).startswith("nothing of this recipe can be turned down further")
    advice = full_memory.advice_for(load_recipe("bagel/unigrpo", ["--parallel.mode=shard"]))
    assert advice(full_memory.REFRESH).startswith(
        "Turn down, in this order: parallel.rollout_weights (now replica): sharded, without a copy of the weights; "
        "parallel.cpu_offload (now false): true"
    )
    words = full_memory.advice_for(load_recipe("shapes/pretrain"))(full_memory.ROLLOUT)
    assert "rollout" not in words.replace("parallel.rollout_weights", "")


def test_the_memory_of_another_rank_is_told_as_that_ranks(monkeypatch):
    """Both sides of ``together``: rank 1 ends without a word, and rank 0 has its words."""
    said = []

    def gather(self, value):
        said.append(value)
        return [(None, False), value] if self.rank == 1 else [value, said[0]]

    monkeypatch.setattr(World, "gather", gather)
    with pytest.raises(parallel.Told), memory.phase(full_memory.ROLLOUT), World(1, 2).together():
        runs_out()
    with pytest.raises(parallel.OtherRank) as told, memory.phase(full_memory.ROLLOUT), World(0, 2).together():
        pass
    assert str(told.value).startswith("rank 1: out of memory while drawing samples (step 3 of 8): CUDA out of memory")


@pytest.mark.slow
def test_a_rank_without_memory_ends_the_run_with_its_words(tmp_path):
    own = tmp_path / "large.py"
    own.write_text(
        "import os\nimport torch\n\n\ndef score(images, prompts, metadata, thinking):\n"
        "    if os.environ.get('RANK') == '1' and len(prompts) > 1:\n"
        f"        raise torch.OutOfMemoryError({CUDA!r})\n    return [0.5] * len(prompts)\n"
    )
    words = tiny_runs.overrides(reward__train=f"[{{name: {own}:score}}]")
    code, out, err = rank_runs.unigrpo(
        "train", tiny_runs.UNIGRPO, "--nproc", "2", "--out", tmp_path / "run", *words, seconds=300
    )
    assert code == 2, out + err
    assert "unigrpo: error: rank 1: out of memory while scoring" in err and "Traceback" not in err
