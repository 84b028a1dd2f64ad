"""Progress in a notebook: one output below the cell, written again with every step. Nothing is imported that is not there already."""

from __future__ import annotations

import html
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Progress:
    """How far a run is: what IPython shows, as HTML where it can, else as text."""

    step: int
    steps: int
    lines: tuple[str, ...]

    def _repr_html_(self) -> str:
        bar = f'<progress value="{self.step}" max="{self.steps}" style="width: 100%"></progress>'
        return f'<div style="max-width: 48em">{bar}<pre style="margin: 0">{html.escape(repr(self))}</pre></div>'

    def __repr__(self) -> str:
        return "\n".join(self.lines)


def showing() -> Callable[[Progress], None] | None:
    """What shows progress where this process is a notebook's kernel, in one place that it keeps; None: it is none.

    IPython in a terminal is none: there the last row of the table is live.
    """
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is None or type(shell).__name__ != "ZMQInteractiveShell":
        return None
    handle: Any = None

    def show(progress: Progress) -> None:
        nonlocal handle
        if handle is None:
            handle = ipython.display.display(progress, display_id=True)
        else:
            handle.update(progress)

    return show
