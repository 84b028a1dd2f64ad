"""One answer from many samples: majority votes, and when enough has been sampled.

Answers are normalised strings; equal strings are one candidate. ``None`` means that no answer was found: it forms no vote, but it counts as
a sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlkit.errors import ConfigError

Answer = str | None


def tally(answers: Sequence[Answer], weights: Sequence[float] | None = None) -> dict[str, float]:
    """The votes of each answer, in the order of first appearance; each sample has one vote, or its weight.

    Raises:
        ConfigError: not as many weights as answers, or a weight that is negative or not finite.
    """
    if weights is not None:
        if len(weights) != len(answers):
            raise ConfigError(f"tally: {len(answers)} answers and {len(weights)} weights; they must be equally many.")
        bad = [w for w in weights if not (math.isfinite(w) and w >= 0)]
        if bad:
            raise ConfigError(
                f"tally: a weight is {bad[0]}; weights must be finite and not negative. Shift or exponentiate the scores "
                "first."
            )
    votes: dict[str, float] = {}
    for i, a in enumerate(answers):
        if a is not None:
            votes[a] = votes.get(a, 0) + (1 if weights is None else float(weights[i]))
    return votes


def winners(votes: Mapping[str, float]) -> list[str]:
    """The answers with the most votes: several in a tie, none if nobody voted."""
    most = max(votes.values(), default=0)
    return [a for a, v in votes.items() if v == most]


def majority(answers: Sequence[Answer], weights: Sequence[float] | None = None) -> str | None:
    """The answer with the most votes; in a tie the one that was sampled first."""
    return next(iter(winners(tally(answers, weights))), None)


def _credit(answers: Sequence[Answer], correct: Sequence[float]) -> dict[str, float]:
    """How correct each answer is: the mean verdict of its samples (a verifier that is consistent gives 0 or 1)."""
    if len(answers) != len(correct):
        raise ConfigError(f"voting: {len(answers)} answers and {len(correct)} verdicts; they must be equally many.")
    count = tally(answers)
    total = dict.fromkeys(count, 0.0)
    for a, c in zip(answers, correct, strict=True):
        if a is not None:
            total[a] += float(c)
    return {a: total[a] / count[a] for a in count}


def weighted_vote(answers: Sequence[Answer], correct: Sequence[float], weights: Sequence[float]) -> float:
    """Whether the answer with the largest sum of weights is correct, ties in equal shares; the weights are e.g. self-certainties.

    Self-certainty of a response: mean over its tokens of ``KL(uniform || pi_t)``, nats.

    Source: Self-Certainty 2502.18581.
    """
    credit, best = _credit(answers, correct), winners(tally(answers, weights))
    return sum(credit[a] for a in best) / len(best) if best else 0.0


class Votes:
    """The candidates of one prompt, ready for :func:`maj_at_k` at several ``k``: ``value`` their verdicts, ``count`` their votes."""

    def __init__(self, answers: Sequence[Answer], correct: Sequence[float]) -> None:
        credit, self.n = _credit(answers, correct), len(answers)
        self.value, self.count = (
            np.array(list(credit.values())),
            np.array([int(v) for v in tally(answers).values()], dtype=np.int64),
        )

    def maj_at_k(self, k: int, *, subsets: int, rng: np.random.Generator) -> float:
        if not 1 <= k <= self.n:
            raise ConfigError(
                f"maj@k: k is {k}, but there are {self.n} samples of the prompt; k must be between 1 and {self.n}. Draw more "
                "samples, or lower k."
            )
        value, count = self.value, self.count
        if not len(value):
            return 0.0
        if k == 1:
            return float(value @ count) / self.n
        silent = self.n - int(count.sum())
        if len(value) == 1 and k > silent:  # every subset holds the one answer
            return float(value[0])
        drawn = (
            count[None] if k == self.n else rng.multivariate_hypergeometric([*count, silent], k, size=subsets)[:, :-1]
        )
        most = drawn.max(1, keepdims=True)
        tied = (drawn == most) & (most > 0)
        return float(((tied @ value) / np.maximum(tied.sum(1), 1)).mean())


def maj_at_k(
    answers: Sequence[Answer], correct: Sequence[float], k: int, *, subsets: int = 200, seed: int = 0
) -> float:
    """maj@k (cons@k): the expected credit of the majority of ``k`` of the ``n`` samples.

    In a tie the credit is the share of the tied answers that are correct. Exact for ``k = 1`` and ``k = n``; in between the mean over
    ``subsets`` random subsets without replacement.

    Raises:
        ConfigError: ``k`` larger than the number of samples.
    """
    return Votes(answers, correct).maj_at_k(k, subsets=subsets, rng=np.random.default_rng(seed))


# -- several temperatures -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TemperatureVote:
    """What :func:`temperature_vote` found: the answer, whether sampling may stop, and why.

    Attributes:
        answer: the flat majority over all samples of all temperatures. stop: the confident temperatures agree.
        confident: majority answer of each temperature whose majority is large enough. agreement: the largest share of them with one answer.
    """

    answer: str | None
    stop: bool
    confident: dict[float, str]
    agreement: float


def temperature_vote(
    answers: Mapping[float, Sequence[Answer]], intra: float = 0.8, cross: float = 1.0
) -> TemperatureVote:
    """The two-stage rule of multi-temperature sampling: stop once temperatures are confident and agree.

    Stage 1: a temperature is confident if its majority has at least a share ``intra`` of its samples. Stage 2: if the majorities of the
    confident temperatures agree at a rate of at least ``cross``, stop; else sample more. The rule is a
    reconstruction: there is no released code of it.
    """
    if not answers:
        raise ConfigError("temperature_vote: there are no temperatures; give a mapping of temperature to answers.")
    confident = {}
    for t, given in answers.items():
        votes = tally(given)
        best = majority(given)
        if best is not None and votes[best] >= intra * len(given) - 1e-9:
            confident[t] = best
    agreement = max(tally(list(confident.values())).values(), default=0) / len(confident) if confident else 0.0
    return TemperatureVote(
        majority([a for given in answers.values() for a in given]),
        bool(confident) and agreement >= cross - 1e-9,
        confident,
        agreement,
    )


# -- when to stop ---------------------------------------------------------------------------------------------------


def majority_probability(answers: Sequence[Answer], method: Literal["beta", "dirichlet"] = "beta") -> float:
    """The posterior probability that the current majority is the mode of the model's answers, from a uniform prior.

    ``beta``: against the runner-up alone, ``P(p_1 > p_2)`` with ``p_1 / (p_1 + p_2) ~ Beta(v_1 + 1, v_2 + 1)``. ``dirichlet``: against
    every answer seen, ``p ~ Dirichlet(v + 1)``. If all samples agree, the rival is an answer without a vote. 0 if there is no answer yet.

    Source: Adaptive-Consistency 2305.11860 (from memory, not checked against the paper).
    """
    votes = sorted((int(v) for v in tally(answers).values()), reverse=True)
    if not votes:
        return 0.0
    if len(votes) == 1:
        votes.append(0)  # a rival that was not seen yet
    if method == "beta":
        first, second = votes[:2]
        # Beta with whole parameters is a binomial tail: 1 - I_half(first + 1, second + 1), exactly.
        trials = first + second + 1
        return float(sum(math.comb(trials, j) for j in range(first + 1)) / 2**trials)
    if method != "dirichlet":
        raise ConfigError(f"majority_probability: method is {method!r}; it is 'beta' or 'dirichlet'.")
    # A Dirichlet is independent Gamma(v + 1, 1) divided by their sum: the largest gamma wins. Simpson's rule over its value.
    top = votes[0] + 1
    x = np.linspace(0.0, top + 12 * math.sqrt(top) + 30, 8001)
    with np.errstate(divide="ignore"):
        log_x = np.log(x)
    log_factorial = np.array([math.lgamma(i + 1) for i in range(top)])

    def log_poisson(i: int) -> np.ndarray:
        out: np.ndarray = (i * log_x if i else 0.0) - x - log_factorial[i]
        return out

    below = np.zeros_like(x)  # sum over i <= v of the Poisson probabilities at x
    survival = {}
    for i in range(top):
        below = below + np.exp(log_poisson(i))
        survival[i] = below
    integrand = np.exp(log_poisson(votes[0]))  # the density of Gamma(v + 1)
    for v in votes[1:]:
        integrand = integrand * np.clip(1.0 - survival[v], 0.0, 1.0)
    simpson = np.where(np.arange(len(x)) % 2 == 1, 4.0, 2.0)
    simpson[[0, -1]] = 1.0
    return float(min(1.0, integrand @ simpson * (x[1] - x[0]) / 3))


def should_stop(
    answers: Sequence[Answer], threshold: float = 0.95, method: Literal["beta", "dirichlet"] = "beta"
) -> bool:
    """Adaptive consistency: whether :func:`majority_probability` exceeds ``threshold``: more samples would hardly change the vote."""
    return majority_probability(answers, method) > threshold
