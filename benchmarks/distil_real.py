"""How much of a teacher's gain comes back, by divergence: a chat model taught by what reinforcement learning made of it.

    pip install 'rlkit-lm[cpu,bench]'
    python benchmarks/distil_real.py                      # makes the teacher first; continues where it stopped; --fresh starts again
    python benchmarks/distil_real.py --teacher runs/real  # a finished run of configs/real.yaml, or a model folder

The teacher is SmolLM2-135M-Instruct after the 12 steps of GRPO of `configs/real.yaml`, the student the same model before them. The student learns on
its own responses (8 steps of 12 problems with 2 responses each, no reward) from the divergence to the teacher over the whole vocabulary,
in one process with the Hugging Face engine; learning rate, optimizer, warm-up, temperature and length are those of `configs/real.yaml`. What differs
between runs is the divergence alone:

* forward: KL(q‖pi), q the teacher. reverse: KL(pi‖q). js: the Jensen-Shannon divergence. skew: KL(q‖0.1 q + 0.9 pi) of DistiLLM. adaptive: AKL's mixture of both KLs.

Held-out score: 100 problems that no training row has, one response each. The gain that comes back is what the student's score rose by, over
what the teacher's is above the start model's. KLs are exact over the whole vocabulary, in nats per token of 24 held-out responses of the
model that is measured, at the temperature of sampling (0.6): of the student from the teacher, and of the student from the start model. The
curve of the KL to the teacher is that of each step's responses before its update.

Each run is a process of its own. Seconds are those of training steps; `whole` is from start to end. Results:
benchmarks/results/distil_real.jsonl, benchmarks/distil_real.md and .svg.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import report

CONFIG = report.ROOT / "configs" / "real.yaml"
OUT = report.ROOT / "runs" / "distil_real"
STEPS, EVERY, MEASURED = 8, 4, 24
RUNS: Mapping[str, str] = {
    "forward": "forward_kl",
    "reverse": "reverse_kl",
    "js": "js",
    "skew": "skew_forward, parameter: 0.1",
    "adaptive": "{type: AKL}",
}
TO_TEACHER = "reverse_kl_full(teacher)"


def settings(folder: str, seed: int) -> list[str]:
    log = "log={tensorboard: false, breakdown: 0, drift: 0, report: false, rollouts: 100}"
    return [
        f"model.path={report.real_model()}",
        f"out={folder}",
        f"seed={seed}",
        "checkpoint.every=0",
        "probe.final=false",
        log,
    ]


def made(teacher: str | None) -> str:
    """The teacher's model folder; trained first where none is given and none is there."""
    import rlkit as rk

    folder = Path(teacher) if teacher else OUT / "teacher" / "real"
    if not teacher and not (folder / "final").exists():
        rk.train(rk.load(CONFIG, settings(str(OUT / "teacher"), 0)))
    return str(folder / "final" if (folder / "final").exists() else folder)


def distilled(name: str, seed: int, steps: int, teacher: str, folder: str) -> report.Row:
    import rlkit as rk

    of = "{type: FullDivergence, anchor: teacher, f: "
    terms = [f"{of}{RUNS[name]}}}", *([f"{of}reverse_kl, coef: 0.0}}"] if name != "reverse" else [])]
    own = [
        f"objective=[{', '.join(terms)}]",
        f"teacher={{type: Frozen, path: {teacher}}}",
        "reference=null",
        "advantage={type: Plain}",
        "rollout={engine: hf, prompts: 12, n: 2}",
        "data.drop=[]",
        "data.refill=false",
        f"steps={steps}",
        f"eval.every={EVERY}",
    ]
    done = rk.train(rk.load(CONFIG, [*settings(folder, seed), *own]), quiet=True)
    metrics = done.metrics()
    rows = [json.loads(line) for line in (done / "eval_samples.jsonl").read_text().splitlines()]
    return {
        "steps": steps,
        "seconds": [m["time/step"] for m in metrics],
        "scores": {h.step: h.score for h in done.held_out()},
        "to_teacher": [m[f"loss/{TO_TEACHER}"] for m in metrics],
        "reward": [m["reward/mean"] for m in metrics],
        "length": [m["length/mean"] for m in metrics],
        **kls(
            [r for r in rows if r["step"] == steps], str(done.final), {"start": report.real_model(), "teacher": teacher}
        ),
    }


def taught(seed: int, teacher: str, folder: str) -> report.Row:
    """The teacher itself: its score, and how far it is from the start model."""
    import rlkit as rk

    found = rk.evaluate(rk.load(CONFIG, settings(folder, seed)), teacher, out=folder, say=lambda text: None)
    rows = [json.loads(line) for line in (Path(folder) / "samples.jsonl").read_text().splitlines()]
    rows = [r for r in rows if "response" in r]
    assert found is not None
    return {
        "scores": {"0": mean(float(r["correct"]) for r in rows)},
        **kls(rows, teacher, {"start": report.real_model()}),
    }


def kls(rows: Sequence[Mapping[str, Any]], model: str, others: Mapping[str, str]) -> report.Row:
    """``KL(model‖other)`` by name on the model's own responses, exactly over the whole vocabulary, in nats per token."""
    import torch
    from torch.nn.utils.rnn import pad_sequence
    from transformers import AutoModelForCausalLM

    import rlkit as rk
    from rlkit.data.prompts import load_prompts
    from rlkit.model.endings import Endings
    from rlkit.model.load import load_tokenizer

    run = rk.load(CONFIG, settings(str(OUT), 0))
    tokenizer = load_tokenizer(model)
    prompts = {p.id: p.token_ids for p in load_prompts(run.data, "test", tokenizer)}
    end = Endings.of(model, tokenizer).last
    texts = []
    for r in rows[:MEASURED]:
        answer = tokenizer(r["response"], add_special_tokens=False)["input_ids"]
        answer = [*answer, end] if len(answer) < run.sampling.max_tokens else answer
        texts.append((list(prompts[r["prompt_id"]]), answer))
    ids = pad_sequence([torch.tensor(p + a) for p, a in texts], batch_first=True)
    place = torch.tensor([(i, len(p) - 1 + t) for i, (p, a) in enumerate(texts) for t in range(len(a))])

    @torch.no_grad()
    def log_probs(path: str) -> torch.Tensor:
        lm = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        hidden = lm.model(input_ids=ids).last_hidden_state  # padding is on the right, where no token sees it
        return (lm.lm_head(hidden[place[:, 0], place[:, 1]]) / run.sampling.temperature).log_softmax(-1)

    own = log_probs(model)
    return {
        f"kl_to_{name}": float((own.exp() * (own - log_probs(path))).sum(-1).mean()) for name, path in others.items()
    }


def measure(name: str, seed: int, steps: int, threads: int, teacher: str) -> report.Row:
    worker = ["--worker", name, str(seed), "--steps", str(steps), "--teacher", teacher]
    return {"run": name, "seed": seed, "threads": threads, **report.watched(__file__, *worker, threads=threads)}


def write(rows: list[report.Row]) -> None:
    for r in rows:
        r["scores"] = {int(step): score for step, score in r["scores"].items()}
    teacher = [r for r in rows if r["run"] == "teacher"]
    groups = report.by_run(rows, RUNS)
    if not teacher or not groups:
        return
    start = mean(r["scores"][0] for g in groups for r in g)
    gain = mean(r["scores"][0] for r in teacher) - start

    def line(g: Sequence[report.Row]) -> list[str]:
        ends = [r["scores"][max(r["scores"])] for r in g]
        half = [r["scores"].get(EVERY) for r in g]
        return [
            g[0]["run"],
            str(len(g)),
            report.interval([r["scores"][0] for r in g]),
            report.interval([x for x in half if x is not None]),
            report.interval(ends),
            report.interval([(e - start) / gain for e in ends]),
            report.interval([r["kl_to_teacher"] for r in g]),
            report.interval([r["kl_to_start"] for r in g]),
            f"{mean(mean(r['seconds']) for r in g):.1f}",
        ]

    titles = ["divergence", "seeds", "before", f"after {EVERY} steps", f"after {STEPS}", "of the teacher's gain"]
    titles += ["KL(student‖teacher)", "KL(student‖start)", "seconds a step"]
    lines = [
        "Mean and standard error over seeds; KLs in nats per token.",
        "",
        *report.grid(titles, map(line, groups)),
        "",
        f"The teacher: {report.interval([r['scores'][0] for r in teacher])} on the same problems, "
        f"{report.interval([r['kl_to_start'] for r in teacher])} nats per token from the start model.",
    ]

    def draw(axes: Any) -> None:
        report.lines(axes.flat[0], groups, "held-out score", lambda r: r["scores"])
        report.lines(axes.flat[1], groups, "KL(student‖teacher), nats per token", lambda r: r["to_teacher"])
        axes.flat[0].axhline(start + gain, color="black", linestyle=":", linewidth=1, label="teacher")
        axes.flat[1].set(yscale="log")
        axes.flat[0].legend(fontsize=7)

    report.plot("distil_real", draw, width=2)
    report.page("distil_real", "Distillation of a real model on CPUs", lines, rows)


def main() -> None:
    p = report.arguments(__doc__, RUNS)
    p.add_argument("--teacher", help="a finished run's folder or a model; left out, the teacher is trained first")
    p.add_argument("--steps", type=int, default=STEPS)
    a = p.parse_args()
    if a.worker:
        name, seed = a.worker
        with tempfile.TemporaryDirectory() as folder:
            row = (
                taught(int(seed), a.teacher, folder)
                if name == "teacher"
                else distilled(name, int(seed), a.steps, a.teacher, folder)
            )
        print(json.dumps(row))
        return
    tasks = [(name, seed) for seed in range(a.seeds) for name in ("teacher", *a.runs)]
    work = functools.partial(measure, steps=a.steps, threads=a.threads, teacher=made(a.teacher))
    report.fill("distil_real", tasks, work, write, fresh=a.fresh)


if __name__ == "__main__":
    main()
