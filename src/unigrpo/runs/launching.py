"""``train --nproc N``: N processes of one command on this machine, as torchrun starts them, with signals passed on.

torch's own parts do it (``torch.distributed.elastic``); torchrun itself ends ranks that do not stop within 30 seconds,
where a run finishes its iteration and saves.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from types import FrameType

from unigrpo.reports.runlog import COMMAND

MOST_RANKS = 1024
LAUNCHED = "UNIGRPO_LAUNCHED"
"""Set for the ranks that were started here, to the launcher's process: they say how to start them again."""
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: which signal a process gets when its parent dies."""
FAILED = 1
"""The exit code where a rank died."""


def launch(words: Sequence[str], nproc: int) -> int:
    """Run ``unigrpo WORDS`` in ``nproc`` ranks, and return the exit code: that of the ranks, 1 where one died."""
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    sys.stdout.flush()
    before = {name: signal.getsignal(getattr(signal, name)) for name in SIGNALS if hasattr(signal, name)}
    # held here, so that no other process can take the port
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory(prefix="unigrpo-ranks-") as logs:
        ranks = start_processes(
            "unigrpo",
            sys.executable,
            {rank: ("-m", "unigrpo", *words) for rank in range(nproc)},
            {rank: environment(rank, nproc, store.port) for rank in range(nproc)},
            DefaultLogsSpecs(log_dir=logs),
        )

        def pass_on(number: int, frame: FrameType | None) -> None:
            for pid in ranks.pids().values():
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue

        for name, old in before.items():
            if old != signal.SIG_IGN:
                signal.signal(getattr(signal, name), pass_on)
            else:
                signal.signal(getattr(signal, name), signal.SIG_IGN)
        try:
            while (result := ranks.wait(0)) is None:
                time.sleep(0.05)
        finally:
            ranks.close()
            for name, old in before.items():
                signal.signal(getattr(signal, name), old)
    return verdict({rank: (failure.pid, failure.exitcode) for rank, failure in result.failures.items()})


def end_with_launcher() -> None:
    """Let the system end a rank whose launcher was killed: it would go on, and keep the run folder to itself."""
    if sys.platform != "linux" or LAUNCHED not in os.environ:
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(os.environ[LAUNCHED]):  # killed before that
        os._exit(FAILED)


def environment(rank: int, nproc: int, port: int) -> dict[str, str]:
    """What a rank finds: torchrun's variables, and one thread of its own unless somebody has set them."""
    set_before = {"OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        set_before["GLOO_SOCKET_IFNAME"] = "lo"  # all ranks are here, whatever the name of this machine means
    return {
        **{name: os.environ.get(name, value) for name, value in set_before.items()},
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(nproc),
        "LOCAL_WORLD_SIZE": str(nproc),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        LAUNCHED: str(os.getpid()),
        COMMAND: " ".join(sys.argv),
    }


def verdict(failed: Mapping[int, tuple[int, int]]) -> int:
    """The exit code of a job whose ranks failed with (process, exit code); a rank that died is named."""
    # those that are ended because another one died get SIGTERM
    died = {rank: (pid, -code) for rank, (pid, code) in failed.items() if code < 0 and -code != signal.SIGTERM}
    if died:
        for rank, (pid, number) in died.items():
            name = signal.Signals(number).name
            print(
                f"unigrpo: error: rank {rank} (process {pid}) was ended by {name}, and with it the run (out of memory? "
                "somebody's kill?); what was saved is whole, go on with --resume",
                file=sys.stderr,
            )
        return FAILED
    codes = [code for _, code in failed.values() if code > 0]
    if 0 in failed and failed[0][1] > 0:
        return failed[0][1]
    if codes:
        rank = next(rank for rank, (_, code) in failed.items() if code > 0)
        print(f"unigrpo: error: rank {rank} ended with exit code {codes[0]}: see what it said", file=sys.stderr)
        return codes[0]
    return FAILED if failed else 0
