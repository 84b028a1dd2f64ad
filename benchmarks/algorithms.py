"""Every configuration of configs/algorithms on one task, from one model, with one budget of responses.

    python benchmarks/algorithms.py                     # all of them, three seeds; continues where it stopped
    python benchmarks/algorithms.py grpo dapo --seeds 5 # these; anew where their rows are of an earlier version
    python benchmarks/algorithms.py --report            # the table and the picture again, from what is stored

Trains each from the same warmed-up model, then draws 16 responses to each held-out prompt. Results are lines of
benchmarks/results/algorithms.jsonl; the table goes to benchmarks/algorithms.md, the curves to docs/algorithms.svg. KL is
sum_t log pi - log base over sampled responses, in nats per response. Dynamic sampling draws more responses than it trains on: `sampled`
counts them all.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from report import ROOT, Row, read, save
from trials import cell, curve, measure, run_all, sampled

OUT = ROOT / "runs" / "algorithms"
CONFIGS = ROOT / "configs" / "algorithms"
TASK = ["data.task.levels=[1, 2]", "data.size=2000", "data.test_size=100", "eval.prompts=100", f"out={OUT}"]
SORTING = ROOT / "configs" / "tasks" / "sorting.yaml"
STEPS, COLUMNS = 60, 6


PAGE = """
# The algorithms at one budget

Written by `python benchmarks/algorithms.py`: digits to be sorted (3 and 4 of them), one warmed-up model of 2 layers, 60 steps of
128 responses, the published coefficients, learning rate 5e-4 (smaller where a file says so: without a clip some methods diverge at
5e-4 with several updates a batch). ± is half of the 95 % confidence interval over seeds. It shows that each configuration learns, `scpo` excepted; so
small a task does not rank the methods, whose published settings are meant for others. KL is in nats per response. The curves are in
[docs/algorithms.md](../docs/algorithms.md).

Rows with † were taken with an earlier version and from an earlier warmed-up model, made in the same way; "(start)" is there for both. Of
the other rows some have one seed so far.

What bounds some of them:

* Methods of stored pairs and labels see 8 responses of the start model to each of 1,109 prompts that it solves at all, one pair a prompt,
  and sample nothing. A larger learning rate does not help: `dpo` at 1e-4 reaches pass@1 .217 at a KL of 4.2, at 1e-5 .174 at .42, `ipo` at
  3e-5 .162 at 2.0 (one seed each). `f_dpo` learns least: JS gives a chosen response's reward a ceiling.
* Methods of demonstrations see one right response of the start model to each of these prompts (`spin` and `alpha_spin`: the answers of all 2,000,
  and in the first round, where the last iterate is the base model, the two are one).
* "given" distillation sees one right response of the teacher, which `grpo` made in 150 steps, to each of 1,975 prompts. As these are right, the
  NLL of them can pass the teacher.
* `scpo` has no answers but the votes of a model that is right once in eight, and learns what that model says most: it alone gets worse.
* `gdc` asks for 80 % right answers and no more.
* `implicit_unlikelihood` is rewarded for variety, and what it learns of the task is its NLL.

What this benchmark changed: `uld` trained on sorted probabilities alone, which do not say which token is which, and fell to pass@1 .006; it now
has the paper's cross entropy. `ps_grpo` was rewarded 0 or 1 for being right, next to nothing beside agreement, and fell to .053; it now has a
graded reward, as published. `f_dpo` fell to .092 at the learning rate of `dpo`. `spin` and `alpha_spin` lacked the prompts that the start model
never solves (.214).
"""


def start_from(model: Path) -> list[str]:
    return ["model.make=null", "model.warm_up=null", f"model.path={model}"]


def prepare() -> Path:
    """The warmed-up model that all start from, the teachers, and the first stages: soft values, stored rows, the start model's rewards,
    wordings of a question, and two models fine-tuned apart from each other.
    """
    import rlkit as rk
    from rlkit.cli import main as cli

    base = OUT / "base" / "final"
    if not base.exists():
        rk.train(
            rk.load(SORTING, [*TASK, "name=base", "steps=0", "objective=[Reinforce]", "reference=null"]), quiet=True
        )
    for name, config, extra in (("grpo-teacher", "grpo", ["steps=150"]), ("erpd-teacher", "erpd_teacher", [])):
        if not (OUT / name / "final").exists():
            rk.train(
                rk.load(CONFIGS / f"{config}.yaml", [*TASK, f"name={name}", *extra, *start_from(base)]), quiet=True
            )
    first = ["filter", str(SORTING), *TASK, "objective=[PPOClip]", "--model", str(base), "-n", "8"]
    if not (OUT / "astar.jsonl").exists():
        cli([*first, "--soft-value", "0.5", "--out", str(OUT / "astar.jsonl")])
    if not (OUT / "stored.jsonl").exists():
        cli([*first, "--out", str(OUT / "kept.jsonl"), "--responses", str(OUT / "stored.jsonl")])
    if not (OUT / "base_rewards.jsonl").exists():
        cli([*first[:-1], "16", "--rewards", "--out", str(OUT / "base_rewards.jsonl")])
    for name, seed in (("sft_1", 1), ("sft_2", 2)):
        if not (OUT / name / "final").exists():
            own = [f"name={name}", f"seed={seed}", "steps=0", "objective=[Reinforce]", "reference=null"]
            more = ["model.make=null", f"model.path={base}", "model.warm_up.steps=50", "model.warm_up.lr=3e-4"]
            rk.train(rk.load(SORTING, [*TASK, *own, *more]), quiet=True)
    (OUT / "wordings.jsonl").write_text("".join(wordings(100, 6)))
    if not (OUT / "pairs.jsonl").exists():  # what the start model says, and what the verifier thinks of it
        files = [x for key in ("labelled", "demonstrations", "pairs") for x in (f"--{key}", str(OUT / f"{key}.jsonl"))]
        cli([*first, "--out", str(OUT / "kept.jsonl"), *files])
    if not (
        OUT / "spin.jsonl"
    ).exists():  # demonstrations of all prompts, those that the start model never solves among them
        spin = ["--pairs", str(OUT / "spin.jsonl"), "--better", "answer"]
        cli([*first, "--out", str(OUT / "kept.jsonl"), *spin])
    if not (OUT / "taught.jsonl").exists():  # what the teacher says of the same prompts
        said = ["--model", str(OUT / "grpo-teacher" / "final"), "--demonstrations", str(OUT / "taught.jsonl")]
        cli(["filter", str(SORTING), *TASK, "objective=[PPOClip]", *said, "-n", "8", "--out", str(OUT / "kept.jsonl")])
    return base


def wordings(questions: int, each: int) -> Iterator[str]:
    """Rows of the task, each in several wordings: the same digits in another order."""
    from rlkit.data.tasks import Sorting

    rng = random.Random(0)
    for i, row in enumerate(Sorting(levels=(1, 2)).rows("train", questions)):
        digits = sorted(set(itertools.permutations(row["answer"])))
        for k, order in enumerate(rng.sample(digits, min(each, len(digits)))):
            row = {"id": f"{i}-{k}", "prompt": "".join(order) + ">", "answer": row["answer"], "question_id": i}
            yield json.dumps(row) + "\n"


def overrides(name: str, base: Path, seed: int) -> list[str]:
    import rlkit as rk

    own = [*TASK, *start_from(base), f"seed={seed}", f"name={name}-{seed}", "rollout.max_waste=200"]
    if name == "astar_po":
        own = [*own[3:], f"data.train={OUT / 'astar.jsonl'}", "data.test=null"]
    files = {"infalign": "base_rewards.jsonl", "rlkf": "base_rewards.jsonl", "ps_grpo": "wordings.jsonl"}
    if name in files:
        own = [*own[3:], f"data.train={OUT / files[name]}", "data.test=null"]
    if name == "salsa":
        soup = f"reference.paths=[{OUT / 'sft_1' / 'final'}, {OUT / 'sft_2' / 'final'}]"
        own += [f"model.path={OUT / 'sft_1' / 'final'}", soup]
    if name == "dph_rl":
        own.append(f"data.stored.path={OUT / 'stored.jsonl'}")
    for section in rk.load(CONFIGS / f"{name}.yaml").data.offline:
        taught = Path(str(section.path)).stem == "taught"
        rows = "spin" if name in ("spin", "alpha_spin") else "taught" if taught else section.key
        own += [f"data.{section.key}.path={OUT / f'{rows}.jsonl'}", f"eval.every={STEPS // 12}"]
    if name == "minillm":
        own.append(f"rollout.engine.control.other={OUT / 'grpo-teacher' / 'final'}")
    if name == "delta_kd":
        own += [f"teacher.tuned.path={OUT / 'grpo-teacher' / 'final'}", f"teacher.raw.path={base}"]
    elif name in ("rspo", "alpha_spin"):
        own.append(f"teacher.path={base}")
    elif "\nteacher:" in (CONFIGS / f"{name}.yaml").read_text():
        own.append(f"teacher.path={OUT / ('erpd-teacher' if name == 'erpd' else 'grpo-teacher') / 'final'}")
    return own if name == "erpd_teacher" else [*own, f"steps={STEPS}"]


def trial(name: str, seed: int) -> Row:
    import rlkit as rk

    base, others = OUT / "base" / "final", {"kl": OUT / "base" / "final", "kl_teacher": OUT / "grpo-teacher" / "final"}
    common = rk.load(SORTING, [*TASK, "objective=[PPOClip]"])
    if name[0] == "(":
        model = others["kl" if name == "(start)" else "kl_teacher"]
        return {"name": name, "seed": seed, "responses": 0, "tokens": 0, **measure(common, model, 16, **others)}
    run = rk.load(CONFIGS / f"{name}.yaml", overrides(name, base, seed))
    folder = rk.train(run, quiet=True)
    responses, tokens = sampled(run, folder)
    return {
        "name": name,
        "seed": seed,
        "responses": responses,
        "tokens": tokens,
        "curve": curve(folder),
        **measure(common, folder / "final", 16, **others),
    }


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("names", nargs="*")
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--jobs", type=int, default=2)
    p.add_argument("--report", action="store_true")
    a = p.parse_args()
    rows = read("algorithms")
    if not a.report:
        prepare()
        done = {(r["name"], r["seed"]) for r in rows if not (a.names and earlier(r))}
        names = a.names or [p.stem for p in sorted(CONFIGS.glob("*.yaml"))]
        tasks = [("(start)", 0), ("(teacher)", 0)] + [(name, seed) for seed in range(a.seeds) for name in names]
        rows = run_all(trial, [t for t in tasks if t not in done], "algorithms", a.jobs)
    table(rows)
    picture(rows)


def earlier(row: Row) -> bool:
    """Whether a row is of before the KL to the teacher was measured: from another warmed-up model of the same making."""
    return "kl_teacher" not in row


def taught(name: str) -> bool:
    """Whether a configuration learns from the teacher that GRPO made."""
    path = CONFIGS / f"{name}.yaml"
    return path.exists() and "\nteacher:" in path.read_text() and name not in ("erpd", "rspo", "alpha_spin")


def table(rows: list[Row]) -> None:
    lines = [
        "| configuration | seeds | pass@1 | pass@16 | KL to start | KL to teacher | entropy | length | responses sampled |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, old in sorted({(r["name"], earlier(r)) for r in rows}):
        mine = [r for r in rows if (r["name"], earlier(r)) == (name, old)]
        shown = [("pass@1", 3), ("pass@16", 3), ("kl", 2), ("kl_teacher", 2), ("entropy", 3), ("length", 2)]
        cells = [
            cell([r[key] for r in mine], digits)
            if key != "kl_teacher" or (not old and (taught(name) or name[0] == "("))
            else ""
            for key, digits in shown
        ]
        sampled = f"{mean(r['responses'] for r in mine):.0f}"
        lines.append(f"| {name}{' †' if old else ''} | {len(mine)} | {' | '.join(cells)} | {sampled} |")
    (ROOT / "benchmarks" / "algorithms.md").write_text("\n".join([*PAGE.strip().splitlines(), "", *lines, ""]))


def picture(rows: list[Row]) -> None:
    """Small multiples: the reward of training batches against steps, a line a seed."""
    names = sorted({r["name"] for r in rows if "curve" in r and r["name"] != "erpd_teacher"})
    height = math.ceil(len(names) / COLUMNS)

    def draw(axes: Any) -> None:
        for axis in axes.flat[len(names) :]:
            axis.set_visible(False)
        for axis, name in zip(axes.flat, names, strict=False):
            mine = [r for r in rows if r["name"] == name]
            for r in mine:
                x = [STEPS * (i + 0.5) / len(r["curve"]) for i in range(len(r["curve"]))]
                axis.plot(x, r["curve"], linewidth=1, color="#3465a4", alpha=0.8)
            axis.set_ylim(min(0.0, *(min(r["curve"]) for r in mine)), max(1.0, *(max(r["curve"]) for r in mine)))
            axis.set_title(name, fontsize=8)
            axis.tick_params(labelsize=6)
            axis.grid(alpha=0.3)

    save(ROOT / "docs" / "algorithms.svg", draw, nrows=height, ncols=COLUMNS, figsize=(12, 1.45 * height), sharex=True)


if __name__ == "__main__":
    main()
