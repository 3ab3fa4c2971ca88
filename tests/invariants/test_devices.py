"""Nothing mixes tensors of the CPU and of an accelerator: all parts give on a pretend one what they give on the CPU.

The same bits are wanted. So attention, for which torch has another kernel on the CPU, and which this package widens
there for text, is computed in one way on both; and autocast keeps no casts, as it would on the CPU alone.
"""

from dataclasses import fields, is_dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import pretend_device
import small_models
import tiny_runs
from formulas import combination, queries_of
from small_models import EVALUATION, TRAINING, gradients, mixed_items, normal, prompts, randomise, sample, small_policy
from unigrpo import seeds
from unigrpo.build import models as resolving
from unigrpo.evaluation.evaluator import evaluate
from unigrpo.models.bagel.autoencoder import ConvAutoencoder, ConvAutoencoderConfig
from unigrpo.models.bagel.config import VisionConfig
from unigrpo.models.bagel.transformer import BagelModel
from unigrpo.models.bagel_files.checkpoint import restore_weights, save_policy
from unigrpo.models.bagel_files.pretrained import Bagel
from unigrpo.models.bagel_files.tokenizer import word_tokenizer
from unigrpo.models.micro import SPECIAL_WORDS, micro_config
from unigrpo.objectives.flow_grpo import FlowGRPO
from unigrpo.objectives.regularisers import Regulariser
from unigrpo.objectives.supervised import Supervised
from unigrpo.objectives.text_grpo import TextGRPO
from unigrpo.policy import ReplayItem, VelocityQuery
from unigrpo.recipe import Optimizer
from unigrpo.rollout.engine import RandomKeys, rollout
from unigrpo.rollout.episode import single_round
from unigrpo.rollout.guidance import Guidance
from unigrpo.rollout.sample import decode_pictures
from unigrpo.tools.tiny_bagel import make_tiny_bagel
from unigrpo.training import checkpoint
from unigrpo.training.lora import Adapter, WithoutAdapter, base_state_dict
from unigrpo.training.optimizer import ExpertOptimizer, MovingAverage
from unigrpo.training.update import Batch, RatioBounds, annotate_reference, rescore, update
from unigrpo.trajectory import Prompt
from unigrpo.worlds import pairs, shapes
from unigrpo.worlds.shapes import tasks
from unigrpo.worlds.shapes.demonstrations import DemonstrationMix, demonstrations

CPU, DEVICE = torch.device("cpu"), pretend_device.enable()[0]
OPTIMIZER = Optimizer(lr_reasoning=1e-3, lr_denoising=1e-3, max_grad_norm=0.1, weight_decay=0.01)
JOINT = combination(text=TextGRPO(kl_weight=0.1), regulariser=Regulariser(weight=0.3))
STEPPED = FlowGRPO(ratio_norm=False, grad_reweight="inv_dt_norm")
METHODS = {
    "unigrpo": JOINT,
    "unigrpo-through-context": replace(JOINT, image=STEPPED, image_grad_through_context=True),
    "text_grpo": combination(image=None, text=TextGRPO(kl_weight=0.1)),
    "flow_grpo": combination(text=None, regulariser=Regulariser("latent_kl", 0.3)),
}
EITHER_DTYPE = pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.float32, id="float32", marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, id="bfloat16"),
    ],
)


@pytest.fixture(scope="module", autouse=True)
def one_arithmetic():
    plain = F.scaled_dot_product_attention

    def attention(q, k, v, attn_mask=None, *, enable_gqa=False, **options):
        mask, dtype = attn_mask, q.dtype
        if dtype == torch.float64:  # exact, as they were fp32
            q, k, v, mask = q.float(), k.float(), v.float(), attn_mask.float()
        if enable_gqa:
            k, v = (u.repeat_interleave(q.shape[1] // u.shape[1], 1) for u in (k, v))
        with sdpa_kernel(SDPBackend.MATH):
            return plain(q, k, v, attn_mask=mask, **options).to(dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", attention)
        torch.set_autocast_cache_enabled(False)
        yield
        torch.set_autocast_cache_enabled(True)


def leaves(value, path=""):
    """Everything in nested results that can be compared, by where it is."""
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, f"{path}.{key}")
    else:
        yield path, value


def assert_same(expected, found):
    expected, found = dict(leaves(expected)), dict(leaves(found))
    assert expected.keys() == found.keys()
    for path, value in expected.items():
        if isinstance(value, torch.Tensor):
            other = found[path].detach().cpu()
            assert other.dtype == value.dtype and torch.equal(other, value.detach()), path
        else:
            assert found[path] == value, path


def placed(policy, device):
    policy.model.to(device)
    policy.autoencoder.to(device)
    return policy


def small(device, **options):
    return placed(small_policy(**{"num_layers": 1, **options}), device)


def square(device):
    return small(device, image_size=(32, 32))


def on_both(work, make=small):
    """What ``work(make(device))`` gives on the CPU must be given on the pretend device too, bit for bit."""
    policy = make(DEVICE)
    assert {tensor.device.type for tensor in policy.model.state_dict().values()} == {DEVICE.type}
    assert_same(work(make(CPU)), work(policy))


# ---------------------------------------------------------------- the pretend device itself


def waits_in(work):
    pretend_device.WAITS.clear()
    work()
    return len(pretend_device.WAITS)


def test_it_refuses_what_cuda_refuses_and_counts_waits():
    ours, cpu, rows = torch.ones(3, 4, device=DEVICE), torch.ones(3, 4), torch.tensor([0, 2])
    for mixed in (
        lambda: ours + cpu,
        lambda: cpu.add_(ours),
        lambda: torch.tensor(1.0).add_(ours[0, 0]),
        lambda: torch.cat([ours, cpu]),
        lambda: torch.stack([ours[0, 0], torch.tensor(1.0)]),
        lambda: F.linear(ours, cpu),
        lambda: ours.index_select(0, rows),
        lambda: cpu[rows.to(DEVICE)],
        lambda: torch._foreach_add([ours], [cpu]),
    ):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    with pytest.raises(RuntimeError, match="draw on the CPU"):
        torch.randn(3, device=DEVICE)
    for passing, waits in (
        (lambda: ours[ours.long()[0]] * torch.tensor(2.0), 0),
        (lambda: ours[rows], 1),
        (lambda: ours[ours > 1], 1),
        (lambda: bool(ours.any()), 1),
        (lambda: torch.zeros(3, 4).copy_(ours), 1),
        (lambda: torch.tensor([1.0], device=DEVICE), 1),
    ):
        assert waits_in(passing) == waits
    ours[rows] = torch.tensor(2.0)
    assert (torch.tensor(3.0) * ours).tolist() == [[6.0] * 4, [3.0] * 4, [6.0] * 4] and float(ours.sum()) == 20.0


@torch.no_grad()
def test_no_layer_and_no_row_waits_and_a_token_waits_once():
    counts = []
    for layers in (1, 3):
        policy = small(DEVICE, num_layers=layers)
        context = policy.prefill([(small_models.text(4, 5), small_models.text(6)), (small_models.text(7),)])
        x, t = normal(2, policy.spec.num_tokens, 16).to(DEVICE), torch.full((2,), 0.5, device=DEVICE)
        token, valid = torch.tensor([4, 5], device=DEVICE), torch.tensor([True, True], device=DEVICE)
        drawing = waits_in(lambda p=policy, c=context, x=x, t=t: p.velocity(c, x, t))
        writing = waits_in(lambda p=policy, c=context, token=token, valid=valid: p.feed(c, token, valid))
        replaying = waits_in(lambda p=policy: p.replay(mixed_items(p)))
        thinking = [thinking_waits(policy, rows, tokens) for rows, tokens in ((1, 3), (4, 3), (4, 7))]
        counts.append((drawing, writing, replaying, *thinking))
    assert counts[0] == counts[1]
    _, writing, _, alone, together, longer = counts[0]
    assert writing == 0 and alone == together and longer == together + 4


def thinking_waits(policy, rows, tokens):
    """Waits of thinking ``tokens`` long: uniforms of 0 draw the first id of the vocabulary, which does not end it."""
    context = policy.prefill([(small_models.text(4, 5),)] * rows)
    return waits_in(lambda: policy.think(context, uniforms=torch.zeros(rows, tokens), temperature=1.0))


# ---------------------------------------------------------------- drawing


@pytest.mark.parametrize(
    "sampling",
    [
        TRAINING,
        replace(TRAINING, temperature=0.0, sde="cps", same_initial_noise=True),
        replace(TRAINING, sde="flow_cp"),
        replace(EVALUATION, guidance=Guidance(3.0, interval=(0.2, 1.0))),
        replace(EVALUATION, guidance=Guidance(3.0, 2.0, renorm="text_channel")),
    ],
    ids=["sampled", "greedy-cps", "flow-cp", "guided", "guided-twice"],
)
def test_rollouts_and_their_pictures(sampling):
    def work(policy):
        drawn = sample(policy, sampling=sampling)
        assert drawn[0].images[-1].latents.device.type == policy.model.device.type
        pictures = decode_pictures(policy, drawn)
        return drawn, pictures, policy.encode_image(pictures.float() / 255.0)

    on_both(work)


def test_an_evaluation():
    asked, judge = shapes.fixed("held-out", 2), tasks.judge_pictures
    on_both(lambda policy: evaluate(policy, asked, judge, EVALUATION, samples=2, seed=0, think=True, batch=2), square)


def seeing(device):
    autoencoder = ConvAutoencoder(ConvAutoencoderConfig(width=4, groups=2))
    randomise(autoencoder, 1)
    vocabulary = [*SPECIAL_WORDS, "red", "blue", "make", "it", "think", "then", "draw"]
    vision = VisionConfig(24, 40, 2, 2, image_size=40, patch_size=4, max_patches_per_side=10)
    config = micro_config(len(vocabulary), autoencoder, hidden_size=32, num_layers=1)
    model = BagelModel(replace(config, image_size=(32, 16), vision=vision))
    randomise(model, 0)
    return placed(Bagel(model, word_tokenizer(vocabulary), autoencoder.requires_grad_(False)), device)


def picture(seed):
    return torch.randint(0, 256, (3, 40, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_pictures_are_seen_edited_asked_about_and_trained_on():
    edits = [Prompt(0, "make it red", images=(picture(0),)), Prompt(1, "blue", images=(picture(1),))]
    guided = replace(TRAINING, guidance=Guidance(4.0, 2.0, renorm="text_channel"))

    def work(policy):
        drawn = rollout(policy, single_round(think=True), edits, guided, group_size=2, keys=RandomKeys(0, 0))
        asked = [policy.question_segments("it", prompt.images, think=True) for prompt in edits]
        with torch.no_grad():
            answers, _ = policy.think(policy.prefill(asked), uniforms=torch.full((2, 4), 0.6), temperature=1.0)
        policy.model.vit_model.requires_grad_(True)
        paths = [trajectory.images[-1].path for trajectory in drawn]
        queries = [(VelocityQuery(len(t.segments) - 1, p.x, p.t),) for t, p in zip(drawn, paths, strict=True)]
        items = [ReplayItem(t.segments, query) for t, query in zip(drawn, queries, strict=True)]
        return drawn, answers, replayed(policy, items), gradients(policy)

    on_both(work, seeing)


# ---------------------------------------------------------------- training


def replayed(policy, items, **options):
    """What a replay says, after a backward pass of it all."""
    answers = policy.replay(items, **options)
    parts = [part for answer in answers for part in (answer.log_probs, *answer.velocities)]
    torch.cat([part.flatten() for part in parts]).square().sum().backward()
    return answers


@pytest.mark.parametrize("plain", [False, True], ids=["packed", "plain"])
@pytest.mark.parametrize("again", [False, True], ids=["kept", "computed-again"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_replays_and_their_gradients(plain, again, dtype):
    """In bfloat16 the weights are fp32, and autocast casts them."""

    def work(policy):
        policy.compute_dtype, policy.model.activation_checkpointing = dtype, again
        return replayed(policy, mixed_items(policy), plain=plain, temperature=0.7), gradients(policy)

    on_both(work)


def trained(policy, method, batch, *, check=None):
    """Two optimizer steps, and all that they leave behind."""
    optimizer, average = ExpertOptimizer(policy, OPTIMIZER, 10), MovingAverage(policy, 0.9)
    updates = [update(policy, optimizer, method, batch, micro_batch=4, temperature=1.0, check=check)]
    updates.append(update(policy, optimizer, method, batch, micro_batch=4, temperature=1.0))
    average.update(1)
    average.swap()
    again = ExpertOptimizer(policy, OPTIMIZER, 10)
    again.load_state(optimizer.state())
    return updates, again.state(), average.shadow, dict(policy.model.named_parameters())


def scored(policy, method, reference):
    """Two groups of three with made-up advantages and the reference's answers, and their old values from a replay."""
    sampling = TRAINING if method.image else replace(TRAINING, window=None)
    advantages = (1.0, -0.5, 2.0, -1.5, 0.7, -0.3)
    drawn = [t.with_advantages(a, a) for t, a in zip(sample(policy, sampling=sampling), advantages, strict=True)]
    batch = Batch(drawn, [queries_of(method, t, seeds.generator(0, 0, 0, t.sample, "draws")) for t in drawn])
    batch = annotate_reference(reference, batch, micro_batch=4, temperature=1.0)
    return batch, rescore(policy, batch, micro_batch=4, temperature=1.0)


@pytest.mark.parametrize("name", METHODS)
def test_methods_train(name):
    """On the rollout's own values; with an adapter, below, on those of a replay."""

    def work(policy):
        batch, again = scored(policy, METHODS[name], small(policy.model.device, seed=7))
        return again, trained(policy, METHODS[name], batch, check=RatioBounds(1e-4, 1e-5))

    on_both(work)


def supervised(policy, made):
    method = Supervised(noisy_copies=2, timestep_shift=3.0)
    draws = [queries_of(method, t, seeds.generator(0, 0, n, 0, "draws")) for n, t in enumerate(made)]
    return trained(policy, method, Batch(made, draws))


def test_demonstrations_of_the_shapes_world_train():
    mix = DemonstrationMix(bad_plan=0.2, mismatch=0.2, no_think=0.2, unconditional=0.2, dense=0.2, plan_only=0.1)
    some = demonstrations(0, 0, 8, mix)
    on_both(lambda policy: supervised(policy, tasks.supervised_trajectories(policy, some)), square)


@EITHER_DTYPE
def test_adapters_train_are_switched_off_written_read_and_merged(tmp_path, dtype):
    def make(device):
        policy = small(device)
        policy.compute_dtype = dtype
        policy.model.to(dtype).requires_grad_(False)
        return policy

    def work(policy):
        folder, targets = tmp_path / policy.model.device.type, policy.adapter_targets(("reasoning", "denoising"))
        adapter = Adapter.create(policy.model, targets, rank=4, alpha=8.0, seed=0, base_name="owner/name")
        batch, (again, _) = scored(policy, JOINT, WithoutAdapter(policy, adapter))
        steps = trained(policy, JOINT, again)
        adapter.save(folder)
        adapter.load_weights(folder)
        with adapter.disabled(), torch.no_grad():
            without = policy.replay(mixed_items(policy))
        other = Adapter.load(make(policy.model.device).model, folder)
        files = {file.name: file.read_bytes() for file in folder.iterdir()}
        left = [dict(base_state_dict(policy.model)), dict(adapter.merge().state_dict())]
        return batch, steps, without, other.parameters(), files, left

    on_both(work, make)


# ---------------------------------------------------------------- folders and runs


@EITHER_DTYPE
def test_a_public_folder_is_read_draws_trains_and_is_written(tmp_path, dtype):
    source = make_tiny_bagel(tmp_path / "tiny").folder
    pictures = pairs.own_pairs(str(source / "samples" / "demonstrations.jsonl"), 0)
    guided = replace(TRAINING, guidance=Guidance(3.0))

    def make(device, folder=source):
        options = {"image_size": (64, 32), "trained": lambda name: "norm" in name, "autoencoder_memory": "sliced"}
        policy = Bagel.load(folder, device=device, compute_dtype=dtype, **options)
        for name, parameter in policy.model.named_parameters():
            parameter.requires_grad_("norm" in name)
        return policy

    def work(policy):
        folder = tmp_path / policy.model.device.type
        drawn = sample(policy, prompts(1), group_size=2, sampling=guided)
        seen = decode_pictures(policy, drawn)
        save_policy(policy, folder)
        again = dict(make(policy.model.device, folder).model.named_parameters())
        steps = supervised(policy, pairs.supervised_trajectories(policy, pictures.batch(0, 2)))
        restore_weights(policy, folder)
        return drawn, seen, again, steps, dict(policy.model.named_parameters())

    on_both(work, make)


LORA = {"model__dtype": "bfloat16", "model__lora": "{rank: 4, alpha: 8}"}


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        pytest.param(tiny_runs.UNIGRPO, {}, id="unigrpo"),
        pytest.param(tiny_runs.UNIGRPO, LORA, id="lora-bfloat16", marks=pytest.mark.slow),
        pytest.param(tiny_runs.PRETRAIN, {}, id="pretrain"),
    ],
)
def test_a_run_and_its_resumption(tmp_path, monkeypatch, recipe, options):
    less = {"iterations": 2, "eval__every": 2, "eval__limit": 2, "eval__num_points": 4, "optimizer__micro_batch": 6}
    if recipe == tiny_runs.UNIGRPO:
        save_policy(square(CPU), tmp_path / "model")
        less |= {"rollout__num_points": 7, "optimizer__ppo_epochs": 1, "model__path": tmp_path / "model", **options}

    def run(device):
        monkeypatch.setattr(resolving, "device_of", lambda model: device)
        folder, lines = tmp_path / device.type, []
        for done in (0, 1):
            trainer = tiny_runs.trainer_of(folder, recipe, **less)
            assert trainer.parts.policy.model.device.type == device.type and trainer.resume() == done
            line = trainer.iterate(done)
            trainer.recorder.metrics(line)
            # the peak, and so FLOPs, are known of CPUs and CUDA's devices alone
            lines.append({name: part for name, part in line.items() if name not in (*tiny_runs.TIMES, "flops")})
            trainer.done = done + 1
            trainer.save()
        files = [*checkpoint.complete(folder)[-1].glob("*.safetensors"), *folder.rglob("*.png")]
        return lines, {file.name: file.read_bytes() for file in files}

    assert_same(run(CPU), run(DEVICE))
