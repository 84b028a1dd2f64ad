"""Losses and advantages against padded re-implementations that were written from the papers' equations, and against each other."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from rlkit.learner.plan import optimizer_steps
from rlkit.objective import Term, loss, normalise
from rlkit.objective import losses as L
from rlkit.objective import world as enumerated
from rlkit.objective.advantages import (
    GAE,
    RLOO,
    GroupMean,
    GroupNorm,
    LengthShaped,
    Plain,
    ReinforcePlusPlus,
    TeacherReturn,
    TokenKL,
)
from rlkit.objective.divergences import KL, Divergence
from rlkit.objective.full_vocab import FullDivergence
from rlkit.objective.penalties import KLReward, with_advantages
from rlkit.types import Batch, New

BETA = 0.3


def one(ratios: list[float], adv: list[float]) -> tuple[New, Batch]:
    """Tokens of their own, sampled with probability 0.1 each and now ``ratio`` times as likely."""
    n = len(ratios)
    old = torch.full((n,), math.log(0.05), dtype=torch.float64)
    b = Batch(
        seq=torch.arange(n),
        group=torch.arange(n),
        source=torch.zeros(n, dtype=torch.long),
        reward=torch.zeros(n, dtype=torch.float64),
        logp={"behav": old, "old": old},
        adv=torch.tensor(adv, dtype=torch.float64),
    )
    return New((old + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_()), b


def weights(term: Term, ratios: list[float], adv: list[float]) -> Tensor:
    """What multiplies ``grad log pi`` of each token in the objective that is maximised."""
    new, b = one(ratios, adv)
    return -torch.autograd.grad(term(new, b).sum(), new.logp)[0]


# RPG 2505.17508, section 3: the weight of the score, by divergence to the previous iterate
WEIGHT = {
    "forward_kl": lambda w, r: w * r + BETA,
    "forward_ukl": lambda w, r: w * r - BETA * (w - 1),
    "reverse_kl": lambda w, r: w * (r - BETA * (math.log(w) + 1)),
    "reverse_ukl": lambda w, r: w * (r - BETA * math.log(w)),
}
RATIOS, REWARDS = [0.3, 0.9, 1.0, 1.1, 4.0], [1.0, -0.5, 0.2, -2.0, 0.7]


@pytest.mark.parametrize("kl", WEIGHT)
def test_rpg_weights_of_single_samples(kl: str) -> None:
    want = torch.tensor([WEIGHT[kl](w, r) for w, r in zip(RATIOS, REWARDS, strict=True)], dtype=torch.float64)
    torch.testing.assert_close(weights(L.RPG(kl=kl, beta=BETA, clip=False), RATIOS, REWARDS), want)  # type: ignore[arg-type]
    differentiable = weights(L.ISGradient(), RATIOS, REWARDS) + BETA * weights(
        Divergence(f=kl, anchor="old", form="differentiable"), RATIOS, REWARDS
    )
    torch.testing.assert_close(differentiable, want)


@pytest.mark.parametrize("kl", WEIGHT)
def test_rpg_style_clip_is_the_truth_table(kl: str) -> None:
    """Eq. 4.1: by the sign of the regularised advantage and the ratio, which tokens keep their gradient; constants keep their value."""
    eps_low, eps_high, c = 0.2, 0.28, 3.0
    term = L.RPG(kl=kl, beta=BETA, eps_low=eps_low, eps_high=eps_high, dual_clip=c)  # type: ignore[arg-type]
    ratios = [x for x in (0.5, 0.79, 0.81, 1.0, 1.27, 1.29, 2.9, 3.1) for _ in range(4)]
    rewards = [2.0, 0.4, -0.4, -2.0] * 8
    got, (new, b) = weights(term, ratios, rewards), one(ratios, rewards)
    value = term(new, b)
    for i, (w, r) in enumerate(zip(ratios, rewards, strict=True)):
        c_kl = {
            "forward_kl": BETA,
            "forward_ukl": BETA * (1 - w),
            "reverse_kl": -BETA * w * (math.log(w) + 1),
            "reverse_ukl": -BETA * w * math.log(w),
        }[kl]
        nll, advantage = -float(new.logp[i]), r + c_kl / w
        keeps = w < 1 + eps_high if advantage >= 0 else 1 - eps_low < w < c
        assert float(got[i]) == pytest.approx(WEIGHT[kl](w, r) if keeps else 0.0), (w, r)
        bound = w if keeps else 1 + eps_high if advantage >= 0 else 1 - eps_low if w <= 1 - eps_low else c
        assert float(value[i]) == pytest.approx((r * bound + c_kl) * nll), (w, r)


# -- advantages on ragged groups, against padded code ------------------------------------------------------------------


def ragged(seed: int = 0, sizes: tuple[int, ...] = (3, 1, 5, 2), equal: bool = False) -> Batch:
    r, g = random.Random(seed), torch.Generator().manual_seed(seed)
    group = [k for k, n in enumerate(sizes) for _ in range(n)]
    length = [r.randint(1, 6) for _ in group]
    seq = torch.repeat_interleave(torch.arange(len(group)), torch.tensor(length))
    reward = (
        torch.ones(len(group), dtype=torch.float64)
        if equal
        else torch.randn(len(group), generator=g, dtype=torch.float64)
    )
    logp = {
        name: -torch.rand(len(seq), generator=g, dtype=torch.float64) for name in ("behav", "old", "ref", "teacher")
    }
    value = torch.randn(len(seq), generator=g, dtype=torch.float64)
    return Batch(
        seq=seq,
        group=torch.tensor(group),
        source=torch.zeros(len(group), dtype=torch.long),
        reward=reward,
        logp=logp,
        value=value,
    )


def rows(b: Batch, x: Tensor) -> list[list[float]]:
    return [x[b.seq == s].tolist() for s in range(b.S)]


@pytest.mark.parametrize("equal", [False, True])
def test_group_advantages_on_ragged_groups(equal: bool) -> None:
    b = ragged(1, equal=equal)
    R, group = b.reward.tolist(), b.group.tolist()
    for s in range(b.S):
        mine = [R[j] for j in range(b.S) if group[j] == group[s]]
        others = [R[j] for j in range(b.S) if group[j] == group[s] and j != s]
        mean = sum(mine) / len(mine)
        std = math.sqrt(sum((x - mean) ** 2 for x in mine) / (len(mine) - 1)) if len(mine) > 1 else 0.0
        want = {
            GroupMean(): R[s] - mean,
            GroupNorm(): (R[s] - mean) / (std + 1e-6),
            RLOO(): R[s] - sum(others) / len(others) if others else 0.0,
        }
        for advantage, x in want.items():
            assert rows(b, advantage(b))[s] == pytest.approx([x] * int((b.seq == s).sum()), abs=1e-9), advantage


def test_reinforce_pp_with_kl_in_the_reward_on_ragged_groups() -> None:
    """A_t = R - beta sum_{k >= t} (log old - log ref), minus the group's mean return under `baseline`, then mean 0 and variance 1 over tokens."""
    for baseline in ("none", "group"):
        b = ragged(2)
        k1 = rows(b, b.logp["old"] - b.logp["ref"])
        total = [float(b.reward[s]) - 0.1 * sum(k1[s]) for s in range(b.S)]
        flat = []
        for s in range(b.S):
            mine = [total[j] for j in range(b.S) if b.group[j] == b.group[s]]
            base = sum(mine) / len(mine) if baseline == "group" else 0.0
            flat += [float(b.reward[s]) - 0.1 * sum(k1[s][t:]) - base for t in range(len(k1[s]))]
        mean = sum(flat) / len(flat)
        std = math.sqrt(sum((x - mean) ** 2 for x in flat) / len(flat))
        b = with_advantages(b, ReinforcePlusPlus(baseline=baseline), (KLReward(),), (0.1,))  # type: ignore[arg-type]
        assert b.adv is not None and b.adv.tolist() == pytest.approx([(x - mean) / std for x in flat])


def test_equal_rewards_teach_nothing() -> None:
    for advantage in (GroupMean(), GroupNorm(), RLOO(), ReinforcePlusPlus(), ReinforcePlusPlus(baseline="group")):
        assert float(advantage(ragged(3, sizes=(3, 4, 2), equal=True)).abs().max()) < 1e-9, advantage


def test_gae_on_a_padded_batch() -> None:
    """The recursion on [S, T] with a mask, as padded libraries have it; token rewards and whitening included."""
    b = ragged(4)
    k1, value = rows(b, b.logp["old"] - b.logp["ref"]), rows(b, b.value)  # type: ignore[arg-type]
    gamma, lam, flat = 0.97, 0.9, []
    for s in range(b.S):
        n = len(value[s])
        r = [-0.2 * k for k in k1[s]]
        r[-1] += float(b.reward[s])
        v, running, out = [*value[s], 0.0], 0.0, [0.0] * n
        for t in reversed(range(n)):
            running = r[t] + gamma * v[t + 1] - v[t] + gamma * lam * running
            out[t] = running
        flat += out
    b = with_advantages(b, GAE(gamma=gamma, lam=lam, whiten=False), (KLReward(),), (0.2,))
    assert b.adv is not None and b.adv.tolist() == pytest.approx(flat)
    assert b.returns is not None and b.value is not None
    torch.testing.assert_close(b.returns, torch.tensor(flat, dtype=torch.float64) + b.value)
    b = with_advantages(b, GAE(gamma=gamma, lam=lam), (KLReward(),), (0.2,))
    white = torch.tensor(flat, dtype=torch.float64)
    torch.testing.assert_close(b.adv, (white - white.mean()) / white.std(correction=0))


def test_long_wrong_responses_count_more() -> None:
    b = Batch(
        seq=torch.repeat_interleave(torch.arange(5), torch.tensor([2, 9, 1, 4, 7])),
        group=torch.tensor([0, 0, 0, 1, 1]),
        source=torch.zeros(5, dtype=torch.long),
        reward=torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0]),
    )
    factor = LengthShaped(of=Plain(), rate=1.1)
    # Plain gives the reward itself: wrong ones are -1.
    b = b.replace(reward=b.reward + torch.tensor([0.0, -1, -1, -1, -1]))
    got = [x[0] for x in rows(b, factor(b).adv)]
    assert got == pytest.approx([1.0, -(2 - 1.1**-7), -1.0, -1.0, -1.0])
    with pytest.raises(ValueError, match="rate"):
        LengthShaped(of=Plain(), rate=0.5)


def test_what_a_teacher_learned_as_an_advantage() -> None:
    b = ragged(5)
    signal = (b.logp["teacher"] - b.logp["ref"]).clamp(-0.3, 0.3)
    torch.testing.assert_close(TokenKL(minus="ref", clip=0.3, centre=True)(b), signal - signal.mean())
    assert TokenKL(minus="ref").needs == {"teacher", "ref"}


# -- distillation as reinforcement learning ----------------------------------------------------------------------------


def test_minillms_returns() -> None:
    """Golden: r = (.5, -.2, .1), gamma .95, over the remaining tokens; from the next token on they are those of the token after."""
    r = torch.tensor([0.5, -0.2, 0.1, 7.0], dtype=torch.float64)
    b = ragged(1, sizes=(2,)).replace(
        seq=torch.tensor([0, 0, 0, 1]), logp={"teacher": 0.5 * r - 1, "old": torch.full_like(r, -1)}, value=None
    )
    own = TeacherReturn(start="own", whiten=False)(b)
    torch.testing.assert_close(own, torch.tensor([0.133417, -0.0525, 0.1, 7.0], dtype=torch.float64), atol=1e-6, rtol=0)
    assert TeacherReturn(whiten=False)(b).tolist() == pytest.approx([-0.0525, 0.1, 0.0, 0.0])
    assert TeacherReturn(clip=0.15, gamma=0.0, start="own", whiten=False, per_token=False)(b).tolist() == pytest.approx(
        [0.15, -0.15, 0.1, 0.15]
    )
    white = TeacherReturn()(b)
    assert float(white.mean()) == pytest.approx(0, abs=1e-12) and float(white.std(correction=0)) == pytest.approx(1)


@pytest.mark.parametrize("start", ["next", "own"])
def test_minillms_two_parts_are_the_kl_of_responses(start: str) -> None:
    """The exact part and the returns from the next token on; the released start counts the exact part a second time."""
    w = enumerated.World(seed=2)
    terms = (L.Reinforce(reduce="sum"), FullDivergence(anchor="teacher", reduce="sum"))
    plain = TeacherReturn(scale=1.0, gamma=1.0, per_token=False, whiten=False, start=start)  # type: ignore[arg-type]
    b, p = w.batch(), w.whole(w.mu).exp()
    b = b.replace(adv=plain(b), norm=p.expand(2, -1))
    got = w.gradient(loss(terms, w.new([terms[1]]), b, (1.0, 1.0))[0])
    kl = (w.whole(w.pi()).exp() * (w.whole(w.pi()) - w.whole(w.teacher))).sum()
    want = w.gradient(kl)
    if start == "own":
        want = want + w.gradient(loss(terms[1:], w.new([terms[1]]), b.replace(norm=p[None]), (1.0,))[0])
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_a_weight_of_the_token_does_nothing_to_a_divergence_at_its_prefix() -> None:
    """Why MiniLLM's ``w_t = pi / mu`` is left out of the exact part: after each prefix its mean is 1, so that it is only noise there."""
    w = enumerated.World("off-policy", seed=3)
    d = w.per_prefix(FullDivergence().generator, "teacher")[w.rows]
    p, ratio = w.whole(w.mu).exp()[w.seq], (w.at(w.pi()) - w.at(w.mu)).exp().detach()
    torch.testing.assert_close(w.gradient((p * ratio * d).sum()), w.gradient((p * d).sum()), rtol=1e-9, atol=1e-12)


def test_the_log_ratio_to_a_teacher_as_an_advantage_is_the_reverse_kl_per_token() -> None:
    w = enumerated.World(seed=4)
    b, p = w.batch(), w.whole(w.mu).exp()
    b = b.replace(adv=TokenKL()(b), norm=p[None])
    got = w.gradient(loss((L.ISGradient(reduce="sum"),), w.new(), b, (1.0,))[0])
    d = w.per_prefix(FullDivergence().generator, "teacher")[w.rows]
    torch.testing.assert_close(got, w.gradient((p[w.seq] * d).sum()), rtol=1e-9, atol=1e-12)


def test_earlier_tokens_may_count_more() -> None:
    b = ragged(6)
    a = rows(b, b.logp["teacher"] - b.logp["behav"])
    for got, signal in zip(rows(b, TokenKL(early=0.5)(b)), a, strict=True):
        whole = sum(map(abs, signal))
        want = [x * (1 + 0.5 * (1 - sum(map(abs, signal[:t])) / whole)) for t, x in enumerate(signal)]
        assert got == pytest.approx(want)


# -- terms that mark tokens --------------------------------------------------------------------------------------------


def marked(term: Term, ranks: int = 1, max_tokens: int = 1000) -> tuple[Tensor, Tensor]:
    """(marks, gradient by token) of one optimizer step over a batch of 200 tokens, however it is cut."""
    b = ragged(6, sizes=(8,) * 8)
    b = b.replace(adv=torch.randn(b.N, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3)
    b.logp["old"] = torch.randn(b.N, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    length = torch.bincount(b.seq)
    b = b.replace(
        length=length + 1,
        ids=torch.zeros(int((length + 1).sum()), dtype=torch.long),
        action=torch.arange(b.N) + b.seq + 1,
        cols={"row": torch.arange(b.S).double()},
    )
    marks, grad = torch.zeros(b.N, dtype=torch.float64), torch.zeros(b.N, dtype=torch.float64)
    for shard in optimizer_steps(b, (term,), epochs=1, count=1, ranks=ranks, max_tokens=max_tokens, seed=3)[0]:
        for micro in shard:
            new = New((micro.logp["old"] + 0.1).requires_grad_())
            value, _ = loss((term,), new, micro, (1.0,))
            where = torch.isin(b.seq, micro.cols["row"].long())
            grad[where] += torch.autograd.grad(value, new.logp)[0]
            marks[where] = micro.marks[term.name]
    cov = (b.adv - b.adv.mean()) * (b.logp["old"] - b.logp["old"].mean())
    return torch.stack([marks, cov, b.adv]), grad * b.N


def test_clip_cov_silences_a_drawn_share_of_covariant_tokens() -> None:
    (marks, cov, adv), grad = marked(L.ClipCov(share=0.05, low=0.5, high=2.0))
    chosen = marks == 1
    assert int(chosen.sum()) == int(0.05 * len(cov)) and bool(((cov > 0.5) & (cov < 2.0))[chosen].all())
    assert bool((grad[chosen] == 0).all())
    torch.testing.assert_close(grad[~chosen], -math.exp(0.1) * adv[~chosen])
    again, other = marked(L.ClipCov(share=0.05, low=0.5, high=2.0), ranks=3, max_tokens=24)
    torch.testing.assert_close(other, grad)  # however the batch is cut
    assert torch.equal(again[0], marks)
    assert float(marked(L.ClipCov(share=0.05, low=1e6, high=2e6))[0][0].sum()) == 0


def test_kl_cov_penalises_the_most_covariant_tokens() -> None:
    (marks, cov, adv), grad = marked(L.KLCov(share=0.05, beta=0.7))
    top = cov.argsort(descending=True)[: int(0.05 * len(cov))]
    assert sorted(marks.nonzero()[:, 0].tolist()) == sorted(top.tolist())
    torch.testing.assert_close(grad, -math.exp(0.1) * adv + 0.7 * marks)
    torch.testing.assert_close(marked(L.KLCov(share=0.05, beta=0.7), ranks=2, max_tokens=20)[1], grad)


def test_what_repeats_becomes_unlikely() -> None:
    """Tokens of every bigram that was there before, in rows of 5, 1 and 4 tokens; ``-log(1 - p)`` over all tokens of the batch."""
    tokens = [5, 6, 5, 6, 7, 5, 8, 8, 8, 8]
    seq = torch.tensor([0] * 5 + [1] + [2] * 4)
    b = Batch(
        seq=seq,
        group=torch.arange(3),
        source=torch.zeros(3, dtype=torch.long),
        reward=torch.zeros(3, dtype=torch.float64),
        ids=torch.tensor(tokens),
        length=torch.tensor([5, 1, 4]),
        action=torch.arange(10),
    )
    term = L.Unlikelihood(n=2)
    mark = term.mark(b, torch.Generator())
    assert mark.tolist() == [0, 0, 1, 1, 0, 0, 0, 1, 1, 1]
    logp = torch.linspace(-3, -0.1, 10, dtype=torch.float64).requires_grad_()
    b = b.replace(norm=normalise((term,), b), marks={term.name: mark})
    got, _ = loss((term,), New(logp), b, (1.0,))
    want = -(mark * (1 - logp.exp()).log()).sum() / 10
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(x, logp)[0] for x in (got, want)))
    certain = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(term(New(certain), b).sum(), certain)
    assert bool(g.isfinite().all()) and bool((g[mark == 1] > 0).all())


# -- methods that must coincide ----------------------------------------------------------------------------------------


def test_on_policy_methods_coincide() -> None:
    """One on-policy update with the same advantages: PPO-clip, CISPO, the importance-weighted gradient, DAPO's and GRPO's clip, DPPO, RPG
    without KL, and PMD (tau aside) have one gradient, token by token."""
    b = ragged(7, sizes=(4, 4, 4))
    b.logp["behav"] = b.logp["old"]
    b = b.replace(adv=GroupMean()(b))

    def gradient(term: Term) -> Tensor:
        none = {term.name: torch.zeros(b.N, dtype=torch.float64)}
        new = New(b.logp["old"].clone().requires_grad_())
        weighed = b.replace(norm=normalise((term,), b), marks=none)
        return torch.autograd.grad(loss((term,), new, weighed, (1.0,))[0], new.logp)[0]

    want = gradient(L.Reinforce(reduce="seq"))
    for term in (
        L.PPOClip(reduce="seq"),
        L.PPOClip(reduce="seq", eps_high=0.28, dual_clip=10.0),
        L.CISPO(reduce="seq"),
        L.ISGradient(reduce="seq"),
        L.CISPO(reduce="seq", against="old"),
        L.DPPO(reduce="seq"),
        L.RPG(reduce="seq", beta=0.0),
        L.GSPO(reduce="seq"),
        L.ClipCov(reduce="seq"),
    ):
        torch.testing.assert_close(gradient(term), want, msg=lambda m, t=term: f"{t}: {m}")
    # PMD is per response: its cost is divided by the length, and each of its tokens gets the same
    torch.testing.assert_close(
        gradient(L.PMD(tau=0.5, reduce="sum")), gradient(L.Reinforce(reduce="sum")) / b.seq_len()[b.seq]
    )
    torch.testing.assert_close(gradient(L.GMPO(reduce="seq")), want)


def test_k1_in_the_reward_is_the_regularised_policy_gradient() -> None:
    """RLOO with the KL in the reward: every token of a response gets R - beta KL minus the others' mean, as the paper has it."""
    b = ragged(8, sizes=(2, 2))
    k1 = [sum(x) for x in rows(b, b.logp["old"] - b.logp["ref"])]
    total = [float(b.reward[s]) - 0.05 * k1[s] for s in range(4)]
    b = with_advantages(b, RLOO(), (KLReward(),), (0.05,))
    first = [x[0] for x in rows(b, b.adv)]  # type: ignore[arg-type]
    assert first == pytest.approx([total[0] - total[1], total[1] - total[0], total[2] - total[3], total[3] - total[2]])


@pytest.mark.parametrize("log_u", [-30.0, -2.0, 0.0, 3.0, 30.0])
def test_rapos_estimator_and_its_gradient(log_u: float) -> None:
    """kF = v log v - v + 1 with v = 1/u; d kF / d log pi = -v log v; beyond the bound it goes on linearly and stays finite."""
    b = Batch(
        seq=torch.zeros(1, dtype=torch.long),
        group=torch.zeros(1, dtype=torch.long),
        source=torch.zeros(1, dtype=torch.long),
        reward=torch.zeros(1, dtype=torch.float64),
        logp={"ref": torch.tensor([-1.0], dtype=torch.float64)},
    )
    logp = torch.tensor([-1.0 + log_u], dtype=torch.float64, requires_grad=True)
    cost = KL(estimator="kF")(New(logp), b)
    slope = float(torch.autograd.grad(cost.sum(), logp)[0])
    v = math.exp(-log_u)
    if abs(log_u) < 20:
        assert float(cost) == pytest.approx(v * math.log(v) - v + 1) and slope == pytest.approx(-v * math.log(v))
    assert math.isfinite(float(cost)) and (slope < 0) == (log_u < 0)


def test_groups_of_equal_rewards_need_no_pass_and_change_nothing() -> None:
    """Where only advantages drive the loss, rows without one leave before the batch is cut; the gradient is that of the whole batch."""
    b = ragged(9, sizes=(3, 3, 3))
    b.reward[b.group == 1] = 1.0
    b = b.replace(adv=GroupMean()(b))
    length = torch.bincount(b.seq)
    b = b.replace(
        length=length + 1,
        ids=torch.zeros(int((length + 1).sum()), dtype=torch.long),
        action=torch.arange(b.N) + b.seq + 1,
        cols={"row": torch.arange(b.S).double()},
    )

    def run(objective: tuple[Term, ...]) -> tuple[Tensor, int]:
        grad, rows_seen = torch.zeros(b.N, dtype=torch.float64), 0
        for micro in optimizer_steps(b, objective, epochs=1, count=1, ranks=1, max_tokens=20, seed=0)[0][0]:
            new = New(micro.logp["old"].clone().requires_grad_())
            value, _ = loss(objective, new, micro, [1.0] * len(objective))
            grad[torch.isin(b.seq, micro.cols["row"].long())] += torch.autograd.grad(value, new.logp)[0]
            rows_seen += micro.S
        return grad, rows_seen

    for reduce in ("token", "seq", "sum", "prompt"):
        few, seen = run((L.PPOClip(reduce=reduce),))  # type: ignore[arg-type]
        assert seen == 6
        whole = (L.PPOClip(reduce=reduce),)  # type: ignore[arg-type]
        weighed = b.replace(norm=normalise(whole, b))
        new = New(b.logp["old"].clone().requires_grad_())
        torch.testing.assert_close(few, torch.autograd.grad(loss(whole, new, weighed, (1.0,))[0], new.logp)[0])
    assert run((L.PPOClip(), KL(estimator="k2")))[1] == 9  # a KL has a gradient everywhere
    b = b.replace(adv=torch.zeros_like(b.adv))
    assert run((L.PPOClip(),))[1] == 1
