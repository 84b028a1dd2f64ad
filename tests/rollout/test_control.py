"""Controls as functions of logits, against the distributions that they stand for, enumerated."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlkit.commands.engines import given_control
from rlkit.errors import ConfigError, ModelError
from rlkit.model.tiny import make_tiny, make_tokenizer
from rlkit.rollout.control import (
    IDLE,
    Blend,
    Control,
    CopT,
    DeRa,
    Interleaved,
    LogitsFusion,
    QSharp,
    Steering,
    dera_logits,
)
from rlkit.rollout.controlled import Controlled

MODEL, OTHER = torch.tensor([[2.0, 1, 0, -1]]), torch.tensor([[1.0, 1.5, -0.5, 0.25]])
THIRD = torch.tensor([[0.5, -1.0, 2.0, 0.0]])


@dataclass
class Fake:
    """Companions whose answers are known; ``values`` of every token, ``[R, V, C]``."""

    read: Sequence[Tensor] = ()
    values: Tensor = field(default_factory=lambda: torch.zeros(0))

    def logits(self, i: int) -> Tensor:
        return self.read[i]

    def after(self, i: int, ids: Tensor) -> Tensor:
        return torch.stack([v[k] for v, k in zip(self.values, ids, strict=True)])


def probabilities(control: Steering, seen: Fake, logits: Tensor = MODEL) -> Tensor:
    return control.steer(logits, seen).double().softmax(-1)


def test_dera_mixes_logits() -> None:
    golden = {0.5: [0.474850, 0.369813, 0.082516, 0.072821], 2.0: [0.075537, 0.558144, 0.027788, 0.338531]}
    for lam, want in golden.items():
        assert probabilities(DeRa(reference="m", lam=lam), Fake([MODEL]), OTHER)[0].tolist() == pytest.approx(
            want, abs=1e-6
        )
    for lam in (0.0, 0.3, 1.0, 5.0):
        p, q = MODEL.double().softmax(-1), OTHER.double().softmax(-1)
        exact = p * (q / p) ** lam
        mixed = dera_logits(OTHER.double() + 7, MODEL.double() - 3, lam).softmax(-1)
        torch.testing.assert_close(mixed, exact / exact.sum(), atol=1e-15, rtol=0)
    with pytest.raises(ConfigError, match="4 logits and the reference 3"):
        dera_logits(MODEL, MODEL[:, :3], 1)


def test_a_blend_is_the_mixture_of_probabilities() -> None:
    p, q = MODEL.double().softmax(-1), OTHER.double().softmax(-1)
    for weight in (0.0, 0.2, 1.0):
        got = probabilities(Blend(other="m", weight=weight), Fake([OTHER]))
        torch.testing.assert_close(got, weight * q + (1 - weight) * p, atol=1e-7, rtol=0)


@pytest.mark.parametrize("top_k", [1, 2, 3, 25])
def test_interleaving_draws_what_proposals_and_replacements_draw(top_k: int) -> None:
    """All pairs of a proposal and the token that may take its place."""
    own, teacher = MODEL.double().softmax(-1)[0], OTHER.double().softmax(-1)[0]
    likely = sorted(range(4), key=lambda i: -float(teacher[i]))[:top_k]
    want = [0.0] * 4
    for (proposed, q), (other, p) in itertools.product(enumerate(own.tolist()), enumerate(teacher.tolist())):
        want[proposed if proposed in likely else other] += q * p
    got = probabilities(Interleaved(teacher="m", top_k=top_k), Fake([OTHER]))[0].tolist()
    assert got == pytest.approx(want, abs=1e-6) and (got == pytest.approx(own.tolist(), abs=1e-6)) == (top_k == 25)


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(-1)


def test_fusion_moves_the_large_model_as_far_as_the_experts_moved() -> None:
    """The shift that minimises the definition, by trying all weights of the grid on plain probabilities."""
    large, base = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)).double(), torch.randn(3, 6).double()
    experts = [base + torch.randn(3, 6, generator=torch.Generator().manual_seed(s)).double() for s in (1, 2)]
    grid = [2 * k / 20 for k in range(21)]

    def error(weights: Sequence[float], row: int, known: Sequence[Tensor]) -> float:
        p, q = large[row].softmax(-1), base[row].softmax(-1)
        moved = large[row] + sum(a * (e[row] - base[row]) for a, e in zip(weights, known, strict=True))
        new, total = torch.softmax(moved, -1), 0.0
        for e in known:
            t = e[row].softmax(-1)
            total += float((kl(new, p) - kl(t, q)) ** 2 + (kl(p, new) - kl(q, t)) ** 2)
        return total

    one = LogitsFusion(base="b", experts=("e",)).steer(large, Fake([base, experts[0]]))
    two = LogitsFusion(base="b", experts=("e", "f")).steer(large, Fake([base, *experts]))
    for row in range(3):
        best = min(grid, key=lambda a: error([a], row, experts[:1]))
        want = (large[row] + best * (experts[0] - base)[row]).softmax(-1)
        torch.testing.assert_close(one[row].softmax(-1), want, atol=1e-6, rtol=0)
        found = [0.0, 0.0]
        for _, t in itertools.product(range(2), range(2)):  # two rounds over both
            found[t] = min(grid, key=lambda a: error([*found[:t], a, *found[t + 1 :]], row, experts))
        want = (large[row] + sum(a * (e - base)[row] for a, e in zip(found, experts, strict=True))).softmax(-1)
        torch.testing.assert_close(two[row].softmax(-1), want, atol=1e-6, rtol=0)
    same = LogitsFusion(base="b", experts=("e",)).steer(base, Fake([base, experts[0]]))
    torch.testing.assert_close(
        same.softmax(-1), experts[0].softmax(-1), atol=1e-6, rtol=0
    )  # the large model is the small one
    proxy = LogitsFusion(base="b", experts=("e",), weights=(1.0,)).steer(large, Fake([base, experts[0]]))
    torch.testing.assert_close(proxy.softmax(-1), (large + experts[0] - base).softmax(-1), atol=1e-6, rtol=0)


def test_idle_is_the_nearest_distribution_without_the_banned() -> None:
    got = IDLE(ids=(0,)).steer(OTHER, Fake())[0]
    assert got.tolist() == pytest.approx([-math.inf, -0.351952, -2.351952, -1.601952], abs=1e-6)
    p, banned = OTHER[0].double().softmax(-1), [0, 3]
    q = torch.zeros(4).double().index_copy(0, torch.tensor([1, 2]), p[[1, 2]] / p[[1, 2]].sum())
    best = kl(q[[1, 2]], p[[1, 2]])
    assert float(best) == pytest.approx(-math.log1p(-float(p[banned].sum())))
    for k in range(1, 20):  # no other distribution on the rest is as near
        r = torch.tensor([k / 20, 1 - k / 20]).double()
        assert float(kl(r, p[[1, 2]])) >= float(best) - 1e-12
    torch.testing.assert_close(probabilities(IDLE(ids=(0, 3)), Fake(), OTHER)[0], q, atol=1e-7, rtol=0)
    nearly = torch.tensor([[80.0, 1.0, 0.0]])  # p(B) is 1 in float32
    assert probabilities(IDLE(ids=(0,)), Fake(), nearly)[0, 1:].tolist() == pytest.approx(
        [0.731059, 0.268941], abs=1e-6
    )


def test_idle_finds_tokens_by_text_and_pattern() -> None:
    tokenizer = make_tokenizer("ab12")
    assert IDLE(tokens=("b",), pattern="[0-9]", ids=(0,)).over(tokenizer).ids == (0, 4, 5, 6)
    with pytest.raises(ConfigError, match="'ab' is 2 tokens"):
        IDLE(tokens=("ab",)).over(tokenizer)
    with pytest.raises(ConfigError, match="is found in no token"):
        IDLE(pattern="x").over(tokenizer)
    with pytest.raises(ConfigError, match="no regular expression"):
        IDLE(pattern="(").over(tokenizer)
    with pytest.raises(ConfigError, match="bans every token"):
        IDLE(pattern=".", ids=(0, 1, 2)).over(tokenizer)
    with pytest.raises(ConfigError, match="bans nothing"):
        IDLE()


@pytest.mark.parametrize("atoms", [1, 3])
def test_led_by_exact_values_a_model_samples_whole_responses_from_the_tilted_optimum(atoms: int) -> None:
    """Q#'s theorem, by enumeration: three tokens, three steps, a reward for each response."""
    g, eta, T, V = torch.Generator().manual_seed(0), 0.3, 3, 3
    policy = {prefix: torch.randn(V, generator=g) for t in range(T) for prefix in itertools.product(range(V), repeat=t)}
    rewards = torch.linspace(0, 1, max(2, atoms))
    reward = {y: int(torch.randint(len(rewards), (1,), generator=g)) for y in itertools.product(range(V), repeat=T)}

    def shares(prefix: tuple[int, ...]) -> Tensor:
        """The distribution of the reward if the model goes on from ``prefix``."""
        if len(prefix) == T:
            return torch.eye(len(rewards)).double()[reward[prefix]]
        p = policy[prefix].double().softmax(-1)
        return torch.stack([p[v] * shares((*prefix, v)) for v in range(V)]).sum(0)

    def outputs(prefix: tuple[int, ...]) -> Tensor:
        s = shares(prefix).clamp(min=1e-30)
        return (s[1] / s[0]).log()[None] if atoms == 1 else s.log()

    control = QSharp(value="v", eta=eta, top_k=None)

    def led(y: tuple[int, ...]) -> float:
        total = 0.0
        for t in range(T):
            values = torch.stack([outputs((*y[:t], v)) for v in range(V)])[None]
            total += float(control.steer(policy[y[:t]][None].double(), Fake(values=values)).log_softmax(-1)[0, y[t]])
        return total

    responses = list(reward)
    plain = torch.tensor(
        [sum(float(policy[y[:t]].double().log_softmax(-1)[y[t]]) for t in range(T)) for y in responses]
    )
    tilted = (plain.double() + torch.tensor([float(rewards[reward[y]]) for y in responses]).double() / eta).log_softmax(
        -1
    )
    assert [led(y) for y in responses] == pytest.approx(tilted.tolist(), abs=1e-5)


def test_only_candidates_are_asked_about() -> None:
    control = QSharp(value="v", top_k=2, eta=1.0)
    values = torch.tensor([[[0.0], [1.0], [9.0], [9.0]]])
    got = probabilities(control, Fake(values=values))[0]
    gain = [math.log(0.5 + 0.5 * math.e), math.log(0.268941 + 0.731059 * math.e)]
    want = torch.tensor([2 + gain[0], 1 + gain[1]]).double().softmax(-1)
    assert got.tolist() == pytest.approx([*want.tolist(), 0, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: LogitsFusion(base="b", experts=()), "experts is empty"),
        (lambda: LogitsFusion(base="b", experts=("a",), weights=(1.0, 2.0)), "1 experts but 2 weights"),
        (lambda: given_control("{type: DeRa, reference: m, lam: -1}"), "--control: lam: is -1"),
        (lambda: given_control("{type: Dera}"), "Did you mean 'DeRa'"),
        (lambda: Controlled(control=CopT()), "second pass within a step, which vllm has no place for"),
        (lambda: Controlled(control=Control()), "Control is a control, but no Steering"),
    ],
)
def test_what_no_control_can_be(make: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make()


def test_a_control_from_a_file_finds_models_beside_it(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "control.yaml").write_text("type: DeRa\nreference: base\nlam: 0.5\n")
    assert given_control(str(tmp_path / "control.yaml")) == DeRa(reference=str(tmp_path / "base"), lam=0.5)


@pytest.mark.slow
def test_companions_of_another_tokenizer_are_refused_before_anything_is_loaded(tiny: Path, tmp_path: Path) -> None:
    foreign = str(make_tiny(tmp_path / "foreign", "abc", hidden=64, layers=1, heads=1, kv_heads=1))
    for control in (DeRa(reference=foreign), LogitsFusion(base=str(tiny), experts=(foreign,))):
        with pytest.raises(ModelError, match="gives other ids than the policy's"):
            control.check(str(tiny))
    with pytest.raises(ModelError, match=r"DeRa\.reference: 'nowhere/at-all'"):
        DeRa(reference="nowhere/at-all").check(str(tiny))
    with pytest.raises(ConfigError, match=r"CopT\.think: the model's tokenizer has no tokens for '<think>'"):
        CopT().check(str(tiny))
