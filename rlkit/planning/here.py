"""What a run needs on the machine that it is planned on, where that has no GPU: memory of every process by role, seconds of a step."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from rlkit.cluster.section import Cluster
from rlkit.learner.plan import micro_batch
from rlkit.model.head import CPU_ELEMENTS
from rlkit.planning.layout import Planner, draw_memory, not_measured
from rlkit.planning.memory import (
    BYTES,
    GIB,
    Budget,
    Shape,
    Sharding,
    activations,
    layer_backward,
    saved,
    states,
)
from rlkit.planning.speed import GPUS, Assumptions, forward_flops, update_flops
from rlkit.record.container import memory
from rlkit.record.memory import resident
from rlkit.record.plots import Style, picture
from rlkit.rollout.hf import MAX_ROWS
from rlkit.run import Run

MIB = 1 << 20
GENERATE, UPDATE = 0.75, 0.8  # shares of a plain product's FLOP/s that these stages reach (benchmarks/generation.py)
BANDWIDTH = 8e9  # bytes/s of an optimizer step, which reads and writes 28 bytes a parameter
# What a pass leaves unused in the heap, as a share of what it keeps, measured with glibc: keys that responses share are copied for each of
# them; adapters free two results of every layer between tensors that stay.
HEAP = {"full": 0.25, "lora": 0.95}
LIBRARIES = {"vllm": 900 * MIB, "deepspeed": 250 * MIB, "ray": 150 * MIB}  # what they add to a process beside torch


@dataclass(frozen=True)
class Machine:
    """A machine without GPUs.

    Attributes:
        memory: bytes that its processes may hold. flops: FLOP/s of a float32 product on all cores.
        process: bytes of a Python process that has loaded torch and transformers, and no model.
    """

    memory: float
    cores: int
    flops: float
    process: float

    @classmethod
    def here(cls) -> Machine:
        """What is measured on this one, now."""
        import transformers  # noqa: F401  # for what it takes

        return cls(memory()[0], os.cpu_count() or 1, _product(), resident() * MIB)


def _product(n: int = 1024) -> float:
    """FLOP/s: the best of a few products of ``n`` by ``n`` matrices."""
    x, best = torch.ones(n, n), math.inf
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(x, x)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


@dataclass(frozen=True)
class HerePlan:
    """The report; ``print(plan)``. ``processes``: the memory of each process that holds a model, and how many of them there are."""

    run: Run
    machine: Machine
    shape: Shape
    lengths: str
    micro: str
    processes: tuple[tuple[Budget, int], ...]
    driver: float
    seconds: Mapping[str, float]
    unfit: str | None = None  # why the model could not be trained
    untold: str | None = None  # why lengths of prompts could not be measured

    @property
    def peak(self) -> float:
        """Bytes of all processes, each at its own peak."""
        return self.driver + sum(b.peak * n for b, n in self.processes)

    @property
    def fits(self) -> bool:
        return self.unfit is None and self.peak <= self.machine.memory

    def plot(self, out: str | Path) -> Path:
        """Draws the memory of every kind of process at its peak (.svg, .pdf, .png).

        Raises:
            ConfigError: matplotlib is missing.
        """
        out = Path(out)
        with picture(out, figsize=(6.6, 2.8), style=Style.PAPER) as axis:
            draw_memory(
                axis, [b for b, _ in self.processes], f"{self.run.name} on this machine", "memory of one process (GiB)"
            )
        return out

    def __str__(self) -> str:
        s, m = self.shape, self.machine
        lora = f", {s.trainable / 1e6:.1f} M of them trained (LoRA)" if s.lora else ""
        out = [
            f"{self.run.name}: {s.parameters / 1e9:.4f} B parameters{lora}, {self.run.model.dtype}, {s.layers} layers, hidden {s.hidden}, "
            f"vocabulary {s.vocab}",
            f"this machine: {m.memory / GIB:.1f} GiB, {m.cores} cores, {m.flops / 1e9:.0f} GFLOP/s measured, no GPU (--gpu plans others)",
            f"{self.lengths}; {self.micro}",
            *not_measured(self.untold),
            "",
        ]
        for budget, count in self.processes:
            out.append(f"{count} x {budget}" if count > 1 else str(budget))
            phases = {name: sum(parts.values()) for name, parts in budget.phases.items()}
            out.append("    peak by stage: " + ", ".join(f"{name} {size / GIB:.2f}" for name, size in phases.items()))
        if self.driver:
            out.append(f"driver: {self.driver / GIB:.2f} GiB")
        verdict = "fits" if self.peak <= m.memory else "TOO LARGE"
        total = sum(self.seconds.values())
        return "\n".join(
            [
                *out,
                *([] if self.unfit is None else [f"DOES NOT START: {self.unfit}"]),
                f"together {self.peak / GIB:.2f} of {m.memory / GIB:.2f} GiB: {verdict}",
                f"one step about {total:.0f} s: " + ", ".join(f"{k} {v:.1f}" for k, v in self.seconds.items()),
                "",
                f"Assumed, not measured: {GENERATE:.0%} (generate) and {UPDATE:.0%} (annotate, update) of the measured FLOP/s, "
                f"{BANDWIDTH / 1e9:g} GB/s in the optimizer. Rewards, evaluation and checkpoints take no time and no memory here.",
            ]
        )


def plan_here(
    run: Run, machine: Machine | None = None, *, prompt_tokens: float | None = None, turns: float | None = None
) -> HerePlan:
    """What ``run`` needs on a machine without GPUs (null: this one), in one process or on a Ray of its own, when all responses are as long
    as they may be. ``turns``: answers of an episode.

    Raises:
        ConfigError: a model that cannot be planned.
    """
    machine = machine or Machine.here()
    p = Planner(run, GPUS["H100"], 1, None, prompt_tokens, None, Assumptions(), turns)
    c, n, limit = run.cluster, p.responses / p.groups, p.limit
    packed = run.learner.packed is not False and run.model.attention is None
    # Tokens of a prompt group: packed, its prompt counts once; padded, every row is as long as the longest.
    group = p.prompt + n * limit if packed else n * p.longest
    most = micro_batch(run.learner.max_tokens, "cpu", p.shape.width)
    share = math.ceil(p.groups / run.learner.minibatches / (c.learners if c else 1))
    micros = max(1, math.ceil(share * group / most))
    tokens = max(min(most, math.ceil(share / micros) * group), float(p.longest if not packed else p.prompt + limit))
    return HerePlan(
        run,
        machine,
        p.shape,
        f"prompts of {p.prompt:.0f} tokens ({p.known(prompt_tokens)}), {p.answers(turns, f'up to {limit}')}",
        f"micro-batches of {tokens:.0f} tokens ({'learner.max_tokens' if run.learner.max_tokens else 'automatic: at most'} {most})",
        _processes(p, machine, tokens, tokens * n * limit / group),
        0.0 if c is None else machine.process + LIBRARIES["ray"],
        _seconds(p, machine, group),
        p.unfit,
        p.untold,
    )


def _processes(p: Planner, machine: Machine, tokens: float, actions: float) -> tuple[tuple[Budget, int], ...]:
    """What each process needs, and how many there are of it. ``tokens``, ``actions``: of a micro-batch."""
    run, c, size = p.run, p.run.cluster, BYTES[p.run.model.dtype]
    ranks, engines = (c.learners, c.engines) if c else (1, 1)
    learner = _learner(p, Sharding.of(run.deepspeed, ranks), size, tokens, actions)
    engine = _engine(p, size, min(p.sampled / engines, MAX_ROWS)) if run.online else {"always": {}, "generate": {}}

    def libraries(*names: str) -> dict[str, float]:
        return {"Python, torch and other libraries": machine.process + sum(LIBRARIES[k] for k in names)}

    learns = ("deepspeed",) if run.deepspeed is not None else ()
    samples = ("vllm",) if run.online and run.rollout.engine == "vllm" else ()
    if c is None:
        stays = {**libraries(*learns, *samples), **learner.pop("always"), **engine.pop("always")}
        # The learner's stages and the engine's follow one another: an update's heap is still there while the engine generates.
        engine["generate"] |= learner.pop("after an update")
        return ((_budget("this process", machine, stays, {**engine, **learner}), 1),)
    of_learner = {**libraries("ray", *learns), **learner.pop("always")}
    of_engine = {**libraries("ray", *samples), **engine.pop("always")}
    learners = (_budget("learner process", machine, of_learner, learner), ranks)
    return (learners, (_budget("engine process", machine, of_engine, engine), engines)) if run.online else (learners,)


def _seconds(p: Planner, machine: Machine, group: float) -> dict[str, float]:
    """Of one step by its stages. ``group``: tokens of a prompt group as the learner reads it."""
    run, s = p.run, p.shape
    total, actions, length = p.groups * group, p.responses * p.limit, p.prompt + p.limit
    prefill = forward_flops(s, run.rollout.prompts * p.prompt, run.rollout.prompts, p.prompt)
    decode = forward_flops(s, p.sampled * p.limit, p.sampled * p.limit, length)
    annotate = p.passes * forward_flops(s, total, actions, length)
    update = run.learner.epochs * update_flops(s, total, actions, length, run.learner.gradient_checkpointing)
    optimizer = run.learner.epochs * run.learner.minibatches * 28 * s.trainable / BANDWIDTH
    return {
        "generate": (prefill + decode) / machine.flops / GENERATE,
        "annotate": annotate / machine.flops / UPDATE,
        "update": update / machine.flops / UPDATE + optimizer,
    }


def _budget(
    role: str, machine: Machine, stays: Mapping[str, float], phases: Mapping[str, Mapping[str, float]]
) -> Budget:
    return Budget(role, machine.memory, {name: {**stays, **extra} for name, extra in phases.items()})


def _learner(p: Planner, sharding: Sharding, size: int, tokens: float, actions: float) -> dict[str, dict[str, float]]:
    """What a rank always holds, and what each of its stages adds. Offloaded states stay in the same memory here."""
    s, run = p.shape, p.run
    kept, _, host = states(s, sharding, size)
    always = {k: v for k, v in kept.items() if k != "gradients"}
    if "reduce buckets" in always:  # memory that is never written to takes no room on a CPU
        always["reduce buckets"] = min(always["reduce buckets"], float(size * s.trainable))
    always |= {"states of the optimizer (offloaded)": host} if host else {}
    for name, a in p.anchors.items():
        always[f"{name} (a second model)"] = a.bytes
    gradients = {"gradients": kept["gradients"]} if "gradients" in kept else {}
    longest, attention, again = p.longest, run.model.attention, run.learner.gradient_checkpointing
    forward = activations(s, tokens, actions, size, longest=longest, checkpointing=again, attention=attention)
    backward = layer_backward(s, tokens, size, longest=longest, checkpointing=again, attention=attention)
    heap = {"unused parts of the heap": HEAP["lora" if s.lora else "full"] * sum(forward.values())}
    bucket = (run.cluster or Cluster()).bucket_bytes
    tiles = {"tiles of logits": CPU_ELEMENTS * (4.0 + 4 * p.entropy)}
    one = {"gradient of the output layer's weight": 0.0 if s.lora else float(s.head * size)}
    return {
        "always": always,
        "annotate": {"one layer without gradient": saved(s, tokens, size, longest, attention), **tiles},
        "update": {**gradients, **forward, **heap, **backward, **tiles, **one},
        "after an update": {"freed, not yet given back": sum((forward | heap).values())},
        # torch steps through one parameter after the other on CPUs.
        "optimizer step": {**gradients, "temporaries of AdamW": 3 * 4.0 * min(s.trainable, max(s.largest, s.head))},
        "weight sync": {
            "merged weights of a bucket": 2.0 * max(bucket, size * s.head) if s.lora or run.cluster else 0.0
        },
    }


def _engine(p: Planner, size: int, rows: float) -> dict[str, dict[str, float]]:
    """What an engine always holds, and what generating adds."""
    s, run = p.shape, p.run
    length = p.prompt + p.limit
    always = {"engine's weights": 0.0 if run.shares_weights else float(size * s.parameters)}
    if run.rollout.engine == "vllm":
        always["engine's KV cache"] = float(run.vllm.get("kv_cache_memory_bytes", 64 << 20))
        return {"always": always, "generate": {"logits and probabilities": 4 * 4.0 * rows * s.vocab}}
    # Buffers grow by half of what is needed.
    cache = rows * max(length, p.prompt + max(32, p.prompt / 2)) * s.kv_bytes(size)
    return {
        "always": always,
        "generate": {"keys and values": cache, "logits and probabilities": 4 * 4.0 * rows * s.vocab},
    }
