"""What a configuration names by ``type``: parts that come in kinds, of which the library has some and users write their own.

A kind is a direct subclass of :class:`Plug`: ``Term``, ``Advantage``, ``Sampler`` and so on; a frozen dataclass with working defaults. One
of a kind is a subclass: its fields are keys of the YAML file, and what it must define is abstract in the kind. So ``issubclass`` says
what may stand where, and a class of the user's own is refused where the file is read, by what it is.
"""

from __future__ import annotations

from abc import ABC
from typing import ClassVar

from rlkit.bounds import Bounded


class Plug(Bounded, ABC):
    """Base of the kinds.

    ``homes`` are the modules of the library that have classes of a kind; they are imported when a configuration names one.
    """

    homes: ClassVar[tuple[str, ...]] = ()


def is_kind(cls: object) -> bool:
    return isinstance(cls, type) and Plug in cls.__bases__


def kind_of(cls: type) -> type[Plug] | None:
    """The kind of a class; None where it is of none."""
    return next((base for base in cls.__mro__ if is_kind(base)), None)
