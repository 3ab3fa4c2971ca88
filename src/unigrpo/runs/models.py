"""Models to draw with: by name, in the precision that fits the device, and told of prompts in their own words."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from unigrpo import build
from unigrpo.policy import Policy
from unigrpo.recipe import Model
from unigrpo.trajectory import Prompt

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16"]


def loaded(name: str, *, device: Device = "auto", dtype: Dtype = "auto", merge: bool = False) -> Policy:
    """The model of a name, to draw with; ``merge`` folds a LoRA adapter into the weights.

    dtype: auto is bfloat16 on an accelerator and float32 on a CPU.
    """
    accelerated = build.device_of(Model(name, device=device)).type != "cpu"
    chosen = ("bfloat16" if accelerated else "float32") if dtype == "auto" else dtype
    return build.policy(Model(name, dtype=chosen, device=device, autoencoder="sliced"), merge=merge)


def in_the_world(policy: Policy, prompt: Prompt) -> Prompt:
    """The prompt as the model reads it; of a world's words also with the requirements to judge it by."""
    world = build.world_of(policy.words)
    if world is None or prompt.images:
        return prompt if world is None else _edit_in_the_world(world, prompt)
    try:
        policy.encode_text(prompt.text)
        if policy.spec.image_size != world.image_size:
            return prompt
    except ValueError:  # words that the model has not: below it is said what can be asked for
        pass
    text, known = world.understand(prompt.text)
    return replace(prompt, text=text, metadata={**prompt.metadata, **known})


def _edit_in_the_world(world: build.EmbeddedWorld, prompt: Prompt) -> Prompt:
    """An edit of one picture of the world with the requirements to judge it by; one that it cannot read as it is."""
    one = len(prompt.images) == 1 and tuple(prompt.images[0].shape[1:]) == world.image_size
    if world.understand_edit is None or not one:
        return prompt
    try:
        text, known = world.understand_edit(prompt.text, prompt.images[0])
    except ValueError:  # the model may have its words all the same
        return prompt
    return replace(prompt, text=text, metadata={**prompt.metadata, **known})
