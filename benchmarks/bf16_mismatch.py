"""How far engine and learner are apart in bfloat16 on a real model, where that comes from, and what corrections make of it.

    python benchmarks/bf16_mismatch.py                # by layer and by sampler; continues where it stopped; --fresh starts again
    python benchmarks/bf16_mismatch.py --train        # also 30 steps in float32, in bfloat16, and in bfloat16 with each correction
    python benchmarks/bf16_mismatch.py --train bfloat16 TruncatedIS --steps 10

SmolLM2-135M-Instruct answers the word problems of `configs/real.yaml`, 12 prompts with 6 responses of at most 24 tokens each. For each engine and type: the engine's
log-probs of its own samples against those of the learner, in each type and with the output layer's products in float32. `kl` is the mean over
tokens of `c - 1 - log c` with `log c = learner - engine`, an estimate of KL(engine || learner) that is never negative. By layer: the same rows
through the same code in both types, relative differences of hidden states; and log-probs with the last hidden states of one type under the
output layer of the other. `lora`: all linear layers have an adapter that was moved as training moves it, which the learner adds in bfloat16 and the
engine gets merged into bfloat16 weights. Runs are short: LoRA, vLLM, 4 prompts with 4 responses of at most 16 tokens a step, so that they say how
engine and learner come apart while weights change, and not which run learns more.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import report

NAME = "bf16_mismatch"
SAMPLERS: dict[str, dict[str, Any]] = {
    "temperature 1": {"temperature": 1.0},
    "temperature 0.6": {"temperature": 0.6},
    "1, top_p 0.9": {"temperature": 1.0, "top_p": 0.9},
    "1, top_k 20": {"temperature": 1.0, "top_k": 20},
    "0.6, top_p 0.95": {"temperature": 0.6, "top_p": 0.95},
}
LEARNERS = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "bfloat16, float32 head": {"dtype": "bfloat16", "fp32_head": True},
}
ENGINES = [
    (engine, dtype, lora) for lora in (False, True) for engine in ("vllm", "hf") for dtype in ("float32", "bfloat16")
]
ENGINES.remove(("vllm", "float32", True))
ENGINES.remove(("hf", "float32", True))
CORRECTIONS: dict[str, dict[str, Any]] = {
    "TruncatedIS": {"type": "TruncatedIS"},
    "TruncatedIS, sequence": {"type": "TruncatedIS", "level": "sequence"},
    "IcePop": {"type": "IcePop"},
    "SequenceMask": {"type": "SequenceMask"},
    "K3Mask": {"type": "K3Mask"},
    "OffPolicySequenceMask": {"type": "OffPolicySequenceMask"},
}
RUNS = ("float32", *(name for name in LEARNERS if name != "float32"), *CORRECTIONS)
PROMPTS, N, TOKENS, STEPS = 12, 6, 24, 30
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
MOVED = 0.002  # standard deviation of B: A has rows of norm 1, so that a product moves weights of 0.1 by about 0.005


def make_run(dtype: str, engine: str, sampler: str, lora: bool = False, fp32_head: bool = False, **more: Any) -> Any:
    import rlkit as rk

    run = rk.load(
        report.ROOT / "configs" / "real.yaml",
        [f"model.path={report.real_model()}", "objective=[{type: PPOClip}]", "reference=null", "data.drop=[]"],
    )
    return run.replace(
        model={"dtype": dtype, "fp32_head": fp32_head},
        sampling={"max_tokens": TOKENS, **SAMPLERS[sampler]},
        rollout={"engine": engine},
        peft=LORA if lora else None,
        deepspeed={"zero_optimization": {"stage": 1}} if dtype == "bfloat16" else None,
        **more,
    )


def learner_of(run: Any) -> Any:
    """Its learner, with an adapter that is not zero."""
    import torch

    from rlkit.cluster.groups import LearnerGroup, LocalWorkers
    from rlkit.learner.learner import Learner

    setup = run.learner_setup(run.model.path, frozenset({"old", "adv"}))
    learner = Learner(setup)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in learner.policy.named_parameters():
            if "lora_B" in name:
                p.copy_(MOVED * torch.randn(p.shape, generator=g))
    return learner, LearnerGroup(LocalWorkers(learner), setup)


def differences(engine: Sequence[float], learner: Sequence[float]) -> dict[str, float]:
    import torch

    log_c = torch.tensor(learner, dtype=torch.float64) - torch.tensor(engine, dtype=torch.float64)
    gap = log_c.abs()
    return {
        "tokens": float(len(gap)),
        "mean": float(gap.mean()),
        "p999": float(gap.quantile(0.999)),
        "max": float(gap.max()),
        "kl": float((log_c.expm1() - log_c).mean()),
    }


def correction_of(name: str) -> Any:
    """The correction of a run; None where its name is not that of one."""
    from rlkit.objective import corrections

    given = dict(CORRECTIONS.get(name, {}))
    return getattr(corrections, given.pop("type"))(**given) if given else None


def weighed(rollouts: Sequence[Any], old: Any) -> list[dict[str, Any]]:
    """What each correction makes of these rows: advantages are those of random rewards, because only one of them asks."""
    import torch

    from rlkit.objective import corrections
    from rlkit.types import Batch

    b = Batch.from_rollouts(rollouts).with_logp(old=old)
    b = b.replace(adv=torch.randn(b.S, generator=torch.Generator().manual_seed(0))[b.seq])
    found = []
    for name in CORRECTIONS:
        w = corrections.weights(correction_of(name), b)
        found.append(
            {
                "correction": name,
                "kept": float((w != 0).float().mean()),
                "mean_weight": float(w.mean()),
                "ess": float(w.sum() ** 2 / (w**2).sum().clamp(min=1e-9) / len(w)),
            }
        )
    return found


def against(engine: str, dtype: str, lora: bool) -> dict[str, Any]:
    """One engine's samples, by every sampler, and every learner's opinion of them."""
    import torch

    from rlkit.data.prompts import load_prompts
    from rlkit.model.load import load_tokenizer
    from rlkit.rollout.vllm import environment

    os.environ.update(environment())
    first = make_run(dtype, engine, "temperature 1", lora)
    prompts = load_prompts(first.data, "train", load_tokenizer(first.model.path))[:PROMPTS]
    host = first.rollout.kind.start(first.engine_setup(first.model.path, 256))
    if lora:
        learner, _ = learner_of(first)
        host.begin_update("wait")
        for names, _ in learner.buckets():
            host.load(learner.gather(names))
        host.end_update(1)
        del learner
    sampled = {}
    for sampler in SAMPLERS:
        run = make_run(dtype, engine, sampler, lora)
        sampled[sampler] = [r for p in prompts for r in host.generate(p, N, run.sampling)]
    host.close()
    found, corrected = [], []
    for name, given in LEARNERS.items():
        if lora and name == "float32":
            continue
        for sampler, rollouts in sampled.items():
            run = make_run(engine="hf", sampler=sampler, lora=lora, **given)
            _, group = learner_of(run)
            learned = group.logprobs(rollouts)
            old = [x for row in learned for x in row]
            behav = [x for r in rollouts for x, s in zip(r.logp, r.sampled, strict=True) if s]
            found.append({"sampler": sampler, "learner": name, **differences(behav, old)})
            if name == dtype:
                corrected += [{"sampler": sampler, **row} for row in weighed(rollouts, torch.tensor(old))]
    return {"found": found, "corrected": corrected}


def by_layer() -> dict[str, Any]:
    """Relative differences of hidden states of both types after each layer, and of log-probs by which part is in which type."""
    import torch

    from rlkit.data.prompts import load_prompts
    from rlkit.model.load import load_lm, load_tokenizer

    run = make_run("float32", "hf", "temperature 1")
    prompts = load_prompts(run.data, "train", load_tokenizer(run.model.path))[:PROMPTS]
    length = min(len(p.token_ids) for p in prompts)
    ids = torch.tensor([p.token_ids[-length:] for p in prompts])
    hidden, heads = {}, {}
    for dtype in (torch.float32, torch.bfloat16):
        lm = load_lm(run.model.path, dtype)
        with torch.no_grad():
            hidden[dtype] = [h.float() for h in lm(input_ids=ids, output_hidden_states=True).hidden_states]
        heads[dtype] = lm.get_output_embeddings().weight.detach()
    wide, low = hidden[torch.float32], hidden[torch.bfloat16]
    layers = [float((a - b).norm() / a.norm()) for a, b in zip(wide, low, strict=True)]

    def logp(h: Any, weight: Any, product: Any) -> Any:
        z = (h[:, :-1].to(product) @ weight.to(product).T).float().log_softmax(-1)
        return z.gather(-1, ids[:, 1:, None])[..., 0]

    f32, bf16 = torch.float32, torch.bfloat16
    exact = logp(wide[-1], heads[f32], f32)
    parts = {
        "layers in bfloat16, head in float32": logp(low[-1], heads[f32], f32),
        "layers in float32, head in bfloat16": logp(wide[-1], heads[bf16], bf16),
        "both in bfloat16": logp(low[-1], heads[bf16], bf16),
    }
    gaps = {name: (x - exact).abs() for name, x in parts.items()}
    return {
        "layers": layers,
        "parts": {name: [float(gap.mean()), float(gap.max())] for name, gap in gaps.items()},
        "tokens": float(exact.numel()),
    }


def train(name: str, steps: int) -> dict[str, Any]:
    """Some steps of `configs/real.yaml` with vLLM, on small batches."""
    import rlkit as rk

    given = {"dtype": "bfloat16", **LEARNERS.get(name, {})}
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(
            engine="vllm",
            sampler="0.6, top_p 0.95",
            lora=True,
            correction=correction_of(name),
            steps=steps,
            out=folder,
            **given,
        )
        run = run.replace(
            sampling={"max_tokens": 16},
            rollout={"prompts": 4, "n": 4},
            learner={"lr": 1e-4},
            eval={"every": steps, "prompts": 24},
            checkpoint={"every": 0},
            log={"tensorboard": False},
            probe={"tolerance": 0.2},
        )
        done = rk.train(run, quiet=True)
        rows = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
        scores = [json.loads(line) for line in (done / "eval.jsonl").read_text().splitlines()]
    keys = ("reward/mean", "mismatch/mean", "mismatch/max", "correction/ess", "correction/masked", "learner/grad_norm")
    curves = {key: [row.get(key) for row in rows] for key in keys}
    return {
        "curves": curves,
        "scores": {r["step"]: r["score"] for r in scores},
        "seconds": [r["time/step"] for r in rows],
    }


def write(rows: list[report.Row]) -> None:
    cases = [r for r in rows if "engine" in r]
    lines: list[str] = []
    if cases:
        found = {(title(r), x["learner"], x["sampler"]): x for r in cases for x in r["found"]}
        pairs = dict.fromkeys((engine, learner) for engine, learner, _ in found)
        lines += ["## Engine against learner", ""]
        lines += ["Nats per token by sampler: mean; 99.9 %; KL.", ""]
        lines += report.grid(
            ["engine", "learner", *SAMPLERS],
            (
                [
                    *pair,
                    *(f"{x['mean']:.2g}; {x['p999']:.2g}; {x['kl']:.2g}" for s in SAMPLERS for x in [found[*pair, s]]),
                ]
                for pair in pairs
            ),
        )
        lines += ["", "## What corrections make of it", ""]
        lines += ["Engine and learner in bfloat16, from the least to the most over engines and samplers.", ""]
        corrected = [x for r in cases if r["dtype"] == "bfloat16" for x in r["corrected"]]
        lines += report.grid(
            ["correction", "tokens kept", "mean weight", "effective sample size"],
            (
                [
                    name,
                    span((x["kept"] for x in corrected if x["correction"] == name), ".1%"),
                    span((x["mean_weight"] for x in corrected if x["correction"] == name), ".3f"),
                    span((x["ess"] for x in corrected if x["correction"] == name), ".1%"),
                ]
                for name in CORRECTIONS
            ),
        )
    for r in (r for r in rows if "layers" in r):
        lines += [
            "",
            "## By layer",
            "",
            f"The same {r['tokens']:.0f} tokens of prompts through the same code in both types; relative difference of hidden states: "
            f"embeddings {r['layers'][0]:.1e}, "
            + ", ".join(f"after layer {k} {x:.1e}" for k, x in enumerate(r["layers"]) if k and k % 5 == 0)
            + ".",
            "",
            *report.table(
                [{"part": k, "gap": v} for k, v in r["parts"].items()],
                [
                    ("computed", lambda x: x["part"]),
                    ("mean difference from float32", lambda x: f"{x['gap'][0]:.3g}"),
                    ("largest", lambda x: f"{x['gap'][1]:.3g}"),
                ],
            ),
        ]
    runs = [r for r in rows if "train" in r]
    if runs:
        lines += ["", "## In training", ""]
        lines += report.table(
            runs,
            [
                ("run", lambda r: r["train"]),
                ("steps", lambda r: str(r["steps"])),
                ("mismatch, mean", lambda r: change(r, "mismatch/mean")),
                ("mismatch, largest", lambda r: change(r, "mismatch/max")),
                ("gradient norm", lambda r: change(r, "learner/grad_norm")),
                ("effective sample size", lambda r: change(r, "correction/ess")),
                ("tokens masked", lambda r: change(r, "correction/masked")),
                ("reward", lambda r: change(r, "reward/mean")),
                ("seconds of a step", lambda r: f"{mean(r['seconds']):.1f}"),
            ],
        )
        lines += ["", "Means of the first and of the last five steps; nats per token."]
    report.page(NAME, "Engine and learner in bfloat16", lines, rows)


def title(r: report.Row) -> str:
    return f"{r['engine']}, {r['dtype']}{', LoRA merged' if r['lora'] else ''}"


def span(values: Iterable[float], form: str) -> str:
    low, *_, high = sorted(values)
    return f"{low:{form}} to {high:{form}}"


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def change(r: report.Row, key: str) -> str:
    """From the first steps to the last; nothing where the run does not measure it."""
    found = [x for x in r["curves"][key] if x is not None]
    return " → ".join(f"{mean(part):.2g}" for part in (found[:5], found[-5:])) if found else ""


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--fresh", action="store_true")
    p.add_argument("--train", nargs="*", choices=RUNS, help="runs (default: all of them)")
    p.add_argument("--steps", type=int, default=STEPS)
    p.add_argument("--worker", type=json.loads)
    a = p.parse_args()
    if a.worker:
        w = a.worker
        done = (
            by_layer()
            if "by" in w
            else train(w["train"], w["steps"])
            if "train" in w
            else against(w["engine"], w["dtype"], w["lora"])
        )
        print(json.dumps(done))
        sys.stdout.flush()
        os._exit(0)  # vLLM's threads do not all end by themselves
    if a.fresh:
        Path(report.RESULTS / f"{NAME}.jsonl").unlink(missing_ok=True)
    cases: list[report.Row] = [{"by": "layer"}, *({"engine": e, "dtype": d, "lora": x} for e, d, x in ENGINES)]
    if a.train is not None:
        cases += [{"train": name, "steps": a.steps} for name in a.train or RUNS]
    for case in cases:
        if not any(case.items() <= r.items() for r in report.read(NAME)):
            report.append(NAME, {**case, **report.process(__file__, "--worker", json.dumps(case))})
            write(report.read(NAME))
    write(report.read(NAME))


if __name__ == "__main__":
    main()
