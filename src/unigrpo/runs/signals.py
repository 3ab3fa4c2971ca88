"""What ends a run early: Ctrl-C, and the signals of schedulers (SIGTERM) and closed terminals (SIGHUP).

All three save what is finished, within ``checkpoint.stop_within_s``, and the iteration under way is finished, unless it
would take longer. Ctrl-C again stops at once, and says what that throws away; the other two are often sent twice for
one cause, so their repeats change nothing. Exit codes: 130 after Ctrl-C, 0 after the others, whose
sender asked for an orderly end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from unigrpo.reports.progress import Progress
from unigrpo.runs.alone import orderly
from unigrpo.training.trainer import Stop, Trainer

INTERRUPTED = 130


def exit_code(stop: Stop) -> int:
    """The exit code of a run that was stopped and saved."""
    return 0 if stop.by in orderly() else INTERRUPTED


@contextlib.contextmanager
def stoppable(trainer: Trainer, progress: Progress, within_s: float | None = None) -> Iterator[None]:
    """Let signals end the run in an orderly way; as they were before, afterwards.

    within_s: where the process is this run's alone, it ends so long after the first signal, whatever it is doing then
    (complete checkpoints stay as they are). Only a program's main thread can have handlers: in another one, signals do
    what they did.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    deadlines: list[threading.Timer] = []

    def handle(number: int, frame: FrameType | None) -> None:
        stop, at_once = trainer.stop, number == signal.SIGINT
        if stop.requested and at_once:
            _say(progress, f"stopping at once: {trainer.unsaved() or 'nothing'} is thrown away")
            raise KeyboardInterrupt
        if not stop.requested:
            stop.ask(number)
            if within_s is not None:
                deadlines.append(threading.Timer(within_s, _end, (stop, trainer, within_s)))
                deadlines[0].daemon = True
                deadlines[0].start()
            name = "" if at_once else f"{signal.Signals(number).name}: "
            lost = f"; that would throw away {unsaved}" if (unsaved := trainer.unsaved()) else ""
            _say(
                progress,
                f"{name}stopping as soon as the step under way is finished, and saving "
                f"(Ctrl-C again to stop at once{lost})",
            )

    before = {number: signal.signal(number, handle) for number in _handled()}
    try:
        yield
    finally:
        for deadline in deadlines:
            deadline.cancel()
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)  # None: not installed by Python


def _end(stop: Stop, trainer: Trainer, within_s: float) -> None:
    """End the process: something that cannot be broken off has outlasted the deadline."""
    text = f"unigrpo: ended {within_s:g} s after the signal; {trainer.unsaved() or 'nothing'} is lost\n"
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
    os._exit(exit_code(stop))


def _handled() -> list[int]:
    """Ctrl-C, and those of the others that nobody has asked to ignore (nohup ignores SIGHUP)."""
    return [signal.SIGINT, *(number for number in orderly() if signal.getsignal(number) != signal.SIG_IGN)]


def _say(progress: Progress, text: str) -> None:
    """Show a note; where the terminal is gone, nothing more is shown, so that nothing more fails by it."""
    try:
        progress.note(text)
    except RuntimeError:  # the signal came in the middle of another print
        return
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        os.close(nowhere)
