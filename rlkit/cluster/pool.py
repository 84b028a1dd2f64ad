"""A reference or teacher in engines of its own, asked by the driver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlkit.cluster.groups import EngineGroup
from rlkit.types import Batch


@dataclass(frozen=True)
class Asked:
    """The engines of one anchor (``ref``, ``teacher``).

    ``k``: how many most likely tokens the terms tell apart; None: hidden states are sent, of which learners make what terms read.
    """

    anchor: str
    engines: EngineGroup
    k: int | None

    def answers(self, name: str) -> bool:
        """Whether ``name``, a log-prob or ``teacher_full``, comes from here and not from learners."""
        return name == f"{self.anchor}_full" or (name == self.anchor and self.k is not None)

    def annotate(self, b: Batch, which: Sequence[str]) -> Batch:
        """The batch with the anchor's log-probs, and its most likely tokens where ``which`` names them (``teacher_full``); or with its
        hidden states.
        """
        if not {self.anchor, f"{self.anchor}_full"} & set(which):
            return b
        assert b.ids is not None and b.length is not None and b.action is not None
        rows = [x.tolist() for x in b.ids.split(b.length.tolist())]
        if self.k is None:
            return b.replace(whole={**b.whole, self.anchor: {"hidden": self.engines.hidden(rows)[b.action]}})
        logp, top = self.engines.likely(rows, self.k if f"{self.anchor}_full" in which else 0)
        b = b.with_logp(**{self.anchor: logp[b.action]})
        if not top.k:
            return b
        return b.replace(whole={**b.whole, self.anchor: {"ids": top.ids[b.action], "logp": top.logp[b.action]}})
