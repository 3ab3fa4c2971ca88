"""LoRA: nothing changes at the start, only A and B are trained, peft reads the folder, and the base stays reachable.

Bits are compared with a frozen base: torch multiplies by a weight that requires gradients in another order.
"""

import json
import re
import sys
from dataclasses import replace

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from formulas import combination, queries_of
from small_models import gradients, mixed_items, normal, relative, sample, small_policy
from tolerances import assert_same_sums, gradient_bound
from unigrpo import seeds
from unigrpo.objectives.flow_grpo import FlowGRPO
from unigrpo.objectives.regularisers import Regulariser
from unigrpo.recipe import Optimizer
from unigrpo.training.lora import Adapter, WithoutAdapter, base_state_dict, target_pattern
from unigrpo.training.optimizer import ExpertOptimizer, MovingAverage
from unigrpo.training.update import Batch, annotate_reference, backward, replay, rescore, update

METHOD = combination(regulariser=Regulariser(weight=0.3), image=FlowGRPO(clip_range=1e-3))
BOTH = ("reasoning", "denoising")
LAYER = "language_model.model.layers.0"


def targets_of(policy, experts=BOTH):
    """Every linear layer of the transformer's layers, of the named experts."""
    return [
        name
        for name, layer in policy.model.named_modules()
        if isinstance(layer, nn.Linear)
        and name.startswith("language_model.model.layers.")
        and ("denoising" if "_moe_gen" in name else "reasoning") in experts
    ]


def add(policy, experts=BOTH, *, rank=4, alpha=8.0, seed=0, base_name="owner/name"):
    return Adapter.create(
        policy.model, targets_of(policy, experts), rank=rank, alpha=alpha, seed=seed, base_name=base_name
    )


def adapted_policy(experts=BOTH, *, seed=0, **options):
    policy = small_policy(seed=seed)
    return policy, add(policy, experts, **options)


def as_it_is(policy):
    return policy


def low_precision(policy):
    policy.model.to(torch.bfloat16)
    policy.compute_dtype = torch.bfloat16
    return policy


@torch.no_grad()
def move(adapter, seed=5):
    """Make B other than 0, as training does."""
    for number, (name, parameter) in enumerate(sorted(adapter.parameters().items())):
        if "lora_B" in name:
            parameter.copy_(0.1 * normal(*parameter.shape, seed=seed + number))


def answers(policy, items=None):
    """All that a replay says, in one tensor."""
    replayed = policy.replay(mixed_items(policy) if items is None else items)
    return torch.cat([torch.cat([r.log_probs, *(v.flatten() for v in r.velocities)]) for r in replayed])


def weights(policy):
    return {name: value.clone() for name, value in policy.model.state_dict().items()}


# ---------------------------------------------------------------- the start


@pytest.mark.parametrize("prepare", [as_it_is, low_precision])
def test_a_new_adapter_changes_no_bit(prepare):
    """Invariant 16: B = 0."""
    policy = prepare(small_policy())
    policy.model.requires_grad_(False)
    before = answers(policy)
    adapter = add(policy)
    assert torch.equal(answers(policy), before)
    move(adapter)
    assert not torch.equal(answers(policy), before)


def test_only_a_and_b_are_trained_and_they_are_fp32():
    policy = low_precision(small_policy())
    targets = targets_of(policy)
    adapter = add(policy)
    trained = {name: p for name, p in policy.model.named_parameters() if p.requires_grad}
    assert trained.keys() == adapter.parameters().keys() and len(trained) == 2 * len(targets)
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert {p.dtype for n, p in policy.model.named_parameters() if n not in trained} == {torch.bfloat16}
    assert trained.keys() == policy.reasoning_parameters().keys() | policy.denoising_parameters().keys()
    assert not policy.reasoning_parameters().keys() & policy.denoising_parameters().keys()


def test_a_is_normal_with_deviation_one_over_rank_and_b_is_zero():
    _, adapter = adapted_policy(rank=16)
    a = torch.cat([p.detach().flatten() for n, p in adapter.parameters().items() if "lora_A" in n])
    b = torch.cat([p.detach().flatten() for n, p in adapter.parameters().items() if "lora_B" in n])
    assert float(a.std()) == pytest.approx(1 / 16, rel=0.03) and abs(float(a.mean())) < 1e-3
    assert float(a.abs().max()) > 3 / 16 and not b.any()


def test_what_is_drawn_depends_on_name_and_seed_alone():
    _, adapter = adapted_policy()
    backwards = small_policy(seed=9)
    Adapter.create(backwards.model, targets_of(backwards, ["denoising"])[::-1], rank=4, alpha=8, seed=0, base_name=None)
    ours, theirs = adapter.parameters(), dict(backwards.model.named_parameters())
    shared = [name for name in ours if name in theirs]
    assert len(shared) == len(ours) // 2 and all(torch.equal(ours[name], theirs[name]) for name in shared)
    drawn = [p.detach() for n, p in ours.items() if n.endswith("q_proj.lora_A.default.weight")]
    assert not torch.equal(*drawn)  # of two layers
    different = add(small_policy(), seed=1).parameters()
    assert not torch.equal(different[shared[0]], ours[shared[0]])


def test_global_generators_are_left_alone(tmp_path):
    policy = small_policy()
    state = torch.get_rng_state()
    adapter = add(policy)
    adapter.save(tmp_path)
    adapter.merge()
    Adapter.load(policy.model, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


def test_below_fp32_no_input_is_copied_to_fp32():
    """peft's default: two copies of every activation, since autocast takes the fp32 one back."""
    policy, seen = low_precision(small_policy()), set()
    for layer in add(policy).layers.values():
        layer.lora_A["default"].register_forward_pre_hook(lambda module, given: seen.add(given[0].dtype))
    answers(policy)
    assert seen == {torch.bfloat16}


def test_an_adapter_beside_fp64_weights():
    module = nn.ModuleDict({"a": nn.Linear(3, 5).double()})
    x = normal(2, 3).double()
    adapter = Adapter.create(module, ["a"], rank=2, alpha=4.0, seed=0, base_name=None)
    move(adapter)
    a, b = (p.detach().double() for p in adapter.parameters().values())
    base = module["a"].base_layer
    assert_same_sums(module["a"](x), base(x) + 2.0 * x @ a.T @ b.T, terms=3 * 2, dtype=torch.float32)


# ---------------------------------------------------------------- names


def test_the_saved_targets_are_one_readable_pattern(tmp_path):
    adapted_policy()[1].save(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == (
        r"language_model\.model\.layers\.\d+\.("
        r"mlp\.down_proj|mlp\.gate_proj|mlp\.up_proj|"
        r"mlp_moe_gen\.down_proj|mlp_moe_gen\.gate_proj|mlp_moe_gen\.up_proj|"
        r"self_attn\.k_proj|self_attn\.k_proj_moe_gen|self_attn\.o_proj|self_attn\.o_proj_moe_gen|"
        r"self_attn\.q_proj|self_attn\.q_proj_moe_gen|self_attn\.v_proj|self_attn\.v_proj_moe_gen)"
    )


NAMES = [f"m.layers.{i}.{kind}" for i in (0, 1, 10) for kind in ("q", "q_gen", "mlp.q", "mlp")] + [
    "q",
    "vit.layers.0.q",
]


@given(st.sets(st.sampled_from(NAMES), min_size=1))
def test_a_pattern_means_exactly_its_targets(targets):
    pattern = target_pattern(NAMES, sorted(targets))
    assert {name for name in NAMES if re.fullmatch(pattern, name)} == targets


def test_a_pattern_is_exact_also_where_only_some_layers_are_targets():
    policy = small_policy()
    Adapter.create(policy.model, [f"{LAYER}.mlp.up_proj"], rank=2, alpha=2, seed=0, base_name=None)
    assert [name for name, _ in policy.model.named_modules() if name.endswith("lora_A")] == [
        f"{LAYER}.mlp.up_proj.lora_A"
    ]


@pytest.mark.parametrize("targets", [["nobody"], [f"{LAYER}.self_attn"], [f"{LAYER}.self_attn.q_norm"], []])
def test_targets_that_are_no_linear_layers_are_refused_before_anything_changes(targets):
    policy = small_policy()
    with pytest.raises(ValueError, match="target"):
        Adapter.create(policy.model, targets, rank=2, alpha=2, seed=0, base_name=None)
    assert all(p.requires_grad for n, p in policy.model.named_parameters() if "pos_embed" not in n)


def test_a_second_adapter_is_refused():
    policy, _ = adapted_policy()
    with pytest.raises(ValueError, match="has a LoRA adapter already"):
        Adapter.create(policy.model, ["vae2llm"], rank=2, alpha=2, seed=0, base_name=None)


def test_without_peft_the_user_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"needs the package peft: pip install "):
        adapted_policy()


# ---------------------------------------------------------------- folders


def test_the_folder_is_what_peft_writes(tmp_path):
    _, adapter = adapted_policy()
    move(adapter)
    adapter.save(tmp_path / "ours")
    config = peft.LoraConfig(
        r=4, lora_alpha=8, init_lora_weights="gaussian", target_modules=adapter.config.target_modules
    )
    theirs = peft.get_peft_model(small_policy().model, config)
    config.base_model_name_or_path = "owner/name"
    theirs.load_state_dict(adapter.wrapper.state_dict())
    theirs.save_pretrained(str(tmp_path / "theirs"), save_embedding_layers=False)
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes(), name
    assert Adapter.base_of(tmp_path / "ours") == "owner/name"


def test_peft_loads_the_folder_to_the_same_answers(tmp_path):
    policy, adapter = adapted_policy(alpha=12.0)
    move(adapter)
    adapter.save(tmp_path)
    bare = small_policy()
    peft.PeftModel.from_pretrained(bare.model, str(tmp_path), is_trainable=True)
    assert torch.equal(answers(bare), answers(policy))


@pytest.mark.parametrize("prepare", [as_it_is, low_precision])
def test_a_loaded_adapter_answers_the_same_and_is_trained_on(tmp_path, prepare):
    policy = prepare(small_policy())
    adapter = add(policy, ["denoising"], alpha=2.5)
    move(adapter)
    adapter.save(tmp_path)
    bare = prepare(small_policy())
    loaded = Adapter.load(bare.model, tmp_path)
    assert torch.equal(answers(bare), answers(policy))
    assert all(p.requires_grad and p.dtype == torch.float32 for p in loaded.parameters().values())
    loaded.save(tmp_path / "again")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_an_adapter_that_peft_made_from_a_list_of_suffixes_is_loaded(tmp_path):
    theirs, ours = small_policy(), small_policy()
    config = peft.LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, lora_dropout=0.1, target_modules=["q_proj", "mlp_moe_gen.up_proj"],
        rank_pattern={"mlp_moe_gen.up_proj": 2}, init_lora_weights=False,
    )  # fmt: skip
    model = peft.get_peft_model(theirs.model, config)
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    loaded = Adapter.load(ours.model, tmp_path)
    theirs.model.eval()
    assert torch.equal(answers(ours), answers(theirs))  # in train mode: the dropout is gone
    assert len(loaded.layers) == 4
    loaded.merge()
    assert relative(answers(ours), answers(theirs)) < gradient_bound(ours)


def test_load_weights_resumes_in_place(tmp_path):
    policy, adapter = adapted_policy()
    move(adapter)
    adapter.save(tmp_path)
    other, resumed = adapted_policy(seed=0)
    parameters = resumed.parameters()
    resumed.load_weights(tmp_path)
    assert torch.equal(answers(other), answers(policy))
    assert all(p is parameters[name] for name, p in resumed.parameters().items())
    assert len(parameters) == len(adapter.parameters())


def write(tmp_path, change=None, spoil=None, **options):
    """An adapter folder, with its config changed and its files spoilt."""
    adapted_policy(**options)[1].save(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | (change or {})))
    if spoil is not None:
        spoil(tmp_path)
    return tmp_path


def rename(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(
        {name.replace("q_proj.", "q_prox."): t for name, t in tensors.items()}, folder / "adapter_model.safetensors"
    )


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
EMBEDDINGS = {"target_modules": ["embed_tokens"]}
ALSO_THE_HEAD, TEXT_ALONE = {"target_modules": r".*(_proj|_proj_moe_gen|lm_head)"}, {"target_modules": r".*_proj"}
BAD = {
    "no config": ({"spoil": lambda f: (f / CONFIG).unlink()}, "is no adapter folder: it has no adapter_config"),
    "no weights": ({"spoil": lambda f: (f / WEIGHTS).unlink()}, "is no adapter folder: it has no .*safetensors"),
    "torn config": ({"spoil": lambda f: (f / CONFIG).write_text("{")}, "adapter_config.json is not a readable"),
    "torn weights": ({"spoil": lambda f: (f / WEIGHTS).write_bytes(b"x" * 9)}, "is not a readable safetensors"),
    "other names": ({"spoil": rename}, r"does not fit the model: it lacks .*q_proj.*and 5 more"),
    "other kind": ({"change": {"peft_type": "LOHA"}}, "of the kind LOHA: only LORA"),
    "other model": ({"change": {"target_modules": ["nobody"]}}, "does not fit the model: .*nobody"),
    "not linear": ({"change": EMBEDDINGS}, "'language_model.model.embed_tokens' is no linear layer"),
    "more targets": ({"change": ALSO_THE_HEAD}, "it lacks base_model.model.language_model.lm_head"),
    "fewer targets": ({"change": TEXT_ALONE}, "moe_gen.*lora_A.weight, which is no target here"),
    "dora": ({"change": {"use_dora": True}}, "has use_dora = True: only plain LoRA"),
    "pissa": ({"change": {"init_lora_weights": "pissa"}}, "has init_lora_weights = 'pissa': only plain LoRA"),
    "rank": ({"change": {"r": 2}}, r"lora_A.weight has shape \(4, 32\), not \(2, 32\)"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", BAD)
def test_a_folder_that_cannot_be_loaded_leaves_the_model_bare(tmp_path, case):
    options, message = BAD[case]
    write(tmp_path, **options)
    policy = small_policy()
    names, attributes = list(policy.model.state_dict()), set(vars(policy.model))
    with pytest.raises(ValueError, match=message) as caught:
        Adapter.load(policy.model, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert list(policy.model.state_dict()) == names and set(vars(policy.model)) == attributes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2}, "has r = 2, but this run has 4: set model.lora.rank to 2"),
        ({"alpha": 9.0}, "has lora_alpha = 9, but this run has 8: set model.lora.alpha to 9"),
        ({"experts": ["reasoning"]}, "does not fit the model: it lacks .*_moe_gen.* more"),
        ({"spoil": lambda folder: (folder / "adapter_model.safetensors").unlink()}, "is no adapter folder"),
    ],
)
def test_resuming_from_another_adapter_is_refused_and_changes_nothing(tmp_path, options, message):
    write(tmp_path, **options)
    policy, adapter = adapted_policy()
    before = weights(policy)
    with pytest.raises(ValueError, match=message):
        adapter.load_weights(tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in weights(policy).items())


def test_an_adapter_may_name_no_base(tmp_path):
    adapted_policy(base_name=None)[1].save(tmp_path)
    assert Adapter.base_of(tmp_path) is None
    with pytest.raises(ValueError, match="is no adapter folder"):
        Adapter.base_of(tmp_path / "elsewhere")


# ---------------------------------------------------------------- the base within


def test_disabled_is_the_base_to_the_bit():
    policy = small_policy()
    policy.model.requires_grad_(False)
    before = answers(policy)
    adapter = add(policy)
    move(adapter)
    after = answers(policy)
    with adapter.disabled():
        assert torch.equal(answers(policy), before)
        with adapter.disabled():
            assert torch.equal(answers(policy), before)
        assert torch.equal(answers(policy), before)  # the inner one did not switch it on
    assert torch.equal(answers(policy), after)
    with pytest.raises(RuntimeError, match="stop"), adapter.disabled():
        raise RuntimeError("stop")
    assert torch.equal(answers(policy), after)


def test_disabled_leaves_the_gradients_switches_as_they_were():
    policy, adapter = adapted_policy()
    for parameter in policy.denoising_parameters().values():
        parameter.requires_grad_(False)
    before = {name: p.requires_grad for name, p in policy.model.named_parameters()}
    with adapter.disabled():
        pass
    assert {name: p.requires_grad for name, p in policy.model.named_parameters()} == before
    assert len(set(before.values())) == 2


def test_the_reference_of_a_lora_run_is_the_base():
    plain = small_policy()
    plain.model.requires_grad_(False)
    policy, adapter = adapted_policy()
    reference, items = WithoutAdapter(policy, adapter), mixed_items(policy)
    move(adapter)
    for ours, theirs in zip(
        reference.replay(items, temperature=0.7), plain.replay(items, temperature=0.7), strict=True
    ):
        assert torch.equal(ours.log_probs, theirs.log_probs)
        assert all(map(torch.equal, ours.velocities, theirs.velocities))
    base, wanted = base_state_dict(reference.module), plain.model.state_dict()
    assert list(base) == list(wanted) and all(torch.equal(base[name], wanted[name]) for name in base)
    assert base_state_dict(plain.model).keys() == wanted.keys()


@pytest.mark.parametrize("prepare", [as_it_is, low_precision])
def test_merging_rounds_once_and_gives_the_bare_model_back(prepare):
    policy = prepare(small_policy())
    before, attributes = weights(policy), set(vars(policy.model))
    adapter = add(policy, rank=4, alpha=12.0)
    move(adapter)
    adapted = answers(policy)
    factors = {name: p.detach().clone() for name, p in adapter.parameters().items()}
    assert adapter.merge() is policy.model
    after = weights(policy)
    assert list(after) == list(before) and set(vars(policy.model)) == attributes
    targets = [f"{target}.weight" for target in targets_of(policy)]
    for name in before:
        if name not in targets:
            assert torch.equal(after[name], before[name])
            continue
        a, b = (factors[name.replace("weight", f"lora_{x}.default.weight")] for x in "AB")
        wanted = (before[name].float() + (b @ a) * 3.0).to(before[name].dtype)
        assert torch.equal(after[name], wanted) and not torch.equal(after[name], before[name])
    assert relative(answers(policy), adapted) < (1e-5 if policy.compute_dtype == torch.float32 else 0.05)
    with pytest.raises(ValueError, match="was merged"):
        adapter.state()


# ---------------------------------------------------------------- training


def batch_of(policy, adapter, method=METHOD):
    """Two groups of three, rolled out by the policy itself, with the base as the reference."""
    sampled = sample(policy)
    ready = [t.with_advantages(a, a) for t, a in zip(sampled, (1.0, -0.5, 2.0, -1.5, 0.7, -0.3), strict=True)]
    draws = [queries_of(method, t, seeds.generator(0, 0, t.prompt.position, t.sample, "draws")) for t in ready]
    return annotate_reference(WithoutAdapter(policy, adapter), Batch(ready, draws), micro_batch=6, temperature=1.0)


CASES = {
    "joint": (BOTH, METHOD),
    "joint, through context": (BOTH, replace(METHOD, image_grad_through_context=True)),
    "reasoning": (["reasoning"], combination(image=None)),
    "denoising": (["denoising"], replace(METHOD, text=None)),
}


@pytest.mark.parametrize("prepare", [as_it_is, low_precision])
@pytest.mark.parametrize("case", CASES)
def test_a_step_moves_the_adapter_alone(case, prepare):
    experts, method = CASES[case]
    policy = prepare(small_policy())
    adapter = add(policy, experts)
    optimizer = ExpertOptimizer(policy, Optimizer(lr_reasoning=1e-2, lr_denoising=1e-2), 2)
    average = MovingAverage(policy, 0.5)
    assert set(optimizer.trained) == set(experts) and average.shadow.keys() == adapter.parameters().keys()
    before, batch = weights(policy), batch_of(policy, adapter, method)
    for step in range(2):  # A only learns once B is not 0
        updated = update(policy, optimizer, method, batch, micro_batch=6, temperature=1.0)
        assert gradients(policy).keys() <= adapter.parameters().keys()
        assert {expert for expert, norm in updated.grad_norm.items() if norm > 0.0} == set(experts)
        if "flow/velocity_mse" in updated.stats:  # invariant 16: B = 0, and the batches are identical
            assert (updated.stats["flow/velocity_mse"] == 0.0) == (step == 0)
    moved = {name for name, value in weights(policy).items() if not torch.equal(value, before[name])}
    last = {f"language_model.model.layers.1.{n}" for n in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj",
            "mlp.up_proj", "mlp.down_proj")}  # fmt: skip
    assert moved <= adapter.parameters().keys()
    for name in adapter.parameters().keys() - moved:  # nothing reads the text after its last layer in an image loss
        assert name.split(".lora_")[0] in last, name


def loss_gradients(policy, adapter, batch):
    """The two backward passes of the joint objective: ``inputs`` and ``retain_graph``, then everything."""
    policy.model.zero_grad(set_to_none=True)
    losses = METHOD.losses(batch.trajectories, replay(policy, batch, 1.0), batch.queries)
    backward(policy, METHOD, losses, len(batch))
    return gradients(policy)


@pytest.mark.parametrize("prepare", [as_it_is, low_precision])
def test_checkpointed_layers_give_the_same_gradients(prepare):
    policy = prepare(small_policy())
    adapter = add(policy)
    move(adapter)
    batch = batch_of(policy, adapter)
    if policy.compute_dtype != torch.float32:
        batch, _ = rescore(policy, batch, micro_batch=6, temperature=1.0)
    plain = loss_gradients(policy, adapter, batch)
    policy.model.activation_checkpointing = True
    again = loss_gradients(policy, adapter, batch)
    assert plain.keys() == again.keys() and len(plain) > len(adapter.parameters()) - 4
    for name, gradient in plain.items():
        assert gradient.dtype == torch.float32 and relative(again[name], gradient) <= 1e-6, name
        assert bool(gradient.any()), name


def test_the_image_loss_stays_out_of_the_reasoning_adapter():
    """Invariant 30, with adapters."""
    policy, adapter = adapted_policy()
    move(adapter)
    batch = batch_of(policy, adapter)
    losses = METHOD.losses(batch.trajectories, replay(policy, batch, 1.0), batch.queries)
    backward(policy, METHOD, replace(losses, text_loss=None), len(batch))
    assert gradients(policy).keys() and gradients(policy).keys() <= policy.denoising_parameters().keys()


def test_gradients_are_those_of_the_product():
    """dL/dB = s dL/dW A^T and dL/dA = s B^T dL/dW, with dL/dW of the merged model."""
    policy, adapter = adapted_policy(alpha=12.0)
    move(adapter)
    items = mixed_items(policy)
    answers(policy, items).sum().backward()
    ours = gradients(policy)
    factors = {name: p.detach().clone() for name, p in adapter.parameters().items()}
    adapter.merge().requires_grad_(True)
    answers(policy, items).sum().backward()
    theirs = gradients(policy)
    for target in targets_of(policy):
        if f"{target}.weight" not in theirs:
            continue
        a, b = (f"{target}.lora_{x}.default.weight" for x in "AB")
        assert relative(ours[b], 3.0 * theirs[f"{target}.weight"] @ factors[a].T) < 1e-3, b
        assert relative(ours[a], 3.0 * factors[b].T @ theirs[f"{target}.weight"]) < 1e-3, a
