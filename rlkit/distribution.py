"""What the package index and ``pip`` call this library, which is not what Python calls it: ``rlkit`` there is somebody else's."""

from __future__ import annotations

NAME = "rlkit-lm"
VERSION = "0.1.0"


def install(*extras: str) -> str:
    """How one or another extra is installed, as an instruction for the end of an error."""
    first, *others = (f"{NAME}[{extra}]" for extra in extras)
    return f"Install it with: pip install '{first}'" + (f" (or {', '.join(others)})" if others else "")
