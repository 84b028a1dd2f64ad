"""rlkit: KL-regularized RL post-training of language models.

The public names stand in ``__init__.pyi``, where editors and type checkers read them. The same file says where each comes from, so that
``import rlkit`` costs nothing: a name is imported when it is first asked for.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import sys
from pathlib import Path
from typing import Any

from rlkit.distribution import VERSION as __version__
from rlkit.importing import importing

_STUB = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
_HOMES = {  # public name -> the module it is imported from, and what it is called there
    alias.asname or alias.name: (node.module, alias.name)
    for node in _STUB.body
    if isinstance(node, ast.ImportFrom) and node.module
    for alias in node.names
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rlkit' has no attribute {name!r}")
    module, called = _HOMES[name]
    with contextlib.nullcontext() if module in sys.modules else importing():
        home = vars(importlib.import_module(module))
    return home[called] if called in home else importlib.import_module(f"{module}.{called}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
