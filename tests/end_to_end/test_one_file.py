"""The one-file example is the library: same settings, samples, losses, gradients and weights, from the same seed."""

import ast
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from formulas import queries_of, resolve_clip_range
from small_models import largest, normal, relative, small_policy
from tolerances import assert_same_answers, assert_same_sums, gradient_bound, rounding, terms_of
from unigrpo import build
from unigrpo.models.bagel_files.checkpoint import save_policy
from unigrpo.models.bagel_files.pretrained import Bagel
from unigrpo.recipe import load_recipe
from unigrpo.training.clock import Clock
from unigrpo.training.optimizer import ExpertOptimizer
from unigrpo.training.update import Batch, annotate_reference, backward, replay, update
from unigrpo.worlds.shapes.renderer import BACKGROUND

FILE = Path(__file__).parents[2] / "examples" / "unigrpo_in_one_file.py"
PROMPTS, GROUP, CAP, ITERATION = 2, 3, 10, 0
RECIPE = load_recipe("shapes/unigrpo")
STEPS = RECIPE.rollout.num_points - 1


def load_example():
    spec = importlib.util.spec_from_file_location("unigrpo_in_one_file", FILE)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ONE = load_example()


def test_it_stays_one_short_file():
    text = FILE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    nodes = list(ast.walk(ast.parse(text)))
    imported = {f"{n.module}.{a.name}" for n in nodes if isinstance(n, ast.ImportFrom) for a in n.names}
    imported |= {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    ours = {name for name in imported if name.startswith("unigrpo")}
    assert ours == {"unigrpo.seeds", "unigrpo.worlds.shapes.PromptStream", "unigrpo.worlds.shapes.verify"}
    packages = {name.split(".")[0] for name in imported} - set(sys.stdlib_module_names)
    assert packages == {"torch", "safetensors", "unigrpo"}


def test_settings_are_those_of_the_recipe():
    rollout, method, optimizer = RECIPE.rollout, RECIPE.method, RECIPE.optimizer
    expected = ONE.Settings(
        seed=RECIPE.seed,
        prompts=RECIPE.data.prompts_per_iteration,
        group_size=RECIPE.data.group_size,
        num_points=rollout.num_points,
        shift=rollout.shift,
        window=tuple(rollout.window),
        window_size=rollout.window_size,
        noise_level=rollout.noise_level,
        temperature=rollout.temperature,
        max_think_tokens=rollout.max_think_tokens,
        lambda_flow=method.lambda_flow,
        clip_text=method.text.clip_range,
        kl_weight=method.text.kl_weight,
        clip_flow=resolve_clip_range(method.flow.clip_range, 256),
        mse_weight=method.regulariser.weight,
        advantage_epsilon=method.advantage.epsilon,
        advantage_clip=method.advantage.clip,
        lr_reasoning=optimizer.lr_reasoning,
        lr_denoising=optimizer.lr_denoising,
        betas=tuple(optimizer.betas),
        eps_reasoning=optimizer.eps_reasoning,
        eps_denoising=optimizer.eps_denoising,
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.max_grad_norm,
        ppo_epochs=optimizer.ppo_epochs,
    )
    assert ONE.Settings() == expected


def test_the_recipe_asks_for_nothing_that_the_file_leaves_out():
    rollout, method, optimizer = RECIPE.rollout, RECIPE.method, RECIPE.optimizer
    assert (RECIPE.model.path, RECIPE.model.dtype, RECIPE.data.prompts) == (
        "builtin:shapes-sft",
        "float32",
        "shapes:train",
    )
    assert [(scorer.name, scorer.weight) for scorer in RECIPE.reward.train] == [("shapes/verifier", 1.0)]
    assert (rollout.guidance, rollout.sde, rollout.think, rollout.same_initial_noise) == (1.0, "flow", True, False)
    assert rollout.image_size is None
    assert (method.name, method.image_grad_through_context) == ("unigrpo", False)
    assert (method.flow.ratio_norm, method.flow.grad_reweight) == (True, "none")
    assert method.regulariser.kind == "velocity_mse"
    assert (optimizer.minibatches, optimizer.warmup, optimizer.decay) == (1, 0, 0.0)


def save_models(folder):
    """A random model, and a reference that differs from it, so that the velocity MSE counts from the first epoch on."""
    policy = small_policy(seed=3, image_size=(32, 32))
    policy.autoencoder.shift.copy_(0.1 * normal(policy.autoencoder.channels, seed=1))
    policy.autoencoder.scale.copy_(1.0 + 0.1 * normal(policy.autoencoder.channels, seed=2))
    with torch.no_grad():
        last = policy.autoencoder.decoder[-1]  # pictures near the background, where rewards differ
        last.weight.mul_(0.1)
        last.bias.copy_(2.0 * torch.tensor(BACKGROUND) - 1.0)
        policy.model.language_model.lm_head.weight[policy.config.eos_token_id] *= 3.0  # some end, some are cut
    save_policy(policy, folder / "model")
    with torch.no_grad():
        for index, parameter in enumerate(p for p in policy.model.parameters() if p.requires_grad):
            parameter.add_(0.03 * parameter.std() * normal(*parameter.shape, seed=index))
    save_policy(policy, folder / "reference")


def small_recipe():
    data = replace(RECIPE.data, prompts_per_iteration=PROMPTS, group_size=GROUP)
    return replace(RECIPE, data=data, rollout=replace(RECIPE.rollout, max_think_tokens=CAP))


def run_library(folder):
    """Iteration 0 with the library's parts, as the trainer runs them."""
    recipe, epochs = small_recipe(), []
    policy, reference = Bagel.load(folder / "model"), Bagel.load(folder / "reference")
    method = recipe.method
    optimizer = ExpertOptimizer(policy, recipe.optimizer, recipe.iterations)
    collected = build.source(recipe).collect(policy, ITERATION, Clock())
    generator = torch.Generator()
    batch = Batch(collected.trajectories, [queries_of(method, t, generator) for t in collected.trajectories])
    batch = annotate_reference(reference, batch, micro_batch=96, temperature=1.0)
    for _ in range(recipe.optimizer.ppo_epochs):
        losses = method.losses(batch.trajectories, replay(policy, batch, 1.0), batch.queries)
        optimizer.zero_grad()
        backward(policy, method, losses, len(batch))
        gradients = {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None}
        update(policy, optimizer, method, batch, micro_batch=96, temperature=1.0)
        text, image = losses.text_loss.detach().mean(), losses.image_loss.detach().mean()
        epochs.append(SimpleNamespace(text=float(text), image=float(image), stats=losses.stats, gradients=gradients))
    weights = {n: p.detach() for n, p in policy.model.named_parameters()}
    return SimpleNamespace(policy=policy, trajectories=batch.trajectories, epochs=epochs, weights=weights)


def run_example(folder, library):
    """The same with the example's."""
    s = replace(ONE.Settings(), prompts=PROMPTS, group_size=GROUP, max_think_tokens=CAP)
    model = ONE.Model(folder / "model", trainable=True)
    reference = ONE.Model(folder / "reference", trainable=False)
    prompts, adam = ONE.PromptStream("train", s.seed).batch(ITERATION, s.prompts), ONE.make_optimizer(model, s)
    r = ONE.rollout(model, prompts, ITERATION, s)
    reward = ONE.rewards(model, r, prompts, s)
    # the library's rewards: where 1e-7 moves a pixel to its next step of 1/255, the losses should still be comparable
    advantage = ONE.advantages(torch.tensor([t.reward for t in library.trajectories], dtype=torch.float64), s)
    ref = ONE.replay(reference, r, s)
    assert not any(said.requires_grad for said in ref)
    epochs, free = [], replace(s, ppo_epochs=1, max_grad_norm=1e9)
    for _ in range(s.ppo_epochs):
        with torch.no_grad():
            text, image = ONE.losses(model, r, advantage, ref, s)
        kept = {n: w.detach().clone() for n, w in model.weights.items()}
        ONE.update(model, ONE.make_optimizer(model, s), r, advantage, ref, free)  # leaves whole gradients behind
        gradients = {n: w.grad.clone() for n, w in model.weights.items() if w.grad is not None}
        with torch.no_grad():
            for name, weight in model.weights.items():
                weight.copy_(kept[name])
        ONE.update(model, adam, r, advantage, ref, replace(s, ppo_epochs=1))
        epochs.append(SimpleNamespace(text=float(text), image=float(image), gradients=gradients))
    weights = {n: w.detach() for n, w in model.weights.items()}
    return SimpleNamespace(r=r, reward=reward, advantage=advantage, v_ref=ref[1], epochs=epochs, weights=weights)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("one_file")
    save_models(made)
    return made


@pytest.fixture(scope="module")
def library(folder):
    return run_library(folder)


@pytest.fixture(scope="module")
def example(folder, library):
    return run_example(folder, library)


def test_thinking(library, example):
    r, ended = example.r, set()
    assert len(library.trajectories) == PROMPTS * GROUP
    for row, trajectory in enumerate(library.trajectories):
        tokens = [0 if s is None else s.ids.tolist() for s in trajectory.segments[:-1]]
        written = r.ids[row, r.begin + 1 :][: r.written.shape[1]][r.written[row]]
        (text,) = trajectory.sampled_texts
        ended.add(text.ended)
        assert r.ids[row][r.held[row]].tolist() == [i for turn in tokens for i in (0, *turn, 1)]
        assert written.tolist() == tokens[-1] + [1] * text.ended
        assert_same_answers(r.log_probs[row][r.written[row]], text.log_probs, library.policy)
    assert ended == {True, False}  # both ways to end are seen


def test_drawing(library, example):
    for row, trajectory in enumerate(library.trajectories):
        (image,) = trajectory.images
        path = image.path
        assert tuple(example.r.steps[row].tolist()) == path.steps
        for ours, theirs in (
            (example.r.x, path.x),
            (example.r.x_next, path.x_next),
            (example.r.mean, path.mean),
            (example.r.latents, image.latents),
        ):
            assert_same_answers(ours[row], theirs, library.policy, forwards=STEPS)
        assert_same_answers(example.v_ref[row], trajectory.reference.velocity, library.policy, forwards=STEPS)
    assert len({t.images[0].path.steps for t in library.trajectories}) > 1


def test_rewards_and_advantages(library, example):
    rewards = torch.tensor([t.reward for t in library.trajectories], dtype=torch.float64)
    advantages = torch.tensor([t.advantage for t in library.trajectories], dtype=torch.float64)
    assert rewards.std() > 1e-4  # else nothing is compared
    assert largest(example.reward, rewards) <= 1e-5
    assert_same_sums(example.advantage, advantages, terms=GROUP)
    equal = torch.tensor([0.3] * GROUP + [0.1, 0.5, 0.9])
    assert ONE.advantages(equal, replace(ONE.Settings(), group_size=GROUP))[:GROUP].tolist() == [0.0] * GROUP


@pytest.mark.parametrize("epoch", [0, 1])
def test_losses(library, example, epoch):
    theirs, ours = library.epochs[epoch], example.epochs[epoch]
    bound = rounding(theirs.text, theirs.image, terms=terms_of(library.policy), scale=1.0)
    assert ours.text == pytest.approx(theirs.text, abs=bound)
    assert ours.image == pytest.approx(theirs.image, abs=bound)
    if epoch:  # the ratios have moved, and some are clipped
        assert theirs.stats["flow/clip_low"].sum() + theirs.stats["flow/clip_high"].sum() > 0
        assert theirs.stats["text/log_ratio_max"].max() > 1e-3


@pytest.mark.parametrize("epoch", [0, 1])
def test_gradients(library, example, epoch):
    theirs, ours = library.epochs[epoch].gradients, example.epochs[epoch].gradients
    assert set(ours) == set(theirs) and any("_moe_gen" in name for name in ours)
    for name in theirs:
        assert relative(ours[name], theirs[name]) <= gradient_bound(library.policy), name


def test_weights_after_the_update(folder, library, example):
    start = dict(Bagel.load(folder / "model").model.named_parameters())
    assert set(example.weights) == set(library.weights)
    for name, theirs in library.weights.items():
        ours = example.weights[name]
        assert largest(ours, theirs) <= 1e-5, name
        assert (ours - theirs).norm() <= 1e-3 * (theirs - start[name]).norm(), name  # and the changes, to themselves


def test_it_runs(folder, capsys, monkeypatch):
    small = replace(ONE.Settings(), prompts=PROMPTS, group_size=GROUP, max_think_tokens=CAP)
    monkeypatch.setattr(ONE, "Settings", lambda: small)
    monkeypatch.setattr(sys, "argv", [str(FILE), "--iterations", "2", "--model", str(folder / "model")])
    ONE.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all("reward 0." in line for line in lines)
