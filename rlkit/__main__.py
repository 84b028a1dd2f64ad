"""``python -m rlkit``: the command line, where the script ``rlkit`` is not on the path."""

from rlkit.cli import entry

entry()
