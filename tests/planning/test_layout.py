"""The report: what fits, what does not and why, and times that follow from bytes and FLOPs."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, Qwen2Config

import rlkit as rk
from rlkit.cli import main
from rlkit.errors import ConfigError
from rlkit.planning import GPUS, Assumptions, Machine, Planner, Sharding, find_gpu, plan, plan_here, shape
from rlkit.planning.probe import probe
from rlkit.planning.speed import decode_step, forward_flops, learner_seconds, sync_seconds, update_flops
from tests.planning.test_memory import LLAMA_8B, QWEN_7B

LLAMA_70B = LlamaConfig(
    vocab_size=128256,
    hidden_size=8192,
    intermediate_size=28672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
)
SMALL = Qwen2Config(
    vocab_size=151936,
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)


def big(small: dict[str, Any], **changes: Any) -> Any:
    given = {
        **small,
        "model": {"path": "somewhere", "dtype": "bfloat16"},
        "deepspeed": {"zero_optimization": {"stage": 2}},
        "sampling": {"max_tokens": 4096},
        "rollout": {"engine": "vllm", "prompts": 64, "n": 8},
        "cluster": {"learners": 4, "engines": 4},
        "learner": {"max_tokens": 8192, "gradient_checkpointing": True},
    }
    return rk.load({**given, **changes})


def test_seven_billion_parameters_on_eight_gpus(small: dict[str, Any]) -> None:
    p = plan(big(small), "80GB", 1, 8, QWEN_7B, growth=False)
    assert p.fits and p.best is not None and p.best.step <= p.asked.step * 1.0001
    text = str(p)
    for part in (
        "7.6156 B parameters",
        "A100-80GB",
        "AdamW moments",
        "KV cache",
        "weight sync",
        "Assumed, not measured",
        "simulated with max_lag 0",
    ):
        assert part in text
    narrow = plan(big(small), "24GB", 1, 8, QWEN_7B, growth=False)
    assert not narrow.fits and "TOO LARGE by" in str(narrow)


def test_the_best_layout_can_be_configured_and_fits(small: dict[str, Any]) -> None:
    import shlex

    run = big(small, learner={"max_tokens": 8192})
    p = plan(run, "H100", 2, 8, LLAMA_8B, growth=False)
    assert p.best is not None
    given = {
        **small,
        "model": {"path": "somewhere", "dtype": "bfloat16"},
        "sampling": {"max_tokens": 4096},
        "rollout": {"engine": "vllm", "prompts": 64, "n": 8},
    }
    again = rk.load(given, shlex.split(p.best.layout.keys()))
    q = plan(again, "H100", 2, 8, LLAMA_8B, growth=False)
    assert q.fits and q.asked.layout == p.best.layout and q.asked.learner.peak == pytest.approx(p.best.learner.peak)


def test_what_is_too_large_is_named_with_a_remedy(small: dict[str, Any]) -> None:
    p = plan(big(small), "80GB", 1, 8, LLAMA_70B, growth=False)
    assert p.best is None and not p.fits
    assert "No layout fits 8 GPUs" in str(p) and "the largest part is" in str(p) and "Change:" in str(p)
    # With an adapter a model of 131 GiB is on every device for a moment before ZeRO-3 splits it: no number of GPUs helps.
    lora = {"r": 8, "target_modules": "all-linear"}
    many = plan(
        big(small, deepspeed={"zero_optimization": {"stage": 3}}, peft=lora), "80GB", 64, 8, LLAMA_70B, growth=False
    )
    assert many.asked.learner.worst == "start" or many.best is None
    assert plan(big(small), "H100", 1, 2, SMALL, growth=False).asked_gpus == 8 and "asks for 8 GPUs of 2" in str(
        plan(big(small), "H100", 1, 2, SMALL, growth=False)
    )


def test_bfloat16_without_zero_does_not_start(small: dict[str, Any]) -> None:
    p = plan(big(small, deepspeed={"zero_optimization": {"stage": 0}}), "H200", 1, 8, SMALL, growth=False)
    assert not p.fits and "DOES NOT START" in str(p) and p.best is not None and p.best.layout.sharding.stage != 0


def test_references_adapters_and_offload(small: dict[str, Any]) -> None:
    def peak(**changes: Any) -> float:
        return plan(big(small, **changes), "80GB", 1, 8, LLAMA_8B, growth=False).asked.learner.peak

    lora = {"r": 16, "target_modules": "all-linear"}
    assert peak(objective=[{"type": "PPOClip"}]) < peak(reference={"type": "Frozen", "offload": True}) < peak()
    assert peak(peft=lora) < peak(objective=[{"type": "PPOClip"}])  # with an adapter the reference costs nothing
    assert peak(peft=lora, reference={"type": "EMA"}) > peak(peft=lora)
    assert peak(learner={"max_tokens": 8192, "gradient_checkpointing": False}) > peak()


def test_growth_from_one_gpu_to_many(small: dict[str, Any]) -> None:
    from rlkit.planning import Planner, grow

    p = Planner(big(small), GPUS["H100"], 8, SMALL, 200, 1500, Assumptions())
    rows = list(grow(p, sizes=(1, 2, 8, 32), lags=(0, 4)))
    assert [(g, k) for g, k, *_ in rows] == [(g, k) for k in (0, 4) for g in (1, 2, 8, 32)]
    speed = {(g, k): tokens for g, k, tokens, *_ in rows}
    assert speed[1, 0] < speed[8, 0] < speed[32, 0] and speed[8, 4] > speed[8, 0]
    assert all(0 <= idle <= 1 for row in rows for idle in row[4:6])


def test_a_tiny_model_and_a_run_in_one_process(small: dict[str, Any]) -> None:
    p = plan(rk.load(small), "H100", 1, 2, growth=False)
    assert p.asked.layout.shared and p.asked_gpus == 1 and p.shape.layers == 2
    made = plan(
        rk.load({**small, "model": {"make": {"hidden": 64, "layers": 2, "heads": 2, "kv_heads": 1}}}),
        "H100",
        1,
        2,
        growth=False,
    )
    assert made.shape.parameters == p.shape.parameters


def test_unknown_hardware_says_what_there_is() -> None:
    assert find_gpu("80gb").name == "A100-80GB" and find_gpu("h200") is GPUS["H200"]
    with pytest.raises(ValueError, match=r"--gpu: 'H1000' is unknown. Did you mean H100"):
        find_gpu("H1000")


def test_flops_of_a_dense_model_are_two_and_six_a_parameter() -> None:
    s = shape(QWEN_7B)
    assert forward_flops(s, 1000, 1000, 0) == pytest.approx(2 * s.active * 1000)
    # The logits come a second time.
    assert update_flops(s, 1000, 1000, 0) == pytest.approx((6 * s.active + 2 * s.head) * 1000)
    assert update_flops(s, 1000, 0, 0, True) == pytest.approx(8 * (s.active - s.head) * 1000)
    # Causal attention over 4096 tokens: 4 q t for the token at t, so 2 q T on average.
    assert forward_flops(s, 1, 0, 4096) - forward_flops(s, 1, 0, 0) == pytest.approx(2 * 28 * 3584 * 4096)


def test_decoding_is_bound_by_bandwidth() -> None:
    s, gpu, a = shape(QWEN_7B), GPUS["H100"], Assumptions(hbm=1.0, engine_step=0.0)
    base, per_sequence, per_context = decode_step(s, gpu, a, "bfloat16", 1)
    assert base == pytest.approx(2 * s.active / 3.35e12) and per_context == pytest.approx(s.kv_bytes(2) / 3.35e12)
    assert base > 50 * per_sequence
    assert decode_step(s, gpu, dataclasses.replace(a, allreduce=0.0), "bfloat16", 4)[0] == pytest.approx(base / 4)
    assert sync_seconds(s, gpu, a, 1, "bfloat16") == pytest.approx(4 * s.parameters / 64e9)
    assert (
        sync_seconds(s, gpu, a, 1, "bfloat16")
        < sync_seconds(s, gpu, a, 2, "bfloat16")
        < sync_seconds(s, gpu, a, 16, "bfloat16")
    )


def test_more_ranks_are_faster_until_communication_rules() -> None:
    s, gpu = shape(QWEN_7B), GPUS["A100-80GB"]

    def seconds(ranks: int, stage: int, **changes: Any) -> dict[str, float]:
        sharding = dataclasses.replace(Sharding(stage, ranks), **changes)
        return learner_seconds(
            s,
            gpu,
            Assumptions(),
            sharding,
            dtype="bfloat16",
            tokens=1e6,
            actions=8e5,
            length=2000,
            passes=1,
            updates=1,
            epochs=1,
            micros=max(1, 64 // ranks),
            checkpointing=False,
            gpus_per_node=8,
        )

    assert seconds(8, 2)["compute"] == pytest.approx(seconds(1, 2)["compute"] / 8)
    assert (
        seconds(1, 3)["communication"]
        == 0
        < seconds(8, 2)["communication"]
        < seconds(8, 3)["communication"]
        < seconds(16, 3)["communication"]
    )
    assert seconds(8, 2, offload_optimizer=True)["optimizer"] > seconds(8, 2)["optimizer"]


@pytest.mark.slow
def test_a_probe_runs_one_worst_case_step(small: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    found = probe(
        rk.load(
            {
                **small,
                "critic": {},
                "advantage": "GAE",
                "objective": [{"type": "PPOClip"}, {"type": "ValueMSE"}, {"type": "KL", "estimator": "k2"}],
                "learner": {"lr": 1e-3, "max_tokens": 2048},
            }
        )
    )
    assert "4 rows of 512 tokens" in found and "annotate" in found and "GiB" in found


def test_the_command_line_says_whether_it_fits(
    small: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    QWEN_7B.save_pretrained(tmp_path / "big")
    path = tmp_path / "c.yaml"
    path.write_text(
        json.dumps(
            {
                **small,
                "model": {"path": str(tmp_path / "big"), "dtype": "bfloat16"},
                "deepspeed": {"zero_optimization": {"stage": 2}},
                "cluster": {"engines": 1, "learners": 1},
            }
        )
    )
    assert main(["plan", str(path), "--gpu", "80GB", "--no-growth"]) == 1
    text = capsys.readouterr().out
    assert "7.6156 B parameters" in text and "TOO LARGE" in text and "Fastest layout that fits 8 GPUs" in text
    assert (
        main(
            [
                "plan",
                str(path),
                "cluster.learners=4",
                "cluster.engines=4",
                "learner.gradient_checkpointing=true",
                "--gpu",
                "H100",
                "--no-growth",
            ]
        )
        == 0
    )
    assert main(["plan", str(path), "--gpu", "H1000"]) == 2 and "Did you mean H100" in capsys.readouterr().err


def test_engines_and_learners_on_the_same_devices_by_turns(small: dict[str, Any]) -> None:
    p = plan(big(small), "H100", 1, 8, SMALL, prompt_tokens=200, mean_length=800, growth=False)
    found = p.together
    assert found is not None and found.fits and found.layout.gpus == found.layout.engines == found.layout.learners == 8
    keys = found.layout.keys()
    assert "cluster.colocate=true" in keys and keys in str(p) and "8 GPUs, by turns" in str(p)
    assert found.step == pytest.approx(found.seconds["generate"] + found.seconds["learner"] + found.seconds["sync"])
    # An engine has the device without the learner's weights, and the learner has it without a sleeping engine's rest.
    a, gpu = Assumptions(), GPUS["H100"]
    shards = 8 if found.layout.sharding.stage == 3 else 1
    kept = 2 * p.shape.parameters / shards + 2 * p.shape.parameters  # its own, and the reference's
    assert found.engine.capacity == a.capacity(gpu) - kept
    # vLLM fills what it is told to take with its cache, so that has to be free, and nearly all that is free is told.
    taken = found.layout.utilization * gpu.memory
    assert found.engine.peak == pytest.approx(taken) and 0 <= found.engine.capacity - taken < 0.011 * gpu.memory
    assert found.learner.capacity == a.capacity(gpu) - a.asleep
    shared = {"colocate": True, "engines": 8, "learners": 8}
    again = plan(big(small, cluster=shared), "H100", 1, 8, SMALL, growth=False)
    assert again.asked.layout.turns and again.asked_gpus == 8
    assert again.asked.engine.over > 0, "vLLM's own default leaves no room for the learner's weights"
    ahead = {"engine": "vllm", "prompts": 64, "n": 8, "max_lag": 1}
    assert plan(big(small, rollout=ahead), "H100", 1, 8, SMALL, growth=False).together is None


def test_the_answers_of_an_episode_are_counted_together(small: dict[str, Any]) -> None:
    """As many as fit into a conversation, or as many as are given; a learner step and an engine's takes grow with them."""
    single = Planner(rk.load(small), GPUS["H100"], 8, None, 100, None, Assumptions())
    small["sampling"]["max_tokens"] = 50
    one = Planner(rk.load(small), GPUS["H100"], 8, None, 100, None, Assumptions())
    small["rollout"] |= {"episode": "examples/guessing.py:guess", "max_model_len": 512}
    run = rk.load(small | {"data": small["data"] | {"max_prompt_tokens": 100}})
    all_that_fit, three = (Planner(run, GPUS["H100"], 8, None, 100, None, Assumptions(), t) for t in (None, 3))
    assert (single.turns, single.limit, one.limit) == (1, 4, 50)
    assert (all_that_fit.turns, all_that_fit.limit, all_that_fit.longest) == (8, 400, 500)
    assert (three.turns, three.limit, three.longest) == (3, 150, 250) and three.mean == 3 * one.mean
    few, many = (p.estimate(p.asked()) for p in (one, three))
    assert all(many.seconds[part] > few.seconds[part] for part in ("generate", "learner"))
    text = str(plan(run, "H100", prompt_tokens=100, mean_length=20, turns=4, growth=False))
    assert "episodes of 4 answers (given) and 80 (given) tokens" in text
    assert "episodes of 8 answers (assumed: as many as fit)" in str(plan_here(run, prompt_tokens=100))
    with pytest.raises(ConfigError, match="--turns counts the answers of an episode"):
        plan(rk.load({**small, "rollout": {"engine": "hf"}}), "H100", turns=2)


def test_fractions_of_gpus_are_counted(small: dict[str, Any]) -> None:
    def planned(**cluster: Any) -> Any:
        return plan(big(small, cluster=cluster), "80GB", 1, 8, SMALL, growth=False)

    alone, beside = planned(learners=1, engines=1), planned(learners=1, engines=1, gpus=0.5)
    assert (alone.asked_gpus, beside.asked_gpus) == (2, 1)
    taken = beside.asked.layout.utilization * beside.gpu.memory
    assert beside.asked.learner.capacity == pytest.approx(alone.asked.learner.capacity - taken)
    assert "2 actors that reserve 0.5 GPUs each: up to 2 on one" in str(beside) and "cluster.gpus=0.5" in str(beside)
    assert planned(learners=2, engines=1, gpus=0.4).asked_gpus == 2, (
        "0.4 + 0.4 share one, the third has no room beside them"
    )
    assert planned(learners=2, engines=2, gpus=0.25).asked_gpus == 1
    assert planned(learners=1, engines=1, gpus=2).asked_gpus == 4
    assert planned(learners=1, engines=1, gpus=0.5, colocate=True).asked_gpus == 1


def test_a_plan_is_drawn(small: dict[str, Any], tmp_path: Path) -> None:
    p = plan(big(small), "80GB", 1, 8, SMALL, growth=False)
    drawn = p.plot(tmp_path / "plan.svg").read_text()
    assert all(word in drawn for word in ("learner rank", "KV cache", "memory of one device (GiB)", "room"))
    rows = tuple((n, 0, 100.0 * n**0.8, 1.0, 0.0, 0.0, "") for n in (1, 8, 64))
    drawn = dataclasses.replace(p, growth=rows).plot(tmp_path / "growth.svg").read_text()
    assert all(word in drawn for word in ("GPUs", "response tokens per second", "max_lag 0", "in proportion"))
    assert rk.plan(rk.load(small)).plot(tmp_path / "here.svg").read_text().count("memory of one process (GiB)") == 1


def test_learners_that_share_rows(small: dict[str, Any]) -> None:
    long = {
        "rollout": {"engine": "vllm", "prompts": 64, "n": 8, "max_model_len": 262144},
        "sampling": {"max_tokens": 262000},
    }
    run = big(small, **long, deepspeed={"zero_optimization": {"stage": 3}})
    shared = run.replace(learner={"sequence_parallel": 2})
    alone, both = (plan(r, "80GB", 1, 8, QWEN_7B, growth=False).asked for r in (run, shared))
    told = [p.layout.keys() for p in (alone, both)]
    assert ["learner.sequence_parallel=2" in text for text in told] == [False, True]
    assert both.layout.parts == 2 and both.layout.sharding.ranks == 4
    for name in ("layer inputs (gradient checkpointing)", "gradients inside a layer"):
        assert both.learner.items[name] == alone.learner.items[name] / 2
    # 28 query heads of 128 numbers: the output of attention is kept before and after its exchange.
    again = "one layer, computed again"
    tokens = both.learner.items["gradients inside a layer"] / (18944 + 2 * 3584) / 2
    assert both.learner.items[again] == pytest.approx(alone.learner.items[again] / 2 + 28 * 128 * 2 * tokens)
    assert both.learner.items["AdamW moments"] == alone.learner.items["AdamW moments"]
    # Of 2 * (28 + 4) heads of 128 numbers of two bytes in each of 28 layers, half go to the neighbour.
    a, gpu = Assumptions(), find_gpu("80GB")
    given: dict[str, Any] = {
        "dtype": "bfloat16",
        "tokens": 4e6,
        "actions": 3e6,
        "length": 1e5,
        "passes": 1,
        "updates": 1,
        "epochs": 1,
        "micros": 8,
        "checkpointing": True,
        "gpus_per_node": 8,
    }
    s, z = shape(QWEN_7B), Sharding(3, 4)
    found, before = learner_seconds(s, gpu, a, z, **given, sharing=2), learner_seconds(s, gpu, a, z, **given)
    assert found["exchange"] == pytest.approx(4 * 1e6 * 28 * 64 * 128 * 2 / 2 / 300e9) and before["exchange"] == 0
    assert found["total"] - before["total"] == pytest.approx(found["exchange"])
    # Eight ranks and four key heads: each of those is there twice.
    apart = learner_seconds(s, gpu, a, Sharding(3, 8), **given, sharing=8)
    assert apart["exchange"] == pytest.approx(4 * 5e5 * 28 * (56 + 16) * 128 * 2 * 7 / 8 / 300e9)


def test_rows_that_no_rank_has_room_for_are_shared(small: dict[str, Any]) -> None:
    long = {
        "rollout": {"engine": "vllm", "prompts": 64, "n": 8, "max_model_len": 262144},
        "sampling": {"max_tokens": 262000},
    }
    run = big(small, **long)
    best = plan(run, "80GB", 1, 8, QWEN_7B, growth=False).best
    assert best is not None and best.layout.sharing > 1 and best.layout.learners % best.layout.sharing == 0
    padded = plan(run.replace(learner={"packed": False}), "80GB", 1, 8, QWEN_7B, growth=False).best
    assert padded is None  # ranks share packed rows alone


def test_a_model_that_would_be_refused_is_planned_and_called_so(small: dict[str, Any], tmp_path: Path) -> None:
    config = LlamaConfig(num_hidden_layers=2, quantization_config={"quant_method": "fp8"})
    config.save_pretrained(tmp_path)
    told = "DOES NOT START: .* has quantized weights, which cannot be trained"
    run = big(small, model={"path": str(tmp_path), "dtype": "bfloat16"})
    p = plan(run, "H100", 1, 8, growth=False)
    assert (
        re.search(told, str(p))
        and not p.fits
        and p.shape.parameters == shape(LlamaConfig(num_hidden_layers=2)).parameters
    )
    # What could not be measured is said, with what is taken instead.
    assert f"prompts of {0.25 * run.data.max_prompt_tokens:.0f} tokens (assumed: 25% of data.max_prompt_tokens)" in str(
        p
    )
    assert "prompts could not be measured, give --prompt-tokens: model.path: no tokenizer could be loaded from" in str(
        p
    )
    assert "prompts could not be measured" not in str(plan(run, "H100", 1, 8, prompt_tokens=9, growth=False))
    here = plan_here(run, Machine(memory=2.0**60, cores=2, flops=1e11, process=1e8))
    assert re.search(told, str(here)) and not here.fits and "prompts could not be measured" in str(here)
    # A teacher's model counts as the policy's does.
    reference = {"type": "Frozen", "path": str(tmp_path)}
    assert re.search(
        told, str(plan(big(small, reference=reference), "H100", 1, 8, LLAMA_8B, prompt_tokens=9, growth=False))
    )
