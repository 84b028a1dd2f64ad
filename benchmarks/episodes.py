"""Episodes side by side against turns in lockstep: seconds, and how long the engine has nothing to do, with tools of 0.1 to 2 s.

    python benchmarks/episodes.py        # about two minutes

The Hugging Face engine on a small model, 64 episodes of 4 turns of 32 tokens; after each turn a tool takes 0.1 to 2 s, drawn anew for each
call. In lockstep no episode begins its next turn before all tools of this one have come back, as where turns are batches. The same
seeds, so the same tokens and the same times of tools; the two take turns in three rounds.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

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


def main() -> None:
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
