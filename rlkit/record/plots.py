"""Pictures, and the curves of a finished run."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlkit.errors import ConfigError
from rlkit.files import read_rows


@contextlib.contextmanager
def picture(path: Path, nrows: int = 1, ncols: int = 1, *, sharex: bool = False, **figure: Any) -> Iterator[Any]:
    """The axes of a picture that is written to ``path`` (.png, .svg) where the block ends; the same data give the same bytes.

    ``figure`` are options of ``matplotlib.figure.Figure``, which knows nothing of windows and of the user's other figures.

    Raises:
        ConfigError: matplotlib is missing.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("a picture needs matplotlib. Install it with: pip install matplotlib") from None
    made = Figure(**{"layout": "constrained", **figure})
    yield made.subplots(nrows, ncols, sharex=sharex)
    with rc_context({"svg.hashsalt": "rlkit"}):
        made.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)


def plot_run(folder: str | Path) -> Path:
    """``curves.png`` of a run: reward, held-out score, KL, entropy, length, and reward against the square root of the KL.

    Raises:
        ConfigError: no run there, or matplotlib is missing.
    """
    folder = Path(folder)
    if not (folder / "metrics.jsonl").is_file():
        raise ConfigError(f"{folder} is not a run folder: it has no metrics.jsonl.")
    rows, scores = read_rows(folder / "metrics.jsonl", print), read_rows(folder / "eval.jsonl", print)

    def draw(axis: Any, name: str, title: str) -> None:
        points = [(r["step"], r[name]) for r in rows if r.get(name) is not None]
        axis.plot(*zip(*points, strict=True), linewidth=1) if points else axis.text(0.5, 0.5, f"no {name}", ha="center")
        axis.set(title=title, xlabel="step")

    out = folder / "curves.png"
    with picture(out, 2, 3, figsize=(12, 6.2)) as axes:
        axes[0, 0].figure.suptitle(folder.name)
        draw(axes[0, 0], "reward/mean", "reward")
        if scores:
            points = [(s["step"], s["score"]) for s in scores if s.get("score") is not None]
            axes[0, 0].plot([x for x, _ in points], [y for _, y in points], "o", label="held out")
            axes[0, 0].legend()
        draw(axes[0, 1], "kl/ref", "KL to the reference, nats per token")
        draw(axes[0, 2], "entropy/sampled", "entropy, nats per token")
        draw(axes[1, 0], "length/mean", "response length, tokens")
        draw(axes[1, 1], "mismatch/mean", "engine against learner, mean difference in nats")
        pairs = [
            (math.sqrt(max(0.0, r["kl/ref_sequence"])), r["reward/mean"])
            for r in rows
            if r.get("kl/ref_sequence") is not None
        ]
        if pairs:
            axes[1, 2].scatter(*zip(*pairs, strict=True), c=range(len(pairs)), s=8)
        axes[1, 2].set(title="reward against sqrt(KL)", xlabel="sqrt of nats per response")
        for axis in axes.flat:
            axis.grid(alpha=0.3)
    return out
