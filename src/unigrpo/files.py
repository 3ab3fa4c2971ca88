"""Files, written and read so that neither a crash nor a stranger's hand can do harm.

Written: a reader, or a machine that loses power, finds the old file or the new one, whole. Read: a JSON file that is
cut, nested without end or holds numbers that no float can hold is a ValueError of one sentence, which names the file,
the line and what to do. This module knows nothing of the package and imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import json
import math
import numbers
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, Protocol, runtime_checkable

MAX_DEPTH = 64
"""How deep objects and lists of a JSON file may be nested; the files of models and runs need less than ten."""
REPAIR = "repair it, or remove it"
"""What to do with a broken file where the caller knows nothing better."""


# ----------------------------------------------------------------------------------------------------------- writing


_TEMPORARY = re.compile(r"\..+\.(\d+)\.[0-9a-f]{8}\.tmp")


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[BinaryIO]:
    """Give a file to write, which takes the place of ``path`` when the block ends; after a fault nothing has changed.

    A reader, or a machine that loses power, sees the old file or the new one, whole: temporary file in the same folder
    (made if missing), fsync, ``os.replace``, fsync of the folder.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        # not mkstemp: its files are readable by their owner only
        with naming(path), temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_bytes_atomic(path: Path | str, data: bytes) -> Path:
    """Replace ``path`` by ``data``, whole or not at all (:func:`replacing`)."""
    with replacing(path) as file:
        file.write(data)
    return Path(path)


@contextlib.contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Give an OSError from inside the name of what was written: a full disk does not say where."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def write_text_atomic(path: Path | str, text: str) -> Path:
    """Write UTF-8 text with :func:`write_bytes_atomic`."""
    return write_bytes_atomic(path, text.encode())


def write_json_atomic(path: Path | str, value: Any) -> Path:
    """Write indented JSON with :func:`write_bytes_atomic`; NaN and infinities become null (JSON has no word for them).

    TypeError names a value that is neither plain data nor a scalar with ``item()`` (numpy, torch).
    """
    return write_text_atomic(path, json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_records_atomic(path: Path | str, records: Iterable[Mapping[str, Any]]) -> Path:
    """Write one JSON object a line with :func:`write_bytes_atomic` (evaluation records, sampled trajectories)."""
    return write_text_atomic(path, "".join(json_line(record) for record in records))


def json_line(record: Mapping[str, Any]) -> str:
    """One JSON object as a line of a file, with its newline (numbers as in :func:`write_json_atomic`)."""
    return json.dumps(_plain(record, "record"), ensure_ascii=False, allow_nan=False) + "\n"


def sync_folder(folder: Path) -> None:
    """Make a rename durable; Windows cannot open folders, and its renames need no help."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_temporary(name: str) -> bool:
    """Whether a file of this name is what a killed :func:`write_bytes_atomic` left behind."""
    return _TEMPORARY.fullmatch(name) is not None


def clear_temporaries(folder: Path) -> None:
    """Remove what killed writers left anywhere below a folder; those of other living processes stay."""
    for where, _, names in os.walk(folder):
        for name in names:
            found = _TEMPORARY.fullmatch(name)
            if found is not None and not lives(int(found[1])):
                (Path(where) / name).unlink(missing_ok=True)


def lives(process: int) -> bool:
    """Whether another process of this number runs here."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


@runtime_checkable
class _Scalar(Protocol):
    """A numpy or torch scalar (without importing either)."""

    def item(self) -> Any: ...


def _plain(value: Any, where: str = "value") -> Any:
    """Turn nested data into what JSON can say."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, _Scalar):
        return _plain(value.item(), where)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{where} is a {type(value).__name__}, which JSON cannot hold; give numbers, text, lists or dicts")


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a new folder to fill, which takes its name and place when the block ends; after a fault nothing is left.

    ``folder`` may be there and empty. ValueError says where and why it could not be written.
    """
    there, made = folder.is_dir(), _absent(folder.parent)
    draft = (folder if there else folder.parent) / f".{folder.name}.{secrets.token_hex(4)}.partial"
    try:
        draft.mkdir(parents=True)
        yield draft
        if there:  # its own place may be a mount or a link: only what is in it can be moved
            for path in draft.iterdir():
                os.replace(path, folder / path.name)
            draft.rmdir()
        else:
            os.rename(draft, folder)
    except BaseException as error:
        shutil.rmtree(draft, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError) and _concerns(error, draft, folder):
            why = error.strerror or error
            raise ValueError(
                f"cannot write {folder} ({why}); nothing of it was left: make room or choose another folder"
            ) from error
        raise


def _absent(folder: Path) -> list[Path]:
    """The folder and those above it that are not there, innermost first."""
    return [] if folder.exists() else [folder, *_absent(folder.parent)]


def _concerns(error: OSError, draft: Path, folder: Path) -> bool:
    """Whether a fault is of writing here (a full disk gives no name), and not of reading somewhere else."""
    if error.filename is None:
        return True
    named = str(error.filename)
    return named.startswith(str(draft)) or Path(named) in (folder, *folder.parents)


# ----------------------------------------------------------------------------------------------------------- reading


def read_bytes(path: Path | str, advice: str = REPAIR) -> bytes:
    """The bytes of a file; ValueError where it is missing, a folder or unreadable says so and adds ``advice``."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, but a file belongs there: move it away")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path} is not there: put it back, or name another folder") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): {advice}") from error


def read_json_object(path: Path | str, advice: str = REPAIR) -> dict[str, Any]:
    """Read a file that holds one JSON object (UTF-8, with or without a byte order mark).

    ValueError names the file, and where it is broken its line and column, and ends with ``advice``.
    """
    return parse_json_object(read_bytes(path, advice), str(path), advice)


def parse_json_object(text: str | bytes, where: str, advice: str = REPAIR) -> dict[str, Any]:
    """A JSON object from text; ``where`` (a file, or a file and its line) is what errors begin with.

    ValueError for what is not UTF-8 or not JSON, for another value than an object, for more than ``MAX_DEPTH`` levels,
    and for NaN, Infinity and numbers too large for a float.
    """
    try:
        decoded = (text.decode("utf-8") if isinstance(text, bytes) else text).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 text (byte {error.start}): {advice}") from error
    try:
        value = json.loads(decoded, parse_float=_finite, parse_int=_whole, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in decoded.strip() else ""
        at = f"{line}column {error.colno}"
        raise ValueError(f"{where} is not JSON ({error.msg} at {at}): {advice}") from error
    except RecursionError:
        raise ValueError(f"{where} is nested too deep (above {MAX_DEPTH} levels): {advice}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}: {advice}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not a JSON object but {_short(value)}: {advice}")
    if _deeper_than(MAX_DEPTH, value):
        raise ValueError(f"{where} is nested too deep (above {MAX_DEPTH} levels): {advice}")
    return value


def _finite(word: str) -> float:
    number = float(word)
    return number if math.isfinite(number) else _no_number(word)


def _whole(word: str) -> int:
    """A whole number that a float can hold too (the limits of models run to 10^30, so 64 bits are too few)."""
    return int(word) if len(word) < 300 else _no_number(word)


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word if len(word) <= 20 else word[:20] + '...'} is not a finite number")


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else shown[:40] + "..."


def _deeper_than(levels: int, value: Any) -> bool:
    """Whether containers are nested in more than so many levels (without recursion)."""
    inner = [value]
    for _ in range(levels):
        inner = [item for outer in inner for item in _items(outer) if isinstance(item, dict | list)]
        if not inner:
            return False
    return True


def _items(container: dict[str, Any] | list[Any]) -> Iterator[Any]:
    yield from container.values() if isinstance(container, dict) else container
