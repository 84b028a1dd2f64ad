"""Schedules by hand, controllers against a simulated policy, corrections by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch

from rlkit.objective import loss, normalise
from rlkit.objective.coefficients import (
    AccuracyScaled,
    AdaptiveKL,
    BestOfGroup,
    Coefficients,
    Constant,
    Cosine,
    DifficultyWeighted,
    DualAscent,
    EntropyTarget,
    KLBudget,
    Linear,
    RewardGap,
    RewardMasked,
    Step,
    WhenWorse,
    distinct,
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
from rlkit.objective.losses import NLL, Entropy
from rlkit.objective.preference import DPO
from rlkit.types import Batch, New, Stats
from tests.objective.pairs import two


def test_schedules() -> None:
    assert [Linear(1.0, 0.0, 4)(k) for k in (0, 2, 4, 9)] == [1, 0.5, 0, 0]
    assert [Cosine(1.0, 0.0, 4)(k) for k in (0, 2, 4, 9)] == pytest.approx([1, 0.5, 0, 0])
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


def settle(
    spec: EntropyTarget, state: dict[str, float], steps: int, entropy: float = 0.5
) -> tuple[dict[str, float], list[float]]:
    """A policy whose entropy falls by learning, 0.02 of itself a step, and rises with its bonus; measured with noise."""
    g, seen = torch.Generator().manual_seed(0), []
    for step in range(steps):
        entropy = max(1e-3, entropy * 0.98 + 0.6 * state["value"])
        measured = entropy * math.exp(0.05 * float(torch.randn((), generator=g)))
        state = spec.next(state, step, Stats().update({"entropy/sampled": measured}))
        assert spec.low <= state["value"] <= spec.high and spec.low <= state["bonus"] <= spec.high
        seen.append(entropy)
    return state, seen


@pytest.mark.parametrize(
    "spec",
    [EntropyTarget(target=0.3), EntropyTarget(target=0.3, rule="steps", init=0.0, low=0.0, rate=5e-4)],
    ids=lambda s: s.rule,
)
def test_an_entropy_bonus_holds_its_target(spec: EntropyTarget) -> None:
    state, seen = settle(spec, spec.start(), 1500)
    assert sum(seen[-500:]) / 500 == pytest.approx(0.3, rel=0.1)
    assert {"value", "target", "measured", "error"} <= state.keys()
    without = settle(Fixed(target=0.3, init=0.0, low=0.0, rule="steps"), {"value": 0.0, "bonus": 0.0}, 300)[1]
    assert without[-1] < 0.02  # the same policy without the controller


class Fixed(EntropyTarget):
    """It never moves."""

    def next(self, state: dict[str, float], step: int, stats: Stats) -> dict[str, float]:
        return state


def test_an_entropy_bonus_by_hand() -> None:
    def after(spec: EntropyTarget, *entropies: float) -> list[float]:
        state, out = spec.start(), []
        for h in entropies:
            state = spec.next(state, 1, Stats().update({"entropy/sampled": h}))
            out.append(state["value"])
        return out

    dual = EntropyTarget(target=0.2, init=0.01, rate=0.1, high=0.012)
    up, down = 0.01 * math.exp(0.1 * 0.5), 0.01 * math.exp(0.05) * math.exp(-0.1)
    assert after(dual, 0.1, 5.0) == pytest.approx([up, down])  # the error is at most 1
    assert after(dual, 0.0, 0.0, 0.0)[-1] == 0.012 and after(dual, math.nan) == [0.01]
    steps = EntropyTarget(target=0.2, init=0.0, low=0.0, rate=0.005, rule="steps", high=0.012)
    assert after(steps, 0.1, 0.1, 0.1, 0.3, 0.3, 0.1) == pytest.approx([0.005, 0.01, 0.012, 0.0, 0.0, 0.007])
    assert steps.next(steps.start(), 1, Stats()) == steps.start()  # a step without samples


def test_an_entropy_bonus_goes_on_where_it_was() -> None:
    """Its state is numbers: through JSON, as a checkpoint has it, and on."""
    for spec in (EntropyTarget(target=0.3), EntropyTarget(target=0.3, rule="steps", init=0.0, low=0.0)):
        parts = [Entropy(coef=spec)]
        straight, stopped, resumed = (Coefficients(parts) for _ in range(3))
        measured = [0.5, 0.2, 0.31, 0.1, 0.7, 0.25]
        for step, h in enumerate(measured):
            straight.update(step, Stats().update({"entropy/sampled": h}))
            first, other = (stopped, resumed) if step < 3 else (resumed, stopped)
            if step == 3:
                resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
            first.update(step, Stats().update({"entropy/sampled": h}))
        assert resumed.state_dict() == straight.state_dict() and other.values() != resumed.values()
        assert straight.metrics()["coef/Entropy/target"] == 0.3


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


def test_the_best_of_each_group_are_kept_and_the_mean_is_theirs() -> None:
    """Two of six responses (one a group): each counts three times, so that a mean over six is one over the two."""
    b = responses([0.2, 0.9, 0.9, -1.0, -0.5, 0.1], [0, 1, 1, 0, 1, 0])
    assert BestOfGroup(base=0.35).per_sequence(b).tolist() == [3, 3, 0, 0, 0, 0]
    assert BestOfGroup(keep=2).per_sequence(b).tolist() == [1.5, 1.5, 1.5, 0, 0, 1.5]
    assert BestOfGroup(base=0.35).start() == {"value": 0.35}
    beside = b.replace(source=torch.tensor([0, 0, 0, 0, 0, 2]), group=torch.tensor([0, 1, 1, 0, 1, 2]))
    assert BestOfGroup().per_sequence(beside).tolist() == [2.5, 2.5, 0, 0, 0, 1]  # a demonstration stands beside them


def test_supervised_learning_of_the_best_is_the_mean_over_the_best() -> None:
    """SuperHF's first term, through normalise and loss: value and gradient are those of the kept responses alone."""
    g = torch.Generator().manual_seed(0)
    length = torch.tensor([2, 3, 1, 4])
    b = Batch(
        seq=torch.repeat_interleave(torch.arange(4), length),
        group=torch.tensor([0, 0, 1, 1]),
        source=torch.zeros(4, dtype=torch.long),
        reward=torch.tensor([0.0, 1.0, 0.5, 0.2]),
    )
    logp = (-torch.rand(10, generator=g)).requires_grad_()
    term = NLL(coef=BestOfGroup(), reduce="seq")
    got, _ = loss((term,), New(logp), b.replace(norm=normalise((term,), b)), (1.0,))
    want = -(logp[2:5].mean() + logp[5]) / 2
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, logp)[0], torch.autograd.grad(want, logp)[0])


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
        lambda: EntropyTarget(target=0.0),
        lambda: EntropyTarget(target=0.3, rate=-1.0),
        lambda: EntropyTarget(target=0.3, low=0.0),
        lambda: EntropyTarget(target=0.3, rule="steps", low=-0.1),
        lambda: EntropyTarget(target=0.3, init=1.0),
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
    b = b.replace(adv=torch.tensor([-1.0, -1.0, -1.0, -1.0]))
    b.logp["behav"] = torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert OffPolicySequenceMask()(b).tolist() == [1, 1, 0, 0]
    b = b.replace(adv=-b.adv)
    assert OffPolicySequenceMask()(b).tolist() == [1, 1, 1, 1]
    b.logp["behav"] = torch.zeros(4)
    b = b.replace(weight=K3Mask(bound=0.01)(b))
    stats = Stats()
    correction_stats(b, stats)
    c = log_c.exp()
    assert stats["correction/masked"] == 0.5 and stats["correction/ess"] == pytest.approx(
        float(c.sum() ** 2 / (c**2).sum() / 4)
    )


def test_a_share_grows_when_held_out_scores_fall() -> None:
    """DistiLLM: against the score of the last growth, not the best one; a step without an evaluation changes nothing."""
    scores = [None, -2.0, None, -1.5, -2.05, -2.1, -2.15, -2.2, None, -1.0, -3.0]
    own, given = WhenWorse(), WhenWorse(of="dataset")
    states, phi = [own.start(), given.start()], []
    for step, score in enumerate(scores):
        stats = Stats() if score is None else Stats().update({"eval/score": score})
        states = [spec.next(s, step, stats) for spec, s in zip((own, given), states, strict=True)]
        phi.append(states[0]["value"])
        assert states[0]["value"] + states[1]["value"] == pytest.approx(1)
    assert phi == pytest.approx([0, 0, 0, 0, 0, 0.1, 0.1, 0.2, 0.2, 0.2, 0.3], abs=1e-9)
    assert WhenWorse(init=0.95).next(
        {"value": 0.95, "phi": 0.95, "score": 1.0}, 1, Stats().update({"eval/score": 0.0})
    )["value"] == pytest.approx(1)


def test_terms_of_one_name_keep_their_numbers_apart() -> None:
    """One loss on two kinds of rows: two coefficients, two numbers in the log; the first keeps the name."""
    new, b = two((-12.0, -13.0, -15.0, -14.5), (2, 3))
    b = b.replace(source=torch.tensor([0, 2]))
    terms = (NLL(coef=0.25), NLL(on="dataset", coef=0.5), KL(estimator="k2"))
    assert distinct(terms) == ["NLL", "NLL#2", "KL_k2(ref)"]
    coefs = Coefficients(terms)
    assert coefs.named() == {"NLL": 0.25, "NLL#2": 0.5, "KL_k2(ref)": 1.0}
    assert coefs.metrics()["coef/NLL#2"] == 0.5
    coefs.hold("NLL#2", 2.0)
    assert coefs.values() == [0.25, 2.0, 1.0]
    _, stats = loss(terms, new, b.replace(norm=normalise(terms, b)), coefs.values())
    nll = [-float(new.logp[b.seq == s].mean()) for s in (0, 1)]
    assert [stats["loss/NLL"], stats["loss/NLL#2"]] == pytest.approx(nll)


def test_the_gap_of_rewards_weighs_pairs_and_the_better_halves() -> None:
    """ScPO: ``w = (V+ - V-) / k`` on the pair and on the NLL of its better half, both as means over pairs."""
    new, b = two((-12.0, -13.0, -15.0, -14.5), (10, 20))
    b = b.replace(reward=torch.tensor([6 / 8, 1 / 8], dtype=torch.float64), source=torch.zeros(2, dtype=torch.long))
    terms = (
        DPO(beta=0.5, coef=RewardGap(), on="policy"),
        NLL(coef=RewardGap(half="better"), reduce="seq"),
    )
    b = b.replace(norm=normalise(terms, b))
    value, _ = loss(terms, new, b, (1.0, 1.0))
    assert float(value) == pytest.approx(0.991794, abs=1e-6)  # k = 8, votes 6 and 1, 10 tokens, beta 0.5, alpha 1
    alone = b.replace(pairs=None)
    assert not RewardGap().per_sequence(alone).any()


def test_a_response_in_several_pairs_has_the_widest_gap() -> None:
    _, b = two((-12.0, -13.0, -15.0, -14.5), (1, 1))
    b = b.replace(
        seq=torch.arange(3),
        logp={},
        group=torch.zeros(3, dtype=torch.long),
        source=torch.zeros(3, dtype=torch.long),
        reward=torch.tensor([1.0, 0.5, 0.2]),
        pairs=torch.tensor([[0, 1], [0, 2], [1, 2]]),
    )
    assert RewardGap().per_sequence(b).tolist() == pytest.approx([0.8, 0.5, 0.8])
    assert RewardGap(half="better").per_sequence(b).tolist() == pytest.approx([0.8, 0.3, 0.0])  # 3 rows, 3 pairs
