"""The verb ``rewards``: what there is, one tried on pictures, one served over HTTP."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unigrpo import build, options, output
from unigrpo.pictures import read_picture
from unigrpo.plurals import counted
from unigrpo.ranges import ConfigError, how_to_install, shown
from unigrpo.recipe import Scorer
from unigrpo.recipe.notation import parse
from unigrpo.rewards import registry
from unigrpo.rewards.composite import CompositeReward
from unigrpo.rewards.protocol import RewardInput, metadata_of
from unigrpo.trajectory import Prompt

AFTER = (
    "one of your own: path/file.py:thing or package.module:thing; several pictures, arguments and what each needs: "
    "docs/rewards.md"
)


def run(verb: options.Rewards) -> int:
    """List the rewards, try one, or serve one."""
    match verb.action:
        case options.TryReward() as asked:
            return attempt(asked)
        case options.ServeReward() as asked:
            return serve(asked)
        case _:
            return listed()


def listed() -> int:
    """Print every reward that has a name, and what it lacks."""
    rows = [_row(name) for name in registry.names()]
    lines = [f"{row['name']:30} {row['about']}{_marks(row)}" for row in rows]
    output.result("\n".join([*lines, "", AFTER]), rewards=rows)
    return 0


def _row(name: str) -> dict[str, Any]:
    if (shipped := build.SHIPPED.get(name)) is None:
        return {"name": name, "about": "of an installed package, or registered here", "gradient": None, "needs": None}
    needs = None if not shipped.lacks else ", ".join(shipped.lacks)
    if needs and shipped.extra:
        needs = f"{needs}: {how_to_install(shipped.extra)}"
    return {"name": name, "about": shipped.about, "gradient": shipped.gradient, "needs": needs}


def _marks(row: Mapping[str, Any]) -> str:
    marks = [*(["gradient"] if row["gradient"] else []), *([f"needs {row['needs']}"] if row["needs"] else [])]
    return f" ({'; '.join(marks)})" if marks else ""


def attempt(asked: options.TryReward) -> int:
    """Score pictures with a reward, and print its values by name."""
    if not asked.image:
        raise ConfigError("say which picture to score: --image FILE")
    images = _pictures(asked)
    args, about = _mapping("--args", asked.args), _about(asked)
    if not asked.timeout_s > 0:
        raise ConfigError(f"--timeout-s {asked.timeout_s:g}: it must be above 0")
    reward = build.reward([Scorer(asked.name, args=args, value=asked.value, timeout_s=asked.timeout_s)])
    count, began = len(images), time.perf_counter()
    given = RewardInput(images, [asked.prompt] * count, [about] * count, [asked.thinking] * count)
    scored = reward(given)
    seconds = time.perf_counter() - began
    parts = {name: list(values) for name, values in scored.parts.items()}
    lines = [
        f"{picture}: {value:.6g}{_parts({name: values[i] for name, values in parts.items()})}"
        for i, (picture, value) in enumerate(zip(asked.image, scored.values, strict=True))
    ]
    said = {"reward": asked.name, "values": scored.values, "parts": parts, "seconds": seconds}
    output.result("\n".join(lines), **said, gradient=not reward.black_boxes)
    print(f"{asked.name} took {seconds:.2f} s for {counted(count, 'picture')}; {_gradient(reward)}")
    return 0


def _about(asked: options.TryReward) -> dict[str, Any]:
    """What the reward is told of the prompt: metadata, and the pictures that were edited."""
    sources = tuple(read_picture(path) for path in asked.source)
    if asked.metadata is None:
        known = dict(build.known_of(asked.name, asked.prompt, sources))
    else:
        known = _mapping("--metadata", asked.metadata)
    (told,) = metadata_of([Prompt(0, asked.prompt, known, sources)])
    return dict(told)


def _gradient(reward: CompositeReward) -> str:
    return "it gives no gradient" if reward.black_boxes else "it gives gradients (ReFL can follow them)"


def _parts(parts: Mapping[str, float]) -> str:
    return f" ({', '.join(f'{name} {value:.6g}' for name, value in parts.items())})" if parts else ""


def _pictures(asked: options.TryReward) -> Tensor:
    """The pictures float32 [B, 3, H, W] in [0, 1]."""
    found = [read_picture(path) for path in asked.image]
    for path, picture in zip(asked.image, found, strict=True):
        if picture.shape != found[0].shape:
            sizes = [f"{p.shape[2]}x{p.shape[1]}" for p in (found[0], picture)]
            raise ConfigError(
                f"{asked.image[0]} has {sizes[0]} pixels and {path} {sizes[1]}: pictures of one call have one size, "
                "so try them one after the other"
            )
    return torch.stack(found).float() / 255.0


def _mapping(option: str, text: str) -> dict[str, Any]:
    found = parse(text)
    if not isinstance(found, dict):
        raise ConfigError(f'{option} is {shown(text)}: write a mapping, such as "{{name: value}}"')
    return found


def serve(asked: options.ServeReward) -> int:
    """Answer for a reward over HTTP until it is stopped."""
    from unigrpo.rewards.serving import serve as answer  # its packages are an extra

    args = _mapping("--args", asked.args)
    answer(
        asked.name,
        args,
        host=asked.host,
        port=asked.port,
        workers=asked.workers,
        token_env=asked.token_env,
        max_pictures=asked.max_pictures,
        max_pixels=asked.max_pixels,
        max_body_mb=asked.max_body_mb,
        timeout_s=asked.timeout_s,
    )
    return 0
