"""What a set of graded samples says: the pass@k family, lengths, calibration, and their confidence intervals.

Letters: ``n`` samples of a prompt, ``c`` of them correct, ``k <= n`` of them drawn without replacement. All values are exact
expectations over the draw, by integer arithmetic.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlkit.errors import ConfigError
from rlkit.evaluation.voting import Votes

Array = NDArray[np.float64]
Interval = dict[str, float | None]  # value, low, high; None where it is not defined
BINS = 10
TAUS = (0.25, 0.5, 0.75, 1.0)


def _check(n: int, c: int, k: int) -> None:
    if not 1 <= k <= n:
        raise ConfigError(
            f"k is {k}, but there are {n} samples of the prompt; k must be between 1 and {n}. Draw more samples, or lower k."
        )
    if not 0 <= c <= n:
        raise ConfigError(f"{c} of {n} samples are counted correct; that must be between 0 and {n}.")


def powers_of_two(n: int) -> list[int]:
    """1, 2, 4, ... up to ``n``."""
    return [1 << i for i in range(max(0, n).bit_length())]


def pass_at_k(n: int, c: int, k: int) -> float:
    """``1 - C(n-c, k) / C(n, k)``: at least one of ``k`` samples is correct; unbiased.

    Source: Codex 2107.03374, eq. 1.
    """
    _check(n, c, k)
    total = math.comb(n, k)
    return (total - math.comb(n - c, k)) / total


def _at_least(n: int, c: int, k: int, m: int) -> float:
    """The probability that at least ``m`` of ``k`` samples are correct (hypergeometric)."""
    return sum(math.comb(c, j) * math.comb(n - c, k - j) for j in range(m, min(c, k) + 1)) / math.comb(n, k)


@lru_cache(1 << 16)
def g_pass_at_k(n: int, c: int, k: int, tau: float) -> float:
    """G-Pass@k_tau: at least ``max(ceil(tau k), 1)`` of ``k`` samples are correct. tau -> 0 is pass@k, tau = 1 is pass^k.

    Source: G-Pass@k 2412.13147.
    """
    _check(n, c, k)
    if not 0 <= tau <= 1:
        raise ConfigError(f"tau is {tau}; it is the share of correct samples that is asked for, in [0, 1].")
    return _at_least(n, c, k, max(math.ceil(tau * k - 1e-9), 1))


@lru_cache(1 << 16)
def mg_pass_at_k(n: int, c: int, k: int) -> float:
    """mG-Pass@k, ``(2/k) * sum over i = ceil(k/2)+1 .. k of G-Pass@k_{i/k}``: the stable half of G-Pass.

    ``2 * integral over tau in [0.5, 1]``; 0 for ``k = 1``, where the sum is empty.

    Source: G-Pass@k 2412.13147.
    """
    _check(n, c, k)
    return 2 / k * math.fsum(_at_least(n, c, k, i) for i in range((k + 1) // 2 + 1, k + 1))


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of independent values, those that are not nan: ``s / sqrt(n)``; nan for fewer than two."""
    known = [x for x in values if not math.isnan(x)]
    return statistics.stdev(known) / math.sqrt(len(known)) if len(known) > 1 else math.nan


def truncation_rate(finish: Iterable[str]) -> float:
    """The share of samples that were cut off at the token limit (``finish == "length"``)."""
    flags = [f == "length" for f in finish]
    if not flags:
        raise ConfigError("truncation_rate: there are no samples.")
    return sum(flags) / len(flags)


def length_stats(length: ArrayLike) -> dict[str, float]:
    """Mean, median, 90th percentile and largest of response lengths, tokens; quantiles are values that occurred."""
    x = np.sort(np.asarray(length, dtype=np.float64))
    if not len(x):
        raise ConfigError("length_stats: there are no samples.")
    at = {"median": 0.5, "p90": 0.9}
    return {"mean": float(x.mean()), **{k: float(x[_place(q, len(x))]) for k, q in at.items()}, "max": float(x[-1])}


def _place(q: float, n: int) -> int:
    """The index of the smallest of ``n`` sorted values that has at least a share ``q`` of them at or below it."""
    return max(math.ceil(q * n - 1e-9) - 1, 0)


def distinct_answers(answers: Iterable[str | None]) -> int:
    """How many different answers there are; ``None`` (no answer was found) is none."""
    return len({a for a in answers if a is not None})


# -- calibration ----------------------------------------------------------------------------------------------------


class _Calibration:
    """Calibration numbers of items with a confidence, for many weightings of the items at once (one row a bootstrap resample)."""

    def __init__(self, confidence: ArrayLike, correct: ArrayLike, bins: int = BINS) -> None:
        conf, hit = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
        if conf.ndim != 1 or conf.shape != hit.shape or not len(conf):
            raise ConfigError(
                f"calibration: confidence has shape {conf.shape} and correct {hit.shape}; both must be [N] with N >= 1."
            )
        for name, x in (("confidence", conf), ("correct", hit)):
            if not bool(((x >= 0) & (x <= 1)).all()):
                raise ConfigError(
                    f"calibration: {name} must be in [0, 1], but has the value {x[~((x >= 0) & (x <= 1))][0]}."
                )
        self.order = np.argsort(-conf, kind="stable")  # the most confident first
        self.conf, self.hit = conf[self.order], hit[self.order]
        self.start = np.flatnonzero(np.r_[True, np.diff(self.conf) != 0])  # blocks of equal confidence
        level = self.conf[self.start]
        # Bins are (lo, hi]; 0 belongs to the first.
        self.bin = np.clip(np.ceil(level * bins - 1e-9).astype(int) - 1, 0, bins - 1)
        self.bins = bins

    def _block(self, x: Array) -> Array:
        return np.add.reduceat(x, self.start, axis=-1)

    def __call__(self, weight: Array | None = None) -> dict[str, Array]:
        """``ece``, ``brier``, ``auroc`` and ``risk_coverage_area``, each ``[R]``, for weights ``[R, N]`` that are counts."""
        w = np.ones((1, len(self.conf))) if weight is None else weight[:, self.order]
        total = w.sum(1)
        n, hits = self._block(w), self._block(w * self.hit)
        gap = self._block(w * (self.hit - self.conf))
        onehot = np.equal.outer(self.bin, np.arange(self.bins)).astype(np.float64)
        wrong = n - hits
        positive, negative = hits.sum(1), wrong.sum(1)
        below = negative[:, None] - wrong.cumsum(1)  # wrong items that are less confident than the block
        with np.errstate(divide="ignore", invalid="ignore"):
            auroc = (hits * (below + 0.5 * wrong)).sum(1) / (positive * negative)
        # Risk of the first j items, averaged over j; the items of one block are in random order, so its errors are spread evenly.
        seen, errors = n.cumsum(1) - n, wrong.cumsum(1) - wrong
        harmonic = np.r_[0.0, np.cumsum(1.0 / np.arange(1, int(total.max()) + 1))]
        rate = wrong / np.maximum(n, 1)
        block = wrong + (errors - seen * rate) * (harmonic[(seen + n).astype(int)] - harmonic[seen.astype(int)])
        return {
            "ece": np.abs(gap @ onehot).sum(1) / total,
            "brier": (w * (self.conf - self.hit) ** 2).sum(1) / total,
            "auroc": np.where(positive * negative > 0, auroc, np.nan),
            "risk_coverage_area": block.sum(1) / total,
        }


def ece(confidence: ArrayLike, correct: ArrayLike, bins: int = BINS) -> float:
    """Expected calibration error, ``sum over bins (|B|/N) |acc(B) - conf(B)|``, equal-width bins on (lo, hi]. Both ``[N]``, in [0, 1]."""
    return float(_Calibration(confidence, correct, bins)()["ece"][0])


def brier(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Brier score, ``mean (confidence - correct)^2``. Both ``[N]``, in [0, 1]."""
    return float(_Calibration(confidence, correct)()["brier"][0])


def auroc(confidence: ArrayLike, correct: ArrayLike) -> float:
    """The probability that a correct item is more confident than a wrong one, ties one half; nan if one of the kinds is missing."""
    return float(_Calibration(confidence, correct)()["auroc"][0])


def risk_coverage_area(confidence: ArrayLike, correct: ArrayLike) -> float:
    """``mean over j of (wrong among the j most confident) / j``, in expectation over the order of ties. Lower is better."""
    return float(_Calibration(confidence, correct)()["risk_coverage_area"][0])


# -- everything at once ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """The samples of one prompt. ``correct`` ``[n]`` in [0, 1] or a reward, ``length`` ``[n]`` tokens; ``known``: keys of every record."""

    dataset: str
    prompt_id: str
    correct: Array
    answers: tuple[str | None, ...]
    length: Array
    finish: tuple[str, ...]
    known: frozenset[str]


def group_samples(samples: Iterable[Mapping[str, Any]]) -> list[Group]:
    """The samples of each (data set, prompt), in the order of their first appearance.

    Each sample has ``prompt_id`` and ``correct`` (bool or a finite number), and optionally ``answer`` (normalised, or None), ``length``
    (tokens), ``finish`` and ``dataset``.

    Raises:
        ConfigError: a record that lacks a key, or whose ``correct`` is not a number.
    """
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for i, s in enumerate(samples):
        for key in ("prompt_id", "correct"):
            if key not in s:
                raise ConfigError(
                    f"sample {i} has no {key!r} (it has: {', '.join(map(str, s))}). Every sample needs prompt_id and correct."
                )
        if not isinstance(s["correct"], (bool, int, float, np.bool_, np.number)) or not math.isfinite(s["correct"]):
            raise ConfigError(
                f"sample {i} (prompt {s['prompt_id']}): correct is {s['correct']!r}; it must be true, false or a finite "
                "number. Leave out samples that could not be graded, or grade them 0."
            )
        found.setdefault((str(s.get("dataset") or ""), str(s["prompt_id"])), []).append(s)
    if not found:
        raise ConfigError("there are no samples to evaluate.")
    return [
        Group(
            d,
            p,
            np.array([float(s["correct"]) for s in rows]),
            tuple(None if s.get("answer") is None else str(s["answer"]) for s in rows),
            np.array([float(s.get("length") or 0) for s in rows]),
            tuple(str(s.get("finish") or "") for s in rows),
            frozenset.intersection(*(frozenset(s) for s in rows)),
        )
        for (d, p), rows in found.items()
    ]


def summarize(
    samples: Iterable[Mapping[str, Any]],
    *,
    ks: Sequence[int] | None = None,
    taus: Sequence[float] = TAUS,
    solved: float = 0.5,
    resamples: int = 1000,
    confidence: float = 0.95,
    subsets: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """All metrics, ``{"overall": ..., "datasets": {name: ...}}``, each number as ``{"value", "low", "high"}``.

    Intervals are percentiles of a bootstrap over prompts: the samples of one prompt stay together. Means are over prompts first, so every
    prompt counts the same. A value that is not defined (AUROC when everything is correct) is None, and so is everything that reads a key
    (``answer``, ``length``, ``finish``) that some record lacks.

    Args:
        samples: records as in :func:`group_samples`.
        ks: for pass@k, pass^k and maj@k; by default the powers of two up to the smallest number of samples of a prompt. G-Pass@k takes
            those of them that are at least 2.
        solved: a sample counts as correct if ``correct >= solved``; ``avg`` is the mean of ``correct`` itself.
        subsets: Monte-Carlo draws of a prompt for maj@k where k < n.

    Raises:
        ConfigError: a malformed record, or ``k`` larger than the number of samples of some prompt.
    """
    groups = [
        _Prompt(g, solved, np.random.default_rng([seed, i]), subsets) for i, g in enumerate(group_samples(samples))
    ]
    names = list(dict.fromkeys(g.dataset for g in groups))

    def summary(part: Sequence[_Prompt]) -> dict[str, Any]:
        return _summary(part, ks, taus, _Bootstrap(len(part), np.random.default_rng(seed), resamples, confidence))

    parts = {name: summary([g for g in groups if g.dataset == name]) for name in names}
    return {
        "overall": summary(groups) if len(names) > 1 else parts[names[0]],
        "datasets": parts,
        "bootstrap": {"cluster": "prompt", "resamples": resamples, "confidence": confidence, "seed": seed},
    }


class _Prompt:
    """One prompt's samples with what several summaries read."""

    def __init__(self, g: Group, solved: float, rng: np.random.Generator, subsets: int) -> None:
        self.dataset, self.prompt_id, self.n = g.dataset, g.prompt_id, len(g.correct)
        self.right = g.correct >= solved
        self.known = g.known
        self.nc = (self.n, int(self.right.sum()))
        self.votes, self._rng, self._subsets = Votes(g.answers, self.right.tolist()), rng, subsets
        self._majority: dict[int, float] = {}
        self.avg, self.length = float(g.correct.mean()), g.length
        self.truncated = truncation_rate(g.finish)
        self.distinct = len(self.votes.count)
        self.unparsed = 1 - int(self.votes.count.sum()) / self.n
        self.share = int(self.votes.count.max(initial=0)) / self.n

    def majority(self, k: int) -> float:
        """maj@k; drawn once, so that a data set and the whole report the same number."""
        if k not in self._majority:
            self._majority[k] = self.votes.maj_at_k(k, subsets=self._subsets, rng=self._rng)
        return self._majority[k]


class _Bootstrap:
    """Resamples of prompts, the same for every number of a summary."""

    def __init__(self, prompts: int, rng: np.random.Generator, resamples: int, confidence: float) -> None:
        self.prompts = prompts
        share = np.full(prompts, 1 / prompts)
        self.weight = rng.multinomial(prompts, share, size=resamples).astype(np.float64)  # [R, P]
        self._tail = 100 * (1 - confidence) / 2

    def interval(self, value: float, draws: Array) -> Interval:
        ok = draws[np.isfinite(draws)]
        if not math.isfinite(value) or not len(ok):
            return {"value": None, "low": None, "high": None}
        low, high = np.percentile(ok, [self._tail, 100 - self._tail])
        return {"value": float(value), "low": float(low), "high": float(high)}

    def mean(self, per_prompt: Iterable[float]) -> Interval:
        x = np.fromiter(per_prompt, np.float64, self.prompts)
        return self.interval(x.mean(), self.weight @ x / self.prompts)

    def ratio(self, top: Array, bottom: Array) -> Interval:
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.interval(np.divide(top.sum(), bottom.sum()), (self.weight @ top) / (self.weight @ bottom))


def _summary(
    groups: Sequence[_Prompt], ks: Sequence[int] | None, taus: Sequence[float], b: _Bootstrap
) -> dict[str, Any]:
    least = min(groups, key=lambda g: g.n)
    if ks is None:
        ks = powers_of_two(least.n)
    for k in ks:
        if not 1 <= k <= least.n:
            raise ConfigError(
                f"k is {k}, but prompt {least.prompt_id} of data set {least.dataset!r} has {least.n} samples. Draw "
                "more samples, leave the prompt out, or lower k."
            )
    nc = [g.nc for g in groups]
    wide = [k for k in ks if k >= 2]
    known = frozenset.intersection(*(g.known for g in groups))
    votes = _votes(groups, ks, b)
    return {
        "prompts": len(groups),
        "samples": sum(n for n, _ in nc),
        "samples_per_prompt": {"min": min(n for n, _ in nc), "max": max(n for n, _ in nc)},
        "avg": b.mean(g.avg for g in groups),
        "pass@k": {str(k): b.mean(g_pass_at_k(n, c, k, 0.0) for n, c in nc) for k in ks},
        "pass^k": {str(k): b.mean(g_pass_at_k(n, c, k, 1.0) for n, c in nc) for k in ks},
        "g_pass@k": {str(k): {str(t): b.mean(g_pass_at_k(n, c, k, t) for n, c in nc) for t in taus} for k in wide},
        "mg_pass@k": {str(k): b.mean(mg_pass_at_k(n, c, k) for n, c in nc) for k in wide},
        "truncated": b.mean(g.truncated for g in groups) if "finish" in known else None,
        "length": _lengths(groups, b) if "length" in known else None,
        **(votes if "answer" in known else dict.fromkeys(votes)),
    }


def _lengths(groups: Sequence[_Prompt], b: _Bootstrap) -> dict[str, Any]:
    lengths: dict[str, Any] = {
        "mean": b.mean(float(g.length.mean()) for g in groups),
        "max": float(max(g.length.max() for g in groups)),
        **_quantiles([g.length for g in groups], b),
    }
    for name, flags in (("correct", [g.right for g in groups]), ("wrong", [~g.right for g in groups])):
        lengths[name] = b.ratio(
            np.array([g.length[f].sum() for g, f in zip(groups, flags, strict=True)]),
            np.array([float(f.sum()) for f in flags]),
        )
    return lengths


def _votes(groups: Sequence[_Prompt], ks: Sequence[int], b: _Bootstrap) -> dict[str, Any]:
    calibration = _Calibration([g.share for g in groups], [g.majority(g.n) for g in groups])
    point, draws = calibration(), calibration(b.weight)
    return {
        "maj@k": {str(k): b.mean(g.majority(k) for g in groups) for k in ks},
        "distinct_answers": b.mean(g.distinct for g in groups),
        "unparsed": b.mean(g.unparsed for g in groups),
        "calibration": {name: b.interval(float(point[name][0]), draws[name]) for name in point},
    }


def _quantiles(lengths: Sequence[Array], b: _Bootstrap) -> dict[str, Interval]:
    """Median and 90th percentile of the lengths of all samples, for every resample.

    The sorted lengths are cut into blocks: one product counts every block of every resample, then only the block with the quantile is
    looked into.
    """
    x = np.concatenate(list(lengths))
    order = np.argsort(x, kind="stable")
    x, owner = x[order], np.repeat(np.arange(len(lengths)), [len(part) for part in lengths])[order]
    size = max(1, math.isqrt(len(x)))
    blocks = -(-len(x) // size)
    counts = np.bincount(owner * blocks + np.arange(len(x)) // size, minlength=len(lengths) * blocks).reshape(
        len(lengths), blocks
    )
    upto = (b.weight @ counts).cumsum(1)  # [R, blocks]
    stats = length_stats(x)
    found = {}
    for name, q in (("median", 0.5), ("p90", 0.9)):
        need = np.ceil(q * upto[:, -1] - 1e-9)
        block = np.argmax(upto >= need[:, None], axis=1)
        place = np.minimum(block[:, None] * size + np.arange(size), len(x) - 1)
        row = np.arange(len(block))
        before = np.where(block > 0, upto[row, block - 1], 0)
        inside = before[:, None] + np.take_along_axis(b.weight, owner[place], axis=1).cumsum(1)
        found[name] = b.interval(stats[name], x[place[row, np.argmax(inside >= need[:, None], axis=1)]])
    return found
