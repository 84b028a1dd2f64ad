"""What a regularizer does to a real model: KL strengths and divergences on word problems, and what is forgotten elsewhere.

    python benchmarks/real_regularizers.py                       # continues where it stopped; --fresh starts again
    python benchmarks/real_regularizers.py --runs "none" "reverse 0.05" --seeds 3

SmolLM2-135M-Instruct, `configs/real.yaml` without its KL and with `data.refill: false`. Held out are 150 problems that no training row has: 50 like those of training, 50 in
wordings that no training row has, 50 with numbers ten times as large. (Of 70 problems of level 2, numbers up to 99 and more, this model solves
none, and of 150 of levels 2 and 3 one: there is nothing to reinforce, and twelve steps changed nothing.) Columns:

* form: share of responses that state a result (their last number is not one of the problem's, or is right); sums: how many of those are right.
* capitals: share of responses that name the capital of a country, 40 countries, 4 responses each: what the run did not train.
* KL there: nats per token between the model and where it started, on the start model's own answers to the capitals, exactly over the
  whole vocabulary: forward is KL(start‖model), reverse KL(model‖start).

Results: benchmarks/results/real_regularizers.jsonl, benchmarks/real_regularizers.md, benchmarks/real_regularizers.svg.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import report

RUNS: Mapping[str, str] = {  # by the regularizer: a divergence, where its gradient comes from, and its coefficient
    "none": "",
    "reverse 0.01": "{type: KL, estimator: k2, coef: 0.01}",
    "reverse 0.05": "{type: KL, estimator: k2, coef: 0.05}",
    "reverse 0.2": "{type: KL, estimator: k2, coef: 0.2}",
    "forward 0.05": "{type: Divergence, f: forward_ukl, coef: 0.05}",
    "js 0.05": "{type: Divergence, f: js, coef: 0.05}",
}
SETS = ("same", "wordings", "larger")
CAPITALS = """France Paris; Germany Berlin; Italy Rome; Spain Madrid; Portugal Lisbon; Poland Warsaw; Austria Vienna; Greece Athens; Norway Oslo;
Sweden Stockholm; Finland Helsinki; Denmark Copenhagen; Ireland Dublin; Hungary Budapest; Russia Moscow; Turkey Ankara; Egypt Cairo; Kenya Nairobi;
China Beijing; Japan Tokyo; India Delhi; Iran Tehran; Iraq Baghdad; Israel Jerusalem; Thailand Bangkok; Vietnam Hanoi; Indonesia Jakarta;
Australia Canberra; Canada Ottawa; Mexico Mexico; Cuba Havana; Peru Lima; Chile Santiago; Colombia Bogot; Argentina Buenos; Brazil Bras;
Ukraine Kyiv; Romania Bucharest; Bulgaria Sofia; Belgium Brussels"""  # one word of the capital, to its first accent


def states_a_result(row: Mapping[str, Any]) -> bool:
    numbers = re.findall(r"\d+", row["response"])
    return bool(numbers) and (row["reward"] > 0 or numbers[-1] not in re.findall(r"\d+", row["question"]))


def elsewhere(start: str, model: str) -> report.Row:
    """What ``model`` says of capitals, and how far it is from ``start`` there."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(start)
    tokenizer.padding_side = "left"
    old, new = (AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32).eval() for p in (start, model))
    pairs = [p.split() for p in CAPITALS.replace("\n", " ").split(";")]
    chats = [[{"role": "user", "content": f"What is the capital of {country}?"}] for country, _ in pairs]
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    width = inputs["input_ids"].shape[1]

    @torch.no_grad()
    def sample(m: Any, n: int) -> torch.Tensor:
        torch.manual_seed(0)
        ids = m.generate(
            **inputs, do_sample=True, temperature=0.6, top_p=1.0, top_k=0, max_new_tokens=24, num_return_sequences=n
        )
        return ids

    said = tokenizer.batch_decode(sample(new, 4)[:, width:], skip_special_tokens=True)
    right = mean(float(pairs[i // 4][1] in text) for i, text in enumerate(said))

    ids = sample(old, 1)
    end = tokenizer.eos_token_id
    answer = ids[:, width:]
    live = torch.cat([torch.ones_like(answer[:, :1]), (answer != end).long().cumprod(1)[:, :-1]], 1).bool()
    mask = torch.cat([inputs["attention_mask"], live.long()], 1)
    with torch.no_grad():
        p, q = (
            m(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
            .logits[:, width - 1 : -1][live]
            .log_softmax(-1)
            for m in (old, new)
        )
    return {
        "capitals": right,
        "forward_kl": float((p.exp() * (p - q)).sum(-1).mean()),
        "reverse_kl": float((q.exp() * (q - p)).sum(-1).mean()),
    }


def work(name: str, seed: int, steps: int) -> report.Row:
    import rlkit as rk
    from rlkit.data.prompts import load_prompts
    from rlkit.model.load import load_tokenizer

    start = report.real_model()
    terms = ["{type: PPOClip, eps_low: 0.2, eps_high: 0.28, reduce: token}", RUNS[name]]
    with tempfile.TemporaryDirectory() as folder:
        run = rk.load(
            report.ROOT / "configs" / "real.yaml",
            [
                f"model.path={start}",
                f"out={folder}",
                f"seed={seed}",
                f"steps={steps}",
                "data.task={type: WordProblems, transfer: true}",
                "data.test_size=150",
                "data.refill=false",
                f"objective=[{', '.join(t for t in terms if t)}]",
                f"eval={{every: {steps}, prompts: 150}}",
                "log={tensorboard: false, rollouts: 150}",
                "checkpoint.every=0",
            ],
        )
        set_of = {p.id: p.columns["dataset"] for p in load_prompts(run.data, "test", load_tokenizer(start))}
        done = Path(rk.train(run, quiet=True))
        metrics = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
        answers = [json.loads(line) for line in (done / "eval_samples.jsonl").read_text().splitlines()]
        after = {f"after_{key}": value for key, value in elsewhere(start, str(done / "final")).items()}
        before = {f"before_{key}": value for key, value in elsewhere(start, start).items()}

    def judged(step: int) -> report.Row:
        rows = [r for r in answers if r["step"] == step]
        stated = [r for r in rows if states_a_result(r)]
        return {
            "score": mean(float(r["reward"] > 0) for r in rows),
            **{s: mean(float(r["reward"] > 0) for r in rows if set_of[r["prompt_id"]] == s) for s in SETS},
            "form": len(stated) / len(rows),
            "sums": mean(float(r["reward"] > 0) for r in stated) if stated else 0.0,
        }

    return {
        "run": name,
        "seed": seed,
        "steps": steps,
        "before": judged(0),
        "after": judged(steps),
        **before,
        **after,
        "reward": [m["reward/mean"] for m in metrics],
        "kl": [kl_of(m) for m in metrics],
        "seconds": [m["time/step"] for m in metrics],
    }


def kl_of(metrics: Mapping[str, Any]) -> float | None:
    return next((metrics[k] for k in ("kl/ref", "kl/start") if k in metrics), None)


def write(rows: Sequence[report.Row]) -> None:
    def line(name: str, when: str, r: report.Row) -> list[str]:
        j = r[when]
        cells = [name, *(f"{j[k]:.2f}" for k in ("score", *SETS, "form", "sums")), f"{r[f'{when}_capitals']:.2f}"]
        return cells + [f"{r[f'{when}_{k}']:.3f}" for k in ("forward_kl", "reverse_kl")]

    titles = [
        "regularizer and coefficient",
        "held out",
        *SETS,
        "form",
        "sums",
        "capitals",
        "forward KL there",
        "reverse KL there",
    ]
    cells = [line("start model", "before", rows[0])]
    cells += [line(f"{r['run']}, seed {r['seed']}, {r['steps']} steps", "after", r) for r in rows]

    def draw(axes: Any) -> None:
        for r in rows:
            axes[0].plot(range(1, len(r["reward"]) + 1), r["reward"], label=r["run"], linewidth=1)
            axes[1].plot(r["after"]["score"], r["after_capitals"], "o", label=r["run"])
        axes[1].plot(rows[0]["before"]["score"], rows[0]["before_capitals"], "k+", label="start model")
        axes[0].set(title="reward in training", xlabel="step")
        axes[1].set(title="what was learned, and what was kept", xlabel="held-out score", ylabel="capitals")
        for axis in axes:
            axis.legend(fontsize=7)

    report.plot("real_regularizers", draw, width=2)
    report.page("real_regularizers", "What a regularizer does to a real model", report.grid(titles, cells), list(rows))


def main() -> None:
    p = report.arguments(__doc__, RUNS, seeds=1)
    p.add_argument("--steps", type=int, default=12)
    a = p.parse_args()
    if a.worker:
        print(json.dumps(work(a.worker[0], int(a.worker[1]), a.steps)))
        return

    def measure(name: str, seed: int) -> report.Row:
        return report.process(__file__, "--worker", name, str(seed), "--steps", str(a.steps), threads=a.threads)

    tasks = [(name, seed) for name in a.runs for seed in range(a.seeds)]
    report.fill("real_regularizers", tasks, measure, write, fresh=a.fresh)


if __name__ == "__main__":
    main()
