"""One process at a time works in a folder: a lock of the operating system, with a word of who holds it.

The lock is flock's, on a file that is removed when the work ends. It ends with the process that holds it, however that
ends, so it is never stale; what a dead process leaves is its name in the file, and the next one takes the folder over
with a note. It belongs to the opened file: a second thread of one process is kept out too, and a child that was given
the file (or was forked) holds it on. Between machines it is as good as the network file system (NFS passes it to the
server). Where there are no such locks (Windows, some file systems) the name in the file has to do, and a note says so.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from unigrpo.files import lives, parse_json_object
from unigrpo.ranges import ConfigError

if sys.platform != "win32":
    import fcntl

LOCK = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class Held(ConfigError):
    """Another process works in the folder."""


@dataclass(frozen=True)
class Holder:
    """The process that a lock file names."""

    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.since})"

    @property
    def lives_here(self) -> bool:
        """Whether it is another process of this machine, and runs."""
        return self.host == socket.gethostname() and lives(self.pid)

    @property
    def is_gone(self) -> bool:
        """Whether it was a process of this machine that has ended."""
        return self.host == socket.gethostname() and self.pid != os.getpid() and not lives(self.pid)


@contextlib.contextmanager
def hold(path: Path, *, say: Callable[[str], None] = print) -> Iterator[int]:
    """Hold the lock file at ``path`` and yield its descriptor (for a child that is to hold it too).

    Raises :class:`Held` where another process has it; ``say`` is told of a dead one's that was taken over.
    """
    descriptor = _opened(path, say)
    mine = os.getpid()
    try:
        _name(descriptor, Holder(mine, socket.gethostname(), datetime.now(UTC).isoformat(timespec="seconds")))
        yield descriptor
    finally:
        if os.getpid() == mine:  # a forked child must not end its parent's lock
            with contextlib.suppress(OSError):
                path.unlink()
        os.close(descriptor)


def _opened(path: Path, say: Callable[[str], None]) -> int:
    """Open and lock the file; again where another process has removed it in between."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, path, say)
            if _same(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, path: Path, say: Callable[[str], None]) -> None:
    holder, locks = _holder(descriptor), True
    try:
        if sys.platform == "win32":
            locks = False
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _held(path, holder) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        locks = False
    if not locks:
        say(f"note: there are no file locks for {path.parent}: let only one process work there")
        if holder is not None and holder.lives_here:
            raise _held(path, holder)
    if holder is not None:
        where = "" if holder.is_gone else "; if it still runs there, stop one of the two"
        say(f"note: {path.parent} was left by {holder}, which ended without a word: taken over{where}")


def _held(path: Path, holder: Holder | None) -> Held:
    if holder is None:
        who = "another process"
    else:
        who = f"a child of {holder}, which is gone itself," if holder.is_gone else str(holder)
    return Held(f"{path.parent} is in use: {who} works there. Wait until it has ended, or name another folder")


def _name(descriptor: int, holder: Holder) -> None:
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps(asdict(holder)).encode())


def _holder(descriptor: int) -> Holder | None:
    """Who the file names; None for an empty or foreign one."""
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        named = parse_json_object(os.read(descriptor, 4096), "")
        return Holder(int(named["pid"]), str(named["host"]), str(named["since"]))
    except (ValueError, KeyError, TypeError):
        return None


def _same(descriptor: int, path: Path) -> bool:
    """Whether the opened file is still the one at the path."""
    try:
        there, ours = os.stat(path), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)
