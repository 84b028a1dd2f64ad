"""What a fit does not know: bands of curves that are computed from the residuals.

A sigmoid ``y = r0 (1 - g) + A g``, ``g = 1 / (1 + (C_mid / C)^B)``, is linear in ``r0`` and ``A`` once midpoint and slope are given. So the
curves that the points do not rule out at 95 %, those with

    SSR(theta) <= SSR_min (1 + t^2 / nu),        t = t_{0.975}(nu),  nu = n - parameters,

are found by a walk over two parameters, with an ellipse of the other two for each: ``r0 (1 - g) + A g`` is there between
``prediction ± sqrt(room * w' (W'W)^-1 w)``. Its least and its largest value over all of them is the profile-likelihood interval of the
curve at one compute, exact for a linear model with independent normal residuals of one size, and close to it here
(``tests/evaluation/test_bands.py`` counts).

Residuals of one run are not independent where training drifts; then a band is too narrow. Seeds tell.

Source: profile likelihood of a nonlinear regression, Bates and Watts 1988 (from memory).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from mpmath import betainc
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
CONFIDENCE = 0.95
SIDE = 48  # midpoints and slopes of one walk
ENOUGH = 200  # curves inside, after which a walk is fine enough


def student(nu: int, confidence: float = CONFIDENCE) -> float:
    """The number that ``|t|`` of Student's distribution with ``nu`` degrees of freedom stays below with this probability.

    By bisection of ``P(|T| > t) = I_{nu / (nu + t^2)}(nu / 2, 1 / 2)``.
    """
    low, high = 0.0, 1.0

    def outside(t: float) -> float:
        return float(betainc(nu / 2, 0.5, 0, nu / (nu + t * t), regularized=True))

    while outside(high) > 1 - confidence:
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if outside(middle) > 1 - confidence else (low, middle)
    return (low + high) / 2


def gain(compute: Array, midpoint: Array | float, slope: Array | float) -> Array:
    """``1 / (1 + (C_mid / C)^B)``, in [0, 1]."""
    with np.errstate(divide="ignore", over="ignore"):
        found: Array = 1.0 / (1.0 + np.exp(slope * (np.log(midpoint) - np.log(compute))))
    return found


@dataclass(frozen=True)
class Region:
    """The sigmoids that the points do not rule out.

    Attributes:
        midpoints, slopes ``[K]``. level ``[K, p]``: the ``p`` linear parameters of least squares (``r0``, ``A``, those of the two that are
            free). inverse ``[K, p, p]``: ``(W'W)^-1``. room ``[K]``: by how much the sum of squares may rise.
        r0, asymptote: where they are known; None: free. low, high: between these are all rewards.
    """

    midpoints: Array
    slopes: Array
    level: Array
    inverse: Array
    room: Array
    r0: float | None
    asymptote: float | None
    low: float
    high: float

    def interval(self, compute: ArrayLike) -> tuple[Array, Array]:
        """The least and the largest reward at each compute, ``[x]``."""
        x = np.atleast_1d(np.asarray(compute, dtype=np.float64))
        ends = [self._at(part) for part in np.array_split(x, max(1, len(x) * len(self.room) // 1_000_000))]
        low, high = (np.clip(np.concatenate(side), self.low, self.high) for side in zip(*ends, strict=True))
        shape = np.shape(compute)
        return low.reshape(shape), high.reshape(shape)

    def _at(self, x: Array) -> tuple[Array, Array]:
        w, known = design(x, self.midpoints[:, None], self.slopes[:, None], self.r0, self.asymptote)
        middle = known + np.einsum("kxp,kp->kx", w, self.level)
        reach = np.sqrt(self.room[:, None] * np.einsum("kxp,kpq,kxq->kx", w, self.inverse, w))
        return (middle - reach).min(0), (middle + reach).max(0)


def design(x: Array, midpoint: Array, slope: Array, r0: float | None, asymptote: float | None) -> tuple[Array, Array]:
    """What the free ones of (``r0``, ``A``) are multiplied with, ``[..., x, p]``, and what the known ones give, ``[..., x]``."""
    g = gain(x, midpoint, slope)
    known = (0.0 if r0 is None else r0 * (1 - g)) + (0.0 if asymptote is None else asymptote * g) + 0 * g
    free = [side for side, value in ((1 - g, r0), (g, asymptote)) if value is None]
    return np.stack(free, axis=-1) if free else np.zeros((*g.shape, 0)), known


def region(
    compute: Array,
    reward: Array,
    *,
    midpoints: tuple[float, float],
    slopes: tuple[float, float],
    rewards: tuple[float, float],
    r0: float | None = None,
    asymptote: float | None = None,
    confidence: float = CONFIDENCE,
) -> Region | None:
    """The region of ``[n]`` points; None where there are no more points than parameters.

    Args:
        midpoints, slopes: where they are looked for, least and largest. rewards: the least and the largest possible reward.
        r0, asymptote: where they are known.
    """
    nu = len(compute) - 2 - (r0 is None) - (asymptote is None)
    if nu < 1:
        return None
    spread = student(nu, confidence) ** 2 / nu
    box = [np.log(midpoints), np.log(slopes)]
    for _ in range(6):
        m, b = (np.linspace(low, high, SIDE) if high > low else np.array([low]) for low, high in box)
        grid_m, grid_b = (np.exp(axis).ravel() for axis in np.meshgrid(m, b, indexing="ij"))
        w, known = design(compute, grid_m[:, None], grid_b[:, None], r0, asymptote)  # [K, n, p], [K, n]
        inverse = np.linalg.pinv(np.einsum("knp,knq->kpq", w, w))
        level = np.einsum("kpq,knq,kn->kp", inverse, w, reward - known)
        squares = ((reward - known - np.einsum("knp,kp->kn", w, level)) ** 2).sum(-1)
        room = squares.min() * (1 + spread) + 1e-18 - squares
        inside = room >= 0
        if inside.sum() >= ENOUGH:
            break
        # a smaller box: what is inside, and one step further on each side
        places = np.argwhere(inside.reshape(len(m), len(b)))
        box = [
            np.array([axis[max(0, int(at.min()) - 1)], axis[min(len(axis) - 1, int(at.max()) + 1)]])
            for axis, at in zip((m, b), places.T, strict=True)
        ]
    return Region(grid_m[inside], grid_b[inside], level[inside], inverse[inside], room[inside], r0, asymptote, *rewards)


@dataclass(frozen=True)
class LineBand:
    """Where the line of a least-squares fit is at 95 %: ``± t s sqrt(1 / n + (x - mean)^2 / Sxx)``.

    Attributes:
        nu: points less two. spread: ``s``, the standard deviation of the residuals. mean, sxx: of the ``x`` that were fitted.
    """

    nu: int
    spread: float
    mean: float
    sxx: float

    @classmethod
    def of(cls, x: Array, residuals: Array) -> LineBand:
        nu = len(x) - 2
        spread = math.sqrt(float((residuals**2).sum()) / nu) if nu else math.nan
        return cls(nu, spread, float(x.mean()), float(((x - x.mean()) ** 2).sum()))

    def reach(self, x: Array) -> Array:
        """Half of the band's width; nan where two points made the line."""
        if not self.nu:
            return np.full_like(x, math.nan)
        out: Array = student(self.nu) * self.spread * np.sqrt(1 / (self.nu + 2) + (x - self.mean) ** 2 / self.sxx)
        return out
