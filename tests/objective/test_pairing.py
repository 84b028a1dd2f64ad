"""Pairs of a step's own responses."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from rlkit.errors import ConfigError
from rlkit.objective.pairing import BestWorst, Pairing, with_pairs
from rlkit.types import Batch


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
    assert BestWorst()(b).tolist() == [[1, 2]]
    b = batch([0.2, 1.0, 0.0, 0.6, 0.5], [0, 0, 0, 1, 1])
    assert BestWorst()(b).tolist() == [[1, 2], [3, 4]] and BestWorst(margin=0.2)(b).tolist() == [[1, 2]]
    assert BestWorst(margin=5)(b).shape == (0, 2)


def test_they_stand_beside_the_pairs_of_the_data_and_are_of_the_policys_rows() -> None:
    b = batch([1.0, 0.0, 1.0, 0.0, 9.0], [5, 5, 0, 0, 0], [3, 4, 0, 0, 2], torch.tensor([[0, 1]]))
    assert with_pairs(b, BestWorst()).pairs.tolist() == [[0, 1], [2, 3]]
    assert with_pairs(b, None) is b
    only = b.rows(b.source != 0)
    assert with_pairs(only, BestWorst()) is only


@dataclass(frozen=True)
class Across(Pairing):
    def __call__(self, b: Batch) -> Tensor:
        return torch.tensor([[0, b.S - 1]])


def test_a_rule_that_pairs_different_prompts_is_refused() -> None:
    with pytest.raises(ConfigError, match="Across compares responses to different prompts"):
        with_pairs(batch([1.0, 0.0], [0, 1]), Across())
