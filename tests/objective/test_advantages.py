"""What holds for every advantage: equal rewards teach exactly nothing, nearly equal ones keep their sign, the batch stays as it is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rlkit.data.curriculum import ZeroVariance
from rlkit.learner.plan import optimizer_steps
from rlkit.objective import loss, normalise
from rlkit.objective.advantages import (
    GAE,
    RLOO,
    Advantage,
    Advantages,
    GroupMean,
    GroupNorm,
    LengthShaped,
    LogMeanExp,
    ReinforcePlusPlus,
    TokenKL,
    discounted,
    whiten,
)
from rlkit.objective.coefficients import DifficultyWeighted, RewardMasked
from rlkit.objective.losses import PMD, REBEL, KLCov, PPOClip
from rlkit.objective.penalties import DivergenceReward, KLReward, with_advantages
from rlkit.types import Batch, New, Prompt, Rollout

COMPARE: list[Advantage] = [  # within a group
    GroupMean(),
    GroupNorm(),
    GroupNorm(eps=1e-12),
    GroupNorm(scale="batch"),
    RLOO(),
    LogMeanExp(),
    LogMeanExp(tau=3.0),
    LengthShaped(of=RLOO(), rate=1.1),
]
WHITEN: list[Advantage] = [  # over the batch
    ReinforcePlusPlus(),
    ReinforcePlusPlus(baseline="group"),
    GAE(gamma=1.0, lam=1.0),
    GAE(gamma=1.0, lam=1.0, variance="sample"),
    TokenKL(centre=True),
]
VALUES = st.floats(-1e30, 1e30) | st.sampled_from([1000.3, 1.1, 0.1, 1 / 3, -7.7, 16777217.0, 1e-30, 0.0])


def batch(groups: list[list[float]], dtype: torch.dtype = torch.float32, mixed: int = 0, **fields: Any) -> Batch:
    """Responses of one to four tokens; ``mixed`` shuffles the rows, so that groups are not contiguous."""
    rows = [(g, x) for g, xs in enumerate(groups) for x in xs]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(mixed)).tolist()
    rows = [rows[i] for i in order] if mixed else rows
    length = torch.tensor([1 + (3 * i + len(rows)) % 4 for i in range(len(rows))])
    seq = torch.repeat_interleave(torch.arange(len(rows)), length)
    ends = (length + 1).cumsum(0)
    zero = torch.zeros(len(seq), dtype=dtype)
    return Batch(
        seq=seq,
        group=torch.tensor([g for g, _ in rows]),
        source=torch.zeros(len(rows), dtype=torch.long),
        reward=torch.tensor([x for _, x in rows], dtype=dtype),
        logp={"behav": zero, "old": zero, "ref": zero, "teacher": zero - 1.1},
        value=zero,
        length=length + 1,
        ids=torch.zeros(int(ends[-1]), dtype=torch.long),
        action=torch.arange(len(seq)) + seq + 1,
        **fields,
    )


def passes(b: Batch, adv: Tensor) -> int:
    """Rows that the learner computes."""
    steps = optimizer_steps(
        dataclasses.replace(b, adv=adv), (PPOClip(),), epochs=1, count=1, ranks=1, max_tokens=10**6, seed=0
    )
    return sum(micro.S for step in steps for rank in step for micro in rank)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(VALUES, min_size=1, max_size=3),
    sizes=st.lists(st.integers(1, 40), min_size=3, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    mixed=st.integers(0, 5),
)
def test_equal_rewards_of_a_group_give_exactly_zero(
    values: list[float], sizes: list[int], dtype: torch.dtype, mixed: int
) -> None:
    b = batch([[v] * n for v, n in zip(values, sizes, strict=False)], dtype, mixed)
    for advantage in COMPARE:
        adv = Advantages.of(advantage, b).adv
        assert adv.dtype == dtype and bool((adv == 0).all()), advantage
        assert passes(b, adv) == 1  # an optimizer step needs a row


@settings(max_examples=60, deadline=None)
@given(value=VALUES, n=st.integers(1, 60), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_equal_rewards_of_a_batch_are_whitened_to_exactly_zero(value: float, n: int, dtype: torch.dtype) -> None:
    b = batch([[value] * n], dtype)
    for advantage in WHITEN:
        assert bool((Advantages.of(advantage, b).adv == 0).all()), advantage


@settings(max_examples=60, deadline=None)
@given(value=VALUES, others=st.integers(1, 30), up=st.booleans(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_nearly_equal_rewards_keep_their_sign(value: float, others: int, up: bool, dtype: torch.dtype) -> None:
    """One response is a single step of the number format away from the others."""
    x = torch.tensor(value, dtype=dtype)
    near = float(torch.nextafter(x, torch.tensor(math.inf if up else -math.inf, dtype=dtype)))
    if abs(near - float(x)) < 1e-37:  # a difference that float32 cannot divide by anything
        return
    b = batch([[float(x)] * others + [near], [float(x)] * 4], dtype)
    lone = b.seq == others
    same = (b.group == 1)[b.seq]
    for advantage in (
        GroupMean(),
        RLOO(),
        GroupNorm(eps=1e-30),
        GroupNorm(eps=1e-30, scale="batch"),
        LogMeanExp(tau=1.0),
    ):
        adv = Advantages.of(advantage, b).adv
        assert bool(((adv[lone] > 0) == up).all()), advantage
        assert bool((adv[same] == 0).all()), advantage
        # To LogMeanExp the others' soft value is that of a mean in which one number is off by a rounding.
        if not isinstance(advantage, LogMeanExp):
            assert bool(((adv[~lone & ~same] < 0) == up).all()), advantage


@pytest.mark.parametrize(("value", "n"), [(1000.3, 8), (1.1, 16), (0.1, 10), (1 / 3, 3)])
def test_the_cases_of_the_wild(value: float, n: int) -> None:
    """16 rewards of 1.1 trained each correct answer with -0.106 while their mean was taken in float32."""
    b = batch([[value] * n, [0.0, 1.0]])
    adv = Advantages.of(GroupNorm(), b).adv
    assert bool((adv[(b.group == 0)[b.seq]] == 0).all()) and passes(b, adv) == 2


def test_equal_rewards_and_penalties() -> None:
    """A penalty of coefficient 0, or of 0, leaves the zero alone; a real one does not."""
    b = batch([[1.1] * 7])
    for penalty, coef in (
        (KLReward(), 0.3),
        (KLReward(), 0.0),
        (DivergenceReward(), 0.3),
        (KLReward(anchor="teacher"), 0.0),
    ):
        assert bool((with_advantages(b, GroupNorm(), (penalty,), (coef,)).adv == 0).all())
    real = with_advantages(b, GroupMean(), (KLReward(anchor="teacher"),), (0.3,))
    assert real.adv is not None and real.token_reward is not None and float(real.adv.abs().max()) > 0.01
    assert b.adv is None and b.token_reward is None and b.returns is None  # the batch that was given stays as it is


def test_regressions_on_equal_rewards_have_no_gradient_at_the_sampling_policy() -> None:
    b = batch([[1000.3] * 8, [1.1] * 5])
    b = dataclasses.replace(b, adv=RLOO()(b), norm=torch.ones(1, b.S))
    for term in (REBEL(), PMD()):
        logp = b.logp["behav"].clone().requires_grad_()
        (grad,) = torch.autograd.grad(loss((term,), New(logp), b, (1.0,))[0], logp)
        assert bool((grad == 0).all()), term
    assert bool((KLCov().mark(b, torch.Generator()) <= 1).all())


def test_a_weight_by_difficulty_does_not_see_rounding() -> None:
    """All responses right, their rewards equal: none counts as better than its group."""
    b = batch([[1.1] * 16, [1.1, 0.0, 0.0]])
    scale = DifficultyWeighted().per_sequence(b)
    assert scale[:16].tolist() == [1.0] * 16 and float(scale[16]) < 1


@pytest.mark.parametrize(
    ("rewards", "dropped"),
    [([1000.3] * 8, True), ([0.1 + 0.2, 0.3], True), ([1.0, 1.0 + 1e-3], False), ([math.nan, 1.1, 1.1], True)],
)
def test_the_drop_rule_and_the_advantage_agree(rewards: list[float], dropped: bool) -> None:
    """A group is replaced exactly where its advantage, of rewards as a batch holds them, is 0."""
    group = [Rollout(Prompt("p", (1,), "p"), [1], [True], [0.0], [0], "stop", reward=x) for x in rewards]
    assert (ZeroVariance()(group) == "zero_variance") is dropped
    b = batch([[x for x in rewards if not math.isnan(x)]])
    assert bool((GroupMean()(b) == 0).all()) is dropped


def slow_log_mean_exp(b: Batch, tau: float) -> Tensor:
    """The slow twin: all pairs of responses of the batch at once."""
    r = b.reward.double()
    same = b.group[:, None] == b.group[None, :]
    others = same & ~torch.eye(b.S, dtype=torch.bool)
    soft = tau * (torch.where(others, r[None, :] / tau, -torch.inf).logsumexp(1) - others.sum(1).clamp(min=1).log())
    floor = torch.where(same, r[None, :], -torch.inf).amax(1) + tau * math.log(1e-8)
    return (r - torch.where(others.sum(1) > 0, torch.maximum(soft, floor), r))[b.seq]


@settings(max_examples=25, deadline=None)
@given(
    groups=st.lists(st.lists(st.floats(-3, 3), min_size=1, max_size=9), min_size=1, max_size=4),
    tau=st.sampled_from([1e-4, 0.01, 0.3, 5.0]),
    mixed=st.integers(0, 3),
)
def test_the_soft_value_of_each_group_is_that_of_all_pairs(groups: list[list[float]], tau: float, mixed: int) -> None:
    b = batch(groups, torch.float64, mixed)
    torch.testing.assert_close(LogMeanExp(tau=tau)(b), slow_log_mean_exp(b, tau), rtol=1e-9, atol=1e-6 * tau)


def verl_masked_whiten(values: Tensor, mask: Tensor) -> Tensor:
    """verl's and TRL's, on a padded batch: unbiased variance, 1e-8 added to it."""
    mean = (values * mask).sum() / mask.sum()
    variance = (((values - mean) ** 2) * mask).sum() / mask.sum() * mask.sum() / (mask.sum() - 1)
    return (values - mean) * torch.rsqrt(variance + 1e-8)


def openrlhf_normalise(values: Tensor, mask: Tensor) -> Tensor:
    """OpenRLHF's, on a padded batch: variance over the number of actions, at least 1e-8."""
    mean = (values * mask).sum() / mask.sum()
    variance = ((values - mean).pow(2) * mask).sum() / mask.sum()
    return (values - mean) * variance.clamp(min=1e-8).rsqrt()


@pytest.mark.parametrize(
    ("variance", "published"), [("sample", verl_masked_whiten), ("population", openrlhf_normalise)]
)
@pytest.mark.parametrize("spread", [1.0, 1e-5])
def test_whitening_is_that_of_the_library_it_names(
    variance: Any, published: Callable[[Tensor, Tensor], Tensor], spread: float
) -> None:
    g = torch.Generator().manual_seed(0)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.float64)
    padded = spread * torch.randn(3, 4, generator=g, dtype=torch.float64)
    want = published(padded, mask)[mask.bool()]
    torch.testing.assert_close(whiten(padded[mask.bool()], variance), want)
    other: Any = "population" if variance == "sample" else "sample"
    assert not torch.allclose(whiten(padded[mask.bool()], other), want, rtol=1e-3)
    b = dataclasses.replace(batch([[0.3, -1.0], [2.0]], torch.float64), value=None)
    b = dataclasses.replace(b, value=torch.randn(b.N, generator=g, dtype=torch.float64))
    plain, white = (Advantages.of(GAE(whiten=w, variance=variance), b) for w in (False, True))
    torch.testing.assert_close(white.adv, published(plain.adv[None], torch.ones(1, b.N))[0])
    torch.testing.assert_close(white.returns, plain.returns)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that is made inside."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.numel())
        return out


def test_nothing_grows_with_the_square_of_a_batch() -> None:
    """512 groups of 4: no advantage, weight or group term makes a tensor that is much larger than the batch."""
    b = batch([[0.1 * (g % 7), 1.0, 0.3, 0.0] for g in range(512)])
    new = New(b.logp["behav"])
    b = dataclasses.replace(b, adv=RLOO()(b))
    made: list[Callable[[], Any]] = [lambda a=a: a(b) for a in (*COMPARE, *WHITEN)]  # type: ignore[misc]
    made += [lambda: DifficultyWeighted().per_sequence(b), lambda: RewardMasked(by="group").per_sequence(b)]
    made += [lambda: REBEL()(new, b), lambda: PMD()(new, b), lambda: normalise([PPOClip(reduce="prompt")], b)]
    made += [lambda: with_advantages(b, RLOO(), (KLReward(), DivergenceReward()), (0.1, 0.1))]
    for make in made:
        with Largest() as largest:
            make()
        assert 0 < largest.elements <= 2 * b.N, make


@pytest.mark.parametrize("runs", [3, 200])
def test_returns_of_many_runs_side_by_side_are_those_of_one_token_after_the_other(runs: int) -> None:
    length = torch.randint(1, 12, (runs,))
    last = torch.zeros(int(length.sum()), dtype=torch.bool)
    last[length.cumsum(0) - 1] = True
    for x in (torch.randn(len(last)), torch.randn(len(last), dtype=torch.float64)):
        found, slow, running = discounted(x, last, 0.9), torch.empty_like(x), 0.0
        for k in range(len(x) - 1, -1, -1):
            running = float(x[k]) + (0.0 if last[k] else 0.9 * running)
            slow[k] = running
        assert found.dtype == x.dtype and torch.equal(found, slow)
    assert discounted(torch.tensor([1.0, 2.0]), torch.tensor([False, False]), 0.5).tolist() == [2.0, 2.0]
    assert discounted(torch.empty(0), torch.empty(0, dtype=torch.bool), 0.5).shape == (0,)
