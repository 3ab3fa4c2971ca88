"""The FLOPs that a run says it did, against torch's own count of products; and what it says is the machine's peak."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import tiny_runs
from small_models import favour
from unigrpo.costs.counting import Counting
from unigrpo.models.bagel.config import VisionConfig
from unigrpo.models.bagel.transformer import BagelModel
from unigrpo.models.bagel_files.checkpoint import save_policy
from unigrpo.models.bagel_files.pretrained import Bagel
from unigrpo.models.micro import initialise
from unigrpo.reports import runlog
from unigrpo.rollout.episode import Episode
from unigrpo.training.clock import Clock
from unigrpo.training.flops import Effort, counting_of, drawn, iteration_flops, packed_of, row_of, utilization
from unigrpo.training.peak import STATED, Peak, peak_of, stated
from unigrpo.trajectory import Image, View


def pairs(q, k):
    return q[0] * q[1] * q[2] * k[2] * q[3]


def counted():
    """torch's count of products with a CPU's attention, which it leaves out."""
    ops = torch.ops.aten
    return FlopCounterMode(
        display=False,
        custom_mapping={
            ops._scaled_dot_product_flash_attention_for_cpu: lambda q, k, *_, **__: 4 * pairs(q, k),
            ops._scaled_dot_product_flash_attention_for_cpu_backward: lambda _, q, k, *__, **___: 10 * pairs(q, k),
        },
    )


def products(counter):
    """All products but the convolutions of the picture's decoder."""
    return sum(n for name, n in counter.get_flop_counts()["Global"].items() if "convolution" not in str(name))


def sizes_of(trainer):
    sizes = trainer.parts.policy.sizes
    assert sizes is not None
    return sizes


def rows_of(trainer, samples):
    rows = [row_of(t, trainer.recipe) for t in samples]
    assert all(row is not None for row in rows)
    return [row for row in rows if row is not None]


def test_an_iteration_is_counted_as_torch_counts_it(tmp_path):
    """Of one prompt, whose thinking never ends: all rows have one length, so that nothing is padded."""
    trainer = tiny_runs.trainer_of(tmp_path, data__prompts_per_iteration=1)
    counts = counting_of(trainer.recipe, sizes_of(trainer))
    with counted() as rollout:
        collected = trainer.parts.source.collect(trainer.parts.policy, 0, Clock())
    rows = rows_of(trainer, collected.samples)
    assert drawn(trainer.recipe, counts, rows) == products(rollout)
    with counted() as reference:
        batch, _ = trainer.annotate(collected, 0)
    assert counts.replay(packed_of(rows, counts)) == products(reference)
    with counted() as update:
        trainer.update(batch)
    whole = iteration_flops(trainer.recipe, sizes_of(trainer), collected)
    assert whole == pytest.approx(products(rollout) + products(reference) + products(update), rel=0.02)


SEEING = {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 2, "image_size": 32}
SEEING |= {"patch_size": 8, "max_patches_per_side": 4}


@pytest.fixture(scope="module")
def looking(tmp_path_factory):
    """Models like that of the tiny runs, with a vision tower and without; their thinkings never end."""
    folders, plain = [], Bagel.load(tiny_runs.model_folder())
    for vision in (None, VisionConfig(**SEEING)):
        model = BagelModel(replace(plain.config, vision=vision))
        initialise(model, 3)
        with torch.no_grad():
            model.llm2vae.weight.normal_(0.0, 0.1)
        folders.append(tmp_path_factory.mktemp("looking") / "model")
        save_policy(Bagel(model, plain.tokenizer, plain.autoencoder), folders[-1])
    return folders


ROUNDS = {
    "plain": (False, {}),
    "through": (True, {"method__image_grad_through_context": True}),
    "flow": (True, {"method": "{name: flow_grpo, regulariser: {weight: 0.3}}"}),
    "text": (False, {"method": "{name: text_grpo}", "method__text__kl_weight": 0.1}),
    "told": (True, {"rollout__rethink": "red ring"}),
    "shared": (True, {"rollout__images_per_thinking": 2, "data__group_size": 4, "method__text__kl_weight": 0.1}),
}


@pytest.mark.parametrize("name", ROUNDS)
def test_rounds_are_counted_as_torch_counts_them(tmp_path, monkeypatch, looking, name):
    """Forwards to the digit; backwards but for the first layers, whose inputs need no gradient."""
    tower, options = ROUNDS[name]
    more = {"model__path": looking[tower], "data__prompts_per_iteration": 1, "rollout__rounds": 3, **options}
    trainer = tiny_runs.trainer_of(tmp_path, **more)
    eos = trainer.parts.policy.config.eos_token_id
    favour(monkeypatch, trainer.parts.policy, eos, float("-inf"))  # no thinking ends: nothing is padded
    counts = counting_of(trainer.recipe, sizes_of(trainer))
    with counted() as rollout:
        collected = trainer.parts.source.collect(trainer.parts.policy, 0, Clock())
    rows = rows_of(trainer, collected.samples)
    assert all(row.looked == 2 * 64 and len(row.views) == 2 * tower for row in rows)
    assert drawn(trainer.recipe, counts, rows) == products(rollout)
    with counted() as reference:
        batch, _ = trainer.annotate(collected, 0)
    packed = [packed_of(rows[start : start + 4], counts) for start in (0, 4)]
    assert sum(map(counts.replay, packed)) == products(reference)
    with counted() as update:
        trainer.update(batch)
    whole = iteration_flops(trainer.recipe, sizes_of(trainer), collected)
    assert whole == pytest.approx(products(rollout) + products(reference) + products(update), rel=0.06)


def test_samples_that_stop_cost_less(tmp_path, monkeypatch):
    costs = []
    for ends in (False, True):
        monkeypatch.setattr(Episode, "ends", lambda self, words, ends=ends: ends)
        stop = {"rollout__rounds": 2, "rollout__stop": "said", "rollout__stop_words": "[over]"}
        trainer = tiny_runs.trainer_of(tmp_path, **stop)
        collected = trainer.parts.source.collect(trainer.parts.policy, 0, Clock())
        costs.append(iteration_flops(trainer.recipe, sizes_of(trainer), collected))
    assert costs[1] < 0.75 * costs[0]


def test_padding_is_not_counted_and_micro_batches_are(tmp_path):
    trainer = tiny_runs.trainer_of(tmp_path, data__prompts_per_iteration=3, optimizer__micro_batch=3)
    collected = trainer.parts.source.collect(trainer.parts.policy, 0, Clock())
    counts, rows = counting_of(trainer.recipe, sizes_of(trainer)), rows_of(trainer, collected.samples)
    with counted() as reference:
        trainer.annotate(collected, 0)
    ours = sum(counts.replay(packed_of(rows[start : start + 3], counts)) for start in (0, 3, 6))
    assert 0.9 * products(reference) < ours <= products(reference)
    apart = sum(counts.replay(packed_of([row], counts)) for row in rows)
    assert apart > ours  # alone, every row reads its prompt again


def test_demonstrations_are_counted(tmp_path):
    trainer = tiny_runs.trainer_of(tmp_path, tiny_runs.PRETRAIN)
    collected = trainer.parts.source.collect(trainer.parts.policy, 0, Clock())
    batch, _ = trainer.annotate(collected, 0)
    with counted() as update:
        trainer.update(batch)
    ours = iteration_flops(trainer.recipe, sizes_of(trainer), collected)
    assert ours == pytest.approx(products(update), rel=0.05)


def test_a_thinking_that_pictures_share_is_counted_once(tmp_path):
    trainer = tiny_runs.trainer_of(tmp_path, data__prompts_per_iteration=1, data__group_size=4)
    shared = replace(trainer.recipe, rollout=replace(trainer.recipe.rollout, images_per_thinking=2))
    collected = trainer.parts.source.collect(trainer.parts.policy, 0, Clock())
    counts = counting_of(shared, sizes_of(trainer))
    rows = [row for t in collected.samples if (row := row_of(t, shared)) is not None]
    one = counts.think(1, rows[0].before, rows[0].after, rows[0].scored)
    assert drawn(trainer.recipe, counts, rows_of(trainer, collected.samples)) - drawn(shared, counts, rows) == 2 * one
    assert packed_of(rows, counts).scored == 2 * rows[0].scored


def test_what_cannot_be_counted_has_no_figures(tmp_path):
    trainer = tiny_runs.trainer_of(tmp_path)
    collected = trainer.parts.source.collect(trainer.parts.policy, 0, Clock())
    sizes, recipe = sizes_of(trainer), trainer.recipe
    guided = replace(recipe, rollout=replace(recipe.rollout, guidance=2.0))
    assert iteration_flops(guided, sizes, collected) is None
    first = collected.samples[0]
    learned, seen = Image(torch.zeros(1, 4), (1, 1), target=True), View(torch.zeros(1, 12), (1, 1))
    for segments in ((learned, *first.segments), (*first.segments[:-1], seen, first.segments[-1])):
        other = replace(first, segments=segments)
        assert iteration_flops(recipe, sizes, replace(collected, samples=[other])) is None
    seconds = {"rollout": 1.0, "update": 1.0}
    assert Effort(recipe, None, None, 1).of(collected, seconds) == {} == Effort(recipe, None, None, 1).facts
    peak = Peak(1e9, "measured", "CPU", "float32")
    said = Effort(recipe, sizes, peak, 1).of(collected, seconds)
    assert said["utilization"] == pytest.approx(said["flops"] / 2e9, abs=1e-4)
    assert Effort(recipe, sizes, peak, 1).of(replace(collected, samples=[first]), seconds)["flops"] < said["flops"]


def test_utilization_is_of_all_ranks_and_of_the_seconds_that_were_counted():
    seconds = {"rollout": 1.0, "annotate": 0.5, "update": 0.5, "reward": 7.0, "validation": 9.0, "total": 18.0}
    assert utilization(3e9, seconds, 1e9, 3) == pytest.approx(0.5)


def test_what_is_frozen_has_no_backward_of_its_own(tmp_path):
    sizes = sizes_of(tiny_runs.trainer_of(tmp_path))
    rows = [row for row in [row_of(t, tiny_runs.tiny_recipe()) for t in _collected(tmp_path)] if row is not None]
    frozen, full = (Counting(sizes, kind, "full") for kind in ("frozen", "full"))
    assert frozen.replay_backward(packed_of(rows, frozen)) < full.replay_backward(packed_of(rows, full))
    assert frozen.replay(packed_of(rows, frozen)) == full.replay(packed_of(rows, full))


def _collected(folder):
    trainer = tiny_runs.trainer_of(folder)
    return trainer.parts.source.collect(trainer.parts.policy, 0, Clock()).samples


# The peak


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA L4", "L4"),
        ("Tesla T4", None),
    ],
)
def test_the_peak_of_a_known_gpu_is_stated(name, known):
    assert stated(name) == (None if known is None else STATED[known])


def test_the_peak_of_a_processor_is_measured_once():
    peak = peak_of("cpu", torch.float32)
    assert (peak.source, peak.device, peak.dtype) == ("measured", "CPU", "float32") and peak.flops > 1e8
    assert peak_of("cpu", torch.float32) is peak


def test_a_run_says_flops_utilization_and_its_peak():
    folder = tiny_runs.finished_run()
    for line in runlog.read_metrics(folder):
        assert line["flops"] > 0 and line["utilization"] >= 0
    assert runlog.read_json(folder / runlog.ENVIRONMENT)["peak"]["source"] == "measured"
