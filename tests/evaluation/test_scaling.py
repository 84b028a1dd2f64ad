"""Fits recover the parameters that made the curve, and run folders are read as the trainer writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rlkit as rk
from rlkit.evaluation import fit_power_law, fit_runs, fit_sigmoid, read_curve, sigmoid
from rlkit.evaluation.scaling import ASYMPTOTES, MIDPOINTS

COMPUTE = np.linspace(200, 30_000, 60)


def test_the_curve() -> None:
    assert sigmoid([0, 2542, 1e12], 0.3, 0.61, 2542, 1.92) == pytest.approx([0.3, 0.455, 0.61])
    assert (
        len(ASYMPTOTES) == 71
        and ASYMPTOTES[[0, 1, -1]] == pytest.approx([0.45, 0.455, 0.8])
        and MIDPOINTS[[0, -1]].tolist() == [100, 40_000]
        and len(MIDPOINTS) == 100
    )


@pytest.mark.parametrize(
    ("a", "i", "b"), [(0.61, 6, 1.92), (0.645, 28, 1.89), (0.585, 6, 2.44), (0.71, 10, 1.65), (0.615, 4, 1.09)]
)
def test_parameters_come_back(a: float, i: int, b: float) -> None:
    fit = fit_sigmoid(COMPUTE, sigmoid(COMPUTE, 0.3, a, MIDPOINTS[i], b), r0=0.3, skip=1500)
    assert (
        (fit.asymptote, fit.midpoint) == (pytest.approx(a), MIDPOINTS[i])
        and fit.slope == pytest.approx(b, rel=1e-5)
        and fit.ssr < 1e-11
    )
    assert (
        fit.points == (COMPUTE >= 1500).sum()
        and fit.at_edge == ()
        and fit.predict(1e5) == pytest.approx(sigmoid(1e5, 0.3, a, MIDPOINTS[i], b))
    )
    low, high = fit.interval([0, 1e9])
    assert low == pytest.approx([0.3, a], abs=1e-4) and high == pytest.approx([0.3, a], abs=1e-4), (
        "points without noise leave nothing open"
    )


def test_the_slope_of_each_pair_is_that_of_least_squares() -> None:
    y = sigmoid(COMPUTE, 0.3, 0.61, 2500, 1.9) + np.random.default_rng(0).normal(0, 0.01, 60)
    fit = fit_sigmoid(COMPUTE, y, r0=0.3, asymptotes=[0.63], midpoints=[3000])
    slopes = np.linspace(0.5, 5, 45_001)
    best = slopes[np.argmin([((y - sigmoid(COMPUTE, 0.3, 0.63, 3000, b)) ** 2).sum() for b in slopes])]
    assert fit.slope == pytest.approx(best, abs=1e-4) and fit.asymptote_range == (0.63, 0.63)


def test_the_range_of_the_asymptote_says_what_is_known() -> None:
    noise = np.random.default_rng(1).normal(0, 0.008, 60)
    y = sigmoid(COMPUTE, 0.3, 0.61, 2542, 1.92) + noise
    whole, start = fit_sigmoid(COMPUTE, y, r0=0.3), fit_sigmoid(COMPUTE, y, r0=0.3, until=6000)
    assert whole.asymptote_range[0] <= 0.61 <= whole.asymptote_range[1] and np.diff(whole.asymptote_range)[0] <= 0.02
    assert (
        np.diff(start.asymptote_range)[0] > 3 * np.diff(whole.asymptote_range)[0]
        and start.points == (COMPUTE <= 6000).sum()
    )
    late = COMPUTE > 6000
    assert start.holdout_error == pytest.approx(
        np.sqrt(((start.predict(COMPUTE[late]) - y[late]) ** 2).mean())
    ) and np.isnan(whole.holdout_error)


def test_coverage_of_the_range() -> None:
    rng = np.random.default_rng(5)
    inside = [
        f.asymptote_range[0] <= 0.6 <= f.asymptote_range[1]
        for f in (
            fit_sigmoid(
                COMPUTE[5:],
                sigmoid(COMPUTE[5:], 0.3, 0.6, 3000, 1.8) + rng.normal(0, 0.02, 55),
                r0=0.3,
                asymptotes=np.linspace(0.5, 0.7, 101),
                midpoints=np.linspace(500, 8000, 40),
            )
            for _ in range(40)
        )
    ]
    assert np.mean(inside) >= 0.85


def test_what_cannot_be_fitted_is_said() -> None:
    y = sigmoid(COMPUTE, 0.3, 0.95, 60_000, 1.5)
    assert set(fit_sigmoid(COMPUTE, y, r0=0.3).at_edge) & {"asymptote", "midpoint"}
    with pytest.raises(ValueError, match="3 points have compute above 0 and between 0 and inf"):
        fit_sigmoid([0, 1, 2, 3], [0, 1, 2, 3])
    with pytest.raises(ValueError, match="as many rewards as points"):
        fit_sigmoid([1, 2], [1])
    with pytest.raises(ValueError, match="must be finite"):
        fit_sigmoid([1, 2, 3, 4], [1, 2, float("nan"), 3])


def test_the_power_law_comes_back() -> None:
    x, sizes = np.geomspace(1e2, 1e5, 30), (5e8, 1.5e9, 7e9, 7.2e10)
    k = {n: 0.12 / (1 + 2e9 / n) for n in sizes}
    runs = {n: (x, 2.0 * (1 - np.exp(-k[n] * np.log(x) + 0.1))) for n in sizes}
    fit = fit_power_law(runs, r_max=2.0)
    assert (
        fit.sizes == sizes
        and fit.k == pytest.approx(tuple(k.values()))
        and fit.e == pytest.approx((0.1,) * 4)
        and fit.r2 == pytest.approx((1,) * 4)
    )
    assert (
        (fit.k_max, fit.n_0) == pytest.approx((0.12, 2e9), rel=1e-5)
        and not fit.n_0_at_edge
        and fit.efficiency(2e9) == pytest.approx(0.06)
    )
    assert fit.predict(7e9, [1e6]) == pytest.approx(2 * (1 - np.exp(0.1 - k[7e9] * np.log(1e6))))
    with pytest.raises(ValueError, match="the intercept of N = 3 is not known"):
        fit.predict(3, 1)
    with pytest.raises(ValueError, match="not below r_max = 1"):
        fit_power_law(runs)
    flat = fit_power_law({1e9: runs[7e9], 2e9: runs[7e9]}, r_max=2.0)
    assert flat.n_0_at_edge and flat.n_0 == 0 and flat.k_max == pytest.approx(k[7e9])
    assert np.isnan(fit_power_law({1e9: runs[7e9]}, r_max=2.0).k_max)


def write(folder: Path, scores: bool = True, steps: int = 60, a: float = 0.8) -> Path:
    """A run folder as the trainer writes it: 1,000 tokens and half a second a step, an evaluation every 5 steps."""
    folder.mkdir()
    r = sigmoid(np.arange(steps + 1), 0.1, a, 12, 2)
    (folder / "metrics.jsonl").write_text(
        "".join(
            json.dumps({"step": s, "batch/tokens": 1000.0, "time/step": 0.5, "reward/mean": r[s]}) + "\n"
            for s in range(1, steps + 1)
        )
    )
    if scores:
        (folder / "eval.jsonl").write_text(
            "".join(json.dumps({"step": s, "score": r[s]}) + "\n" for s in range(0, steps + 1, 5))
        )
    return folder


def test_run_folders(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one"), write(tmp_path / "two", scores=False, a=0.6)
    c = read_curve(one)
    assert c.x.tolist() == [1000.0 * s for s in range(0, 61, 5)] and c.y[0] == 0.1 and c.source == "score"
    assert (
        read_curve(one, "seconds").x[-1] == 30
        and read_curve(one, "step").x[-1] == 60
        and read_curve(two).source == "reward/mean"
        and len(read_curve(two).x) == 60
    )
    report = fit_runs([one, two], extrapolate=10)
    assert report.sigmoids[0].asymptote == pytest.approx(0.8, abs=0.006) and report.sigmoids[
        0
    ].midpoint == pytest.approx(12_000, rel=0.05)
    lines = report.table().splitlines()
    assert len(lines) == 3 and lines[1].startswith("one ") and "C_mid (tokens)" in lines[0] and "at 10 x" in lines[0]
    assert report.plot(tmp_path / "fit.png").stat().st_size > 10_000
    drawn = report.plot(tmp_path / "fit.svg").read_text()
    assert "tokens trained on" in drawn and "#d55e00" in drawn, "vectors, with letters that are letters"
    with pytest.raises(rk.ConfigError, match=r"fit\.xyz: there are no pictures of this kind"):
        report.plot(tmp_path / "fit.xyz")
    law = fit_runs([one, two], law="power", sizes=[1e9, 2e9], unit="step")
    assert "k(N) = " in law.table() and law.plot(tmp_path / "law.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_run_of_the_trainer(small: dict[str, Any]) -> None:
    folder = rk.train(rk.load({**small, "steps": 5, "eval": {"prompts": 4, "every": 1}}), quiet=True)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    tokens, seconds = read_curve(folder), read_curve(folder, "seconds")
    assert tokens.x.tolist() == [0, *np.cumsum([r["batch/tokens"] for r in rows])] and seconds.x[-1] == pytest.approx(
        sum(r["time/step"] for r in rows)
    )
    assert len(fit_runs([folder]).table().splitlines()) == 2


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a run folder"):
        read_curve(tmp_path)
    short = write(tmp_path / "short", steps=10)
    with pytest.raises(ValueError, match="run short: 2 points after the start"):
        fit_runs([short])
    with pytest.raises(ValueError, match="2 runs and sizes ="):
        fit_runs([short, short], law="power")
    (short / "metrics.jsonl").write_text('{"step": 1, "time/step": 1}\n{"st')
    with pytest.raises(ValueError, match="step 1 has no batch/tokens"):  # what was cut off is left out
        read_curve(short)
