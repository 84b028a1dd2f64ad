"""Episodes side by side against turns in lockstep: seconds, and how long the engine has nothing to do, with tools of 0.1 to 2 s. And what
the two examples of episodes learn, from three seeds.

    python benchmarks/episodes.py        # about two minutes
    python benchmarks/episodes.py curves # about ten minutes; continues where it stopped

The Hugging Face engine on a small model, 64 episodes of 4 turns of 32 tokens; after each turn a tool takes 0.1 to 2 s, drawn anew for each
call. In lockstep no episode begins its next turn before all tools of this one have come back, as where turns are batches. The same
seeds, so the same tokens and the same times of tools; the two take turns in three rounds.

Curves are those of examples/calculator.yaml and examples/guessing.yaml as they stand, with `seed` alone changed; they go to docs/episodes.svg.
After its run each model of the calculator is asked again, with the tool switched off.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import mean, median
from typing import Any

import report
from report import ROOT, Row

import rlkit as rk
from rlkit.data.render import Renderer
from rlkit.data.tasks import Sorting
from rlkit.model.endings import Endings
from rlkit.model.tiny import make_tiny, make_tokenizer
from rlkit.rollout.episode import Context
from rlkit.rollout.hf import HFEngine
from rlkit.rollout.player import EpisodeSpec, Player, Stage
from rlkit.samples import Prompt, Rollout, Sampling

GROUPS, N, TURNS, TOKENS, ROUNDS = 8, 8, 4, 32, 3


class Unscored:
    def score(self, rollouts: Any) -> None: ...


def play(engine: HFEngine, tokenizer: Any, lockstep: bool) -> tuple[float, float]:
    """Seconds, and the share of them in which the engine had nothing to do."""
    together = asyncio.Barrier(GROUPS * N)

    async def episode(context: Context, rng: random.Random) -> float:
        for _ in range(TURNS):
            await context.generate()
            await asyncio.sleep(rng.uniform(0.1, 2.0))
            context.add("012")
            if lockstep:
                await together.wait()
        return 0.0

    spec = EpisodeSpec(episode)
    stage = Stage(
        engine=engine,
        tokenizer=tokenizer,
        endings=Endings(tokenizer, frozenset()),
        render=Renderer(tokenizer),
        limit=512,
    )
    player = Player(spec, spec.found([]), stage, Unscored())
    busy, start = engine.work.busy, time.perf_counter()

    def group(g: int) -> list[Rollout]:
        return player.generate(Prompt(str(g), (3, 4, 5 + g), ""), N, Sampling(max_tokens=TOKENS, seed=g))

    with ThreadPoolExecutor(GROUPS) as groups:
        rollouts = [r for rows in groups.map(group, range(GROUPS)) for r in rows]
    seconds = time.perf_counter() - start
    player.close()
    assert len(rollouts) == GROUPS * N and not any(r.error for r in rollouts)
    return seconds, 1 - (engine.work.busy - busy) / seconds


def trained(name: str, seed: int) -> Row:
    """The run of an example, and what it and its model have done."""
    run = rk.load(
        ROOT / "examples" / f"{name}.yaml",
        [f"seed={seed}", f"name={name}-{seed}", f"out={ROOT / 'runs' / 'episodes'}", "log.tensorboard=false"],
    )
    folder = run.folder
    if not (folder / "summary.json").exists():
        rk.train(run, quiet=True)
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    held_out = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    row: Row = {
        "run": name,
        "seed": seed,
        "held_out": {str(e["step"]): e["score"] for e in held_out},
        "right": [r.get("reward/guess/found", r["reward/mean"]) for r in steps],
        "turns": [r["episode/turns"] for r in steps],
        "seconds": json.loads((folder / "summary.json").read_text())["seconds"],
    }
    if name == "calculator":
        without = rk.evaluate(
            rk.load(folder / "config.yaml", ["rollout.episode.args={tool: false}"]), folder, n=4, say=lambda text: None
        )
        row["without"] = mean(sample["correct"] for sample in without.samples)
    return row


def draw(axes: Any, rows: list[Row]) -> None:
    """Means over five steps, a line a seed; points are held-out scores."""
    columns = {
        "calculator": (
            ("calculator: right answers", "right", 0),
            ("calculator: episodes with a call", "turns", -1),
        ),
        "guessing": (("guessing: share found", "right", 0), ("guessing: turns", "turns", 0)),
    }
    for k, (name, panels) in enumerate(columns.items()):
        for ax, (title, key, shift) in zip(axes[2 * k : 2 * k + 2], panels, strict=True):
            for row in (r for r in rows if r["run"] == name):
                values = [shift + sum(row[key][max(0, i - 4) : i + 1]) / min(5, i + 1) for i in range(len(row[key]))]
                (line,) = ax.plot(range(1, len(values) + 1), values, label=f"seed {row['seed']}")
                if key == "right" and name == "calculator":
                    ax.plot(
                        [int(step) for step in row["held_out"]],
                        list(row["held_out"].values()),
                        "o",
                        color=line.get_color(),
                    )
            ax.set(title=title, xlabel="steps")
            if key == "right" or shift:
                ax.set(ylim=(0, 1))
    axes[0].legend()


def curves() -> None:
    def write(rows: list[Row]) -> None:
        report.save(ROOT / "docs" / "episodes.svg", lambda axes: draw(axes, rows), ncols=4, figsize=(13, 2.9))

    report.fill("episodes", [(name, seed) for name in ("calculator", "guessing") for seed in range(3)], trained, write)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("idle", "curves"), default="idle")
    curves() if parser.parse_args().what == "curves" else idle()


def idle() -> None:
    with tempfile.TemporaryDirectory() as folder:
        make_tiny(folder, Sorting.alphabet, hidden=256, layers=6, heads=4, kv_heads=2)
        engine = HFEngine(folder, max_model_len=512)
        found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
        for _ in range(ROUNDS):
            for lockstep, results in found.items():
                results.append(play(engine, make_tokenizer(Sorting.alphabet), lockstep))
        engine.close()
    for lockstep, results in found.items():
        seconds, idle = (median(x) for x in zip(*results, strict=True))
        print(
            f"{'turns in lockstep' if lockstep else 'side by side'}: {seconds:.1f} s, engine idle {idle:.2f}; rounds {results}"
        )


if __name__ == "__main__":
    main()
