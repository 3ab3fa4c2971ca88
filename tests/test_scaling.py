"""What the dry run says of parameters, memory and FLOPs, against real tensors and counted products.

Parameters, weights, gradients, cache and forward FLOPs must agree to the digit, every other part within 10 % or less.
The measured model is small, but its matrices are large enough that what does not grow with them is a small part. In
fp32 the text attends in fp64 on a CPU only, which the formulas leave out.
"""

import ast
import functools
import math
import weakref
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import write_scaling
from formulas import combination, queries_of
from small_models import TRAINING, favour, normal, prompts, randomise, sample, small_policy
from unigrpo.models.bagel.autoencoder import ConvAutoencoder, ConvAutoencoderConfig
from unigrpo.models.bagel.policy import is_denoising
from unigrpo.models.bagel.transformer import BagelModel
from unigrpo.models.bagel_files.pretrained import Bagel
from unigrpo.models.micro import micro_config
from unigrpo.objectives.regularisers import Regulariser
from unigrpo.policy import ReplayItem, VelocityQuery
from unigrpo.ranges import ConfigError
from unigrpo.recipe import load_recipe
from unigrpo.tools.doctor import planned
from unigrpo.tools.planning import modes
from unigrpo.tools.planning.compute import replay_backward, replay_forward, velocity
from unigrpo.tools.planning.dry_run import auto_line
from unigrpo.tools.planning.layouts import USABLE, choose, layouts, named
from unigrpo.tools.planning.memory import activations, drawn_casts, logits, step_working, token_bytes
from unigrpo.tools.planning.model_sizes import sizes
from unigrpo.tools.planning.modes_report import ASSUMED, SIDES, at_size, modes_report
from unigrpo.tools.planning.scaling import GPUS, SHARDED, estimate, scaling_report
from unigrpo.tools.planning.sizes import BAGEL_7B, ModelSizes, flux_autoencoder, small_autoencoder
from unigrpo.tools.planning.workload import Layout
from unigrpo.training.lora import Adapter
from unigrpo.training.optimizer import ExpertOptimizer
from unigrpo.training.update import Batch, annotate_reference, rescore, update
from unigrpo.trajectory import FlowPath, Image, Prompt, Text, Trajectory

HERE = Path(__file__).parent
DOC = (HERE.parent / "docs" / "scaling.md").read_text(encoding="utf-8")
SIZES = ModelSizes(700, 128, 500, 3, 4, 2, 32, 16, 8, 8, (64, 64))
PROMPT, ACTIONS, COPIES, RANK, GROUP = 30, 50, 3, 8, 4
EXAMPLES = {"one GPU": "bagel/unigrpo-lora-1gpu", "64 GPUs": "bagel/unigrpo"}


@dataclass(frozen=True)
class Case:
    """A small recipe: what is measured differs in these."""

    method: str = "unigrpo"
    dtype: str = "bfloat16"
    lora: bool = False
    micro: int = 1
    again: bool = False
    think: bool = True

    def __str__(self):
        words = [self.method, self.dtype, "lora" * self.lora, f"micro{self.micro}", "again" * self.again]
        return "-".join([w for w in words if w] + ["silent"] * (not self.think))

    @property
    def recipe(self):
        lora = f"{{rank: {RANK}, alpha: {RANK}, experts: [reasoning, denoising]}}" if self.lora else "null"
        method = "{name: %s}" % self.method  # noqa: UP031
        options = {
            "method": method,
            "model.dtype": self.dtype,
            "model.lora": lora,
            "model.activation_checkpointing": self.again,
            "data.prompts_per_iteration": 1,
            "data.group_size": GROUP,
            "rollout.think": self.think,
            "optimizer.micro_batch": self.micro,
        }
        return load_recipe("shapes/unigrpo", [f"--{key}={value}" for key, value in options.items()])

    @property
    def estimate(self):
        return estimate(self.recipe, SIZES, prompt_tokens=PROMPT, actions=ACTIONS)

    @property
    def policy(self):
        """The model as a run of this recipe holds it: what is trained in fp32, the rest in the dtype."""
        autoencoder = ConvAutoencoder(ConvAutoencoderConfig(width=4, groups=2))
        shape = replace(
            micro_config(SIZES.vocab, autoencoder, hidden_size=SIZES.hidden, num_layers=SIZES.layers),
            intermediate_size=SIZES.intermediate,
            image_size=SIZES.image_size,
        )
        model, dtype = BagelModel(shape), getattr(torch, self.dtype)
        randomise(model, 0)
        experts = {"text_grpo": (False,), "flow_grpo": (True,)}.get(self.method, (False, True))
        for name, parameter in model.named_parameters():
            trained = not self.lora and "pos_embed" not in name and is_denoising(name) in experts
            parameter.requires_grad_(trained)
            parameter.data = parameter.data.to(torch.float32 if trained else dtype)
        policy = Bagel(model, None, None, compute_dtype=dtype)
        if self.lora:
            pytest.importorskip("peft")
            targets = policy.adapter_targets([("reasoning", "denoising")[e] for e in experts])
            Adapter.create(model, targets, rank=RANK, alpha=RANK, seed=0, base_name=None)
        model.activation_checkpointing = self.again
        return policy

    @property
    def objective(self):
        none = Regulariser(weight=0.0)
        left_out = {"text_grpo": {"image": None}, "flow_grpo": {"text": None}}.get(self.method, {})
        return combination(regulariser=none, **left_out)


def trajectories(policy, case, count=GROUP):
    """A group of rows of the very sizes that the estimate is asked for."""
    n, d = policy.spec.num_tokens, policy.spec.latent_dim
    given, out = Text(torch.arange(4, 2 + PROMPT)), []
    t = torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64)
    for row in range(count):
        x = normal(COPIES, n, d, seed=row)
        path = FlowPath((0, 1, 2), t, t - 0.1, 0.9, x, x + 0.1, x, torch.full((COPIES,), 0.3), torch.zeros(COPIES), 0.8)
        picture = Image(normal(n, d, seed=row), policy.spec.grid, None if case.method == "text_grpo" else path)
        said = Text(torch.arange(4, 4 + ACTIONS) + row, ended=False, log_probs=torch.full((ACTIONS,), -7.0))
        segments = (given, *([said] if case.think else []), picture)
        advantage = 1.0 if row % 2 else -1.0
        out.append(Trajectory(Prompt(0, ""), row, segments).with_advantages(advantage, advantage))
    return out


def batch_of(policy, case, count=GROUP):
    rows = trajectories(policy, case, count)
    return Batch(rows, [queries_of(case.objective, row, torch.Generator()) for row in rows])


def items_of(policy, case):
    batch = batch_of(policy, case, case.micro)
    return [
        ReplayItem(row.segments, tuple(VelocityQuery(d.segment, d.x, d.t) for d in draws))
        for row, draws in zip(batch.trajectories, batch.queries, strict=True)
    ]


class Live(TorchDispatchMode):
    """Bytes of the tensors that were made inside and are still there, and the most there ever were."""

    def __init__(self):
        super().__init__()
        self.bytes = self.peak = 0
        self.known = {}

    def _gone(self, key, size):
        self.bytes -= size
        del self.known[key]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self.known and key not in before:
                    self.bytes += size
                    self.known[key] = weakref.finalize(storage, self._gone, key, size)
        self.peak = max(self.peak, self.bytes)
        return out


def products(q, k):
    return q[0] * q[1] * q[2] * k[2] * q[3]


def counted():
    """torch's own count of products, which leaves out a CPU's attention."""
    ops = torch.ops.aten
    forward = ops._scaled_dot_product_flash_attention_for_cpu
    backward = ops._scaled_dot_product_flash_attention_for_cpu_backward
    counts = {
        forward: lambda q, k, *_, **__: 4 * products(q, k),
        backward: lambda _, q, k, *__, **___: 10 * products(q, k),
    }
    return FlopCounterMode(display=False, custom_mapping=counts)


def size_of(tensors):
    """Bytes of distinct storages."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def tensors_of(thing):
    """All tensors in nested dataclasses and tuples."""
    if isinstance(thing, torch.Tensor):
        return [thing]
    parts = thing if isinstance(thing, tuple | list) else vars(thing).values() if hasattr(thing, "__dict__") else ()
    return [tensor for part in parts for tensor in tensors_of(part)]


def shapes_in(name):
    lines = (HERE / "golden" / name).read_text(encoding="utf-8").splitlines()
    return {line.split(None, 1)[0]: ast.literal_eval(line.split(None, 1)[1]) for line in lines}


def count(shapes, chosen=lambda name: True):
    return sum(math.prod(shape) for name, shape in shapes.items() if chosen(name))


# Parameters, to the digit


def test_parameters_are_those_of_the_public_checkpoint():
    shapes = shapes_in("tensors_7b.txt")
    denoising = count(shapes, is_denoising)
    reasoning = count(shapes, lambda n: n.startswith("language_model.") and not is_denoising(n))
    assert BAGEL_7B.model_parameters == count(shapes) == 14_607_260_128
    assert (BAGEL_7B.expert("denoising"), BAGEL_7B.expert("reasoning")) == (denoising, reasoning)
    assert BAGEL_7B.vision_parameters == count(shapes, lambda n: n.startswith("vit_model."))
    assert BAGEL_7B.connector == count(shapes, lambda n: n.startswith("connector."))
    assert BAGEL_7B.tables == count(shapes, lambda n: "pos_embed.pos_embed" in n)


def test_parameters_of_the_autoencoders():
    assert BAGEL_7B.autoencoder_parameters == count(shapes_in("tensors_ae.txt")) == 83_819_683
    for channels, width in ((4, 20), (3, 8)):
        model = ConvAutoencoder(ConvAutoencoderConfig(channels, width))
        assert small_autoencoder(channels, width).parameters == sum(p.numel() for p in model.parameters())


def test_parameters_and_weights_of_a_small_model():
    policy = Case().policy
    reasoning, denoising = policy.reasoning_parameters(), policy.denoising_parameters()
    assert SIZES.expert("reasoning") == sum(p.numel() for p in reasoning.values())
    assert SIZES.expert("denoising") == sum(p.numel() for p in denoising.values())
    assert SIZES.model_parameters == sum(p.numel() for p in policy.model.parameters())


# Memory


@pytest.mark.parametrize("case", [Case(), Case("flow_grpo"), Case("text_grpo", lora=True)], ids=str)
def test_weights_gradients_and_optimizer(case):
    policy, made = case.policy, case.estimate.memory
    optimizer = ExpertOptimizer(policy, case.recipe.optimizer, 1)
    update(policy, optimizer, case.objective, batch_of(policy, case), micro_batch=GROUP, temperature=1.0)
    parameters = list(policy.model.parameters())
    assert made.weights == size_of(parameters)
    assert made.gradients == size_of([p.grad for p in parameters if p.grad is not None])
    assert made.optimizer == pytest.approx(size_of(optimizer.state().values()), rel=0.01)


def test_eight_bit_moments_take_a_quarter_and_a_scale_for_every_block():
    recipe = load_recipe("bagel/unigrpo", ["--optimizer.kind=adamw_8bit", "--optimizer.eps_denoising=1e-8"])
    made = estimate(recipe, BAGEL_7B).memory
    assert made.optimizer == pytest.approx(2 * (1 + 4 / 256) * made.gradients / 4)


KEPT = [
    Case(),
    Case(micro=4),
    Case(lora=True, micro=4),
    Case("flow_grpo", micro=4, think=False),
    Case("text_grpo", lora=True),
    Case(dtype="float32", micro=4),
    Case(lora=True, dtype="float32"),
    Case("flow_grpo", "float32", think=False),
]


@pytest.mark.parametrize("case", KEPT, ids=str)
def test_what_a_replay_keeps_for_its_backward_pass(case):
    policy, made = case.policy, case.estimate
    items = items_of(policy, case)
    with Live() as live:
        answers = policy.replay(items)
        kept = live.bytes
    del answers
    made_logits = logits(made.work)
    assert made.memory.activations + made.memory.casts + made_logits == pytest.approx(kept, rel=0.06)


@pytest.mark.parametrize("case", [replace(case, again=True) for case in KEPT[1:5]], ids=str)
def test_what_stays_of_a_replay_that_computes_its_layers_again(case):
    policy, made = case.policy, case.estimate
    items = items_of(policy, case)
    with Live() as live:
        answers = policy.replay(items)
        kept = live.bytes
    del answers
    made_logits = logits(made.work)
    assert made.memory.activations + made_logits == pytest.approx(kept, rel=0.1)


UPDATES = [Case(), Case(lora=True), Case(again=True), Case(lora=True, again=True)]


@pytest.mark.parametrize("case", UPDATES, ids=str)
def test_peak_of_an_update(case):
    """The second of two updates of two micro-batches each: the most that there is at once, beside the weights."""
    policy, made = case.policy, case.estimate
    optimizer, batch = ExpertOptimizer(policy, case.recipe.optimizer, 1), batch_of(policy, case, 2)
    with Live() as live:
        for _ in range(2):
            live.peak = 0
            update(policy, optimizer, case.objective, batch, micro_batch=case.micro, temperature=1.0)
        peak = live.peak
    always = made.memory.optimizer
    expected = always + max(
        made.memory.update_peak - always - made.memory.weights - made.memory.reference - made.memory.trajectories,
        made.memory.gradients + step_working(made.work, "adamw"),
    )
    assert expected == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize("case", [Case(), Case(dtype="float32"), Case("flow_grpo", lora=True)], ids=str)
def test_cache_and_the_working_memory_of_drawing(case):
    policy, made = case.policy, case.estimate
    with torch.no_grad():
        context = policy.prefill([[Text(torch.arange(4, 2 + PROMPT))]]).expand(GROUP)
        policy.model.language_model.lm_head.weight[policy.config.eos_token_id] = 0.0
        uniforms = torch.full((GROUP, ACTIONS), 0.5)
        texts, context = policy.think(context, uniforms=uniforms, temperature=1.0)
        assert [len(text.log_probs) for text in texts] == [ACTIONS] * GROUP
        assert made.memory.cache == size_of([*context.keys, *context.values, context.valid])
        x = normal(GROUP, policy.spec.num_tokens, policy.spec.latent_dim)
        with Live() as live:
            policy.velocity(context, x, torch.full((GROUP,), 0.5))
    assert made.memory.drawing + made.memory.casts == pytest.approx(live.peak, rel=0.1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_trajectories(monkeypatch, dtype):
    policy, case = small_policy(image_size=(64, 64)), Case(dtype=dtype)
    policy.compute_dtype = getattr(torch, dtype)
    favour(monkeypatch, policy, policy.config.eos_token_id, float("-inf"))
    rows = sample(policy, prompts(1), sampling=replace(TRAINING, max_think_tokens=ACTIONS), group_size=GROUP)
    draws = [queries_of(case.objective, row, torch.Generator()) for row in rows]
    ready = annotate_reference(policy, Batch(rows, draws), micro_batch=2, temperature=1.0)
    if dtype == "bfloat16":
        ready, _ = rescore(policy, ready, micro_batch=2, temperature=1.0)
    given = sum(len(s.ids) + 2 for s in rows[0].segments if isinstance(s, Text) and s.log_probs is None)
    sizes = replace(SIZES, latent_dim=policy.spec.latent_dim)
    made = estimate(case.recipe, sizes, prompt_tokens=given, actions=ACTIONS)
    held = size_of([t for row in (*rows, *ready.trajectories) for t in tensors_of((row.segments, row.reference))])
    assert made.memory.trajectories == pytest.approx(held, rel=0.01)


# FLOPs


@pytest.mark.parametrize("case", KEPT[1:5] + [replace(case, again=True) for case in KEPT[1:5]], ids=str)
def test_flops_of_a_replay(case):
    policy, work = case.policy, case.estimate.work
    items, objective = items_of(policy, case), case.objective
    with counted() as counter:
        answers = policy.replay(items)
        forward = counter.get_total_flops()
        losses = [torch.cat([a.log_probs for a in answers]).sum()] if objective.text is not None else []
        if objective.image is not None:
            image = torch.stack([v.square().mean() for a in answers for v in a.velocities]).sum()
            image.backward(inputs=list(policy.denoising_parameters().values()), retain_graph=bool(losses))
        for loss in losses:
            loss.backward()
        backward = counter.get_total_flops() - forward
    assert replay_forward(work) == forward
    assert replay_backward(work) == pytest.approx(backward, rel=0.05 if case.lora else 0.012)


def test_flops_of_a_rollout():
    case = Case()
    policy, made = case.policy, case.estimate
    with torch.no_grad(), counted() as counter:
        context = policy.prefill([[Text(torch.arange(4, 2 + PROMPT))]])
        assert made.compute.prefill == counter.get_total_flops()
        context, before = context.expand(GROUP), counter.get_total_flops()
        policy.model.language_model.lm_head.weight[policy.config.eos_token_id] = 0.0
        _, context = policy.think(context, uniforms=torch.full((GROUP, ACTIONS), 0.5), temperature=1.0)
        assert made.compute.think == counter.get_total_flops() - before
        before = counter.get_total_flops()
        policy.velocity(context, normal(GROUP, 64, 16), torch.full((GROUP,), 0.5))
        assert GROUP * velocity(made.work) == counter.get_total_flops() - before
    assert made.compute.draw == made.work.rows * made.work.steps * velocity(made.work)


def test_flops_of_decoding_pixels():
    shapes, total = shapes_in("tensors_ae.txt"), 0.0
    for name, shape in shapes.items():
        if name.startswith("decoder.") and len(shape) == 4:
            level = 3 if ".up." not in name else int(name.split(".up.")[1][0]) - ("upsample" in name)
            total += 2 * math.prod(shape) / 4 ** (0 if "conv_out" in name else level)
    assert flux_autoencoder().decode_flops == total
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ConvAutoencoder(ConvAutoencoderConfig()).decode(normal(1, 4, 8, 8))
    assert small_autoencoder().flops(32 * 32) == counter.get_total_flops()


def test_working_memory_of_decoding_pixels():
    pytest.importorskip("diffusers")
    from unigrpo.models.bagel_files.flux import FluxAutoencoder, FluxConfig

    sizes = replace(SIZES, autoencoder=flux_autoencoder(32), image_size=(128, 128), pixels_per_token=16)
    for mode in ("whole", "sliced"):
        autoencoder, recipe = FluxAutoencoder(FluxConfig(ch=32), mode), Case(dtype="float32").recipe
        with Live() as live, torch.no_grad():
            autoencoder.decode(normal(GROUP, 16, 16, 16))
        recipe = replace(recipe, model=replace(recipe.model, autoencoder=mode))
        extra = GROUP * 3 * 128 * 128 * 4  # one of the two fp32 copies is made by who asked for the pixels
        assert estimate(recipe, sizes).memory.decoding - extra == pytest.approx(live.peak, rel=0.1)


# Time, and several GPUs


def test_thinking_is_bound_by_memory_and_the_rest_by_speed():
    made = estimate(load_recipe("bagel/unigrpo"), BAGEL_7B)
    c, seconds = made.compute, made.seconds(tflops=1000.0, mfu=0.5, bandwidth=2000.0)
    assert seconds["think"] == c.portions * c.think_steps * c.bytes_per_step / 2e12
    assert seconds["draw"] == c.draw / 5e14
    assert seconds["total"] == pytest.approx(sum(value for key, value in seconds.items() if key != "total"))


def test_a_decoding_step_of_the_frozen_model_reads_its_weights_once():
    sizes = replace(BAGEL_7B, vocab=0)
    read = estimate(load_recipe("bagel/flowgrpo"), sizes, prompt_tokens=0, actions=1).compute.bytes_per_step
    assert read == pytest.approx(2 * sizes.layers * sizes.layer_parameters, rel=0.01)


def test_several_gpus_share_states_and_rows_but_not_a_micro_batch():
    recipe = load_recipe("bagel/unigrpo")
    one, many = estimate(recipe, BAGEL_7B), estimate(recipe, BAGEL_7B, Layout(64))
    whole = 2 * BAGEL_7B.autoencoder_parameters  # the autoencoder is not shared out
    for part in ("weights", "reference"):
        assert getattr(many.memory, part) - whole == pytest.approx((getattr(one.memory, part) - whole) / 64)
    for part in ("gradients", "optimizer"):
        assert getattr(many.memory, part) == getattr(one.memory, part) / 64
    assert (many.work.rows, one.work.rows) == (12, 768)
    assert many.memory.activations == one.memory.activations


def test_replicas_share_rows_and_no_more_than_a_group_shares_weights():
    recipe = load_recipe("bagel/unigrpo")
    group, hybrid, all_ = (estimate(recipe, BAGEL_7B, x) for x in (Layout(8), Layout(64, replicas=8), Layout(64)))
    assert hybrid.memory.weights == group.memory.weights and hybrid.work.rows == all_.work.rows == 12
    same = estimate(recipe, BAGEL_7B, Layout(64, "replicate"))
    assert same.memory.weights == estimate(recipe, BAGEL_7B).memory.weights and same.memory.replica == 0


def test_a_copy_to_draw_with_is_there_in_rollouts_alone():
    recipe = load_recipe("bagel/unigrpo")
    copy, lockstep = estimate(recipe, BAGEL_7B, Layout(8)), estimate(recipe, BAGEL_7B, Layout(8, rollout="sharded"))
    # 14.7 thousand million numbers in bf16, embeddings and text head once more for fp32
    assert copy.memory.replica == pytest.approx(31.4e9, rel=0.01) and lockstep.memory.replica == 0
    assert copy.memory.update_peak == lockstep.memory.update_peak
    more = copy.memory.rollout_peak - lockstep.memory.rollout_peak
    assert more == pytest.approx(copy.memory.replica + drawn_casts(copy.work) - copy.memory.casts)


def test_offload_leaves_what_is_computed_with():
    kept = estimate(load_recipe("bagel/unigrpo"), BAGEL_7B, Layout(8, rollout="sharded", offload=True)).memory
    assert kept.gradients == kept.optimizer == 0 and kept.weights == 2 * BAGEL_7B.autoencoder_parameters
    assert kept.activations > 0 and kept.casts > 0


# What auto chooses


@pytest.mark.parametrize(
    ("name", "gpus", "gigabytes", "chosen"),
    [
        ("bagel/unigrpo-lora-1gpu", 1, 80, "replicate"),
        ("bagel/unigrpo-lora-1gpu", 8, 80, "replicate"),
        ("bagel/unigrpo-lora-1gpu", 8, 40, "shard (rollout_weights sharded)"),
        ("bagel/unigrpo", 8, 141, "shard"),
        ("bagel/unigrpo", 64, 141, "shard (replicas 8)"),
        ("bagel/unigrpo", 8, 80, "shard"),
        ("bagel/unigrpo", 8, 60, "shard (rollout_weights sharded)"),
        ("bagel/unigrpo", 8, 24, "shard (rollout_weights sharded, cpu_offload)"),
    ],
)
def test_auto_takes_the_first_that_fits(name, gpus, gigabytes, chosen):
    recipe = load_recipe(name)
    taken = modes.chosen_for(recipe, BAGEL_7B, gpus, gigabytes * 1e9)
    found = taken.choice
    assert found is not None and taken.mode == chosen.partition(" ")[0]
    assert found.layout is not None and named(found.layout) == chosen and chosen in found.reason
    assert found.peak == estimate(recipe, BAGEL_7B, found.layout).memory.peak <= USABLE * gigabytes * 1e9
    assert "\n" not in found.reason


def test_auto_says_why_nothing_fits_and_knows_ranks_on_cpus():
    taken = modes.chosen_for(load_recipe("bagel/unigrpo"), BAGEL_7B, 1, 80e9)
    none = taken.choice
    assert taken.mode == "replicate" and none is not None
    assert none.layout is None and "would take 301 GB" in none.reason and "lora" in none.reason
    assert choose(4, None, lambda layout: 1e15).layout == Layout(4, "replicate")


def test_auto_tries_what_sends_least_first():
    tried = []
    choose(16, 1.0, lambda layout: tried.append(named(layout)) or 2.0)
    assert tried[:3] == ["replicate", "shard (replicas 2)", "shard"] and tried[-1].endswith("cpu_offload)")


def test_train_dry_run_and_doctor_choose_the_same(monkeypatch):
    """Every model, number of GPUs and memory, those near each limit too: one function decides, and the mode fits."""
    known, plain = {}, modes.estimate

    def estimated(recipe, found, layout):
        key = recipe.name, layout
        if key not in known:
            known[key] = plain(recipe, found, layout)
        return known[key]

    monkeypatch.setattr(modes, "estimate", estimated)
    monkeypatch.setattr(modes, "sizes", functools.cache(sizes))
    monkeypatch.setattr(planned, "load_recipe", functools.cache(load_recipe))
    for name in planned.RECIPES:
        recipe, found = load_recipe(name), sizes(load_recipe(name).model)[0]
        for gpus in (1, 2, 8, 16):
            peaks = [estimated(recipe, found, layout).memory.peak for layout in layouts(gpus)]
            limits = [peak / USABLE * near for peak in peaks for near in (0.999999, 1.000001)]
            for memory in [*limits, 24e9, 80e9, 141e9]:
                taken = modes.chosen(recipe, gpus, memory)
                fitting = [layout for layout, peak in zip(layouts(gpus), peaks, strict=True) if peak <= USABLE * memory]
                assert taken.mode == (fitting[0].mode if fitting else "replicate" if gpus == 1 else "shard")
                _, figures = auto_line(recipe, memory)
                assert figures["modes"].get(gpus, taken.mode) == taken.mode
                (told,) = [f for f in planned.check_plan(gpus, memory) if f.check == f"auto: {name}"]
                assert told.figures["mode"] == (taken.mode if fitting else None)
                assert not fitting or told.said.startswith(f"{taken.mode} on {gpus} GPU")


@pytest.mark.parametrize(
    ("name", "keys", "said"),
    [
        ("bagel/unigrpo", ["--optimizer.kind=adamw_8bit", "--optimizer.eps_denoising=1e-8"], "bitsandbytes"),
        ("bagel/sft", [], "demonstrations"),
    ],
)
def test_auto_does_not_share_out_what_cannot_be(name, keys, said):
    recipe = load_recipe(name, keys)
    taken = modes.chosen_for(recipe, BAGEL_7B, 8, 24e9)
    assert taken.mode == "replicate" and said in taken.reason


def test_auto_tries_first_how_the_recipe_shares_out():
    recipe = load_recipe("bagel/unigrpo", ["--parallel.rollout_weights=sharded"])
    taken = modes.chosen_for(recipe, BAGEL_7B, 8, 141e9)
    assert taken.choice is not None and taken.choice.layout == Layout(8, "shard", rollout="sharded")


# What is printed


@pytest.mark.parametrize("name", EXAMPLES.values())
def test_the_tables_of_the_docs_are_what_the_dry_run_prints(name):
    lines = scaling_report(load_recipe(name), BAGEL_7B, tflops=989.0, mfu=0.4)
    assert "\n".join(lines) in DOC


def test_worked_examples_of_the_docs_are_what_the_formulas_give():
    lora, full = (estimate(load_recipe(name), BAGEL_7B) for name in EXAMPLES.values())
    words = [f"{token_bytes(e.work, 'full' if e is full else 'lora'):,} " for e in (lora, full)]
    for made in (lora, full):
        whole = activations(replace(made.work, checkpointing=False))
        words.append(f"{made.memory.activations / 1e9:.2g} GB in place of {whole / 1e9:.1f} GB")
    words += [f"replay of one row is {replay_forward(lora.work) / 1e12:.1f} TFLOP", f"{full.memory.casts / 1e9:.1f} GB"]
    words += [f"{lora.compute.bytes_per_step / 1e9:.1f} GB a step", f"would need {full.memory.peak / 1e9:.0f} GB"]
    words += [f"would take {full.memory.drawing / full.work.drawn * 768 / 1e9:.0f} GB"]
    plain = " ".join(DOC.split())
    assert [word for word in words if word.strip() not in plain] == []


@pytest.mark.parametrize("name", ["shapes/unigrpo", "shapes/sft", *EXAMPLES.values(), "bagel/sft", "bagel/textgrpo"])
def test_every_line_fits_and_says_what_is_planned(name):
    lines = scaling_report(load_recipe(name), BAGEL_7B, tflops=989.0, mfu=0.4)
    assert max(map(len, lines)) <= 120
    assert SHARDED in lines
    assert any(line.endswith(" 512 *") and all(f" {n} *" in line for n in GPUS[1:]) for line in lines)


@pytest.mark.parametrize("name", EXAMPLES.values())
def test_the_modes_of_the_docs_are_what_the_formulas_give(name):
    more = ["--data.prompts_per_iteration=32", "--data.group_size=24"]
    for side in SIDES:
        lines = modes_report(at_size(load_recipe(name, more), side), BAGEL_7B)
        assert "\n".join([*lines, ASSUMED]) in DOC and max(map(len, lines)) <= 120


def test_the_script_would_change_no_table_and_misses_none():
    made = write_scaling.tables()
    assert write_scaling.written(DOC, made) == DOC and len(made) == DOC.count("<!-- table: ")
    with pytest.raises(SystemExit, match="0 places"):
        write_scaling.written(DOC, {"of nothing": ""})


def test_the_modes_of_demonstrations_are_refused():
    with pytest.raises(ConfigError, match="prompts"):
        modes_report(load_recipe("bagel/sft"), BAGEL_7B)
