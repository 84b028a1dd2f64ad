"""Rewards that are objects with settings: a model that scores, a judge that is asked, a tournament. Each has a process of its own.

::

    rewards:
      - {type: RewardModel, path: my_reward_model, weight: 0.5}        # keys of the reward and of the grader side by side
      - {fn: {type: my_graders.py:Mine, limit: 3}, name: mine}         # the same, apart
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from rlkit.plug import Plug


@dataclass(frozen=True, kw_only=True)
class Grader(Plug):
    """Base of all of them. A user's own overrides :meth:`__call__`, whose parameters are filled by name, as those of a function are.

    What it holds open (a model, a connection) is made in its process: a ``functools.cached_property``, which :meth:`start` may ask for.
    All its calls wait side by side on one event loop, so what takes long without waiting belongs into ``asyncio.to_thread``.

    Attributes:
        usual_timeout: seconds that a call may take where the reward's ``timeout`` is not set. starting: seconds that its process may.
    """

    homes: ClassVar[tuple[str, ...]] = ("rlkit.rewards.judge", "rlkit.rewards.groups", "rlkit.model.classifier")
    usual_timeout: ClassVar[float] = 60.0
    starting: ClassVar[float] = 120.0

    @abstractmethod
    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What a reward function returns; one that takes ``responses`` and not ``response`` is called once for all of a prompt."""

    def check(self) -> None:
        """Before the start, in the run's process, where nothing expensive may be done. Raises InputError for what cannot work."""

    @property
    def share(self) -> float | None:
        """GPUs that it takes in an actor of its own on a cluster; None: it is a process on the machine of the run's process."""
        return None

    def everywhere(self) -> Self:
        """The same with paths that an actor finds, who may have another current folder."""
        return self

    def start(self) -> None:
        """In its process, before the first call."""

    def taken(self) -> dict[str, int]:
        """What it has used since this was asked last, by name. A run adds it up, over new processes and resumed runs."""
        return {}

    def metrics(self, used: Mapping[str, int]) -> dict[str, float]:
        """What is logged of everything that it used, as ``reward/NAME/...``."""
        return {}

    def spent(self, used: Mapping[str, int]) -> str | None:
        """Why the run has to stop, when it has used so much."""
        return None
