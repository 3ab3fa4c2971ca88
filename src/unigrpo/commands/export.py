"""The verb ``export``: a trained model, or its adapter, as others load it, with a card that says what it is."""

from __future__ import annotations

from unigrpo import build, options, output
from unigrpo.build.exporting import write_adapter, write_whole
from unigrpo.commands.exporting import cards, hub
from unigrpo.files import whole_folder, write_text_atomic
from unigrpo.ranges import ConfigError
from unigrpo.runs.folders import must_be_new

README = "README.md"


def run(verb: options.Export) -> int:
    """Write a trained model (its adapter merged) as others load it, or its adapter alone as peft loads it."""
    must_be_new(verb.out)
    _check(verb)
    client = None if verb.push_to_hub is None else hub.ready(verb.push_to_hub, public=verb.public)
    source = build.model_folder(verb.model)
    with whole_folder(verb.out) as draft:
        if verb.adapter:
            written = write_adapter(verb.model, source, draft, cards.portable, cards.readme_of_base(source))
        else:
            written = write_whole(verb.model, source, draft, verb.dtype)
        name = verb.push_to_hub or verb.out.resolve().name
        card = cards.card(source, name, adapter=verb.adapter, precision=written.precision, readme=written.readme)
        if card is not None:
            write_text_atomic(draft / README, card.markdown())
    size = sum(file.stat().st_size for file in verb.out.rglob("*") if file.is_file())
    told = f"wrote {verb.out}{written.line}, {size / 1e6:,.1f} MB\n  {written.precision}"
    output.result(told, wrote=str(verb.out), bytes=size, precision=written.precision)
    if client is not None and verb.push_to_hub is not None:
        pushed = hub.push(client, verb.out, verb.push_to_hub, public=verb.public)
        output.result(pushed, pushed=verb.push_to_hub)
    return 0


def _check(verb: options.Export) -> None:
    """ConfigError for options that mean nothing together."""
    if verb.adapter and verb.dtype != "source":
        raise ConfigError(f"--dtype {verb.dtype} --adapter: an adapter is kept as it was trained; leave one out")
    if verb.public and verb.push_to_hub is None:
        raise ConfigError("--public says who sees a repository on the hub: add --push-to-hub, or leave it out")
