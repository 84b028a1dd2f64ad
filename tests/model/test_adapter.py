"""Adapters: what is sampled, compared with and exported is what is trained, or the adapter is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import rlkit as rk
from rlkit.data.tasks import Sorting
from rlkit.errors import ModelError
from rlkit.learner.learner import Learner
from rlkit.model import adapter
from rlkit.model.export import Export, exported
from rlkit.model.load import load_lm
from rlkit.model.policy import PolicyModel
from rlkit.model.reference import AdapterOff, OwnWeights
from rlkit.model.tiny import make_tiny
from rlkit.types import Batch, Prompt, Rollout, Sampling
from tests.model.families import FAMILIES, make

pytestmark = pytest.mark.slow

LINEAR = {"r": 4, "lora_alpha": 32, "target_modules": "all-linear"}
BATCH = Batch.from_rollouts(
    [Rollout(Prompt("0", (3, 4, 5), ""), [4, 5, 6, 7, 8, 9], [True] * 6, [-1.0] * 6, [0] * 6, "stop")]
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model whose q, k, v have biases, with a shared matrix and without; one with experts."""
    folder = tmp_path_factory.mktemp("models")
    sizes: dict[str, Any] = {"hidden": 64, "layers": 2, "heads": 2, "kv_heads": 1}
    return {
        "tied": make_tiny(folder / "tied", Sorting.alphabet, **sizes),
        "untied": make_tiny(folder / "untied", Sorting.alphabet, **sizes, tie=False),
        "experts": make(next(f for f in FAMILIES if f.name == "Qwen3-MoE"), folder / "experts"),
        "phi": make(next(f for f in FAMILIES if f.name == "Phi-3"), folder / "phi"),
    }


def learner(small: dict[str, Any], path: Path, peft: dict[str, Any]) -> Learner:
    return Learner(
        rk.load({**small, "model": {"path": str(path)}, "peft": peft}).learner_setup(str(path), frozenset({"ref"}))
    )


def move(trained: Learner) -> None:
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in trained.policy.lm.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape, generator=noise))


def plain(folder: Path, wrapped: Path | None = None) -> torch.Tensor:
    """Log-probs of BATCH by transformers alone, or by PEFT with the adapter in ``wrapped``."""
    lm: Any = AutoModelForCausalLM.from_pretrained(folder)
    if wrapped is not None:
        from peft import PeftModel

        lm = PeftModel.from_pretrained(lm, str(wrapped))
    assert BATCH.ids is not None and BATCH.action is not None
    with torch.no_grad():
        log_p = lm(input_ids=BATCH.ids[None]).logits[0].log_softmax(-1)
    return log_p[BATCH.action - 1].gather(-1, BATCH.ids[BATCH.action, None])[:, 0]


RIGHT: list[tuple[str, dict[str, Any], bool]] = [  # model, peft, whether the reference is the adapter switched off
    ("tied", LINEAR, True),
    ("tied", {**LINEAR, "use_dora": True}, True),
    ("tied", {**LINEAR, "use_rslora": True, "rank_pattern": {"q_proj": 2}}, True),
    ("tied", {**LINEAR, "init_lora_weights": "pissa"}, False),
    ("tied", {**LINEAR, "init_lora_weights": "olora"}, False),
    ("tied", {**LINEAR, "init_lora_weights": "orthogonal"}, True),
    ("tied", {**LINEAR, "bias": "all"}, False),
    ("tied", {**LINEAR, "bias": "lora_only"}, False),
    ("tied", {**LINEAR, "target_modules": ["q_proj"], "lora_bias": True}, True),
    ("tied", {**LINEAR, "modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True}, True),
    ("tied", {**LINEAR, "modules_to_save": ["input_layernorm", "norm"]}, True),
    ("untied", {**LINEAR, "modules_to_save": ["lm_head"]}, True),
    ("untied", {**LINEAR, "modules_to_save": ["embed_tokens", "lm_head"]}, True),
    ("untied", {**LINEAR, "trainable_token_indices": [3, 4, 9]}, True),
    ("untied", {**LINEAR, "target_modules": ["q_proj", "embed_tokens"]}, True),
    ("experts", LINEAR, True),
    ("experts", {"r": 4, "lora_alpha": 32, "target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj"]}, True),
    ("phi", LINEAR, True),
    ("tied", {"peft_type": "IA3", "target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}, True),
    ("tied", {"peft_type": "LN_TUNING", "target_modules": ["input_layernorm"]}, True),
    ("tied", {"peft_type": "VERA", "target_modules": ["q_proj", "v_proj"]}, True),
    ("tied", {"peft_type": "LOHA", "target_modules": ["q_proj", "up_proj"]}, True),
    ("tied", {"peft_type": "LOKR", "target_modules": ["q_proj", "up_proj"]}, True),
    ("tied", {"peft_type": "OFT", "target_modules": ["q_proj", "up_proj"]}, True),
    ("tied", {"peft_type": "BOFT", "target_modules": ["q_proj", "up_proj"]}, True),
]  # fmt: skip


@pytest.mark.parametrize(("model", "peft", "off"), RIGHT, ids=str)
def test_start_reference_and_export_are_what_they_should_be(
    small: dict[str, Any], models: dict[str, Path], tmp_path: Path, model: str, peft: dict[str, Any], off: bool
) -> None:
    start = plain(models[model])
    trained = learner(small, models[model], peft)
    torch.testing.assert_close(trained.annotate([BATCH], ("old",))["old"], start, rtol=1e-4, atol=1e-4)
    assert isinstance(trained.anchors["ref"], AdapterOff if off else OwnWeights)
    assert any("a second copy" in note for note in trained.notes) is not off
    move(trained)
    now = trained.annotate([BATCH], ("old",))["old"]
    assert float((now - start).abs().max()) > 1e-3
    torch.testing.assert_close(trained.anchors["ref"].logprobs(BATCH, Sampling()), start, rtol=1e-5, atol=1e-5)
    trained.export(str(tmp_path))
    torch.testing.assert_close(plain(tmp_path), now, rtol=1e-5, atol=2e-5)
    base_kept = not str(peft.get("init_lora_weights")).startswith(("pissa", "olora"))
    assert (tmp_path / "adapter").is_dir() is base_kept  # of another base, an adapter is worth nothing
    if base_kept:
        torch.testing.assert_close(plain(models[model], tmp_path / "adapter"), now, rtol=1e-5, atol=2e-5)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (
        "tied",
        {**LINEAR, "init_lora_weights": False},
        r"changes the model by .* nats per token before anything is trained",
    ),
    ("tied", {**LINEAR, "init_lora_weights": "eva"}, "eva is computed from data before training"),
    ("tied", {**LINEAR, "init_lora_weights": "corda"}, "corda is computed from data before training"),
    ("tied", {**LINEAR, "init_lora_weights": "loftq"}, "loftq makes up for the rounding of a quantized model"),
    (
        "untied",
        {**LINEAR, "target_modules": ["o_proj"], "lora_bias": True},
        "cannot be merged into the weights of .*o_proj",
    ),
    (
        "tied",
        {**LINEAR, "modules_to_save": ["embed_tokens"]},
        "where embedding and output layer share a matrix, name both",
    ),
    ("tied", {**LINEAR, "modules_to_save": ["lm_head"]}, "where embedding and output layer share a matrix, name both"),
    ("tied", {**LINEAR, "trainable_token_indices": [3]}, "the output layer is adapted"),
    ("untied", {**LINEAR, "target_modules": ["q_proj", "lm_head"]}, "the output layer is adapted"),
    ("tied", {**LINEAR, "alora_invocation_tokens": [3]}, "engines know no adapters"),
    ("tied", {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}, "puts virtual tokens into the prompt"),
    ("tied", {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4}, "puts virtual tokens into the prompt"),
    ("tied", {"peft_type": "ADALORA", "target_modules": ["q_proj"], "total_step": 10}, "redistributes its ranks"),
    ("tied", {"peft_type": "PVERA", "target_modules": ["q_proj"]}, "draws random numbers while it trains"),
    ("tied", {"peft_type": "POLY", "target_modules": ["q_proj"]}, "does not run with this adapter"),
    ("tied", {"peft_type": "LORO"}, "peft.peft_type: found 'LORO', expected one of"),
    ("tied", {**LINEAR, "rank": 4}, "peft: .*unexpected keyword argument 'rank'"),
    ("tied", {**LINEAR, "target_modules": ["q_prj"]}, "peft: .*q_prj"),
]


@pytest.mark.parametrize(("model", "peft", "told"), REFUSED, ids=str)
def test_adapters_that_cannot_be_right_are_refused(
    small: dict[str, Any], models: dict[str, Path], model: str, peft: dict[str, Any], told: str
) -> None:
    with pytest.raises(ModelError, match=told) as caught:
        learner(small, models[model], peft)
    assert "\n" not in str(caught.value)


def test_an_export_that_lacks_what_was_trained_is_found_before_training(
    small: dict[str, Any], models: dict[str, Path]
) -> None:
    """Whatever the reason: here the base's own weights stand where merged ones belong."""
    lm = load_lm(models["experts"])
    start = adapter.probe(PolicyModel(lm))
    policy = PolicyModel(adapter.add_adapter(lm, {**LINEAR}, 0))
    right = learner(small, models["experts"], LINEAR).exports
    layers = dict(adapter.wrappers(policy.base))

    def stale(name: str) -> Export:
        layer = next((n for n in layers if name.startswith(f"{n}.")), "")
        return Export(
            name, (), torch.float32, (), lambda: layers[layer].get_base_layer().get_parameter(name[len(layer) + 1 :])
        )

    with pytest.raises(
        ModelError, match=r"would be exported for model.layers.0.* lack 100% of what the adapter does there"
    ):
        adapter.prove(policy, start, [stale(name) for name in right])


def test_in_16_bits_rounding_is_no_fault_of_an_export_and_hides_none(models: dict[str, Path]) -> None:
    """Weights are as large, beside what an adapter adds, as those of a trained model."""
    lm = load_lm(models["untied"], torch.bfloat16)
    with torch.no_grad():
        for name, p in lm.named_parameters():
            if "proj" in name:
                p.mul_(64)
    start = adapter.probe(PolicyModel(lm).eval())
    policy = PolicyModel(adapter.add_adapter(lm, {**LINEAR, "r": 16}, 0))
    exports = {e.name: e for e in exported(policy.base)}
    assert adapter.prove(policy, start, exports.values()).base_kept
    for layer, wrapper in adapter.wrappers(policy.base):
        name, plain = f"{layer}.weight", wrapper.get_base_layer().weight
        stale = dataclasses.replace(exports[name], value=lambda plain=plain: plain.detach())
        with pytest.raises(ModelError, match="lack 100% of what the adapter does there"):
            adapter.prove(policy, start, (exports | {name: stale}).values())


def test_a_run_with_pissa_starts_at_its_reference_and_proves_its_export(small: dict[str, Any]) -> None:
    """With the adapter switched off, the "reference" was 6 nats per token away."""
    folder = rk.train(rk.load({**small, "peft": {**LINEAR, "init_lora_weights": "pissa"}, "steps": 2}), quiet=True)
    first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert abs(first["kl/ref"]) < 1e-4
    assert json.loads((folder / "summary.json").read_text())["export_gap"] < 1e-4


@pytest.mark.parametrize(
    ("peft", "lr", "told"),
    [
        ({"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}, 1e-4, ["only attention layers"]),
        ({**LINEAR}, 1e-6, ["a rate for full fine-tuning"]),
        ({"r": 256, "lora_alpha": 1, "target_modules": "all-linear"}, 1e-4, ["multiplied by 0.0039"]),
        (
            {"r": 64, "lora_alpha": 1, "target_modules": ["q_proj"]},
            1e-6,
            ["only attention", "a rate for", "multiplied by"],
        ),
        ({"r": 256, "lora_alpha": 16, "use_rslora": True, "target_modules": "all-linear"}, 1e-4, []),
        ({**LINEAR}, 1e-5, []),
    ],
)
def test_what_will_hardly_learn_is_told_at_the_start(
    small: dict[str, Any], models: dict[str, Path], peft: dict[str, Any], lr: float, told: list[str]
) -> None:
    run = rk.load({**small, "peft": peft, "learner": {"lr": lr}})
    notes = Learner(run.learner_setup(str(models["tied"]), frozenset())).notes
    assert len(notes) == len(told)
    assert all(text in note and note.startswith("hint: peft: ") for text, note in zip(told, notes, strict=True))
