"""The verb ``compare``: several runs, or several evaluations, on one self-contained page."""

from __future__ import annotations

from unigrpo import options, output
from unigrpo.plurals import counted
from unigrpo.ranges import ConfigError
from unigrpo.reports.comparison import differing, figures, read, write_comparison
from unigrpo.reports.evaluations_compared import lines_of
from unigrpo.runs import comparing
from unigrpo.runs.places import try_file


def run(verb: options.Compare) -> int:
    """Write the page, and print what every run came to."""
    if verb.out.suffix.lower() != ".html":
        raise ConfigError(f"--out {verb.out}: the page is an .html file; name one")
    if any(comparing.is_evaluation(path) for path in verb.runs):
        return _evaluations(verb)
    runs = read(verb.runs)
    try_file(verb.out)
    written, rows = write_comparison(runs, verb.out), figures(runs)
    for row in rows:
        known = [f"{row[side]:.3f}" if row[side] is not None else "-" for side in ("before", "after")]
        print(f"  {row['run']:24} {row['measure']:14} {' -> '.join(known)}   {row['interval']}")
    keys = {name: dict(zip([one.name for one in runs], values, strict=True)) for name, values in differing(runs)}
    output.result(f"wrote {written}", wrote=str(written), figures=rows, differing=keys)
    return 0


def _evaluations(verb: options.Compare) -> int:
    """The same for evaluations."""
    found = comparing.read(verb.runs)
    try_file(verb.out)
    table = comparing.compare(found)
    written = comparing.write_page(verb.out, f"{counted(len(found), 'evaluation')} compared", table)
    print("\n".join(lines_of(table)))
    output.result(f"wrote {written}", wrote=str(written), table=table)
    return 0
