"""Configurations and examples that come with the library: ``configs/`` and ``examples/`` of the repository, which a wheel has here.

In the repository the two folders beside this file are links, so that there is one text of each.
"""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent
CONFIGS, EXAMPLES = HERE / "configs", HERE / "examples"


def names() -> dict[str, Path]:
    """Every configuration by its name: ``quickstart``, ``algorithms/grpo``, ``examples/local``."""
    found = {path.relative_to(CONFIGS).with_suffix("").as_posix(): path for path in sorted(CONFIGS.glob("**/*.yaml"))}
    return found | {f"examples/{path.stem}": path for path in sorted(EXAMPLES.glob("*.yaml"))}


def find(name: str) -> Path | None:
    """The file of a configuration's name."""
    return names().get(name)
