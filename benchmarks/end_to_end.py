"""The whole training loop, rlkit against TRL with Hugging Face generation: samples per second, and seconds to the same held-out accuracy.

    pip install 'rlkit[cpu,bench]'
    python benchmarks/end_to_end.py             # a few minutes on 2 cores

Both start from one warmed-up model and train GRPO (group mean and standard deviation, clip 0.2, mean over responses of the mean over tokens, no
KL) on the same prompts: 32 x 8 responses a step, one update, AdamW with the same settings. rlkit runs in one process with its Hugging Face engine,
so neither side has another inference engine. Held-out accuracy is measured every 10 steps by the same code on 200 prompts; neither that nor
starting up is counted. Sides take turns, each with a process and both cores of its own. Results: benchmarks/results/end_to_end.jsonl, benchmarks/end_to_end.md.
"""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "end_to_end.jsonl"
OUT = ROOT / "runs" / "end_to_end"
PROMPTS, N, EVERY = 32, 8, 10
RUN = {"out": str(OUT), "data": {"task": {"type": "Sorting", "levels": [1, 2], "mistakes": 0.8}, "size": 4000, "test_size": 200},
       "sampling": {"max_tokens": 6}, "rollout": {"engine": "hf", "prompts": PROMPTS, "n": N}, "advantage": {"type": "GroupNorm", "eps": 1e-4},
       "objective": [{"type": "PPOClip", "reduce": "seq"}], "reference": None, "eval": {"every": EVERY, "prompts": 200}, "log": {"tensorboard": False, "breakdown": 0},
       "learner": {"lr": 5e-4}, "probe": {"every": 0}}


def base() -> Path:
    import rlkit as rk

    folder = OUT / "base" / "final"
    if not folder.exists():
        rk.train(rk.load({**RUN, "name": "base", "steps": 0, "model": {"make": {"hidden": 64, "layers": 2, "heads": 2, "kv_heads": 1},
                                                                      "warm_up": {"steps": 300, "batch": 64, "lr": 2e-3}}}), quiet=True)
    return folder


def rlkit_side(seed: int, steps: int, folder: str) -> dict[str, Any]:
    import rlkit as rk

    run = rk.train(rk.load({**RUN, "out": folder, "name": "r", "seed": seed, "steps": steps, "model": {"path": str(base())}}), quiet=True)
    seconds = [json.loads(line)["time/step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = {r["step"]: r["score"] for r in map(json.loads, (run / "eval.jsonl").read_text().splitlines())}
    return {"seconds": seconds, "scores": scores}


def trl_side(seed: int, steps: int, folder: str) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    import rlkit as rk
    from rlkit.build import reward_specs
    from rlkit.cluster.groups import EngineGroup, LocalWorkers
    from rlkit.data.prompts import load_prompts
    from rlkit.learner.model import load_tokenizer
    from rlkit.rewards import Scorer
    from rlkit.rollout.hf import HFEngine
    from rlkit.trainer import sample_and_score
    from rlkit.types import Sampling

    run = rk.load({**RUN, "steps": steps, "model": {"path": str(base())}})
    tokenizer = load_tokenizer(str(base()))
    train, test = (load_prompts(run.data, split, tokenizer) for split in ("train", "test"))
    scorer = Scorer(reward_specs(run))
    scorer.check(list(test[0].columns))

    def accuracy(model: Any) -> float:
        model.save_pretrained(f"{folder}/m")
        tokenizer.save_pretrained(f"{folder}/m")
        engine = HFEngine(f"{folder}/m", max_model_len=64)
        try:
            rollouts = sample_and_score(EngineGroup(LocalWorkers(engine)), scorer, test, 1, Sampling(max_tokens=6, seed=seed))
        finally:
            engine.close()
        return mean(r.reward for r in rollouts)

    def reward(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        return [float(c.strip() == a) for c, a in zip(completions, answer, strict=True)]

    model = AutoModelForCausalLM.from_pretrained(base(), dtype=torch.float32)
    seconds: list[float] = []
    scores = {0: accuracy(model)}

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self.start)
            if state.global_step % EVERY == 0:
                scores[state.global_step] = accuracy(model)

    args = GRPOConfig(output_dir=folder, per_device_train_batch_size=PROMPTS * N, num_generations=N, max_completion_length=6, max_steps=steps, learning_rate=5e-4,
                      lr_scheduler_type="constant", adam_beta2=0.95, weight_decay=0.0, max_grad_norm=1.0, beta=0.0, loss_type="grpo", use_cpu=True, bf16=False,
                      gradient_checkpointing=False, seed=seed, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True)
    trainer = GRPOTrainer(model=model, reward_funcs=reward, args=args, processing_class=AutoTokenizer.from_pretrained(base()), callbacks=[Clock()],
                          train_dataset=Dataset.from_list([{"prompt": p.text, "answer": p.answer} for p in train]))
    trainer.train()
    scorer.close()
    return {"seconds": seconds, "scores": scores}


def reaches(row: dict[str, Any], target: float) -> float | None:
    """Training seconds until the first evaluation of at least ``target``."""
    for step, score in sorted((int(k), v) for k, v in row["scores"].items()):
        if score >= target:
            return sum(row["seconds"][:step])
    return None


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--worker", choices=("rlkit", "trl"))
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--steps", type=int, default=100)
    p.add_argument("--target", type=float, default=0.8)
    a = p.parse_args()
    if a.worker:
        with tempfile.TemporaryDirectory() as folder:
            print("RESULT " + json.dumps((rlkit_side if a.worker == "rlkit" else trl_side)(a.seed, a.steps, folder)))
        return
    base()
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("")
    rows: list[dict[str, Any]] = []
    for seed in range(a.seeds):
        for side in ("rlkit", "trl"):
            done = subprocess.run([sys.executable, __file__, "--worker", side, "--seed", str(seed), "--steps", str(a.steps)], capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr[-3000:])
            row = json.loads(next(x for x in done.stdout.splitlines() if x.startswith("RESULT "))[7:])
            steady = row["seconds"][2:]
            rows.append({"side": side, "seed": seed, "samples_per_second": PROMPTS * N * len(steady) / sum(steady), "seconds_to_target": reaches(row, a.target), **row})
            with RESULTS.open("a") as f:
                f.write(json.dumps(rows[-1]) + "\n")
            print(json.dumps({k: v for k, v in rows[-1].items() if k != "seconds"}), flush=True)
    import torch
    import transformers
    import trl

    lines = ["| seed | samples/s, rlkit / TRL | seconds to " + f"{a.target:.2f}, rlkit / TRL | final accuracy rlkit, TRL |", "|---|---|---|---|"]
    for seed in range(a.seeds):
        one, two = (next(r for r in rows if r["side"] == s and r["seed"] == seed) for s in ("rlkit", "trl"))
        to = [r["seconds_to_target"] for r in (one, two)]
        ratio = "not reached by " + " and ".join(s for s, t in zip(("rlkit", "TRL"), to, strict=True) if t is None) if None in to else f"{to[0] / to[1]:.2f}"
        last = [list(r["scores"].values())[-1] for r in (one, two)]
        lines.append(f"| {seed} | {one['samples_per_second'] / two['samples_per_second']:.2f} | {ratio} | {last[0]:.3f}, {last[1]:.3f} |")
    page = ["# The whole loop against TRL", "", f"Written by `python benchmarks/end_to_end.py`: {a.steps} steps of {PROMPTS} x {N} responses of at most 6 tokens, a Qwen2 model of 2 layers and hidden size 64,",
            f"Hugging Face generation on both sides. TRL {trl.__version__}, transformers {transformers.__version__}, torch {torch.__version__}.", "", *lines, ""]
    (ROOT / "benchmarks" / "end_to_end.md").write_text("\n".join(page))


if __name__ == "__main__":
    main()
