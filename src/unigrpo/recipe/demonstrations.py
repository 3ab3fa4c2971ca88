"""Whether demonstrations can teach what the loss asks for, in every batch."""

from __future__ import annotations

from unigrpo.data_names import EMBEDDED, LOOKED_AT
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
    _check_looks(data)
    said = {"plan_only": mix.plan_only, "look_only": mix.look_only, "question": mix.question}
    drawn = n * (1 - sum(said.values()))
    if method.ignores_words and drawn < 1 - 1e-9:
        listed = ", ".join(f"{key} = {share:g}" for key, share in said.items() if share or key == "plan_only")
        raise ConfigError(
            f"data.mix.{listed} with method.ce_weight = 0: {drawn:.2g} of {n} demonstrations have "
            "a picture, and nothing is learned from the others; lower it, or set the weight above 0"
        )
    for key, share in mix.dense_shares().items():
        told = n * (1 - share - mix.unconditional - mix.no_think)
        if method.ignores_pictures and told < 1 - 1e-9:
            raise ConfigError(
                f"method.mse_weight = 0 leaves the plans alone to learn, and {max(told, 0):.2g} of {n} demonstrations "
                f"have one: lower data.mix.{key}, unconditional or no_think, or set the weight above 0"
            )


def _check_looks(data: DemonstrationData) -> None:
    """Whether the world has pictures that are looked at, where such demonstrations are asked for."""
    asked = [key for key, share in data.mix.looking().items() if share > 0]
    if asked and data.demonstrations not in LOOKED_AT:
        raise ConfigError(
            f"data.mix.{asked[0]} = {data.mix.looking()[asked[0]]:g} with data.demonstrations = "
            f"{data.demonstrations}: only {', '.join(LOOKED_AT)} has demonstrations that look; set it to 0"
        )
    if data.mix.look_edits > 0 and not data.mix.look + data.mix.look_only:
        raise ConfigError(
            f"data.mix.look_edits = {data.mix.look_edits:g} is a share of look and look_only, and both are 0: set one "
            "of them above 0, or leave it out"
        )
    for key in ("misseen", "bad_revision"):
        if vars(data.mix)[key] > 0 and not asked:
            raise ConfigError(
                f"data.mix.{key} = {vars(data.mix)[key]:g}, but no picture is looked at: set data.mix.look or "
                "look_only above 0, or leave it out"
            )
