"""The data that flows: parts of a batch, and metrics that merge."""

from __future__ import annotations

import math
import pickle
import random
from typing import Any

import pytest
import torch

from rlkit.errors import ConfigError
from rlkit.types import RUNS, Batch, Prompt, Rollout, Stats, all_finite, repeat


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


def mixed(count: int, seed: int) -> list[Rollout]:
    """Groups of three in which tokens of tools stand, some responses are empty of samples, and some are stored or of several turns."""
    r, out = random.Random(seed), list[Rollout]()
    for s in range(count):
        n = r.randrange(1, 9)
        if s % 3 == 0:
            prompt = Prompt(str(s // 3), tuple(r.choices(range(99), k=r.randrange(0, 5))), "")
        sampled, stored = [r.random() < 0.7 for _ in range(n)] if s % 2 else [s % 4 > 0] * n, r.random() < 0.3
        out.append(
            Rollout(
                prompt,
                r.choices(range(200_000), k=n),
                sampled,
                [-r.random() for _ in range(n)],
                [r.randrange(2) for _ in range(n)] if s % 5 == 0 else [4] * n,
                "stop",
                group=s // 3,
                reward=r.random(),
                ref_logp=[-r.random() for _ in range(n)] if stored else None,
                turn=sorted(r.choices(range(-1, 3), k=n)) if s % 7 == 0 else None,
                earned=[r.random() for _ in range(n)] if s % 7 == 1 else None,
            )
        )
    return out


def slow_packing(rollouts: list[Rollout]) -> dict[str, torch.Tensor]:
    """What a batch of rollouts holds, a token at a time."""
    found: dict[str, list[Any]] = {k: [] for k in ("ids", "length", "action", "seq", "behav", "ref", "earned", "turn")}
    for s, r in enumerate(rollouts):
        start = len(found["ids"]) + len(r.prompt.token_ids)
        found["ids"] += [*r.prompt.token_ids, *r.tokens]
        found["length"].append(len(r.prompt.token_ids) + len(r.tokens))
        for t in (t for t, flag in enumerate(r.sampled) if flag):
            found["action"].append(start + t)
            found["seq"].append(s)
            found["behav"].append(r.logp[t])
            found["ref"].append(math.nan if r.ref_logp is None else r.ref_logp[t])
            found["earned"].append(0.0 if r.earned is None else r.earned[t])
            found["turn"].append(0 if r.turn is None else r.turn[t])
    real = ("behav", "ref", "earned")
    return {k: torch.tensor(v, dtype=torch.float32 if k in real else torch.long) for k, v in found.items()}


@pytest.mark.parametrize("seed", range(3))
def test_packing_is_what_a_loop_over_tokens_makes(seed: int) -> None:
    rollouts = mixed(40, seed)
    b, slow = Batch.from_rollouts(rollouts), slow_packing(rollouts)
    assert torch.equal(b.logp["ref"].nan_to_num(9), slow["ref"].nan_to_num(9))
    for name, x in {"behav": b.logp["behav"], **{k: getattr(b, k) for k in slow if k not in ("behav", "ref")}}.items():
        assert x.dtype == slow[name].dtype and torch.equal(x, slow[name]), name


@pytest.mark.parametrize(("which", "value"), [("logp", -math.inf), ("ref_logp", math.nan)])
def test_a_log_prob_that_is_not_finite_is_named_and_one_of_a_tool_is_not_looked_at(which: str, value: float) -> None:
    rollouts = [
        Rollout(Prompt(p, (1, 2), ""), [7, 8, 9], [True, False, True], [-1.0] * 3, [0] * 3, "stop", ref_logp=[-1.0] * 3)
        for p in "ab"
    ]
    getattr(rollouts[1], which)[1] = value
    assert Batch.from_rollouts(rollouts).N == 4
    getattr(rollouts[1], which)[2] = value
    with pytest.raises(
        ConfigError, match=r"rollout 1 \(prompt b\): .*" + ("token 2 .id 9. is -inf" if which == "logp" else "stored")
    ):
        Batch.from_rollouts(rollouts)


@pytest.mark.parametrize("count", [5, 4 * RUNS])
def test_all_parts_of_a_batch_are_what_each_would_be_alone(count: int) -> None:
    """Few runs of neighbours are taken as slices, many by index."""
    b = Batch.from_rollouts(mixed(6 * RUNS, 1))
    pairs = torch.randint(b.S // 3, (40, 1)) * 3 + torch.randint(3, (40, 2))
    b = b.replace(norm=torch.rand(2, b.S), adv=torch.rand(b.N), marks={"m": torch.rand(b.N)}, pairs=pairs)
    label = torch.arange(b.S) * count // b.S if count == 5 else torch.randint(3, (b.S,))
    parts = [(label == k).nonzero()[:, 0] for k in range(int(label.max()) + 1)]
    for kept, part in zip(parts, b.parts(parts), strict=True):
        keep = torch.zeros(b.S, dtype=torch.bool)
        keep[kept] = True
        tok, of = keep[b.seq], torch.repeat_interleave(keep, b.length)
        assert torch.equal(part.seq, (keep.cumsum(0) - 1)[b.seq][tok]) and torch.equal(part.ids, b.ids[of])
        assert torch.equal(part.action, (of.cumsum(0) - 1)[b.action[tok]]) and torch.equal(part.adv, b.adv[tok])
        assert torch.equal(part.pairs, (keep.cumsum(0) - 1)[b.pairs[keep[b.pairs].all(1)]])
        assert torch.equal(part.norm, b.norm[:, keep]) and torch.equal(part.marks["m"], b.marks["m"][tok])


def test_batches_and_rollouts_travel_as_they_are() -> None:
    rollouts = mixed(30, 2)
    for r, back in zip(rollouts, pickle.loads(pickle.dumps(rollouts)), strict=True):
        assert r == back and [type(x) for x in r.sampled + r.tokens] == [type(x) for x in back.sampled + back.tokens]
    strange = Rollout.given(Prompt("p", (1,), ""), [1, 2**40], parts={"a": 1.0}, reward=0.0)
    assert pickle.loads(pickle.dumps(strange)) == strange
    b = Batch.from_rollouts(rollouts)
    b = b.replace(whole={"teacher": {"hidden": torch.randn(b.N, 3).bfloat16()}}, episode=None)
    part = b.rows(b.group == 2)
    frozen: list[Any] = []
    back = pickle.loads(pickle.dumps(part, 5, buffer_callback=frozen.append), buffers=[bytes(x) for x in frozen])
    assert back.ids.data_ptr() != part.ids.data_ptr() and torch.equal(back.ids, part.ids) and back.prompt == part.prompt
    assert back.whole["teacher"]["hidden"].dtype == torch.bfloat16
    assert torch.equal(back.whole["teacher"]["hidden"], part.whole["teacher"]["hidden"])
    assert len(pickle.dumps(part)) < len(pickle.dumps(b)) / 3, "a view takes only its own along"


def test_numbers_are_repeated_and_judged_as_torch_does() -> None:
    x, count = torch.randn(50), torch.randint(4, (50,))
    assert torch.equal(repeat(x, count), torch.repeat_interleave(x, count))
    large = torch.full((1000,), torch.finfo(torch.float32).max)
    assert all_finite(large) and all_finite(torch.empty(0))
    for bad in (math.inf, -math.inf, math.nan):
        large[7] = bad
        assert not all_finite(large)
    large[8] = math.inf
    large[7] = -math.inf
    assert not all_finite(large)
