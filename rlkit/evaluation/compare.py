"""Two models on the same prompts: who is better, what flipped, and how far the one has moved away from the other."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlkit.errors import ConfigError
from rlkit.evaluation.metrics import Group, group_samples
from rlkit.samples import Rollout

Array = NDArray[np.float64]
MAX_STATES, MAX_WORK = 4_000_000, 500_000_000  # the exact permutation test: sums to tell apart, and additions


@dataclass(frozen=True)
class Comparison:
    """Model b against model a on the same prompts.

    Attributes:
        mean_a, mean_b: mean over prompts of the mean score. difference: ``mean_b - mean_a``; low, high: its interval from a bootstrap
            over prompts.
        p_permutation: two-sided paired permutation test of the difference (signs of the per-prompt differences); ``exact`` if all signs
            were counted, else Monte-Carlo. p_mcnemar: two-sided exact McNemar test of solved against unsolved.
        gained, lost: ids of prompts that only b, only a solves. A prompt is solved if its mean score is at least the threshold.
        flips: ``(gained + lost) / prompts``: how much changed, whatever the net change is.
        datasets: the same for each data set, if there are several.
    """

    prompts: int
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    p_permutation: float
    exact: bool
    p_mcnemar: float
    gained: tuple[str, ...]
    lost: tuple[str, ...]
    flips: float
    datasets: dict[str, Comparison] = field(default_factory=dict)

    def table(self) -> str:
        """One line a data set, and one for all."""
        rows = [
            ("data set", "prompts", "a", "b", "b - a", "95 % interval", "p (paired)", "p (McNemar)", "gained", "lost")
        ]
        for name, c in [*self.datasets.items(), ("all", self)]:
            rows.append(
                (
                    name,
                    str(c.prompts),
                    f"{c.mean_a:.4f}",
                    f"{c.mean_b:.4f}",
                    f"{c.difference:+.4f}",
                    f"{c.low:+.4f} to {c.high:+.4f}",
                    f"{c.p_permutation:.2g}",
                    f"{c.p_mcnemar:.2g}",
                    str(len(c.gained)),
                    str(len(c.lost)),
                )
            )
        return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text: the first column to the left, the others to the right."""
    width = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{x:>{w}}" if i else f"{x:<{w}}" for i, (x, w) in enumerate(zip(row, width, strict=True))).rstrip()
        for row in rows
    )


def compare(
    a: Iterable[Mapping[str, Any]],
    b: Iterable[Mapping[str, Any]],
    *,
    solved: float = 0.5,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compares two models from their samples (records as in :func:`rlkit.evaluation.metrics.group_samples`) on the same prompts.

    Raises:
        ConfigError: the two sets of prompts differ, or a malformed record.
    """
    groups_a, groups_b = group_samples(a), group_samples(b)
    of_b = {(g.dataset, g.prompt_id): g for g in groups_b}
    keys = [(g.dataset, g.prompt_id) for g in groups_a]
    only_a, only_b = [k for k in keys if k not in of_b], [k for k in of_b if k not in set(keys)]
    if only_a or only_b:
        example = "/".join(x for x in (only_a or only_b)[0] if x)
        raise ConfigError(
            f"compare: the two models were evaluated on different prompts: {len(only_a)} of {len(keys)} prompts of the first "
            f"are missing from the second, and {len(only_b)} of {len(of_b)} of the second from the first (e.g. {example!r}). "
            "A paired comparison needs the same prompts: evaluate both on one set, or keep the prompts they share."
        )
    pairs = [(g, of_b[k]) for g, k in zip(groups_a, keys, strict=True)]
    options: dict[str, Any] = {"solved": solved, "resamples": resamples, "confidence": confidence, "seed": seed}
    whole = _compare(pairs, **options)
    names = list(dict.fromkeys(d for d, _ in keys))
    if len(names) == 1:
        return whole
    return dataclasses.replace(
        whole, datasets={n: _compare([p for p in pairs if p[0].dataset == n], **options) for n in names}
    )


def _compare(
    pairs: Sequence[tuple[Group, Group]], *, solved: float, resamples: int, confidence: float, seed: int
) -> Comparison:
    x = np.array([float(g.correct.mean()) for g, _ in pairs])
    y = np.array([float(g.correct.mean()) for _, g in pairs])
    d, P = y - x, len(pairs)
    rng = np.random.default_rng(seed)
    draws = np.concatenate([rng.multinomial(P, np.full(P, 1 / P), size=part) @ d / P for part in _parts(resamples, P)])
    low, high = np.percentile(draws, [50 * (1 - confidence), 50 * (1 + confidence)])
    p, exact = permutation_test(
        d, [math.lcm(len(g.correct), len(h.correct)) for g, h in pairs], resamples=resamples, seed=seed
    )
    before, after = x >= solved - 1e-12, y >= solved - 1e-12
    gained = tuple(g.prompt_id for (g, _), u, v in zip(pairs, before, after, strict=True) if v and not u)
    lost = tuple(g.prompt_id for (g, _), u, v in zip(pairs, before, after, strict=True) if u and not v)
    return Comparison(
        P,
        float(x.mean()),
        float(y.mean()),
        float(d.mean()),
        float(low),
        float(high),
        p,
        exact,
        mcnemar(len(gained), len(lost)),
        gained,
        lost,
        (len(gained) + len(lost)) / P,
    )


def _parts(rows: int, columns: int) -> list[int]:
    """Cuts ``rows`` so that a part times ``columns`` stays small."""
    most = max(1, 4_000_000 // columns)
    return [min(most, rows - i) for i in range(0, rows, most)]


def mcnemar(gained: int, lost: int) -> float:
    """The two-sided exact McNemar test: ``min(1, 2 P(Binomial(gained + lost, 1/2) <= min(gained, lost)))``; 1 if nothing flipped."""
    n = gained + lost
    tail = sum(math.comb(n, j) for j in range(min(gained, lost) + 1))
    return min(1.0, float(2 * tail / 2**n))


def permutation_test(
    difference: Sequence[float] | Array,
    denominator: Sequence[int] | None = None,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, bool]:
    """Two-sided paired permutation test of ``mean(difference) = 0``: the sign of each difference is a fair coin. Returns (p, exact).

    If every ``difference * denominator`` is a whole number (means of 0/1 verdicts), all ``2^P`` signs are counted, by convolution over the
    value of the sum. Otherwise ``(1 + as extreme) / (1 + resamples)`` of random signs.
    """
    d = np.asarray(difference, dtype=np.float64)
    d = d[d != 0]
    if not len(d):
        return 1.0, True
    scale = math.lcm(*set(denominator)) if denominator is not None else 1
    whole = np.rint(d * scale)
    if (
        scale < 1 << 40
        and np.abs(d * scale - whole).max() < 1e-6
        and np.abs(whole).sum() <= min(MAX_STATES, MAX_WORK / len(d))
    ):
        signed = whole.astype(np.int64)
        signed //= np.gcd.reduce(signed)
        steps, seen = np.abs(signed), abs(int(signed.sum()))
        total = int(steps.sum())
        chance = np.zeros(total + 1)  # of the sum of the steps with a plus sign
        chance[0], reached = 1.0, 0
        for s in steps.tolist():
            moved = chance[: reached + 1] * 0.5
            chance[: reached + 1] = moved
            chance[s : reached + s + 1] += moved
            reached += s
        sums = np.abs(2 * np.arange(total + 1) - total)
        return min(1.0, float(chance[sums >= seen].sum())), True
    rng, seen_sum, extreme = np.random.default_rng(seed), abs(d.sum()), 0
    for part in _parts(resamples, len(d)):
        signs = rng.integers(0, 2, (part, len(d)), dtype=np.int8) * 2.0 - 1.0
        extreme += int((np.abs(signs @ d) >= seen_sum * (1 - 1e-12)).sum())
    return (1 + extreme) / (1 + resamples), False


# -- forgetting -----------------------------------------------------------------------------------------------------


class Scorer(Protocol):
    """Whatever gives log-probs (temperature 1) of response tokens, for example an engine."""

    def score(self, rollouts: Sequence[Rollout]) -> list[list[float]]: ...


@dataclass(frozen=True)
class Forgetting:
    """``KL(base || tuned)`` on responses of the base model (RL's Razor): the forward direction, mass covering.

    Attributes:
        per_sequence: mean over responses of the sum over their tokens, nats per response. per_token: all nats over all tokens.
        per_sequence_error, per_token_error: standard errors over responses. sequences, tokens: how many.
        exact: each token's KL is over the whole vocabulary, not the sampled ``log base - log tuned``.
        values: ``[sequences]`` the sum of each response, nats.
    """

    per_sequence: float
    per_sequence_error: float
    per_token: float
    per_token_error: float
    sequences: int
    tokens: int
    exact: bool
    values: tuple[float, ...]


def forgetting(
    base_logp: Sequence[Tensor | Sequence[float]], tuned_logp: Sequence[Tensor | Sequence[float]]
) -> Forgetting:
    """The forward KL of responses that the base model sampled, from log-probs of both models, one entry a response.

    ``[T]`` log-probs of the sampled tokens give the unbiased ``sum_t log base - log tuned`` (k1, may be negative); ``[T, V]`` log-probs of
    the whole vocabulary give ``sum_t KL(base_t || tuned_t)`` (never negative; the same expectation, less noise). Both at temperature 1.

    Raises:
        ConfigError: shapes that differ, no response, or a nan.
    """
    if len(base_logp) != len(tuned_logp) or not base_logp:
        raise ConfigError(
            f"forgetting: {len(base_logp)} responses scored by the base model and {len(tuned_logp)} by the tuned one; both "
            "must score the same responses, at least one."
        )
    sums, lengths, exact = [], [], False
    for i, (one, two) in enumerate(zip(base_logp, tuned_logp, strict=True)):
        p, q = torch.as_tensor(one, dtype=torch.float64), torch.as_tensor(two, dtype=torch.float64)
        if p.shape != q.shape or p.ndim not in (1, 2):
            raise ConfigError(
                f"forgetting: response {i} has log-probs of shape {list(p.shape)} from the base model and {list(q.shape)} "
                "from the tuned one; they must be equal, [T] (sampled tokens) or [T, V] (whole vocabulary)."
            )
        if bool(p.isnan().any()) or bool(q.isnan().any()):
            raise ConfigError(
                f"forgetting: response {i} has a log-prob that is nan; check the model's dtype and weights."
            )
        exact = p.ndim == 2
        token = (p.exp() * (p - q).masked_fill(p == -torch.inf, 0.0)).sum(-1) if exact else p - q
        sums.append(float(token.sum()))
        lengths.append(len(token))
    x, t, n = np.array(sums), np.array(lengths, dtype=np.float64), len(sums)
    if t.sum() == 0:
        raise ConfigError("forgetting: the responses have no tokens.")
    rate = float(x.sum() / t.sum())
    with np.errstate(invalid="ignore"):
        spread, residual = (float(x.std(ddof=1)), float((x - rate * t).std(ddof=1))) if n > 1 else (math.nan, math.nan)
    return Forgetting(
        float(x.mean()),
        spread / math.sqrt(n),
        rate,
        residual / math.sqrt(n) / float(t.mean()),
        n,
        int(t.sum()),
        exact,
        tuple(sums),
    )


def forgetting_of(
    base: Scorer, tuned: Scorer, rollouts: Sequence[Rollout], *, tolerance: float | None = 0.05
) -> Forgetting:
    """:func:`forgetting` from two scorers and responses that the base model sampled at temperature 1 without top-p and top-k.

    The sampled estimate is unbiased for responses of the base model alone, so the log-probs that came with them are compared with the base
    model's own: a mean difference of more than ``tolerance`` nats per token is refused (None switches the check off).

    Raises:
        ConfigError: the responses are not the base model's.
    """
    p, q = ([_sampled(r, x) for r, x in zip(rollouts, model.score(rollouts), strict=True)] for model in (base, tuned))
    if tolerance is not None:
        gaps = [
            abs(x - y)
            for r, scored in zip(rollouts, p, strict=True)
            for x, y in zip(_sampled(r, r.logp), scored, strict=True)
        ]
        gap = sum(gaps) / max(1, len(gaps))
        if not gap <= tolerance:
            raise ConfigError(
                f"forgetting: the responses came with log-probs that differ from the base model's by {gap:.3f} nats per "
                "token, so they were not sampled from it at temperature 1 without top-p and top-k. Sample them again from the "
                "base model, or pass tolerance=None if the difference is known to be rounding."
            )
    return forgetting(p, q)


def _sampled(r: Rollout, values: Sequence[float]) -> list[float]:
    """Of one value a token those that the policy sampled; some scorers leave out tool tokens themselves."""
    return (
        list(values) if len(values) != len(r.tokens) else [v for v, kept in zip(values, r.sampled, strict=True) if kept]
    )


@dataclass(frozen=True)
class ForgettingFit:
    """``score = polynomial(KL)``: ``coefficients`` from the highest power down, and the share ``r2`` of the variance explained."""

    coefficients: tuple[float, ...]
    r2: float

    def predict(self, kl: float) -> float:
        return float(np.polyval(self.coefficients, kl))


def forgetting_fit(kl: Sequence[float], score: Sequence[float], degree: int = 2) -> ForgettingFit:
    """How well the forward KL explains the score on other tasks, over models of several methods and learning rates (RL's Razor).

    Raises:
        ConfigError: not more models than coefficients, so that the fit would be perfect by construction.
    """
    if len(kl) != len(score) or len(kl) < degree + 2:
        raise ConfigError(
            f"forgetting_fit: {len(kl)} KLs and {len(score)} scores; a polynomial of degree {degree} needs equally many, at "
            f"least {degree + 2}. Add models, or lower degree."
        )
    x, y = np.asarray(kl, dtype=np.float64), np.asarray(score, dtype=np.float64)
    coefficients = np.polyfit(x, y, degree)
    total, left = float(((y - y.mean()) ** 2).sum()), float(((y - np.polyval(coefficients, x)) ** 2).sum())
    return ForgettingFit(tuple(map(float, coefficients)), 1 - left / total if total else math.nan)
