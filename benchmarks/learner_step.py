"""One learner step, rlkit against TRL's GRPOTrainer: the same model, rows and objective; gradients compared.

    pip install 'rlkit[cpu,bench]'
    python benchmarks/learner_step.py               # continues where it stopped

Each side runs in processes of its own with one thread, in turns. Time is that of forward and backward (the minimum over repeats), memory the
peak that the first step adds to the process. GRPO (2402.03300): PPO clip, k3 to a reference whose log-probs are given, mean over responses of
the mean over tokens; 8 responses to each prompt. Results go to benchmarks/results/learner_step.jsonl, the table to benchmarks/learner_step.md.
"""
from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "learner_step.jsonl"
G = 8
CASES = [  # vocabulary, prompts, tokens of a prompt, shortest and longest response
    {"vocab": 1000, "prompts": 2, "prompt": 128, "low": 32, "high": 256}, {"vocab": 32000, "prompts": 2, "prompt": 128, "low": 32, "high": 256},
    {"vocab": 151936, "prompts": 1, "prompt": 128, "low": 32, "high": 256}, {"vocab": 1000, "prompts": 2, "prompt": 512, "low": 32, "high": 256},
    {"vocab": 1000, "prompts": 2, "prompt": 32, "low": 256, "high": 256}]      # the last: no padding, hardly a prompt to share


def rows(case: dict[str, int]) -> list[dict[str, Any]]:
    """Response lengths are skewed to short ones, as in training: mean about 112 for 32 to 256."""
    r = random.Random(0)
    out = []
    for g in range(case["prompts"]):
        prompt = [r.randrange(3, case["vocab"]) for _ in range(case["prompt"])]
        for k in range(G):
            n = case["high"] if k == 0 else case["low"] + int((case["high"] - case["low"]) * r.random() ** 2)
            out.append({"group": g, "prompt": prompt, "tokens": [r.randrange(3, case["vocab"]) for _ in range(n)],
                        "ref": [-0.1 * r.random() for _ in range(n)], "adv": r.gauss(0, 1)})
    return out


def peak_during(step: Any) -> float:
    """MiB that ``step`` adds to the resident memory of this process at most."""
    import psutil

    me, peak, stop = psutil.Process(), 0, threading.Event()
    before = me.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not stop.is_set():
            peak = max(peak, me.memory_info().rss)
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    step()
    stop.set()
    thread.join()
    return (max(peak, me.memory_info().rss) - before) / 2**20


def model_folder(case: dict[str, int], folder: str) -> str:
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=case["vocab"], hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
                         max_position_embeddings=2048, tie_word_embeddings=True)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0, "<pad>": 1, "<eos>": 2}, unk_token="a")), pad_token="<pad>", eos_token="<eos>",
                            unk_token="a").save_pretrained(folder)
    return folder


def rlkit_step(folder: str, data: list[dict[str, Any]]) -> tuple[Any, Any]:
    import torch

    import rlkit as rk
    from rlkit.learner.learner import Learner
    from rlkit.learner.model import evaluate_new
    from rlkit.objective import loss, normalise
    from rlkit.types import Batch, Prompt, Rollout

    run = rk.load({"model": {"path": folder}, "data": {"task": {"type": "Sorting"}}, "reference": None, "learner": {"lr": 0.0},
                   "objective": [{"type": "PPOClip", "reduce": "seq"}, {"type": "KL", "estimator": "k3", "coef": 0.04, "reduce": "seq"}]})
    learner = Learner(run, folder, frozenset({"adv", "old", "ref"}))
    b = Batch.from_rollouts([Rollout(Prompt(str(r["group"]), tuple(r["prompt"]), ""), r["tokens"], [True] * len(r["tokens"]), [0.0] * len(r["tokens"]),
                                     [0] * len(r["tokens"]), "stop", group=r["group"], reward=0.0) for r in data])
    b.adv = torch.tensor([r["adv"] for r in data])[b.seq]
    gap = torch.tensor([x for r in data for x in r["ref"]])
    b.norm = normalise(run.objective, b)

    def step() -> None:
        learner.policy.zero_grad(set_to_none=True)
        new = evaluate_new(learner.backend, b, run.sampling, frozenset({"adv", "old", "ref"}))
        b.logp["old"] = new.logp.detach()
        b.logp["ref"] = b.logp["old"] + gap
        learner.backend.backward(loss(run.objective, new, b, [1.0, 0.04])[0], last=True)

    return step, learner.policy.base


def trl_step(folder: str, data: list[dict[str, Any]]) -> tuple[Any, Any]:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    longest = max(len(r["tokens"]) for r in data)
    args = GRPOConfig(output_dir=folder, per_device_train_batch_size=len(data), num_generations=G, max_completion_length=longest, use_cpu=True, bf16=False,
                      beta=0.04, use_bias_correction_kl=False, loss_type="grpo", report_to=[], gradient_checkpointing=False, disable_tqdm=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    trainer = GRPOTrainer(model=model, reward_funcs=lambda completions, **_: [0.0] * len(completions), args=args,
                          train_dataset=Dataset.from_list([{"prompt": "a"}] * len(data)), processing_class=AutoTokenizer.from_pretrained(folder))
    trainer.current_gradient_accumulation_steps = 1
    model = trainer.model.train()

    def pad(key: str, value: Any) -> Any:
        return torch.tensor([list(r[key]) + [value] * (longest - len(r[key])) for r in data])

    prompt = torch.tensor([r["prompt"] for r in data])
    mask = torch.tensor([[1] * len(r["tokens"]) + [0] * (longest - len(r["tokens"])) for r in data])
    gap = pad("ref", 0.0)
    inputs = {"prompt_ids": prompt, "prompt_mask": torch.ones_like(prompt), "completion_ids": pad("tokens", 1), "completion_mask": mask,
              "advantages": torch.tensor([r["adv"] for r in data]), "num_items_in_batch": mask.sum()}
    # The reference is the policy plus a given difference, as on the other side: taken from a pass that is not timed.
    with torch.no_grad():
        logp = trainer._get_per_token_logps_and_entropies(model, torch.cat([prompt, inputs["completion_ids"]], 1),
                                                          torch.cat([inputs["prompt_mask"], mask], 1), longest)[0]
    inputs["ref_per_token_logps"] = logp + gap

    def step() -> None:
        model.zero_grad(set_to_none=True)
        trainer._compute_loss(model, inputs).backward()

    return step, model


def worker(side: str, case: dict[str, int], repeats: int, out: str) -> None:
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        step, model = (rlkit_step if side == "rlkit" else trl_step)(model_folder(case, folder), rows(case))
        added = peak_during(step)
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        torch.save({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, out)
    print(json.dumps({"seconds": min(times), "added_mib": added}))


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--worker", choices=("rlkit", "trl"))
    p.add_argument("--case", type=json.loads)
    p.add_argument("--out")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--rounds", type=int, default=2)
    a = p.parse_args()
    if a.worker:
        worker(a.worker, a.case, a.repeats, a.out)
        return
    import torch
    import transformers
    import trl

    RESULTS.parent.mkdir(exist_ok=True)
    table = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    for case in CASES:
        if any(case.items() <= r.items() for r in table):
            continue
        found: dict[str, Any] = {}
        grads = {}
        with tempfile.TemporaryDirectory() as folder:
            for side in ("rlkit", "trl") * a.rounds:                 # in turns; the better process counts
                path = f"{folder}/{side}.pt"
                done = subprocess.run([sys.executable, __file__, "--worker", side, "--case", json.dumps(case), "--repeats", str(a.repeats), "--out", path],
                                      capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
                if done.returncode:
                    raise SystemExit(done.stderr[-3000:])
                row = json.loads(done.stdout.strip().splitlines()[-1])
                best = found.setdefault(side, row)
                found[side] = {k: min(best[k], row[k]) for k in row}
                grads[side] = torch.load(path)
        one, two = (torch.cat([grads[s][n].flatten() for n in sorted(grads["trl"])]) for s in ("rlkit", "trl"))
        gap = float((one - two).norm() / two.norm())
        row = {**case, "time_ratio": found["trl"]["seconds"] / found["rlkit"]["seconds"], "memory_ratio": found["trl"]["added_mib"] / found["rlkit"]["added_mib"],
               "gradient_difference": gap, **{f"{s}_{k}": v for s in found for k, v in found[s].items()}}
        with RESULTS.open("a") as f:
            f.write(json.dumps(row) + "\n")
        table.append(row)
        print(json.dumps(row), flush=True)
    lines = ["| vocabulary | prompts | prompt | responses | TRL / rlkit, time | TRL / rlkit, added memory | rlkit adds | gradients differ by |", "|---|---|---|---|---|---|---|---|"]
    lines += [f"| {r['vocab']:,} | {r['prompts']} | {r['prompt']} | {r['low']} to {r['high']} | {r['time_ratio']:.2f} | {r['memory_ratio']:.2f} | {r['rlkit_added_mib']:.0f} MiB | "
              f"{r['gradient_difference']:.1e} |" for r in table]
    page = ["# One learner step against TRL", "", "Written by `python benchmarks/learner_step.py`: forward and backward of GRPO with k3, 8 responses a prompt, a Qwen2 model of 4 layers and",
            f"hidden size 256, float32, one CPU thread. TRL {trl.__version__} (its default settings), transformers {transformers.__version__}, torch {torch.__version__}. Above 1: rlkit needs less.",
            "", *lines, ""]
    (ROOT / "benchmarks" / "learner_step.md").write_text("\n".join(page))


if __name__ == "__main__":
    main()
