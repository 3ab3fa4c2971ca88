"""A random micro model in a folder, tiny recipes for it, and one finished run that many tests look at or copy."""

import functools
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

import unigrpo as package
from unigrpo import build, cli
from unigrpo.models.bagel.autoencoder import ConvAutoencoder, ConvAutoencoderConfig
from unigrpo.models.bagel.config import VisionConfig
from unigrpo.models.bagel.transformer import BagelModel
from unigrpo.models.bagel_files.checkpoint import save_policy
from unigrpo.models.bagel_files.pretrained import Bagel
from unigrpo.models.micro import build_micro, initialise, micro_config, micro_tokenizer
from unigrpo.recipe import load_recipe, to_yaml
from unigrpo.reports.progress import Progress
from unigrpo.reports.runlog import read_metrics
from unigrpo.training import checkpoint, shards
from unigrpo.training.trainer import Stop, Trainer
from unigrpo.worlds.shapes import vocabulary
from unigrpo.worlds.shapes.edit_prompts import WORDS

UNIGRPO, PRETRAIN, EDIT = "shapes/unigrpo", "shapes/pretrain", "shapes/edit"
ITERATIONS = 4
TIMES = ("seconds", "samples_per_second", "utilization")  # the only parts of a metric line that a second run may change
_EVALUATION = {"eval.limit": 6, "eval.compare_limit": 6, "eval.compare_samples": 1, "eval.every": 2}
_RL = {
    "data.prompts_per_iteration": 2,
    "data.group_size": 3,
    "rollout.max_think_tokens": 8,
    "rollout.num_points": 9,
    "rollout.window": [0, 5],
    "rollout.window_size": 3,
    "method.regulariser": "{kind: velocity_mse, weight: 0.3}",
    "optimizer.lr_reasoning": 2e-4,
    "optimizer.lr_denoising": 6e-5,
    "optimizer.ppo_epochs": 2,
    "optimizer.minibatches": 1,
    "optimizer.micro_batch": 4,  # of 6 trajectories
}
_SUPERVISED = {"data.batch_size": 4, "optimizer.micro_batch": 3, "optimizer.warmup": 1, "optimizer.decay": 0.5}
_SUPERVISED |= {"optimizer.ema": 0.9}
_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_layers": 1, "num_heads": 2, "image_size": 32}
_TOWER |= {"patch_size": 8, "max_patches_per_side": 4}
_KEPT = tempfile.TemporaryDirectory(prefix="unigrpo-tests-")  # removed when the tests end


@functools.cache
def model_folder():
    """A micro model with random weights: it writes words at random up to the cap, and draws noise."""
    folder = Path(_KEPT.name) / "model"
    torch.manual_seed(0)
    autoencoder = ConvAutoencoder(ConvAutoencoderConfig()).requires_grad_(False)
    policy = build_micro(vocabulary(), autoencoder, seed=1)
    with torch.no_grad():  # a velocity head of zeros would hide much
        policy.model.llm2vae.weight.normal_(0.0, 0.1)
    save_policy(policy, folder)
    return folder


@functools.cache
def seeing_folder():
    """A micro model with random weights that can look at pictures, and knows the words of edits."""
    folder = Path(_KEPT.name) / "seeing"
    torch.manual_seed(0)
    autoencoder = ConvAutoencoder(ConvAutoencoderConfig()).requires_grad_(False)
    tokenizer = micro_tokenizer([*vocabulary(), *(word for word in WORDS if word not in vocabulary())])
    config = replace(
        micro_config(tokenizer.inner.get_vocab_size(), autoencoder), max_latent_size=4, vision=VisionConfig(**_TOWER)
    )
    model = BagelModel(config)
    initialise(model, 1)
    with torch.no_grad():
        model.llm2vae.weight.normal_(0.0, 0.1)
    save_policy(Bagel(model, tokenizer, autoencoder), folder)
    return folder


def overrides(recipe=UNIGRPO, **other):
    """The command line's overrides that make a recipe tiny, and fix what tuning may change; __ in a key is a dot."""
    chosen = {"iterations": ITERATIONS, "checkpoint.every": 1, **_EVALUATION}
    if recipe in (UNIGRPO, EDIT):
        chosen |= {"model.path": model_folder() if recipe == UNIGRPO else seeing_folder(), **_RL}
        chosen |= {} if "method" in other else {"method.text.kl_weight": 0.0}
    else:
        chosen |= _SUPERVISED
    chosen |= {key.replace("__", "."): value for key, value in other.items()}
    return [word for key, value in chosen.items() for word in (f"--{key}", str(value))]


def tiny_recipe(recipe=UNIGRPO, **other):
    return load_recipe(recipe, overrides(recipe, **other))


def trainer_of(run_dir, recipe=UNIGRPO, **other):
    chosen = tiny_recipe(recipe, **other)
    return Trainer(chosen, build.parts(chosen), Path(run_dir), Stop())


class Silent(Progress):
    """Shows nothing; ``after`` is called with every finished iteration."""

    def __init__(self, total=ITERATIONS, after=lambda line: None):
        super().__init__("tiny", total, console=Console(file=io.StringIO()))
        self.after = after

    def update(self, line):
        self.after(line)


def train(trainer, after=lambda line: None):
    """Write what the command line writes at the start, then train silently."""
    trainer.recorder.start(to_yaml(trainer.recipe))
    return trainer.run(Silent(trainer.recipe.iterations, after))


def unigrpo(*arguments):
    """Run the command line in this process and return its exit code."""
    try:
        return cli.run([str(argument) for argument in arguments])
    except SystemExit as left:  # what the parser of options refuses
        return left.code


def killed_after_its_first_checkpoint(run_dir, recipe, *words):
    """A training in a process of its own, killed by SIGKILL as soon as its first checkpoint is there."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(package.__file__).parents[1]),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),  # other threads, other sums
    }
    command = [sys.executable, "-m", "unigrpo", "train", recipe, "--out", str(run_dir), *words]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not checkpoint.folder_of(run_dir, 1).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    assert process.wait(timeout=60) == -signal.SIGKILL


@functools.cache
def finished_run():
    """The folder of an uninterrupted run by the command line; copy it before changing anything in it."""
    folder = Path(_KEPT.name) / "run"
    assert unigrpo("train", UNIGRPO, "--out", folder, *overrides()) == 0
    return folder


def copied_run(folder):
    return Path(shutil.copytree(finished_run(), folder))


def listed(folder):
    """Every path below a folder."""
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))


def lines_of(run_dir):
    """The metric lines without wall-clock times."""
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(run_dir)]


def final_state(run_dir):
    """Every tensor of the newest checkpoint: the model's, the optimizer's and, with an average, the raw weights."""
    newest = checkpoint.complete(Path(run_dir))[-1]
    done = torch.tensor(checkpoint.load(newest).done)
    weights = checkpoint.load_file(newest / "model.safetensors") if (newest / "model.safetensors").is_file() else {}
    return {"done": done, **shards.read_whole(newest), **checkpoint.prefixed("model", weights)}


def assert_same_run(ours, theirs, reward="shapes/verifier"):
    """The same metric lines, newest checkpoints equal bit for bit; ``reward``: what ours calls it."""
    renamed = [
        {**line, "reward_values": {n.replace(reward, "shapes/verifier"): v for n, v in line["reward_values"].items()}}
        if "reward_values" in line
        else line
        for line in lines_of(ours)
    ]
    assert renamed == lines_of(theirs)
    first, second = final_state(ours), final_state(theirs)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, f"{len(different)} of {len(first)} tensors differ, first {different[0]}"
