"""A real pretrained model on pairs, labels and demonstrations of its own answers, beside GRPO at equal tokens, and TRL's DPOTrainer.

    pip install 'rlkit-lm[cpu,bench]'
    python benchmarks/preferences.py                      # continues where it stopped; --fresh starts again
    python benchmarks/preferences.py --runs dpo trl-dpo --seeds 1

SmolLM2-135M-Instruct answers word problems (`configs/real.yaml`) eight times each at temperature 0.6, before the clock starts. The verifier
makes rows of the answers: the best against the worst of each problem (pairs), all with their label, the solved ones (demonstrations). Then
each method makes 10 steps of 48 responses from the same start: `dpo`, `dpo-kept` (the reference's log-probs kept in a file), `kto` (259 good
and 336 bad responses, weighed as its paper advises, and `kto-unweighted`), `sft` on those rows without an engine, `grpo` on as many that it
samples itself. Learning rate, optimizer and warm-up are those of `configs/real.yaml`.
Held-out score: 100 problems that no row has, one response each at temperature 0.6. Margin: of the implicit rewards on a fifth of the pairs,
which are of other problems than those that are trained on.

TRL's DPOTrainer gets the same rows as tokens, batch, beta, learning rate and AdamW; its held-out score is measured by rlkit's engine outside
the clock. `--gradients` compares both gradients on the same 16 pairs, of a policy that noise has moved away from its reference. Each run is a
process of its own. Seconds are those of training steps; `whole` is from start to end. Peak memory is that of all processes of the run,
without what they share. Results: benchmarks/results/preferences.jsonl, benchmarks/preferences.md and .svg.
"""

from __future__ import annotations

import functools
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import report
import trl_loop

OUT = report.ROOT / "runs" / "preferences"
PROMPTS, ANSWERS, STEPS, RESPONSES = 200, 8, 10, 48
TOKENS = 64  # of an answer: most of the start model's are longer than those of configs/real.yaml, and a row has to end by itself
BETA = 0.1
OFFLINE = ["rollout.prompts=0", "sampling.temperature=1.0", "eval.temperature=0.6"]


def rows_of(key: str, per_step: int) -> str:
    return f"data.{key}={{path: {OUT / key}.jsonl, test: {OUT / key}_test.jsonl, per_step: {per_step}}}"


DPO = [*OFFLINE, rows_of("pairs", RESPONSES // 2), f"objective=[{{type: DPO, beta: {BETA}}}]"]
LABELLED = [*OFFLINE, rows_of("labelled", RESPONSES)]
RUNS: Mapping[str, Sequence[str]] = {
    "dpo": DPO,
    "dpo-kept": [*DPO, "reference={type: Frozen, precompute: FOLDER/ref.pt}"],
    "kto": [*LABELLED, f"objective=[{{type: KTO, beta: {BETA}, desirable: 1.5}}]"],
    "kto-unweighted": [*LABELLED, f"objective=[{{type: KTO, beta: {BETA}}}]"],
    "sft": [*OFFLINE, rows_of("demonstrations", RESPONSES), "objective=[{type: NLL, on: dataset}]", "reference=null"],
    "grpo": [f"rollout.prompts={RESPONSES // ANSWERS}", "data.drop=[]"],
    "trl-dpo": [],
}


def settings(folder: str, seed: int) -> list[str]:
    own = [
        "eval.every=5",
        "log.tensorboard=false",
        "checkpoint.every=0",
        f"steps={STEPS}",
        f"sampling.max_tokens={TOKENS}",
    ]
    return [f"model.path={report.real_model()}", f"out={folder}", f"seed={seed}", *own]


def load(name: str, folder: str, seed: int) -> Any:
    import rlkit as rk

    own = [text.replace("FOLDER", folder) for text in RUNS[name]]
    return rk.load(report.ROOT / "configs" / "real.yaml", [*settings(folder, seed), *own])


def prepare() -> None:
    """Files of rows, each cut in two by problem: four fifths to train on, the rest to measure."""
    import rlkit as rk

    if (OUT / "demonstrations_test.jsonl").exists():
        return
    OUT.mkdir(parents=True, exist_ok=True)
    run = rk.load(report.ROOT / "configs" / "real.yaml", [*settings(str(OUT), 0), f"data.size={PROMPTS}"])
    start = time.perf_counter()
    found = rk.filter(run, run.model.path, n=ANSWERS)
    print(f"{PROMPTS * ANSWERS} answers in {time.perf_counter() - start:.0f} s", flush=True)
    if found.write_pairs(OUT / "all.jsonl") < 100:
        raise SystemExit(
            f"{found.unended} of {len(found.answered)} answers were cut off, so that hardly any pairs are left: raise TOKENS"
        )
    cut = {p.id for p in found.prompts[: len(found.prompts) * 4 // 5]}
    for key in ("pairs", "labelled", "demonstrations"):
        vars(type(found))[f"write_{key}"](found, OUT / "all.jsonl")
        rows = [json.loads(line) for line in (OUT / "all.jsonl").read_text().splitlines()]
        for path, kept in (
            (OUT / f"{key}.jsonl", [r for r in rows if r["id"] in cut]),
            (OUT / f"{key}_test.jsonl", [r for r in rows if r["id"] not in cut]),
        ):
            path.write_text("".join(json.dumps(r) + "\n" for r in kept))


def tokens_of(run: Any, split: Any) -> list[report.Row]:
    """The pairs as rlkit trains on them, in TRL's names."""
    from rlkit.data.examples import read_examples
    from rlkit.model.endings import Endings
    from rlkit.model.load import load_tokenizer

    tokenizer = load_tokenizer(run.model.path)
    end = Endings.of(run.model.path, tokenizer).last
    pairs = read_examples(run.data, run.data.pairs, split, tokenizer, end, None)
    return [
        {"prompt_ids": list(a.prompt.token_ids), "chosen_ids": a.tokens.tolist(), "rejected_ids": b.tokens.tolist()}
        for a, b in pairs
    ]


def rlkit_side(name: str, seed: int, folder: str) -> report.Row:
    import rlkit as rk

    done = rk.train(load(name, folder, seed), quiet=True)
    metrics, held_out = done.metrics(), done.held_out()
    margins = {h.step: v for h in held_out for k, v in h.measured.items() if k.startswith("margin/")}
    return {
        "seconds": [m["time/step"] for m in metrics],
        "scores": {h.step: h.score for h in held_out},
        "margins": margins,
        "tokens": sum(m["learner/tokens"] for m in metrics),
    }


def trl_side(seed: int, folder: str, parts: int) -> report.Row:
    run = load("dpo", folder, seed)
    rows, test = tokens_of(run, "train"), tokens_of(run, "test")
    return trl_loop.train_on_pairs(run, rows, test, folder, seed=seed, steps=STEPS, every=5, parts=parts)


def gradients(folder: str, pairs: int = 16) -> report.Row:
    """How far the gradients of both libraries are apart on the same pairs, relative to their norm; ``packed``: rlkit's layout."""
    import torch
    from transformers import AutoModelForCausalLM

    from rlkit.learner.learner import Learner
    from rlkit.learner.plan import optimizer_steps
    from rlkit.model.load import load_tokenizer
    from rlkit.model.policy import evaluate_new
    from rlkit.objective import loss
    from rlkit.types import Batch, Prompt, Rollout

    run = load("dpo", folder, 0)
    tokenizer, rows = load_tokenizer(run.model.path), tokens_of(run, "train")[:pairs]
    lm = AutoModelForCausalLM.from_pretrained(run.model.path, dtype=torch.float32)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in lm.parameters():
            p += 0.02 * p.std() * torch.randn(p.shape, generator=draw)
    lm.save_pretrained(f"{folder}/moved")
    tokenizer.save_pretrained(f"{folder}/moved")
    trainer = trl_loop.dpo_trainer(
        f"{folder}/moved", run.model.path, rows, tokenizer, folder, beta=BETA, per_device_train_batch_size=pairs
    )
    trainer.model.eval()
    theirs_loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(trainer.data_collator(rows)))
    theirs_loss.backward()
    theirs = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
    out: report.Row = {"loss of TRL": float(theirs_loss)}
    rollouts = [
        Rollout.given(Prompt(str(g), tuple(row["prompt_ids"]), ""), row[f"{half}_ids"], source=half, group=g)
        for g, row in enumerate(rows)
        for half in ("chosen", "rejected")
    ]
    for layout, packed in (("packed", True), ("padded", False)):
        changes = {"learner.packed": packed, "reference": {"path": run.model.path}}
        learner = Learner(run.replace(changes).learner_setup(f"{folder}/moved"))
        b = Batch.from_rollouts(rollouts)
        b = b.with_logp(**learner.annotate([b], ("ref",)))
        [[micros]] = optimizer_steps(
            b, run.objective, epochs=1, count=1, ranks=1, max_tokens=1 << 20, seed=0, packed=packed
        )
        total = 0.0
        for micro in micros:
            value, _ = loss(run.objective, evaluate_new(learner.backend, micro, run.sampling, run.needs), micro, (1.0,))
            value.backward()
            total += float(value.detach())
        ours = {n: p.grad for n, p in learner.policy.base.named_parameters() if p.grad is not None}
        norm = sum(float(g.double().square().sum()) for g in theirs.values()) ** 0.5
        gap = sum(float((ours[n] - g).double().square().sum()) for n, g in theirs.items()) ** 0.5
        out |= {f"loss, {layout}": total, f"gap, {layout}": gap / norm}
    return {**out, "norm": norm}


def measure(name: str, seed: int, threads: int, parts: int) -> report.Row:
    worker = ["--worker", name, str(seed), "--parts", str(parts)]
    row = report.watched(__file__, *worker, threads=threads)
    return {"run": name, "seed": seed, "threads": threads, "parts": parts, **row}


def write(rows: list[report.Row]) -> None:
    found = next((r for r in rows if r["run"] == "gradients"), None)
    groups = report.by_run(rows, RUNS)
    if not groups:
        return

    def end(r: report.Row, key: str, i: int) -> float | None:
        values = [v for _, v in sorted((int(step), v) for step, v in r[key].items())]
        return values[i] if values else None

    def line(g: list[report.Row]) -> list[str]:
        margins = [m for r in g if (m := end(r, "margins", -1)) is not None]
        return [
            g[0]["run"],
            str(len(g)),
            report.interval([float(end(r, "scores", 0) or 0.0) for r in g]),
            report.interval([float(end(r, "scores", -1) or 0.0) for r in g]),
            report.interval(margins) if margins else "-",
            f"{mean(mean(r['seconds']) for r in g):.2f}",
            f"{mean(r['whole'] for r in g) / 60:.1f}",
            f"{max(r['peak_gib'] for r in g):.2f}",
        ]

    titles = [
        "run",
        "seeds",
        "before",
        f"after {STEPS} steps",
        "margin",
        "seconds a step",
        "minutes in all",
        "peak, GiB",
    ]
    lines = report.grid(titles, map(line, groups))
    if found is not None:
        lines += [
            "",
            f"Gradients on the same pairs, relative to the norm: packed {found['gap, packed']:.1e}, padded {found['gap, padded']:.1e} "
            f"from TRL's (losses {found['loss, packed']:.6f}, {found['loss, padded']:.6f} and {found['loss of TRL']:.6f}).",
        ]

    def draw(axes: Any) -> None:
        for axis, key, title in zip(
            axes.flat, ("scores", "margins"), ("held-out score", "held-out margin"), strict=True
        ):
            report.lines(axis, groups, title, lambda r, key=key: r[key])  # type: ignore[misc]
        axes.flat[0].legend(fontsize=7)

    report.plot("preferences", draw, width=2)
    report.page("preferences", "Preferences on CPUs", lines, rows)


def main() -> None:
    p = report.arguments(__doc__, RUNS)
    p.add_argument("--parts", type=int, default=1, help="micro-batches of TRL's step")
    p.add_argument("--gradients", action="store_true", help="compare gradients and nothing else")
    a = p.parse_args()
    if a.worker:
        name, seed = a.worker
        with tempfile.TemporaryDirectory() as folder:
            sides: Mapping[str, Any] = {
                "gradients": lambda: gradients(folder),
                "trl-dpo": lambda: trl_side(int(seed), folder, a.parts),
            }
            row = sides[name]() if name in sides else rlkit_side(name, int(seed), folder)
        print(json.dumps(row))
        return
    prepare()
    tasks = [("gradients", 0)] + [(name, seed) for seed in range(a.seeds) for name in ([] if a.gradients else a.runs)]
    work = functools.partial(measure, threads=a.threads, parts=a.parts)
    report.fill("preferences", tasks, work, write, fresh=a.fresh)


if __name__ == "__main__":
    main()
