"""Verifications per second: through the pool of worker processes, per tier, and beside plain math-verify in the same run.

    python benchmarks/verifier.py [ROWS]

Responses are made from a fixed seed: solutions of some hundred words that end in a box, half of them right; answers as in MATH and GSM8K (65 %
integers, then fractions, decimals, roots, tuples, intervals, polynomials, text, matrices). Every response differs, so no cache helps.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import sys
import threading
import time
from collections import Counter
from typing import Any

from rlkit.rewards import RewardSpec, Scorer
from rlkit.rewards.math import verify
from rlkit.types import Prompt, Rollout

STEP = "First we write the equation in the form $a^2 + b^2 = c^2$ and note that \\frac{a}{b} is smaller than one, so the second case is left. "


def pair(rng: random.Random) -> tuple[str, str, bool]:
    """A reference, another way of writing it or a wrong answer, and whether it is right."""
    right = rng.random() < 0.5
    a, b, c, d = rng.randint(2, 999), rng.randint(2, 99), rng.randint(2, 99), rng.choice((2, 3, 5, 7, 11, 13))
    off = 0 if right else 1
    kind = rng.choices(range(9), weights=(65, 8, 5, 6, 5, 4, 4, 2, 1))[0]
    if kind == 0:
        return str(a), str(a + off), right
    if kind == 1:
        return rf"\frac{{{a}}}{{{b}}}", rf"\dfrac{{{c * (a + off)}}}{{{c * b}}}", right
    if kind == 2:
        return f"{a}.5", rf"\frac{{{2 * (a + off) + 1}}}{{2}}", right
    if kind == 3:
        return rf"{b}\sqrt{{{d}}}", rf"\sqrt{{{(b + off) ** 2 * d}}}", right
    if kind == 4:
        return rf"\left({a}, \frac{{{b}}}{{{c}}}\right)", rf"({a + off}, {b}/{c})", right
    if kind == 5:
        return rf"[{b}, {a + b}) \cup (1000, \infty)", rf"x > 1000 \text{{ or }} {b + off} \le x < {a + b}", right
    if kind == 6:
        return f"x^2 + {b + c}x + {b * c}", f"(x + {b + off})(x + {c})", right
    if kind == 7:
        days = ("Monday", "Tuesday", "Friday", "Sunday")
        return rf"\text{{{days[a % 4]}}}", days[(a + off) % 4], right
    return (
        rf"\begin{{pmatrix}} {a} & {b} \\ {c} & {d} \end{{pmatrix}}",
        rf"\begin{{bmatrix}} {a} & {b} \\ {c} & {d + off} \end{{bmatrix}}",
        right,
    )


def rollouts_of(pairs: list[tuple[str, str, bool]]) -> list[Rollout]:
    return [
        Rollout(
            Prompt(str(k), (1,), "", answer=gold),
            [1],
            [True],
            [0.0],
            [0],
            "stop",
            text=STEP * 12 + rf"So the answer is $\boxed{{{found}}}$.",
            group=k // 8,
        )
        for k, (gold, found, _) in enumerate(pairs)
    ]


def through_pool(pairs: list[tuple[str, str, bool]], workers: int, threads: int = 4) -> tuple[float, int]:
    """Verifications per second with groups of 8 from several threads, and the number of wrong verdicts."""
    scorer = Scorer([RewardSpec("math")], workers=workers)
    scorer.check([])
    warm = rollouts_of([("1", "1", True)] * 8 * workers)
    scorer.score(warm)
    rollouts = rollouts_of(pairs)
    groups = [rollouts[k : k + 8] for k in range(0, len(rollouts), 8)]

    def work(k: int) -> None:
        for group in groups[k::threads]:
            scorer.score(group)

    running = [threading.Thread(target=work, args=(k,)) for k in range(threads)]
    start = time.perf_counter()
    for t in running:
        t.start()
    for t in running:
        t.join()
    seconds = time.perf_counter() - start
    scorer.close()
    return len(pairs) / seconds, sum(r.reward != float(p[2]) for r, p in zip(rollouts, pairs, strict=True))


def plain(pairs: list[tuple[str, str, bool]]) -> tuple[float, int]:
    """The same with math-verify alone, in this process."""
    from math_verify import parse
    from math_verify import verify as check

    logging.disable(logging.ERROR)
    check(parse("$1$"), parse("$1$"))
    texts = [r.text for r in rollouts_of(pairs)]
    wrong = 0
    start = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):
        for (gold, _, right), text in zip(pairs, texts, strict=True):
            wrong += bool(check(parse(f"${gold}$"), parse(text))) != right
    return len(pairs) / (time.perf_counter() - start), wrong


def main(n: int = 20_000) -> None:
    rng = random.Random(0)
    pairs = [pair(rng) for _ in range(n)]
    print(f"{n} verifications, {os.cpu_count()} cores")
    seconds: Counter[Any] = Counter()
    counts: Counter[Any] = Counter()
    for (gold, _, _), r in zip(pairs, rollouts_of(pairs), strict=True):
        start = time.perf_counter()
        tier = verify(r.text, gold).tier
        seconds[tier] += time.perf_counter() - start
        counts[tier] += 1
    print(
        "in this process: "
        + f"{n / sum(seconds.values()):,.0f} per second; "
        + "; ".join(
            f"tier {tier}: {counts[tier]} answers, {counts[tier] / seconds[tier]:,.0f} per second"
            for tier in sorted(counts, key=str)
        )
    )
    sines = [(rf"\sin({k})\cos({k})", rf"\frac{{\sin({2 * k})}}{{2}}") for k in range(200)]
    start = time.perf_counter()
    for gold, found in sines:
        assert verify(rf"\boxed{{{found}}}", gold).tier == "symbolic"
    print(f"tier symbolic, to 50 digits: {len(sines) / (time.perf_counter() - start):,.0f} per second")
    unread = [(rf"\sum_{{j=1}}^{{{k + 3}}} j", rf"\sum_{{m=1}}^{{{k + 3}}} m") for k in range(50)]
    verify(rf"\boxed{{{unread[0][1]}}}", unread[0][0])
    start = time.perf_counter()
    for gold, found in unread[1:]:
        verify(rf"\boxed{{{found}}}", gold)
    print(f"tier symbolic, by sympy: {(len(unread) - 1) / (time.perf_counter() - start):,.0f} per second")
    for workers in dict.fromkeys((1, max(1, os.cpu_count() or 1))):
        rate, wrong = through_pool(pairs, workers)
        print(f"through the pool, {workers} worker{'s' * (workers > 1)}: {rate:,.0f} per second, {wrong} wrong")
    few = pairs[: max(1, n // 20)]
    rate, wrong = plain(few)
    print(f"math-verify alone, in this process: {rate:,.0f} per second, {wrong} of {len(few)} wrong")


if __name__ == "__main__":
    main(*(int(x) for x in sys.argv[1:2]))
