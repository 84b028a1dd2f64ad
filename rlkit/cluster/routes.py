"""The ways that weights take from the learners to engines on Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rlkit.cluster.groups import EngineGroup, LearnerGroup
from rlkit.errors import EngineError
from rlkit.learner.transfer import Meeting
from rlkit.rollout.engine import UpdateMode

PATIENCE = 15.0  # seconds within which the loss of an engine shows that has ended a transfer


class Route(Protocol):
    """How weights travel."""

    def __call__(
        self, learners: LearnerGroup, engines: EngineGroup, which: Sequence[int], mode: UpdateMode, everything: bool
    ) -> list[int]:
        """Pauses the engines ``which`` and gives them weights: everything, or what training can change. Returns those that have them."""
        ...


class Store:
    """Bucket by bucket, through Ray's object store or in place: the next one is gathered while engines load the last."""

    def __call__(
        self, learners: LearnerGroup, engines: EngineGroup, which: Sequence[int], mode: UpdateMode, everything: bool
    ) -> list[int]:
        buckets = learners.buckets(everything)
        handles = (learners.gather(names) for names, _ in buckets)
        ahead = next(handles)
        left = engines.begin_update(mode, which)
        for _ in buckets:
            bucket, ahead = ahead, next(handles, None)
            learners.made(bucket)
            left = engines.load(bucket, left)
            del bucket  # or three would exist while the next one is gathered
        return left


@dataclass(frozen=True)
class Direct:
    """From learner rank 0 to the engines, in a group of their own.

    An engine that is lost on the way ends the group. The others begin anew in another group; what they had loaded of the first is loaded
    again.
    """

    backend: str
    devices: int
    bucket: int
    timeout: float

    def __call__(
        self, learners: LearnerGroup, engines: EngineGroup, which: Sequence[int], mode: UpdateMode, everything: bool
    ) -> list[int]:
        left = engines.begin_update(mode, which)
        while left:
            members = tuple((i, engines.life(i)) for i in left)
            meeting = Meeting(self.backend, members, self.devices, self.bucket, self.timeout)
            failed = learners.send(engines.workers.client(left, self.timeout), meeting, everything)
            if failed is None:
                return left
            rest = engines.survivors(left, PATIENCE)
            if rest == left:
                raise EngineError(
                    f"weights did not reach the engines by cluster.transfer: {self.backend}: {failed}. Set cluster.transfer: store, which "
                    "works everywhere."
                )
            left = engines.begin_update(mode, rest)
        return []
