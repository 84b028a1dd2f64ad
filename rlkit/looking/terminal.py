"""A run as text for a terminal, as wide as it is: where it is, its curves, its last words."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rlkit.looking.charts import Point, number, thinned
from rlkit.looking.runs import Seen
from rlkit.record.log import duration
from rlkit.record.results import digits

BARS = "▁▂▃▄▅▆▇█"
CURVES = (
    ("reward", "reward/mean"),
    ("KL to ref", "kl/ref"),
    ("drift", "drift/start"),
    ("entropy", "entropy/sampled"),
    ("length", "length/mean"),
    ("gradient", "learner/grad_norm"),
    ("mismatch", "mismatch/mean"),
    ("lag", "rollout/lag_mean"),
    ("tokens/s", "speed/tokens_per_second"),
)
STAGES = ("generate", "annotate", "update", "sync")


def bars(points: Sequence[Point], width: int) -> str:
    """A curve of one line: at most ``width`` blocks, each a mean, from the least to the largest."""
    values = [y for _, y in thinned(points, max(1, width))]
    low, high = min(values, default=0.0), max(values, default=0.0)
    if high == low:
        return BARS[0] * len(values)
    return "".join(BARS[min(7, int(8 * (y - low) / (high - low)))] for y in values)


def frame(run: Seen, width: int = 100) -> str:
    """What is known now."""
    total = int(run.config.get("steps", 0))
    done = run.steps / total if total else 0.0
    filled = round(done * (width - 44))
    seconds = [x for _, x in run.series("time/step")][-20:]
    left = (total - run.steps) * sum(seconds) / len(seconds) if seconds else float("nan")
    state = "done" if run.ended else f"{duration(left)} left"
    lines = [
        f"{run.name}   step {run.steps} of {total}   {'█' * filled}{'░' * max(0, width - 44 - filled)}   {state}"[
            : width + 20
        ],
        "",
    ]
    for label, metric in CURVES:
        points = run.series(metric)
        if points:
            first, last = number(points[0][1]), number(points[-1][1])
            lines.append(f"{label:<10}{bars(points, width - 34):<{width - 34}} {first:>9} → {last:<9}")
    scores: list[Point] = [(float(h.step), h.score) for h in run.held_out if h.score is not None]
    if scores:
        ends = f"{digits(scores[0][1]):>9} → {digits(scores[-1][1]):<9}"
        lines.append(f"{'held out':<10}{bars(scores, width - 34):<{width - 34}} {ends}")
    if run.rows:
        last_row = run.rows[-1]
        stages = [f"{name} {last_row[f'time/{name}']:.1f} s" for name in STAGES if f"time/{name}" in last_row]
        memory = max((x for name, x in last_row.items() if name.startswith("memory/") and x is not None), default=None)
        lines += ["", "last step: " + ", ".join(stages) + ("" if memory is None else f"; memory {memory:,.0f} MiB")]
    for told in run.told[-3:]:
        lines += ["", *textwrap.wrap(told.text, width)]
    if run.rollouts:
        row = run.rollouts[-1]
        reward = "no reward" if row["reward"] is None else f"reward {number(row['reward'])}"
        asked = textwrap.shorten(str(row.get("question", row["prompt"])), width - 4, placeholder=" ...")
        said = textwrap.wrap(" ".join(row["response"].split()), width - 2)
        lines += ["", f"step {row['step']}, {reward}:", f"> {asked}", *(f"  {line}" for line in said[:6])]
    return "\n".join(lines)
