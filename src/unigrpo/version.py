"""Which unigrpo this is: its version, the commit of its checkout, and what it runs on."""

from __future__ import annotations

import contextlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path


def describe() -> str:
    """One line for ``unigrpo --version`` and for questions about a fault; nothing heavy is imported for it."""
    commit = git_commit()
    checkout = "" if commit is None else f" (commit {commit})"
    return (
        f"unigrpo {of('unigrpo') or 'of a folder'}{checkout}, python {platform.python_version()}, torch {of('torch')}"
    )


def of(package: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """The commit this file belongs to, "-dirty" with uncommitted changes; None outside of its checkout.

    The file must be tracked: a package installed below somebody else's checkout has no part in their history.
    """
    here = Path(__file__).resolve()
    describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        for arguments in (["ls-files", "--error-unmatch", here.name], describe):
            command = ["git", "-C", str(here.parent), *arguments]
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip() or None
    return None
