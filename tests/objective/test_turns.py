"""Turns and their rewards, in a world of two turns whose every episode is listed: expected gradients against those of the expected reward."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from rlkit.errors import ConfigError
from rlkit.objective import Term, loss, normalise
from rlkit.objective.advantages import GAE, RLOO, Advantage, GroupMean, GroupNorm, Plain, ReinforcePlusPlus
from rlkit.objective.losses import GSPO, PPOClip, Reinforce
from rlkit.objective.penalties import KLReward, with_advantages
from rlkit.objective.turns import PerTurn, TurnGAE
from rlkit.types import Batch, New

EPISODES = list(itertools.product((0, 1), repeat=3))  # two tokens in the first turn, one in the second
TURN = torch.tensor([0, 0, 1])


class World:
    """The policy of each token given those before it; what the environment says between the turns follows from the first."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(4)
        self.logits = torch.randn(7, 2, generator=g, dtype=torch.float64).requires_grad_()
        self.first = torch.randn(2, 2, generator=g, dtype=torch.float64)  # reward of turn 0
        self.second = torch.randn(2, 2, 2, generator=g, dtype=torch.float64)

    def logp(self) -> Tensor:
        """Of every token of every episode, ``[8, 3]``."""
        table = self.logits.log_softmax(-1)
        return torch.stack(
            [torch.stack([table[0, a], table[1 + a, b], table[3 + 2 * a + b, c]]) for a, b, c in EPISODES]
        )

    def rewards(self) -> Tensor:
        return torch.stack([torch.stack([self.first[a, b], self.second[a, b, c]]) for a, b, c in EPISODES])

    def gradient(self, x: Tensor) -> Tensor:
        return torch.autograd.grad(x, self.logits)[0]

    def batch(self, groups: list[tuple[int, ...]], value: Tensor | None = None) -> tuple[Batch, New]:
        """Groups of episodes, each weighted by its probability; turn 0 has earned its reward, turn 1's is what is left."""
        logp, r = self.logp(), self.rewards()
        rows = torch.tensor([e for group in groups for e in group])
        n = len(groups[0])
        chance = logp.detach().sum(1).exp()[torch.tensor(groups)].prod(1)
        earned = torch.zeros(len(rows), 3, dtype=torch.float64)
        earned[:, 1] = r[rows, 0]
        b = Batch(
            seq=torch.arange(len(rows)).repeat_interleave(3),
            group=torch.arange(len(groups)).repeat_interleave(n),
            source=torch.zeros(len(rows), dtype=torch.long),
            reward=r[rows].sum(1),
            logp={"behav": logp.detach()[rows].flatten(), "old": logp.detach()[rows].flatten()},
            earned=earned.flatten(),
            turn=TURN.repeat(len(rows)),
            value=None if value is None else value[rows].flatten(),
        )
        return b.replace(norm=(chance.repeat_interleave(n) / n)[None]), New(logp[rows].flatten())

    def expected(self, advantage: Advantage, groups: list[tuple[int, ...]], value: Tensor | None = None) -> Tensor:
        """The gradient that REINFORCE with this advantage has on average."""
        b, new = self.batch(groups, value)
        b = with_advantages(b, advantage, (), ())
        return -self.gradient(loss((Reinforce(reduce="sum"),), new, b, (1.0,))[0])


PAIRS = list(itertools.product(range(8), repeat=2))


@pytest.mark.parametrize(
    "advantage", [GroupMean(), PerTurn(of=GroupMean()), PerTurn(of=RLOO()), RLOO(), PerTurn(of=Plain()), Plain()]
)
def test_the_expected_gradient_is_that_of_the_expected_reward(advantage: Any) -> None:
    w = World()
    true = w.gradient((w.logp().sum(1).exp() * w.rewards().sum(1)).sum())
    of = advantage.of if isinstance(advantage, PerTurn) else advantage
    share = 0.5 if isinstance(of, GroupMean) else 1.0  # the mean has the response itself in it: (n - 1) / n
    torch.testing.assert_close(w.expected(advantage, PAIRS), share * true)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_a_discount_counts_turns(gamma: float) -> None:
    w = World()
    table, r = w.logp(), w.rewards()
    first, second = table[:, :2].sum(1).exp(), table[:, 2].exp()
    to_go = torch.stack([sum((second.detach() * r[:, 1])[[e // 2 * 2, e // 2 * 2 + 1]]) for e in range(8)])  # type: ignore[arg-type]
    value = (first * second.detach() * (r[:, 0] + gamma * to_go)).sum() + (first.detach() * second * r[:, 1]).sum()
    torch.testing.assert_close(w.expected(PerTurn(of=RLOO(), gamma=gamma), PAIRS), w.gradient(value))


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_gae_over_turns_with_the_true_values(lam: float) -> None:
    w = World()
    chance, r = w.logp().detach().exp(), w.rewards()
    second = torch.stack([sum((chance[:, 2] * r[:, 1])[[e // 2 * 2, e // 2 * 2 + 1]]) for e in range(8)])  # type: ignore[arg-type]
    start = (chance.prod(1) * r.sum(1)).sum()
    value = torch.stack([start.expand(8), torch.full((8,), 123.0), second], 1)  # within a turn nobody asks for it
    true = w.gradient((w.logp().sum(1).exp() * r.sum(1)).sum())
    single = [(e,) for e in range(8)]
    torch.testing.assert_close(w.expected(TurnGAE(lam=lam, whiten=False), single, value), true)
    b, _ = w.batch(single, value)
    found = TurnGAE(lam=1.0, whiten=False)(b)
    assert found.returns is not None
    torch.testing.assert_close(found.returns.view(8, 3), torch.stack([r.sum(1), r.sum(1), r[:, 1]], 1))


def episodes(value: bool = False) -> tuple[Batch, Batch]:
    """Three episodes of 2, 2 and 1 turns: as one sequence each, and cut between their turns where the second begins."""
    g = torch.Generator().manual_seed(1)
    N, sizes = 12, [5, 4, 3]
    turn = torch.tensor([0, 0, 0, 1, 1, 0, 1, 1, 1, 0, 0, 0])
    earned = torch.zeros(N)
    earned[[2, 5]] = torch.tensor([0.5, -1.0])

    def draw() -> Tensor:
        return torch.randn(N, generator=g)

    whole = Batch(
        seq=torch.repeat_interleave(torch.arange(3), torch.tensor(sizes)),
        group=torch.zeros(3, dtype=torch.long),
        source=torch.zeros(3, dtype=torch.long),
        reward=torch.tensor([1.5, 2.0, 0.25]),
        logp={k: draw() for k in ("behav", "old", "ref")},
        earned=earned,
        turn=turn,
        value=draw() if value else None,
        prompt=("p",) * 3,
    )
    rows = torch.tensor([0, 0, 1, 1, 2])
    cut = whole.replace(
        seq=torch.repeat_interleave(torch.arange(5), torch.tensor([3, 2, 1, 3, 3])),
        group=torch.zeros(5, dtype=torch.long),
        source=torch.zeros(5, dtype=torch.long),
        reward=whole.reward[rows],
        episode=torch.tensor([4, 4, 7, 7, 9]),  # only equal or not counts
        prompt=("p",) * 5,
    )
    return whole, cut


def test_group_norm_per_turn_by_hand() -> None:
    whole, _ = episodes()
    found = PerTurn(of=GroupNorm(eps=0.0))(whole)
    # turn 0: returns 1.5, 2.0, 0.25, mean 1.25, std sqrt((0.0625 + 0.5625 + 1) / 2); turn 1: 1.0 and 3.0, mean 2, std sqrt(2)
    std = (1.625 / 2) ** 0.5
    first, second = [0.25 / std, 0.75 / std, -1.0 / std], [-(0.5**0.5), 0.5**0.5]
    want = [*[first[0]] * 3, *[second[0]] * 2, first[1], *[second[1]] * 3, *[first[2]] * 3]
    torch.testing.assert_close(found, torch.tensor(want))
    assert bool((PerTurn(of=GroupNorm())(whole.rows(torch.tensor([True, False, True])))[3:5] == 0).all()), (
        "nothing to compare with"
    )


@pytest.mark.parametrize(
    "advantage",
    [GroupMean(), GroupNorm(), RLOO(), ReinforcePlusPlus(baseline="group"), GAE(), TurnGAE(), PerTurn(of=GroupNorm())],
)
@pytest.mark.parametrize("reduce", ["token", "seq", "sum", "prompt"])
def test_how_an_episode_is_cut_into_rows_changes_nothing(advantage: Any, reduce: Any) -> None:
    term: Term = PPOClip(reduce=reduce)
    results = []
    for b in episodes(value=True):
        b = with_advantages(b, advantage, (KLReward(),), (0.3,))
        b = b.replace(norm=normalise((term,), b))
        logp = (b.logp["old"] + 0.1).requires_grad_()
        value, _ = loss((term,), New(logp), b, (1.0,))
        assert b.adv is not None and b.token_reward is not None
        results.append((b.adv, b.token_reward, value, torch.autograd.grad(value, logp)[0]))
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two)


def test_a_cost_of_whole_sequences_weighs_an_episode_by_its_tokens() -> None:
    _, cut = episodes()
    b = with_advantages(cut, GroupMean(), (), ())
    term = GSPO(reduce="seq")
    b = b.replace(norm=normalise((term,), b))
    assert b.norm is not None
    assert (b.norm[0] * b.seq_len()).tolist() == pytest.approx([3 / 15, 2 / 15, 1 / 12, 3 / 12, 1 / 3])


@pytest.mark.parametrize("of", [GroupMean(), GroupNorm(), RLOO(), Plain(), ReinforcePlusPlus()])
def test_where_every_response_is_one_turn_a_turn_is_the_response(of: Any) -> None:
    whole, _ = episodes()
    plain = whole.replace(turn=None, earned=None)
    for penalties in ((), (KLReward(),)):
        b = with_advantages(plain, of, penalties, (0.3,) * len(penalties))
        again = with_advantages(plain, PerTurn(of=of), penalties, (0.3,) * len(penalties))
        torch.testing.assert_close(
            again.adv, b.adv, rtol=0 if not penalties else 1e-6, atol=0 if not penalties else 1e-6
        )


def test_turns_with_values_have_an_advantage_of_their_own() -> None:
    with pytest.raises(
        ConfigError,
        match=r"PerTurn compares the turns of a group, but GAE reads values\. Use advantage: \{type: TurnGAE\}",
    ):
        PerTurn(of=GAE())
