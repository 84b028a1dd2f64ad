"""Samples of a model, drawn and graded and kept: what `rlkit eval` does, and what every metric is computed from.

A file of samples is JSONL. Its first line says what they are samples of; then one line for each sample::

    {"evaluation": {"model": "runs/grpo/final", "max_tokens": 1024, "top_p": 1.0, "top_k": 0, "seed": 0, "rewards": ["math"], ...}}
    {"dataset": "gsm8k", "prompt_id": "gsm8k-test-0", "temperature": 1.0, "k": 0, "response": "...", "answer": "18", "vote": "18",
     "correct": 1.0, "length": 212, "finish": "stop", ...}          # of an episode also "turns" and "transcript"

Lines are written as soon as a prompt's samples are graded. A later call with the same settings draws what is missing, and metrics are
computed again from the file without a model.
"""

from __future__ import annotations

import dataclasses
import json
import math
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rlkit.errors import ConfigError, RunError
from rlkit.evaluation.voting import should_stop
from rlkit.files import Appender, read_rows, reason
from rlkit.samples import Prompt, Rollout, Sampling, by_episode

Record = dict[str, Any]
ROUND = 16  # samples of one request; further rounds have seeds of their own, so that more samples keep the earlier ones


def read_samples(path: str | Path, say: Callable[[str], None] = print) -> tuple[Record, list[Record]]:
    """``(settings, samples)`` of a file, or of the folder that `rlkit eval --out` wrote. Lines that were cut off are left out, and said.

    Raises:
        ConfigError: no such file, or not one of samples.
    """
    path = Path(path) / "samples.jsonl" if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise ConfigError(
            f"{path}: there is no such file of samples. Make one with: rlkit eval CONFIG --model MODEL --out {path.parent}"
        )
    settings: Record | None = None
    rows: dict[Any, Record] = {}
    notes: list[str] = []
    for number, row in enumerate(read_rows(path, notes.append)):
        if settings is None and "evaluation" in row:
            settings = row["evaluation"]
        elif "prompt_id" in row and "correct" in row:
            # One that was drawn again, because a line was damaged, counts once.
            rows[number if "k" not in row else (*_question(row), row["k"])] = row
        else:
            raise ConfigError(
                f"{path}: a line is not a sample: it needs prompt_id and correct, and has {', '.join(map(str, row))[:120]}."
            )
    if settings is not None or rows:
        for note in notes:
            say(note)
    return settings or {}, list(rows.values())


def _question(row: Record) -> tuple[str, str, float]:
    return row.get("dataset", ""), row["prompt_id"], row.get("temperature", 1.0)


class SampleFile:
    """Samples that are complete, on disk or (``path=None``) in memory. Thread-safe."""

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        """Raises ConfigError if the file holds samples of another model, or drawn or graded otherwise."""
        self.rows, self._lock = list[Record](), threading.Lock()
        self.file = None if path is None else Appender(path)
        if path is None:
            return
        found: Record = {}
        if path.exists():
            found, self.rows = read_samples(path)
            self.rows = [r for rows in self.of_prompts().values() for r in rows]
        if not found and not self.rows:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write([{"evaluation": dict(settings)}])
            return
        other = [k for k in {**settings, **found} if settings.get(k) != found.get(k)]
        if other:
            what = "another model" if "model" in other else f"another {other[0]}"
            raise ConfigError(
                f"{path} has samples of {what} ({other[0]}: {found.get(other[0])!r}, now {settings.get(other[0])!r}). "
                "Give another --out, or remove the file."
            )

    def _write(self, rows: Sequence[Record]) -> None:
        if self.file is not None:
            self.file.add("".join(json.dumps(r, default=str) + "\n" for r in rows))

    def add(self, rows: Sequence[Record]) -> None:
        """Keeps rows; where the file cannot be written they wait in memory."""
        with self._lock:
            self.rows.extend(rows)
            self._write(rows)

    def finish(self) -> None:
        """Raises RunError if something is still not on disk."""
        if self.file is not None and not self.file.flush() and self.file.error is not None:
            raise RunError(
                f"samples could not be written ({reason(self.file.error)}). Make room and give the same command again."
            )

    def of_prompts(self) -> dict[tuple[str, str, float], list[Record]]:
        """The samples of each (data set, prompt, temperature), in the order of ``k``, up to the first that is missing."""
        out: dict[tuple[str, str, float], list[Record]] = defaultdict(list)
        for r in sorted(self.rows, key=lambda r: r["k"]):
            if r["k"] == len(out[_question(r)]):
                out[_question(r)].append(r)
        return out

    def of(self, prompts: Sequence[Prompt], n: int, temperatures: Sequence[float]) -> list[Record]:
        """The first ``n`` samples of each of ``prompts`` at each of ``temperatures``; the file may hold more."""
        wanted = {(dataset_of(p), p.id, t) for p in prompts for t in temperatures}
        return [r for r in self.rows if _question(r) in wanted and r["k"] < n]


def dataset_of(prompt: Prompt) -> str:
    """The data set that a prompt is from; empty if there is only one without a name."""
    return str(prompt.columns.get("dataset", ""))


def record(rows: Sequence[Rollout], k: int, temperature: float, correct: float, vote: str | None) -> Record:
    """One line of the file: ``answer`` is the reference, ``vote`` the response's own final answer, normalised.

    ``rows`` are a response, or all of an episode, whose last answer is the ``response``; it also has its turns, and the episode as people
    read it. Lengths are of what the model wrote.
    """
    r, turns = rows[-1], {t for row in rows for t in row.turn or () if t >= 0}
    return {
        "dataset": dataset_of(r.prompt),
        "prompt_id": r.prompt.id,
        "temperature": temperature,
        "k": k,
        "response": r.text,
        "answer": r.prompt.answer,
        "vote": vote,
        "correct": correct,
        "reward": None if math.isnan(r.reward) else r.reward,
        "length": sum(sum(row.sampled) for row in rows),
        "finish": r.finish,
        "logp": round(sum(sum(row.logp) for row in rows), 4),
        **({} if r.episode is None else {"turns": len(turns), "transcript": r.transcript}),
        **({"error": r.error} if r.error else {}),
    }


def correctness(r: Rollout, label: str) -> float:
    """The part of the reward that the first reward function gave; a response that could not be graded counts as wrong."""
    parts = [v for name, v in r.parts.items() if name == label or name.startswith(f"{label}/")]
    return sum(parts) if parts else 0.0


def draw(
    generate: Callable[[Prompt, int, Sampling], list[Rollout]],
    score: Callable[[Sequence[Rollout]], None],
    prompts: Sequence[Prompt],
    *,
    n: int,
    sampling: Sampling,
    temperatures: Sequence[float],
    label: str,
    vote: Callable[[Rollout], str | None],
    store: SampleFile,
    adaptive: bool = False,
    certainty: Callable[[Sequence[Rollout]], list[float]] | None = None,
    threads: int = 64,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Fills ``store`` up to ``n`` samples of every prompt at every temperature.

    ``adaptive``: a prompt gets no further round once its majority answer is settled
    (:func:`rlkit.evaluation.voting.should_stop`). ``certainty`` gives each response a weight for votes, kept beside it.
    """
    known = store.of_prompts()
    tasks = [(p, t) for t in temperatures for p in prompts]
    done, lock = 0, threading.Lock()

    def one(task: tuple[Prompt, float]) -> None:
        nonlocal done
        prompt, temperature = task
        have = list(known.get((dataset_of(prompt), prompt.id, temperature), ()))
        each = ROUND if n > ROUND else n
        while len(have) < n and not (adaptive and have and should_stop([h["vote"] for h in have])):
            number, inside = divmod(len(have), each)
            seed = None if sampling.seed is None else sampling.seed + 7919 * number
            group = generate(prompt, each, dataclasses.replace(sampling, seed=seed, temperature=temperature))
            whole = by_episode(group)[inside : inside + n - len(have)]  # an earlier call may have ended inside a round
            group = [r for episode in whole for r in episode]
            score(group)
            rows = [
                record(episode, len(have) + k, temperature, correctness(episode[-1], label), vote(episode[-1]))
                for k, episode in enumerate(whole)
            ]
            for row, weight in zip(rows, certainty(group) if certainty is not None else (), strict=False):
                row["certainty"] = round(weight, 4)
            store.add(rows)
            have += rows
        with lock:
            done += 1
            progress(done, len(tasks))

    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(one, task) for task in tasks]:
            try:
                future.result()
            except BaseException:
                # What is graded is kept; the next call goes on from there.
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def tenths(say: Callable[[str], None]) -> Callable[[int, int], None]:
    """A ``progress`` that speaks at every tenth."""
    last = 0

    def progress(done: int, total: int) -> None:
        nonlocal last
        if 10 * done // total > last:
            last = 10 * done // total
            say(f"  {done} of {total} prompts")

    return progress
