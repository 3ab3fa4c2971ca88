"""What the dry run says of several rounds and of given pictures, against real tensors and counted products (as
test_scaling does of one round)."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from formulas import queries_of
from small_models import favour, normal, randomise
from test_scaling import ACTIONS, COPIES, GROUP, PROMPT, RANK, SIZES, Case, Live, counted, size_of, tensors_of
from unigrpo.costs.sizes import BAGEL_7B, VisionSizes, flux_autoencoder, small_autoencoder
from unigrpo.models.bagel.autoencoder import ConvAutoencoder, ConvAutoencoderConfig
from unigrpo.models.bagel.config import VisionConfig
from unigrpo.models.bagel.policy import is_denoising
from unigrpo.models.bagel.transformer import BagelModel
from unigrpo.models.bagel_files.pretrained import Bagel
from unigrpo.models.bagel_files.tokenizer import word_tokenizer
from unigrpo.models.micro import SPECIAL_WORDS, micro_config
from unigrpo.policy import ReplayItem, VelocityQuery
from unigrpo.recipe import load_recipe
from unigrpo.rollout.engine import RandomKeys, Sampling, rollout
from unigrpo.rollout.episode import rounds_of
from unigrpo.tools.planning.compute import look, replay_backward, replay_forward, velocities
from unigrpo.tools.planning.looks import look_sizes
from unigrpo.tools.planning.memory import logits, step_working
from unigrpo.tools.planning.scaling import estimate, scaling_report
from unigrpo.training.lora import Adapter
from unigrpo.training.optimizer import ExpertOptimizer
from unigrpo.training.update import Batch, update
from unigrpo.trajectory import FlowPath, Image, Prompt, Text, Trajectory, View, is_drawing

ROUNDS = 3
TOWER = VisionConfig(64, 128, 2, 4, image_size=56, patch_size=14, max_patches_per_side=4)
SEEING = replace(SIZES, vision=VisionSizes(64, 128, 2, 588, 16, 16), autoencoder=small_autoencoder(4, 4))


@dataclass(frozen=True)
class Rounds(Case):
    """A small recipe of several rounds, or of edits; the model sees with a tower, or by latents alone."""

    tower: bool = True
    rounds: int = ROUNDS
    edit: bool = False
    each: int = 1

    def __str__(self):
        kind = f"-by{self.each}" if self.each > 1 else f"-edit{self.rounds}" if self.edit else ""
        return super().__str__() + ("-tower" if self.tower else "-latents") + kind

    @property
    def recipe(self):
        whole = super().recipe
        data = replace(whole.data, prompts="shapes:edit") if self.edit else whole.data
        return replace(
            whole, rollout=replace(whole.rollout, rounds=self.rounds, images_per_thinking=self.each), data=data
        )

    @property
    def sizes(self):
        return SEEING if self.tower else replace(SEEING, vision=None)

    @property
    def estimate(self):
        return estimate(self.recipe, self.sizes, prompt_tokens=PROMPT, actions=ACTIONS)

    @property
    def policy(self):
        autoencoder = ConvAutoencoder(ConvAutoencoderConfig(width=4, groups=2)).requires_grad_(False)
        randomise(autoencoder, 1)
        shape = replace(
            micro_config(SIZES.vocab, autoencoder, hidden_size=SIZES.hidden, num_layers=SIZES.layers),
            intermediate_size=SIZES.intermediate,
            image_size=SIZES.image_size,
            vision=TOWER if self.tower else None,
        )
        model, dtype = BagelModel(shape), getattr(torch, self.dtype)
        randomise(model, 0)
        experts = {"text_grpo": (False,), "flow_grpo": (True,)}.get(self.method, (False, True))
        for name, parameter in model.named_parameters():
            outside = "pos_embed" in name or name.startswith(("vit_model", "connector"))
            trained = not self.lora and not outside and is_denoising(name) in experts
            parameter.requires_grad_(trained)
            parameter.data = parameter.data.to(torch.float32 if trained else dtype)
        words = word_tokenizer([*SPECIAL_WORDS, *(f"w{n}" for n in range(SIZES.vocab - len(SPECIAL_WORDS)))])
        policy = Bagel(model, words, autoencoder, compute_dtype=dtype)
        if self.lora:
            targets = policy.adapter_targets([("reasoning", "denoising")[e] for e in experts])
            Adapter.create(model, targets, rank=RANK, alpha=RANK, seed=0, base_name=None)
        model.activation_checkpointing = self.again
        return policy


def given_of(policy, case):
    """A prompt of the estimate's words, and for an edit a picture before them."""
    shown = policy.look_segments(torch.zeros((1, 3, 32, 32), dtype=torch.uint8))[0] if case.edit else ()
    return (*shown, Text(torch.arange(4, 2 + PROMPT)))


def trajectories(policy, case, count=GROUP):
    """A group of rows of the very sizes that the estimate is asked for."""
    n, d = policy.spec.num_tokens, policy.spec.latent_dim
    given, out = given_of(policy, case), []
    t = torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64)
    for row in range(count):
        segments = [*given]
        for turn in range(case.rounds):
            if turn:
                segments += policy.look_segments(torch.zeros((1, 3, *policy.spec.image_size), dtype=torch.uint8))[0]
            seed = 10 * row + turn
            x = normal(COPIES, n, d, seed=seed)
            rest = (x, x + 0.1, x, torch.full((COPIES,), 0.3), torch.zeros(COPIES), 0.8)
            path = FlowPath((0, 1, 2), t, t - 0.1, 0.9, *rest)
            ids = torch.arange(4, 4 + ACTIONS) + seed
            segments.append(Text(ids, ended=False, log_probs=torch.full((ACTIONS,), -7.0)))
            own = None if case.method == "text_grpo" else path
            segments.append(Image(normal(n, d, seed=seed), policy.spec.grid, own, drawn=True))
        out.append(Trajectory(Prompt(0, ""), row, tuple(segments)).with_advantages(*([1.0 if row % 2 else -1.0] * 2)))
    return out


def items_of(policy, case):
    rows = trajectories(policy, case, case.micro)
    draws = [queries_of(case.objective, row, torch.Generator()) for row in rows]
    return [
        ReplayItem(row.segments, tuple(VelocityQuery(d.segment, d.x, d.t) for d in own))
        for row, own in zip(rows, draws, strict=True)
    ]


EDITS = [
    Rounds(rounds=1, edit=True),
    Rounds(rounds=1, edit=True, micro=4),
    Rounds("flow_grpo", rounds=1, edit=True, micro=4),
    Rounds("text_grpo", rounds=1, edit=True, micro=4, lora=True),
    Rounds(lora=True, rounds=2, edit=True, micro=4, tower=False),
]
CASES = [
    Rounds(),
    Rounds(micro=4, tower=False),
    Rounds(lora=True, micro=4),
    Rounds("flow_grpo", micro=2),
    Rounds("text_grpo", lora=True),
    Rounds(dtype="float32", micro=2),
    *EDITS,
]


def kept_by(case):
    """Bytes that a replay keeps for its backward pass."""
    policy = case.policy
    items = items_of(policy, case)
    with Live() as live:
        answers = policy.replay(items)
        kept = live.bytes
    del answers
    return kept


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_a_replay_keeps_for_its_backward_pass(case):
    made, kept = case.estimate, kept_by(case)
    assert made.memory.activations + made.memory.casts + logits(made.work) == pytest.approx(kept, rel=0.1)


@pytest.mark.parametrize("case", [replace(case, again=True) for case in [*CASES[1:4], EDITS[1]]], ids=str)
def test_what_stays_of_a_replay_that_computes_its_layers_again(case):
    made, kept = case.estimate, kept_by(case)
    assert made.memory.activations + logits(made.work) == pytest.approx(kept, rel=0.1)


@pytest.mark.parametrize("case", [Rounds(), Rounds(lora=True), Rounds(again=True), EDITS[1]], ids=str)
def test_peak_of_an_update(case):
    policy, made = case.policy, case.estimate
    rows = trajectories(policy, case, max(2, case.micro))
    batch = Batch(rows, [queries_of(case.objective, row, torch.Generator()) for row in rows])
    optimizer = ExpertOptimizer(policy, case.recipe.optimizer, 1)
    with Live() as live:
        for _ in range(2):
            live.peak = 0
            update(policy, optimizer, case.objective, batch, micro_batch=case.micro, temperature=1.0)
        peak = live.peak
    always = made.memory.optimizer
    beside = always + made.memory.weights + made.memory.reference + made.memory.trajectories
    step = made.memory.gradients + step_working(made.work, "adamw")
    assert always + max(made.memory.update_peak - beside, step) == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize("case", [*CASES[:5], *EDITS, replace(CASES[1], again=True)], ids=str)
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
            loss.backward(inputs=list(policy.reasoning_parameters().values()))
        backward = counter.get_total_flops() - forward
    assert replay_forward(work) == forward
    assert replay_backward(work) == pytest.approx(backward, rel=0.06)


def in_rounds(policy, monkeypatch, case, count=GROUP):
    """A rollout of the recipe's sizes whose thinkings never end."""
    favour(monkeypatch, policy, policy.config.eos_token_id, float("-inf"))
    monkeypatch.setattr(policy, "prompt_segments", lambda prompt, think: given_of(policy, case))
    sampling = Sampling(9, 4.0, (0, 5), COPIES, 0.8, max_think_tokens=ACTIONS, images_per_thinking=case.each)
    return rollout(
        policy, rounds_of(case.rounds, think=True), [Prompt(0, "")], sampling, group_size=count, keys=RandomKeys(0, 0)
    )


ROLLOUTS = [Rounds(tower=False), Rounds(), EDITS[0], Rounds(rounds=2, edit=True, tower=False), Rounds(each=2)]


@pytest.mark.parametrize("case", ROLLOUTS, ids=str)
def test_flops_and_trajectories_of_a_rollout(case, monkeypatch):
    policy, made = case.policy, case.estimate
    with counted() as counter:
        rows = in_rounds(policy, monkeypatch, case)
    work, c = made.work, made.compute
    decoded = work.rows * (case.rounds - 1) * work.sizes.autoencoder.flops(work.pixels)  # the last elsewhere
    assert c.prefill + c.think + c.draw + c.look + decoded == counter.get_total_flops()
    assert c.draw == work.rows * work.steps * velocities(work) and c.look == work.rows * look(work)
    held = size_of([t for row in rows for t in tensors_of(row.segments)])
    pixels = sum(3 * shown.pixels for shown in work.given)  # which a prompt has, and not its segments
    assert made.memory.trajectories == pytest.approx(held + extra_of(work) + pixels, rel=0.02)


def extra_of(work):
    """What annotating adds, which a rollout has not: a second mean and log-probs below fp32, and the reference's."""
    latent = 4 * work.image_tokens * work.sizes.latent_dim
    return work.rows * work.rounds * (work.reference + 1) * (work.copies * latent + 4 * work.actions)


@pytest.mark.parametrize("tower", [False, True])
def test_peak_of_a_look(tower, monkeypatch):
    """The most at once while what a look gives is read; the rooms of the path are there before, and the cache after."""
    case = Rounds(tower=tower)
    policy, made, seen = case.policy, case.estimate, []
    plain = policy.extend

    def watched(cache, additions):
        with Live() as live:
            after = plain(cache, additions)
            seen.append((live.peak, size_of([*after.keys, *after.values])))
        return after

    with monkeypatch.context() as patch:
        patch.setattr(policy, "extend", watched)
        in_rounds(policy, monkeypatch, case)
    work, (peak, cache) = made.work, seen[-1]
    rooms = work.drawn * work.compute * 2 * work.sizes.kv * work.sizes.layers
    rooms *= work.context_of(work.looks) + work.image_tokens + 2
    assert made.memory.looking - rooms + made.memory.casts + cache == pytest.approx(peak, rel=0.1)


def test_a_look_is_as_large_as_the_model_reads_it():
    assert look_sizes(BAGEL_7B, 512).latents == 1024 and look_sizes(BAGEL_7B, 512).patches == 37 * 37
    whole = look_sizes(BAGEL_7B, 1024)
    assert (whole.latents, whole.patches, whole.tokens) == (4096, 4900, 4096 + 4900 + 4)
    assert look_sizes(replace(BAGEL_7B, vision=None), 512).und == 2
    case = Rounds()
    (segments,) = case.policy.look_segments(torch.zeros((1, 3, 64, 64), dtype=torch.uint8))
    sizes = case.estimate.work.look
    assert isinstance(segments[0], Image) and segments[0].latents.shape[0] == sizes.latents
    assert isinstance(segments[1], View) and segments[1].patches.shape[0] == sizes.patches
    assert not is_drawing(segments[0])


def test_flops_of_encoding_pixels():
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ConvAutoencoder(ConvAutoencoderConfig()).encode(normal(1, 3, 32, 32))
    assert small_autoencoder().encode(32 * 32) == counter.get_total_flops()
    assert flux_autoencoder().encode(512 * 512) < flux_autoencoder().flops(512 * 512)


def test_one_round_costs_what_it_did_and_two_cost_more():
    name = "bagel/unigrpo-lora-1gpu"
    one, two = (estimate(load_recipe(name, [f"--rollout.rounds={n}"]), BAGEL_7B) for n in (1, 2))
    assert one.compute.look == 0.0 == one.memory.looking and two.compute.look > 0.0
    assert two.compute.draw > 2 * one.compute.draw and two.compute.update > 2 * one.compute.update
    assert two.memory.activations > 1.5 * one.memory.activations
    lines = scaling_report(load_recipe(name, ["--rollout.rounds=2"]), BAGEL_7B, tflops=989.0, mfu=0.4)
    assert any("in 2 rounds (a look reads 1024 latents and 1369 patches)" in line for line in lines)
    assert max(map(len, lines)) <= 120
