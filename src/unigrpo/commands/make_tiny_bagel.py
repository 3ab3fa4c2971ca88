"""The verb ``make-tiny-bagel``: a random BAGEL of a few MB in the public layout, to try things with."""

from __future__ import annotations

from unigrpo import options, output
from unigrpo.runs.folders import must_be_new
from unigrpo.tools.tiny_bagel import full_autoencoder_bytes, make_tiny_bagel


def run(verb: options.MakeTinyBagel) -> int:
    """Write a random BAGEL in the public layout, with prompts and demonstrations to try recipes on."""
    must_be_new(verb.folder)
    if verb.full_autoencoder:
        size = full_autoencoder_bytes()
        print(f"its autoencoder in the sizes of FLUX takes {size / 1e6:.0f} MB", flush=True)
    told = make_tiny_bagel(verb.folder, seed=verb.seed, full_autoencoder=verb.full_autoencoder)
    output.result(str(told), wrote=str(verb.folder))
    return 0
