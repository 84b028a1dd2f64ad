"""The name by which scripts know :func:`rlkit.submit` from before the commands had functions."""

from __future__ import annotations

from collections.abc import Sequence

from rlkit.commands.submit import submit


def submit_job(config: str, overrides: Sequence[str], address: str, wait: bool = True) -> str:
    """The same as ``rk.submit(config, overrides, address=address, wait=wait)``."""
    return submit(config, overrides, address=address, wait=wait)
