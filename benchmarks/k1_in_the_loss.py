"""The most common mistake with a KL, measured: k1, the plain log-ratio of the sampled tokens, written into the loss.

    pip install 'rlkit-lm[bench]'
    python benchmarks/k1_in_the_loss.py        # one process, no Ray, no vLLM; --fresh forgets what was measured

The quickstart's task and model (configs/quickstart.yaml) in one process, 100 steps of 8 minibatches, coefficient 0.3, with three terms
beside the clipped policy gradient: none (a KL whose coefficient is 0, which measures), k1 as users write it, and k2. Each seed warms up its
own model, and the runs of a seed start from the same one. Three more runs of the first seed show when k1 does its harm: fewer minibatches,
so that samples are less stale, and the sum over a response instead of the mean over tokens. Writes docs/k1-in-the-loss.svg and a table.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import report
import torch
from report import ROOT, Row

from rlkit.objective import Term
from rlkit.types import Batch, New

NAME = "k1_in_the_loss"
OUT = ROOT / "runs" / NAME
SEEDS, STEPS, EVERY, COEF = (0, 1, 2), 100, 10, 0.3
ALONE = ("cluster=null", "deepspeed=null", "rollout.engine=hf")
SHOWN = ("kl/ref", "entropy/sampled", "reward/mean", "length/mean")
COLOURS = {"none": "tab:gray", "k1": "tab:red", "k2": "tab:blue"}
LABELS = {"none": "no KL", "k1": f"k1 in the loss, {COEF}", "k2": f"k2 in the loss, {COEF}"}


@dataclass(frozen=True, kw_only=True)
class K1(Term):
    """The mistake: the mean of ``log pi - log ref`` of sampled tokens is a fine number and has an expected gradient of zero."""

    needs: ClassVar[frozenset[str]] = frozenset({"ref"})

    def __call__(self, new: New, b: Batch) -> torch.Tensor:
        return new.logp - b.logp["ref"]


@dataclass(frozen=True)
class Arm:
    """The term beside the policy gradient, and the minibatches of a step."""

    term: Term
    minibatches: int = 8
    seeds: tuple[int, ...] = SEEDS


def arms() -> dict[str, Arm]:
    from rlkit.objective.divergences import KL

    k1 = K1(coef=COEF, acknowledge=True)  # rlkit refuses to train on it otherwise
    return {
        "none": Arm(KL(estimator="k2", coef=0.0)),
        "k1": Arm(k1),
        "k2": Arm(KL(estimator="k2", coef=COEF, acknowledge=True)),  # exact on-policy, which is the first minibatch
        "k1, 2 minibatches": Arm(k1, 2, SEEDS[:1]),
        "k1, 1 minibatch": Arm(k1, 1, SEEDS[:1]),
        "k1 summed over responses, 2 minibatches": Arm(replace(k1, reduce="sum"), 2, SEEDS[:1]),
    }


def folder_of(name: str, seed: int) -> str:
    return f"{name.replace(',', '').replace(' ', '-')}-{seed}"


def measure(name: str, arm: Arm, seed: int) -> Row:
    import rlkit as rk
    from rlkit.objective.losses import PPOClip

    run = rk.load(
        ROOT / "configs" / "quickstart.yaml",
        [
            f"name={folder_of(name, seed)}",
            f"out={OUT}",
            f"seed={seed}",
            f"steps={STEPS}",
            f"eval.every={EVERY}",
            f"learner.minibatches={arm.minibatches}",
            *ALONE,
        ],
    )
    run = run.replace(objective=[PPOClip(reduce="seq"), arm.term])
    start = OUT / f"start-{seed}"
    if start.exists():
        run = run.replace(model=type(run.model)(path=str(start)))
    folder = Path(rk.train(run, quiet=True))
    if not start.exists():
        shutil.copytree(folder / "start", start)
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    held_out = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    return {
        "arm": name,
        "seed": seed,
        **{name: [m[name] for m in metrics] for name in SHOWN},
        "score": {str(row["step"]): row["score"] for row in held_out},
    }


def draw(axes: Any, rows: list[Row]) -> None:
    for row in (r for r in rows if r["arm"] in COLOURS):
        style: dict[str, Any] = {"color": COLOURS[row["arm"]], "alpha": 0.85, "linewidth": 1.2}
        axes[0].plot([int(k) for k in row["score"]], list(row["score"].values()), label=LABELS[row["arm"]], **style)
        for axis, name in zip(axes[1:], ("kl/ref", "entropy/sampled"), strict=True):
            axis.plot(range(1, len(row[name]) + 1), row[name], **style)
    for axis, title in zip(
        axes, ("held-out score", "KL(pi‖ref), nats per token", "entropy, nats per token"), strict=True
    ):
        axis.set(xlabel="step", title=title)
        axis.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axes[0].legend(unique.values(), unique.keys(), fontsize=8)


def table(rows: list[Row]) -> list[str]:
    """What the page shows: a line a run, in the order of the arms."""
    order = list(arms())
    return report.table(
        sorted(rows, key=lambda r: (order.index(r["arm"]), r["seed"])),
        [
            ("beside the policy gradient", lambda r: LABELS.get(r["arm"], r["arm"])),
            ("seed", lambda r: str(r["seed"])),
            ("score before", lambda r: f"{r['score']['0']:.3f}"),
            ("after 10", lambda r: f"{r['score']['10']:.3f}"),
            ("after 100", lambda r: f"{r['score']['100']:.3f}"),
            ("KL per token at the end", lambda r: f"{r['kl/ref'][-1]:.2f}"),
            ("entropy", lambda r: f"{r['entropy/sampled'][0]:.2f} → {r['entropy/sampled'][-1]:.2f}"),
        ],
    )


def write(rows: list[Row]) -> None:
    report.save(ROOT / "docs" / "k1-in-the-loss.svg", lambda axes: draw(axes, rows), ncols=3, figsize=(11.5, 3.2))
    text = "The page is [docs/k1-in-the-loss.md](../docs/k1-in-the-loss.md), with the picture; its table is this one."
    report.page(NAME, f"k1 in the loss, coefficient {COEF}", [text, "", *table(rows)], rows)
    print("\n".join(table(rows)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    parser.add_argument("--seeds", type=int, nargs="*", default=list(SEEDS))
    a = parser.parse_args()
    if a.fresh:
        (report.RESULTS / f"{NAME}.jsonl").unlink(missing_ok=True)
        shutil.rmtree(OUT, ignore_errors=True)
    for seed in a.seeds:
        for name, arm in arms().items():
            if seed in arm.seeds and not any(r["arm"] == name and r["seed"] == seed for r in report.read(NAME)):
                shutil.rmtree(OUT / folder_of(name, seed), ignore_errors=True)
                row = report.append(NAME, measure(name, arm, seed))
                print(name, seed, row["score"], f"KL {row['kl/ref'][-1]:.3f}", flush=True)
    write(report.read(NAME))


if __name__ == "__main__":
    main()
