"""The data that flows: parts of a batch, and metrics that merge."""

from __future__ import annotations

import pytest
import torch

from rlkit.errors import ConfigError
from rlkit.types import Batch, Prompt, Rollout, Stats


def test_metrics_do_not_depend_on_how_they_were_cut() -> None:
    def stats(values: list[float]) -> Stats:
        s = Stats()
        for v in values:
            s.add("mean", v, "mean", 2.0)
            s.add("sum", v, "sum")
            s.add("max", v, "max")
        return s

    whole, cut = stats([1.0, 2.0, 6.0]), stats([1.0]).merge(stats([2.0, 6.0]))
    assert whole.as_dict() == cut.as_dict() == {"mean": 3.0, "sum": 9.0, "max": 6.0}


def test_rows_of_a_batch_are_what_a_mask_would_keep() -> None:
    g = torch.Generator().manual_seed(0)
    # One of them without a sampled token.
    rollouts = [
        Rollout(
            Prompt(str(i), tuple(range(3, 4 + i)), ""),
            list(range(10, 11 + i % 4)),
            [i != 2] + [True] * (i % 4) if i % 4 else [i != 4],
            [-0.1 * i] * (i % 4 + 1),
            [0] * (i % 4 + 1),
            "stop",
            group=i // 2,
            reward=float(i),
        )
        for i in range(7)
    ]
    b = Batch.from_rollouts(rollouts)
    ids = torch.randint(9, (b.N, 2), generator=g)
    b = b.replace(norm=torch.rand(2, b.S, generator=g), dataset=tuple("abcdefg"), whole={"teacher": {"ids": ids}})
    assert int((b.seq == 4).sum()) == 0
    for _ in range(20):
        keep = torch.rand(b.S, generator=g) < 0.5
        part, tok, ids = b.rows(keep), keep[b.seq], keep[torch.repeat_interleave(torch.arange(b.S), b.length)]
        assert (
            torch.equal(part.seq, (keep.cumsum(0) - 1)[b.seq][tok])
            and torch.equal(part.logp["behav"], b.logp["behav"][tok])
            and torch.equal(part.norm, b.norm[:, keep])
            and torch.equal(part.whole["teacher"]["ids"], b.whole["teacher"]["ids"][tok])
            and part.dataset == tuple(name for name, kept in zip("abcdefg", keep.tolist(), strict=True) if kept)
        )
        assert (
            torch.equal(part.ids, b.ids[ids])
            and torch.equal(part.ids[part.action], b.ids[b.action[tok]])
            and torch.equal(part.length, b.length[keep])
        )


def test_single_rewards_are_read_by_their_names() -> None:
    sampled = [Rollout.given(Prompt(f"p{i}", (3,), ""), [4], parts={"math": float(i), "format": 0.5}) for i in range(2)]
    stored = Rollout.given(Prompt("d", (3,), ""), [4], source="dataset")
    b = Batch.from_rollouts([*sampled, stored], parts=["math"])
    assert b.cols["part:math"].tolist()[:2] == [0.0, 1.0] and bool(b.cols["part:math"][2].isnan())
    with pytest.raises(ConfigError, match=r"the reward 'right' is read on its own.*prompt p0 are format, math"):
        Batch.from_rollouts(sampled, parts=["right"])
