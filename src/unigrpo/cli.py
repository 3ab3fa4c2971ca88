"""The command line: which verb is meant, and what went wrong with it (options: ``options``; verbs: ``commands``).

Exit codes: 0 done (or saved after SIGTERM or SIGHUP), 1 a check failed (parity, doctor), 2 something was set that
cannot work, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from importlib import import_module
from typing import Annotated, Union

import tyro
from tyro.conf import CascadeSubcommandArgs, FlagCreatePairsOff, subcommand

from unigrpo import loading, memory, output, threads, version
from unigrpo.options import VERBS, WITH_OVERRIDES, Common, Eval, Train


def main(argv: Sequence[str] | None = None) -> int:
    """The ``unigrpo`` command, for programs and notebooks too: run it and return its exit code."""
    return run(list(sys.argv[1:] if argv is None else argv))


def console() -> None:
    """The command in a process of its own, which ends here: beside a thread in torch's code Python's way out aborts."""
    threads.prepare()
    code = main()
    calling = sys.modules.get("unigrpo.rewards.calling")
    # a reward that hangs, or that Ctrl-C left to itself; or what ranks have sent to each other
    if output.launched() or (calling is not None and calling.busy()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(argv: list[str]) -> int:
    """Run one command line and return its exit code; user errors become one message on stderr and code 2."""
    loading.stop_if_loading()
    with output.safe_streams() as out:
        code = run_verb(argv)
        if (why := out.lost()) is not None:
            return fail(f"what was printed has not arrived ({why}): files that were to be written are there", code or 2)
    return code


def run_verb(argv: list[str]) -> int:
    """Find out which verb is meant, and run it."""
    if argv in (["--version"], ["-V"]):
        print(version.describe())
        return 0
    try:
        verb, overrides = parsed(argv)
    except SystemExit as left:  # after --help, and where the parser has said what it refuses
        return left.code if isinstance(left.code, int) else 2 * bool(left.code)
    if overrides and not isinstance(verb, WITH_OVERRIDES):
        return fail(unknown(verb, argv[0], overrides))
    return guarded(lambda: _run(verb, overrides))


def parsed(argv: list[str]) -> tuple[Common, list[str]]:
    """The verb with its options, and the overrides of a recipe; SystemExit where there is none to run."""
    return tyro.cli(
        Union[tuple(Annotated[kind, subcommand(name)] for name, kind in VERBS.items())],  # type: ignore[arg-type]  # noqa: UP007
        prog="unigrpo",
        description="Reinforcement learning for models that think, then draw (UniGRPO, arXiv 2603.23500). "
        "unigrpo --version says which one this is.",
        args=argv,
        return_unknown_args=True,
        # --no-think has no --no-no-think; what a verb takes may stand after its own verb (rewards try --json)
        config=(FlagCreatePairsOff, CascadeSubcommandArgs),
    )


def unknown(verb: object, name: str, words: Sequence[str]) -> str:
    """What to say of words that a verb does not know."""
    if name.startswith("-"):
        return f"{name} stands before the verb: write it after, as in unigrpo recipes --json"
    if isinstance(verb, Eval) and words[0].partition("=")[0] == "--prompts":
        return "eval has no --prompts: how many prompts is --limit, and a file of prompts is --suite FILE"
    return f"{name} has no option {words[0]!r}: see unigrpo {name} --help"


def _run(verb: Common, overrides: Sequence[str]) -> int:
    """Run a verb's command, which is imported only now: it takes torch along."""
    from unigrpo.runs.alone import Ended, ending_well, refuse_ranks

    threads.check(os.environ)
    name = next(name for name, kind in VERBS.items() if type(verb) is kind)
    if not isinstance(verb, Train | Eval):  # whose ranks share the work
        refuse_ranks(f"unigrpo {name}")
    silent = nullcontext() if output.rank() == 0 else redirect_stdout(output.SafeStream(None))
    ending = ending_well() if isinstance(verb, Train) else nullcontext()
    with silent, output.speaking(quiet=verb.quiet, json=verb.json):
        try:
            with ending:
                command = import_module(f"unigrpo.commands.{name.replace('-', '_')}")
                return command.run(verb, overrides) if isinstance(verb, WITH_OVERRIDES) else command.run(verb)
        except Ended as ended:
            print(ended)
            return 0


def guarded(action: Callable[[], int]) -> int:
    """Run an action; a ValueError (reward and training faults are some) or a file error is told, not traced back."""
    try:
        return action()
    except output.Told:
        return 2
    except OSError as error:
        return fail(output.told(error))
    except ValueError as error:
        return fail(str(error))
    except KeyboardInterrupt:
        return fail("stopped", code=130)
    except (RuntimeError, MemoryError) as error:
        if memory.is_full(error):
            return fail(str(memory.told(error)))
        raise


def fail(message: str, code: int = 2) -> int:
    """Print an error to stderr and return its exit code."""
    rank = output.rank()
    if rank == 0 or code != 130:  # what stops a job stops all its ranks
        print(f"unigrpo: error: {f'rank {rank}: ' if rank else ''}{message}", file=sys.stderr)
    return code
