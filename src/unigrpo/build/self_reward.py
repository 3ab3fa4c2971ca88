"""bagel/self by the name of a model: the reward's own frozen copy of it, not the policy that is being trained."""

from __future__ import annotations

from typing import Literal

from unigrpo.build.models import policy
from unigrpo.ranges import ConfigError
from unigrpo.recipe import Model
from unigrpo.rewards.read_back import NAME, PromptLikelihood


class BagelSelf(PromptLikelihood):
    """The mean log p(prompt | picture) by ``model``: builtin:NAME, a model or run folder, or a hub id.

    The run's own start is what the paper calls self; frozen, so that the judge does not learn to be pleased. The
    authors' released code reads with the weights that are being trained.
    """

    def __init__(
        self,
        *,
        model: str = "",
        latents: bool = True,
        batch: int = 4,
        canary: bool = False,
        dtype: Literal["float32", "bfloat16"] = "bfloat16",
        device: Literal["auto", "cpu", "cuda"] = "auto",
    ) -> None:
        if not model:
            raise ConfigError(
                f"reward {NAME!r} needs a model (a later stage's own start is not there yet): set args: {{model: ...}}"
            )
        loaded = policy(Model(model, dtype=dtype, device=device), merge=True)
        super().__init__(policy=loaded, latents=latents, batch=batch, canary=canary)
