"""What can be had from samples of a model without training it: best of n, rejection, the frontier of reward against KL.

``beta`` is the coefficient of the KL throughout: the optimum of ``E r - beta KL(pi || pi_ref)`` is ``pi_ref exp(r / beta) / Z``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
        ConfigError: a prompt without any reward.
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


def best_of_n_kl_bound(n: int) -> float:
    """``log n - (n - 1) / n`` nats, an upper bound of ``KL(best of n || base)``; tight only if every response is improbable."""
    _check_n(n)
    return math.log(n) - (n - 1) / n


def best_of_n_kl(logp: ArrayLike, n: int) -> Array:
    """The estimator of ``KL(best of n || base)`` from chosen responses, nats each; average it over prompts and draws.

    ``(1-e)^n [log n + (n-1) log(1-e) - (n-1)/n] + (1-(1-e)^n) log((1-(1-e)^n) / e)`` with ``e = exp(logp)`` the base model's probability of
    the chosen response. ``logp`` is any shape.

    Source: Beirami et al. 2401.01879.
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
    kl: Array = first + second
    return kl


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
        ConfigError: a reward above ``r_max``.
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


def tilt_weights(reward: ArrayLike, beta: float) -> Array:
    """Self-normalised importance weights ``exp(r / beta) / sum exp(r / beta)`` of samples of ``pi_ref``, over the last axis."""
    _check_beta(beta)
    r = _rewards(reward)
    w: Array = np.exp((r - r.max(-1, keepdims=True)) / beta)
    w /= w.sum(-1, keepdims=True)
    return w


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


# -- targets with given means -----------------------------------------------------------------------------------------


def moment_multipliers(features: ArrayLike, targets: ArrayLike, rounds: int = 100) -> Array:
    """The ``lambda`` for which ``p(y) ~ base(y) exp(lambda . phi(y))`` has the means ``targets``, from samples of the base model.

    Solves ``sum_i w_i phi_i = targets`` with ``w_i ~ exp(lambda . phi_i)`` by Newton's method on the convex ``log mean exp(lambda . (phi -
    targets))``; the released code takes gradient steps on the same.

    Args:
        features: ``[samples, K]``, the K features of each response. targets: the K wanted means.

    Raises:
        ConfigError: no reweighting of these samples has such means.

    Source: GDC 2012.11635, the energy-based model of a distributional control problem (exact by hand in the tests).
    """
    phi, want = np.atleast_2d(np.asarray(features, dtype=float)), np.atleast_1d(np.asarray(targets, dtype=float))
    if phi.ndim != 2 or want.shape != (phi.shape[1],):
        raise ConfigError(f"moment_multipliers: features have the shape {phi.shape} and there are {want.size} targets.")
    d, lam = phi - want, np.zeros(len(want))

    def value(x: Array) -> float:
        z = d @ x
        return float(z.max() + math.log(np.exp(z - z.max()).mean()))

    for _ in range(rounds):
        w = np.exp(d @ lam - (d @ lam).max())
        w /= w.sum()
        slope = w @ d
        if np.abs(slope).max() < 1e-9:
            return lam
        curve = (d * w[:, None]).T @ d - np.outer(slope, slope)
        move, share = np.linalg.lstsq(curve, slope, rcond=None)[0], 1.0
        while value(lam - share * move) > value(lam) - 1e-4 * share * float(slope @ move) and share > 1e-9:
            share /= 2
        lam = lam - share * move
        if np.abs(lam).max() > 1e4:
            break
    raise ConfigError(
        f"moment_multipliers: no weights on these {len(phi)} samples give the means {', '.join(f'{x:g}' for x in want)}: their own are from"
        f" {', '.join(f'{x:g}' for x in phi.min(0))} to {', '.join(f'{x:g}' for x in phi.max(0))}. Draw more, or ask for less."
    )
