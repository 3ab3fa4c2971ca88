"""What the formulas say that ranks send each other, against bytes counted on 2 and 4 CPU ranks (counted_ranks.py)."""

import functools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from counted_ranks import CASES
from test_scaling import SIZES
from unigrpo.costs.sizes import BAGEL_7B
from unigrpo.recipe import load_recipe
from unigrpo.tools.planning import communication, memory
from unigrpo.tools.planning.scaling import estimate
from unigrpo.tools.planning.workload import Layout

HERE = Path(__file__).parent


@functools.cache
def counted(ranks, names=tuple(CASES)):
    path = os.pathsep.join([str(HERE), str(HERE.parent / "scripts"), str(HERE.parent / "src")])
    command = [sys.executable, str(HERE / "counted_ranks.py"), str(ranks), *names]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


RANKS = [pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("name", CASES)
def test_weights_that_are_gathered(name, ranks):
    check_weights(name, counted(ranks)[name], ranks)


def check_weights(name, seen, ranks):
    work, entries = CASES[name].estimate.work, seen["entries"]
    forward = communication.gathered(ranks, communication.forward_gathers(work, entries))
    flowing = 1 if name == "flow" else entries  # no gradient passes through the words of flow_grpo
    backward = communication.gathered(ranks, communication.backward_gathers(work, flowing))
    assert seen["scored"]["gather"] == seen["forward"]["gather"] == pytest.approx(forward, rel=1e-9)
    assert seen["backward"]["gather"] == pytest.approx(backward, rel=1e-9)
    assert seen["scored"]["scatter"] == seen["forward"]["scatter"] == seen["scored"]["reduce"] == 0


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("name", CASES)
def test_gradients_that_are_reduced_and_scattered(name, ranks):
    seen, work = counted(ranks)[name], CASES[name].estimate.work
    most = communication.gathered(ranks, communication.backward_passes(work) * 4 * memory.trained(work))
    if communication.backward_passes(work) == 1:
        assert seen["backward"]["scatter"] == pytest.approx(most, rel=1e-9)
    else:  # of 3 layers; the last one's unused parts and the other loss's head have no gradient
        assert 0.65 * most <= seen["backward"]["scatter"] <= most


@pytest.mark.slow
def test_two_ranks_send_what_the_formulas_say():
    seen = counted(2, ("text",))
    check_weights("text", seen["text"], 2)
    work = CASES["text"].estimate.work
    assert seen["text"]["backward"]["scatter"] == communication.gathered(2, 4 * memory.trained(work))
    assert seen["replicate"]["update"]["reduce"] == communication.reduced(2, 4 * memory.trained(work))


@pytest.mark.parametrize("ranks", RANKS)
def test_gradients_that_are_reduced_to_all(ranks):
    seen = counted(ranks)["replicate"]
    for name, case in (("update", CASES["text"]), ("update lora", CASES["both lora"])):
        assert seen[name]["reduce"] == communication.reduced(ranks, 4 * memory.trained(case.estimate.work))


@pytest.mark.slow
def test_replicas_reduce_what_each_rank_holds():
    seen, work = counted(4)["text hsdp"], CASES["text"].estimate.work
    gradients = 4 * memory.trained(work)
    assert seen["backward"]["scatter"] == communication.gathered(2, gradients)
    assert seen["backward"]["reduce"] == communication.reduced(2, gradients / 2)


# How the parts make an iteration


def made(layout, name="bagel/unigrpo", sizes=BAGEL_7B, **optimizer):
    recipe = load_recipe(name)
    return estimate(replace(recipe, optimizer=replace(recipe.optimizer, **optimizer)), sizes, layout)


def test_a_ring_sends_what_it_sends():
    assert communication.gathered(4, 100.0) == 75.0 and communication.reduced(2, 100.0) == 100.0
    assert communication.gathered(1, 100.0) == communication.reduced(1, 100.0) == 0.0


def test_one_gpu_sends_nothing():
    assert made(Layout()).traffic.total == made(Layout(1, "replicate")).traffic.total == 0


def test_replicate_sends_gradients_alone_once_a_step():
    one = made(Layout(8, "replicate"))
    assert one.traffic.total == one.traffic.gradients == 2 * 2 * 7 / 8 * 4 * memory.trained(one.work)
    assert made(Layout(8, "replicate"), minibatches=2).traffic.total == 2 * one.traffic.total


def test_shard_sends_weights_for_every_micro_batch():
    few, many = made(Layout(8), micro_batch=4), made(Layout(8), micro_batch=1)
    assert many.traffic.weights == pytest.approx(4 * few.traffic.weights)
    assert many.traffic.gradients == pytest.approx(4 * few.traffic.gradients)
    outside = memory.trained_outside(many.work)
    rounded = 2 * (memory.trained(many.work) - outside)
    assert many.traffic.rollout == few.traffic.rollout == pytest.approx(7 / 8 * (rounded + 4 * outside))


def test_lockstep_sends_all_weights_for_every_word():
    copy, lockstep = made(Layout(8)), made(Layout(8, rollout="sharded"))
    c = lockstep.compute
    forwards = c.portions * (c.think_steps + c.draw_steps + 1)
    assert lockstep.traffic.rollout > 7 / 8 * forwards * communication.layers_bytes(lockstep.work)
    assert lockstep.traffic.weights == copy.traffic.weights


def test_replicas_keep_weights_within_a_node():
    layout = Layout(64, replicas=8)
    hybrid, flat = made(layout), made(Layout(64))
    assert hybrid.traffic.weights == pytest.approx(flat.traffic.weights * (7 / 8) / (63 / 64))
    assert hybrid.traffic.replicas == pytest.approx(2 * 7 / 8 * hybrid.traffic.gradients / 7)
    assert hybrid.traffic.seconds(layout) < flat.traffic.seconds(Layout(64)) / 3
    assert layout.shards == 8 and flat.traffic.replicas == 0


def test_adapters_are_a_hundredth_of_the_gradients():
    lora = made(Layout(8, "replicate"), "bagel/unigrpo-lora-1gpu").traffic.total
    assert lora / made(Layout(8, "replicate")).traffic.total == pytest.approx(0.0228, rel=0.01)


def test_sizes_of_the_counted_model_are_those_of_the_formulas():
    work = CASES["text fp32"].estimate.work
    whole = communication.layers_bytes(work) + communication.root_bytes(work)
    assert whole == 4 * SIZES.model_parameters
