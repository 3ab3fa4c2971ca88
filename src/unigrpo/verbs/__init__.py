"""What the verbs do: training · drawing (generate) · judging (eval) · exporting · models (parity,
make-tiny-bagel) · recipes · reproduce."""

from __future__ import annotations

from collections.abc import Sequence

from unigrpo import cli
from unigrpo.verbs import recipes, stages
from unigrpo.verbs.drawing import generate
from unigrpo.verbs.exporting import export
from unigrpo.verbs.judging import evaluate_model
from unigrpo.verbs.models import check_parity, make_tiny
from unigrpo.verbs.ranks import refuse_ranks
from unigrpo.verbs.reproduce import reproduce
from unigrpo.verbs.training import train


def run(verb: object, overrides: Sequence[str]) -> int:
    """Run one parsed verb and return the exit code."""
    refuse_ranks()
    match verb:
        case cli.Train():
            return train(verb, overrides)
        case cli.Generate():
            return generate(verb)
        case cli.Eval():
            return evaluate_model(verb)
        case cli.Report():
            return stages.report(verb.run_dir)
        case cli.Recipes():
            return recipes.list_all()
        case cli.RecipeToEdit():
            return recipes.write(verb, overrides)
        case cli.Parity():
            return check_parity(verb.folder)
        case cli.Export():
            return export(verb)
        case cli.MakeTinyBagel():
            return make_tiny(verb)
        case cli.Reproduce():
            return reproduce(verb)
    raise AssertionError(f"no verb for {verb!r}")
