"""The FLOPs that a run says of prompts with pictures, against torch's own count of products."""

from dataclasses import replace

import pytest
import torch
from test_flops import counted, products, rows_of, sizes_of

import tiny_runs
from small_models import favour
from unigrpo.models.bagel.transformer import BagelModel
from unigrpo.models.bagel_files.checkpoint import save_policy
from unigrpo.models.bagel_files.pretrained import Bagel
from unigrpo.models.micro import initialise
from unigrpo.training.clock import Clock
from unigrpo.training.flops import counting_of, drawn, iteration_flops, packed_of
from unigrpo.training.sharing import light


@pytest.fixture(scope="module")
def blind(tmp_path_factory):
    """The seeing model without its tower: it reads given pictures by their latents alone."""
    plain = Bagel.load(tiny_runs.seeing_folder())
    model = BagelModel(replace(plain.config, vision=None, looks_at_latents=True))
    initialise(model, 3)
    with torch.no_grad():
        model.llm2vae.weight.normal_(0.0, 0.1)
    folder = tmp_path_factory.mktemp("latents") / "model"
    save_policy(Bagel(model, plain.tokenizer, plain.autoencoder), folder)
    return folder


EDITS = {
    "plain": {},
    "through": {"method__image_grad_through_context": True},
    "flow": {"method": "{name: flow_grpo, regulariser: {weight: 0.3}}"},
    "text": {"method": "{name: text_grpo}", "method__text__kl_weight": 0.1},
    "silent": {"rollout__think": False, "method": "{name: flow_grpo}", "method__regulariser__weight": 0.3},
    "apart": {"optimizer__micro_batch": 1},
    "rounds": {"rollout__rounds": 2},
    "portions": {"rollout__batch": 1},
    "thoughts": {"rollout__batch": 3, "rollout__images_per_thinking": 2, "data__group_size": 6},  # drawn by twos
}


@pytest.mark.parametrize(("name", "tower"), [*((name, True) for name in EDITS), ("plain", False), ("rounds", False)])
def test_given_pictures_are_counted_as_torch_counts_them(tmp_path, monkeypatch, blind, name, tower):
    """Forwards to the digit; backwards but for the first layers, whose inputs need no gradient."""
    more = {"data__prompts_per_iteration": 1, **EDITS[name], **({} if tower else {"model__path": blind})}
    trainer = tiny_runs.trainer_of(tmp_path, tiny_runs.EDIT, **more)
    policy = trainer.parts.policy
    assert isinstance(policy, Bagel)
    favour(monkeypatch, policy, policy.config.eos_token_id, float("-inf"))  # no thinking ends: nothing is padded
    counts, micro = counting_of(trainer.recipe, sizes_of(trainer)), trainer.recipe.optimizer.micro_batch
    with counted() as rollout:
        collected = trainer.parts.source.collect(policy, 0, Clock())
    rows = rows_of(trainer, collected.samples)
    assert all(row.shown == 16 and row.seen == (16,) * tower for row in rows)
    assert drawn(trainer.recipe, counts, rows) == products(rollout)
    with counted() as reference:
        batch, _ = trainer.annotate(collected, 0)
    packed = [packed_of(rows[start : start + micro], counts) for start in range(0, len(rows), micro)]
    assert sum(map(counts.replay, packed)) == products(reference)
    with counted() as update:
        trainer.update(batch)
    whole = iteration_flops(trainer.recipe, sizes_of(trainer), collected)
    assert whole == pytest.approx(products(rollout) + products(reference) + products(update), rel=0.06)
    told_to_all = replace(collected, samples=[light(t) for t in collected.samples])  # as ranks know of each other's
    assert iteration_flops(trainer.recipe, sizes_of(trainer), told_to_all) == whole
    assert whole is not None and whole - products(rollout) - products(reference) == pytest.approx(
        products(update), rel=0.08
    )
