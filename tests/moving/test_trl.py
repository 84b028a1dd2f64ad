"""TRL's settings: what they become, and that both train alike from one file."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import rlkit as rk
from rlkit.checks import check
from rlkit.cli import main
from rlkit.moving.settings import Converted

DAPO = {
    "model_name_or_path": "m",
    "dataset_name": "openai/gsm8k",
    "dataset_config": "main",
    "reward_funcs": ["accuracy_reward"],
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 4,
    "steps_per_generation": 8,
    "num_generations": 8,
    "num_iterations": 2,
    "max_steps": 400,
    "learning_rate": 2e-6,
    "epsilon": 0.2,
    "epsilon_high": 0.28,
    "delta": 10.0,
    "beta": 0.04,
    "use_bias_correction_kl": False,
    "max_completion_length": 1024,
    "temperature": 0.9,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 10,
    "eval_strategy": "steps",
    "eval_steps": 40,
    "min_p": 0.05,
    "logging_steps": 1,
    "something_new": 3,
}


def converted(**changes: Any) -> Converted:
    return rk.convert({**DAPO, **changes}, "trl")


def test_sizes_terms_and_schedule_become_those_of_a_run() -> None:
    run = rk.load(converted().settings)
    assert (run.rollout.prompts, run.rollout.n) == (16, 8), "16 rows x 8 micro-batches / 8 responses"
    assert (run.learner.minibatches, run.learner.epochs, run.steps) == (2, 2, 100), (
        "TRL counts 4 optimizer steps for one of ours"
    )
    assert run.objective == (
        rk.PPOClip(eps_low=0.2, eps_high=0.28, dual_clip=10.0, reduce="token"),
        rk.KL(estimator="k3", coef=0.04, reduce="token", acknowledge=True),
    )
    assert run.advantage == rk.GroupNorm(eps=1e-4) and run.rewards[0].fn == "math"
    assert run.data.train == ("openai/gsm8k:main",) or run.data.train == "openai/gsm8k:main"
    assert (run.learner.lr, run.learner.schedule, run.learner.warmup_steps) == (2e-6, "constant", 10)
    assert (run.sampling.max_tokens, run.sampling.temperature, run.eval.every) == (1024, 0.9, 10)


def test_what_cannot_be_carried_over_is_named() -> None:
    found = converted()
    assert {x.key for x in found.left_out} == {"min_p", "something_new"}
    as_an_object_has_them = converted(generation_batch_size=128, label_names=None, something_off=False, _n_gpu=1)
    assert as_an_object_has_them == found
    text = str(found)
    assert "# Not carried over: min_p: 0.05: the distribution that is trained must be the one that is sampled" in text
    assert "# Not carried over: something_new: 3: rlkit convert does not know this key" in text
    assert "# Note: k3 in the loss has the gradient of KL(ref‖pi)" in text


@pytest.mark.parametrize(
    ("changes", "term", "advantage"),
    [
        ({"loss_type": "grpo"}, rk.PPOClip(eps_high=0.28, dual_clip=10.0, reduce="seq"), rk.GroupNorm(eps=1e-4)),
        (
            {"loss_type": "dr_grpo", "scale_rewards": "none"},
            rk.PPOClip(eps_high=0.28, dual_clip=10.0, reduce="const", const=1024.0),
            rk.GroupMean(),
        ),
        (
            {"loss_type": "cispo", "epsilon_high": 5.0},
            rk.CISPO(against="old", eps_max=5.0, reduce="token"),
            rk.GroupNorm(eps=1e-4),
        ),
        ({"loss_type": "sapo"}, rk.SAPO(reduce="seq"), rk.GroupNorm(eps=1e-4)),
        (
            {"importance_sampling_level": "sequence", "loss_type": "luspo", "scale_rewards": "batch"},
            rk.GSPO(eps_low=0.2, eps_high=0.28, reduce="sum"),
            rk.GroupNorm(eps=1e-4, scale="batch"),
        ),
    ],
    ids=lambda x: next(iter(x.values())) if isinstance(x, dict) else "",
)
def test_loss_types(changes: dict[str, Any], term: rk.Term, advantage: rk.Advantage) -> None:
    run = rk.load(converted(**changes).settings)
    assert run.objective[0] == term and run.advantage == advantage


@pytest.mark.parametrize(
    ("mode", "correction"),
    [
        ("token_truncate", rk.corrections.TruncatedIS(cap=3.0)),
        ("sequence_truncate", rk.corrections.TruncatedIS(cap=3.0, level="sequence")),
        ("token_mask", rk.corrections.IcePop(low=0.0, high=3.0)),
        ("sequence_mask", rk.corrections.SequenceMask(of="product", low=0.0, high=3.0)),
    ],
)
def test_corrections_of_vllm(mode: str, correction: rk.Correction) -> None:
    run = rk.load(converted(use_vllm=True, vllm_importance_sampling_mode=mode).settings)
    assert run.correction == correction and run.rollout.engine == "vllm"
    assert rk.load(converted().settings).correction is None


def test_entropy_and_a_reference_that_follows() -> None:
    run = rk.load(converted(use_adaptive_entropy=True, entropy_target=0.4, sync_ref_model=True).settings)
    assert run.objective[2].coef == rk.EntropyTarget(target=0.4, init=0.0, rate=0.005, low=0.0, high=1.0, rule="steps")
    assert isinstance(run.reference, rk.references.EMA)
    assert (run.reference.decay, run.reference.every) == (pytest.approx(0.4), 512)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_type": "vespo"}, "loss_type: 'vespo' has no counterpart"),
        ({"num_generations": 7}, r"the batch of a generation \(num_generations\): 128 is not a multiple of 7"),
        ({"generation_batch_size": 64}, r"generation_batch_size is 64, .* is 128: name the number of processes"),
        ({"center_rewards_coefficient": 0.1}, "center_rewards_coefficient: reward models are not trained here"),
        ({"learning_rate": "fast"}, "learning_rate: found 'fast', expected a number"),
    ],
)
def test_what_has_no_counterpart_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(rk.ConfigError, match=message):
        converted(**changes)


def test_dpo_is_read_from_its_own_keys() -> None:
    given = {
        "model_name_or_path": "m",
        "dataset_name": "d",
        "max_length": 1024,
        "beta": 0.2,
        "learning_rate": 5e-7,
        "max_steps": 50,
    }
    found = rk.convert(
        {**given, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 8, "sync_ref_model": True}, "trl"
    )
    run = rk.load(found.settings)
    assert run.data.pairs is not None and (run.data.pairs.per_step, run.data.pairs.max_tokens) == (32, 1024)
    assert [(type(t).__name__, t.beta) for t in run.objective] == [("DPO", 0.2)] and (
        run.rollout.prompts,
        run.steps,
    ) == (0, 50)
    assert isinstance(run.reference, rk.references.EMA) and run.learner.lr == 5e-7
    with pytest.raises(rk.ConfigError, match="loss_type: 'ipo' has no counterpart"):
        rk.convert({**given, "loss_type": "ipo"}, "trl")
    with pytest.raises(rk.ConfigError, match=r"label_smoothing: 0\.1 has no counterpart"):
        rk.convert({**given, "label_smoothing": 0.1}, "trl")


ROWS = {"model_name_or_path": "m", "dataset_name": "d", "max_steps": 20, "per_device_train_batch_size": 4}


def loaded(method: str | None = None, **given: Any) -> rk.Run:
    """A run whose sections fit together."""
    run = rk.load(rk.convert({**ROWS, "gradient_accumulation_steps": 2, **given}, "trl", method=method).settings)
    check(run)
    return run


def test_kto_is_read_from_its_weights() -> None:
    run = loaded(desirable_weight=1.5, beta=0.2, learning_rate=5e-6)
    assert run.objective == (rk.KTO(beta=0.2, desirable=1.5, undesirable=1.0),)
    assert run.data.labelled is not None and (run.data.labelled.path, run.data.labelled.per_step) == ("d", 8)
    assert run.data.labelled.max_tokens == 1024 and not run.online and run.learner.lr == 5e-6
    assert loaded(desirable_weight=1.0, loss_type="apo_zero_unpaired").objective == (rk.KTO(baseline="zero"),)
    text = str(rk.convert({**ROWS, "desirable_weight": 1.0}, "trl"))
    assert "# Note: the baseline z0 is that of the whole batch of an optimizer step" in text


def test_sft_is_read_from_its_keys_or_by_its_name() -> None:
    run = loaded(packing=True, eval_strategy="steps", eval_steps=5)
    assert run.objective == (rk.NLL(on="dataset", reduce="token"),) and run.reference is None
    rows = run.data.demonstrations
    assert rows is not None and (rows.path, rows.test, rows.per_step, rows.unusable) == ("d", "d", 8, "drop")
    assert (run.learner.lr, run.eval.every, run.steps) == (2e-5, 5, 20)
    texts = loaded("sft", dataset_text_field="body").data.demonstrations
    assert texts is not None and texts.columns == {"text": "body"}
    assert loaded("sft", max_length=None).data.demonstrations.max_tokens is None  # type: ignore[union-attr]
    found = rk.convert({**ROWS, "max_length": 512}, "trl")
    assert "DPO" in str(found) and any("--method sft or kto" in note for note in found.notes)
    left = rk.convert({**ROWS, "completion_only_loss": False, "router_aux_loss_coef": 0.01}, "trl").left_out
    assert {x.key for x in left} == {"completion_only_loss", "router_aux_loss_coef"}
    with pytest.raises(rk.ConfigError, match="loss_type: 'dft' has no counterpart"):
        loaded("sft", loss_type="dft")


def test_gkd_trains_on_both_kinds_of_rows_in_their_shares() -> None:
    run = loaded(teacher_model_name_or_path="t", lmbda=0.25, beta=0.3, temperature=1.0)
    assert [(t.on, t.coef) for t in run.objective] == [("policy", 0.25), ("dataset", 0.75)]
    assert (run.rollout.prompts, run.rollout.n, run.sampling.max_tokens) == (2, 1, 128)
    assert run.data.demonstrations is not None and run.data.demonstrations.per_step == 6
    assert isinstance(run.teacher, rk.references.Frozen) and run.teacher.path == "t" and run.reference is None
    assert not loaded(lmbda=0.0).online and loaded(lmbda=1.0, beta=1.0).data.demonstrations is None
    taught = loaded(teacher_model_name_or_path="t", max_completion_length=64, top_p=1.0)  # DistillationConfig
    assert taught.objective == (rk.FullDivergence(f="reverse_kl", anchor="teacher", reduce="token"),)
    assert (taught.rollout.prompts, taught.sampling.max_tokens) == (8, 64)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_divergence_of_gkd_is_that_of_trl(beta: float) -> None:
    """Value and gradient of ``generalized_jsd_loss``, written again from TRL's code: its mixture is ``beta`` teacher."""
    term = loaded(teacher_model_name_or_path="t", lmbda=1.0, beta=beta).objective[0]
    generator = torch.Generator().manual_seed(0)
    logits, taught = (torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(2))

    def theirs(x: torch.Tensor) -> torch.Tensor:
        s, t = x.log_softmax(-1), taught.log_softmax(-1)
        if beta in (0, 1):
            p, q = (t, s) if beta == 0 else (s, t)
            return (p.exp() * (p - q)).sum()
        m = (beta * t.exp() + (1 - beta) * s.exp()).log()
        return (beta * t.exp() * (t - m) + (1 - beta) * s.exp() * (s - m)).sum()

    def ours(x: torch.Tensor) -> torch.Tensor:
        s, t = x.log_softmax(-1), taught.log_softmax(-1)
        return (s.exp() * term.generator.value(s - t)).sum()

    values, slopes = zip(*(evaluated(f, logits) for f in (theirs, ours)), strict=True)
    assert values[0] == pytest.approx(values[1], abs=1e-12)
    assert slopes[0] == pytest.approx(slopes[1], abs=1e-12)


def evaluated(f: Callable[[torch.Tensor], torch.Tensor], at: torch.Tensor) -> tuple[float, list[float]]:
    """Value and gradient."""
    x = at.clone().requires_grad_()
    y = f(x)
    return float(y), torch.autograd.grad(y, x)[0].flatten().tolist()


def test_the_program_reads_yaml_and_writes_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "grpo.yaml").write_text(
        "model_name_or_path: m\nlearning_rate: 1e-6\nmax_steps: 10\ntop_k: 0\ndataset_name: d\n"
    )
    assert main(["convert", str(tmp_path / "grpo.yaml"), "--processes", "4"]) == 0
    (tmp_path / "ours.yaml").write_text(capsys.readouterr().out)
    run = rk.load(tmp_path / "ours.yaml")
    assert run.steps == 10 and run.cluster is not None and run.cluster.learners == 4 and run.rollout.prompts == 4
    assert main(["convert", str(tmp_path / "grpo.yaml"), "--out", str(tmp_path / "again.yaml")]) == 0
    assert "again.yaml: 0 settings were not carried over" in capsys.readouterr().out


TRL = importlib.util.find_spec("trl") is not None


@pytest.mark.slow
@pytest.mark.skipif(not TRL, reason="TRL is not installed")
@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.filterwarnings("ignore")
def test_both_train_alike_from_one_file(beta: float, tiny: Path, tmp_path: Path) -> None:
    """Three steps on the responses that TRL sampled: an engine here hands them on, and losses and weights are equal."""
    from tests.moving.trl_run import compare

    ours, theirs = compare(tiny, tmp_path, beta)
    assert ours == pytest.approx(theirs, abs=1e-6) and len(theirs) == 3
    assert any(abs(x) > 1e-3 for x in theirs), "losses of zero would be equal, too"
