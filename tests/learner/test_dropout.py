"""Passes are functions of their rows: no dropout of a model or an adapter, so nothing depends on a random state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlkit.checks import without_dropout
from rlkit.learner.learner import Learner
from rlkit.learner.plan import optimizer_steps
from rlkit.run import Run
from rlkit.run import load as make_run
from rlkit.types import Batch, Prompt, Rollout

pytestmark = pytest.mark.slow

NEEDS = frozenset({"adv", "old", "behav"})


def batch() -> Batch:
    g = torch.Generator().manual_seed(0)
    rollouts = [
        Rollout(Prompt(f"p{s}", (4, 5), ""), x, [True] * 4, [-2.5] * 4, [0] * 4, "stop", group=s)
        for s, x in enumerate(torch.randint(3, 13, (3, 4), generator=g).tolist())
    ]
    b = Batch.from_rollouts(rollouts)
    return b.replace(adv=torch.randn(b.N, generator=g))


@pytest.fixture
def dropping(small: dict[str, Any], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, str]:
    """A LoRA run with dropout, on a model whose attention has dropout, too."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lm = AutoModelForCausalLM.from_pretrained(tiny)
    lm.config.attention_dropout = 0.4
    path = str(tmp_path / "model")
    lm.save_pretrained(path)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(path)
    peft = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.5}
    objective = [{"type": "PPOClip"}]
    options = {"peft": peft, "objective": objective, "model": {"path": path}, "reference": None}
    return make_run({**small, **options, "learner": {"lr": 1e-2, "packed": False}}), path


def step(learner: Learner) -> None:
    [[micros]] = optimizer_steps(batch(), learner.setup.objective, epochs=1, count=1, ranks=1, max_tokens=99, seed=0)
    learner.step(micros, (1.0,))


def test_passes_repeat_and_rows_do_not_see_each_other(dropping: tuple[Run, str]) -> None:
    run, path = dropping
    learner = Learner(run.learner_setup(path, NEEDS))
    step(learner)
    assert learner.policy.training, "gradient checkpointing works in training mode only"
    b = batch()
    first, again = (learner.annotate([b], ("old",))["old"] for _ in range(2))
    assert torch.equal(first, again)
    alone = torch.cat([learner.annotate([b.rows(torch.arange(b.S) == s)], ("old",))["old"] for s in range(b.S)])
    torch.testing.assert_close(alone, first, rtol=1e-5, atol=1e-6)
    new, _ = learner._evaluate(b.replace(norm=torch.ones(1, b.S)), (1.0,))
    torch.testing.assert_close(new.logp.detach(), first, rtol=0, atol=0)


def test_a_resumed_adapter_run_with_dropout_is_bit_equal(dropping: tuple[Run, str], tmp_path: Path) -> None:
    run, path = dropping
    straight = Learner(run.learner_setup(path, NEEDS))
    step(straight)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    straight.save(str(folder))
    step(straight)
    resumed = Learner(run.learner_setup(path, NEEDS))
    resumed.load(str(folder))
    torch.manual_seed(1234)  # another process has another random state
    step(resumed)
    mine, theirs = dict(straight.full_weights()), dict(resumed.full_weights())
    assert [n for n in mine if not torch.equal(mine[n], theirs[n])] == []


def test_a_run_that_asks_for_dropout_is_told(dropping: tuple[Run, str]) -> None:
    run, _ = dropping
    assert "peft.lora_dropout is 0.5, but rlkit trains without dropout" in str(without_dropout(run))
    assert without_dropout(run.replace(peft=None)) is None
