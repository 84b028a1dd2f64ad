"""``rlkit sweep``: one configuration with several values of some keys and several seeds, as runs of their own, and how they compare."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from rlkit.checks import check
from rlkit.commands.submit import submit
from rlkit.config import to_yaml
from rlkit.errors import CheckpointError, ConfigError, RlkitError
from rlkit.evaluation.bands import student
from rlkit.evaluation.compare import Comparison, aligned, compare
from rlkit.files import replace_file
from rlkit.looking.page import report_runs
from rlkit.looking.runs import Seen, differing, see
from rlkit.record.output import require_folder
from rlkit.record.results import digits
from rlkit.run import Run, load

LONGEST = 120  # characters of a run's name
GOES_ON = (3, 130, 143, 129)  # exit codes after which a run can be continued


@dataclass(frozen=True)
class Swept:
    """One run of a sweep: what is different about it, its seed, its folder, and the exit code of its process (0: it came to its end)."""

    settings: tuple[str, ...]
    seed: int
    folder: Path
    run: Run
    code: int | None = None

    @property
    def label(self) -> str:
        return ", ".join((*self.settings, f"seed={self.seed}"))

    @property
    def log(self) -> Path:
        """What its process says."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def begun(self) -> bool:
        return (self.folder / "config.yaml").is_file()

    @property
    def done(self) -> bool:
        """Whether it has come to its end, now or earlier."""
        return (self.folder / "summary.json").is_file() and see(self.folder).ended


@dataclass(frozen=True)
class Sweep:
    """What came of a sweep; ``str`` is the table.

    Attributes:
        runs: in their order. rows: a line for each setting. report: the page with all runs over each other, if any has begun.
    """

    runs: tuple[Swept, ...]
    rows: tuple[Outcome, ...]
    report: Path | None

    @property
    def failed(self) -> tuple[Swept, ...]:
        return tuple(r for r in self.runs if not r.done)

    def __str__(self) -> str:
        return table(self.rows)


@dataclass(frozen=True)
class Outcome:
    """The last held-out scores of the runs with one setting, by seed, and how they compare with those of the first setting.

    Attributes:
        difference: of the mean score, over the seeds that both have. reach: half of its 95 % interval by Student's distribution over those
            seeds, paired; nan with one seed. prompts: the comparison of what was solved, paired by seed and prompt; None where prompts
            were not the same.
    """

    settings: tuple[str, ...]
    scores: Mapping[int, float]
    difference: float = math.nan
    reach: float = math.nan
    prompts: Comparison | None = None


def values_of(text: str) -> list[str]:
    """The values of ``a,b,[c,d]``: commas inside of brackets and quotes do not count."""
    found, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        depth += (letter in "[{(") - (letter in "]})") if not quote else 0
        if letter == "," and not depth and not quote:
            found.append("")
        else:
            found[-1] += letter
    return found


def planned(source: str | Path, overrides: Iterable[str], seeds: int, out: Path | None) -> list[Swept]:
    """Every run of the sweep, checked.

    Raises:
        ConfigError: an override without a value, two runs that would be the same, or what is wrong with some run, each of them named.
    """
    split = [(text.partition("=")[0], values_of(text.partition("=")[2])) for text in overrides]
    empty = [key for key, values in split if not all(values)]
    if empty:
        raise ConfigError(
            f"sweep: {empty[0]} has an empty value. Values have commas between them; a list is one value in brackets."
        )
    fixed = [f"{key}={values[0]}" for key, values in split if len(values) == 1]
    axes = [[f"{key}={value}" for value in values] for key, values in split if len(values) > 1]
    base = load(source, fixed)
    folder = out or Path(base.out) / f"{base.name}-sweep"
    made, wrong = list[Swept](), list[str]()
    for settings in itertools.product(*axes):
        for seed in range(base.seed, base.seed + seeds):
            label = ", ".join((*settings, f"seed={seed}"))
            try:
                run = load(source, [*fixed, *settings, f"seed={seed}"])
                name = named(settings, seed)
                run = run.replace(name=name, out=str(folder))
                check(run)
                made.append(Swept(settings, seed, folder / name, run))
            except ConfigError as error:
                wrong.append(f"{label}: {error}")
    if wrong:
        raise ConfigError("\n".join(wrong))
    if len({r.folder for r in made}) < len(made):
        raise ConfigError("sweep: two runs have the same settings. Name each value once.")
    return made


def named(settings: Sequence[str], seed: int) -> str:
    """The folder of a run: its settings by the last part of each key."""
    short = [f"{key.rpartition('.')[2]}={value}" for key, _, value in (s.partition("=") for s in settings)]
    name = re.sub(r"[^\w=.,+-]+", "_", "_".join([*short, f"seed={seed}"])).strip(".")
    whole = f"{zlib.crc32(repr((tuple(settings), seed)).encode()):08x}"
    clear = len({s.partition("=")[0].rpartition(".")[2] for s in settings}) == len(settings) and len(name) <= LONGEST
    return name if clear else f"{name[: LONGEST - 20]}_{whole}_seed={seed}"


def sweep(
    source: str | Path,
    overrides: Iterable[str] = (),
    *,
    seeds: int = 1,
    at_once: int = 1,
    out: str | Path | None = None,
    address: str | None = None,
    say: Callable[[str], None] = print,
) -> Sweep:
    """Trains every combination of values with every seed, each as a process of its own, and compares them.

    What has come to its end is not trained again, and what was stopped goes on: the same call continues a sweep, and one with more values
    or seeds adds to it.

    Args:
        overrides: ``key=value`` for all runs, ``key=a,b,c`` for a run of each. seeds: so many, from the configuration's own on.
        at_once: runs that go on side by side. out: the folder of the runs (by default ``out/NAME-sweep`` of the configuration).
        address: a Ray dashboard: each run is a job there. A relative ``out`` is below the home folder there, and what runs leave is copied
            here; one that is absolute is a folder that this machine sees, too.

    Raises:
        ConfigError: before anything starts, whatever is wrong with any of the runs.
        CheckpointError: a folder has a run of another configuration.
    """
    runs = planned(source, overrides, seeds, None if out is None else Path(out))
    folder = runs[0].folder.parent
    require_folder(folder, "--out")
    for r in runs:
        _require_same(r)
    ready = [r for r in runs if r.done]
    say(
        f"{len(runs)} runs in {folder}/, {len(ready)} of them done already"
        if ready
        else f"{len(runs)} runs in {folder}/"
    )
    fixed = [text for text in overrides if len(values_of(text.partition("=")[2])) == 1]

    def start(r: Swept) -> int:
        if address is None:
            return _process(r)
        own = [*fixed, *r.settings, f"seed={r.seed}", f"name={r.run.name}", f"out={r.run.out}"]
        back = None if Path(r.run.out).is_absolute() else folder
        lines = list[str]()
        try:
            submit(source, own, address=address, resume=r.begun, fetch_to=back, say=lines.append)
        except RlkitError as error:
            lines.append(f"error: {error}")
        replace_file(r.log, "\n".join(lines) + "\n")
        return int(lines[-1].startswith("error: "))

    codes = _all([r for r in runs if not r.done], at_once, start, say)
    made = tuple(Swept(r.settings, r.seed, r.folder, r.run, codes.get(r.folder, 0)) for r in runs)
    begun = [r.folder for r in made if (r.folder / "metrics.jsonl").is_file()]
    report = report_runs(begun, folder / "report.html") if begun else None
    return Sweep(made, tuple(outcomes(made)), report)


def _require_same(r: Swept) -> None:
    """A folder of the run's name holds this very run, or none."""
    there = r.folder / "config.yaml"
    if there.is_file() and load(there) != r.run:
        raise CheckpointError(
            f"sweep: {r.folder} has a run of another configuration. Choose another folder with --out, or move that one away; nothing was "
            "started."
        )


def _process(r: Swept) -> int:
    """Trains one run in a process of its own; what it says goes to ``NAME.log`` beside its folder. Returns its exit code."""
    settings = r.folder.with_name(f"{r.folder.name}.yaml")
    settings.parent.mkdir(parents=True, exist_ok=True)
    replace_file(settings, to_yaml(r.run))
    goes_on = ["--resume"] if r.begun else []
    with r.log.open("ab") as said:
        child = subprocess.Popen(
            [sys.executable, "-m", "rlkit", "train", str(settings), *goes_on],
            stdout=said,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is told once, by us
        )
        with _children(child.pid):
            return child.wait()


_running: set[int] = set()


@contextlib.contextmanager
def _children(pid: int) -> Iterator[None]:
    _running.add(pid)
    try:
        yield
    finally:
        _running.discard(pid)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end a sweep as Ctrl-C does, so that its runs leave their checkpoints."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _all(
    todo: Sequence[Swept], at_once: int, start: Callable[[Swept], int], say: Callable[[str], None]
) -> dict[Path, int]:
    """Runs that many at a time until all have ended; returns their exit codes. Ctrl-C lets those that go on leave a checkpoint."""
    codes, waiting, count = dict[Path, int](), list(todo), 0
    pool = ThreadPoolExecutor(max(1, at_once))
    under_way: dict[Future[int], tuple[Swept, float]] = {}
    try:
        with _interruptible():
            while waiting or under_way:
                while waiting and len(under_way) < at_once:
                    r = waiting.pop(0)
                    under_way[pool.submit(start, r)] = (r, time.monotonic())
                ended, _ = wait(under_way, return_when=FIRST_COMPLETED)
                for future in ended:
                    r, began = under_way.pop(future)
                    count += 1
                    codes[r.folder] = future.result()
                    took = time.monotonic() - began
                    say(f"[{count}/{len(todo)}] {r.label}: {_told(r, codes[r.folder])} ({took:.0f} s)")
    except BaseException:
        here = list(_running)
        for pid in here:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
        say(
            "stopped: the runs that go on leave a checkpoint. The same command continues the sweep."
            if here
            else "stopped: jobs that were sent go on. The same command continues the sweep when they have ended."
        )
        pool.shutdown(wait=bool(here), cancel_futures=True)
        raise
    pool.shutdown()
    return codes


def _told(r: Swept, code: int) -> str:
    if code == 0:
        scores = see(r.folder).held_out if r.begun else ()
        return f"held-out score {digits(scores[-1].score)}" if scores else "done"
    if code in GOES_ON:
        return "stopped; the same command continues it"
    lines = r.log.read_text(encoding="utf-8", errors="replace").splitlines() if r.log.is_file() else []
    why = next(
        (line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "no word of it"
    )
    return f"failed: {why} (all of it: {r.log})"


def outcomes(runs: Sequence[Swept]) -> Iterator[Outcome]:
    """A line for each setting that has scores; all but the first are compared with the first."""
    by_settings: dict[tuple[str, ...], dict[int, Seen]] = {}
    for r in runs:
        if r.done:
            by_settings.setdefault(r.settings, {})[r.seed] = see(r.folder)
    first: dict[int, Seen] = {}
    for settings, seen in by_settings.items():
        scores = {seed: score for seed, run in seen.items() if (score := last_score(run)) is not None}
        if not first:
            first = seen
            yield Outcome(settings, scores)
            continue
        before = {seed: score for seed, run in first.items() if (score := last_score(run)) is not None}
        differences = [scores[seed] - before[seed] for seed in scores if seed in before]
        n, reach = len(differences), math.nan
        if n > 1:
            reach = student(n - 1) * statistics.stdev(differences) / math.sqrt(n)
        mean = statistics.fmean(differences) if differences else math.nan
        yield Outcome(settings, scores, mean, reach, by_prompt(first, seen))


def last_score(run: Seen) -> float | None:
    return run.held_out[-1].score if run.held_out else None


def by_prompt(a: Mapping[int, Seen], b: Mapping[int, Seen]) -> Comparison | None:
    """What the last evaluations solved, paired by seed and prompt; None where they asked different ones, or none."""
    rows: tuple[list[dict[str, object]], list[dict[str, object]]] = ([], [])
    for seed in sorted(a.keys() & b.keys()):
        if any(key.startswith(("data.", "eval.")) for key in differing([a[seed], b[seed]])):
            return None
        solved = [x[seed].held_out[-1].solved if x[seed].held_out else () for x in (a, b)]
        if len(solved[0]) != len(solved[1]):
            return None
        for side, of in zip(rows, solved, strict=True):
            side += [{"prompt_id": f"{seed}/{i}", "correct": x} for i, x in enumerate(of)]
    return compare(*rows) if rows[0] else None


def table(rows: Sequence[Outcome]) -> str:
    """Mean scores and their spread over seeds; differences to the first line with their intervals."""
    if not rows:
        return "no run has come to its end"
    head = ("", "seeds", "score", "std", "difference", "95 % (seeds)", "p (prompts)", "gained", "lost")
    out: list[tuple[str, ...]] = [head]
    for row in rows:
        scores = list(row.scores.values())
        spread = f"{statistics.stdev(scores):.4f}" if len(scores) > 1 else "-"
        mean = f"{statistics.fmean(scores):.4f}" if scores else "-"
        there = not math.isnan(row.difference)
        interval = f"{row.difference - row.reach:+.4f} to {row.difference + row.reach:+.4f}"
        p = row.prompts
        out.append(
            (
                ", ".join(row.settings) or "as configured",
                str(len(scores)),
                mean,
                spread,
                f"{row.difference:+.4f}" if there else "-",
                interval if there and not math.isnan(row.reach) else "-",
                "-" if p is None else f"{p.p_permutation:.2g}",
                "-" if p is None else str(len(p.gained)),
                "-" if p is None else str(len(p.lost)),
            )
        )
    note = "difference: to the first line, over the same seeds. p: the same prompts of the same seeds, paired."
    return f"{aligned(out)}\n{note}" if len(rows) > 1 else aligned(out)
