"""However rows are split over optimizer steps, ranks and micro-batches, gradients add up to those of the whole; nothing is written to."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from rlkit.learner.plan import cut, minibatches, optimizer_steps, pack, take
from rlkit.objective import Term, loss, normalise
from rlkit.objective.divergences import KL
from rlkit.objective.losses import NLL, REBEL, ClipCov, PPOClip, Reinforce
from rlkit.objective.preference import DPO
from rlkit.types import Batch, New, Prompt, Rollout

pytestmark = pytest.mark.slow

V = 7
GROUPS = {  # for each number of rows, which rows share a prompt
    n: sorted({tuple(sorted(g)) for g in itertools.product(range(n), repeat=n) if set(g) == set(range(max(g) + 1))})
    for n in range(1, 6)
}


def rows(group: tuple[int, ...]) -> Batch:
    draw = torch.Generator().manual_seed(len(group))
    rollouts = []
    for s, g in enumerate(group):
        tokens = torch.randint(V, (1 + (3 * s) % 5,), generator=draw).tolist()
        prompt = Prompt(f"p{g}", tuple(range(g % 3 + 1)), "")
        rollouts.append(
            Rollout(
                prompt, tokens, [True] * len(tokens), [-1.9] * len(tokens), [0] * len(tokens), "stop", group=g, reward=s
            )
        )
    b = Batch.from_rollouts(rollouts).map(lambda t: t.double() if t.is_floating_point() else t)
    behav = b.logp["behav"]
    noise = torch.randn(2, b.N, generator=draw, dtype=torch.float64) * 0.1
    adv = torch.randn(b.S, generator=draw, dtype=torch.float64)[b.seq]
    return b.with_logp(old=behav + noise[0], ref=behav + noise[1]).replace(adv=adv)


def new(b: Batch, logits: Tensor) -> New:
    """A model whose distribution depends on the token before."""
    return New(logits.log_softmax(-1)[b.ids[b.action - 1] % V, b.ids[b.action]])


def gradient(micros: Iterator[Batch], objective: tuple[Term, ...], coefs: tuple[float, ...]) -> Tensor:
    logits = torch.linspace(-1, 1, V * V, dtype=torch.float64).view(V, V).sin().requires_grad_()
    for m in micros:
        loss(objective, new(m, logits), m, coefs)[0].backward()
    return torch.zeros_like(logits) if logits.grad is None else logits.grad


def test_a_row_alone_on_two_ranks_keeps_its_gradient() -> None:
    [[[one], [other]]] = optimizer_steps(rows((0,)), (Reinforce(),), epochs=1, count=1, ranks=2, max_tokens=99, seed=0)
    assert [one.idle, other.idle] == [False, True]
    assert one.norm.sum() > 0 and other.norm.sum() == 0


@pytest.mark.parametrize("n", range(1, 6))
@pytest.mark.parametrize("packed", [False, True])
def test_every_split_has_the_gradient_of_the_whole(n: int, packed: bool) -> None:
    objective = (PPOClip(reduce="seq"), KL(estimator="k2", reduce="prompt"))
    alone = (Reinforce(reduce="token"),)  # lives from the advantage: rows without one take no pass
    known: dict[tuple[object, ...], Tensor] = {}
    for group, ranks, (epochs, count), max_tokens in itertools.product(
        GROUPS[n], (1, 2, 3), ((1, 1), (2, 2)), (9,) if packed else (1, 9, 99)
    ):
        b = rows(group)
        for terms, coefs in ((objective, (1.0, 0.3)), (alone, (0.7,))):
            steps = optimizer_steps(
                b, terms, epochs=epochs, count=count, ranks=ranks, max_tokens=max_tokens, seed=n, packed=packed
            )
            for shards, index in zip(steps, minibatches(b, epochs, count, seed=n), strict=True):
                assert len({len(micros) for micros in shards}) == 1, "every rank runs equally many collectives"
                real = [m for micros in shards for m in micros if not m.idle]
                assert sorted(r for m in real for r in m.reward.tolist()) == b.reward[index].tolist()
                key = (group, terms, tuple(index.tolist()))
                if key not in known:
                    part = take(b, index.tolist())
                    known[key] = gradient(iter([part.replace(norm=normalise(terms, part))]), terms, coefs)
                    assert known[key].norm() > 1e-3
                got = gradient((m for micros in shards for m in micros), terms, coefs)
                torch.testing.assert_close(got, known[key], rtol=1e-12, atol=1e-14)


SIZES = ((3, 9), (1, 2), (7, 4), (2, 2))  # tokens of the better and of the worse response of each pair


def pairs_and_others() -> Batch:
    """Offline pairs, a demonstration, and a group of sampled responses that are compared with each other, one of them in two pairs."""
    rollouts = []
    for g, sizes in enumerate(SIZES):
        prompt = Prompt(f"p{g}", tuple(range(2 + g)), "")
        for source, n in zip(("chosen", "rejected"), sizes, strict=True):
            rollouts.append(Rollout.given(prompt, [(3 * k + n) % V for k in range(n)], source=source, group=g))
    rollouts.append(Rollout.given(Prompt("d", (1, 2), ""), [4, 5, 6], source="dataset", group=4))
    for k in range(3):
        rollouts.append(Rollout.given(Prompt("s", (3,), ""), [1, k, 2], group=5, reward=float(k)))
    b = Batch.from_rollouts(rollouts).map(lambda t: t.double() if t.is_floating_point() else t)
    ref = torch.linspace(-3, -1, b.N, dtype=torch.float64)
    return b.with_logp(ref=ref).replace(pairs=torch.cat([b.pairs, torch.tensor([[11, 9], [11, 10]])]))


@pytest.mark.parametrize("packed", [False, True])
def test_pairs_stay_whole_and_have_the_gradient_of_the_whole_batch_however_it_is_cut(packed: bool) -> None:
    terms = (DPO(beta=0.7), NLL(on="chosen", reduce="seq"), NLL(on="dataset"), DPO(on="policy"), REBEL())
    coefs = (1.0, 0.2, 0.5, 0.3, 0.1)
    b = pairs_and_others()
    for count, ranks, max_tokens in itertools.product((1, 2), (1, 2, 3), (1, 14, 30, 99)):
        steps = optimizer_steps(
            b, terms, epochs=1, count=count, ranks=ranks, max_tokens=max_tokens, seed=0, packed=packed
        )
        for shards, index in zip(steps, minibatches(b, 1, count, seed=0), strict=True):
            whole = take(b, index.tolist())
            want = gradient(iter([whole.replace(norm=normalise(terms, whole))]), terms, coefs)
            micros = [m for shard in shards for m in shard]
            assert sum(m.P for m in micros) == whole.P and len({len(shard) for shard in shards}) == 1
            assert want.norm() > 1e-3
            torch.testing.assert_close(gradient(iter(micros), terms, coefs), want, rtol=1e-12, atol=1e-14)
    [[micros]] = optimizer_steps(b, terms, epochs=1, count=1, ranks=1, max_tokens=1, seed=0, packed=packed)
    assert sorted(m.S for m in micros) == [1, 2, 2, 2, 2, 3], "what is compared is together, and nothing else"


def snapshot(b: Batch) -> dict[str, object]:
    def copied(x: object) -> object:
        return (
            x.tolist() if isinstance(x, Tensor) else {k: copied(v) for k, v in x.items()} if isinstance(x, dict) else x
        )

    return {f.name: copied(getattr(b, f.name)) for f in dataclasses.fields(b)}


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_planning_writes_nothing_into_its_batch(ranks: int) -> None:
    b = rows((0, 0, 1))
    before = snapshot(b)
    steps = optimizer_steps(b, (ClipCov(),), epochs=1, count=1, ranks=ranks, max_tokens=99, seed=0)
    cut(b, ranks, 99)
    assert snapshot(b) == before
    made = [m for shards in steps for micros in shards for m in micros]
    assert len({id(m) for m in [b, *made]}) == 1 + len(made), "no two micro-batches are one object"


def test_value_objects_are_frozen_and_parts_are_new_objects() -> None:
    b = rows((0, 1))
    for thing, name in ((b, "norm"), (New(b.logp["behav"]), "logp")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, name, None)
    everything = b.rows(torch.ones(b.S, dtype=torch.bool))
    assert everything is not b and everything.logp is not b.logp
    assert everything.prompt == ("p0", "p1") and b.rows(torch.tensor([False, True])).prompt == ("p1",)
    assert snapshot(everything) == snapshot(b)


def test_cutting_keeps_groups_whole_and_respects_the_token_limit() -> None:
    g = torch.Generator().manual_seed(0)
    length = torch.randint(1, 50, (40,), generator=g)
    for ranks in (1, 2, 3):
        plan = pack(length, ranks, max_tokens=100)
        assert sorted(r for rank in plan for micro in rank for r in micro) == list(range(40))
        assert len({len(rank) for rank in plan}) == 1
        assert all(int(length[m].max()) * len(m) <= 100 for rank in plan for m in rank if m)
    b = Batch(
        seq=torch.arange(12),
        group=torch.arange(12) // 3,
        source=torch.zeros(12, dtype=torch.long),
        reward=torch.zeros(12),
    )
    parts = minibatches(b, epochs=2, count=2, seed=1)
    assert len(parts) == 4 and sorted(torch.cat(parts[:2]).tolist()) == list(range(12))
    assert all(set(b.group[p].tolist()).isdisjoint(b.group[q].tolist()) for p, q in (parts[:2], parts[2:]))
    assert len(minibatches(b, 1, 5, 0)) == 4  # groups are never split


def test_rows_of_a_group_with_other_prompts_do_not_count_as_sharing_one() -> None:
    def row(begin: int, episode: int) -> Rollout:
        prompt = Prompt("a", tuple(range(begin, begin + 10)), "")
        return Rollout(prompt, [4, 5], [True] * 2, [0.0] * 2, [0, 0], "stop", episode=episode)

    b = Batch.from_rollouts([row(3, 0), row(4, 0), row(3, 1)])
    shards, rows = cut(b, 1, 14, packed=True)
    assert [m.S for m in shards[0]] == [2, 1] and rows[0].tolist() == [0, 2, 1], "14 tokens and 12"
