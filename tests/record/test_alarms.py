"""Alarms: each fires on what it is about, not on a healthy run, and says its sentence once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

import rlkit as rk
from rlkit.checks import stale
from rlkit.record.alarms import ALARMS, LONG, SHORT, WINDOW, Alarms
from rlkit.run import load as make_run

Row = dict[str, float]
BY_NAME = {a.name: a for a in ALARMS}


def history(steps: int, **of_step: Callable[[int], float]) -> list[Row]:
    """A run that learns, with these metrics (``__`` for ``/``) instead of its own."""
    rows = []
    for k in range(steps):
        row = {
            "kl/ref": 0.002 * k,
            "entropy/sampled": 1.0 - 0.01 * min(k, 70),
            "length/mean": 100.0 + k,
            "length/truncated": 0.02,
            "reward/mean": min(1.0, 0.1 + 0.02 * k),
            "reward/std": 0.4,
            "reward/equal_groups": 0.3,
            "batch/sequences": 256.0,
            "mismatch/mean": 0.01,
            "mismatch/expected": 0.05,
            "learner/skipped": 0.0,
            "learner/grad_norm": 0.3,
            "correction/masked": 0.1,
        }
        row |= {name.replace("__", "/"): f(k) for name, f in of_step.items()}
        rows.append(row)
    return rows


def flat(k: int) -> float:
    return 0.3


# Alarm, metrics with which it fires, and nearly the same without.
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("kl_without_reward", {"kl__ref": lambda k: 0.01 * k, "reward__mean": flat}, {"kl__ref": lambda k: 0.01 * k}),
    (
        "kl_without_reward",
        {"kl__ref": lambda k: 0.0, "drift__start": lambda k: 0.01 * k, "reward__mean": flat},
        {"kl__ref": lambda k: 0.0, "drift__start": lambda k: 0.001 * k, "reward__mean": flat},
    ),
    (
        "entropy_collapse",
        {"entropy__sampled": lambda k: 0.54 * 0.9**k},
        {"entropy__sampled": lambda k: max(0.05, 0.54 * 0.9**k)},  # verl's run that learns
    ),
    ("truncated", {"length__truncated": lambda k: 0.12}, {"length__truncated": lambda k: 0.09}),
    ("equal_groups", {"reward__equal_groups": lambda k: 0.9}, {"reward__equal_groups": lambda k: 0.7}),
    (
        "equal_rewards",
        {"reward__std": lambda k: 0.0, "reward__mean": lambda k: 0.0},
        {"reward__std": lambda k: 0.1 * (k % 4 == 0)},
    ),
    (
        "mismatch",
        {"mismatch__mean": lambda k: 0.01 + 0.001 * k},
        {"mismatch__mean": lambda k: 1e-6 * 1.1**k},  # grows, but is nothing
    ),
    ("disagreement", {"mismatch__mean": lambda k: 0.06}, {"mismatch__mean": lambda k: 0.04}),
    (
        "disagreement",
        {"mismatch__mean": lambda k: 2e-3, "mismatch__expected": lambda k: 1e-3},
        {"mismatch__mean": lambda k: 2e-3, "mismatch__expected": lambda k: float("nan")},  # sampled ahead
    ),
    ("skipped", {"learner__skipped": lambda k: k == 39}, {"learner__skipped": lambda k: k == 20}),
    ("masked", {"correction__masked": lambda k: 1.0}, {"correction__masked": lambda k: 0.85}),
    (
        "nothing_learned",
        {"learner__grad_norm": lambda k: 0.0},
        {"learner__grad_norm": lambda k: 0.1 * (k % 4 == 0)},
    ),
    (
        "nothing_learned",
        {"learner__grad_norm": lambda k: 0.0},
        {"learner__grad_norm": lambda k: 0.0, "reward__std": lambda k: 0.0},  # one alarm for one cause
    ),
    (
        "length_explosion",
        {"length__mean": lambda k: 20.0 * 1.05**k, "reward__mean": flat},
        {"length__mean": lambda k: 20.0 * 1.05**k},  # longer, and better
    ),
]


@pytest.mark.parametrize(("name", "fires", "silent"), CASES)
def test_each_fires_and_does_not_fire(name: str, fires: dict[str, Any], silent: dict[str, Any]) -> None:
    alarm, rows = BY_NAME[name], history(40, **fires)
    assert alarm(rows) is not None
    assert alarm([{key: row[key] for key in alarm.reads & row.keys()} for row in rows]) == alarm(rows)
    assert alarm(history(40, **silent)) is None
    assert alarm([]) is None and alarm(history(1)) is None


def test_every_alarm_has_a_case_and_a_healthy_run_is_silent() -> None:
    assert {name for name, *_ in CASES} == BY_NAME.keys()
    said: list[str] = []
    alarms = Alarms()
    for k, row in enumerate(history(200)):
        assert alarms.observe(k + 1, row, said.append) == {}
    assert said == []
    assert all(not a.remedy.endswith(".") for a in ALARMS)


def test_it_is_said_once_counted_always_and_goes_on_after_a_resume() -> None:
    said: list[str] = []
    alarms, rows = Alarms([BY_NAME["truncated"]]), history(150, length__truncated=lambda k: 0.5 * (k < 40 or k >= 120))
    counts = []
    for k, row in enumerate(rows):
        counts.append(alarms.observe(k + 1, row, said.append).get("alarm/truncated", 0.0))
        if k == 30:
            state = json.loads(json.dumps(alarms.state_dict()))
            alarms = Alarms([BY_NAME["truncated"]])
            alarms.load_state_dict(state)
    held = [BY_NAME["truncated"](rows[: k + 1]) is not None for k in range(len(rows))]
    assert counts == [sum(held[: k + 1]) for k in range(len(rows))] and sum(held) > 40
    assert len(said) == 2 and "50% of the responses end at the length limit. What would" in said[0]
    assert len(alarms.newest) == WINDOW and len(alarms.first) == SHORT and WINDOW > LONG + SHORT


def test_what_alarms_read_is_what_a_run_writes() -> None:
    assert set(history(1)[0]) | {"drift/start"} == Alarms().reads


def test_stale_samples_without_a_correction_are_said_at_the_start(small: dict[str, Any]) -> None:
    run = make_run({**small, "rollout": {"engine": "vllm", "prompts": 4, "n": 4, "max_lag": 2}, "cluster": {}})
    assert "may be 2 steps old" in str(stale(run)) and "PPOClip" in str(stale(run))
    assert stale(run.replace(rollout=dataclasses.replace(run.rollout, max_lag=1))) is None
    over = dataclasses.replace(run.rollout, max_lag=0, over=0.5, pause="continue")
    assert "may be 2 steps old" in str(stale(run.replace(rollout=over)))
    for cure in ({"correction": {"type": "TruncatedIS"}}, {"objective": [{"type": "CISPO"}]}):
        assert stale(make_run({**small, "rollout": {"engine": "vllm", "max_lag": 2}, "cluster": {}, **cure})) is None


@pytest.mark.slow
def test_a_run_whose_correction_masks_everything_says_that_it_trains_on_nothing(
    small: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    masked = {"type": "SequenceMask", "low": 2.0, "high": 3.0}
    given = {**small, "steps": SHORT, "objective": [{"type": "PPOClip"}], "correction": masked, "eval": None}
    last = rk.train(rk.load(given)).metrics()[-1]
    assert last["alarm/masked"] == last["alarm/nothing_learned"] == 1 and last["correction/masked"] == 1
    said = capsys.readouterr().out
    assert "warning (masked, step 5): the correction masks 100% of the tokens." in said
    assert (
        "warning (nothing_learned, step 5): the gradient of the last 5 steps was zero: they trained on nothing." in said
    )
