"""What is kept of reference and teacher: how exact it is, that a run with it learns the same, and that one that was stopped goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import rlkit as rk
from rlkit import precompute
from rlkit.data.tasks import Sorting
from rlkit.errors import ConfigError, DataError
from rlkit.learner.learner import Learner
from rlkit.model.tiny import make_tiny
from rlkit.objective.divergences import TABLE, generator
from rlkit.objective.full_vocab import Head, TopK, full_divergence, tail


def test_two_bytes_for_a_number_change_divergences_by_thousandths() -> None:
    """A vocabulary of 50,000 with distributions from flat to almost certain; k = 16."""
    g, n, v, k = torch.Generator().manual_seed(0), 24, 50_000, 16
    z = torch.randn(n, v, generator=g) * torch.linspace(1, 9, n)[:, None]
    policy, anchor = (Head(torch.eye(n), x.T) for x in (z + torch.randn(n, v, generator=g), z))
    exact = TopK.of(anchor, n, k, v)
    [outputs] = precompute.Found.of(torch.tensor([n]), torch.zeros(n), exact).outputs()
    assert outputs.ids.element_size() == outputs.top.element_size() == 2
    found = precompute.restored(outputs.ids, outputs.top)
    assert torch.equal(found.ids, exact.ids)
    worst = [float((a - b).abs().max()) for a, b in ((found.logp, exact.logp), (tail(found.logp), tail(exact.logp)))]
    assert max(worst) < 4e-3, worst
    for f in (TABLE["forward_kl"], TABLE["reverse_kl"], TABLE["js"], generator("skew_forward", 0.1)):
        a, b = (full_divergence(policy, x, f, top_k=k) for x in (exact, found))
        torch.testing.assert_close(b, a, rtol=5e-3, atol=2e-4)


@pytest.mark.slow
def test_a_teacher_s_kept_outputs_take_its_place(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_tiny(tmp_path / "other", Sorting.alphabet, hidden=64, layers=1, heads=1, kv_heads=1, seed=9)
    rows = [{"prompt": r["prompt"], "response": str(r["answer"])} for r in Sorting(levels=(1,)).rows("train", 24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    term = {"type": "FullDivergence", "f": "forward_kl", "anchor": "teacher", "top_k": 5, "on": "dataset"}
    sampled = {"type": "Divergence", "f": "forward_kl", "anchor": "teacher", "on": "dataset", "coef": 0.1}
    plain = rk.load(
        {
            **{k: v for k, v in small.items() if k not in ("data", "rollout", "rewards", "probe")},
            "data": {"demonstrations": {"path": str(tmp_path / "rows.jsonl"), "per_step": 4}},
            "objective": [term, {**sampled, "f": "js"}],
            "teacher": {"type": "Frozen", "path": str(other)},
            "reference": None,
        }
    )
    want = rk.train(plain, quiet=True).metrics()
    kept = plain.replace(name="kept", teacher={"precompute": str(tmp_path / "kept" / "teacher.pt")})
    asked, ask = [], precompute._asked

    def until_the_second(*args: Any, **kwargs: Any) -> Any:
        if len(asked) == 1:
            raise KeyboardInterrupt
        asked.append(1)
        return ask(*args, **kwargs)

    monkeypatch.setattr(precompute, "TOGETHER", 8)
    monkeypatch.setattr(precompute, "_asked", until_the_second)
    with pytest.raises(KeyboardInterrupt):
        rk.train(kept, quiet=True)
    monkeypatch.setattr(precompute, "_asked", lambda *args, **kwargs: asked.append(2) or ask(*args, **kwargs))
    for start in (0, 1):  # goes on with the second of three parts, then reads the file
        if start:
            monkeypatch.setattr(Learner, "load_frozen", lambda self, path, dtype: pytest.fail("the teacher was loaded"))
        found = rk.train(kept, quiet=True).metrics()
        for a, b in zip(want, found, strict=True):
            for name in ("loss/forward_kl_top5(teacher)", "loss/js(teacher)", "learner/grad_norm"):
                assert b[name] == pytest.approx(a[name], rel=2e-3)
    assert asked == [1, 2, 2] and [p.name for p in (tmp_path / "kept").iterdir()] == ["teacher.pt"]
    with pytest.raises(
        DataError, match=r"teacher.pt holds log-probs of fewer tokens \(5 at each place; .* tell 6 apart"
    ):
        rk.train(kept.replace({"name": "more", "objective.0.top_k": 6}), quiet=True)
    with pytest.raises(
        ConfigError, match=r"compares all tokens, but teacher.precompute keeps the log-probs of its most"
    ):
        rk.train(kept.replace({"name": "all", "objective.0.top_k": None}), quiet=True)
    every = kept.replace(  # more than the vocabulary has
        {"name": "every", "objective.0.top_k": 50, "teacher.precompute": str(tmp_path / "kept" / "every.pt")}
    )
    monkeypatch.undo()
    for _ in range(2):
        assert rk.train(every, quiet=True).metrics()[0]["loss/forward_kl_top50(teacher)"] > 0
    fewer = rk.train(kept.replace({"name": "fewer", "objective.0.top_k": 2}), quiet=True).metrics()
    assert 0 < fewer[0]["loss/forward_kl_top2(teacher)"] < want[0]["loss/forward_kl_top5(teacher)"]
