"""The verb ``doctor``: is this machine fit for runs, and what would they do on it?"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unigrpo import options, output
from unigrpo.ranges import ConfigError
from unigrpo.tools.doctor.examining import examine
from unigrpo.tools.doctor.finding import Finding

COLOURS = {"ok": "green", "note": "yellow", "failed": "bold red"}


def run(verb: options.Doctor) -> int:
    """Examine, print one table and what to do; 1 if a check failed."""
    if (verb.gpus is None) != (verb.gpu_gb is None):
        raise ConfigError("--gpus and --gpu-gb go together: how many GPUs to plan for, and the memory of one in GB")
    if verb.gpus is not None and verb.gpu_gb is not None and not (1 <= verb.gpus <= 100_000 and 0 < verb.gpu_gb < 1e5):
        raise ConfigError(f"--gpus {verb.gpus} --gpu-gb {verb.gpu_gb:g}: give at least 1 GPU, of more than 0 GB")
    stream = sys.stdout
    shown = stream.isatty()
    found = examine(
        encoding=stream.encoding or "utf-8",
        is_terminal=shown,
        self_test=not verb.no_self_test,
        gpus=verb.gpus,
        gpu_gb=verb.gpu_gb,
    )
    failed = [finding.check for finding in found if finding.verdict == "failed"]
    figures = {"ok": not failed, "failed": failed, "findings": [finding.as_figures() for finding in found]}
    output.result(drawn(found, colours=shown), **figures)
    return 1 if failed else 0


def drawn(found: Sequence[Finding], *, colours: bool) -> str:
    """The table, what to do about each finding that says so, and one line of the whole."""
    console = Console(file=io.StringIO(), force_terminal=colours, no_color=not colours, width=None if colours else 120)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("check", "", "found"):
        table.add_column(title, overflow="fold")
    for finding in found:
        mark = f"[{COLOURS[finding.verdict]}]{finding.verdict}[/]"
        table.add_row(escape(finding.check), mark, escape(finding.said))
    console.print(table)
    for finding in found:
        if finding.todo:
            console.print(
                f"\n[{COLOURS[finding.verdict]}]{escape(finding.check)}[/]: {escape(finding.todo)}", highlight=False
            )
    console.print(f"\n{_whole(found)}", highlight=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip("\n")


def _whole(found: Sequence[Finding]) -> str:
    failed = [finding.check for finding in found if finding.verdict == "failed"]
    if not failed:
        return "all is well" if all(f.verdict == "ok" for f in found) else "all is well, with notes"
    return f"{len(failed)} of {len(found)} checks failed: {', '.join(failed)}"
