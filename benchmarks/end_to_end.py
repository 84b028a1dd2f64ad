"""The whole training loop, rlkit against TRL with Hugging Face generation: samples per second, and seconds to the same held-out accuracy.

    pip install 'rlkit-lm[cpu,bench]'
    python benchmarks/end_to_end.py             # continues where it stopped; --fresh starts again

Both start from one warmed-up model and train GRPO (group mean and standard deviation, clip 0.2, mean over responses of the mean over tokens, no
KL) on the same prompts with one update a step and AdamW with the same settings. rlkit runs in one process with its Hugging Face engine, so
neither side has another inference engine. Held-out accuracy is measured by the same code on the same prompts; neither that nor starting up is
counted. Sides take turns, each in a process of its own with one thread (``--jobs 2``: two processes at a time).

Two settings. `reasoning` looks like a reasoning run in small: a vocabulary of 32,000, prompts of about 60 tokens, and responses that answer and then explain for
a while, with long-tailed lengths (up to 160 tokens). `short`: a vocabulary of 14, 6-token responses, nothing to pad and nothing to share; what
is left is overhead. Results: benchmarks/results/end_to_end.jsonl, benchmarks/end_to_end.md.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, ClassVar

import report
import trl_loop

from rlkit.data.tasks import Row, Sorting

OUT = report.ROOT / "runs" / "end_to_end"
COMMON: dict[str, Any] = {
    "rollout": {"engine": "hf"},
    "advantage": {"type": "GroupNorm", "eps": 1e-4},
    "objective": [{"type": "PPOClip", "reduce": "seq"}],
    "reference": None,
    "log": {"tensorboard": False, "breakdown": 0},
    "probe": {"every": 0},
}
N = 8
SIDES = ("rlkit-hf", "trl", "rlkit-vllm")


@dataclass(frozen=True, kw_only=True)
class Explained(Sorting):
    """Sorting with an instruction; a response is the answer, ``=``, and an explanation (in dots) of long-tailed length."""

    alphabet: ClassVar[str] = "0123456789>.= abcdefghijklmnopqrstuvwxyz"
    instruction: ClassVar[str] = "write the digits in ascending order and then explain it "
    explain: bool = True

    def question(self, rng: random.Random) -> Row:
        row = super().question(rng)
        return {**row, "prompt": self.instruction + row["prompt"]}

    def demonstration(self, row: Mapping[str, Any], rng: random.Random) -> str:
        dots = min(140, max(4, int(rng.lognormvariate(3.2, 0.8)))) if self.explain else 0
        return super().demonstration(row, rng) + "=" + "." * dots

    def verify(self, response: str, row: Mapping[str, Any]) -> bool:
        return response.partition("=")[0] == row["answer"]


@dataclass(frozen=True)
class Setting:
    prompts: int  # a step, with N responses each
    steps: int
    every: int  # steps between evaluations
    target: float  # held-out accuracy to reach
    model: Mapping[str, int]
    vocabulary: int | None  # of the model, if larger than the tokenizer's
    run: Mapping[str, Any]

    def mapping(self, **more: Any) -> dict[str, Any]:
        return {
            **COMMON,
            **self.run,
            "rollout": {"engine": "hf", "prompts": self.prompts, "n": N},
            "eval": {"every": self.every, "prompts": 200},
            **more,
        }


SETTINGS = {
    "reasoning": Setting(
        8,
        15,
        5,
        0.45,
        {"hidden": 128, "layers": 4, "heads": 4, "kv_heads": 2},
        32_000,
        {
            "data": {
                "task": {"type": f"{__file__}:Explained", "levels": [1, 2], "mistakes": 0.5},
                "size": 4000,
                "test_size": 200,
            },
            "sampling": {"max_tokens": 160},
            "learner": {"lr": 2e-4},
        },
    ),
    "short": Setting(
        32,
        60,
        10,
        0.7,
        {"hidden": 64, "layers": 2, "heads": 2, "kv_heads": 1},
        None,
        {
            "data": {"task": {"type": "Sorting", "levels": [1, 2], "mistakes": 0.8}, "size": 4000, "test_size": 200},
            "sampling": {"max_tokens": 6},
            "learner": {"lr": 5e-4},
        },
    ),
}


def base(name: str) -> Path:
    """The warmed-up model that both sides start from."""
    import rlkit as rk

    s, folder = SETTINGS[name], OUT / f"{name}-base" / "final"

    def warm(run: str, model: dict[str, Any], steps: int, **task: Any) -> Path:
        data = {**s.run["data"], "task": {**s.run["data"]["task"], **task}}
        return (
            rk.train(
                rk.load(
                    s.mapping(
                        out=str(OUT),
                        name=run,
                        steps=0,
                        data=data,
                        model={**model, "warm_up": {"batch": 64, "lr": 2e-3, "steps": steps}},
                    )
                ),
                quiet=True,
            )
            / "final"
        )

    if not folder.exists():
        if s.vocabulary is None:
            warm(f"{name}-base", {"make": dict(s.model)}, 300)
        else:
            # Answers first: explanations would drown them.
            narrow = warm(f"{name}-narrow", {"make": dict(s.model)}, 500, explain=False)
            warm(f"{name}-base", {"path": str(widen(narrow, OUT / f"{name}-wide", s.vocabulary))}, 60)
    return folder


def widen(model: Path, folder: Path, vocabulary: int) -> Path:
    """More rows in the vocabulary than the tokenizer has tokens, as real models have."""
    import torch
    from transformers import AutoModelForCausalLM

    from rlkit.model.load import load_tokenizer

    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_pretrained(model)
    lm.resize_token_embeddings(vocabulary, mean_resizing=False)
    lm.save_pretrained(folder)
    load_tokenizer(model).save_pretrained(folder)
    return folder


def rlkit_side(name: str, engine: str, seed: int, folder: str) -> dict[str, Any]:
    import rlkit as rk

    s = SETTINGS[name]
    run = s.mapping(out=folder, name="r", seed=seed, steps=s.steps, model={"path": str(base(name))})
    run["rollout"] = {**run["rollout"], "engine": engine}
    done = rk.train(rk.load(run), quiet=True)
    metrics = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
    scores = {r["step"]: r["score"] for r in map(json.loads, (done / "eval.jsonl").read_text().splitlines())}
    return {
        "seconds": [m["time/step"] for m in metrics],
        "length": [m["length/mean"] for m in metrics],
        "scores": scores,
    }


def trl_side(name: str, seed: int, folder: str) -> dict[str, Any]:
    import rlkit as rk

    s = SETTINGS[name]
    return trl_loop.train(
        rk.load(s.mapping(steps=s.steps, model={"path": str(base(name))})),
        folder,
        seed=seed,
        steps=s.steps,
        every=s.every,
        curves={"length": "completions/mean_length"},
        per_device_train_batch_size=s.prompts * N,
        beta=0.0,
        loss_type="grpo",
    )


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--worker", nargs=3, metavar=("SIDE", "SETTING", "SEED"))
    p.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--jobs", type=int, default=1, help="processes at a time")
    p.add_argument("--fresh", action="store_true")
    a = p.parse_args()
    if a.worker:
        side, name, seed = a.worker
        with tempfile.TemporaryDirectory() as folder:
            row = (
                trl_side(name, int(seed), folder)
                if side == "trl"
                else rlkit_side(name, side.removeprefix("rlkit-"), int(seed), folder)
            )
        print(json.dumps(row))
        return
    if a.fresh:
        (report.RESULTS / "end_to_end.jsonl").unlink(missing_ok=True)
    rows = report.read("end_to_end")
    tasks = [
        (side, name, seed)
        for name in a.settings
        for seed in range(a.seeds)
        for side in SIDES
        if not any((r["side"], r["setting"], r["seed"]) == (side, name, seed) for r in rows)
    ]
    for name in {name for _, name, _ in tasks}:
        base(name)
    with ThreadPoolExecutor(a.jobs) as pool:
        for task in pool.map(lambda t: measure(*t, a.jobs), tasks):
            rows.append(report.append("end_to_end", task))
    write(rows)


def measure(side: str, name: str, seed: int, jobs: int) -> dict[str, Any]:
    row, samples = report.process(__file__, "--worker", side, name, str(seed), threads=1), SETTINGS[name].prompts * N
    steady = row["seconds"][2:]
    return {
        "setting": name,
        "side": side,
        "seed": seed,
        "jobs": jobs,
        "samples_per_second": samples * len(steady) / sum(steady),
        "tokens_per_second": samples * sum(row["length"][2:]) / sum(steady),
        "seconds_to_target": report.reaches(row, SETTINGS[name].target),
        **row,
    }


def write(rows: list[dict[str, Any]]) -> None:
    lines = []
    for name, s in SETTINGS.items():
        mine = [r for r in rows if r["setting"] == name]
        if not mine:
            continue

        def of(side: str, seed: int, key: str, mine: list[dict[str, Any]] = mine) -> Any:
            return next((r[key] for r in mine if r["side"] == side and r["seed"] == seed), None)

        def ratio(a: float | None, b: float | None, missing: str = "") -> str:
            return missing if a is None or b is None else f"{a / b:.2f}"

        lines += [
            f"## {name}",
            "",
            f"{s.steps} steps of {s.prompts} x {N} responses of at most {s.run['sampling']['max_tokens']} tokens; model {dict(s.model)}. Ratios to TRL at the same seed.",
            "",
        ]
        lines += report.table(
            [{"seed": k} for k in sorted({r["seed"] for r in mine})],
            [
                ("seed", lambda r: str(r["seed"])),
                (
                    "samples/s, rlkit / TRL",
                    lambda r: ratio(
                        of("rlkit-hf", r["seed"], "samples_per_second"), of("trl", r["seed"], "samples_per_second")
                    ),
                ),
                (
                    "with vLLM / TRL",
                    lambda r: ratio(
                        of("rlkit-vllm", r["seed"], "samples_per_second"), of("trl", r["seed"], "samples_per_second")
                    ),
                ),
                (
                    "sampled tokens/s, rlkit / TRL",
                    lambda r: ratio(
                        of("rlkit-hf", r["seed"], "tokens_per_second"), of("trl", r["seed"], "tokens_per_second")
                    ),
                ),
                (
                    f"seconds to {s.target}, rlkit / TRL",
                    lambda r: ratio(
                        of("rlkit-hf", r["seed"], "seconds_to_target"),
                        of("trl", r["seed"], "seconds_to_target"),
                        "not reached",
                    ),
                ),
                (
                    "final accuracy rlkit, TRL",
                    lambda r: ", ".join(
                        f"{list(of(side, r['seed'], 'scores').values())[-1]:.3f}"
                        for side in ("rlkit-hf", "trl")
                        if of(side, r["seed"], "scores")
                    ),
                ),
                (
                    "mean length rlkit, TRL",
                    lambda r: ", ".join(
                        f"{mean(of(side, r['seed'], 'length')):.0f}"
                        for side in ("rlkit-hf", "trl")
                        if of(side, r["seed"], "length")
                    ),
                ),
            ],
        )
        lines.append("")

    def draw(axes: Any) -> None:
        for axis, name in zip(axes, SETTINGS, strict=True):
            for side, color in (("rlkit-hf", "C0"), ("trl", "C1"), ("rlkit-vllm", "C2")):
                for k, r in enumerate([r for r in rows if r["setting"] == name and r["side"] == side]):
                    points = sorted((int(step), score) for step, score in r["scores"].items())
                    axis.plot(
                        [sum(r["seconds"][:step]) for step, _ in points],
                        [score for _, score in points],
                        color=color,
                        alpha=0.7,
                        label=side if k == 0 else None,
                    )
            axis.set(title=name, xlabel="seconds of training", ylabel="held-out accuracy", xscale="symlog")
            if axis.lines:
                axis.legend()

    report.plot("end_to_end", draw, width=len(SETTINGS))
    report.page("end_to_end", "The whole loop against TRL", lines, rows)


if __name__ == "__main__":
    main()
