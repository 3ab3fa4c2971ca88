"""The verb ``report``: the page of a run, or of every stage of one."""

from __future__ import annotations

from unigrpo import options, output
from unigrpo.recipe import stage_folders
from unigrpo.reports import runlog
from unigrpo.reports.html import write_report
from unigrpo.runs.places import try_file
from unigrpo.runs.stages import begun


def run(verb: options.Report) -> int:
    """Write the report of a run; of one of several stages those of all that have begun."""
    run_dir = verb.run_dir
    folders = stage_folders(run_dir) if begun(run_dir) else []
    for folder in folders or [run_dir]:
        if begun(folder):
            try_file(folder / runlog.REPORT, "RUN")
    written: list[str] = []
    for folder in folders or [run_dir]:
        if folder in folders and not begun(folder):
            print(f"{folder} has not begun: no report yet")
        else:
            written.append(str(write_report(folder)))
            output.result(f"wrote {written[-1]}", wrote=written)
    return 0
