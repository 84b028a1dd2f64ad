"""A teacher in engines of its own teaches what the same model on the learner's rank does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import rlkit as rk
from rlkit.checks import check
from rlkit.cluster.groups import EngineGroup, LocalWorkers
from rlkit.data.tasks import Sorting
from rlkit.errors import ConfigError, EngineError, ModelError
from rlkit.learner.learner import Learner
from rlkit.model.load import load_lm
from rlkit.model.tiny import make_tiny
from rlkit.planning.probe import probe
from rlkit.rollout.hf import HFEngine
from rlkit.rollout.pool import Pool
from rlkit.types import Prompt, Rollout, Sampling

pytestmark = pytest.mark.slow

TERMS = [
    {"type": "FullDivergence", "f": "forward_kl", "anchor": "teacher", "top_k": 4},
    {"type": "Divergence", "f": "js", "anchor": "teacher", "coef": 0.1},
]


@pytest.fixture
def other(tmp_path: Path) -> str:
    return str(make_tiny(tmp_path / "other", Sorting.alphabet, hidden=64, layers=1, heads=1, kv_heads=1, seed=9))


class Bare(rk.SimpleEngine):
    """One of a user's own."""

    def answer(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
        return []

    def assign(self, tensors: Mapping[str, torch.Tensor]) -> None: ...


def test_an_engine_says_how_likely_given_tokens_are(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probs and the most likely tokens of rows, in requests of at most 8 tokens, against the model's own."""
    monkeypatch.setattr("rlkit.cluster.groups.SCORED", 8)
    rows, lm = [[3, 4, 5, 6], [7, 8], [9, 3, 5, 5, 6, 2], [4]], load_lm(other).eval()
    group = EngineGroup(LocalWorkers(HFEngine(other)))
    logp, top = group.likely(rows, 3)
    group.close()
    want, best = [], []
    for row in rows:
        with torch.no_grad():
            q = lm(torch.tensor([row])).logits[0, :-1].log_softmax(-1)
        want += [0.0, *q.gather(-1, torch.tensor(row[1:], dtype=torch.long)[:, None])[:, 0].tolist()]
        best += [[0] * 3, *q.topk(3).indices.tolist()]
        torch.testing.assert_close(top.logp[len(best) - len(q) : len(best)], q.topk(3).values, rtol=1e-5, atol=1e-5)
    assert logp.tolist() == pytest.approx(want, abs=1e-5) and top.ids.tolist() == best
    with pytest.raises(EngineError, match="Bare samples responses, but does not say"):
        Bare().likely(rows, 3)


@pytest.mark.parametrize("sends", ["likely", "hidden"])
def test_a_pool_teaches_what_the_same_model_on_the_rank_does(
    small: dict[str, Any], other: str, monkeypatch: pytest.MonkeyPatch, sends: str
) -> None:
    base = {**small, "objective": TERMS, "reference": None, "advantage": {"type": "Plain"}}
    if sends == "hidden":
        base["objective"] = [{**TERMS[0], "top_k": None}, TERMS[1]]
        base["sampling"] = {**small["sampling"], "temperature": 0.7}
    frozen = rk.load({**base, "name": "frozen", "teacher": {"type": "Frozen", "path": other}})
    want = rk.train(frozen, quiet=True).metrics()
    if sends == "likely":
        monkeypatch.setattr(Learner, "load_frozen", lambda *args: pytest.fail("the teacher was loaded on a rank"))
    teacher = {"type": "Pool", "path": other, "engine": "hf", "sends": sends}
    pool = rk.load({**base, "name": "pool", "teacher": teacher})
    assert "update" in probe(pool)
    full = "full" if sends == "hidden" else "top4"
    for a, b in zip(want, rk.train(pool, quiet=True).metrics(), strict=True):
        for name in (f"loss/forward_kl_{full}(teacher)", "loss/js(teacher)", "learner/grad_norm"):
            assert b[name] == pytest.approx(a[name], rel=1e-4) and a[name] != 0


def test_pools_that_cannot_answer_are_refused(small: dict[str, Any], other: str, tmp_path: Path) -> None:
    def run(**teacher: Any) -> rk.Run:
        return rk.load({**small, "objective": TERMS, "teacher": {"type": "Pool", "path": other, **teacher}})

    check(run())  # vLLM beside the Hugging Face engine that samples
    for made, says in (
        (run(vllm={"max_logprobs": 3}), "max_logprobs is 3, but the terms tell 4 of its most likely tokens apart"),
        (run(engines=2), "several engines or devices, which need a cluster"),
        (run().replace({"rollout.engine": "vllm"}), "both vllm, of which there is one in a process"),
        (
            run().replace({"objective.0.top_k": None}),
            r"teacher \(type: Pool\) gives the log-probs of its most likely tokens",
        ),
        (run().replace({"sampling.temperature": 0.5}), "log-probs at temperature 1"),
    ):
        with pytest.raises(ConfigError, match=says):
            check(made)
    with pytest.raises(ModelError, match=r"Pool.vllm is set, but its engine is hf"):
        Pool(path=other, engine="hf", vllm={"max_num_seqs": 4})
    with pytest.raises(ModelError, match=r"Pool.sends is hidden, which vLLM cannot"):
        Pool(path=other, sends="hidden")
    foreign = make_tiny(tmp_path / "foreign", "abc", hidden=64, layers=1, heads=1, kv_heads=1)
    with pytest.raises(ModelError, match=r"teacher\.path"):
        rk.train(run(path=str(foreign), engine="hf"), quiet=True)
