"""ReFL takes one step along the gradient of every differentiable reward that ships, on a micro model."""

import math

import pytest
import torch

import tiny_runs
from reward_models import make_clip, make_qwen
from unigrpo.reports import runlog
from unigrpo.rewards import registry
from unigrpo.rewards.clip import Aesthetic, ClipScore, HpsV2, PickScore
from unigrpo.rewards.vlm import VlmYes


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    clip, qwen = tmp_path_factory.mktemp("clip"), tmp_path_factory.mktemp("qwen")
    make_clip(clip)
    make_qwen(qwen)
    torch.manual_seed(0)
    torch.save({f"0.{k}": v.detach() for k, v in torch.nn.Linear(12, 1).state_dict().items()}, clip / "head.pth")
    return str(clip), str(qwen)


REWARDS = {
    "clip/score": lambda clip, qwen: ClipScore(model=clip),
    "clip/pickscore": lambda clip, qwen: PickScore(model=clip),
    "clip/hpsv2": lambda clip, qwen: HpsV2(model=clip, weights=""),
    "clip/aesthetic": lambda clip, qwen: Aesthetic(model=clip, head=f"{clip}/head.pth"),
    "vlm/yes": lambda clip, qwen: VlmYes(model=qwen, dtype="float32"),
}


@pytest.mark.parametrize("name", REWARDS)
def test_refl_takes_a_step_along_its_gradient(name, folders, tmp_path):
    reward = REWARDS[name](*folders)
    with registry.meaning({name: reward}):
        trainer = tiny_runs.trainer_of(
            tmp_path / "run",
            method="{name: refl}",
            method__regulariser="{weight: 0.0}",
            reward__train=f"[{{name: {name}}}]",
            rollout__think=False,
            iterations=1,
            eval__every=9,
        )
        before = {key: value.detach().clone() for key, value in trainer.parts.policy.module.named_parameters()}
        assert tiny_runs.train(trainer)
    moved = [k for k, v in trainer.parts.policy.module.named_parameters() if not torch.equal(v.detach(), before[k])]
    (line,) = runlog.read_metrics(tmp_path / "run")
    assert moved and "llm2vae.weight" in moved
    assert 0 < line["grad_norm"]["denoising"] < math.inf and math.isfinite(line["reward_mean"])
    assert line["image"].keys() == {"refl_reward"} and math.isfinite(line["image"]["refl_reward"])  # and nothing else
