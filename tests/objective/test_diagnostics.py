"""Where KL and gradients come from: by hand, and in a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import rlkit as rk
from rlkit.cli import main
from rlkit.objective.diagnostics import add_gram, gradient_shares, kl_breakdown, kl_tokens
from rlkit.types import Batch, Stats

pytestmark = pytest.mark.slow


def test_kl_by_place_sign_surprise_and_pass_rate() -> None:
    kl = torch.tensor([1.0, 2, 3, 4, 10, 20, 30, 40])
    b = Batch(
        seq=torch.tensor([0] * 4 + [1] * 4),
        group=torch.tensor([0, 0]),
        source=torch.zeros(2, dtype=torch.long),
        reward=torch.tensor([1.0, 0.0]),
        logp={"behav": -kl, "old": kl, "ref": torch.zeros(8)},
        adv=torch.tensor([1.0] * 4 + [-1.0] * 4),
        ids=torch.arange(8) % 3,
        action=torch.arange(8),
    )
    got = kl_breakdown(b)
    assert [got[f"kl_by/position/q{k}"] for k in (1, 2, 3, 4)] == [5.5, 11, 16.5, 22]
    assert [got[f"kl_by/surprise/q{k}"] for k in (1, 2, 3, 4)] == [1.5, 3.5, 15, 35]
    assert (
        got["kl_by/advantage/positive"] == 2.5
        and got["kl_by/advantage/negative"] == 25
        and got["kl_by/pass_rate/some"] == 110 / 8
    )
    assert "kl_by/advantage/zero" not in got and "kl_by/pass_rate/all" not in got
    top = kl_tokens(b, str, 2)
    assert [(t["token"], t["count"], t["kl"]) for t in top] == [("1", 3, 2 + 10 + 40), ("0", 3, 1 + 4 + 30)] and top[0][
        "share"
    ] == pytest.approx(52 / 110)


def test_gradient_shares_add_up_over_micro_batches() -> None:
    def gram(cuts: list[slice]) -> dict[str, float]:
        stats = Stats()
        for cut in cuts:
            logp = torch.arange(6, dtype=torch.float64)[cut].requires_grad_()
            weight = torch.tensor([1.0, -2, 3, 1, 1, 0], dtype=torch.float64)[cut]
            add_gram(stats, ["a", "b", "c"], [logp.sum(), 2 * (weight * logp).sum(), torch.zeros(())], logp)
        return gradient_shares(stats, ["a", "b", "c"])

    whole = gram([slice(0, 6)])
    assert whole == pytest.approx(gram([slice(0, 2), slice(2, 6)]))
    a, b = math.sqrt(6), 2 * math.sqrt(16)
    assert whole == pytest.approx(
        {
            "gradient/share/a": a / (a + b),
            "gradient/share/b": b / (a + b),
            "gradient/share/c": 0,
            "gradient/cosine/a/b": 8 / (a * b),
        }
    )


def test_a_run_shows_them_and_plots_its_curves(
    small: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    small |= {"log": {"breakdown": 2, "tensorboard": False, "rollouts": 16}, "learner": {"lr": 1e-3, "minibatches": 2}}
    folder = rk.train(rk.load(small), quiet=True)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    wanted = {
        "gradient/share/PPOClip",
        "gradient/share/KL_k2(ref)",
        "gradient/cosine/PPOClip/KL_k2(ref)",
        "kl_by/position/q1",
        "kl_by/surprise/q4",
    }
    assert wanted <= rows[2].keys() and not wanted & rows[1].keys() and not any(k.startswith("gram/") for k in rows[2])
    tokens = [json.loads(line) for line in (folder / "kl_tokens.jsonl").read_text().splitlines()]
    assert [t["step"] for t in tokens] == [1, 3] and {"token", "count", "kl", "share"} <= tokens[1]["tokens"][0].keys()
    responses = [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]
    looked_at = [r for r in responses if r["step"] == 3]
    assert len(looked_at) == 16 and not any("kl" in r for r in responses if r["step"] == 2)
    assert all("".join(r["pieces"]).startswith(r["response"]) for r in looked_at)
    whole = sum(math.fsum(r["kl"]) for r in looked_at) / 16
    assert whole == pytest.approx(rows[2]["kl/ref_sequence"], abs=1e-3), "pieces carry the KL of their response"
    surprise = math.fsum(x for r in looked_at for x in r["surprise"]) / sum(r["tokens"] for r in looked_at)
    assert surprise == pytest.approx(rows[2]["entropy/sampled"], abs=1e-3)
    assert "KL by surprise of the token" in (folder / "report.html").read_text()
    assert main(["plot", str(folder)]) == 0 and (folder / "curves.png").stat().st_size > 10_000
    assert main(["plot", str(tmp_path)]) == 2 and "is not a run folder" in capsys.readouterr().err
