"""Several teachers: their mixture is that of their probabilities, and each prompt has the teachers of its set."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import rlkit as rk
from rlkit.checks import check
from rlkit.data.tasks import Sorting
from rlkit.errors import ConfigError, ModelError
from rlkit.learner.learner import Learner
from rlkit.model.load import load_lm
from rlkit.model.reference import EMA, Frozen, ReferenceState, Served
from rlkit.model.teachers import Shifted, Teachers
from rlkit.model.tiny import make_tiny
from rlkit.objective.full_vocab import TopK
from rlkit.rollout.pool import Pool
from rlkit.types import Batch, Prompt, Rollout, Sampling

SHARES = {"easy": (1.0, 0.0), "hard": (0.0, 1.0), "": (0.25, 0.75)}  # of one and two, by set


def batch() -> Batch:
    """Two responses of each set, in turn."""
    return Batch.from_rollouts(
        [
            Rollout.given(Prompt(str(i), (3 + i, 4), "", columns={"dataset": name} if name else {}), [5, 6 + i, 2])
            for i, name in enumerate([*SHARES, *SHARES])
        ]
    )


@pytest.mark.slow
def test_a_mixture_of_teachers_in_value_and_gradient(small: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    paths = [
        make_tiny(tmp_path / str(k), Sorting.alphabet, hidden=64, layers=1, heads=1, kv_heads=1, seed=k) for k in (7, 9)
    ]
    of = {name: {"type": "Frozen", "path": str(path)} for name, path in zip(("one", "two"), paths, strict=True)}
    teacher = {
        "type": "Teachers",
        "of": of,
        "weights": {"one": 1, "two": 3},
        "per_set": {"easy": {"one": 2}, "hard": {"one": 0, "two": 1}},
    }
    objective = [{"type": "FullDivergence", "f": "forward_kl", "anchor": "teacher"}]
    run = rk.load({**small, "objective": objective, "teacher": teacher, "reference": None})
    check(run)
    needs = frozenset({"teacher", "teacher_full"})
    learner, b, q = Learner(run.learner_setup(str(tiny), needs)), batch(), []
    lms = [load_lm(path).eval() for path in (*paths, tiny)]
    with torch.no_grad():
        rows = b.ids.split(b.length.tolist())
        for row, dataset in zip(rows, b.dataset, strict=True):
            p = [lm(row[None]).logits[0, 1:-1].double().softmax(-1) for lm in lms[:2]]
            q += [sum(w * x for w, x in zip(SHARES[dataset], p, strict=True))]
        q = torch.cat(q)
        pi = torch.cat([lms[2](row[None]).logits[0, 1:-1].double().log_softmax(-1) for row in rows])
    state = learner.anchors["teacher"]
    want = q.gather(-1, b.ids[b.action][:, None])[:, 0].log()
    torch.testing.assert_close(state.logprobs(b, Sampling()).double(), want, rtol=1e-5, atol=1e-5)
    whole = state.head(b).log_probs(slice(0, b.N), q.shape[1], 1.0, False)
    torch.testing.assert_close(whole.double(), q.log(), rtol=1e-5, atol=1e-5)
    b = b.replace(norm=torch.full((1, b.S), 1 / b.N))
    found = learner.step([b], (1.0,))
    assert found["loss/forward_kl_full(teacher)"] == pytest.approx(float((q * (q.log() - pi)).sum(-1).mean()), rel=1e-4)


@dataclass
class Fixed(ReferenceState):
    """A server that says of every token the same, and of rows which it was asked."""

    logp: float
    asked: list[int] = field(default_factory=list)

    def logprobs(self, b: Batch, sampling: Sampling) -> torch.Tensor:
        return torch.full((b.N,), self.logp)

    def likely(self, b: Batch, k: int) -> tuple[torch.Tensor, TopK]:
        self.asked += [int(x) for x in b.prompt]
        return self.logprobs(b, Sampling()), TopK(torch.arange(k).expand(b.N, k), torch.full((b.N, k), self.logp))


def test_a_server_is_asked_for_the_sets_that_it_teaches(monkeypatch: pytest.MonkeyPatch) -> None:
    states = {"http://one": Fixed(-1.0), "http://two": Fixed(-2.0)}
    monkeypatch.setattr(Served, "build", lambda self, trained: states[self.url])
    of = {name: Served(url=f"http://{name}") for name in ("one", "two")}
    trained: Any = None
    state, b = Teachers(of=of, weights={"one": 1.0}, per_set={"hard": {"two": 3.0}}).build(trained), batch()
    logp, top = state.likely(b, 2)
    want = [-2.0 if name == "hard" else -1.0 for name in b.dataset for _ in range(3)]
    assert logp.tolist() == want == state.logprobs(b, Sampling()).tolist() == top.logp[:, 1].tolist()
    assert top.ids.tolist() == [[0, 1]] * b.N
    assert [x.asked for x in states.values()] == [[0, 2, 3, 5], [1, 4]]


def test_teachers_that_cannot_be_mixed_are_refused() -> None:
    one, two = Frozen(path="a"), Frozen(path="b")
    served = {name: Served(url=f"http://{name}") for name in ("one", "two")}
    per_set = {"easy": {"two": 1.0}}
    teachers = Teachers(of=served, weights={"one": 1.0}, per_set=per_set)
    assert teachers.asked and not teachers.whole and teachers.shares("easy") == {"one": 0.0, "two": 1.0}
    for given, says in (
        ({"of": {"one": one}}, r"names 1 teacher\(s\); it needs two or more"),
        ({"of": {"one": one, "two": Frozen()}}, "of.two has no `path`"),
        ({"of": {"one": one, "two": Pool(path="b")}}, "of.two has engines of its own"),
        ({"of": {"one": one, "two": served["two"]}}, "of this process beside served ones"),
        (
            {"of": {"one": one, "two": two}, "weights": {"three": 1.0}},
            "weights names 'three', but the teachers are one",
        ),
        ({"of": {"one": one, "two": two}, "per_set": {"x": {"one": 0.0}}}, "per_set.x is .* one is above 0"),
        (
            {"of": {"one": one, "two": two}, "per_set": {"x": {"one": float("inf")}}},
            "per_set.x is .* are finite numbers",
        ),
        ({"of": {"one": one, "two": two}, "weights": {"one": 0.0, "two": 0.0}}, "weights is .* one is above 0"),
        ({"of": {"one": one, "two": Frozen(path="b", precompute="b.pt")}}, "of.two.precompute: .* Leave it out"),
        ({"of": served}, "weights mixes teachers that give their most likely tokens alone"),
    ):
        with pytest.raises((ModelError, ConfigError), match=says):
            Teachers(**given)
    assert EMA(path="a").held and len(Teachers(of={"one": one, "two": two}).held) == 2


def test_a_set_that_no_prompt_is_of_is_told_before_the_start(small: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    for name, digits in (("easy", "12"), ("hard", "34")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": f"{digits}>", "answer": digits}) + "\n")
    of = {name: {"type": "Frozen", "path": str(tiny)} for name in ("one", "two")}
    teacher = {"type": "Teachers", "of": of, "per_set": {"easy": {"one": 1}, "heard": {"two": 1}}}
    objective = [{"type": "FullDivergence", "anchor": "teacher"}]
    files = [str(tmp_path / "easy.jsonl"), str(tmp_path / "hard.jsonl")]
    run = rk.load({**small, "data": {"train": files, "test": None}, "objective": objective, "teacher": teacher})
    with pytest.raises(
        ConfigError, match=r"teacher\.per_set names 'heard', but the prompts are of easy, hard: the name is"
    ):
        rk.train(run, quiet=True)


@pytest.mark.slow
def test_a_teachers_shift_on_the_start_model(small: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    """Delta-KD: ``start (tuned / raw)^alpha``, normalised, in value and gradient; the policy starts at the start model."""
    tuned, raw = (
        make_tiny(tmp_path / str(k), Sorting.alphabet, hidden=64, layers=1, heads=1, kv_heads=1, seed=k) for k in (7, 9)
    )
    teacher = {
        "type": "Shifted",
        "tuned": {"type": "Frozen", "path": str(tuned)},
        "raw": {"type": "Frozen", "path": str(raw)},
        "alpha": 0.5,
    }
    objective = [{"type": "FullDivergence", "f": "forward_kl", "anchor": "teacher"}]
    run = rk.load({**small, "objective": objective, "teacher": teacher, "reference": None})
    check(run)
    learner, b = Learner(run.learner_setup(str(tiny), frozenset({"teacher", "teacher_full"}))), batch()
    with torch.no_grad():
        start, t1, t0 = (
            torch.cat([lm(row[None]).logits[0, 1:-1].double() for row in b.ids.split(b.length.tolist())])
            for lm in (load_lm(path).eval() for path in (tiny, tuned, raw))
        )
    q, pi = (start + 0.5 * (t1 - t0)).log_softmax(-1), start.log_softmax(-1)
    state = learner.anchors["teacher"]
    want = q.gather(-1, b.ids[b.action][:, None])[:, 0]
    torch.testing.assert_close(state.logprobs(b, Sampling()).double(), want, rtol=1e-5, atol=1e-5)
    b = b.replace(norm=torch.full((1, b.S), 1 / b.N))
    found = learner.step([b], (1.0,))
    assert found["loss/forward_kl_full(teacher)"] == pytest.approx(float((q.exp() * (q - pi)).sum(-1).mean()), rel=1e-4)


def test_a_shift_is_between_two_models_that_stay() -> None:
    one = Frozen(path="a")
    with pytest.raises(ModelError, match=r"Shifted\.raw is of type: Served; the shift is between two models that stay"):
        Shifted(tuned=one, raw=Served(url="http://x"))
    with pytest.raises(ModelError, match=r"Shifted\.tuned\.precompute"):
        Shifted(tuned=Frozen(path="a", precompute="x.pt"), raw=one)
    assert len(Shifted(tuned=one, raw=one).held) == 3 and Shifted(tuned=one, raw=Frozen(path="b")).models == ("a", "b")
