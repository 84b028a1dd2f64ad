"""What engines are sent: the weights of the plain model, whole, and after the first time only those that training can change."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from rlkit.cluster.groups import EngineGroup, LearnerGroup, LocalWorkers
from rlkit.cluster.sync import WeightSync
from rlkit.data.tasks import Sorting
from rlkit.learner.learner import Learner
from rlkit.model.load import load_lm
from rlkit.model.policy import PolicyModel, evaluate_new
from rlkit.model.tiny import make_tiny
from rlkit.rollout.vllm import VLLMEngine
from rlkit.run import load as make_run
from rlkit.types import Batch, Prompt, Rollout, Sampling

BATCH = Batch.from_rollouts(
    [Rollout(Prompt("0", (3, 4, 5), ""), [4, 5, 6, 7], [True] * 4, [-1.0] * 4, [0] * 4, "stop")]
)
ATTENTION = [
    f"model.layers.{i}.self_attn.{m}"
    for i in (0, 1)
    for m in (
        "q_proj.weight",
        "q_proj.bias",
        "k_proj.weight",
        "k_proj.bias",
        "v_proj.weight",
        "v_proj.bias",
        "o_proj.weight",
    )
]
MLP = [f"model.layers.{i}.mlp.{m}_proj.weight" for i in (0, 1) for m in ("gate", "up", "down")]


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(
        tmp_path_factory.mktemp("untied"), Sorting.alphabet, hidden=64, layers=2, heads=2, kv_heads=1, tie=False
    )


def moved(run: Any, path: Path, bucket: int = 64 << 20) -> Learner:
    """A learner whose trained parameters, all of them, are not where they started."""
    learner = Learner(dataclasses.replace(run.learner_setup(str(path), frozenset()), bucket=bucket))
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in learner.policy.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape, generator=noise))
    return learner


@pytest.mark.parametrize(
    ("adapter", "travels"),
    [
        ({"target_modules": ["q_proj", "v_proj"]}, ATTENTION),
        ({"target_modules": "all-linear", "use_dora": True}, ATTENTION + MLP),
        ({"target_modules": ["down_proj"], "use_rslora": True}, MLP),
        ({"target_modules": ["q_proj"], "bias": "all"}, ATTENTION),
        ({"target_modules": ["q_proj"], "lora_bias": True}, ATTENTION),
        ({"target_modules": ["q_proj"], "init_lora_weights": "pissa"}, ATTENTION),
        (
            {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm"]},
            ATTENTION + [f"model.layers.{i}.input_layernorm.weight" for i in (0, 1)],
        ),
        (
            {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
            [*ATTENTION, "model.embed_tokens.weight"],
        ),
        ({"target_modules": ["q_proj", "embed_tokens"]}, [*ATTENTION, "model.embed_tokens.weight"]),
    ],
    ids=lambda x: "-".join(f"{k}={v}" for k, v in x.items()) if isinstance(x, dict) else "",
)
def test_the_plain_model_with_what_travels_is_the_adapted_one(
    small: dict[str, Any], untied: Path, tmp_path: Path, adapter: dict[str, Any], travels: list[str]
) -> None:
    run = make_run({**small, "model": {"path": str(untied)}, "peft": {"r": 4, "lora_alpha": 8, **adapter}})
    learner = moved(run, untied)
    before = {n: p.detach().clone() for n, p in learner.policy.named_parameters()}
    plain = load_lm(untied)
    named, start = dict(plain.named_parameters()), {n: p.detach().clone() for n, p in plain.named_parameters()}
    changing = [name for names, _ in learner.buckets(everything=False) for name in names]
    assert sorted(changing) == sorted(travels)
    with torch.no_grad():
        for name, tensor in learner.full_weights():
            named[name].copy_(tensor)
            assert name in changing or torch.equal(tensor, start[name])
    now = learner.annotate([BATCH], ("old",))["old"]
    torch.testing.assert_close(
        evaluate_new(PolicyModel(plain), BATCH, Sampling(), frozenset()).logp.detach(), now, rtol=1e-6, atol=1e-6
    )
    # Merging has left nothing behind.
    assert all(torch.equal(before[n], p) for n, p in learner.policy.named_parameters())
    if "init_lora_weights" not in adapter:  # which changes the base under the adapter
        from peft import PeftModel

        learner.export(str(tmp_path / "out"))
        again = PeftModel.from_pretrained(load_lm(untied), str(tmp_path / "out" / "adapter"))
        ids = torch.arange(3, 9)[None]
        with torch.no_grad():
            torch.testing.assert_close(again(input_ids=ids).logits, plain(input_ids=ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("adapter", "told"),
    [
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "lm_head.weight.* leave both out"),
        ({"target_modules": ["q_proj", "lm_head"]}, "the output layer is adapted"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "lm_head.weight.* leave both out"),
    ],
)
def test_what_engines_could_not_follow_is_refused(
    small: dict[str, Any], tiny: Path, adapter: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        Learner(make_run({**small, "peft": {"r": 4, **adapter}}).learner_setup(str(tiny), frozenset()))


def test_an_engine_that_starts_with_other_weights_has_all_of_them_after_the_first_publish(
    small: dict[str, Any], tiny: Path
) -> None:
    """vLLM with weights of its own, an adapter on a part of fused matrices that lie in several buckets, a tied output layer."""
    run = make_run(
        {
            **small,
            "objective": [{"type": "NLL", "acknowledge": True}],
            "learner": {"lr": 1e-2},
            "peft": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "gate_proj"]},
        }
    )
    learner = moved(run, tiny, bucket=1 << 14)
    learners = LearnerGroup(LocalWorkers(learner), learner.setup)
    assert len(learners.buckets(everything=False)) > 8
    engine = VLLMEngine(str(tiny), max_model_len=64, options={"load_format": "dummy"})
    engines = EngineGroup(LocalWorkers(engine))
    sync = WeightSync(learners, engines, "wait")
    try:
        sent = []
        for version in (1, 2, 3):
            sent.append(sync.publish(version)["sync/mib"])
            rollouts = engines.generate(Prompt("0", (3, 4, 5), ""), 8, Sampling(max_tokens=16, seed=version))
            gaps = [
                abs(a - b)
                for r, known in zip(rollouts, learners.logprobs(rollouts), strict=True)
                for a, b in zip(r.logp, known, strict=True)
            ]
            assert max(gaps) < 1e-4
            learners.update(Batch.from_rollouts(rollouts), (1.0,), seed=0)
        whole = sum(p.numel() * 4 for p in load_lm(tiny).parameters()) / 2**20
        assert sent[0] == whole and sent[1] == sent[2] < whole
    finally:
        engine.close()


def test_sharded_adapters_reach_an_engine_on_ray(small: dict[str, Any], tiny: Path, ray_session: None) -> None:
    """Two ranks under ZeRO-3: what is merged is whole only while it is gathered."""
    import ray

    from rlkit.cluster import ray as on_ray

    run = make_run(
        {
            **small,
            "objective": [{"type": "NLL", "acknowledge": True}],
            "learner": {"lr": 3e-2},
            "deepspeed": {"zero_optimization": {"stage": 3}},
            "peft": {"r": 4, "target_modules": "all-linear", "use_dora": True, "modules_to_save": ["input_layernorm"]},
            "cluster": {"engines": 1, "learners": 2, "cpus": 0.3, "timeout": 200.0},
        }
    )
    setup = run.learner_setup(str(tiny), frozenset())
    kind, generating = run.rollout.kind, run.engine_setup(str(tiny), 64)
    learner_actors, engine_actors = on_ray.start(setup, kind, generating, run.cluster)
    learners, engines = LearnerGroup(learner_actors, setup), EngineGroup(engine_actors)
    sync = WeightSync(learners, engines, "wait")
    try:
        seen = []
        for version in (1, 2, 3):
            sync.publish(version)
            rollouts = engines.generate(Prompt("0", (3, 4, 5), ""), 8, Sampling(max_tokens=16, seed=1))
            known = learners.logprobs(rollouts)
            assert (
                max(
                    abs(a - b)
                    for r, logp in zip(rollouts, known, strict=True)
                    for a, b in zip(r.logp, logp, strict=True)
                )
                < 1e-4
            )
            seen.append(known)
            learners.update(Batch.from_rollouts(rollouts), (1.0,), seed=0)
        assert seen[0] != seen[1] != seen[2]
        # What DeepSpeed and gloo open is closed to others, too.
        for actor in (*learner_actors.actors, *engine_actors.actors):
            process = psutil.Process(ray.get(actor.__ray_call__.remote(lambda self: os.getpid())))
            heard = {c.laddr.ip for c in process.net_connections("inet") if c.status == "LISTEN"}
            assert heard and heard <= {"127.0.0.1", "::ffff:127.0.0.1"}
    finally:
        learners.close()
        engines.close()
