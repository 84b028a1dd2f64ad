"""Curves of reward against compute: the sigmoid of ScaleRL, the power law of test loss, and what they predict."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlkit.errors import ConfigError
from rlkit.evaluation.compare import aligned
from rlkit.files import read_rows
from rlkit.record.plots import picture

Array = NDArray[np.float64]
Axis = Literal["tokens", "seconds", "step"]

# The grids of ScaleRL: asymptotes of a pass rate, and midpoints in GPU hours.
ASYMPTOTES: Array = np.linspace(0.450, 0.800, 71)
MIDPOINTS: Array = np.linspace(100.0, 40_000.0, 100)
SLOPES = (0.05, 20.0)  # B is searched for between these
BAND = 0.02  # ScaleRL's error of the asymptote (its spread over three seeds is 0.015)
CHI2 = 3.841458820694124  # 95 % point of the chi-squared distribution with one degree of freedom
GOLDEN = (math.sqrt(5) - 1) / 2


def sigmoid(compute: ArrayLike, r0: float, asymptote: float, midpoint: float, slope: float) -> Array:
    """``R_C = R_0 + (A - R_0) / (1 + (C_mid / C)^B)``; ``R_0`` at ``C = 0``, half of the gain at ``C_mid``.

    Source: ScaleRL 2510.13786.
    """
    return r0 + (asymptote - r0) * _gain(np.asarray(compute, dtype=np.float64), midpoint, slope)


def _gain(compute: Array, midpoint: Any, slope: Any) -> Array:
    """``1 / (1 + (C_mid / C)^B)``, in [0, 1]."""
    with np.errstate(divide="ignore", over="ignore"):
        gain: Array = 1.0 / (1.0 + np.exp(slope * (np.log(midpoint) - np.log(compute))))
    return gain


@dataclass(frozen=True)
class SigmoidFit:
    """A fitted :func:`sigmoid`.

    Attributes:
        r0, asymptote, midpoint, slope: its parameters; the midpoint in units of compute.
        ssr: sum of squared residuals. r2: share of the variance explained. points: how many were fitted; last: their largest compute.
        asymptote_range: the asymptotes of the grid whose best fit is within the 95 % profile likelihood of the best one: when it is wide,
            the points do not determine the asymptote.
        band: half-width of the asymptote in :meth:`interval`.
        at_edge: parameters whose best value is the first or last of its grid: widen that grid.
        holdout_error: root mean square error on the points beyond ``until``, nan if there are none.
    """

    r0: float
    asymptote: float
    midpoint: float
    slope: float
    ssr: float
    r2: float
    points: int
    last: float
    asymptote_range: tuple[float, float]
    band: float = BAND
    at_edge: tuple[str, ...] = ()
    holdout_error: float = math.nan

    def predict(self, compute: ArrayLike) -> Array:
        """Reward at any compute, beyond the fitted points too."""
        return sigmoid(compute, self.r0, self.asymptote, self.midpoint, self.slope)

    def interval(self, compute: ArrayLike) -> tuple[Array, Array]:
        """The curves whose asymptote is ``band`` lower and higher."""
        low, high = (
            sigmoid(compute, self.r0, self.asymptote + sign * self.band, self.midpoint, self.slope) for sign in (-1, 1)
        )
        return low, high


def fit_sigmoid(
    compute: ArrayLike,
    reward: ArrayLike,
    *,
    r0: float | None = None,
    asymptotes: ArrayLike = ASYMPTOTES,
    midpoints: ArrayLike = MIDPOINTS,
    skip: float = 0.0,
    until: float = math.inf,
    band: float = BAND,
) -> SigmoidFit:
    """ScaleRL's procedure: a grid over A and C_mid, for each pair the B of least squares, and the pair of the smallest sum of squares.

    For each pair, B is scanned and refined by golden section, so it does not depend on a start value.

    Args:
        compute, reward: ``[n]``.
        r0: reward before training; by default that of the smallest compute.
        asymptotes, midpoints: the grids; by default those of the paper (pass rates, GPU hours). One asymptote fixes it, as the paper does
            to compare slopes.
        skip: points with less compute are left out (the paper drops the first 1,500 GPU hours).
        until: points with more are not fitted but predicted, see ``holdout_error``.

    Raises:
        ConfigError: fewer than four points to fit, or a grid that makes no sense.
    """
    x, y = _points(compute, reward)
    start = float(y[0]) if r0 is None else float(r0)
    used, later = (x >= skip) & (x <= until) & (x > 0), x > until
    c, target = x[used], y[used]
    if len(c) < 4:
        raise ConfigError(
            f"fit_sigmoid: {len(c)} points have compute above 0 and between {skip:g} and {until:g}; at least 4 are needed for "
            "three parameters. Evaluate more often, or lower skip."
        )
    grid_a, grid_m = _grids(asymptotes, midpoints)
    log_slopes, squares = _best_slopes(c, target - start, grid_a - start, grid_m)
    i, j = np.unravel_index(int(squares.argmin()), squares.shape)
    slope, least = float(np.exp(log_slopes[i, j])), float(squares[i, j])
    near = grid_a[squares.min(1) <= least * (1 + CHI2 / max(1, len(c) - 3)) + 1e-15]
    edges = {
        "asymptote": _at_edge(int(i), grid_a),
        "midpoint": _at_edge(int(j), grid_m),
        "slope": not SLOPES[0] * 1.01 < slope < SLOPES[1] / 1.01,
    }
    total = float(((target - target.mean()) ** 2).sum())
    fit = SigmoidFit(
        r0=start,
        asymptote=float(grid_a[i]),
        midpoint=float(grid_m[j]),
        slope=slope,
        ssr=least,
        r2=1 - least / total if total else math.nan,
        points=len(c),
        last=float(c.max()),
        asymptote_range=(float(near.min()), float(near.max())),
        band=band,
        at_edge=tuple(name for name, there in edges.items() if there),
    )
    if not later.any():
        return fit
    return dataclasses.replace(fit, holdout_error=float(np.sqrt(((fit.predict(x[later]) - y[later]) ** 2).mean())))


def _grids(asymptotes: ArrayLike, midpoints: ArrayLike) -> tuple[Array, Array]:
    """``[A]`` and ``[M]``, ascending."""
    grid_a, grid_m = (np.sort(np.asarray(grid, dtype=np.float64).ravel()) for grid in (asymptotes, midpoints))
    if not len(grid_a) or not len(grid_m) or not (grid_m > 0).all() or not np.isfinite(np.r_[grid_a, grid_m]).all():
        raise ConfigError("fit_sigmoid: asymptotes and midpoints must be finite and not empty, and midpoints positive.")
    return grid_a, grid_m


def _at_edge(k: int, grid: Array) -> bool:
    return len(grid) > 1 and k in (0, len(grid) - 1)


def _best_slopes(c: Array, drop: Array, height: Array, midpoints: Array) -> tuple[Array, Array]:
    """``[A, M]``: for each asymptote and midpoint the log of the slope of least squares, and that sum of squares.

    ``c`` ``[n]``: compute. ``drop`` ``[n]``: reward above the start; ``height`` ``[A]``: asymptotes above the start.
    """
    slopes, log_c = np.geomspace(*SLOPES, 60), np.log(c)
    gain, up = _gain(c, midpoints[:, None, None], slopes[:, None]), height[:, None, None]  # [M, B, n]
    squares = drop @ drop - 2 * up * (gain @ drop) + up**2 * (gain**2).sum(-1)  # [A, M, B], of drop - up * gain

    def cost(log_slope: Array) -> Array:
        with np.errstate(over="ignore"):
            g = 1.0 / (1.0 + np.exp(np.exp(log_slope)[..., None] * (np.log(midpoints)[None, :, None] - log_c)))
        of_these: Array = ((drop - up * g) ** 2).sum(-1)
        return of_these

    best, scanned = squares.argmin(-1), np.log(slopes)
    return _golden(cost, scanned[np.maximum(best - 1, 0)], scanned[np.minimum(best + 1, len(scanned) - 1)])


def _points(compute: ArrayLike, reward: ArrayLike) -> tuple[Array, Array]:
    x, y = np.asarray(compute, dtype=np.float64), np.asarray(reward, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise ConfigError(
            f"a curve needs as many rewards as points of compute: compute has shape {x.shape}, reward {y.shape}."
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all() and (x >= 0).all()):
        raise ConfigError("a curve must be finite, and its compute not negative; leave out the points that are not.")
    order = np.argsort(x, kind="stable")
    return x[order], y[order]


def _golden(cost: Any, low: Array, high: Array, rounds: int = 45) -> tuple[Array, Array]:
    """Elementwise golden section: the place and the value of the minimum of ``cost`` between ``low`` and ``high``."""
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_left, at_right = cost(left), cost(right)
    for _ in range(rounds):
        down = at_left < at_right  # the minimum is in [low, right]
        low, high = np.where(down, low, left), np.where(down, right, high)
        kept, value = np.where(down, left, right), np.where(down, at_left, at_right)
        new = np.where(down, high - GOLDEN * (high - low), low + GOLDEN * (high - low))
        fresh = cost(new)
        left, right = np.where(down, new, kept), np.where(down, kept, new)
        at_left, at_right = np.where(down, fresh, value), np.where(down, value, fresh)
    better = at_left < at_right
    return np.where(better, left, right), np.where(better, at_left, at_right)


# -- the power law --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PowerLawFit:
    """``log L(N, X) = -k(N) log X + E(N)`` with ``L = 1 - R / R_max`` and ``k(N) = K_max / (1 + N_0 / N)``.

    Attributes:
        sizes: ``N`` of each model, ascending. k, e: its slope and intercept. r2: of each model's line, in log L.
        k_max, n_0: learning efficiency of an infinite model, and the size at which half of it is reached; nan with a single model.
        n_0_at_edge: k does not grow with N in these runs (n_0 = 0), or it still grows linearly (n_0 far beyond them).
        r_max: the reward of a perfect policy.

    Source: Scaling Behaviors 2509.25300.
    """

    sizes: tuple[float, ...]
    k: tuple[float, ...]
    e: tuple[float, ...]
    r2: tuple[float, ...]
    k_max: float
    n_0: float
    n_0_at_edge: bool
    r_max: float

    def efficiency(self, size: float) -> float:
        """``k(N)`` of a model of any size."""
        return self.k_max / (1 + self.n_0 / size)

    def predict(self, size: float, compute: ArrayLike) -> Array:
        """Reward of one of the fitted models at any compute; ``E(N)`` of other sizes is not known."""
        if size not in self.sizes:
            raise ConfigError(
                f"the power law was fitted for N = {', '.join(f'{n:g}' for n in self.sizes)}; the intercept of N = {size:g} "
                "is not known. efficiency(N) gives its slope."
            )
        i = self.sizes.index(size)
        return self.r_max * (1 - np.exp(-self.k[i] * np.log(np.asarray(compute, dtype=np.float64)) + self.e[i]))


def fit_power_law(
    runs: Mapping[float, tuple[ArrayLike, ArrayLike]], *, r_max: float = 1.0, skip: float = 0.0
) -> PowerLawFit:
    """Fits a line of log L over log X for each model size, and ``k(N)`` by least squares over the sizes.

    Args:
        runs: ``{N: (X, R)}``: compute or data, and reward, of the model with ``N`` parameters. Points with X = 0 or ``X < skip`` are left
            out.
        r_max: the reward of a perfect policy.

    Raises:
        ConfigError: fewer than two points of some run, or a reward that is not below ``r_max``.
    """
    if not runs:
        raise ConfigError("fit_power_law: there are no runs.")
    if any(not n > 0 for n in runs):
        raise ConfigError(
            f"fit_power_law: a model size is {next(n for n in runs if not n > 0)}; sizes are numbers of parameters, above 0."
        )
    sizes = sorted(runs)
    k, e, r2 = zip(*(_line(size, *_points(*runs[size]), r_max, skip) for size in sizes), strict=True)
    k_max, n_0, edge = _efficiency(np.array(sizes), np.array(k)) if len(sizes) > 1 else (math.nan, math.nan, False)
    return PowerLawFit(tuple(map(float, sizes)), k, e, r2, k_max, n_0, edge, r_max)


def _line(size: float, x: Array, y: Array, r_max: float, skip: float) -> tuple[float, float, float]:
    """``k``, ``E`` and the share of the variance explained, of the model of ``size``."""
    keep = (x > 0) & (x >= skip)
    x, y = x[keep], y[keep]
    if (y >= r_max).any():
        raise ConfigError(
            f"fit_power_law: the run of N = {size:g} has a reward of {y.max():g}, which is not below r_max = {r_max:g}; "
            "log(1 - R / r_max) does not exist. Raise r_max, or leave those points out."
        )
    if len(np.unique(x)) < 2:
        raise ConfigError(
            f"fit_power_law: the run of N = {size:g} has {len(x)} points with X > 0 and X >= {skip:g}; a line needs at "
            "least two different X."
        )
    log_x, log_l = np.log(x), np.log1p(-y / r_max)
    slope, intercept = np.polyfit(log_x, log_l, 1)
    total = float(((log_l - log_l.mean()) ** 2).sum())
    r2 = 1 - float(((log_l - slope * log_x - intercept) ** 2).sum()) / total if total else math.nan
    return -float(slope), float(intercept), r2


def _efficiency(n: Array, k: Array) -> tuple[float, float, bool]:
    """``K_max`` and ``N_0`` of least squares, and whether ``N_0`` is at the edge of where it is searched for."""

    def best(log_n0: Array) -> tuple[Array, Array]:
        """For each ``N_0`` the ``K_max`` of least squares, and its sum of squares."""
        shape = 1 / (1 + np.exp(log_n0)[:, None] / n)
        top = shape @ k / (shape**2).sum(1)
        return top, ((k - top[:, None] * shape) ** 2).sum(1)

    scan = np.linspace(math.log(n[0]) - 12, math.log(n[-1]) + 12, 2000)
    at = int(best(scan)[1].argmin())
    if at == 0:
        return float(k.mean()), 0.0, True
    place, _ = _golden(lambda z: best(z)[1], scan[[at - 1]], scan[[min(at + 1, len(scan) - 1)]], rounds=60)
    return float(best(place)[0][0]), float(np.exp(place[0])), at == len(scan) - 1


# -- run folders ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """Reward of a run, ``y`` ``[n]``, against what was spent, ``x`` ``[n]`` in ``unit``; ``source`` is its name in the run folder."""

    name: str
    x: Array
    y: Array
    unit: Axis
    source: Literal["score", "reward/mean"]


def read_curve(folder: str | Path, unit: Axis = "tokens") -> Curve:
    """The held-out scores of a run folder against the tokens trained on, the seconds of its steps, or its steps.

    A run without held-out scores gives its training reward. Scores that are not numbers are left out.

    Raises:
        ConfigError: no run there, or its metrics lack the number.
    """
    folder = Path(folder)
    path = folder / "metrics.jsonl"
    if unit not in ("tokens", "seconds", "step"):
        raise ConfigError(f"read_curve: unit is {unit!r}; it is 'tokens', 'seconds' or 'step'.")
    if not path.is_file():
        raise ConfigError(f"{folder} is not a run folder: it has no metrics.jsonl.")
    rows = read_rows(path, print)
    key = {"tokens": "batch/tokens", "seconds": "time/step"}.get(unit)
    spent, total = {0: 0.0}, 0.0
    for row in rows:
        if key is not None and row.get(key) is None:
            raise ConfigError(
                f"{path}: step {row['step']} has no {key}; choose another unit (tokens, seconds or step)."
            )
        total = float(row["step"]) if key is None else total + float(row[key])
        spent[row["step"]] = total
    scores = read_rows(folder / "eval.jsonl", print)
    source: Literal["score", "reward/mean"] = "score" if scores else "reward/mean"
    points = [
        (spent[r["step"]], float(r[source]))
        for r in scores or rows
        if r["step"] in spent and r.get(source) is not None and math.isfinite(r[source])
    ]
    if not points:
        raise ConfigError(
            f"{folder}: neither eval.jsonl nor metrics.jsonl has a number to draw; has the run made a step?"
        )
    x, y = np.array(points).T
    return Curve(folder.name, x, y, unit, source)


@dataclass(frozen=True)
class ScalingReport:
    """Curves of runs, a fit of each (or one power law over all), and how to show them."""

    curves: tuple[Curve, ...]
    sigmoids: tuple[SigmoidFit, ...] = ()
    power_law: PowerLawFit | None = None
    sizes: tuple[float, ...] = ()
    extrapolate: float = 4.0

    def table(self) -> str:
        """One line a run; the prediction is at ``extrapolate`` times the compute spent."""
        if self.power_law is None:
            return aligned(self._sigmoid_rows())
        law = self.power_law
        unsure = " (N_0 is not determined by these sizes)" if law.n_0_at_edge else ""
        return f"{aligned(self._law_rows(law))}\nk(N) = {law.k_max:.4g} / (1 + {law.n_0:.4g} / N){unsure}"

    def _sigmoid_rows(self) -> list[tuple[str, ...]]:
        columns = ("run", "points", "R_0", "A", "A (95 %)", f"C_mid ({self.curves[0].unit})", "B", "R²")
        rows: list[tuple[str, ...]] = [(*columns, f"at {self.extrapolate:g} x", "note")]
        for curve, f in zip(self.curves, self.sigmoids, strict=True):
            low, high = f.asymptote_range
            fitted = (
                f"{f.r0:.3f}",
                f"{f.asymptote:.3f}",
                f"{low:.3f} to {high:.3f}",
                f"{f.midpoint:.4g}",
                f"{f.slope:.2f}",
            )
            ahead = f"{float(f.predict(self.extrapolate * curve.x.max())):.3f}"
            note = f"at the edge of its grid: {', '.join(f.at_edge)}" if f.at_edge else ""
            rows.append((curve.name, str(f.points), *fitted, f"{f.r2:.3f}", ahead, note))
        return rows

    def _law_rows(self, law: PowerLawFit) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [("run", "N", "k(N)", "E(N)", "R²", f"at {self.extrapolate:g} x")]
        for curve, size in zip(self.curves, self.sizes, strict=True):
            i = law.sizes.index(size)
            ahead = f"{float(law.predict(size, self.extrapolate * curve.x.max())):.3f}"
            rows.append((curve.name, f"{size:.4g}", f"{law.k[i]:.4f}", f"{law.e[i]:.3f}", f"{law.r2[i]:.4f}", ahead))
        return rows

    def plot(self, out: str | Path) -> Path:
        """Draws curves, fits and their extrapolation into a PNG.

        Raises:
            ConfigError: matplotlib is missing.
        """
        out = Path(out)
        with picture(out, figsize=(8, 5)) as axis:
            for i, curve in enumerate(self.curves):
                color, positive = f"C{i % 10}", curve.x > 0
                axis.plot(curve.x[positive], curve.y[positive], "o", markersize=3, color=color, label=curve.name)
                grid = np.geomspace(curve.x[positive].min(), self.extrapolate * curve.x.max(), 200)
                if self.power_law is None:
                    fit = self.sigmoids[i]
                    line = fit.predict(grid)
                    axis.fill_between(grid, *fit.interval(grid), color=color, alpha=0.15, linewidth=0)
                else:
                    line = self.power_law.predict(self.sizes[i], grid)
                inside = grid <= curve.x.max()
                axis.plot(grid[inside], line[inside], color=color, linewidth=1)
                axis.plot(grid[~inside], line[~inside], "--", color=color, linewidth=1)
            unit = self.curves[0].unit
            axis.set(
                xscale="log",
                xlabel={"tokens": "tokens trained on", "seconds": "seconds of training", "step": "steps"}[unit],
                ylabel="held-out score" if self.curves[0].source == "score" else "training reward",
            )
            axis.grid(alpha=0.3)
            axis.legend()
        return out


def fit_runs(
    folders: Sequence[str | Path],
    *,
    law: Literal["sigmoid", "power"] = "sigmoid",
    unit: Axis = "tokens",
    asymptotes: ArrayLike | None = None,
    midpoints: ArrayLike | None = None,
    skip: float = 0.0,
    until: float = math.inf,
    ceiling: float = 1.0,
    sizes: Sequence[float] = (),
    extrapolate: float = 4.0,
) -> ScalingReport:
    """Reads run folders and fits a sigmoid to each of them, or one power law over models of different sizes.

    Args:
        asymptotes, midpoints: the sigmoid's grids. By default asymptotes in steps of 0.005 from the first reward to ``ceiling``, and 100
            midpoints in equal ratios from half of the smallest compute to ten times the largest, because the paper's are for pass rates and
            GPU hours.
        ceiling: the largest possible reward (``R_max`` of the power law).
        sizes: the number of parameters of each run's model, for the power law.

    Raises:
        ConfigError: a folder that is not a run, too few points, or sizes that are missing.
    """
    if not folders:
        raise ConfigError("fit_runs: there are no run folders.")
    curves = tuple(read_curve(f, unit) for f in folders)
    if law == "power":
        if len(sizes) != len(curves) or len(set(sizes)) != len(sizes):
            raise ConfigError(
                f"fit_runs: the power law needs the number of parameters of each model, each once: {len(curves)} runs and "
                f"sizes = {tuple(sizes)}."
            )
        fit = fit_power_law(
            {float(n): (c.x, c.y) for n, c in zip(sizes, curves, strict=True)}, r_max=ceiling, skip=skip
        )
        return ScalingReport(curves, (), fit, tuple(map(float, sizes)), extrapolate)
    if law != "sigmoid":
        raise ConfigError(f"fit_runs: law is {law!r}; it is 'sigmoid' or 'power'.")
    fits = []
    for c in curves:
        positive = c.x[c.x > 0]
        if len(positive) < 4:
            raise ConfigError(
                f"run {c.name}: {len(positive)} points after the start; a sigmoid needs at least 4. Evaluate more often "
                "(eval.every)."
            )
        first = float(c.y[0])
        top = max(ceiling, float(c.y.max()), first + 0.005)
        grid_a = np.arange(first + 0.005, top + 0.0025, 0.005) if asymptotes is None else asymptotes
        grid_m = np.geomspace(positive.min() / 2, 10 * positive.max(), 100) if midpoints is None else midpoints
        fits.append(fit_sigmoid(c.x, c.y, asymptotes=grid_a, midpoints=grid_m, skip=skip, until=until))
    return ScalingReport(curves, tuple(fits), None, (), extrapolate)
