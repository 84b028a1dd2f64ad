"""On-policy against steps off: steps a minute, idle shares and the score, with a slow reward and long-tailed response lengths.

    pip install 'rlkit-lm[cpu,bench]'
    python benchmarks/lag.py             # on an idle machine; --fresh forgets what was measured

A vLLM engine and a learner as Ray actors of one thread each. The class of a prompt decides how long its responses get: half of them 4 tokens on
average, a quarter 8, and so on up to 128. The reward waits for 50 ms or more, with a tail of its own, up to 1 s. The engine runs 128 responses at
a time, so that a step's last responses do not wait for the next step's first. The model, the steps and the optimizer are the same in all settings,
which take turns in two rounds; the first steps of a run are left out. Two short runs first find the number of prompts a step with which, without
lag, waiting for responses takes as long as log-probs and update.

Shares are of the whole time of the counted steps, and a learner is busy while its actor works (log-probs, update, gathering weights).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, ClassVar

import report
from report import ROOT, Row

NAME = "lag"
OUT = ROOT / "runs" / NAME
STEPS, SKIP, ROUNDS, START = 18, 4, 2, 192
SETTINGS: dict[str, dict[str, Any]] = {
    "max_lag 0": {},
    "max_lag 0, over 0.25": {"over": 0.25, "pause": "continue"},
    "max_lag 1, wait": {"max_lag": 1},
    "max_lag 1, continue": {"max_lag": 1, "pause": "continue"},
    "max_lag 4, continue": {"max_lag": 4, "pause": "continue"},
}
COUNTED = (
    "time/step",
    "time/generate",
    "time/annotate",
    "time/update",
    "time/sync",
    "idle/learners",
    "idle/engines",
    "batch/tokens",
    "length/max",
    "length/mean",
    "mismatch/mean",
    "kl/old",
    "ratio/max",
    "rollout/lag_mean",
    "rollout/lag_max",
    "rollout/versions_max",
    "rollout/continued",
)
SPEEDS: dict[str, Callable[[Row], float]] = {
    "speed": lambda r: 1 / r["time/step"],
    "tokens": lambda r: r["batch/tokens"] / r["time/step"],
}


@dataclass(frozen=True, kw_only=True)
class Tail:
    """Prompts of the classes a to f; demonstrations are random digits, ``4 * 2^class`` of them on average."""

    alphabet: ClassVar[str] = "0123456789abcdef>"

    def rows(self, split: str, n: int) -> list[dict[str, Any]]:
        rng = random.Random(split)
        kinds = rng.choices(range(6), [2.0**-k for k in range(6)], k=n)
        return [
            {"id": f"{split}/{i}", "prompt": f"{i:04d}{'abcdef'[kind]}>", "answer": "", "kind": kind}
            for i, kind in enumerate(kinds)
        ]

    def demonstration(self, row: Any, rng: random.Random) -> str:
        length = 1 + int(rng.expovariate(1 / (4 * 2 ** row["kind"])))
        return "".join(rng.choice("0123456789") for _ in range(min(length, 150)))

    def verify(self, response: str, row: Any) -> bool:
        return True


async def ascending(response: str) -> float:
    """The share of neighbours in ascending order, after a wait of 50 ms times a Pareto variable (at most 1 s)."""
    await asyncio.sleep(min(1.0, 0.05 * random.Random(zlib.crc32(response.encode())).paretovariate(1.5)))
    pairs = list(itertools.pairwise(response))
    return sum(a < b for a, b in pairs) / len(pairs) if pairs else 0.45  # what random digits get


def settings(model: dict[str, Any], **changes: Any) -> dict[str, Any]:
    import torch

    here = str(Path(__file__).resolve())
    gpus = torch.cuda.device_count()
    cluster = {"gpus": 1.0 if gpus > 1 else 0.5} if gpus else {}
    vllm = {"max_num_seqs": 128, **({"gpu_memory_utilization": 0.4} if gpus else {})}
    return {
        "out": str(OUT),
        "model": model,
        "data": {"task": {"type": f"{here}:Tail"}, "size": 2000, "test_size": 100},
        "sampling": {"max_tokens": 150},
        "advantage": {"type": "GroupNorm"},
        "objective": [{"type": "PPOClip"}],
        "reference": None,
        "learner": {"lr": 5e-5, "epochs": 3},
        "probe": {"every": 0},
        "eval": {"prompts": 100},
        "log": {"tensorboard": False, "breakdown": 0, "trace": True},
        "cluster": cluster,
        "vllm": vllm,
        **changes,
    }


def base() -> Path:
    import rlkit as rk

    folder = OUT / "base" / "final"
    if not folder.exists():
        shutil.rmtree(OUT, ignore_errors=True)
        model = {
            "make": {"hidden": 128, "layers": 2, "heads": 4, "kv_heads": 2},
            "warm_up": {"steps": 120, "batch": 24, "lr": 3e-3},
        }
        rk.train(
            rk.load(settings(model, name="base", steps=0, cluster=None, rollout={"engine": "hf"}, eval={"prompts": 0})),
            quiet=True,
        )
    return folder


def measure(name: str, turn: int, steps: int, prompts: int) -> Row:
    import rlkit as rk

    run = rk.load(
        settings(
            {"path": str(base())},
            name=f"{name.replace(' ', '')}-{turn}",
            steps=steps,
            seed=turn + 2,
            rollout={"prompts": prompts, "n": 8, **SETTINGS[name]},
        )
    )
    folder = rk.train(run.replace(rewards=[rk.RewardSpec(ascending, concurrency=4096)]), quiet=True)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][SKIP:]
    total = sum(r["time/step"] for r in rows)
    shares = {k: sum(r[k] * r["time/step"] for r in rows) / total for k in ("idle/learners", "idle/engines")}
    highest = {k: max(r[k] for r in rows) for k in ("rollout/lag_max", "rollout/versions_max", "ratio/max")}
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "setting": name,
        "round": turn,
        "prompts": prompts,
        "steps": len(rows),
        **{k: mean(r[k] for r in rows) for k in COUNTED},
        **shares,
        **highest,
        "score_before": summary["eval_before"],
        "score": summary["eval_after"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--only", choices=SETTINGS, help="one setting, printed and not recorded")
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args.only, 0, args.steps, START), indent=1))
        return
    path = report.RESULTS / f"{NAME}.jsonl"
    if args.fresh:
        path.unlink(missing_ok=True)
    for turn in (-2, -1):
        if not any(r["round"] == turn for r in report.read(NAME)):
            report.append(
                NAME, {**measure("max_lag 0", turn, SKIP + 6, balanced(report.read(NAME))), "setting": "size"}
            )
    rows = report.read(NAME)
    done, prompts = {(r["setting"], r["round"]) for r in rows}, balanced([r for r in rows if r["setting"] == "size"])
    for turn in range(ROUNDS):
        for name in SETTINGS:
            if (name, turn) not in done:
                report.append(NAME, measure(name, turn, args.steps, prompts))
    write()


def balanced(rows: list[Row]) -> int:
    """Prompts a step with which both sides take equal time, from the last of ``rows``: waiting grows little with them, training linearly."""
    if not rows:
        return START
    last = rows[-1]
    return max(
        4, min(512, round(last["prompts"] * last["time/generate"] / (last["time/annotate"] + last["time/update"])))
    )


def write() -> None:
    rows = report.read(NAME)
    of = {name: each for name in SETTINGS if (each := [r for r in rows if r["setting"] == name])}
    alone = {r["round"]: r for r in of["max_lag 0"]}
    merged: list[Row] = [
        {
            **{k: mean(r[k] for r in each) for k in each[0] if isinstance(each[0][k], float)},
            "setting": name,
            "rounds": each,
            **{what: [size(r) / size(alone[r["round"]]) for r in each] for what, size in SPEEDS.items()},
        }
        for name, each in of.items()
    ]

    def span(key: str, how: str) -> Any:
        return lambda m: " / ".join(format(r[key], how) for r in m["rounds"])

    first = merged[0]
    lines = report.table(
        merged,
        [
            ("setting", lambda m: m["setting"]),
            ("steps a minute, relative", lambda m: " / ".join(f"{x:.2f}" for x in m["speed"])),
            ("tokens a second, relative", lambda m: " / ".join(f"{x:.2f}" for x in m["tokens"])),
            ("learner idle", span("idle/learners", ".0%")),
            ("engine idle", span("idle/engines", ".0%")),
            ("waits for responses (s)", span("time/generate", ".2f")),
            ("update (s)", span("time/update", ".2f")),
            ("sync (s)", span("time/sync", ".2f")),
            ("token age, mean (steps)", span("rollout/lag_mean", ".2f")),
            ("oldest token", span("rollout/lag_max", ".0f")),
            ("responses of several versions", span("rollout/continued", ".1f")),
            ("abs. log-ratio to the engine (nats)", span("mismatch/mean", ".1e")),
            ("score", span("score", ".3f")),
        ],
    )
    text = [
        f"Each cell has one number for each of {len(first['rounds'])} rounds. A step is {first['rounds'][0]['prompts']} prompts x 8 responses of {first['length/mean']:.0f} tokens on average and at "
        f"most 150. Steps a minute and trained tokens a second are relative to `max_lag 0` of the same round. {first['rounds'][0]['steps']} steps are counted in each run. Without lag, a step waits "
        f"{first['time/generate']:.2f} s for responses and annotates and updates in "
        f"{first['time/annotate'] + first['time/update']:.2f} s. With `max_lag: 1` and times G and U, a pipeline without any loss "
        f"takes max(U, (G + U) / 2) a step: a group is started two updates before its own. The held-out score before training is {first['score_before']:.3f}."
    ]

    def draw(axes: Any) -> None:
        labels = list(of)
        axes[0].barh(labels, [mean(m["tokens"]) for m in merged], color="tab:blue")
        axes[0].set(xlabel="trained tokens a second (max_lag 0 = 1)")
        for k, (key, label) in enumerate((("idle/learners", "learner"), ("idle/engines", "engine"))):
            axes[1].barh(
                [i + 0.4 * k - 0.2 for i in range(len(labels))], [m[key] for m in merged], height=0.4, label=label
            )
        axes[1].set(xlabel="idle share of the time", yticks=range(len(labels)), yticklabels=[], xlim=(0, 1))
        axes[1].legend()
        for a in axes:
            a.invert_yaxis()

    report.plot(NAME, draw, width=2)
    report.page(NAME, "On-policy against steps off", [*lines, "", *text], rows)


if __name__ == "__main__":
    main()
