"""Random valid recipes: each dry run ends without an error (the broken ones: test_recipe_fuzz.py)."""

import copy

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny_runs
from test_recipe_fuzz import shipped

MANY = 1000
BASES = {"shapes/unigrpo": 3, "shapes/diffusion-nft": 1, "shapes/pretrain": 1}
WEIGHTS = st.floats(0.0, 10.0, allow_nan=False)
POSITIVE = st.floats(1e-3, 10.0)
SHARES = st.floats(0.0, 1.0)
RATES = st.floats(1e-9, 1e-2)


def some(keys):
    """Any of these keys, each with a value of its own strategy; the others are left as they are."""
    return st.fixed_dictionaries({}, optional=keys)


def optimizers():
    return some(
        {
            "lr_reasoning": RATES,
            "lr_denoising": RATES,
            "betas": st.lists(st.floats(0.0, 0.9999), min_size=2, max_size=2),
            "eps_reasoning": st.floats(1e-20, 1e-3),
            "weight_decay": SHARES,
            "max_grad_norm": POSITIVE,
            "ppo_epochs": st.integers(1, 8),
            "micro_batch": st.integers(1, 500),
            "ema": st.floats(0.0, 0.9999),
        }
    )


def evaluations():
    return some(
        {
            "every": st.integers(1, 1000),
            "limit": st.integers(1, 500),
            "compare_limit": st.integers(1, 500),
            "compare_samples": st.integers(1, 8),
            "num_points": st.integers(2, 60),
            "guidance": st.floats(1.0, 20.0),
            "renorm": st.sampled_from(["global", "channel", "text_channel"]),
            "think": st.booleans(),
        }
    )


def checkpoints():
    return some(
        {
            "every": st.integers(1, 1000),
            "minutes": st.none() | POSITIVE,
            "keep": st.integers(1, 9),
            "stop_within_s": st.floats(0.5, 3600),
        }
    )


@st.composite
def rollouts(draw, base):
    points = draw(st.integers(6, 40))
    found = draw(
        some(
            {
                "shift": st.floats(0.01, 20.0),
                "temperature": st.floats(0.1, 5.0),
                "max_think_tokens": st.integers(2, 64),
                "batch": st.none() | st.integers(1, 300),
                "same_initial_noise": st.booleans(),
            }
        )
    )
    found["num_points"] = points
    if base == "shapes/unigrpo":
        low = draw(st.integers(0, points - 3))
        high = draw(st.integers(low + 1, points - 2))
        found |= {"window": [low, high], "window_size": draw(st.integers(1, high - low))}
        found |= draw(some({"noise_level": st.floats(0.01, 1.0), "guidance": st.floats(1.0, 10.0)}))
    return found


def methods():
    """Further keys of ``unigrpo``."""
    return some(
        {
            "lambda_flow": POSITIVE,
            "image_grad_through_context": st.booleans(),
            "text": some({"clip_range": POSITIVE, "kl_weight": WEIGHTS}),
            "flow": some(
                {
                    "clip_range": st.just("auto") | POSITIVE,
                    "ratio_norm": st.booleans(),
                    "grad_reweight": st.sampled_from(["none", "inv_dt", "inv_dt_norm"]),
                }
            ),
            "regulariser": some({"kind": st.sampled_from(["velocity_mse", "latent_kl"]), "weight": WEIGHTS}),
            "advantage": some(
                {"clip": POSITIVE, "scale": st.sampled_from(["group_std", "batch_std", "none"]), "epsilon": SHARES}
            ),
        }
    )


@st.composite
def recipes(draw):
    """A shipped recipe in which many keys have other values that fit together."""
    base = draw(st.sampled_from([name for name, share in BASES.items() for _ in range(share)]))
    recipe = copy.deepcopy(shipped(base))
    changes = {"optimizer": draw(optimizers()), "eval": draw(evaluations()), "checkpoint": draw(checkpoints())}
    recipe |= draw(some({"seed": st.integers(0, 2**31)})) | {"iterations": draw(st.integers(1, 10**6))}
    changes["optimizer"] |= {
        "warmup": draw(st.integers(0, recipe["iterations"] // 2)),
        "decay": draw(st.floats(0.0, 0.4)),
    }
    changes["rollout"] = draw(rollouts(base))
    if base == "shapes/pretrain":
        changes["data"] = draw(some({"batch_size": st.integers(1, 200)}))
        changes["optimizer"] |= {"ppo_epochs": 1}  # demonstrations are used once
    else:
        prompts = draw(st.integers(1, 40))
        changes["data"] = {"prompts_per_iteration": prompts, "group_size": draw(st.integers(2, 40))}
        changes["optimizer"]["minibatches"] = draw(st.sampled_from([n for n in range(1, 41) if prompts % n == 0]))
        changes["reward"] = draw(some({"on_error": st.just("drop_sample"), "max_failed_share": SHARES}))
        if changes["reward"].keys() == {"max_failed_share"}:
            changes["reward"]["on_error"] = "drop_sample"
    if base == "shapes/unigrpo":
        changes["method"] = draw(methods())
    return merged(recipe, changes)


def merged(recipe, changes):
    for key, value in changes.items():
        recipe[key] = merged(recipe.get(key) or {}, value) if isinstance(value, dict) else value
    return recipe


def check(path, recipe, capsys):
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    code = tiny_runs.unigrpo("train", path, "--dry-run")
    shown = capsys.readouterr()
    assert code == 0, shown.err
    assert "GB" in shown.out and not shown.err


FIXED = {"derandomize": True, "database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=12, **FIXED)
@given(recipe=recipes())
def test_random_valid_recipes_are_dry_run(tmp_path_factory, capsys, recipe):
    check(tmp_path_factory.getbasetemp() / "valid.yaml", recipe, capsys)


@pytest.mark.slow
@settings(max_examples=MANY, **FIXED)
@given(recipe=recipes())
def test_a_thousand_random_valid_recipes_are_dry_run(tmp_path_factory, capsys, recipe):
    check(tmp_path_factory.getbasetemp() / "valid-of-many.yaml", recipe, capsys)
