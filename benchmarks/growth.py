"""How the cost of a learner update and of the driver's work grows: with sequences, length, vocabulary, learners and ZeRO stages.

    pip install 'rlkit-lm[cpu,bench]'
    python benchmarks/growth.py                     # continues where it stopped
    python benchmarks/growth.py length driver       # these curves only

Each curve is measured in a process of its own with one thread, sizes in ascending order in several rounds; in a round a size is repeated for about a second,
so that a quiet moment of the machine favours none, and the smallest mean counts. Time on a CPU is CPU time, of the busiest learner where there are several (their
waiting for each other is not in it), because other programs disturb it least; on a GPU it is wall time. An update is
`LearnerGroup.update` as a run does it: planning, cutting, forward, backward, optimizer; log-probs before it (`annotate`: old and reference) are
timed beside it. The exponent is the least-squares slope of log time over log tokens (or vocabulary) in the upper half of the measured sizes, where constant
costs no longer count. Memory is the largest resident size (on a GPU: allocated) during a first pass, which is not timed, minus that before the smallest size.

Attention over a response grows with the square of its length by definition, so the curve over length is measured twice: as it is, and with the products of
attention (`scaled_dot_product_attention`) replaced by sums of queries, keys and values, which cost as much a token at every length. Everything else stays.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from report import append, growth, page, peak_during, plot, process, random_model, read, table

NAME = "growth"
GROUP = 8  # responses to a prompt
PROMPT, RESPONSE = 64, 64
SEQUENCES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
LENGTHS = [64, 128, 256, 512, 1024, 2048, 4096]
VOCABULARIES = [1000, 2000, 4000, 8000, 16000, 32000, 64000, 151936]
ON_RAY = [16, 32, 64, 128, 256, 512]
DRIVER = [64, 128, 256, 512, 1024, 2048, 4096]  # sequences of 512 + 512 tokens
STAGES: dict[str, tuple[int, int | None]] = {  # learners and ZeRO stage
    "Ray, 1 learner": (1, None),
    **{f"Ray, 2 learners, ZeRO-{s}": (2, s) for s in range(4)},
}
PARTS = ("from_rollouts", "advantages", "plan", "layout")
CURVES = ["sequences", "length", "length without attention", "vocabulary", *STAGES, "driver"]
ROUNDS, WINDOW, ENOUGH = 4, 1.0, 10.0  # rounds, or fewer after so many seconds; a size is repeated for so long in each


def rollouts(sequences: int, prompt: int, response: int, vocabulary: int) -> list[Any]:
    """``sequences`` responses of equal length, ``GROUP`` to a prompt, as an engine returns them."""
    from rlkit.types import Prompt, Rollout

    r, ids, out = random.Random(0), range(3, vocabulary), []
    for s in range(sequences):
        if s % GROUP == 0:
            p = Prompt(str(s // GROUP), tuple(r.choices(ids, k=prompt)), "")
        out.append(
            Rollout(
                p,
                r.choices(ids, k=response),
                [True] * response,
                [-math.log(vocabulary) - r.random() for _ in range(response)],
                [0] * response,
                "stop",
                group=s // GROUP,
                reward=r.random(),
            )
        )
    return out


MODEL = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
}


@contextmanager
def learners(curve: str, folder: str) -> Iterator[Any]:
    """The learners of a run that trains GRPO with k3 to a frozen reference."""
    from rlkit.cluster.groups import LearnerGroup, LocalWorkers
    from rlkit.run import load

    count, stage = STAGES.get(curve, (1, None))
    run = load(
        {
            "model": {"path": folder},
            "data": {"task": "Sorting"},
            "objective": [{"type": "PPOClip"}, {"type": "KL", "estimator": "k3", "coef": 0.04}],
            "learner": {"lr": 1e-6},
            **({"cluster": {"learners": count, "cpus": 0.5}} if curve in STAGES else {}),
            **({} if stage is None else {"deepspeed": {"zero_optimization": {"stage": stage}}}),
        }
    )
    setup = run.learner_setup(folder, frozenset({"adv", "old", "ref", "behav"}))
    if run.cluster is None:
        from rlkit.learner.learner import Learner

        yield LearnerGroup(LocalWorkers(Learner(setup)), setup)
        return
    from rlkit.cluster import ray
    from rlkit.rollout.hf import HF

    ray.connect(run.cluster)
    workers, engines = ray.start(setup, HF(), run.engine_setup(folder, 8), run.cluster)
    try:
        yield LearnerGroup(workers, setup)
    finally:
        workers.close()
        engines.close()
        ray.disconnect()


def without_attention() -> None:
    """Attention whose cost a token does not depend on the length."""
    import torch
    from torch import Tensor, nn

    from rlkit.model import packed

    def sums(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return query + (key.mean(2, True) + value.mean(2, True)).repeat_interleave(query.shape[1] // key.shape[1], 1)

    nn.functional.scaled_dot_product_attention = packed.scaled_dot_product_attention = sums
    assert torch.nn.functional.scaled_dot_product_attention is sums


def added(baseline: float, step: Callable[[], Any]) -> float:
    """MiB of this process at most while ``step`` runs, above ``baseline``."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() / 2**20 - baseline
    now = held()
    return now - baseline + peak_during(step)


def held() -> float:
    import psutil
    import torch

    return (torch.cuda.memory_allocated() if torch.cuda.is_available() else psutil.Process().memory_info().rss) / 2**20


def update_curve(curve: str) -> list[dict[str, Any]]:
    """Seconds of an update, and of the log-probs before it, at every size."""
    import torch

    from rlkit.types import Batch

    torch.set_num_threads(1)
    if curve.startswith("length"):
        cases = [{"sequences": GROUP, "prompt": 32, "response": n - 32, "vocabulary": 1000} for n in LENGTHS]
    elif curve == "vocabulary":
        cases = [{"sequences": 16, "prompt": PROMPT, "response": RESPONSE, "vocabulary": v} for v in VOCABULARIES]
    else:
        cases = [
            {"sequences": s, "prompt": PROMPT, "response": RESPONSE, "vocabulary": 1000}
            for s in (ON_RAY if curve in STAGES else SEQUENCES)
        ]
    if "without attention" in curve:
        without_attention()
    rows: list[dict[str, Any]] = []
    for vocabulary in sorted({c["vocabulary"] for c in cases}):
        with (
            tempfile.TemporaryDirectory() as folder,
            learners(curve, random_model(folder, vocab_size=vocabulary, **MODEL)) as group,
        ):
            mine = [c for c in cases if c["vocabulary"] == vocabulary]
            batches = [Batch.from_rollouts(rollouts(**c)) for c in mine]
            found: list[dict[str, Any]] = [
                {**c, "tokens": int(b.length.sum()), "update": math.inf, "annotate": math.inf}
                for c, b in zip(mine, batches, strict=True)
            ]
            clock = clock_of(group)
            both(group, batches[0], 0, clock)  # the optimizer's state is there from now on
            baseline = held()
            first = []
            for b, row in zip(batches, found, strict=True):
                start, once = time.perf_counter(), partial(both, group, b, 0, clock)
                # Of one learner, in ascending order: what is freed is used again.
                if len(mine) > 1 and curve not in STAGES:
                    row["added_mib"] = added(baseline, once)
                else:
                    once()
                first.append(time.perf_counter() - start)
            for k in range(ROUNDS):
                for b, row, seconds in zip(batches, found, first, strict=True):
                    if k * seconds < ENOUGH or not k:
                        times = [both(group, b, k, clock) for _ in range(1 + int(WINDOW / seconds))]
                        for name in ("annotate", "update"):
                            row[name] = min(row[name], sum(t[name] for t in times) / len(times))
            rows += found
    return rows


def clock_of(group: Any) -> Callable[[], list[float]]:
    """Seconds so far, of each learner."""
    import torch

    if torch.cuda.is_available():
        return lambda: [time.perf_counter()]
    if not hasattr(group.workers, "actors"):
        return lambda: [time.process_time()]
    import psutil
    import ray

    found = [
        psutil.Process(pid)
        for pid in ray.get([a.__ray_call__.remote(lambda self: os.getpid()) for a in group.workers.actors])
    ]
    return lambda: [t.user + t.system for t in (p.cpu_times() for p in found)]


def both(group: Any, b: Any, seed: int, clock: Callable[[], list[float]]) -> dict[str, float]:
    """Seconds of ``annotate`` and ``update``."""
    from rlkit.objective.advantages import GroupNorm

    b = b.replace(adv=GroupNorm()(b))
    start = clock()
    b = group.annotate(b, ("old", "ref"))
    middle = clock()
    group.update(b, (1.0, 0.04), seed=seed)
    end = clock()
    return {
        "annotate": max(y - x for x, y in zip(start, middle, strict=True)),
        "update": max(y - x for x, y in zip(middle, end, strict=True)),
    }


def driver_curve() -> list[dict[str, Any]]:
    """Seconds of what one Python thread does with a batch: from rollouts to tensors, advantages, plan and cut for 8 learners, layout of the rows.

    The layout is made by the learners, each its own share, and is here only because it is Python.
    """
    import torch

    from rlkit.learner.plan import optimizer_steps
    from rlkit.model import packed
    from rlkit.objective.advantages import GroupNorm
    from rlkit.run import load
    from rlkit.types import Batch

    torch.set_num_threads(1)
    run = load(
        {
            "model": {"path": "none"},
            "data": {"task": "Sorting"},
            "objective": [{"type": "PPOClip"}, {"type": "KL", "estimator": "k3", "coef": 0.04}],
        }
    )
    rows = []
    everything = rollouts(DRIVER[-1], 512, 512, 1000)
    for n in DRIVER:
        row: dict[str, Any] = {"sequences": n, "prompt": 512, "response": 512, "tokens": n * 1024}
        for k in range(ROUNDS):
            if k and k * sum(row[part] for part in PARTS) > ENOUGH:
                break
            times = [time.process_time()]
            b = Batch.from_rollouts(everything[:n])
            b = b.with_logp(old=b.logp["behav"], ref=b.logp["behav"])
            times.append(time.process_time())
            b = b.replace(adv=GroupNorm()(b))
            times.append(time.process_time())
            (step,) = optimizer_steps(
                b, run.objective, epochs=1, count=1, ranks=8, max_tokens=run.learner.max_tokens, seed=0, packed=True
            )
            times.append(time.process_time())
            for micros in step:
                for m in micros:
                    packed.make(m.ids, m.length, m.action, m.group)
            times.append(time.process_time())
            for name, one, two in zip(PARTS, times, times[1:], strict=False):
                row[name] = min(row.get(name, math.inf), two - one)
        row["driver"] = row["from_rollouts"] + row["advantages"] + row["plan"]
        rows.append(row)
    return rows


def upper(rows: list[dict[str, Any]], y: str, x: str) -> tuple[float, str]:
    """The exponent over the upper half of the sizes, and those from one size to the next."""
    half = rows[len(rows) // 2 :]
    return (
        growth([r[x] for r in half], [r[y] for r in half]),
        ", ".join(f"{growth([a[x], b[x]], [a[y], b[y]]):.2f}" for a, b in itertools.pairwise(half)),
    )


def computed(row: dict[str, Any]) -> int:
    """Tokens that the model reads: where learners pack, a group's prompt once."""
    shares = row["machine"]["gpu"] is None and row["curve"] != "driver"
    return int(
        row["sequences"] * row["response"]
        + row["prompt"] * (-(-row["sequences"] // GROUP) if shares else row["sequences"])
    )


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """The page: exponents, then every number."""
    by = {c: [{**r, "computed": computed(r)} for r in rows if r["curve"] == c] for c in CURVES}
    by = {c: r for c, r in by.items() if r}
    out = [
        "GRPO with k3 to a frozen reference; Qwen2 of 2 layers and hidden size 128, float32, one thread a process, learners packed where the machine has no GPU; "
        f"{GROUP} responses to a prompt. Seconds are the smallest of {ROUNDS} rounds. Exponents are least-squares slopes of log seconds over log tokens "
        "that the model reads, where a packed group's prompt counts once (vocabulary: over log vocabulary), in the upper half of the sizes. Up to `learner.max_tokens` (16,384) a larger batch is a larger micro-batch, beyond it "
        "there are more of them.",
        "",
        "| curve | sizes | what | exponent | from size to size | largest: seconds | added memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for c, r in by.items():
        axis = "vocabulary" if c == "vocabulary" else "prompt + response" if c.startswith("length") else "sequences"

        def size(row: dict[str, Any], axis: str = axis) -> int:
            return int(row["prompt"] + row["response"] if "+" in axis else row[axis])

        for what in ("driver", *PARTS) if c == "driver" else ("update", "annotate"):
            slope, each = upper(r, what, "vocabulary" if c == "vocabulary" else "computed")
            memory = f"{r[-1]['added_mib']:,.0f} MiB" if what == "update" and "added_mib" in r[-1] else ""
            out.append(
                f"| {c} | {size(r[0]):,} to {size(r[-1]):,} {axis} | {what} | {slope:.2f} | {each} | {r[-1][what]:.3f} | {memory} |"
            )
    out += ["", "## All numbers", ""]
    for c, r in by.items():
        parts = PARTS if c == "driver" else ("update", "annotate")
        columns = [
            ("sequences", lambda x: f"{x['sequences']:,}"),
            ("prompt + response", lambda x: f"{x['prompt']} + {x['response']:,}"),
            *([] if c == "driver" else [("vocabulary", lambda x: f"{x['vocabulary']:,}")]),
            *((f"{p}, s", lambda x, p=p: f"{x[p]:.4f}") for p in parts),
        ]
        if "added_mib" in r[0]:
            columns.append(("added, MiB", lambda x: f"{x['added_mib']:,.0f}"))
        out += [f"### {c}", "", *table(r, columns), ""]
    return out


def draw(rows: list[dict[str, Any]]) -> Callable[[Any], None]:
    def on(axes: Any) -> None:
        def line(
            ax: Any, curve: str, x: Callable[[dict[str, Any]], float], y: str, label: str, style: str = "o-"
        ) -> None:
            r = [row for row in rows if row["curve"] == curve]
            if r:
                ax.plot([x(row) for row in r], [row[y] for row in r], style, label=label, markersize=3, linewidth=1.2)

        def linear(ax: Any, label: str = "linear") -> None:
            """A guide of slope 1 through the last point of the first curve."""
            x, y = (list(v) for v in ax.lines[0].get_data())
            ax.plot(x, [y[-1] * v / x[-1] for v in x], ":", color="0.6", label=label, linewidth=1)

        for ax, title, xlabel in zip(
            axes,
            ("update: sequences", "update: length", "update: vocabulary", "driver, one thread"),
            (
                "sequences of 64 + 64 tokens",
                "tokens of a sequence, 8 sequences",
                "vocabulary, 16 sequences of 64 + 64",
                "sequences of 512 + 512 tokens",
            ),
            strict=True,
        ):
            ax.set(title=title, xlabel=xlabel, ylabel="seconds", xscale="log", yscale="log")
            ax.grid(alpha=0.25)
        line(axes[0], "sequences", lambda r: r["sequences"], "update", "one process")
        line(axes[0], "sequences", lambda r: r["sequences"], "annotate", "annotate, one process")
        for c in STAGES:
            line(axes[0], c, lambda r: r["sequences"], "update", c, "s--")
        line(
            axes[1],
            "length without attention",
            lambda r: r["prompt"] + r["response"],
            "update",
            "without attention's products",
        )
        line(axes[1], "length", lambda r: r["prompt"] + r["response"], "update", "update")
        line(axes[2], "vocabulary", lambda r: r["vocabulary"], "update", "update")
        line(axes[2], "vocabulary", lambda r: r["vocabulary"], "annotate", "annotate")
        for part, label in (
            ("driver", "rollouts to micro-batches"),
            ("from_rollouts", "Batch.from_rollouts"),
            ("plan", "plan and cut"),
            ("advantages", "advantages"),
            ("layout", "packed layout, on the learners"),
        ):
            line(axes[3], "driver", lambda r: r["sequences"], part, label)
        for ax in axes:
            if ax.lines:
                linear(ax)
                ax.legend(fontsize=6)

    return on


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("curves", nargs="*", default=CURVES, metavar="CURVE", help=", ".join(CURVES))
    p.add_argument("--worker")
    p.add_argument("--fresh", action="store_true")
    a = p.parse_args()
    if a.worker:
        print(json.dumps({"rows": driver_curve() if a.worker == "driver" else update_curve(a.worker)}))
        return
    import torch

    devices = torch.cuda.device_count()
    if strange := [c for c in a.curves if c not in CURVES]:
        p.error(f"there is no curve {strange[0]!r}; there are {', '.join(CURVES)}")
    from report import RESULTS

    if a.fresh:
        (RESULTS / f"{NAME}.jsonl").unlink(missing_ok=True)
    for curve in a.curves:
        if curve in STAGES and 0 < devices <= STAGES[curve][0]:
            print(f"{curve}: left out, it needs a GPU for each learner and one for the engine")
            continue
        if not any(r["curve"] == curve for r in read(NAME)):
            for row in process(__file__, "--worker", curve, threads=1)["rows"]:
                append(NAME, {"curve": curve, **row})
    rows = read(NAME)
    plot(NAME, draw(rows), width=4, height=3.8)
    page(NAME, "How cost grows", lines(rows), rows)


if __name__ == "__main__":
    main()
