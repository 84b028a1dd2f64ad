"""Two claims of papers, tested at a small scale on a task with several right answers (Countdown), with seeds and confidence intervals.

    python benchmarks/claims.py            # about 25 minutes on 2 cores; continues where it stopped
    python benchmarks/claims.py --report

1. DPH-RL (2509.07430): mass-covering divergences on stored responses of the start model keep pass@k where no KL and reverse KL lose it.
2. FG-ExPO (2605.11403): accuracy-conditioned KL with Gaussian sampling against GRPO at the same number of tokens.

Results are lines of benchmarks/results/claims.jsonl; the page is benchmarks/claims.md. Differences are paired by seed.
"""

from __future__ import annotations

import argparse
import json
from statistics import mean

from report import ROOT, Row, read
from trials import cell, curve, half_width, measure, run_all, sampled

OUT = ROOT / "runs" / "claims"
STEPS, SEEDS, N = 150, 4, 64
CLAIMS = {
    "diversity": {
        "levels": [2],
        "methods": ["no_kl", "reverse_kl", "dph_forward", "dph_js"],
        "against": ["no_kl", "reverse_kl"],
    },
    "curriculum": {"levels": [1, 2, 3], "methods": ["grpo", "kl_scaled", "fg_expo"], "against": ["grpo"]},
}
CLIP = {"type": "PPOClip", "eps_low": 0.2, "eps_high": 0.28}
GAUSS = {"type": "GaussianDifficulty", "center": 0.5, "width": 0.35}


def configuration(claim: str, method: str, seed: int) -> Row:
    """One run as plain data. Coefficients are the published ones; the reverse KL has that of DPH-RL's forward KL."""
    k3 = {"type": "KL", "estimator": "k3", "coef": 0.02, "acknowledge": True}
    scaled = {**k3, "coef": {"type": "AccuracyScaled", "base": 0.02}}
    stored = {"path": str(OUT / claim / "stored.jsonl"), "per_step": 64}
    objective, data = {
        "no_kl": ([CLIP], {}),
        "reverse_kl": ([CLIP, {"type": "KL", "estimator": "k2", "coef": 0.03}], {}),
        "dph_forward": (
            [CLIP, {"type": "Divergence", "f": "forward_ukl", "on": "reference", "coef": 0.03}],
            {"stored": stored},
        ),
        "dph_js": ([CLIP, {"type": "Divergence", "f": "js", "on": "reference", "coef": 0.2}], {"stored": stored}),
        "grpo": ([CLIP, k3], {}),
        "kl_scaled": ([CLIP, scaled], {}),
        "fg_expo": ([CLIP, scaled], {"sampler": GAUSS}),
        "base": (["PPOClip"], {}),
    }[method]
    base = OUT / claim / "base" / "final"
    model = (
        {"path": str(base)}
        if method != "base"
        else {
            "make": {"hidden": 64, "layers": 3, "heads": 2, "kv_heads": 2},
            "warm_up": {"steps": 1200, "batch": 128, "lr": 2e-3},
        }
    )
    return {
        "name": "base" if method == "base" else f"{method}-{seed}",
        "out": str(OUT / claim),
        "seed": seed,
        "steps": 0 if method == "base" else STEPS,
        "model": model,
        "data": {
            "task": {"type": "Countdown", "levels": CLAIMS[claim]["levels"], "mistakes": 0.3},
            "size": 1500,
            "test_size": 150,
            **data,
        },
        "sampling": {"max_tokens": 10},
        "rollout": {"engine": "hf", "prompts": 32, "n": 8},
        "advantage": "GroupNorm",
        "objective": objective,
        "learner": {"lr": 5e-4, "warmup_steps": 5, "minibatches": 2},
        "eval": {"prompts": 50},
        "log": {"tensorboard": False},
    }


def prepare(claim: str) -> None:
    """The start model, and for DPH-RL solved responses of it to what it solves often (pass rate above 0.75 of 8)."""
    import rlkit as rk
    from rlkit.cli import main as cli

    folder = OUT / claim
    if not (folder / "base" / "final").exists():
        rk.train(rk.load(configuration(claim, "base", 0)), quiet=True)
    if not (folder / "stored.jsonl").exists():
        (folder / "base.json").write_text(json.dumps(configuration(claim, "base", 0)))
        cli(
            [
                "filter",
                str(folder / "base.json"),
                "--model",
                str(folder / "base" / "final"),
                "-n",
                "8",
                "--low",
                "0.25",
                "--out",
                str(folder / "easy.jsonl"),
                "--responses",
                str(folder / "stored.jsonl"),
            ]
        )


def trial(claim: str, method: str, seed: int) -> Row:
    import rlkit as rk

    base, common = OUT / claim / "base" / "final", rk.load(configuration(claim, "base", 0))
    if method == "(start)":
        return {"claim": claim, "method": method, "seed": seed, "tokens": 0, **measure(common, base, N, kl=base)}
    run = rk.load(configuration(claim, method, seed))
    folder = rk.train(run, quiet=True)
    return {
        "claim": claim,
        "method": method,
        "seed": seed,
        "tokens": sampled(run, folder)[1],
        "curve": curve(folder),
        **measure(common, folder / "final", N, kl=base),
    }


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--report", action="store_true")
    p.add_argument("--jobs", type=int, default=2)
    a = p.parse_args()
    rows = read("claims")
    if not a.report:
        done = {(r["claim"], r["method"], r["seed"]) for r in rows}
        for claim in CLAIMS:
            prepare(claim)
        tasks = [(claim, "(start)", 0) for claim in CLAIMS] + [
            (c, m, s) for s in range(SEEDS) for c in CLAIMS for m in CLAIMS[c]["methods"]
        ]
        rows = run_all(trial, [t for t in tasks if t not in done], "claims", a.jobs)
    report(rows)


def report(rows: list[Row]) -> None:
    keys = ["pass@1", "pass@4", "pass@16", "pass@64", "distinct", "kl", "entropy"]
    page = [
        "# Two claims at a small scale",
        "",
        "Written by `python benchmarks/claims.py`: Countdown (reach a number with all the given ones; several answers are right), a warmed-up",
        f"model of 3 layers, {STEPS} steps of 256 responses, {N} responses to each of 150 held-out prompts. ± is half of the 95 % confidence interval over",
        "seeds; `distinct` is the number of different right answers among the responses to a prompt; KL in nats per response.",
        "",
    ]
    for claim, title in (
        ("diversity", "DPH-RL: do mass-covering divergences keep pass@k?"),
        ("curriculum", "FG-ExPO: accuracy-scaled KL and Gaussian sampling"),
    ):
        page += [f"## {title}", "", f"| method | seeds | {' | '.join(keys)} | tokens |", "|---" * (len(keys) + 3) + "|"]
        of = {
            m: sorted((r for r in rows if r["claim"] == claim and r["method"] == m), key=lambda r: r["seed"])
            for m in ("(start)", *CLAIMS[claim]["methods"])
        }
        for method, mine in of.items():
            if mine:
                page.append(
                    f"| {method} | {len(mine)} | {' | '.join(cell([r[k] for r in mine]) for k in keys)} | {mean(r['tokens'] for r in mine):.0f} |"
                )
        for against in CLAIMS[claim]["against"]:
            page += [
                "",
                f"Differences to `{against}`, paired by seed:",
                "",
                f"| method | {' | '.join(keys[:5])} |",
                "|---" * 6 + "|",
            ]
            for method in (m for m in CLAIMS[claim]["methods"] if m != against):
                pairs = [(a, b) for a in of[method] for b in of[against] if a["seed"] == b["seed"]]
                if len(pairs) > 1:
                    gaps = {k: [a[k] - b[k] for a, b in pairs] for k in keys[:5]}
                    page.append(
                        f"| {method} | {' | '.join(f'{mean(g):+.3f} ± {half_width(g):.3f}' for g in gaps.values())} |"
                    )
        page.append("")
    (ROOT / "benchmarks" / "claims.md").write_text("\n".join(page))


if __name__ == "__main__":
    main()
