"""Recipes: what is shipped loads, what is written comes back, and what cannot work is refused with a reason."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from unigrpo.objectives.methods import OnlyText, UniGRPO
from unigrpo.objectives.regularisers import Regulariser
from unigrpo.objectives.supervised import Supervised
from unigrpo.ranges import ConfigError
from unigrpo.recipe import (
    DemonstrationData,
    Optimizer,
    PromptData,
    Rollout,
    Scorer,
    from_yaml,
    list_recipes,
    load_recipe,
    load_stages,
    sources,
    to_yaml,
)
from unigrpo.tools.planning.arithmetic import batch_arithmetic

SHAPES = "shapes/unigrpo"
SUPERVISED = """
name: sft
iterations: 100
model: {path: init:micro}
data: {demonstrations: shapes, batch_size: 48, mix: {bad_plan: 0.35, dense: 0.5, dense_until: 0.75}}
reward: {validation: [{name: shapes/verifier}]}
method: {name: supervised, ce_weight: 0.3, timestep_shift: 4, noisy_copies: 3}
optimizer: {lr_reasoning: 3e-3, lr_denoising: 3e-3, micro_batch: 48, warmup: 10, decay: 0.4, ema: 0.995}
eval: {prompts: shapes:held-out}
"""


def refusal(*overrides: str, recipe: str = SHAPES) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe, overrides)
    return str(caught.value)


# ---------------------------------------------------------------- what is shipped


def test_every_shipped_recipe_loads_and_comes_back() -> None:
    names = [name for name, _ in list_recipes()]
    assert {SHAPES, "bagel/unigrpo"} <= set(names)
    for name, description in list_recipes():
        recipes = load_stages(name)
        assert description and all(recipe.name.split(":")[0] == name for recipe in recipes)
        if len(recipes) == 1:
            assert recipes == [load_recipe(name)] == [from_yaml(to_yaml(recipes[0]))]


def test_description_falls_back_to_the_first_comment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes" / "a").mkdir(parents=True)
    (tmp_path / "recipes" / "a" / "b.yaml").write_text("# what it is\n# more\nname: a/b\n")
    monkeypatch.setattr(sources.resources, "files", lambda _: tmp_path)
    assert list_recipes() == [("a/b", "what it is")]


def test_bagel_recipe_is_table_3() -> None:
    recipe = load_recipe("bagel/unigrpo")
    rollout, method, optimizer, data = recipe.rollout, recipe.method, recipe.optimizer, recipe.data
    assert isinstance(method, UniGRPO) and isinstance(data, PromptData)
    assert (rollout.num_points, rollout.guidance, rollout.shift, rollout.image_size) == (25, 1.0, 3.0, 1024)
    assert (rollout.window, rollout.window_size, rollout.noise_level, rollout.temperature) == ((0, 5), 3, 0.8, 1.0)
    assert (data.prompts_per_iteration, data.group_size, recipe.eval.num_points) == (32, 24, 50)
    assert (optimizer.lr_reasoning, optimizer.lr_denoising, optimizer.ppo_epochs) == (1e-6, 3e-5, 2)
    assert (method.lambda_flow, method.text.kl_weight) == (1.0, 0.0)
    assert (method.flow.clip_range, method.regulariser) == ("auto", Regulariser("velocity_mse", 1.5e-5))


def test_defaults_are_the_bagel_recipe() -> None:
    """Table 3 stands in two places, the defaults and the recipe: they must agree."""
    recipe = load_recipe("bagel/unigrpo")
    assert recipe.rollout == Rollout(image_size=1024, batch=8)
    assert recipe.optimizer == Optimizer(ppo_epochs=2)
    assert recipe.method == UniGRPO()
    assert recipe.data == PromptData("geneval:train")


def test_supervised_recipe() -> None:
    recipe = from_yaml(SUPERVISED)
    assert isinstance(recipe.data, DemonstrationData) and isinstance(recipe.method, Supervised)
    assert (recipe.data.mix.bad_plan, recipe.data.mix.unsorted) == (0.35, 0.0)
    assert recipe.method.timestep_shift == 4.0
    assert from_yaml(to_yaml(recipe)) == recipe


# ---------------------------------------------------------------- overrides and round trip


def test_override_forms() -> None:
    forms = (
        ["--method.flow.clip-range", "1e-5"],
        ["--method.flow.clip_range=1e-5"],
        ["--method.flow.clip-range=0.00001"],
        ["--method.flow", "{clip_range: 1.0e-5}"],
    )
    recipes = [load_recipe(SHAPES, form) for form in forms]
    assert all(recipe == recipes[0] for recipe in recipes)
    assert isinstance(recipes[0].method, UniGRPO) and recipes[0].method.flow.clip_range == 1e-5


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("--seed=7", "seed", 7),
        ("--rollout.image_size=none", "rollout.image_size", None),
        ("--rollout.image-size=null", "rollout.image_size", None),
        ("--model.lora=none", "model.lora", None),
        ("--rollout.think=true", "rollout.think", True),
        ("--rollout.same-initial-noise=True", "rollout.same_initial_noise", True),
        ("--rollout.window=[1, 5]", "rollout.window", (1, 5)),
        ("--eval.guidance=2", "eval.guidance", 2.0),
        ("--method.flow.grad-reweight=none", "method.flow.grad_reweight", "none"),
        ("--method.flow.grad-reweight=null", "method.flow.grad_reweight", "none"),
        ("--method.regulariser.kind=none", "method.regulariser.kind", "none"),
        ("--method.flow.clip-range=auto", "method.flow.clip_range", "auto"),
        ("--method={name: text_grpo}", "method", OnlyText()),
        (
            "--reward.train=[{name: a}, {name: b, weight: 2}]",
            "reward.train",
            (Scorer("a"), Scorer("b", 2.0)),
        ),
        ("--name='7'", "name", "7"),
    ],
)
def test_override_values(override: str, path: str, value: object) -> None:
    found: object = load_recipe(SHAPES, [override])
    for key in path.split("."):
        found = vars(found)[key]
    assert found == value
    assert type(found) is type(value)


def test_later_override_wins_and_loading_again_is_untouched() -> None:
    assert load_recipe(SHAPES, ["--seed", "1", "--seed", "2"]).seed == 2
    assert load_recipe(SHAPES).seed == 0


rate, clip_range = st.floats(min_value=1e-12, max_value=10), st.floats(min_value=1e-9, max_value=1e9)
share = st.floats(min_value=0, max_value=1, exclude_max=True)
words = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=100)


@settings(deadline=None, max_examples=60)
@given(
    lr=rate,
    clip=st.one_of(clip_range, st.just("auto")),
    betas=st.tuples(share, share),
    side=st.one_of(st.none(), st.integers(1, 2**14)),
    seed=st.integers(0, 2**63 - 1),
    think=st.booleans(),
)
def test_overrides_round_trip(
    lr: float, clip: float | str, betas: tuple[float, float], side: int | None, seed: int, think: bool
) -> None:
    recipe = load_recipe(
        SHAPES,
        [
            f"--optimizer.lr-denoising={lr!r}",
            "--method.flow.clip-range",
            str(clip),
            f"--optimizer.betas={list(betas)}",
            f"--rollout.image-size={side}",
            f"--seed={seed}",
            "--eval.think",
            str(think).lower(),
        ],
    )
    assert isinstance(recipe.method, UniGRPO)
    assert (recipe.optimizer.lr_denoising, recipe.method.flow.clip_range) == (lr, clip)
    assert (recipe.optimizer.betas, recipe.rollout.image_size, recipe.seed, recipe.eval.think) == (
        betas,
        side,
        seed,
        think,
    )
    assert from_yaml(to_yaml(recipe)) == recipe


@settings(deadline=None, max_examples=100)
@given(
    text=st.one_of(words, st.sampled_from(["1e-5", "yes", "null", "~", "010", "1:30", ".5", "1_0", "true", "on", "<<"]))
)
def test_text_stays_text(text: str) -> None:
    recipe = dataclasses.replace(load_recipe(SHAPES), name=text, description=text)
    assert from_yaml(to_yaml(recipe)) == recipe


def test_written_yaml_means_the_same_to_others() -> None:
    recipe = load_recipe(SHAPES, ["--name='1e-5'", "--optimizer.lr-denoising=1e-5"])
    others = yaml.safe_load(to_yaml(recipe))
    assert (others["name"], others["optimizer"]["lr_denoising"], others["rollout"]["window"]) == ("1e-5", 1e-5, [0, 5])


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        # keys
        (["--method.flow.clip-rnage=1"], ["method.flow.clip_rnage", "did you mean clip_range"]),
        (["--clip-range=1"], ["did you mean method.text.clip_range or method.flow.clip_range"]),
        (["--clip-rang=1"], ["did you mean method."]),
        (["--rollout.wndow.x=1"], ["rollout.wndow", "did you mean window"]),
        (["--zzz=1"], ["zzz is not a key", "keys here: name,"]),
        (["--method.name=text_grpo"], ["method.lambda_flow", "text_grpo has no such term", "or use unigrpo"]),
        (
            ["--method={name: flow_grpo, text: {}}"],
            ["method.text", "flow_grpo has no such term", "unigrpo or text_grpo"],
        ),
        (["--data.demonstrations=shapes"], ["data.demonstrations", "data of RL", "supervised"]),
        (["--method={name: supervised}"], ["data.prompts", "data of supervised has no such term"]),
        (["--method.name=unigpro"], ["'unigpro'", "did you mean unigrpo"]),
        (["--method={}"], ["method.name is missing"]),
        (["--method=none"], ["method.name is missing"]),
        (["--model={}"], ["model.path is missing"]),
        (["--reward={train: []}"], ["reward.validation is missing"]),
        # the notation
        (["--seed"], ["--seed has no value"]),
        (["--seed", "--iterations", "3"], ["--seed has no value"]),
        (["seed=3"], ["'seed=3' is not an override"]),
        (["--=3"], ["is not an override"]),
        (["--a..b=3"], ["is not an override"]),
        (["--rollout.window=[1,"], ["not valid YAML"]),
        (["--rollout={shift: 1, shift: 2}"], ["shift is set twice"]),
        (["--seed.x=1"], ["seed = 0 has no keys of its own"]),
        (["--reward.train.0.weight=1"], ["reward.train", "set it whole"]),
        # types
        (["--seed=1.5"], ["seed = 1.5", "a whole number"]),
        (["--seed=true"], ["seed = True", "a whole number"]),
        (["--seed=1e3"], ["seed = 1000.0", "a whole number"]),
        (["--rollout.shift=true"], ["rollout.shift = True", "a number"]),
        (["--rollout.shift=fast"], ["rollout.shift = 'fast'", "a number"]),
        (["--rollout.shift=1e999"], ["rollout.shift = inf", "a number"]),
        (["--rollout.shift="], ["rollout.shift = None", "a number"]),
        (["--rollout.think=yes"], ["rollout.think = 'yes'", "true or false"]),
        (["--name=7"], ["name = 7", "text"]),
        (["--rollout=3"], ["rollout = 3", "not a section", "num_points"]),
        (["--rollout.window=5"], ["rollout.window = 5", "a list of 2 numbers"]),
        (["--rollout.window=[0, 5, 6]"], ["a list of 2 numbers"]),
        (["--reward.train=shapes/verifier"], ["a list", "[{name: shapes/verifier}]"]),
        (["--reward.train=[shapes/verifier]"], ["reward.train[0]", "not a section"]),
        (["--method.flow.clip-range=aut"], ["'aut'", "or auto"]),
        (["--rollout.image-size=all"], ["rollout.image_size = 'all'", "or null"]),
        (["--rollout.sde=flows"], ["did you mean flow"]),
        (["--reward.on-error=skip"], ["choose one of raise"]),
        (["--model.dtype=float16"], ["model.dtype = 'float16'", "bfloat16"]),
        # ranges
        (["--data.group-size=0"], ["data.group_size = 0", "at least 1"]),
        (["--iterations=0"], ["iterations = 0", "at least 1"]),
        (["--seed=-1"], ["seed = -1", "at least 0"]),
        (["--rollout.shift=0"], ["rollout.shift = 0.0", "at least 0.001"]),
        (["--optimizer.max-grad-norm=0"], ["optimizer.max_grad_norm = 0.0", "above 0"]),
        (["--rollout.guidance=0.5"], ["at least 1"]),
        (["--method={name: fpo}", "--rollout.guidance=2"], ["rollout.guidance = 2", "own velocity"]),
        (["--method={name: fpo, regulariser: {kind: latent_kl}}"], ["latent_kl", "draws by the ODE"]),
        (["--method={name: text_grpo}", "--optimizer.lr-reasoning=0"], ["lr_reasoning = 0", "not move"]),
        (["--optimizer.lr-denoising=0"], ["optimizer.lr_denoising = 0", "would not move"]),
        (
            [
                "--reward.train",
                "[{name: shapes/verifier, weight: 2.0}, {name: shapes/verifier, weight: -2.0}]",
            ],
            ["reward.train", "cancel"],
        ),
        (["--method.lambda_flow", "0"], ["method.lambda_flow = 0", "text_grpo"]),
        (["--optimizer.lr_denoising", "1e-300"], ["optimizer.lr_denoising = 1e-300", "1e-12 or more"]),
        (["--optimizer.max_grad_norm", "1e-30"], ["optimizer.max_grad_norm = 1e-30", "eps_reasoning"]),
        (["--method.text.clip_range", "1e-12"], ["method.text.clip_range = 1e-12", "every ratio is clipped"]),
        (["--method.flow.clip_range", "1e-12"], ["method.flow.clip_range = 1e-12", "every ratio is clipped"]),
        (["--rollout.temperature", "1e-6"], ["rollout.temperature = 1e-06", "all the same"]),
        (["--rollout.max_think_tokens", "1"], ["rollout.max_think_tokens = 1", "one token is none"]),
        (["--reward.train=[{name: shapes/verifier, weight: 0.0}]"], ["the weights of reward.train are 0"]),
        (
            ["--method={name: fpo}", "--rollout.same-initial-noise=true", "--rollout.think=false"],
            ["same_initial_noise = true", "would be the same"],
        ),
        (["--rollout.window-motion=sliding", "--rollout.window-stride=3"], ["never moves", "3 places"]),
        (["--method={name: text_grpo}", "--rollout.window-motion=sliding"], ["sliding", "no SDE window"]),
        (["--rollout.window-size=0"], ["rollout.window_size = 0", "RatioNorm"]),
        (["--optimizer.betas=[0.9, 1]"], ["optimizer.betas[1] = 1.0", "below 1"]),
        (["--optimizer.decay=1.1"], ["at least 0 and at most 1"]),
        (["--rollout.window=[-1, 5]"], ["rollout.window[0] = -1", "at least 0"]),
        # models
        (["--model.path="], ["model.path = None"]),
        (["--model.path=''"], ["model.path is empty"]),
        (["--model.path=builtin:shapes-sfft"], ["did you mean builtin:shapes-sft"]),
        (["--model.lora.rank=0"], ["model.lora.rank = 0", "at least 1"]),
        (["--model.lora.experts=[]"], ["model.lora.experts = []", "null"]),
        (["--model.lora.experts=[denoising, denoising]"], ["each once"]),
        (["--model.lora={experts: [denoising]}"], ["unigrpo also trains reasoning", "flow_grpo"]),
        (["--optimizer.kind=adamw_8bit"], ["optimizer.eps_denoising", "1e-8 or more"]),
        (["--optimizer.kind=adam"], ["did you mean adamw"]),
        (["--eval.interval=[0.5, 0.5]"], ["eval.interval", "low below high"]),
        (["--model.lora=8"], ["model.lora = 8 is not a section", "rank, alpha, experts"]),
        # parts that do not fit each other
        (["--data.group-size=1"], ["data.group_size = 1", "2 or more"]),
        (["--optimizer.minibatches=3"], ["optimizer.minibatches = 3", "prompts_per_iteration = 16", "whole groups"]),
        (["--rollout.window-size=6"], ["rollout.window_size = 6", "[0, 5]", "holds 5 steps"]),
        (["--rollout.window=[5, 0]"], ["holds 0 steps"]),
        (["--rollout.window=[0, 8]"], ["num_points = 9", "end it at 7", "10 or more"]),
        (["--rollout.num-points=6"], ["last of the 5 steps", "end it at 4"]),
        (["--rollout.noise-level=0"], ["rollout.noise_level = 0", "without noise"]),
        (["--rollout.noise-level=1.5", "--rollout.sde=cps"], ["cps: at most 1"]),
        (["--rollout.think=false"], ["rollout.think = false", "flow_grpo"]),
        (["--rollout.temperature=0"], ["rollout.temperature = 0", "greedy"]),
        (["--reward.train=[]"], ["reward.train is empty"]),
        (["--reward.validation=[]"], ["reward.validation is empty"]),
        (["--optimizer.warmup=150", "--optimizer.decay=0.5"], ["optimizer.warmup = 150", "overlap"]),
    ],
)
def test_refused(overrides: list[str], parts: list[str]) -> None:
    message = refusal(*overrides)
    assert message.startswith(f"recipe {SHAPES}: ")
    for part in parts:
        assert part in message


def test_the_window_matters_only_to_methods_with_a_flow_term() -> None:
    text_only = load_recipe(SHAPES, ["--method={name: text_grpo}", "--rollout.num-points=5", "--rollout.noise-level=0"])
    assert text_only.rollout.num_points == 5
    flow_only = load_recipe(SHAPES, ["--method={name: flow_grpo}", "--rollout.think=false", "--rollout.temperature=0"])
    assert not flow_only.rollout.think


def test_the_widest_window_and_one_sample_less() -> None:
    assert load_recipe(SHAPES, ["--rollout.window=[0, 7]", "--rollout.window-size=7"]).rollout.window == (0, 7)
    assert load_recipe(SHAPES, ["--data.group-size=2", "--optimizer.minibatches=8"]).optimizer.minibatches == 8


@pytest.mark.parametrize("key", ["ppo_epochs", "minibatches"])
def test_demonstrations_are_used_once(key: str) -> None:
    with pytest.raises(ConfigError, match=f"optimizer.{key} = 2"):
        from_yaml(SUPERVISED.replace("warmup: 10", f"{key}: 2"))


def test_replacing_a_part_is_checked_too() -> None:
    recipe = load_recipe(SHAPES)
    with pytest.raises(ConfigError, match="supervised runs learn from demonstrations"):
        dataclasses.replace(recipe, method=Supervised())


def test_unhashable_keys_and_bare_values_are_refused() -> None:
    for text in ("? [a]\n: 1", "? [[a]]\n: 1", "just words", "[1, 2]", ""):
        with pytest.raises(ConfigError):
            from_yaml(text)


# ---------------------------------------------------------------- finding a recipe


def test_a_missing_recipe_lists_near_matches() -> None:
    assert "did you mean shapes/unigrpo" in refusal(recipe="shapes/unigpro")
    everything = refusal(recipe="qqqq")
    assert all(name in everything for name, _ in list_recipes())


def test_a_recipe_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(SUPERVISED)
    assert load_recipe(path) == load_recipe(str(path)) == from_yaml(SUPERVISED)
    path.write_text("- 1")
    assert "holds no keys" in refusal(recipe=str(path))
    path.write_text("name: a\nname: b")
    assert "name is set twice (line 2)" in refusal(recipe=str(path))
    assert "cannot be read" in refusal(recipe=str(tmp_path / "other.yaml"))


# ---------------------------------------------------------------- arithmetic


def test_batch_arithmetic() -> None:
    said = "\n".join(
        batch_arithmetic(
            load_recipe(SHAPES, ["--iterations=200", "--optimizer.minibatches=2", "--optimizer.micro-batch=20"])
        )
    )
    for part in (
        "16 prompts x 6 samples = 96",
        "9 grid points = 8 forwards per image",
        "up to 32 thinking tokens",
        "3 steps of each image are trained, starting at step 0 to 2",
        "2 epochs x 2 minibatches = 4 optimizer steps per iteration, 800 in 200",
        "48 sequences, 20 at a time = 3 per optimizer step",
        "every 25 iterations on 200 prompts of shapes:held-out",
    ):
        assert part in said


def test_batch_arithmetic_of_guidance_and_demonstrations() -> None:
    guided = batch_arithmetic(load_recipe("bagel/unigrpo"))
    assert any("150 prompts x 4 images" in line and "98 forwards (49 steps x 2" in line for line in guided)
    supervised = "\n".join(batch_arithmetic(from_yaml(SUPERVISED)))
    assert "48 demonstrations x 3 noisy copies" in supervised
    assert "1 optimizer step per iteration, 100 in the run" in supervised
    assert "SDE" not in supervised
