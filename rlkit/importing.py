"""Imports of large libraries, without looking for garbage on the way."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Inside, Python looks for no cyclic garbage: modules stay, but every look at what was made lately is in the end a look at all of them.

    That is a fifth of the time of vLLM's imports.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
