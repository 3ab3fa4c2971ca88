"""``python -m unigrpo`` is the ``unigrpo`` command."""

from unigrpo.cli import console

console()
