"""Schedules by hand, controllers against a simulated policy, corrections by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rlkit.objective.coefficients import (
    AccuracyScaled,
    AdaptiveKL,
    Coefficients,
    Constant,
    Cosine,
    DifficultyWeighted,
    DualAscent,
    KLBudget,
    Linear,
    RewardMasked,
    Step,
)
from rlkit.objective.corrections import (
    IcePop,
    K3Mask,
    OffPolicySequenceMask,
    SequenceMask,
    TruncatedIS,
    correction_stats,
    weights,
)
from rlkit.objective.divergences import KL
from rlkit.types import Batch, Stats


def test_schedules() -> None:
    assert [Linear(1.0, 0.0, 4).at(k) for k in (0, 2, 4, 9)] == [1, 0.5, 0, 0]
    assert [Cosine(1.0, 0.0, 4).at(k) for k in (0, 2, 4, 9)] == pytest.approx([1, 0.5, 0, 0])
    step = Step(values=(3.0, 2.0, 1.0), at=(10, 20))
    assert [step.next({}, k, Stats())["value"] for k in (0, 9, 10, 19, 20)] == [3, 3, 2, 2, 1]


def test_ziegler_by_hand() -> None:
    spec = AdaptiveKL(init=0.1, target=6.0, horizon=1000.0)
    for kl, error in ((6.6, 0.1), (60.0, 0.2), (0.0, -0.2)):
        stats = Stats().update({"kl/ref_sequence": kl, "batch/sequences": 256.0})
        assert spec.next(spec.start(), 1, stats)["value"] == pytest.approx(0.1 * (1 + error * 256 / 1000))


@pytest.mark.parametrize(
    "spec",
    [KLBudget(target=0.05, init=0.001), DualAscent(target=0.05, init=0.0, lr=0.3)],
    ids=lambda s: type(s).__name__,
)
def test_controllers_hold_the_kl_of_a_simulated_policy(spec: object) -> None:
    """The simulated policy settles at ``kl = pull / coefficient``, slowly and with noise: a stronger penalty, a smaller KL."""
    g = torch.Generator().manual_seed(0)
    state, kl, seen = spec.start(), 0.0, []
    for step in range(600):
        kl += 0.2 * (min(2.0, 0.005 / max(state["value"], 1e-4)) - kl)
        measured = kl * math.exp(0.1 * float(torch.randn((), generator=g)))
        state = spec.next(state, step, Stats().update({"kl/ref": measured}))
        seen.append(kl)
    assert sum(seen[-200:]) / 200 == pytest.approx(0.05, rel=0.15)
    assert {"value", "target", "measured", "error"} <= state.keys()


def test_the_integral_of_the_budget_controller_does_not_wind_up() -> None:
    spec, stats = KLBudget(target=0.1, init=0.1, high=1.0), Stats().update({"kl/ref": 5.0})
    state = spec.start()
    for k in range(500):
        state = spec.next(state, k, stats)
    assert state["value"] == 1.0
    low = Stats().update({"kl/ref": 0.0})
    steps = next(k for k in range(100) if (state := spec.next(state, k, low))["value"] < 0.5)
    assert steps < 20


def responses(rewards: list[float], group: list[int]) -> Batch:
    S = len(rewards)
    return Batch(
        seq=torch.arange(S),
        group=torch.tensor(group),
        source=torch.zeros(S, dtype=torch.long),
        reward=torch.tensor(rewards),
        adv=torch.tensor(rewards) - 0.5,
    )


def test_weights_of_single_sequences() -> None:
    b = responses([1.0, 0.0, 1.0, 1.0, 0.0, 0.0], [0, 0, 0, 1, 1, 2])
    assert RewardMasked(by="response").per_sequence(b).tolist() == [0, 1, 0, 0, 1, 1]
    assert RewardMasked(by="group").per_sequence(b).tolist() == [0, 0, 0, 0, 0, 1]
    assert AccuracyScaled().per_sequence(b)[0] == pytest.approx((math.tanh(0.5) + 1) / 2)
    weight = DifficultyWeighted().per_sequence(b)
    easy, half = 1 - math.exp(-math.e * 2 / 3), 1 - math.exp(-math.e / 2)
    torch.testing.assert_close(weight, torch.tensor([easy, 1, easy, half, 1, 1]))


def test_states_are_logged_and_resume() -> None:
    parts = [KL(coef=KLBudget(target=0.1)), KL(estimator="k2", coef=0.5)]
    c = Coefficients(parts)
    c.update(1, Stats().update({"kl/ref": 0.3}))
    m = c.metrics()
    assert m["coef/KL_k3(ref)/target"] == 0.1 and m["coef/KL_k3(ref)/measured"] == 0.3 and m["coef/KL_k2(ref)"] == 0.5
    other = Coefficients(parts)
    other.load_state_dict(c.state_dict())
    assert other.values() == c.values() != Coefficients(parts).values() and Constant(2.0).start() == {"value": 2.0}


@pytest.mark.parametrize(
    "bad",
    [
        lambda: KLBudget(target=0.0),
        lambda: AdaptiveKL(target=-1.0),
        lambda: KLBudget(target=1.0, low=2.0),
        lambda: Step(values=(1.0,), at=(5,)),
        lambda: IcePop(low=2.0, high=1.0),
    ],
)
def test_impossible_values_are_refused(bad: object) -> None:
    with pytest.raises(ValueError):
        bad()


def test_corrections_by_hand() -> None:
    log_c = torch.tensor([math.log(4.0), math.log(0.25), 0.001, -0.001])
    b = Batch(
        seq=torch.tensor([0, 0, 1, 1]),
        group=torch.zeros(2, dtype=torch.long),
        source=torch.zeros(2, dtype=torch.long),
        reward=torch.zeros(2),
        logp={"behav": torch.zeros(4), "old": log_c},
    )
    torch.testing.assert_close(TruncatedIS(cap=2.0)(b), torch.tensor([2, 0.25, math.exp(0.001), math.exp(-0.001)]))
    torch.testing.assert_close(TruncatedIS(cap=2.0, level="sequence")(b), torch.ones(4))
    torch.testing.assert_close(IcePop(low=0.5, high=5.0)(b), torch.tensor([4, 0, math.exp(0.001), math.exp(-0.001)]))
    assert SequenceMask(low=0.9, high=1.1, weigh=False)(b).tolist() == [1, 1, 1, 1]
    assert K3Mask(bound=0.01)(b).tolist() == [0, 0, 1, 1]
    assert weights(K3Mask(bound=0.01, denominator="kept"), b).tolist() == [0, 0, 2, 2]
    assert float(weights(IcePop(denominator="mean_one"), b).mean()) == pytest.approx(1)
    b.adv = torch.tensor([-1.0, -1.0, -1.0, -1.0])
    b.logp["behav"] = torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert OffPolicySequenceMask()(b).tolist() == [1, 1, 0, 0]
    b.adv = -b.adv
    assert OffPolicySequenceMask()(b).tolist() == [1, 1, 1, 1]
    b.logp["behav"] = torch.zeros(4)
    b.weight = K3Mask(bound=0.01)(b)
    stats = Stats()
    correction_stats(b, stats)
    c = log_c.exp()
    assert stats["correction/masked"] == 0.5 and stats["correction/ess"] == pytest.approx(
        float(c.sum() ** 2 / (c**2).sum() / 4)
    )
