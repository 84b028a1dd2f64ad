"""Commands as Python calls them: what they return, and that the program says the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import rlkit as rk
from rlkit.cli import main
from rlkit.data.prompts import load_prompts
from rlkit.model.load import load_tokenizer

ROWS = [{"id": f"q{i}", "prompt": f"{i}12>", "answer": f"1{i}"} for i in range(4)]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def run(small: dict[str, Any]) -> rk.Run:
    """Rows from Python, and a reward that is often 1."""
    often = str(Path("tests/rewards/examples.py").absolute()) + ":often"
    return rk.load({**small, "data": {"train": ROWS, "test": ROWS}, "rewards": [often]})


@pytest.mark.slow
def test_a_report_is_what_the_program_prints_and_writes(
    run: rk.Run, tiny: Path, tmp_path: Path, capsys: Capture
) -> None:
    heard: list[str] = []
    report = rk.evaluate(run, tiny, n=3, out=tmp_path / "e", say=heard.append)
    assert capsys.readouterr().out == "" and any("12 responses to 4 prompts" in text for text in heard)
    assert len(report.samples) == 12 and report.score == pytest.approx(sum(r["correct"] for r in report.samples) / 12)
    assert json.loads((tmp_path / "e" / "report.json").read_text()) == json.loads(json.dumps(report.as_dict()))
    again = rk.metrics(tmp_path / "e", say=heard.append)
    assert str(again) == str(report) and again.score == report.score
    assert main(["metrics", str(tmp_path / "e")]) == 0 and str(report) in capsys.readouterr().out

    compared = rk.compare(report, tmp_path / "e", say=heard.append)
    assert compared.found.difference == 0 and compared.differ == () and not compared.found.gained


@pytest.mark.slow
def test_prompts_that_are_kept_are_rows_for_the_next_run(run: rk.Run, tiny: Path, tmp_path: Path) -> None:
    kept = rk.filter(run, tiny, n=8, low=0.01, high=0.99, soft_value=0.5, say=lambda text: None)
    assert kept.asked == 4 and 0 < len(kept.rows) == len(kept.prompts) <= 4
    assert all(0.01 <= row["pass_rate"] <= 0.99 and row["v_star"] >= row["pass_rate"] for row in kept.rows)
    kept.write(tmp_path / "kept.jsonl")
    again = run.replace(data=kept.settings(tmp_path / "kept.jsonl"))
    found = load_prompts(again.data, "train", load_tokenizer(tiny))
    assert [(p.id, p.token_ids) for p in found] == [(p.id, p.token_ids) for p in kept.prompts]
    assert len(rk.Data(train=kept.rows).train or ()) == len(kept.rows)


@pytest.mark.slow
def test_the_best_of_some_samples(tiny: Path) -> None:
    def shortest(response: str) -> float:
        return -float(len(response))

    (found,) = rk.sample(
        tiny, "31>", n=8, sampling=rk.Sampling(max_tokens=4, seed=1), reward=shortest, best=True, say=print
    )
    (chosen,) = found.responses
    assert len(found.drawn) == 8 and chosen.reward == max(r.reward for r in found.drawn)
    assert found.best_kl is not None and "best of 8" in str(found)
    with pytest.raises(rk.ConfigError, match="belong together"):
        rk.sample(tiny, "31>", realign=2.0)


def test_what_an_objective_optimises(run: rk.Run) -> None:
    assert not rk.check(run).dishonest
    found = rk.check(run.replace({"objective.1.estimator": "k3"}))
    assert [f.part for f in found.dishonest] == ["KL_k3(ref)"] and "1 finding(s)" in str(found)


def test_show_names_what_does_not_fit_together(small: dict[str, Any]) -> None:
    assert rk.show(small).problems == ()
    found = rk.show(small, ["learner.minibatches=9"])
    assert found.run.learner.minibatches == 9 and "learner.minibatches" in str(found)
    assert len(found.problems) == 1 and found.problems[0].startswith("learner.minibatches is 9")
