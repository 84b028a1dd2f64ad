"""The simulation against closed forms, conservation and a recorded run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rlkit as rk
from rlkit.planning import EngineModel, LearnerModel, LogNormal, Workload, calibrate, simulate

FIXED = LogNormal(100, 0.0, 100)  # every response has 100 tokens
LONG = LogNormal(400, 1.0, 4000)


def work(lengths: LogNormal = FIXED, **changes: Any) -> Workload:
    return Workload(**{"prompts": 4, "n": 8, "lengths": lengths, **changes})


def test_one_engine_has_a_closed_form() -> None:
    # 32 sequences at once for 100 steps; each step reads a context that grows by 32 tokens.
    base, per_sequence, per_context, prefill = 0.02, 1e-4, 1e-6, 0.5
    t = simulate(
        work(prompt_tokens=50),
        1,
        EngineModel(base, per_sequence, per_context, prefill),
        LearnerModel(3.0, 0.0, 1.0),
        steps=6,
    )
    generate = 4 * prefill + 100 * (base + 32 * per_sequence) + per_context * (32 * 50 * 100 + 32 * 100**2 / 2)
    np.testing.assert_allclose(t.waited, generate, rtol=1e-9)
    assert t.step_seconds == pytest.approx(generate + 3.0 + 1.0, rel=1e-9)
    assert t.throughput == pytest.approx(3200 / (generate + 4), rel=1e-9)
    assert t.learner_idle == pytest.approx(1 - 3 / (generate + 4)) and t.engine_idle == pytest.approx(
        1 - generate / (generate + 4)
    )


def test_sequences_that_find_no_seat_wait_for_a_wave() -> None:
    for seats, waves in ((32, 1), (16, 2), (8, 4), (12, 3)):
        t = simulate(work(), 1, EngineModel(0.01, max_running=seats), LearnerModel(0.0, 0.0), steps=3)
        np.testing.assert_allclose(t.waited, waves * 100 * 0.01, rtol=1e-9)


def test_engines_share_groups_evenly() -> None:
    t = simulate(work(prompts=6), 3, EngineModel(0.01, per_sequence=0.001), LearnerModel(0.0, 0.0), steps=3)
    np.testing.assert_allclose(t.waited, 100 * (0.01 + 2 * 8 * 0.001), rtol=1e-9)  # two groups of 8 on each
    assert t.engine_idle == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("pause", ["wait", "keep"])
@pytest.mark.parametrize("max_lag", [0, 1, 3])
@pytest.mark.parametrize("engines", [1, 3])
def test_all_sequences_are_served_and_all_work_is_done(pause: Any, max_lag: int, engines: int) -> None:
    w = work(LONG, max_lag=max_lag, pause=pause, prompts=5)
    t = simulate(w, engines, EngineModel(0.01, max_running=7), LearnerModel(1.0, 1e-4, 0.3), steps=10, seed=3)
    assert len(t.lag) == 10 * 5 * 8 and t.served <= (10 + max_lag) * 5 * 8 and t.served >= 10 * 5 * 8
    assert t.served_tokens >= t.tokens.sum() and (t.served_tokens == t.tokens.sum() or max_lag)
    # An engine step makes at most 7 tokens, and never fewer than one.
    assert (
        t.busy.sum() * (1 + 1e-9) >= t.served_tokens * 0.01 / 7
        and t.busy.sum() <= (t.served_tokens + 7 * engines * 4000) * 0.01
    )
    assert (t.busy <= engines * (t.end - t.start) + 1e-9).all() and (t.overlap <= t.busy + 1e-9).all()
    np.testing.assert_allclose(t.updated, 1.0 + 1e-4 * t.tokens)
    np.testing.assert_allclose(t.end - t.start, t.waited + t.updated + t.synced)
    np.testing.assert_allclose(t.start[1:], t.end[:-1])
    assert min(t.lag) >= 0 and max(t.lag) <= max_lag + 1e-9


def test_on_policy_means_no_overlap_and_no_staleness() -> None:
    t = simulate(work(LONG), 2, EngineModel(0.01), LearnerModel(5.0, 0.0, 0.5), steps=8)
    assert t.overlap.max() == pytest.approx(0, abs=1e-9) and t.staleness == 0


@pytest.mark.parametrize(("generate", "update"), [(10.0, 2.0), (2.0, 10.0), (5.0, 5.0)])
def test_one_step_ahead_takes_the_longer_of_the_two(generate: float, update: float) -> None:
    # Fixed lengths: group v + 1 generates while v is trained. With `keep`, the pipeline runs at the slower stage's pace.
    t = simulate(
        work(max_lag=1, pause="keep"),
        1,
        EngineModel(generate / 100, max_running=32),
        LearnerModel(update, 0.0),
        steps=30,
    )
    assert t.step_seconds == pytest.approx(max(generate, update), rel=0.02)
    assert t.staleness <= 1
    shared = simulate(
        work(max_lag=1, pause="keep"),
        1,
        EngineModel(generate / 100, max_running=32),
        LearnerModel(update, 0.0),
        steps=30,
        shared=True,
    )
    assert shared.step_seconds == pytest.approx(generate + update, rel=0.02)  # one device does one thing at a time


def test_waiting_for_running_requests_costs_what_keeping_them_saves() -> None:
    parts = EngineModel(0.01, max_running=64), LearnerModel(3.0, 0.0, 0.2)
    wait, keep = (simulate(work(LONG, max_lag=2, pause=p), 2, *parts, steps=40, seed=1) for p in ("wait", "keep"))
    assert keep.step_seconds < wait.step_seconds
    assert keep.synced.max() == pytest.approx(0.2) and wait.synced.mean() > 0.2
    on_policy = simulate(work(LONG), 2, *parts, steps=40, seed=1)
    assert wait.step_seconds < on_policy.step_seconds


def test_more_helps_or_does_not_hurt() -> None:
    def step(
        engines: int = 4, lag: int = 0, update: float = 2.0, base: float = 0.01, seats: int = 64, sigma: float = 1.0
    ) -> float:
        w = work(LogNormal(400, sigma, 4000), max_lag=lag, pause="keep", prompts=16)
        return simulate(
            w, engines, EngineModel(base, 1e-4, max_running=seats), LearnerModel(update, 0.0), steps=20, seed=5
        ).step_seconds

    assert step(1) > step(2) > step(4) > step(8)
    assert step(lag=0) > step(lag=1) >= step(lag=3) * 0.98
    assert step(update=8.0) > step(update=2.0) > step(update=0.1) and step(base=0.02) > step(base=0.01)
    assert step(seats=8) > step(seats=64) and step(sigma=1.5) > step(sigma=0.5)


def test_staleness_grows_with_the_lag() -> None:
    means = [
        simulate(work(LONG, max_lag=k, pause="keep"), 2, EngineModel(0.005), LearnerModel(8.0, 0.0), steps=30).staleness
        for k in (0, 1, 2, 4)
    ]
    assert means[0] == 0 and means == sorted(means) and means[-1] <= 4


def test_stragglers_left_for_later() -> None:
    """Responses of a step that ends without its stragglers: shorter steps, bounded age, none twice."""

    def run(**changes: Any) -> Any:
        return simulate(
            work(LONG, prompts=16, pause="keep", **changes), 2, EngineModel(0.005), LearnerModel(2.0, 0.0), steps=40
        )

    plain, one, two = run(), run(over=0.25), run(over=0.25, overtake=2)
    assert two.step_seconds < one.step_seconds < plain.step_seconds
    assert (
        plain.staleness == 0 < min(one.staleness, two.staleness)
        and 0 < max(one.lag) <= 2
        and max(one.lag) <= max(two.lag) <= 3
    )
    assert len(one.lag) == len(plain.lag) == 40 * 16 * 8 <= one.served <= 40 * 16 * 8 + 4 * 8
    # Fixed lengths, in waves.
    same = simulate(work(over=0.5), 1, EngineModel(0.01, max_running=32), LearnerModel(1.0, 0.0), steps=4)
    assert same.tokens.tolist() == [3200.0] * 4


def test_the_same_seed_gives_the_same_run() -> None:
    def once(seed: int) -> list[float]:
        return simulate(work(LONG, max_lag=1), 3, EngineModel(0.01), LearnerModel(1.0, 0.0), seed=seed).end.tolist()

    assert once(1) == once(1) != once(2)


def test_lengths_have_the_mean_that_was_asked_for() -> None:
    for mean, sigma, limit in ((400, 1.0, 4000), (3000, 1.5, 4096), (20, 0.3, 96)):
        x = LogNormal(mean, sigma, limit).draw(np.random.default_rng(0), 200_000)
        assert x.mean() == pytest.approx(mean, rel=0.02) and x.min() >= 1 and x.max() <= limit
    assert set(FIXED.draw(np.random.default_rng(0), 5)) == {100}
    with pytest.raises(ValueError, match="between 1 and the limit"):
        LogNormal(5000, 1.0, 4096)


def test_a_thousand_gpus_take_seconds() -> None:
    w = Workload(prompts=512, n=16, lengths=LONG, max_lag=1, pause="keep")
    t = simulate(w, 128, EngineModel(0.01, 1e-5), LearnerModel(5.0, 0.0), steps=3)
    assert t.served >= 3 * 512 * 16


# Rows of a run of this library: a vLLM engine and a DeepSpeed learner on Ray on two CPU cores, 8 prompts x 8 responses of a random model.
KEYS = (
    "length/mean",
    "length/max",
    "batch/sequences",
    "time/generate",
    "time/annotate",
    "time/update",
    "time/sync",
    "time/step",
)
RECORDED = [
    dict(zip(KEYS, row, strict=True))
    for row in (
        (14.2031, 66, 64, 8.01549, 2.4556, 8.51191, 0.101864, 19.0855),
        (14.2812, 62, 64, 5.97595, 0.719378, 3.25638, 0.100449, 10.053),
        (16.8438, 85, 64, 1.7542, 1.22095, 4.6337, 0.419793, 8.02943),
        (17.7344, 80, 64, 1.61524, 0.666516, 1.01697, 0.0490577, 3.34842),
        (21.1406, 85, 64, 0.769167, 0.211937, 0.85299, 0.0565533, 1.89124),
        (19.6562, 66, 64, 0.635684, 0.16557, 0.812798, 0.0580441, 1.67283),
        (12.2812, 80, 64, 0.784254, 0.267883, 0.639316, 0.0549363, 1.74706),
        (15.2344, 47, 64, 0.391703, 0.102417, 0.556497, 0.0579058, 1.10928),
        (15.5312, 65, 64, 0.740729, 0.178586, 0.557326, 0.0544557, 1.53173),
        (20.2812, 96, 64, 0.675117, 0.24643, 0.772835, 0.0597861, 1.75463),
        (17.8906, 96, 64, 0.585481, 0.211287, 0.838551, 0.10518, 1.74124),
        (17.9062, 58, 64, 0.405036, 0.287618, 0.481808, 0.126687, 1.3019),
        (12.9688, 60, 64, 0.404987, 0.13492, 0.386213, 0.0434849, 0.970142),
        (17.4844, 67, 64, 0.504748, 0.141784, 0.411379, 0.0419008, 1.10042),
        (17.2812, 95, 64, 0.621932, 0.18847, 0.682455, 0.0675208, 1.56124),
        (20.0312, 76, 64, 0.678272, 0.2015, 0.754277, 0.0467944, 1.68153),
    )
]


def write_run(folder: Path, small: dict[str, Any], rows: list[dict[str, float]], **rollout: Any) -> Path:
    from rlkit.config import to_yaml

    folder.mkdir(parents=True)
    run = rk.load(
        {
            **small,
            "rollout": {"engine": "vllm", "prompts": 8, "n": 8, **rollout},
            "sampling": {"max_tokens": 96},
            "cluster": {},
        }
    )
    (folder / "config.yaml").write_text(to_yaml(run))
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": i + 1, **row}) + "\n" for i, row in enumerate(rows))
    )
    return folder


def test_calibration_finds_the_engine_that_made_the_numbers(tmp_path: Path, small: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(30):
        lengths = LogNormal(20, 0.8, 96).draw(rng, 64)
        row = {
            "length/mean": float(lengths.mean()),
            "length/max": float(lengths.max()),
            "batch/sequences": 64.0,
            "time/annotate": 0.1,
            "time/generate": 0.01 * lengths.max() + 2e-4 * lengths.sum() + 0.05,
            "time/update": 0.3 + 1e-4 * lengths.sum(),
            "time/sync": 0.02,
        }
        rows.append({**row, "time/step": sum(v for k, v in row.items() if k.startswith("time"))})
    c = calibrate(write_run(tmp_path / "run", small, rows))
    assert c.engine.base == pytest.approx(0.01, rel=1e-6) and c.engine.per_sequence == pytest.approx(2e-4, rel=1e-6)
    assert c.engine.prefill * 8 == pytest.approx(0.05, rel=1e-6)
    assert c.learner.fixed == pytest.approx(0.4, rel=1e-6) and c.learner.per_token == pytest.approx(1e-4, rel=1e-6)
    assert c.predict(0, steps=60).step_seconds == pytest.approx(c.measured, rel=0.1)
    assert c.predict(1, "keep").step_seconds < c.predict(0).step_seconds


def test_calibration_on_a_recorded_run(tmp_path: Path, small: dict[str, Any]) -> None:
    c = calibrate(write_run(tmp_path / "run", small, RECORDED))
    assert c.predict(0, steps=60).step_seconds == pytest.approx(c.measured, rel=0.15)
    # The same run with max_lag: 1 took 1.38 s a step (median of 22; 1.38 with `keep` too). Its engine and learner shared two cores, so it lies
    # between two devices that do not disturb each other and one that both take turns on.
    apart, together = (c.predict(1, "wait", steps=60, shared=shared).step_seconds for shared in (False, True))
    assert apart < 1.38 < together * 1.05
    assert c.predict(1, "keep", steps=60).step_seconds <= apart * 1.02


def test_calibration_says_what_it_cannot_use(tmp_path: Path, small: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"has no metrics\.jsonl"):
        calibrate(tmp_path)
    with pytest.raises(ValueError, match="at least 4 are needed"):
        calibrate(write_run(tmp_path / "short", small, RECORDED[:4]))
    with pytest.raises(ValueError, match=r"max_lag: 1 and over: 0, .* Use a run with both at 0"):
        calibrate(write_run(tmp_path / "ahead", small, RECORDED, max_lag=1))
