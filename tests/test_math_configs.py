"""Every configuration of configs/math: loads, fits its real model, and takes a step on a small copy of that architecture."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import string
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen2Config, Qwen3Config

import rlkit as rk
from rlkit.checks import check, context_length
from rlkit.cluster.ray import check_resources
from rlkit.data.curriculum import ZeroVariance
from rlkit.data.render import load_template
from rlkit.data.sets import find_set, is_named
from rlkit.learner.plan import micro_batch
from rlkit.model.reference import Loaded
from rlkit.model.tiny import make_tiny
from rlkit.objective.oracle import dishonest, examine_all
from rlkit.types import Prompt
from tests.data.tables import TABLES

pytestmark = pytest.mark.slow

CONFIGS = sorted(Path("configs/math").glob("*.yaml"))
IDS = [p.stem for p in CONFIGS]
GPUS = 8  # of one node; every header says so, or fewer

# config.json of each model as published: class, hidden, feed-forward, layers, heads, kv heads, vocabulary, context, tied, parameters in billions
PUBLISHED: dict[str, tuple[type[PretrainedConfig], int, int, int, int, int, int, int, bool, float]] = {
    "Qwen/Qwen2.5-0.5B-Instruct": (Qwen2Config, 896, 4864, 24, 14, 2, 151936, 32768, True, 0.494),
    "Qwen/Qwen2.5-1.5B": (Qwen2Config, 1536, 8960, 28, 12, 2, 151936, 131072, True, 1.544),
    "Qwen/Qwen2.5-Math-7B": (Qwen2Config, 3584, 18944, 28, 28, 4, 152064, 4096, False, 7.616),
    "Qwen/Qwen2.5-7B-Instruct": (Qwen2Config, 3584, 18944, 28, 28, 4, 152064, 32768, False, 7.616),
    "Qwen/Qwen3-4B": (Qwen3Config, 2560, 9728, 36, 32, 8, 151936, 40960, True, 4.022),
    "Qwen/Qwen3-8B": (Qwen3Config, 4096, 12288, 36, 32, 8, 151936, 40960, False, 8.191),
    "Qwen/Qwen3-8B-Base": (Qwen3Config, 4096, 12288, 36, 32, 8, 151936, 32768, False, 8.191),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": (Qwen2Config, 1536, 8960, 28, 12, 2, 151936, 131072, False, 1.777),
    "meta-llama/Llama-3.1-8B-Instruct": (LlamaConfig, 4096, 14336, 32, 32, 8, 128256, 131072, False, 8.030),
}


def published(path: str) -> tuple[PretrainedConfig, float]:
    cls, hidden, inner, layers, heads, kv, vocabulary, context, tied, billions = PUBLISHED[path]
    extra = {"head_dim": 128} if cls is Qwen3Config else {}
    return cls(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        vocab_size=vocabulary,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
        **extra,
    ), billions


@pytest.mark.parametrize("path", CONFIGS, ids=IDS)
def test_it_loads_says_what_it_is_and_passes_the_checks(path: Path) -> None:
    lines = path.read_text().splitlines()
    header = "\n".join(line for line in lines if line.startswith("#"))
    assert len([line for line in lines if line and not line.startswith("#")]) <= 25
    assert f"rlkit train {path}" in header and f"rlkit submit {path} --address" in header
    for word in ("Target", "Hardware", "Time", "estimated", r"\d{4}\.\d{5}"):
        assert re.search(word, header, re.IGNORECASE), word
    run = rk.load(path)
    check(run)
    assert run.name == path.stem and run.data.task is None and run.model.make is None and run.model.warm_up is None
    assert run.data.size is None and run.data.test_size is None  # inherited from a task, they would cut the data
    assert (
        run.model.path in PUBLISHED
        and run.model.dtype == "bfloat16"
        and run.learner.lr <= 1e-6
        and run.learner.gradient_checkpointing
    )
    load_template(run.data.template)
    for source in [run.data.train, *(run.data.test if isinstance(run.data.test, tuple) else [run.data.test])]:
        assert isinstance(source, str) and (
            source.endswith(".jsonl") or (is_named(source) and find_set(source, "data"))
        )
    assert not dishonest(examine_all(run.objective, run.reward_penalties), run.off_policy)
    published_rows = sum(
        find_set(s, "data")[1].size[1] or 0
        for s in (run.data.test if isinstance(run.data.test, tuple) else (run.data.test,))
    )
    assert run.eval.prompts >= min(published_rows, 500)
    if isinstance(run.data.test, tuple) and "aime24" in run.data.test:
        assert run.eval.prompts == published_rows  # else only the first set of the list would be seen


@pytest.mark.parametrize("path", CONFIGS, ids=IDS)
def test_it_fits_the_real_model_and_the_hardware(path: Path, tmp_path: Path) -> None:
    run = rk.load(path)
    config, billions = published(run.model.path)
    config.save_pretrained(tmp_path)
    longest = Prompt("longest", (0,) * run.data.max_prompt_tokens, "")
    response = run.sampling.max_tokens
    assert (
        run.data.max_prompt_tokens + response
        <= context_length(run, [longest], str(tmp_path))
        <= config.max_position_embeddings
    )
    # The longest row is one micro-batch.
    assert micro_batch(run.learner.max_tokens, "cuda", 1) >= run.data.max_prompt_tokens + response
    for spec in run.rewards:
        assert spec.args.get("limit", response) == response
    for term in run.objective:
        assert term.reduce != "const" or term.const == response
    if run.rollout.interrupt is not None:
        assert (
            run.rollout.interrupt.high + 100 < response
            and run.rollout.interrupt.until == "</think>" in run.rollout.interrupt.text
        )
    cluster = run.cluster
    assert cluster is not None and config.num_key_value_heads % cluster.tensor_parallel == 0
    gpus = 1 if cluster.gpus == 0.5 else GPUS
    check_resources(cluster, {"CPU": 64.0, "GPU": float(gpus)})
    batch = run.rollout.prompts * run.rollout.n
    assert batch % (run.learner.epochs * run.learner.minibatches * cluster.learners) == 0
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    parameters = sum(p.numel() for p in model.parameters()) / 1e9
    assert parameters == pytest.approx(billions, abs=6e-4)  # the published dimensions are the published model
    # What a learner keeps: bfloat16 weights and gradients, float32 master weights and two moments: 16 bytes, sharded as ZeRO's stage says.
    assert run.deepspeed is not None
    whole = {1: 4, 2: 2, 3: 0}[run.deepspeed["zero_optimization"]["stage"]]
    state = parameters * (whole + (16 - whole) / cluster.learners)
    on_card = state + (
        2 * parameters
        if "ref" in run.needs and not (isinstance(run.reference, Loaded) and run.reference.offload)
        else 0
    )
    assert on_card < 55, f"{on_card:.0f} GB of 80"


def family(path: str) -> Any:
    return {Qwen2Config: "qwen2", Qwen3Config: "qwen3", LlamaConfig: "llama"}[PUBLISHED[path][0]]


@pytest.fixture(scope="module")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One tiny model a family, with a character tokenizer and a chat template."""
    folder = tmp_path_factory.mktemp("models")
    return {
        f: make_tiny(
            folder / f, string.printable + "πé", family=f, hidden=64, layers=2, heads=2, kv_heads=1, max_length=1024
        )
        for f in ("qwen2", "qwen3", "llama")
    }


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, config: str | None = None, *, split: str, data_files: str | None = None) -> Any:
        return datasets.Dataset.from_list(TABLES[name, config, data_files or split])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


@pytest.mark.parametrize("path", CONFIGS, ids=IDS)
def test_a_small_copy_takes_a_step(path: Path, tmp_path: Path, hub: None, small_models: dict[str, Path]) -> None:
    own = rk.load(path)
    overrides = [
        f"out={tmp_path}",
        "steps=1",
        f"model.path={small_models[family(own.model.path)]}",
        "model.dtype=float32",
        "deepspeed=null",
        "cluster=null",
        "vllm={}",
        "rollout.engine=hf",
        "rollout.prompts=2",
        "rollout.n=4",
        "rollout.max_lag=0",
        "rollout.max_waste=50",
        "sampling.max_tokens=8",
        "sampling.stop=[]",
        "learner.lr=1e-4",
        "learner.warmup_steps=0",
        "learner.max_tokens=4096",
        "eval.prompts=2",
        f"learner.minibatches={min(2, own.learner.minibatches)}",
        "eval.n=1",
        "log.tensorboard=false",
    ]
    # A random model is never right: rewards that differ stand in for the verifier, and every other reward stays.
    rewards = [
        "{fn: 'tests/rewards/examples.py:varied', name: math}",
        *(f"{{fn: '{r.fn}', args: {{limit: 8, buffer: 2}}}}" for r in own.rewards if r.fn != "math"),
    ]
    overrides.append(f"rewards=[{', '.join(rewards)}]")
    if own.rollout.interrupt is not None:
        overrides.append("rollout.interrupt={low: 3, high: 4, text: '!', until: null}")
    if own.data.stored is not None:
        stored, hard = tmp_path / "stored.jsonl", tmp_path / "hard.jsonl"
        stored.write_text(
            "\n".join(
                json.dumps({"prompt": f"{i} + 1", "tokens": [5 + i, 7, 1], "logp": [-4.0, -4.5, -5.0]})
                for i in range(5)
            )
        )
        hard.write_text(
            "\n".join(
                json.dumps(
                    {"id": f"h{i}", "prompt": "rendered", "question": f"What is {i} + {i}?", "answer": str(2 * i)}
                )
                for i in range(4)
            )
        )
        overrides += [f"data.stored.path={stored}", "data.stored.per_step=4", f"data.train={hard}"]
    run = rk.load(path, overrides)
    assert (run.advantage, run.objective, run.data.sampler, run.data.drop) == (
        own.advantage,
        own.objective,
        own.data.sampler,
        own.data.drop,
    )
    folder = rk.train(run, quiet=True)
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert math.isfinite(row["loss/total"]) and row["learner/grad_norm"] > 0


PAIRS = [
    ("qwen3-4b-rpg-4k", "rpg_rf_urkl"),
    ("qwen2.5-7b-rpg", "rpg_rf_ufkl"),
    ("qwen2.5-math-7b-dr-grpo", "dr_grpo"),
    ("qwen3-8b-base-fg-expo", "fg_expo"),
    ("qwen3-8b-scalerl", "scalerl"),
]


@pytest.mark.parametrize(("rung", "algorithm"), PAIRS, ids=[r for r, _ in PAIRS])
def test_a_rung_is_the_algorithm_of_its_name(rung: str, algorithm: str) -> None:
    ours, theirs = rk.load(f"configs/math/{rung}.yaml"), rk.load(f"configs/algorithms/{algorithm}.yaml")
    assert [dataclasses.replace(t, const=1.0) for t in ours.objective] == [
        dataclasses.replace(t, const=1.0) for t in theirs.objective
    ]
    # Beside a punishment of length, dynamic sampling names the reward that it looks at.
    drop = tuple(
        dataclasses.replace(rule, of=None) if isinstance(rule, ZeroVariance) else rule for rule in ours.data.drop
    )
    assert (ours.advantage, ours.data.sampler, drop, ours.reward_penalties) == (
        theirs.advantage,
        theirs.data.sampler,
        theirs.data.drop,
        theirs.reward_penalties,
    )


@pytest.mark.parametrize(
    "path",
    [p for p in (*CONFIGS, *Path("configs/algorithms").glob("*.yaml")) if "overlong" in p.read_text()],
    ids=lambda p: p.stem,
)
def test_dynamic_sampling_looks_at_correctness_where_length_is_punished(path: Path) -> None:
    run = rk.load(path)
    assert [rule.of for rule in run.data.drop if isinstance(rule, ZeroVariance)] == [run.scored_by[0].label] * bool(
        run.data.drop
    )


def test_methods_of_one_setting_differ_in_the_method_only() -> None:
    for model, length in (("qwen3-4b", "-4k"), ("qwen3-4b", "-8k"), ("qwen2.5-7b", "")):
        runs = [rk.load(f"configs/math/{model}-{method}{length}.yaml") for method in ("rpg", "dapo", "grpo")]
        settings = [
            (
                r.model,
                r.sampling,
                r.rollout,
                r.eval,
                r.steps,
                r.seed,
                r.cluster,
                r.deepspeed,
                r.data.train,
                r.data.test,
                r.data.template,
            )
            for r in runs
        ]
        assert settings[0] == settings[1] == settings[2]


def test_the_documentation_lists_every_rung() -> None:
    text = Path("docs/math.md").read_text()
    assert all(f"`{p.stem}`" in text for p in CONFIGS)
