"""Shapes that annotations and names promise are checked in this suite, also in what a subclass overrides."""

from __future__ import annotations

import pytest
import torch

from rlkit.objective import losses
from rlkit.types import Batch, New


def batch() -> Batch:
    two = torch.zeros(2, dtype=torch.long)
    return Batch(seq=torch.tensor([0, 0, 1]), group=two, source=two, reward=torch.zeros(2), adv=torch.ones(3))


def test_what_has_its_shape_passes() -> None:
    b = batch()
    assert b.seq_sum(torch.ones(3)).tolist() == [2, 1]
    assert losses.NLL()(New(torch.zeros(3)), b).shape == (3,)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda b: b.seq_sum(torch.zeros(4)), r"seq_sum: x_N is .*\[4\].*'N': 3"),
        (lambda b: b.replace(adv=torch.zeros(2)), r"__init__: adv is .*\[2\]"),
        (lambda b: b.replace(logp={"old": torch.zeros(3, 1)}), r"__init__: logp is .*\[3, 1\]"),
        (lambda b: b.rows(torch.ones(3, dtype=torch.bool)), r"rows: keep is .*\[3\].*'S': 2"),
        (lambda b: losses.NLL()(New(torch.zeros(2)), b), r"NLL.__call__: b.seq is .*\[3\].*'N': 2"),
        (lambda b: losses.corrected(torch.zeros(2), b), r"corrected: cost_N is .*\[2\]"),
    ],
)
def test_what_has_another_is_named(wrong: object, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        wrong(batch())  # type: ignore[operator]
