"""A frozen base in 4 bits under adapters: what it refuses, what it takes, and that its gradients are almost the same.

Those that quantise need bitsandbytes (the extra 4bit), which the development environment has not.
"""

import json
import sys

import pytest
import torch
from torch import nn

import tiny_runs
from unigrpo import build
from unigrpo.build import models
from unigrpo.costs.sizes import BAGEL_7B
from unigrpo.policy import ReplayItem
from unigrpo.ranges import ConfigError
from unigrpo.recipe import Model, load_recipe
from unigrpo.tools.planning.memory import FOUR_BITS, packed
from unigrpo.tools.planning.modes import ways_of
from unigrpo.tools.planning.scaling import estimate
from unigrpo.training import checkpoint
from unigrpo.training.adapter_files import BASE, Base
from unigrpo.training.clock import Clock
from unigrpo.training.quantized import is_quantized, quantize, require_whole

LORA = {"model__lora": "{rank: 4, alpha: 8, experts: [reasoning, denoising]}", "model__quantize": "nf4"}
RECIPE = "bagel/unigrpo-lora-24gb"


class Params4bit(nn.Parameter):
    """Is called as bitsandbytes' is, which is how a packed weight is known."""


def stand_in():
    layer = nn.Linear(4, 4)
    layer.weight = Params4bit(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)
    return layer


# What is refused, and what is said of it


def test_4_bits_need_adapters():
    with pytest.raises(ConfigError, match=r"model.quantize = nf4 without model.lora.* set model.lora"):
        Model("builtin:shapes-sft", quantize="nf4")


def test_4_bits_are_not_shared_out():
    with pytest.raises(ConfigError, match=r"model.quantize = nf4 with parallel.mode = shard.* set mode to replicate"):
        load_recipe(RECIPE, ["--parallel.mode", "shard"])
    ways, why = ways_of(load_recipe(RECIPE), 8)
    assert [way.mode for way in ways] == ["replicate"] and "4 bits" in why


def test_without_bitsandbytes_a_run_says_what_to_install_before_it_loads_anything(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(models, "policy", None)
    with pytest.raises(
        ConfigError, match=r"model.quantize = nf4 needs the package bitsandbytes: pip install '.\[4bit\]'"
    ):
        models.quantized(tiny_runs.tiny_recipe(**LORA).model, seed=0, image_side=None)


def test_an_adapter_is_not_merged_into_4_bits():
    with pytest.raises(ConfigError, match=r"cannot be merged .*unigrpo export"):
        require_whole([nn.Linear(4, 4), stand_in()])
    require_whole([nn.Linear(4, 4)])
    assert is_quantized(stand_in()) and not is_quantized(nn.Linear(4, 4)) and not is_quantized(nn.Identity())


def test_the_note_of_an_adapter_says_how_its_base_was_held(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "b"}))
    Base("b", "0" * 64, quantize="nf4").write(tmp_path)
    assert Base.read(tmp_path) == Base("b", "0" * 64, quantize="nf4")
    Base("b", "0" * 64).write(tmp_path)
    assert "quantize" not in json.loads((tmp_path / BASE).read_text())
    (tmp_path / BASE).write_text(json.dumps({"sha256": "0" * 64, "quantize": 4}))
    with pytest.raises(ValueError, match="damaged"):
        Base.read(tmp_path)


# The dry run


def test_the_recipe_for_24_gb_fits():
    made = estimate(load_recipe(RECIPE), BAGEL_7B)
    assert made.memory.peak <= 22e9
    whole = estimate(load_recipe(RECIPE, ["--model.quantize", "none"]), BAGEL_7B)
    saved = whole.memory.weights - made.memory.weights
    assert saved == pytest.approx((2 - FOUR_BITS) * packed(made.work)) and saved > 16e9
    assert made.memory.casts > whole.memory.casts  # a matrix is made anew for its product
    assert made.compute.bytes_per_step < whole.compute.bytes_per_step


# With bitsandbytes


@pytest.fixture
def bitsandbytes():
    pytest.importorskip("peft")
    return pytest.importorskip("bitsandbytes")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_trains_adapters_on_4_bits(tmp_path, bitsandbytes, dtype):
    trainer = tiny_runs.trainer_of(tmp_path, model__dtype=dtype, **LORA)
    module = trainer.parts.policy.module
    held = {name for name, layer in module.named_modules() if is_quantized(layer)}
    assert len(held) == 4 * 2 * 3 and all(".mlp" in name and ".layers." in name for name in held)
    before = {name: p.detach().clone() for name, p in module.named_parameters() if ".lora_" not in name}
    first, second = trainer.iterate(0), trainer.iterate(1)
    assert first["first_update"]["text_log_ratio_max"] <= 1e-5
    assert first["first_update"]["image_log_ratio_max"] <= 1e-7
    assert min(first["grad_norm"].values()) > 0 and second["flow"]["mse"] > 0
    assert all(torch.equal(p, before[n]) for n, p in module.named_parameters() if n in before)


def test_a_resumed_run_is_the_same_and_its_adapter_stands_on_the_whole_base(tmp_path, bitsandbytes):
    whole = tmp_path / "whole"
    tiny_runs.train(tiny_runs.trainer_of(whole, iterations=2, **LORA))
    half = tiny_runs.trainer_of(tmp_path / "half", iterations=2, **LORA)
    half.recorder.metrics(half.iterate(0))
    half.done, half.steps = 1, half.optimizer.steps
    half.save()
    again = tiny_runs.trainer_of(tmp_path / "half", iterations=2, **LORA)
    assert again.resume() == 1
    again.iterate(1)
    ours = {n: p for n, p in again.parts.policy.module.named_parameters() if ".lora_" in n}
    folder = checkpoint.complete(whole)[-1]
    note, saved = Base.read(folder), checkpoint.load_file(folder / "adapter_model.safetensors")
    assert note is not None and note.quantize == "nf4"
    assert note.key == models.base_key(str(tiny_runs.model_folder()), 0)
    assert len(ours) == len(saved)
    for name, tensor in saved.items():
        key = name.removeprefix("base_model.model.").replace("_A.weight", "_A.default.weight")
        torch.testing.assert_close(ours[key.replace("_B.weight", "_B.default.weight")].detach(), tensor, rtol=0, atol=0)
    drawn = build.policy(Model(str(folder)))  # of generate and eval: the base as it is in its files
    assert not any(is_quantized(layer) for layer in drawn.module.modules())
    assert not any(is_quantized(layer) for layer in build.policy(Model(str(folder)), merge=True).module.modules())


def test_another_base_is_noticed_when_a_run_is_resumed(tmp_path, bitsandbytes):
    trainer = tiny_runs.trainer_of(tmp_path, **LORA)
    assert (
        trainer.saver.reference_hash
        == tiny_runs.trainer_of(tmp_path / "whole", model__lora=LORA["model__lora"]).saver.reference_hash
    )  # that of the unquantised base


def test_packed_weights_take_the_bytes_that_the_dry_run_says(bitsandbytes):
    layer = nn.Sequential(nn.Linear(512, 512))
    before = layer[0].weight.detach().clone()
    quantize(layer, ["0"], torch.device("cpu"), torch.float32)
    state = layer.state_dict()
    held = sum(state[name].nbytes for name in ("0.weight", "0.weight.absmax", "0.weight.nested_absmax"))
    assert held == pytest.approx(FOUR_BITS * before.numel(), rel=1e-3)
    x = torch.eye(512)
    again = (layer(x) - layer[0].bias).T
    assert 0.05 < float((again - before).norm() / before.norm()) < 0.15
    with pytest.raises(ValueError, match="no linear layer"):
        quantize(layer, ["0"], torch.device("cpu"), torch.float32)


def test_gradients_point_almost_the_same_way(tmp_path, bitsandbytes):
    def gradient(folder, held):
        trainer = tiny_runs.trainer_of(folder, **{**LORA, "model__quantize": held})
        policy = trainer.parts.policy
        collected = trainer.parts.source.collect(policy, 0, Clock())
        return policy, collected

    (whole, collected), (packed_one, _) = gradient(tmp_path / "a", "none"), gradient(tmp_path / "b", "nf4")
    items = [ReplayItem(t.segments) for t in collected.samples]
    both = []
    for policy in (whole, packed_one):
        torch.cat([answer.log_probs for answer in policy.replay(items)]).sum().backward()
        grads = [p.grad for p in policy.parameter_groups()["reasoning"].values() if p.grad is not None]
        both.append(torch.cat([grad.flatten() for grad in grads]))
    assert float(torch.cosine_similarity(*both, dim=0)) > 0.95
