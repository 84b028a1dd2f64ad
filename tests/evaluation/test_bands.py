"""Bands hold the true curve as often as they say: counted on curves whose parameters are known, and against other ways to the same."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlkit.evaluation.bands import LineBand, region, student
from rlkit.evaluation.scaling import SLOPES, fit_power_law, fit_sigmoid, sigmoid

TRUE = (0.3, 0.65, 3000.0, 1.7)
X = np.linspace(1000, 10_000, 10)
AT = np.array([1000.0, 4000, 10_000, 40_000])  # the last one is four times as far as the points go


def band(y: np.ndarray, x: np.ndarray = X, confidence: float = 0.95, r0: float | None = 0.3) -> tuple[np.ndarray, ...]:
    found = region(x, y, midpoints=(500, 100_000), slopes=SLOPES, rewards=(0, 1), r0=r0, confidence=confidence)
    assert found is not None
    return found.interval(AT)


def test_the_quantiles_are_student_s() -> None:
    """Those of the printed tables."""
    table = {
        (1, 0.95): 12.7062,
        (2, 0.95): 4.3027,
        (7, 0.95): 2.3646,
        (40, 0.95): 2.0211,
        (7, 0.99): 3.4995,
        (7, 0.5): 0.7111,
    }
    for (nu, confidence), t in table.items():
        assert student(nu, confidence) == pytest.approx(t, abs=5e-5)


def test_a_band_holds_the_truth_as_often_as_it_says() -> None:
    """Too narrow would hold it less often, too wide more often: a band of 50 % says both."""
    rng, truth = np.random.default_rng(2), sigmoid(AT, *TRUE)
    held = {0.5: np.zeros(len(AT)), 0.95: np.zeros(len(AT))}
    curves = 60
    for _ in range(curves):
        y = sigmoid(X, *TRUE) + rng.normal(0, 0.015, len(X))
        for confidence, count in held.items():
            low, high = band(y, confidence=confidence)
            count += (low <= truth) & (truth <= high)
    assert (held[0.95] / curves > 0.88).all() and held[0.95].mean() / curves > 0.91
    assert 0.40 < held[0.5].mean() / curves < 0.62, "the standard error of one share is 0.065"


def test_a_start_that_is_only_measured_widens_the_band_there() -> None:
    x = np.r_[0.0, X]
    y = sigmoid(x, *TRUE) + np.random.default_rng(0).normal(0, 0.015, len(x))
    known, measured = band(y[1:]), band(y, x, r0=None)
    assert (measured[1] - measured[0])[0] > (known[1] - known[0])[0]
    fit = fit_sigmoid(x, y, midpoints=np.geomspace(500, 100_000, 40), asymptotes=np.linspace(0.5, 1, 51))
    low, high = fit.interval(AT)
    assert (low <= fit.predict(AT)).all() and (fit.predict(AT) <= high).all() and (high <= 1).all()


def test_the_region_is_that_of_a_search_over_all_four_parameters() -> None:
    """The ends at one compute, by brute force over a grid of (r0, A, C_mid, B)."""
    y = sigmoid(X, *TRUE) + np.random.default_rng(1).normal(0, 0.015, len(X))
    low, high = band(y)
    a, m, b = np.meshgrid(
        np.linspace(0.5, 1, 101), np.geomspace(1500, 9000, 90), np.geomspace(0.6, 4, 90), indexing="ij"
    )
    curves = sigmoid(X, 0.3, a[..., None], m[..., None], b[..., None])
    squares = ((curves - y) ** 2).sum(-1)
    inside = squares <= squares.min() * (1 + student(7) ** 2 / 7)
    for k, at in enumerate(AT[:3]):
        values = sigmoid(at, 0.3, a[inside], m[inside], b[inside])
        assert (low[k], high[k]) == (pytest.approx(values.min(), abs=0.004), pytest.approx(values.max(), abs=0.004))


def test_too_few_points_say_nothing() -> None:
    fit = fit_sigmoid([0, 1, 2, 3, 4], [0.1, 0.2, 0.3, 0.4, 0.45], r0=None)
    assert fit.region is not None and fit_sigmoid([1, 2, 3, 4], [0.2, 0.3, 0.4, 0.45]).region is None
    assert np.isnan(fit_sigmoid([1, 2, 3, 4], [0.2, 0.3, 0.4, 0.45]).interval([1.0, 2.0])).all()


def test_the_band_of_a_line_is_the_textbook_s() -> None:
    """Against the standard error of a prediction from the covariance that ``polyfit`` gives."""
    rng, x = np.random.default_rng(3), np.log(np.geomspace(10, 1000, 12))
    y = -0.4 * x + 1 + rng.normal(0, 0.05, len(x))
    coefficients, covariance = np.polyfit(x, y, 1, cov=True)
    made = LineBand.of(x, y - np.polyval(coefficients, x))
    far = np.array([2.0, 5.0, 9.0])
    w = np.stack([far, np.ones(3)], axis=-1)
    expected = 2.228139 * np.sqrt(np.einsum("xp,pq,xq->x", w, covariance, w))
    assert made.reach(far) == pytest.approx(expected)
    assert np.isnan(LineBand.of(x[:2], np.zeros(2)).reach(far)).all()
    fit = fit_power_law({1e9: (np.exp(x), 1 - np.exp(y))})
    low, high = fit.interval(1e9, 500.0)
    assert low < fit.predict(1e9, 500.0) < high and math.isfinite(float(low))
