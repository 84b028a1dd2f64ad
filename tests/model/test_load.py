"""A model is loaded whole and right, or refused in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import rlkit as rk
from rlkit.data.tasks import Sorting
from rlkit.errors import ModelError
from rlkit.learner.learner import Learner
from rlkit.model import packed
from rlkit.model.load import examine, load_for, load_lm
from rlkit.model.policy import proven
from rlkit.model.tiny import make_tiny, make_tokenizer
from tests.model.families import FAMILIES, GPT, Family, make

pytestmark = pytest.mark.slow

WEIGHT = "model.layers.1.mlp.up_proj.weight"
Change = Callable[[Path], Any]


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    def apply(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", {"format": "pt"})

    return apply


def config(**changes: Any) -> Change:
    def apply(folder: Path) -> None:
        known = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(known | changes))

    return apply


def cut(size: int) -> Change:
    def apply(folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:size])

    return apply


def sharded(folder: Path) -> None:
    names = load_file(folder / "model.safetensors").keys()
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    places = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


BROKEN: dict[str, tuple[Change, str]] = {
    "a tensor is missing": (weights(lambda s: s.pop(WEIGHT)), rf"tensor {WEIGHT} is missing in .*random numbers"),
    "a tied matrix is missing": (
        weights(lambda s: s.pop("model.embed_tokens.weight")),
        r"tensors lm_head.weight and 1 other are missing",
    ),
    "a tensor of another size": (
        weights(lambda s: s.update({WEIGHT: torch.zeros(3, 3)})),
        rf"tensor {WEIGHT} of .* has the size \[3, 3\], but its config.json describes \[128, 64\]",
    ),
    "layers that the configuration has not": (
        weights(lambda s: s.update({"model.layers.7.mlp.up_proj.weight": torch.zeros(3, 3)})),
        r"holds tensor model.layers.7.mlp.up_proj.weight, which the model of its config.json has no place for",
    ),
    "cut off": (cut(3000), r"model.safetensors is damaged \(.*\). Copy the model again"),
    "empty": (cut(0), r"model.safetensors is damaged"),
    "a shard is missing": (
        sharded,
        r"model-00002-of-00002.safetensors is missing; model.safetensors.index.json names it",
    ),
    "a damaged index": (
        lambda folder: (sharded(folder), (folder / "model.safetensors.index.json").write_text('{"weight_map": ')),
        r"model.safetensors.index.json is damaged",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"could not be loaded .*no file named"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), r"is not a model"),
    "a torn configuration": (
        lambda folder: (folder / "config.json").write_text("{"),
        r"is not a model: .*not a valid JSON",
    ),
    "another number of layers": (config(num_hidden_layers=3), r"is not a model: "),
    "a classifier": (
        config(architectures=["Qwen2ForSequenceClassification"]),
        r"was saved as Qwen2ForSequenceClassification, not as a causal language model \(Qwen2ForCausalLM\)",
    ),
    "quantized": (
        config(quantization_config={"quant_method": "awq", "bits": 4}),
        r"has quantized weights, which cannot be trained",
    ),
    "an adapter": (
        lambda folder: (folder / "adapter_config.json").write_text("{}"),
        r"holds an adapter, not a whole model",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_model_is_refused_before_anything_starts(case: str, tiny: Path, tmp_path: Path) -> None:
    change, told = BROKEN[case]
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    change(folder)
    for read in (examine, load_lm):
        with pytest.raises(ModelError, match=told) as caught:
            read(folder, where="reference.path")
        assert str(caught.value).startswith("reference.path: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(value: float, tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    weights(lambda s: s[WEIGHT][3].fill_(value))(folder)
    with pytest.raises(ModelError, match=rf"model.path: tensor {WEIGHT} of .* holds NaN or infinite numbers"):
        load_lm(folder)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (transformers.BertConfig(architectures=["BertForMaskedLM"]), r"was saved as BertForMaskedLM"),
        (transformers.T5Config(), r"is an encoder-decoder \(t5\)"),
        (transformers.ViTConfig(), r"is a vit, which transformers knows no causal language model of"),
        (transformers.LlavaConfig(), r"is a model of text and other inputs \(llava\)"),
    ],
    ids=lambda x: x.model_type if hasattr(x, "model_type") else "",
)
def test_other_kinds_of_models_are_refused_by_what_they_are(config: Any, told: str, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=told):
        examine(tmp_path)


def test_a_value_head_beside_the_model_does_no_harm(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    weights(lambda s: s.update({"v_head.summary.weight": torch.zeros(1, 64)}))(folder)
    examine(folder)


@pytest.mark.parametrize("section", ["model", "reference", "teacher", "soup", "critic"])
def test_every_model_of_a_run_is_examined_before_it_starts(
    small: dict[str, Any], tiny: Path, tmp_path: Path, section: str
) -> None:
    broken = Path(shutil.copytree(tiny, tmp_path / "broken"))
    weights(lambda s: s.pop(WEIGHT))(broken)
    more: dict[str, Any] = {
        "model": {"model": {"path": str(broken)}},
        "reference": {"reference": {"type": "EMA", "path": str(broken)}},
        "teacher": {
            "teacher": {"type": "Frozen", "path": str(broken)},
            "objective": [{"type": "PPOClip"}, {"type": "KL", "estimator": "k2", "anchor": "teacher"}],
        },
        "soup": {"reference": {"type": "Soup", "paths": [str(tiny), str(broken)]}},
        "critic": {
            "critic": {"path": str(broken)},
            "advantage": {"type": "GAE"},
            "objective": [{"type": "PPOClip"}, {"type": "ValueMSE"}],
        },
    }[section]
    with pytest.raises(
        ModelError, match=rf"^{'reference' if section == 'soup' else section}.path: tensor {WEIGHT} is missing"
    ):
        rk.train(rk.load({**small, **more}), quiet=True)
    assert not (tmp_path / "runs").exists()


def test_a_teacher_with_another_tokenizer_of_the_same_size_is_refused(
    small: dict[str, Any], tiny: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(tiny, tmp_path / "other"))
    make_tokenizer(Sorting.alphabet[::-1]).save_pretrained(other)
    run = {
        **small,
        "teacher": {"type": "Frozen", "path": str(other)},
        "objective": [{"type": "PPOClip"}, {"type": "KL", "estimator": "k2", "anchor": "teacher"}],
    }
    with pytest.raises(
        ModelError, match=r"teacher.path: the tokenizer of .* gives other ids than the policy's to \d+ tokens"
    ):
        rk.train(rk.load(run), quiet=True)


def test_a_model_whose_code_does_more_to_its_logits_is_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proven(load_lm(tiny), "model.path", 1e-3)
    lm = load_lm(tiny)
    forward = type(lm).forward

    def doubled(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = forward(self, *args, **kwargs)
        out.logits = out.logits * 2
        return out

    monkeypatch.setattr(type(lm), "forward", doubled)
    with pytest.raises(
        ModelError, match=r"log-probabilities of Qwen2ForCausalLM differ from the model's own by .* transforms logits"
    ):
        proven(lm, "model.path", 1e-3)


def test_a_model_that_sees_later_tokens_is_refused(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=14,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=64,
        is_decoder=False,
    )
    transformers.BertLMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="lets tokens see later ones"):
        proven(load_lm(tmp_path), "model.path", 1e-6)


def test_an_attention_that_leaves_out_what_the_model_needs_is_replaced_or_refused(
    small: dict[str, Any], tmp_path: Path
) -> None:
    """Gemma 2 bounds its attention scores, of which transformers' default attention knows nothing."""
    gemma = next(f for f in FAMILIES if f.name == "Gemma 2")
    path = make(gemma, tmp_path / "gemma")
    assert transformers.AutoModelForCausalLM.from_pretrained(path).config._attn_implementation == "sdpa"
    lm, _ = load_for(path, torch.float32, None)
    assert lm.config._attn_implementation == "eager"
    with pytest.raises(
        ModelError, match=r"model.attention: sdpa gives other hidden states .*Set model.attention: eager"
    ):
        Learner(
            rk.load({**small, "model": {"path": str(path), "attention": "sdpa"}}).learner_setup(str(path), frozenset())
        )


def test_a_reference_of_another_family_is_not_packed_because_the_policy_is(
    small: dict[str, Any], tiny: Path, tmp_path: Path
) -> None:
    path = make(next(f for f in FAMILIES if f.name == "Mistral"), tmp_path / "mistral")
    learner = Learner(
        rk.load({**small, "reference": {"type": "Frozen", "path": str(path)}}).learner_setup(
            str(tiny), frozenset({"ref"})
        )
    )
    assert learner.layout == "packed"
    assert learner.anchors["ref"].model.base.config._attn_implementation != packed.NAME


def test_only_models_of_one_shape_make_a_soup(small: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    other = make_tiny(tmp_path / "other", Sorting.alphabet, hidden=64, layers=1, heads=2, kv_heads=1)
    with pytest.raises(ModelError, match=r"reference.paths: tensor model.layers.1.* only models of one architecture"):
        Learner(
            rk.load({**small, "reference": {"type": "Soup", "paths": [str(tiny), str(other)]}}).learner_setup(
                str(tiny), frozenset({"ref"})
            )
        )


def test_randomness_that_only_the_configuration_holds_is_refused_before_training(tmp_path: Path) -> None:
    """Falcon's layers read their dropout from there at each pass: two passes over one row differed by 2 nats."""
    falcon = Family(
        "Falcon",
        "FalconConfig",
        True,
        {"hidden_dropout": 0.1},
        base={"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    )
    path = make(falcon, tmp_path)
    with pytest.raises(ModelError, match=r"in training mode FalconForCausalLM gives other .*dropout to 0"):
        proven(load_lm(path), "model.path", 1e-3)
    proven(load_lm(path), "teacher.path", 1e-3, trained=False)


def test_a_routers_threshold_is_not_switched_off_as_noise(tmp_path: Path) -> None:
    """Phi-MoE's `router_jitter_noise` says which experts count, without training, too; in training mode they are drawn."""
    phi = Family("Phi-MoE", "PhimoeConfig", False, {"num_local_experts": 4, "num_experts_per_tok": 2}, base=GPT)
    path = make(phi, tmp_path)
    proven(load_lm(path), "teacher.path", 1e-4, trained=False)  # it was another model, by 0.5 nats
    with pytest.raises(ModelError, match="if there is none, it cannot be trained"):
        proven(load_lm(path), "model.path", 1e-3)


def test_a_decoder_that_transformers_does_not_find_is_found(tmp_path: Path) -> None:
    proven(load_lm(make(next(f for f in FAMILIES if f.name == "Llama 4"), tmp_path)), "model.path", 1e-4)


def test_attention_that_names_its_mask_is_asked_too(tmp_path: Path) -> None:
    """Doge hands its mask over by name: the question what torch's attention would pass over ended in a TypeError."""
    _, why = load_for(make(Family("Doge", "DogeConfig", False), tmp_path), torch.float32, None)
    assert why is None or "its own code" in why


def test_a_model_that_keeps_its_own_attention_is_not_called_packed(tmp_path: Path) -> None:
    packed.register()
    rwkv = Family(
        "RWKV", "RwkvConfig", False, {"hidden_size": 64, "num_hidden_layers": 2, "context_length": 64}, base={}
    )
    _, why = load_for(make(rwkv, tmp_path), torch.float32, packed.NAME)
    assert why == "this model's code takes no attention but its own"
