"""How far the policy is from the model that the run started from, without a second model.

The first step keeps some of the start model's own responses with the learner's log-probs of that moment. A later pass over them gives::

    KL(start || policy) = E_start[log start(y) - log policy(y)]

the forward KL: how many nats the policy has lost on what the start model would have said. It sees forgetting that ``kl/ref`` (the reverse
KL, on the policy's own responses) does not, and it needs neither a reference in the objective nor a second copy of the weights.

The mean over responses is unbiased for a policy that does not depend on them. The first step does train on them, once; with
``rollout.over`` they are those that ended first. Log-probs are those at the run's temperature, without ``top_p`` and ``top_k``: a policy
that no longer has a token in its nucleus would be infinitely far.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from rlkit.samples import Prompt, Rollout

ROWS = 64  # responses that are kept at most: one pass of as many rows every `log.drift` steps
TOKENS = 1 << 17  # no more responses once they hold so many tokens: checkpoints carry them

LogProbs = Callable[[Sequence[Rollout]], list[list[float]]]


class Drift:
    """Measures every ``every`` steps (0: never). What it keeps is plain data and travels in checkpoints."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.rows: list[Rollout] = []
        self.start: list[list[float]] = []  # log-probs of each row's sampled tokens under the start model, nats
        self._seen: list[Sequence[Rollout]] | None = [] if every else None  # groups of the first step, until it begins

    def see(self, group: Sequence[Rollout]) -> None:
        """A group of the first step, whether or not it will be trained on: dropping is decided by rewards, and would bend the mean."""
        if self._seen is not None and len(self._seen) < ROWS:
            self._seen.append(group)

    def begin(self, logprobs: LogProbs) -> None:
        """Before the first update: keeps the first response of every group, then the second ones, up to the bounds."""
        groups, self._seen = self._seen or [], None
        by_turn = (g[k] for k in range(max(map(len, groups), default=0)) for g in groups if k < len(g))
        held = 0
        for r in by_turn:
            if len(self.rows) == ROWS or held >= TOKENS:
                break
            if any(r.sampled):
                self.rows.append(r)
                held += len(r.tokens)
        self.start = logprobs(self.rows) if self.rows else []

    def due(self, step: int, last: int) -> bool:
        return bool(self.rows) and (step % self.every == 0 or step == last)

    def measure(self, logprobs: LogProbs) -> dict[str, float]:
        """Nats per token and per response with their standard errors (responses of one prompt are not independent)."""
        now = logprobs(self.rows)
        lost = [math.fsum(a) - math.fsum(b) for a, b in zip(self.start, now, strict=True)]
        prompts = [r.prompt.id for r in self.rows]
        token, token_error = ratio(lost, [float(len(x)) for x in self.start], prompts)
        whole, whole_error = ratio(lost, [1.0] * len(lost), prompts)
        return {
            "drift/start": token,
            "drift/start_error": token_error,
            "drift/start_sequence": whole,
            "drift/start_sequence_error": whole_error,
        }

    def state_dict(self) -> list[dict[str, Any]]:
        return [
            {
                "prompt": r.prompt.id,
                "prompt_ids": list(r.prompt.token_ids),
                "tokens": r.tokens,
                "sampled": [int(x) for x in r.sampled],
                "start": start,
            }
            for r, start in zip(self.rows, self.start, strict=True)
        ]

    def load_state_dict(self, state: Sequence[dict[str, Any]]) -> None:
        """Goes on with the rows of a checkpoint; one without rows measures nothing: the start model is gone."""
        self._seen, rows = None, state if self.every else []
        self.start = [row["start"] for row in rows]
        self.rows = [
            Rollout(
                Prompt(row["prompt"], tuple(row["prompt_ids"]), ""),
                row["tokens"],
                [bool(x) for x in row["sampled"]],
                [0.0] * len(row["tokens"]),
                [0] * len(row["tokens"]),
                "stop",
            )
            for row in rows
        ]


def ratio(x: Sequence[float], size: Sequence[float], cluster: Sequence[str]) -> tuple[float, float]:
    """``sum(x) / sum(size)`` and its standard error where entries of one cluster depend on each other; nan for a single cluster."""
    total = math.fsum(size)
    mean = math.fsum(x) / total
    rest: dict[str, float] = defaultdict(float)
    for a, n, c in zip(x, size, cluster, strict=True):
        rest[c] += a - mean * n
    if len(rest) < 2:
        return mean, math.nan
    return mean, math.sqrt(len(rest) / (len(rest) - 1) * math.fsum(e * e for e in rest.values())) / total
