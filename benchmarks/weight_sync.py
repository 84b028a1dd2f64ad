"""One publish of new weights (begin, gather, load, end) by model size, against copying the same bytes once.

    python benchmarks/weight_sync.py                # continues where it stopped; --fresh starts again
    python benchmarks/weight_sync.py --size 500M --place "ray 1 gloo"

Every row is a process of its own. The floor is torch's `copy_` of as many bytes into memory that was touched before, a bucket at a time, in turns
with the publishes; both are the minimum over repeats after two publishes and a request that are not counted. CPU seconds are those of all
threads (on Ray: of learner, engines and driver), means over the repeats: what others do on the machine changes them least. Added memory is what the process (on Ray: learner and engines together)
holds at most during the second publish beyond what it held before, plus all that publishes ever took of Ray's object store. The last row is one
whole learner step, to see the share of a publish.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from report import RESULTS, ROOT, append, page, peak_during, plot, process, random_model, read, table

NAME = "weight_sync"
# Hidden, feed-forward, layers, vocabulary.
SIZES = {
    "1M": (128, 384, 4, 2048),
    "10M": (256, 1024, 8, 8192),
    "100M": (768, 2048, 12, 32000),
    "135M": (768, 2048, 15, 49152),
    "500M": (896, 4864, 24, 151936),
}
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
PLACES = {
    "hf": "one process, Hugging Face engine",
    "vllm": "one process, vLLM",
    "ray 1": "Ray, learner and 1 vLLM engine",
    "ray 2": "Ray, learner and 2 vLLM engines",
    "ray 1 gloo": "Ray, learner and 1 vLLM engine, over sockets",
    "ray 2 gloo": "Ray, learner and 2 vLLM engines, over sockets",
}
CASES = [
    {"size": size, "dtype": "float32", "place": place, "lora": False}
    for size in ("10M", "135M", "500M")
    for place in ("hf", "vllm", "ray 1", "ray 1 gloo")
]
CASES += [
    {"size": "135M", "dtype": "float32", "place": place, "lora": True} for place in ("vllm", "ray 1", "ray 1 gloo")
]
CASES += [{"size": "135M", "dtype": "float32", "place": place, "lora": False} for place in ("ray 2", "ray 2 gloo")]
REPEATS = 5
# Tokens of a prompt, of the shortest and of the longest response: as in learner_step.py.
PROMPT, LOW, HIGH = 128, 32, 256


def model_folder(size: str, folder: str) -> str:
    hidden, inner, layers, vocabulary = SIZES[size]
    return random_model(
        folder,
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        max_position_embeddings=1024,
    )


def make_run(case: dict[str, Any], folder: str) -> Any:
    import rlkit as rk

    where, *more = case["place"].split()
    cluster = None
    if where == "ray":
        engines, transfer = more if len(more) > 1 else (*more, "store")
        cluster = {"engines": int(engines), "learners": 1, "cpus": 0.5, "transfer": transfer}
    return rk.load(
        {
            "model": {"path": folder, "dtype": case["dtype"]},
            "data": {"task": {"type": "Sorting"}},
            "reference": None,
            "learner": {"max_tokens": 2048},
            "rollout": {"engine": "hf" if case["place"] == "hf" else "vllm"},
            "objective": [{"type": "PPOClip", "reduce": "seq"}],
            "peft": LORA if case["lora"] else None,
            "cluster": cluster,
        }
    )


@contextmanager
def started(
    run: Any, folder: str
) -> Iterator[tuple[Any, Any, Callable[[], float], Callable[[], float], Callable[[], float]]]:
    """(learners, engines, how many MiB all of their processes hold, how many Ray's object store has ever held, and seconds of CPU)."""
    import psutil

    from rlkit.cluster.groups import EngineGroup, LearnerGroup, LocalWorkers
    from rlkit.learner.learner import Learner

    setup = run.learner_setup(folder, frozenset({"adv", "old"}))
    kind, generating = run.rollout.kind, run.engine_setup(folder, 512)
    if run.cluster is None:
        me = psutil.Process()
        learner, engine = Learner(setup), kind.start(generating)
        yield (
            LearnerGroup(LocalWorkers(learner), setup),
            EngineGroup(LocalWorkers(engine)),
            lambda: me.memory_info().rss / 2**20,
            lambda: 0.0,
            time.process_time,
        )
        engine.close()
        return
    from rlkit.cluster.ray import connect, import_ray, start

    connect(run.cluster)
    learners, engines = start(setup, kind, generating, run.cluster)
    ray = import_ray()
    children = psutil.Process().children(recursive=True)
    workers = [
        p for p in children if any(word.startswith(("ray::EngineHost", "ray::LearnerHost")) for word in p.cmdline())
    ]
    raylet = next(p for p in children if p.name() == "raylet")

    def worked() -> float:
        return time.process_time() + sum((t := p.cpu_times()).user + t.system for p in workers)

    def held() -> float:
        return sum((m := p.memory_info()).rss - m.shared for p in workers) / 2**20

    assert len(workers) == run.cluster.engines + 1
    try:
        yield (
            LearnerGroup(learners, setup),
            EngineGroup(engines),
            held,
            lambda: raylet.memory_info().shared / 2**20,
            worked,
        )
    finally:
        learners.close()
        engines.close()
        ray.shutdown()


def measure(case: dict[str, Any]) -> dict[str, float]:
    import torch

    from rlkit.cluster.start import route
    from rlkit.cluster.sync import WeightSync
    from rlkit.rollout.vllm import environment
    from rlkit.types import Prompt, Sampling

    os.environ.update(environment())
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(case, model_folder(case["size"], folder))
        with started(run, folder) as (learners, engines, held, stored, worked):
            sync = WeightSync(learners, engines, "wait", route=route(run.rollout.kind, run.cluster))
            on = "cuda" if torch.cuda.is_available() else "cpu"
            dtype = getattr(torch, case["dtype"])
            sizes = [nbytes // dtype.itemsize for _, nbytes in learners.buckets()]
            source = torch.ones(max(sizes), dtype=dtype, device=on)
            target = torch.zeros_like(source)
            before = stored()
            sync.publish(1)  # engines that read their weights from a mapped file get memory of their own
            engines.generate(
                Prompt("0", (3, 4, 5), ""), 1, Sampling(max_tokens=2)
            )  # an engine packs what it multiplies with
            added = peak_during(lambda: sync.publish(2), held) + stored() - before
            sent, floor, publish, cpu = [0.0], [], [], [0.0, 0.0]

            def copy() -> None:
                for n in sizes:
                    target[:n].copy_(source[:n])
                if on == "cuda":
                    torch.cuda.synchronize()

            versions = iter(range(3, 3 + REPEATS))
            for _ in range(REPEATS):
                for k, (seconds, work) in enumerate(
                    (
                        (floor, copy),
                        (publish, lambda: sent.append(sync.publish(next(versions))["sync/mib"])),
                    )
                ):
                    start, before = time.perf_counter(), worked()
                    work()
                    seconds.append(time.perf_counter() - start)
                    cpu[k] += worked() - before
    return {
        "seconds": min(publish),
        "floor": min(floor),
        "ratio": min(publish) / min(floor),
        "cpu": cpu[1] / REPEATS,
        "cpu_ratio": cpu[1] / cpu[0],
        "weights_mib": sum(sizes) * dtype.itemsize / 2**20,
        "sent_mib": sent[-1],
        "added_mib": added,
    }


def step(size: str) -> dict[str, float]:
    """One optimizer step on 8 prompts with 8 responses each, lengths skewed to short ones (mean about 112)."""
    import torch

    from rlkit.cluster.groups import LearnerGroup, LocalWorkers
    from rlkit.learner.learner import Learner
    from rlkit.types import Batch, Prompt, Rollout

    r, vocabulary = random.Random(0), SIZES[size][3]
    rollouts = []
    for g in range(8):
        prompt = Prompt(str(g), tuple(r.randrange(3, vocabulary) for _ in range(PROMPT)), "")
        for k in range(8):
            n = HIGH if k == 0 else LOW + int((HIGH - LOW) * r.random() ** 2)
            rollouts.append(
                Rollout(
                    prompt,
                    [r.randrange(3, vocabulary) for _ in range(n)],
                    [True] * n,
                    [-10.0] * n,
                    [0] * n,
                    "stop",
                    group=g,
                    reward=r.random(),
                )
            )
    with tempfile.TemporaryDirectory() as folder:
        run = make_run({"size": size, "dtype": "float32", "place": "hf", "lora": False}, model_folder(size, folder))
        setup = run.learner_setup(folder, frozenset({"adv", "old"}))
        learners = LearnerGroup(LocalWorkers(Learner(setup)), setup)
        batch = Batch.from_rollouts(rollouts)
        batch = batch.replace(adv=torch.randn(batch.S, generator=torch.Generator().manual_seed(0))[batch.seq])
        start = time.perf_counter()
        learners.update(batch, (1.0,), seed=0)
        return {"seconds": time.perf_counter() - start, "tokens": float(batch.N), "sequences": float(batch.S)}


def write(rows: list[dict[str, Any]]) -> None:
    syncs, steps = [r for r in rows if "place" in r], [r for r in rows if "step" in r]
    full = {
        p: [r for r in syncs if r["place"] == p and r["dtype"] == "float32" and not r["lora"]]
        for p in ("hf", "vllm", "ray 1", "ray 1 gloo")
    }

    def draw(axes: Any) -> None:
        time_axis, ratio_axis = axes
        for place, found in full.items():
            x = [r["weights_mib"] for r in found]
            time_axis.loglog(x, [r["seconds"] * 1e3 for r in found], "o-", label=PLACES[place])
            ratio_axis.loglog(x, [r["ratio"] for r in found], "o-")
        floor = full["hf"]
        time_axis.loglog(
            [r["weights_mib"] for r in floor], [r["floor"] * 1e3 for r in floor], "k--", label="one copy in memory"
        )
        time_axis.set(xlabel="weights [MiB]", ylabel="one publish [ms]")
        time_axis.legend(fontsize=7, frameon=False)
        ratio_axis.axhline(1, color="k", linestyle="--")
        ratio_axis.set(xlabel="weights [MiB]", ylabel="publish / one copy in memory")

    plot(NAME, draw, width=2)
    lines = table(
        syncs,
        [
            ("parameters", lambda r: r["size"]),
            ("type", lambda r: r["dtype"]),
            ("trained", lambda r: "LoRA, all linear layers, r = 16" if r["lora"] else "all"),
            ("where", lambda r: PLACES[r["place"]]),
            ("sent", lambda r: f"{r['sent_mib']:.0f} of {r['weights_mib']:.0f} MiB"),
            ("one publish", lambda r: f"{r['seconds'] * 1e3:.0f} ms"),
            ("one copy", lambda r: f"{r['floor'] * 1e3:.1f} ms"),
            ("ratio", lambda r: f"{r['ratio']:.1f}"),
            ("CPU seconds: ratio", lambda r: f"{r['cpu_ratio']:.1f}" if "cpu_ratio" in r else ""),
            ("added memory", lambda r: f"{r['added_mib']:.0f} MiB"),
        ],
    )
    for r in steps:
        largest = [s for s in syncs if s["size"] == r["step"] and s["dtype"] == "float32" and not s["lora"]]
        shares = ", ".join(f"{PLACES[s['place']]} {s['seconds'] / r['seconds']:.2%}" for s in largest)
        lines += [
            "",
            f"A learner step alone (no generation) on {r['sequences']:.0f} sequences with {r['tokens']:,.0f} response tokens took {r['seconds']:.1f} s at {r['step']} parameters. "
            f"A publish is this share of it: {shares}.",
        ]
    for r in (r for r in rows if "pair" in r):
        old, new = r["before"], r["after"]
        lines += [
            "",
            f"Before and after embeddings took their weights in place, {r['pair']} parameters in one process, one after the other on a machine that others used, too: "
            f"{old['cpu']:.2f} s and {new['cpu']:.2f} s of CPU time ({old['cpu_ratio']:.1f} and {new['cpu_ratio']:.1f} copies), {old['seconds']:.2f} s and "
            f"{new['seconds']:.2f} s in all, {old['added_mib']:.0f} and {new['added_mib']:.0f} MiB of added memory.",
        ]
    page(
        NAME,
        "Weight sync",
        [
            "Ray: one CPU thread for each worker; one process: two. The smallest models are ruled by the fixed cost of a publish. Where others use "
            "the machine, too, CPU seconds are the ones to compare.",
            "",
            "On a CPU vLLM packs its matrices for oneDNN. In a profile of a publish of 135M parameters into vLLM in one process (one thread), that is "
            "68 % of the time and freeing the old packs 5 %; all copies together are 20 %, vLLM's and our Python the rest. Without packing a "
            "publish would be between two and three copies.",
            "",
            *lines,
        ],
        rows,
    )


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--fresh", action="store_true")
    p.add_argument("--size", choices=SIZES, help="rows of this size alone, and no learner step")
    p.add_argument("--place", choices=PLACES, action="append", help="rows of this place alone; may be repeated")
    p.add_argument("--worker", type=json.loads)
    a = p.parse_args()
    if a.worker:
        print(json.dumps(step(a.worker["step"]) if "step" in a.worker else measure(a.worker)))
        sys.stdout.flush()
        os._exit(0)  # vLLM's threads do not all end by themselves
    if a.fresh:
        (RESULTS / f"{NAME}.jsonl").unlink(missing_ok=True)
    wanted = [c for c in CASES if a.size in (None, c["size"]) and (not a.place or c["place"] in a.place)]
    for case in [*wanted, *([] if a.size or a.place else [{"step": "135M"}])]:
        if not any(case.items() <= r.items() for r in read(NAME)):
            append(
                NAME,
                {
                    **case,
                    **process(
                        str(ROOT / "benchmarks" / f"{NAME}.py"),
                        "--worker",
                        json.dumps(case),
                        threads=1 if "ray" in case.get("place", "") else 2,
                    ),
                },
            )
    write(read(NAME))


if __name__ == "__main__":
    main()
