"""``python -m unigrpo`` is the ``unigrpo`` command."""

from unigrpo.cli import main

main()
