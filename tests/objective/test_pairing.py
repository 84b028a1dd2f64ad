"""Pairs of a step's own responses."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from rlkit.errors import ConfigError
from rlkit.objective.pairing import BestWorst, Everybody, Pairing, RejectionSampled, with_pairs
from rlkit.types import Batch

G = torch.Generator()


def batch(reward: list[float], group: list[int], source: list[int] | None = None, pairs: Tensor | None = None) -> Batch:
    S = len(reward)
    return Batch(
        seq=torch.arange(S),
        group=torch.tensor(group),
        source=torch.tensor(source or [0] * S),
        reward=torch.tensor(reward),
        logp={"behav": torch.zeros(S)},
        pairs=pairs,
    )


def test_the_best_against_the_worst_of_each_prompt_whose_rewards_differ() -> None:
    b = batch([0.2, 1.0, 0.0, 1.0, 0.5, 0.5, 0.3], [0, 0, 0, 0, 1, 1, 2])
    assert BestWorst()(b, G).tolist() == [[1, 2]]
    b = batch([0.2, 1.0, 0.0, 0.6, 0.5], [0, 0, 0, 1, 1])
    assert BestWorst()(b, G).tolist() == [[1, 2], [3, 4]] and BestWorst(margin=0.2)(b, G).tolist() == [[1, 2]]
    assert BestWorst(margin=5)(b, G).shape == (0, 2)


def test_they_stand_beside_the_pairs_of_the_data_and_are_of_the_policys_rows() -> None:
    b = batch([1.0, 0.0, 1.0, 0.0, 9.0], [5, 5, 0, 0, 0], [3, 4, 0, 0, 2], torch.tensor([[0, 1]]))
    assert with_pairs(b, BestWorst(), 0).pairs.tolist() == [[0, 1], [2, 3]]
    assert with_pairs(b, None, 0) is b
    only = b.rows(b.source != 0)
    assert with_pairs(only, BestWorst(), 0) is only


@dataclass(frozen=True)
class Across(Pairing):
    def __call__(self, b: Batch, generator: torch.Generator) -> Tensor:
        return torch.tensor([[0, b.S - 1]])


def test_a_rule_that_pairs_different_prompts_is_refused() -> None:
    with pytest.raises(ConfigError, match="Across compares responses to different prompts"):
        with_pairs(batch([1.0, 0.0], [0, 1]), Across(), 0)


def test_the_best_must_be_known_to_be_good() -> None:
    b = batch([0.2, 0.4, 0.0, 0.9], [0, 0, 1, 1])
    assert BestWorst(least=0.5)(b, G).tolist() == [[3, 2]] and len(BestWorst(least=0.4)(b, G)) == 2


def test_everybody_against_all_that_are_worse() -> None:
    b = batch([0.0, 1.0, 1.0, 0.5, 0.0, 1.0], [0, 0, 0, 0, 1, 2])
    assert Everybody()(b, G).tolist() == [[1, 0], [1, 3], [2, 0], [2, 3], [3, 0]]
    assert Everybody(margin=0.5)(b, G).tolist() == [[1, 0], [2, 0]]


def test_rejection_sampling_gives_what_the_optimal_policy_would() -> None:
    """Of many responses of the reference, those that are accepted are distributed as ref exp(reward / eta)."""
    ref, reward, eta = torch.tensor([0.4, 0.3, 0.1, 0.2]), torch.tensor([0.0, 0.3, 1.0, 0.6]), 0.5
    g = torch.Generator().manual_seed(0)
    drawn = ref.multinomial(8000, replacement=True, generator=g)
    want = (ref.log() + reward / eta).softmax(0)
    kept = drawn[RejectionSampled(eta=eta, keep=2000).accepted(reward[drawn], g)]
    share = torch.bincount(kept, minlength=4) / 2000
    assert float((share - want).abs().sum() / 2) < 0.03 < 0.1 < float((ref - want).abs().sum() / 2)
    assert RejectionSampled(keep=2).accepted(torch.tensor([1.0, 1.0, 1.0]), g) == [0, 1]
    assert sorted(RejectionSampled(keep=9).accepted(torch.tensor([1.0, -3.0]), g)) == [0, 1]


def test_accepted_responses_are_compared_two_and_two() -> None:
    b = batch([0.0, 1.0, 0.4, 0.8, 0.5, 0.5], [0, 0, 0, 0, 1, 1])
    rule = RejectionSampled(eta=100.0, keep=4)  # accepts nearly all
    seen = set()
    for seed in range(30):
        pairs = with_pairs(b, rule, seed).pairs
        assert pairs is not None and pairs.shape == (2, 2) and len(pairs.unique()) == 4
        assert bool((b.reward[pairs[:, 0]] > b.reward[pairs[:, 1]]).all()) and bool((pairs < 4).all())
        seen.add(str(pairs.sort(0).values.tolist()))
        assert torch.equal(pairs, with_pairs(b, rule, seed).pairs)  # the step's seed says which
    assert len(seen) > 1


@pytest.mark.parametrize("margin", [0.0, 0.4])
def test_everybodys_pairs_are_those_of_a_table_of_all_responses(margin: float) -> None:
    group, reward = torch.randint(7, (60,)), torch.randint(5, (60,)) / 4
    b = batch(reward.tolist(), group.tolist())
    table = (group[:, None] == group[None]) & (reward[:, None] - reward[None] > margin)
    assert torch.equal(Everybody(margin=margin)(b, G), table.nonzero())
    assert Everybody()(batch([1.0, 1.0], [0, 0]), G).shape == (0, 2)
