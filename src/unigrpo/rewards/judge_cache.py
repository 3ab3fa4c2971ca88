"""What a judge has said before, on disk: a SQLite file that several processes may share. Failures are not kept."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from unigrpo.ranges import ConfigError
from unigrpo.rewards.answers import RewardFault

NAME = "judge.sqlite"
WAIT = 30.0  # seconds for another process that is writing


class Cache:
    """Answers by key, in the file ``path`` (or ``judge.sqlite`` in the folder ``path``); made where it is missing."""

    def __init__(self, path: str) -> None:
        place = Path(path).expanduser()
        self.path = place / NAME if place.is_dir() or path.endswith("/") else place
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # every statement is its own transaction; only the event loop's thread comes here after this
            self._file = sqlite3.connect(self.path, timeout=WAIT, isolation_level=None, check_same_thread=False)
            self._open()
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(
                f"cache {str(self.path)!r} cannot be used ({error}): name a file that a judge made, or a new one"
            ) from error

    def _open(self) -> None:
        """Make the table in a new file; sqlite3.Error for a damaged or a foreign one, which stay as they are."""
        (sound,) = self._file.execute("PRAGMA quick_check(1)").fetchone()
        if sound != "ok":
            raise sqlite3.DatabaseError(" ".join(sound.split()))
        tables = {name for (name,) in self._file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if tables - {"answers"}:
            raise sqlite3.DatabaseError(f"it is the database of another program, with a table {min(tables)!r}")
        if not tables:
            self._file.execute("PRAGMA journal_mode=WAL")  # readers do not wait for a writer; kept in the file
            self._file.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")
        self._file.execute("PRAGMA synchronous=NORMAL")
        self._file.execute("SELECT key, answer FROM answers LIMIT 1").fetchone()

    def get(self, key: str) -> list[float] | None:
        """The answers under a key, or None."""
        row = self._done("SELECT answer FROM answers WHERE key = ?", key)
        return None if row is None else _numbers(row[0])

    def put(self, key: str, answers: list[float]) -> None:
        """Keep answers under a key."""
        self._done("INSERT OR REPLACE INTO answers VALUES (?, ?)", key, json.dumps(answers))

    def _done(self, statement: str, *values: str) -> Any:
        try:
            return self._file.execute(statement, values).fetchone()
        except sqlite3.Error as error:  # a full disk, a file that was damaged meanwhile
            raise RewardFault(f"cache {str(self.path)!r} of the judge cannot be used any more: {error}") from error


def _numbers(text: Any) -> list[float] | None:
    """Answers as they were kept; None for anything else, which is asked again."""
    try:
        found = json.loads(text)
    except (ValueError, TypeError):
        return None
    numbers = isinstance(found, list) and all(isinstance(n, int | float) and 0.0 <= n <= 1.0 for n in found)
    return [float(number) for number in found] if numbers else None
