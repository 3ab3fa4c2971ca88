"""Whether demonstrations can teach what the loss asks for, in every batch."""

from __future__ import annotations

from unigrpo.data_names import EMBEDDED
from unigrpo.objectives.method import Method
from unigrpo.ranges import ConfigError
from unigrpo.recipe.sections import DemonstrationData


def check_teaches(data: DemonstrationData, method: Method) -> None:
    """Every batch must hold something of what is learned: with one weight at 0 not every demonstration does."""
    mix, n = data.mix, data.batch_size
    if data.demonstrations not in EMBEDDED:
        if method.ignores_pictures and data.drop_prompt > 0:
            raise ConfigError(
                f"data.drop_prompt = {data.drop_prompt:g} with method.mse_weight = 0: a picture without words leaves "
                "nothing to learn; set data.drop_prompt to 0, or the weight above 0"
            )
        return
    drawn = n * (1 - mix.plan_only)
    if method.ignores_words and drawn < 1 - 1e-9:
        raise ConfigError(
            f"data.mix.plan_only = {mix.plan_only:g} with method.ce_weight = 0: {drawn:.2g} of {n} demonstrations have "
            "a picture, and nothing is learned from the others; lower it, or set the weight above 0"
        )
    for key, share in mix.dense_shares().items():
        told = n * (1 - share - mix.unconditional - mix.no_think)
        if method.ignores_pictures and told < 1 - 1e-9:
            raise ConfigError(
                f"method.mse_weight = 0 leaves the plans alone to learn, and {max(told, 0):.2g} of {n} demonstrations "
                f"have one: lower data.mix.{key}, unconditional or no_think, or set the weight above 0"
            )
