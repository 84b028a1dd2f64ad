"""What can be had from samples of a model without training it: best-of-n, rejection and importance sampling, the frontier, banned tokens.

``beta`` is the coefficient of the KL throughout: the optimum of ``E r - beta KL(pi || pi_ref)`` is ``pi_ref exp(r / beta) / Z``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from rlkit.errors import ConfigError
from rlkit.samples import Rollout

Array = NDArray[np.float64]

# -- best of n ------------------------------------------------------------------------------------------------------


def best_of_n(
    rollouts: Sequence[Rollout], reward: Sequence[float] | Callable[[Rollout], float] | None = None
) -> list[Rollout]:
    """The response with the highest reward of each prompt, in the order in which the prompts first appear; the first one in a tie.

    ``reward`` is a number for each rollout, a function, or None for the rollouts' own. Responses without a reward (nan) are never chosen.

    Raises:
        ValueError: a prompt without any reward.
    """
    given = (lambda r: r.reward) if reward is None else reward
    values = [float(given(r)) for r in rollouts] if callable(given) else list(given)
    if len(values) != len(rollouts):
        raise ConfigError(f"best_of_n: {len(rollouts)} rollouts and {len(values)} rewards; they must be equally many.")
    best: dict[str, tuple[float, Rollout | None]] = {}
    for r, v in zip(rollouts, values, strict=True):
        old = best.setdefault(r.prompt.id, (-math.inf, None))
        if not math.isnan(v) and (old[1] is None or v > old[0]):
            best[r.prompt.id] = (v, r)
    empty = [name for name, (_, r) in best.items() if r is None]
    if empty:
        raise ConfigError(
            f"best_of_n: prompt {empty[0]} has no response with a reward ({len(empty)} such prompts). Score the rollouts "
            "first."
        )
    return [r for _, r in best.values() if r is not None]


def best_of_n_distribution(p: ArrayLike, reward: ArrayLike, n: int) -> Array:
    """``pi_n(y) = F(y)^n - F^-(y)^n``: how often each of finitely many responses is chosen, ``[Y]``.

    ``F`` is the CDF of the reward under ``p``. Ties are broken by a fixed order: of equal rewards the earlier entry wins.
    """
    _check_n(n)
    p, reward = np.asarray(p, dtype=np.float64), np.asarray(reward, dtype=np.float64)
    order = np.lexsort((-np.arange(len(p)), reward))  # worst first; of equal ones the later entry is the worse
    upto = p[order].cumsum() / p.sum()
    out = np.empty_like(p)
    out[order] = upto**n - np.r_[0.0, upto[:-1]] ** n
    return out


def best_of_n_kl_bound(n: int) -> float:
    """``log n - (n - 1) / n`` nats, an upper bound of ``KL(best of n || base)``; tight only if every response is improbable."""
    _check_n(n)
    return math.log(n) - (n - 1) / n


def best_of_n_kl(logp: ArrayLike, n: int) -> Array:
    """The estimator of ``KL(best of n || base)`` from chosen responses, nats each; average it over prompts and draws (arXiv 2401.01879).

    ``(1-e)^n [log n + (n-1) log(1-e) - (n-1)/n] + (1-(1-e)^n) log((1-(1-e)^n) / e)`` with ``e = exp(logp)`` the base model's probability of
    the chosen response. ``logp`` is any shape.
    """
    _check_n(n)
    logp = np.asarray(logp, dtype=np.float64)
    if not (logp <= 1e-9).all():
        raise ConfigError(f"best_of_n_kl: a log-prob is {logp.max()}; log-probs of whole responses are at most 0.")
    logp = np.minimum(logp, 0.0)
    e = np.exp(logp)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_rest = np.log1p(-e)  # log(1 - e)
        rest = np.exp(n * log_rest)
        first = np.where(rest > 0, rest * (math.log(n) + (n - 1) * log_rest - (n - 1) / n), 0.0)
        chosen = -np.expm1(n * log_rest)
        second = np.where(chosen > 0, chosen * (np.log(chosen) - logp), 0.0)  # e underflows: chosen * log n -> 0
    return first + second


def best_of_n_win_rate_bound(n: int) -> float:
    """``n / (n + 1)``: the largest probability that the best of n beats one more sample of the base model."""
    _check_n(n)
    return n / (n + 1)


def _check_n(n: int) -> None:
    if n < 1:
        raise ConfigError(f"best of n: n is {n}; it must be at least 1.")


# -- sampling from pi_ref exp(r / beta) -----------------------------------------------------------------------------


def _check_beta(beta: float) -> None:
    if not (beta > 0 and math.isfinite(beta)):
        raise ConfigError(f"beta is {beta}; the KL coefficient must be above 0 (smaller follows the reward more).")


def _rewards(reward: ArrayLike) -> Array:
    r = np.asarray(reward, dtype=np.float64)
    if not r.size or not np.isfinite(r).all():
        raise ConfigError("rewards must be finite, and at least one; leave out responses whose reward is nan.")
    return r


def acceptance(reward: ArrayLike, beta: float, r_max: float | None = None) -> Array:
    """``exp((r - r_max) / beta)``: accepting samples of ``pi_ref`` with this probability gives ``pi_ref exp(r / beta) / Z``, exactly.

    ``r_max`` is the largest possible reward. None takes the largest of these rewards, which is exact only if it is the largest possible.

    Raises:
        ValueError: a reward above ``r_max``.
    """
    _check_beta(beta)
    r = _rewards(reward)
    top = float(r.max()) if r_max is None else r_max
    if r.max() > top:
        raise ConfigError(
            f"acceptance: a reward is {r.max()}, above r_max = {top}; probabilities cannot be above 1. Raise r_max to the "
            "largest possible reward."
        )
    return np.exp((r - top) / beta)


def rejection_sample(
    reward: ArrayLike, beta: float, *, r_max: float | None = None, seed: int | np.random.Generator = 0
) -> list[int]:
    """Indices of the accepted samples: independent draws of ``pi_ref exp(r / beta) / Z`` if ``r_max`` is the largest possible reward."""
    probability = acceptance(reward, beta, r_max)
    return [int(i) for i in np.flatnonzero(np.random.default_rng(seed).random(probability.shape) < probability)]


def rso_sample(reward: ArrayLike, beta: float, keep: int, *, seed: int | np.random.Generator = 0) -> list[int]:
    """Statistical rejection sampling (RSO, arXiv 2309.06657, [memory]): ``keep`` different indices of one prompt's samples.

    Passes over the pool accept with ``exp((r - r_max) / beta)`` where ``r_max`` is the largest reward still in it, and take out what was
    accepted, until there are enough. Each pass accepts at least one, so it ends; the more passes, the farther it is from the tilted
    distribution. The samples are taken in their order, which must not depend on the reward.
    """
    _check_beta(beta)
    r = _rewards(reward)
    if not 1 <= keep <= len(r):
        raise ConfigError(
            f"rso_sample: keep is {keep}, but there are {len(r)} samples; it must be between 1 and {len(r)}."
        )
    rng, pool, kept = np.random.default_rng(seed), list(range(len(r))), list[int]()
    while len(kept) < keep:
        chance = acceptance(r[pool], beta)
        taken = [i for i, u, a in zip(pool, rng.random(len(pool)), chance, strict=True) if u < a][: keep - len(kept)]
        kept += taken
        pool = [i for i in pool if i not in set(taken)]
    return kept


def tilt_weights(reward: ArrayLike, beta: float) -> Array:
    """Self-normalised importance weights ``exp(r / beta) / sum exp(r / beta)`` of samples of ``pi_ref``, over the last axis."""
    _check_beta(beta)
    r = _rewards(reward)
    w = np.exp((r - r.max(-1, keepdims=True)) / beta)
    return w / w.sum(-1, keepdims=True)


def importance_resample(
    reward: ArrayLike, beta: float, count: int, *, seed: int | np.random.Generator = 0
) -> list[int]:
    """``count`` indices, with replacement, drawn with :func:`tilt_weights`: close to ``pi_ref exp(r / beta) / Z`` for many samples."""
    w = tilt_weights(reward, beta)
    return [int(i) for i in np.random.default_rng(seed).choice(len(w), size=count, p=w)]


# -- the frontier ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FrontierPoint:
    """The optimum ``pi_ref exp(r / beta) / Z`` of one KL coefficient, estimated from samples of ``pi_ref``; means over prompts.

    Attributes:
        reward: ``E r``. kl: ``E r / beta - log Z``, nats per response, never more than log N. log_z: ``log mean exp(r / beta)``.
        ess: the smallest effective sample size of a prompt, ``1 / sum w^2``. valid: the share of prompts whose effective sample size is at
            least ``min_ess``; below 1 reward and KL are too small for the others.
    """

    beta: float
    reward: float
    kl: float
    log_z: float
    ess: float
    valid: float


def frontier(reward: ArrayLike, betas: Sequence[float], *, min_ess: float = 20.0) -> list[FrontierPoint]:
    """The best reward at each KL that any policy can have, from base samples alone: what trained policies and best-of-n are held against.

    Any policy is below it by exactly ``beta KL(policy || optimum)``. ``reward`` is ``[N]`` for one prompt or ``[prompts, N]``.
    """
    r = np.atleast_2d(_rewards(reward))
    points = []
    for beta in betas:
        w = tilt_weights(r, beta)
        top = r.max(-1)
        log_z = np.log(np.exp((r - top[:, None]) / beta).mean(-1)) + top / beta
        mean = (w * r).sum(-1)
        # sum_i w_i (r_i - top) / beta: the same as E r / beta - log Z, without the difference of large numbers
        kl = (w * (r - top[:, None])).sum(-1) / beta - (log_z - top / beta)
        ess = 1 / (w**2).sum(-1)
        points.append(
            FrontierPoint(
                float(beta),
                float(mean.mean()),
                float(kl.mean()),
                float(log_z.mean()),
                float(ess.min()),
                float((ess >= min_ess).mean()),
            )
        )
    return points


# -- banned tokens --------------------------------------------------------------------------------------------------


def constrain(logits: Tensor, banned: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs of ``argmin KL(q || p) s.t. q(banned) = 0``, and that KL: ``log p - log(1 - p(B))`` and ``-log(1 - p(B))``.

    ``-inf`` on banned tokens. Mask after temperature and penalties, so that the log-probs are those of what is sampled; a ratio of policies
    needs the constrained log-probs on both sides. Everything is summed over the allowed tokens, so it keeps its digits where nearly all the
    probability is banned. (G-I-DLE.)

    Shapes:
        logits ``[..., V]`` of any normalisation; banned bool, broadcast to it. Returns ``[..., V]`` and the KL paid ``[...]``, nats.

    Raises:
        ValueError: no token is left somewhere.
    """
    if banned.dtype != torch.bool:
        raise ConfigError(f"constrain: banned has dtype {banned.dtype}; it must be a bool mask over the vocabulary.")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    allowed = logits.masked_fill(banned, -torch.inf)
    rest = allowed.logsumexp(-1, keepdim=True)
    if bool((rest == -torch.inf).any()):
        raise ConfigError(
            "constrain: every token of some position is banned or has probability zero; allow at least one."
        )
    return allowed - rest, logits.logsumexp(-1) - rest[..., 0]
