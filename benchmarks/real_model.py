"""A real pretrained model, from its file to a better model, on CPUs: three seeds, one process and the whole stack, full and LoRA, and TRL.

    pip install 'rlkit-lm[cpu,bench]'
    python benchmarks/real_model.py                       # continues where it stopped; --fresh starts again
    python benchmarks/real_model.py --runs one-process trl --seeds 1

SmolLM2-135M-Instruct answers word problems with `configs/real.yaml` as it is; `stack` adds vLLM, Ray and DeepSpeed, `lora` an adapter; `plain` is without
dynamic sampling. Held-out score: 100 problems that no training row has, one response each, at the temperature of training.

TRL's GRPOTrainer does what `plain` does: the same model, prompts, reward, batch, clip, learning rate and AdamW, and a k3 KL with the same coefficient (it
has no k2). Its held-out score is measured by rlkit's engine outside the clock. Each run is a process of its own. Seconds are those of training steps; `whole` is from
start to end, with loading and held-out scores. Peak memory is that of all processes of the run, without what they share, looked at 5 times a second.
Results: benchmarks/results/real_model.jsonl, benchmarks/real_model.md, docs/real.svg.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import report
import trl_loop

LORA = ["peft.r=32", "peft.lora_alpha=64", "peft.target_modules=all-linear", "learner.lr=1e-4"]
STACK = ["rollout.engine=vllm", "cluster.cpus=0.5", "cluster.threads=THREADS", "deepspeed.zero_optimization.stage=1"]
RUNS: Mapping[str, Sequence[str]] = {
    "one-process": [],
    "plain": ["data.drop=[]"],
    "stack": STACK,
    "lora": LORA,
    "lora-stack": [*LORA, *STACK],
    "trl": [],
}
STEPS = 12
TARGETS = (0.8, 0.9)


def settings(folder: str, seed: int) -> list[str]:
    return [
        f"model.path={report.real_model()}",
        f"out={folder}",
        f"seed={seed}",
        "eval.every=2",
        "log.tensorboard=false",
        "checkpoint.every=0",
    ]


def rlkit_side(name: str, seed: int, folder: str) -> report.Row:
    import rlkit as rk

    own = [text.replace("THREADS", os.environ["OMP_NUM_THREADS"]) for text in RUNS[name]]
    run = rk.load(report.ROOT / "configs" / "real.yaml", [*settings(folder, seed), *own])
    done = rk.train(run, quiet=True)
    metrics = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
    answers = [json.loads(line) for line in (done / "eval_samples.jsonl").read_text().splitlines()]
    return {
        "seconds": [m["time/step"] for m in metrics],
        "generate": [m["time/generate"] for m in metrics],
        "scores": {r["step"]: r["score"] for r in map(json.loads, (done / "eval.jsonl").read_text().splitlines())},
        **{key: [m.get(name) for m in metrics] for key, name in CURVES.items()},
        "answers": [
            {k: r[k] for k in ("step", "question", "answer", "response", "reward")}
            for r in answers
            if r["step"] in (0, STEPS)
        ],
    }


CURVES = {"reward": "reward/mean", "kl": "kl/ref", "entropy": "entropy/sampled", "length": "length/mean"}


def trl_side(seed: int, folder: str, steps: int, parts: int) -> report.Row:
    """``parts``: micro-batches of a step; with one TRL is fastest and needs the most memory."""
    import rlkit as rk

    run = rk.load(report.ROOT / "configs" / "real.yaml", settings(folder, seed))
    clip, kl = run.objective
    return trl_loop.train(
        run,
        folder,
        seed=seed,
        steps=steps,
        every=2,
        curves={"reward": "reward", "kl": "kl", "length": "completions/mean_length"},
        chat=True,
        per_device_train_batch_size=run.rollout.prompts * run.rollout.n // parts,
        gradient_accumulation_steps=parts,
        beta=kl.coef,
        epsilon=clip.eps_low,
        epsilon_high=clip.eps_high,
        loss_type="dapo",
    )


def measure(name: str, seed: int, threads: int, steps: int, parts: int) -> report.Row:
    worker = ["--worker", name, str(seed), "--steps", str(steps), "--parts", str(parts)]
    return {
        "run": name,
        "seed": seed,
        "threads": threads,
        **({"parts": parts} if name == "trl" else {}),
        **report.watched(__file__, *worker, threads=threads),
    }


def write(rows: list[report.Row]) -> None:
    for r in rows:
        r["scores"] = {int(k): v for k, v in r["scores"].items()}

    def line(rows: list[report.Row]) -> list[str]:
        first, last = ([list(r["scores"].values())[i] for r in rows] for i in (0, -1))
        reached = [", ".join(f"{s:.0f}" if (s := report.reaches(r, t)) else "not" for r in rows) for t in TARGETS]
        steps = [mean(r["seconds"]) for r in rows]
        return [
            rows[0]["run"],
            str(len(rows)),
            ", ".join(sorted({str(r["threads"]) for r in rows})),
            report.interval(first),
            report.interval(last),
            *reached,
            f"{mean(steps):.1f}",
            f"{mean(r['whole'] for r in rows) / 60:.1f}",
            f"{max(r['peak_gib'] for r in rows):.1f}",
        ]

    titles = [
        "run",
        "seeds",
        "threads",
        "before",
        f"after {STEPS} steps",
        *(f"seconds to {t}" for t in TARGETS),
        "seconds a step",
        "minutes in all",
        "peak, GiB",
    ]
    groups = report.by_run(rows, RUNS)

    def draw(axes: Any) -> None:
        panels = {"scores": "held-out score", "kl": "KL to the start model, nats per token"}
        panels |= {"entropy": "entropy, nats per token", "length": "response length, tokens"}
        for axis, (key, title) in zip(axes.flat, panels.items(), strict=True):
            report.lines(axis, groups, title, lambda r, key=key: r.get(key))  # type: ignore[misc]
        axes.flat[0].legend(fontsize=7)

    report.save(report.ROOT / "docs" / "real.svg", draw, nrows=2, ncols=2, figsize=(9.2, 6.4))
    report.page("real_model", "A real model on CPUs", report.grid(titles, map(line, groups)), rows)


def main() -> None:
    p = report.arguments(__doc__, RUNS)
    p.add_argument("--steps", type=int, default=STEPS, help="of TRL")
    p.add_argument("--parts", type=int, default=1, help="micro-batches of TRL's step")
    a = p.parse_args()
    if a.worker:
        name, seed = a.worker
        with tempfile.TemporaryDirectory() as folder:
            row = (
                trl_side(int(seed), folder, a.steps, a.parts) if name == "trl" else rlkit_side(name, int(seed), folder)
            )
        print(json.dumps(row))
        return
    report.fill(
        "real_model",
        [(name, seed) for name in a.runs for seed in range(a.seeds)],
        functools.partial(measure, threads=a.threads, steps=a.steps, parts=a.parts),
        write,
        fresh=a.fresh,
    )


if __name__ == "__main__":
    main()
