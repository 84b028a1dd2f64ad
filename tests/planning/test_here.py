"""The plan of the machine it runs on: what was measured there, within 20 %."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from transformers import LlamaConfig

import rlkit as rk
from rlkit.cli import main
from rlkit.cluster.groups import LearnerGroup, LocalWorkers
from rlkit.learner.learner import Learner
from rlkit.learner.plan import ENOUGH, ENOUGH_KEPT, KEPT, MOST_TOKENS, micro_batch
from rlkit.planning import Machine, plan_here, shape
from rlkit.planning.memory import GIB

pytestmark = pytest.mark.slow

LAPTOP = Machine(memory=16 * GIB, cores=2, flops=1e11, process=0.3 * GIB)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The configuration of SmolLM2-135M, without its weights and its tokenizer."""
    folder = tmp_path_factory.mktemp("smollm2")
    LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    ).save_pretrained(folder)
    return str(folder)


LORA = ("peft={r: 16, lora_alpha: 32, target_modules: all-linear}",)
# Peaks in GiB by stage, of 6 prompts x 8 answers of 20 tokens in the second step, on two cores.
MEASURED: dict[str, tuple[tuple[str, ...], dict[str, float]]] = {
    "full": ((), {"generate": 3.22, "annotate": 2.58, "update": 4.22}),
    "lora": (LORA, {"generate": 3.00, "annotate": 1.66, "update": 3.06}),
}


@pytest.mark.parametrize("name", MEASURED)
def test_a_real_models_peaks_are_within_a_fifth_of_what_was_measured(smollm2: str, name: str) -> None:
    overrides, measured = MEASURED[name]
    run = rk.load(ROOT / "configs" / "real.yaml", [f"model.path={smollm2}", "rollout.prompts=6", *overrides])
    p = plan_here(run, LAPTOP, prompt_tokens=52)
    [(budget, count)] = p.processes
    assert count == 1 and p.peak == budget.peak == pytest.approx(GIB * max(measured.values()), rel=0.2)
    for stage, peak in measured.items():
        assert sum(budget.phases[stage].values()) == pytest.approx(GIB * peak, rel=0.2), stage


def test_a_micro_batch_is_never_larger_than_the_batch(smollm2: str) -> None:
    def tokens(*overrides: str) -> float:
        run = rk.load(ROOT / "configs" / "real.yaml", [f"model.path={smollm2}", *overrides])
        return float(plan_here(run, LAPTOP, prompt_tokens=50).micro.split()[2])

    group = 50 + 8 * 20
    assert tokens() == 3 * group  # of 768
    assert tokens("learner.max_tokens=100000") == 12 * group
    assert tokens("learner.max_tokens=100000", "learner.packed=false") >= 12 * 8 * 70
    assert tokens("learner.max_tokens=100000", "learner.minibatches=4") == 3 * group
    assert tokens("rollout.prompts=1", "rollout.n=2") == 50 + 2 * 20


def test_processes_of_a_local_ray_are_counted_one_by_one(smollm2: str) -> None:
    local = ["cluster={learners: 2, engines: 1}", "deepspeed={zero_optimization: {stage: 1}}"]
    run = rk.load(ROOT / "configs" / "real.yaml", [f"model.path={smollm2}", *local])
    p = plan_here(run, LAPTOP, prompt_tokens=50)
    (learner, ranks), (engine, engines) = p.processes
    assert (ranks, engines) == (2, 1) and "engine's weights" not in learner.items and "parameters" not in engine.items
    assert p.peak == pytest.approx(p.driver + 2 * learner.peak + engine.peak)
    assert not dataclasses.replace(p, machine=dataclasses.replace(LAPTOP, memory=2 * GIB)).fits


def test_without_a_gpu_the_command_plans_this_machine(
    small: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.json"
    path.write_text(rk.to_yaml(rk.load(small)))
    assert main(["plan", str(path), "--no-growth"]) == 0
    text = capsys.readouterr().out
    for part in ("this machine: ", "measured on 40 prompts", "responses of up to 4", "micro-batches of ", "fits"):
        assert part in text
    assert main(["plan", str(path), "--no-growth", "--gpu", "80GB"]) == 0
    assert "measured on 40 prompts" in capsys.readouterr().out


def test_learners_cut_what_suits_their_device_and_model(small: dict[str, Any], smollm2: str) -> None:
    width = shape(smollm2).width
    assert micro_batch(99, "cpu", width) == 99
    assert micro_batch(None, "cuda", width) == micro_batch(None, "cpu", 100) == MOST_TOKENS
    assert [micro_batch(None, "cpu", w) for w in (10**4, 3 * 10**4, 10**6)] == [ENOUGH_KEPT // (8 * 10**4), ENOUGH, 256]
    assert micro_batch(None, "cpu", width) == KEPT // (8 * 30 * (576 + 2 * 192 + 576 + 2 * 1536 + 576)) == 647
    for given in (None, 99):
        run = rk.load({**small, "learner": {"max_tokens": given}})
        learner = Learner(run.learner_setup(str(run.model.path)))
        outputs = shape(str(run.model.path)).width  # the planner's count is the model's
        assert LearnerGroup(LocalWorkers(learner), learner.setup).max_tokens == micro_batch(given, "cpu", outputs)
        counted = sum(m.out_features for m in learner.policy.base.get_decoder().modules() if isinstance(m, nn.Linear))
        assert outputs == counted
