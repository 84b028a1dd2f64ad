"""What reads the options of a command: a parser whose mistakes are ours, and numbers with their bounds."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from rlkit.bounds import Bound
from rlkit.errors import ConfigError
from rlkit.reading import printable, shown


class Parser(argparse.ArgumentParser):
    """Raises instead of printing its usage; knows its options, and what it takes without one, by name."""

    def __init__(self, **options: Any) -> None:
        self.flags, self.takes = list[str](), list[str]()
        super().__init__(**options)

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        self.flags += [name for name in names if name.startswith("--")]
        self.takes += [name for name in names if not name.startswith("-")]
        return super().add_argument(*names, **options)

    def error(self, message: str) -> NoReturn:
        end = "" if message.endswith("?") else "."
        raise ConfigError(f"{printable(message)}{end} `{self.prog} --help` shows what there is.")


def _number(kind: type[int] | type[float], bound: Bound) -> Callable[[str], float]:
    """What argparse calls with the text of an option that takes a number."""

    def read(text: str) -> float:
        try:
            x = kind(text)
        except ValueError:
            words = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"found {shown(text)}, expected {words}") from None
        if not bound.admits(x):
            raise argparse.ArgumentTypeError(f"is {shown(x)}; it must {bound}")
        return x

    return read


count = _number(int, Bound(at_least=1))
seed = _number(int, Bound(at_least=0, at_most=2**32 - 1))
positive = _number(float, Bound(above=0))
not_negative = _number(float, Bound(at_least=0))
number = _number(float, Bound())
share = _number(float, Bound(at_least=0, at_most=1))
