"""Where the seconds of a step go: each stage beside the matrix products that it makes, done alone, and what is left.

    python benchmarks/floor.py                    # continues where it stopped; --fresh starts again
    python benchmarks/floor.py --shapes real --threads 2

Each shape is run twice from the same seed, in processes of their own, with the Hugging Face engine in the learner's process: once under torch's
profiler, which notes the shape of every matrix product, and once for its seconds, which are those of the CPU: other processes may use the
machine. Right after that step the same process makes these products alone, on random matrices that are used again and again (the best of three
goes). What a stage takes beyond that is softmax, norms, activations, sampling, the optimizer, copies, page faults and Python; an attention kernel
counts as the products in it. All shapes: GRPO with a k2 KL to a reference.
Results: benchmarks/results/floor.jsonl, benchmarks/floor.md.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import string
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import report

STAGES = ("generate", "annotate", "update")
STEPS = 4  # the last one is looked at
LARGE = {
    "vocab_size": 151936,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SORTING = {"task": {"type": "Sorting", "levels": [1, 2], "mistakes": 0.8}, "size": 2000, "test_size": 8}
TINY = {
    "make": {"family": "qwen2", "hidden": 64, "layers": 2, "heads": 2, "kv_heads": 1},
    "warm_up": {"steps": 100, "batch": 64, "lr": 2e-3},
}


def shape(rows: str, prompts: int, sampling: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "what": rows,
        "steps": STEPS,
        "rollout": {"engine": "hf", "prompts": prompts, "n": 8},
        "sampling": sampling,
        "advantage": {"type": "GroupNorm"},
        "objective": [{"type": "PPOClip"}, {"type": "KL", "estimator": "k2", "coef": 0.01}],
        "log": {"tensorboard": False, "breakdown": 0, "drift": 0},  # the last step, too, is like any other
        "probe": {"every": 0},
        "eval": {"every": 0, "prompts": 1},
        "checkpoint": {"every": 0},
        **more,
    }


SHAPES: Mapping[str, dict[str, Any]] = {
    "quickstart": shape(
        "256 answers of 6 tokens in two minibatches, hidden 64, V = 14",
        32,
        {"max_tokens": 6},
        data=SORTING,
        model=TINY,
        learner={"minibatches": 2},
    ),
    "short": shape("256 answers of 6 tokens, hidden 64, V = 14", 32, {"max_tokens": 6}, data=SORTING, model=TINY),
    "long": shape(
        "32 answers of 1 to 256 tokens (64 in the mean), prompts of 60, hidden 256, V = 151,936",
        4,
        {"max_tokens": 256},
        data={"train": [{"prompt": f"{i:060d}", "answer": "1"} for i in range(64)]},
        rewards=[f"{__file__}:parity"],
    ),
    "real": shape(
        "96 answers of at most 20 tokens, SmolLM2-135M-Instruct",
        12,
        {"temperature": 0.6, "max_tokens": 20},
        data={"task": {"type": "WordProblems"}, "template": "chat", "test_size": 8},
        learner={"lr": 2e-5},
    ),
}


def parity(response: str) -> float:
    return float(len(response) % 2)


def run_of(name: str, folder: str) -> Any:
    import rlkit as rk

    own = {k: v for k, v in SHAPES[name].items() if k != "what"} | {"out": folder}
    if name == "real":
        own["model"] = {"path": report.real_model()}
    elif name == "long":
        own["model"] = {"path": large_model(f"{folder}/model")}
    return rk.load(own)


def large_model(folder: str) -> str:
    """A random model whose responses end at every 64th token of the vocabulary, so that their lengths have a long tail."""
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    from rlkit.model.tiny import make_tokenizer

    torch.manual_seed(0)
    lm = Qwen2ForCausalLM(Qwen2Config(**LARGE, tie_word_embeddings=True, bos_token_id=None, eos_token_id=1))
    lm.generation_config = GenerationConfig(eos_token_id=list(range(1, LARGE["vocab_size"], 64)))
    lm.save_pretrained(folder)
    make_tokenizer(string.printable).save_pretrained(folder)
    return folder


# -- the run, and what it multiplied ------------------------------------------------------------------------------------

Product = tuple[tuple[int, ...], tuple[int, ...]]  # the shapes of the two factors, [n, k] [k, m] or [b, n, k] [b, k, m]


def last_step(name: str, counted: Mapping[str, list[list[Any]]] | None) -> report.Row:
    """The products of each stage of the last step, and how often it makes them; or, where they are known, its seconds and theirs."""
    import torch

    import rlkit as rk
    from rlkit import trainer
    from rlkit.report import Clock

    took: dict[str, float] = defaultdict(float)

    class Marked(Clock):
        @contextmanager
        def __call__(self, stage: str) -> Iterator[None]:
            start = time.process_time()
            with super().__call__(stage), torch.profiler.record_function(f"stage {stage}"):
                yield
            took[f"time/{stage}"] += time.process_time() - start

    with tempfile.TemporaryDirectory() as folder, closing(iter(rk.steps(run_of(name, folder), quiet=True))) as loop:
        for _ in range(STEPS - 1):
            next(loop)
        trainer.Clock = Marked  # type: ignore[misc]
        if counted is not None:
            start = time.process_time()
            tokens = next(loop).metrics["batch/tokens"]
            took["time/step"] = time.process_time() - start
            return {**took, "batch/tokens": tokens, "products": {s: seconds_of(counted[s]) for s in STAGES}}
        every_thread = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)  # the engine has one of its own
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True, experimental_config=every_thread
        ) as profile:
            next(loop)
    events = profile.events()
    found = {s: Counter(products(events, [e.time_range for e in events if e.name == f"stage {s}"])) for s in STAGES}
    return {stage: [[*product, times] for product, times in counted.items()] for stage, counted in found.items()}


def products(events: Any, spans: Any) -> Iterator[Product]:
    """Those that were begun within one of the spans: a step may come to a stage more than once."""
    for e in events:
        if not (any(span.start <= e.time_range.start <= span.end for span in spans) and e.input_shapes):
            continue
        name, shapes = e.name.removeprefix("aten::").removesuffix("_"), [tuple(s) for s in e.input_shapes]
        if name in ("mm", "bmm"):
            yield shapes[0], shapes[1]
        elif name in ("addmm", "baddbmm"):
            yield shapes[1], shapes[2]
        elif name == "_scaled_dot_product_flash_attention_for_cpu":
            (b, h, n, d), m = shapes[0], shapes[1][2]
            yield from (((b * h, n, d), (b * h, d, m)), ((b * h, n, m), (b * h, m, d)))
        elif name == "_scaled_dot_product_flash_attention_for_cpu_backward":
            (b, h, n, d), m = shapes[1], shapes[2][2]
            yield from (
                ((b * h, n, d), (b * h, d, m)),
                ((b * h, n, d), (b * h, d, m)),
            )  # scores again, and their gradient
            yield from (((b * h, m, n), (b * h, n, d)), ((b * h, m, n), (b * h, n, d)), ((b * h, n, m), (b * h, m, d)))


def seconds_of(counted: list[list[Any]], goes: int = 3) -> float:
    """What these products take, each at its best."""
    import torch

    total = 0.0
    for one, two, times in counted:
        a, b = torch.randn(one), torch.randn(two)
        out, some = torch.matmul(a, b), max(1, min(times, 20))
        best = float("inf")
        for _ in range(goes):
            start = time.process_time()
            for _ in range(some):
                torch.matmul(a, b, out=out)
            best = min(best, (time.process_time() - start) / some)
        total += best * times
    return total


def measure(name: str, _seed: int, threads: int) -> report.Row:
    made = report.process(__file__, "--worker", name, "profiled", threads=threads)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(made, file)
        file.flush()
        timed = report.process(__file__, "--worker", name, file.name, threads=threads)
    return {"run": name, "seed": 0, "threads": threads, **timed}


def write(rows: list[report.Row]) -> None:
    def line(r: report.Row, stage: str) -> list[str]:
        took, alone = r[f"time/{stage}"], r["products"][stage]
        share = f"{took / r['time/step']:.0%}"
        return [r["run"], stage, f"{took:.3f}", share, f"{alone:.3f}", f"{took / alone:.2f}" if alone else "-"]

    titles = ["shape", "stage", "CPU seconds", "of the step", "its products alone", "ratio"]
    lines = [f"* {r['run']}: {SHAPES[r['run']]['what']}; {r['threads']} threads." for r in rows]
    lines += ["", *report.grid(titles, (line(r, stage) for r in rows for stage in STAGES))]
    report.page("floor", "Where the seconds of a step go", lines, rows)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    p.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    p.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    p.add_argument("--fresh", action="store_true")
    a = p.parse_args()
    if a.worker:
        name, how = a.worker
        print(json.dumps(last_step(name, None if how == "profiled" else json.loads(Path(how).read_text()))))
        return
    work = functools.partial(measure, threads=a.threads)
    report.fill("floor", [(name, 0) for name in a.shapes], work, write, fresh=a.fresh)


if __name__ == "__main__":
    main()
