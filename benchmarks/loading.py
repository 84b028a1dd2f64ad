"""Memory that ranks have for themselves while they load a model under ZeRO-3, by how they do it.

    python benchmarks/loading.py                # 500 M parameters; continues where it stopped; --fresh starts again
    python benchmarks/loading.py --size 100M

Every row is a group of two ranks that read one model up to where DeepSpeed's engine would be made: loaded, cut, its attention
and its log-probs examined. Private memory is Linux's (``smaps_rollup``: pages that no other process has), above what the rank held before, looked at
every 20 ms; pages of mapped files that only one of the ranks has touched so far count, too, and are shown apart. Goal: 1.3 times a rank's share
of the weights, and the largest layer.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import report
import torch
from weight_sync import SIZES

NAME, WORLD = "loading", 2
MIB = 2**20
WAYS = {
    "cut": "parameter by parameter, from the mapped file",
    "whole": "whole, then cut",
    "transformers": "`zero.Init` through transformers",
}
CASES = [
    {"way": way, "file": file, "dtype": dtype}
    for way in WAYS
    for file, dtype in (("bfloat16", "float32"), ("float32", "float32"), ("bfloat16", "bfloat16"))
]


def private() -> tuple[float, float]:
    """MiB that this process has for itself: (all, without unchanged pages of files)."""
    found = dict(line.split(":", 1) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    clean, dirty = (float(found[f"Private_{kind}"].split()[0]) / 2**10 for kind in ("Clean", "Dirty"))
    return clean + dirty, dirty


def peaks(work: Callable[[], Any]) -> tuple[float, float]:
    """The most of both while ``work`` runs, above what was there before."""
    before, stop = private(), threading.Event()
    most = [0.0, 0.0]

    def watch() -> None:
        while not stop.wait(0.02):
            most[:] = (max(m, now - b) for m, now, b in zip(most, private(), before, strict=True))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        work()
    finally:
        stop.set()
        thread.join()
    return most[0], most[1]


def load(case: Mapping[str, str], folder: str, kept: list[Any]) -> None:
    """What a learner rank does, in one of the :data:`WAYS`."""
    from rlkit.learner.backend import engine_config, import_deepspeed
    from rlkit.learner.section import LearnerSection
    from rlkit.learner.sharding import Cutter
    from rlkit.model import packed
    from rlkit.model.load import load_for
    from rlkit.model.policy import PolicyModel, prove_logprobs
    from rlkit.record.memory import release

    dtype, bf16 = getattr(torch, case["dtype"]), case["dtype"] == "bfloat16"
    config = engine_config(LearnerSection(), {"zero_optimization": {"stage": 3}}, bf16)
    packed.register()
    if case["way"] == "transformers":
        from transformers import AutoModelForCausalLM
        from transformers.integrations import HfDeepSpeedConfig

        alive = HfDeepSpeedConfig(config)  # transformers looks for it
        kept += [alive, AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)]
        return
    cpu = torch.device("cpu")
    cut = Cutter(config, cpu, dtype) if case["way"] == "cut" else None
    lm, _ = load_for(folder, dtype, packed.NAME, cut=cut)
    policy = PolicyModel(lm).eval()
    prove_logprobs(policy, "model.path", 0.05 if bf16 else 1e-3)
    release()
    if cut is None:
        import_deepspeed().zero.Init(module=policy, config_dict_or_path=config, dtype=dtype)
    kept.append(policy)


def _rank(rank: int, port: int, case: Mapping[str, str], folder: str) -> None:
    from rlkit.learner.backend import join, rank_environment

    os.environ.update(rank_environment(rank, WORLD, "127.0.0.1", port))
    torch.set_num_threads(1)
    join()
    load(case, f"{folder}/warm", [])  # libraries and buffers that every process has once
    torch.distributed.barrier()
    kept: list[Any] = []
    start, before = time.perf_counter(), private()[0]
    most, dirty = peaks(lambda: load(case, f"{folder}/{case['file']}", kept))
    row = {"peak_mib": most, "dirty_mib": dirty, "kept_mib": private()[0] - before}
    (Path(folder) / f"{rank}.json").write_text(json.dumps({**row, "seconds": time.perf_counter() - start}))


def models(folder: str, large: str) -> None:
    """The model in both types, of zeros, which take as much room as other numbers, and a small one by which each process warms up."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    for name, size, dtype in (
        ("float32", large, torch.float32),
        ("bfloat16", large, torch.bfloat16),
        ("warm", "1M", torch.float32),
    ):
        hidden, inner, layers, vocabulary = SIZES[size]
        config = Qwen2Config(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            num_key_value_heads=hidden // 128,
            tie_word_embeddings=True,
        )
        with torch.device("meta"):
            lm = Qwen2ForCausalLM(config)
        lm = lm.to(dtype).to_empty(device="cpu")
        lm.tie_weights()
        for p in lm.parameters():
            p.data.zero_()
        lm.save_pretrained(f"{folder}/{name}")
    os.sync()  # pages of a file that is not written yet would count as private


def measure(case: Mapping[str, str], folder: str) -> dict[str, float]:
    from rlkit.learner.backend import free_port
    from rlkit.model.load import load_lm

    width = getattr(torch, case["dtype"]).itemsize / MIB
    sizes = [p.numel() * width for p in load_lm(f"{folder}/{case['file']}", mapped=True).parameters()]
    torch.multiprocessing.spawn(_rank, (free_port(), case, folder), nprocs=WORLD)
    found = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(WORLD)]
    share, layer = sum(sizes) / WORLD, max(sizes)
    return {
        "share_mib": share,
        "layer_mib": layer,
        "goal_mib": 1.3 * share + layer,
        **{key: max(row[key] for row in found) for key in found[0]},
    }


def write(rows: list[report.Row]) -> None:
    lines = [
        "Two ranks, one thread each; embeddings are tied to the output layer and the largest layer. A row shows the larger of both ranks.",
        "Unchanged pages of a mapped file count as a rank's own until the other one has touched them, and the system takes them back when it needs room:",
        "what a rank really has for itself is the column after.",
        "",
        *report.table(
            rows,
            [
                ("parameters", lambda r: r["size"]),
                ("loaded", lambda r: WAYS[r["way"]]),
                ("files", lambda r: r["file"]),
                ("trained in", lambda r: r["dtype"]),
                ("share", lambda r: f"{r['share_mib']:.0f} MiB"),
                ("goal", lambda r: f"{r['goal_mib']:.0f} MiB"),
                ("most private memory", lambda r: f"{r['peak_mib']:.0f} MiB"),
                ("of it not pages of files", lambda r: f"**{r['dirty_mib']:.0f} MiB**"),
                ("held afterwards", lambda r: f"{r['kept_mib']:.0f} MiB"),
                ("seconds", lambda r: f"{r['seconds']:.0f}"),
            ],
        ),
    ]
    report.page(NAME, "Loading under ZeRO-3", lines, rows)


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--fresh", action="store_true")
    p.add_argument("--size", choices=SIZES, default="500M")
    p.add_argument("--worker", nargs=2)
    a = p.parse_args()
    if a.worker:
        print(json.dumps(measure(json.loads(a.worker[0]), a.worker[1])))
        return
    if a.fresh:
        (report.RESULTS / f"{NAME}.jsonl").unlink(missing_ok=True)
    cases = [{"size": a.size, **case} for case in CASES]
    missing = [case for case in cases if not any(case.items() <= r.items() for r in report.read(NAME))]
    with tempfile.TemporaryDirectory() as folder:
        if missing:
            models(folder, a.size)
        for case in missing:
            report.append(NAME, {**case, **report.process(__file__, "--worker", json.dumps(case), folder, threads=1)})
            write(report.read(NAME))
    write(report.read(NAME))


if __name__ == "__main__":
    main()
