"""The pass@k family against enumeration of all draws, calibration against its definition, and the summary with its intervals."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest

from rlkit.evaluation import (
    auroc,
    brier,
    distinct_answers,
    ece,
    g_pass_at_k,
    length_stats,
    maj_at_k,
    mg_pass_at_k,
    pass_at_k,
    powers_of_two,
    risk_coverage_area,
    summarize,
    truncation_rate,
)


@pytest.mark.parametrize(("n", "k"), [(5, 1), (6, 3), (7, 4), (6, 6)])
def test_every_draw_of_k_samples_is_counted(n: int, k: int) -> None:
    for c in range(n + 1):
        hits = [sum(i < c for i in draw) for draw in itertools.combinations(range(n), k)]
        assert pass_at_k(n, c, k) == pytest.approx(np.mean([h >= 1 for h in hits]), abs=1e-15)
        for tau in (0.0, 0.25, 0.5, 0.6, 1.0):
            assert g_pass_at_k(n, c, k, tau) == pytest.approx(
                np.mean([h >= max(math.ceil(tau * k - 1e-9), 1) for h in hits]), abs=1e-15
            )
        stable = 2 / k * sum(float(np.mean([h >= i for h in hits])) for i in range(math.ceil(k / 2) + 1, k + 1))
        assert mg_pass_at_k(n, c, k) == pytest.approx(stable, abs=1e-15)


def test_published_values() -> None:
    assert pass_at_k(48, 4, 16) == pytest.approx(0.8152, abs=5e-5)
    assert (g_pass_at_k(48, 24, 16, 0.5), mg_pass_at_k(48, 24, 16)) == pytest.approx((0.6199, 0.07996), abs=5e-5)
    assert (g_pass_at_k(48, 40, 16, 1.0), mg_pass_at_k(48, 40, 16)) == pytest.approx((0.027874, 0.66667), abs=5e-6)
    assert pass_at_k(48, 48, 16) == mg_pass_at_k(48, 48, 16) == g_pass_at_k(48, 48, 16, 0.75) == 1
    assert (pass_at_k(16, 4, 8), pass_at_k(10, 3, 5)) == pytest.approx((0.961538, 0.916667), abs=5e-7)
    conf, correct = (0.95, 0.9, 0.8, 0.65, 0.55, 0.35), (1, 1, 0, 1, 0, 0)
    assert (ece(conf, correct), brier(conf, correct)) == pytest.approx((0.366667, 0.2), abs=5e-7)


def test_the_share_is_rounded_up_without_rounding_errors() -> None:
    assert 25 * (7 / 25) > 7  # what the guard is for
    assert g_pass_at_k(50, 20, 25, 7 / 25) == pytest.approx(
        sum(math.comb(20, j) * math.comb(30, 25 - j) for j in range(7, 21)) / math.comb(50, 25)
    )
    assert pass_at_k(4096, 1, 1024) == 0.25 and powers_of_two(48) == [1, 2, 4, 8, 16, 32] and powers_of_two(1) == [1]


def test_more_draws_than_samples_are_refused() -> None:
    for metric in (pass_at_k, mg_pass_at_k):
        with pytest.raises(ValueError, match="k is 9, but there are 8 samples"):
            metric(8, 2, 9)
    with pytest.raises(ValueError, match="k is 0"):
        g_pass_at_k(8, 2, 0, 0.5)
    with pytest.raises(ValueError, match="5 of 4 samples"):
        pass_at_k(4, 5, 2)


def test_simple_statistics() -> None:
    assert truncation_rate(["stop", "length", "length", "abort"]) == 0.5
    assert length_stats([5, 1, 2, 100, 3]) == {"mean": 22.2, "median": 3, "p90": 100, "max": 100}
    assert distinct_answers(["1", None, "2", "1"]) == 2


def test_confidence_on_a_border_belongs_to_the_bin_below() -> None:
    assert ece([0.1, 0.1 * 3, 0.7, 0.0, 1.0], [1, 0, 0, 0, 1]) == pytest.approx((0.9 + 0.3 + 0.7) / 5)
    assert ece([0.65, 0.7, 0.71], [1, 0, 0]) == pytest.approx((abs(1 - 1.35) + 0.71) / 3)  # (0.6, 0.7] and (0.7, 0.8]
    with pytest.raises(ValueError, match=r"confidence must be in \[0, 1\], but has the value 1.5"):
        ece([0.5, 1.5], [1, 0])


def test_ranking_metrics_are_means_over_all_orders_of_ties() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        conf, hit = rng.integers(0, 4, 6) / 4, rng.integers(0, 2, 6)
        pairs = [
            (a > b) + 0.5 * (a == b)
            for a, h in zip(conf, hit, strict=True)
            if h
            for b, g in zip(conf, hit, strict=True)
            if not g
        ]
        assert auroc(conf, hit) == pytest.approx(np.mean(pairs)) if pairs else math.isnan(auroc(conf, hit))
        areas = []
        for order in itertools.permutations(range(6)):
            if all(conf[a] >= conf[b] for a, b in itertools.pairwise(order)):
                wrong = 1 - hit[list(order)]
                areas.append(np.mean(wrong.cumsum() / np.arange(1, 7)))
        assert risk_coverage_area(conf, hit) == pytest.approx(np.mean(areas))


def record(
    prompt: str, correct: float, answer: str | None = "x", length: int = 10, finish: str = "stop", dataset: str = "d"
) -> dict[str, Any]:
    return {
        "prompt_id": prompt,
        "correct": correct,
        "answer": answer,
        "length": length,
        "finish": finish,
        "dataset": dataset,
    }


def test_summary_by_hand() -> None:
    rows = [
        record("p", 1, "4", 10),
        record("p", 0, "5", 30),
        record("q", 0, None, 50, "length"),
        record("q", 0, "7", 70),
        record("r", 1, "1", 5, dataset="e"),
    ]
    got = summarize(rows)
    d, e, whole = got["datasets"]["d"], got["datasets"]["e"], got["overall"]
    assert (d["prompts"], d["samples"], whole["prompts"], whole["samples_per_prompt"]) == (
        2,
        4,
        3,
        {"min": 1, "max": 2},
    )
    assert (
        d["avg"]["value"] == 0.25
        and d["pass@k"]["1"]["value"] == 0.25
        and d["pass@k"]["2"]["value"] == 0.5
        and d["pass^k"]["2"]["value"] == 0
    )
    assert (
        whole["avg"]["value"] == pytest.approx(0.5)
        and list(whole["pass@k"]) == ["1"]
        and e["pass^k"] == {"1": {"value": 1, "low": 1, "high": 1}}
    )
    assert d["maj@k"]["2"]["value"] == 0.25  # a tie of "4" and "5", and a wrong answer
    assert d["truncated"]["value"] == 0.25 and d["unparsed"]["value"] == 0.25 and d["distinct_answers"]["value"] == 1.5
    assert (
        d["length"]["correct"]["value"] == 10
        and d["length"]["wrong"]["value"] == 50
        and d["length"]["max"] == 70
        and d["length"]["median"]["value"] == 30
    )
    assert (
        e["length"]["wrong"] == {"value": None, "low": None, "high": None}
        and e["calibration"]["auroc"]["value"] is None
    )
    # Shares 1/2 and 1/2, credits 1/2 and 0.
    assert d["calibration"]["brier"]["value"] == pytest.approx((0 + 0.5**2) / 2)
    json.dumps(got, allow_nan=False)
    assert summarize(iter(rows)) == got  # the same seed gives the same intervals


def test_what_was_not_recorded_is_not_reported() -> None:
    got = summarize(
        [
            {"prompt_id": 1, "correct": True},
            {"prompt_id": 1, "correct": False, "answer": "x", "length": 3, "finish": "stop"},
        ]
    )["overall"]
    assert (
        got["avg"]["value"] == 0.5
        and [got[k] for k in ("truncated", "length", "maj@k", "distinct_answers", "unparsed", "calibration")]
        == [None] * 6
    )


def test_intervals_are_those_of_resampled_prompts() -> None:
    rng = np.random.default_rng(1)
    rows = [
        record(str(p), float(rng.random() < q), str(rng.integers(3)), int(rng.integers(1, 500)))
        for p, q in enumerate(rng.random(40))
        for _ in range(8)
    ]
    got = summarize(rows, resamples=2000)["overall"]
    per_prompt = np.array([[r["correct"] for r in rows if r["prompt_id"] == str(p)] for p in range(40)])
    lengths = np.array([[r["length"] for r in rows if r["prompt_id"] == str(p)] for p in range(40)])
    draws = rng.integers(0, 40, (4000, 40))
    low, high = np.percentile(per_prompt.mean(1)[draws].mean(1), [2.5, 97.5])
    assert (got["avg"]["low"], got["avg"]["high"]) == pytest.approx((low, high), abs=0.015)
    # Wider than independent samples would give.
    assert (got["avg"]["high"] - got["avg"]["low"]) > 1.2 * 3.92 * per_prompt.std() / math.sqrt(per_prompt.size)
    low, high = np.percentile([np.sort(lengths[d].ravel())[159] for d in draws], [2.5, 97.5])
    assert (got["length"]["median"]["low"], got["length"]["median"]["high"]) == pytest.approx((low, high), abs=6)
    share = [max(sum(r["answer"] == a for r in rows if r["prompt_id"] == str(p)) for a in "012") / 8 for p in range(40)]
    credit = [maj_at_k([r["answer"] for r in rows if r["prompt_id"] == str(p)], per_prompt[p], 8) for p in range(40)]
    own = [
        [f(np.array(share)[d], np.array(credit)[d]) for d in draws[:1000]]
        for f in (ece, auroc, risk_coverage_area, brier)
    ]
    for name, values in zip(("ece", "auroc", "risk_coverage_area", "brier"), own, strict=True):
        low, high = np.percentile(values, [2.5, 97.5])
        assert (got["calibration"][name]["low"], got["calibration"][name]["high"]) == pytest.approx(
            (low, high), abs=0.03
        )


def test_the_summary_of_many_samples() -> None:
    rng = np.random.default_rng(2)
    rows = [
        record(str(p), bool(a == 0), f"{a}" if a < 20 else None, int(rng.integers(1, 16000)), dataset="ab"[p % 2])
        for p in range(500)
        for a in rng.integers(0, 22, 64)
    ]
    got = summarize(rows)
    assert got["overall"]["samples"] == 32_000 and list(got["overall"]["pass@k"]) == [
        "1",
        "2",
        "4",
        "8",
        "16",
        "32",
        "64",
    ]
    assert got["overall"]["maj@k"]["16"]["value"] == pytest.approx(
        (got["datasets"]["a"]["maj@k"]["16"]["value"] + got["datasets"]["b"]["maj@k"]["16"]["value"]) / 2
    )


def test_malformed_records_are_named() -> None:
    with pytest.raises(ValueError, match="sample 1 has no 'correct'"):
        summarize([record("p", 1), {"prompt_id": "p"}])
    with pytest.raises(ValueError, match=r"sample 0 \(prompt p\): correct is nan"):
        summarize([record("p", math.nan)])
    with pytest.raises(ValueError, match="k is 4, but prompt q of data set 'd' has 1 samples"):
        summarize([record("p", 1)] * 4 + [record("q", 1)], ks=[4])
    with pytest.raises(ValueError, match="no samples"):
        summarize([])
