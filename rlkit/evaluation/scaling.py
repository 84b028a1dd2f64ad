"""Curves of reward against compute: the sigmoid of ScaleRL, the power law of test loss, and what they predict."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlkit.errors import ConfigError
from rlkit.evaluation.bands import LineBand, Region, gain, region, student
from rlkit.evaluation.compare import aligned
from rlkit.files import read_rows
from rlkit.record.plots import Style, picture

Array = NDArray[np.float64]
Axis = Literal["tokens", "seconds", "step"]

# The grids of ScaleRL: asymptotes of a pass rate, and midpoints in GPU hours.
ASYMPTOTES: Array = np.linspace(0.450, 0.800, 71)
MIDPOINTS: Array = np.linspace(100.0, 40_000.0, 100)
SLOPES = (0.05, 20.0)  # B is searched for between these
GOLDEN = (math.sqrt(5) - 1) / 2


def sigmoid(compute: ArrayLike, r0: float, asymptote: float, midpoint: float, slope: float) -> Array:
    """``R_C = R_0 + (A - R_0) / (1 + (C_mid / C)^B)``; ``R_0`` at ``C = 0``, half of the gain at ``C_mid``.

    Source: ScaleRL 2510.13786.
    """
    at = np.asarray(compute, dtype=np.float64)
    return r0 + (asymptote - r0) * gain(at, midpoint, slope)


@dataclass(frozen=True)
class SigmoidFit:
    """A fitted :func:`sigmoid`.

    Attributes:
        r0, asymptote, midpoint, slope: its parameters; the midpoint in units of compute.
        ssr: sum of squared residuals. r2: share of the variance explained. points: how many were fitted; last: their largest compute.
        asymptote_range: the asymptotes of the grid whose best fit is within the 95 % profile likelihood of the best one: when it is wide,
            the points do not determine the asymptote.
        region: the curves that the points do not rule out (:mod:`rlkit.evaluation.bands`); None: there are too few points to say.
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
    region: Region | None = field(default=None, repr=False, compare=False)
    at_edge: tuple[str, ...] = ()
    holdout_error: float = math.nan

    def predict(self, compute: ArrayLike) -> Array:
        """Reward at any compute, beyond the fitted points too."""
        return sigmoid(compute, self.r0, self.asymptote, self.midpoint, self.slope)

    def interval(self, compute: ArrayLike) -> tuple[Array, Array]:
        """The least and the largest reward at each compute that the points leave possible (95 %); nan where they say nothing.

        It is about the curve, not about single evaluations, whose own noise comes to it.
        """
        if self.region is None:
            nothing = np.full(np.shape(compute), math.nan)
            return nothing, nothing
        return self.region.interval(compute)


def fit_sigmoid(
    compute: ArrayLike,
    reward: ArrayLike,
    *,
    r0: float | None = None,
    asymptotes: ArrayLike = ASYMPTOTES,
    midpoints: ArrayLike = MIDPOINTS,
    skip: float = 0.0,
    until: float = math.inf,
    ceiling: float = 1.0,
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
        ceiling: the largest possible reward, which bounds the band. Where ``r0`` is not given, the band takes the first point for a
            measurement of it like the others.

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
    free = max(1, len(c) - 3)
    near = grid_a[squares.min(1) <= least * (1 + student(free) ** 2 / free) + 1e-15]
    first = used.copy()
    first[0] = True
    of_band = used if r0 is not None else first
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
        region=region(
            x[of_band],
            y[of_band],
            midpoints=(float(grid_m[0]), float(grid_m[-1])),
            slopes=SLOPES,
            rewards=(min(0.0, float(y.min())), max(ceiling, float(y.max()))),
            r0=r0,
            asymptote=float(grid_a[0]) if len(grid_a) == 1 else None,
        ),
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
    g, up = gain(c, midpoints[:, None, None], slopes[:, None]), height[:, None, None]  # [M, B, n]
    squares = drop @ drop - 2 * up * (g @ drop) + up**2 * (g**2).sum(-1)  # [A, M, B], of drop - up * g

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
        r_max: the reward of a perfect policy. bands: what the points leave open of each line.

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
    bands: tuple[LineBand, ...] = field(default=(), repr=False, compare=False)

    def efficiency(self, size: float) -> float:
        """``k(N)`` of a model of any size."""
        return self.k_max / (1 + self.n_0 / size)

    def predict(self, size: float, compute: ArrayLike) -> Array:
        """Reward of one of the fitted models at any compute; ``E(N)`` of other sizes is not known."""
        return self.r_max * (1 - np.exp(self._log_loss(self._index(size), compute)))

    def interval(self, size: float, compute: ArrayLike) -> tuple[Array, Array]:
        """The least and the largest reward of :meth:`predict` that the points leave possible (95 %): that of a line in log L, log X."""
        i = self._index(size)
        middle = self._log_loss(i, compute)
        reach = self.bands[i].reach(np.log(np.asarray(compute, dtype=np.float64)))
        return self.r_max * (1 - np.exp(middle + reach)), self.r_max * (1 - np.exp(middle - reach))

    def _log_loss(self, i: int, compute: ArrayLike) -> Array:
        out: Array = -self.k[i] * np.log(np.asarray(compute, dtype=np.float64)) + self.e[i]
        return out

    def _index(self, size: float) -> int:
        if size not in self.sizes:
            raise ConfigError(
                f"the power law was fitted for N = {', '.join(f'{n:g}' for n in self.sizes)}; the intercept of N = {size:g} "
                "is not known. efficiency(N) gives its slope."
            )
        return self.sizes.index(size)


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
    k, e, r2, bands = zip(*(_line(size, *_points(*runs[size]), r_max, skip) for size in sizes), strict=True)
    k_max, n_0, edge = _efficiency(np.array(sizes), np.array(k)) if len(sizes) > 1 else (math.nan, math.nan, False)
    return PowerLawFit(tuple(map(float, sizes)), k, e, r2, k_max, n_0, edge, r_max, bands)


def _line(size: float, x: Array, y: Array, r_max: float, skip: float) -> tuple[float, float, float, LineBand]:
    """``k``, ``E``, the share of the variance explained and the band, of the model of ``size``."""
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
    left = log_l - slope * log_x - intercept
    r2 = 1 - float((left**2).sum()) / total if total else math.nan
    return -float(slope), float(intercept), r2, LineBand.of(log_x, left)


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
            far = self.extrapolate * curve.x.max()
            ahead = f"{float(f.predict(far)):.3f}{_range(*f.interval(far))}"
            note = f"at the edge of its grid: {', '.join(f.at_edge)}" if f.at_edge else ""
            rows.append((curve.name, str(f.points), *fitted, f"{f.r2:.3f}", ahead, note))
        return rows

    def _law_rows(self, law: PowerLawFit) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [("run", "N", "k(N)", "E(N)", "R²", f"at {self.extrapolate:g} x")]
        for curve, size in zip(self.curves, self.sizes, strict=True):
            i = law.sizes.index(size)
            far = self.extrapolate * curve.x.max()
            ahead = f"{float(law.predict(size, far)):.3f}{_range(*law.interval(size, far))}"
            rows.append((curve.name, f"{size:.4g}", f"{law.k[i]:.4f}", f"{law.e[i]:.3f}", f"{law.r2[i]:.4f}", ahead))
        return rows

    def plot(self, out: str | Path) -> Path:
        """Draws curves, fits, their extrapolation and 95 % bands (.svg, .pdf, .png).

        Raises:
            ConfigError: matplotlib is missing.
        """
        out = Path(out)
        with picture(out, figsize=(5.6, 3.6), style=Style.PAPER) as axis:
            for i, curve in enumerate(self.curves):
                color, mark = Style.COLOURS[i % len(Style.COLOURS)], Style.MARKS[i % len(Style.MARKS)]
                positive = curve.x > 0
                x, y = curve.x[positive], curve.y[positive]
                grid = np.geomspace(x.min(), self.extrapolate * curve.x.max(), 240)
                if self.power_law is None:
                    line, ends = self.sigmoids[i].predict(grid), self.sigmoids[i].interval(grid)
                    last = self.sigmoids[i].last
                else:
                    size = self.sizes[i]
                    line, ends = self.power_law.predict(size, grid), self.power_law.interval(size, grid)
                    last = float(x.max())
                fitted = x <= last
                axis.fill_between(grid, *ends, color=color, alpha=0.18, linewidth=0)
                axis.plot(grid[grid <= last], line[grid <= last], color=color)
                axis.plot(grid[grid >= last], line[grid >= last], "--", color=color)
                axis.plot(x[fitted], y[fitted], mark, color=color, label=curve.name)
                axis.plot(x[~fitted], y[~fitted], mark, color=color, markerfacecolor="white")
            unit = self.curves[0].unit
            axis.set(
                xscale="log",
                xlabel={"tokens": "tokens trained on", "seconds": "seconds of training", "step": "steps"}[unit],
                ylabel="held-out score" if self.curves[0].source == "score" else "mean reward in training",
            )
            shown = [y for curve in self.curves for y in curve.y]
            room = 0.15 * (max(shown) - min(shown)) or 0.1
            low, high = axis.get_ylim()  # a band that is wider than the curves does not flatten them
            axis.set_ylim(max(low, min(shown) - room), min(high, max(shown) + 3 * room))
            axis.legend(title="dashed: predicted; shaded: 95 %", loc="best")
        return out


def _range(low: Any, high: Any) -> str:
    """What stands behind a prediction."""
    return "" if math.isnan(low) else f" ({float(low):.3f} to {float(high):.3f})"


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
        fits.append(fit_sigmoid(c.x, c.y, asymptotes=grid_a, midpoints=grid_m, skip=skip, until=until, ceiling=top))
    return ScalingReport(curves, tuple(fits), None, (), extrapolate)
