"""Where the time goes from a command to its first step: seconds, and CPU seconds by kind of process, stage by stage.

    python benchmarks/start.py                               # runs, and writes benchmarks/start.md
    python benchmarks/start.py --against FOLDER --rounds 3   # in turn with another checkout: old, new, old, new
    python benchmarks/start.py --page                        # the page again, from the results that are there

Two shapes: the quickstart, whose model is made and warmed up by the run, and the same with that model at hand. A stage ends with a line of
the program; the CPU seconds of every process below it are read from /proc, so that those that have ended count, too. Compiled modules are
kept from an unmeasured run before the others.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import report
from report import ROOT, Row, append, read

HZ = os.sysconf("SC_CLK_TCK")
STAGES = {  # how the line begins that ends it
    "imports, checks, data, Ray": "rlkit: ",
    "the model": "Starting on Ray",
    "engines and learners": "ready in",
    "publish, probe, first step": "1/1 ",
}
ROLES = {"EngineHost": "engine", "LearnerHost": "learner", "rlkit train": "driver", "rlkit.rewards": "rewards"}
RAY = "Ray's own"
COLUMNS = ("driver", "engine", "learner", RAY)


class Tree:
    """CPU seconds of a process and all below it, by role; read often, so that what ends between two looks loses little."""

    def __init__(self, root: int) -> None:
        self.root, self.seconds, self.roles = root, dict[int, float](), dict[int, str]()

    def look(self) -> None:
        below: dict[int, list[int]] = {}
        found = dict[int, tuple[float, str]]()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                command = (entry / "cmdline").read_text().replace("\0", " ")
            except OSError:  # it has ended
                continue
            pid = int(entry.name)
            below.setdefault(int(fields[1]), []).append(pid)
            found[pid] = ((int(fields[11]) + int(fields[12])) / HZ, command)
        todo = [self.root]
        while todo:
            pid = todo.pop()
            todo += below.get(pid, [])
            if pid in found:
                self.seconds[pid], command = found[pid]
                if command.strip():
                    self.roles[pid] = next((role for word, role in ROLES.items() if word in command), RAY)

    def by_role(self, seconds: dict[int, float]) -> dict[str, float]:
        """``seconds`` by process; Ray's workers say late what they are."""
        out: dict[str, float] = {}
        for pid, spent in seconds.items():
            role = self.roles.get(pid, RAY)
            out[role] = out.get(role, 0.0) + spent
        return out


def measure(checkout: Path, cache: Path, overrides: list[str]) -> Row:
    """One start: seconds since the command and CPU seconds by role at the end of each stage."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    env |= {"PYTHONPATH": str(checkout), "PYTHONPYCACHEPREFIX": str(cache), "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryDirectory() as out:
        command = [
            sys.executable,
            "-m",
            "rlkit",
            "train",
            "configs/quickstart.yaml",
            "steps=1",
            f"out={out}",
            *overrides,
        ]
        began = time.monotonic()
        run = subprocess.Popen(command, cwd=checkout, env=env, stdout=subprocess.PIPE, text=True)
        tree, rest, stages = Tree(run.pid), list(STAGES), dict[str, tuple[float, dict[int, float]]]()

        def watch() -> None:
            while run.poll() is None:
                tree.look()
                time.sleep(0.1)

        threading.Thread(target=watch, daemon=True).start()
        assert run.stdout is not None
        for line in run.stdout:
            if rest and line.lstrip().startswith(STAGES[rest[0]]):
                tree.look()
                stages[rest.pop(0)] = time.monotonic() - began, dict(tree.seconds)
        if run.wait() or rest:
            raise SystemExit(f"the run ended with code {run.returncode} before: {', '.join(rest) or 'its end'}")
    return {"stages": {s: {"seconds": wall, "cpu": tree.by_role(cpu)} for s, (wall, cpu) in stages.items()}}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=2)
    p.add_argument(
        "--against", type=Path, help="the folder of another checkout of rlkit, which runs before this one in each round"
    )
    p.add_argument("--page", action="store_true", help="only write the page from the results that are there")
    a = p.parse_args()
    if not a.page:
        checkouts = {**({"before": a.against.resolve()} if a.against else {}), "now": ROOT}
        run = int(time.time())
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "model"
            subprocess.run(
                [sys.executable, "-c", MAKE, str(model)],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                check=True,
            )
            shapes = {"quickstart": [], "a model at hand": [f"model={{path: {model}}}"]}
            for checkout in checkouts.values():
                measure(checkout, Path(folder) / "cache", [])
            for i in range(a.rounds):
                for shape, overrides in shapes.items():
                    for name, checkout in checkouts.items():
                        row = measure(checkout, Path(folder) / "cache", overrides)
                        append("start", {"run": run, "round": i, "shape": shape, "checkout": name, **row})
    write(read("start"))


MAKE = """
import sys
import rlkit as rk
from rlkit.start import made
made(rk.load("configs/quickstart.yaml"), sys.argv[1])
"""


def write(rows: list[Row]) -> None:
    """The newest run's medians; a stage's row says what it took, the last one all of it."""
    rows = [r for r in rows if r["run"] == max(x["run"] for x in rows)]
    lines = [
        "One vLLM engine and one DeepSpeed learner on Ray, the quickstart's model. Medians of the last run; CPU seconds are those of user and",
        "system together, of all processes: on two cores a start cannot take less than half of them.",
        "",
    ]
    for shape in dict.fromkeys(r["shape"] for r in rows):
        names = list(dict.fromkeys(r["checkout"] for r in rows))
        lines += [f"## {shape[0].upper()}{shape[1:]}", ""]
        lines += ["| | stage | s | CPU s | " + " | ".join(COLUMNS) + " |", "|---|---|---|---|" + "---|" * len(COLUMNS)]
        totals = dict[str, tuple[list[float], list[float]]]()
        for name in names:
            mine = [r["stages"] for r in rows if r["shape"] == shape and r["checkout"] == name]
            before = None
            for stage in [*STAGES, "**in all**"]:
                last = list(STAGES)[-1] if stage not in STAGES else stage
                base = before if stage in STAGES else None
                seconds = [s[last]["seconds"] - (s[base]["seconds"] if base else 0) for s in mine]
                cpu = [
                    {c: s[last]["cpu"].get(c, 0.0) - (s[base]["cpu"].get(c, 0.0) if base else 0) for c in COLUMNS}
                    for s in mine
                ]
                whole = [sum(c.values()) for c in cpu]
                each = " | ".join(f"{median(c[k] for c in cpu):.1f}" for k in COLUMNS)
                lines.append(f"| {name} | {stage} | {median(seconds):.1f} | {median(whole):.1f} | {each} |")
                before = stage
                totals[name] = seconds, whole
        lines.append("")
        if len(names) > 1:
            old, new = totals[names[0]], totals[names[1]]
            ratios = [
                " and ".join(f"{n / o:.2f}" for o, n in zip(x, y, strict=True)) for x, y in zip(old, new, strict=True)
            ]
            lines += [f"Of pairs: {ratios[0]} of the seconds, {ratios[1]} of the CPU seconds.", ""]
    report.page("start", "From a command to its first step", lines, rows)


if __name__ == "__main__":
    main()
