"""Pictures, and the curves of a finished run."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from rlkit.errors import ConfigError
from rlkit.files import read_rows


class Style:
    """How pictures look that may stand in a paper: the colours of Okabe and Ito, which colour-blind people tell apart, each with a mark of
    its own for print in grey; letters stay letters in .svg and .pdf."""

    COLOURS: ClassVar[tuple[str, ...]] = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#333333")
    MARKS: ClassVar[tuple[str, ...]] = ("o", "s", "^", "D", "v", "P", "X")
    PAPER: ClassVar[Mapping[str, Any]] = {
        "font.size": 9,
        "axes.labelsize": 9,
        "axes.titlesize": 9.5,
        "legend.fontsize": 8,
        "legend.title_fontsize": 8,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.alpha": 0.25,
        "lines.linewidth": 1.4,
        "lines.markersize": 4,
        "svg.fonttype": "none",
        "pdf.fonttype": 42,
    }


@contextlib.contextmanager
def picture(
    path: Path,
    nrows: int = 1,
    ncols: int = 1,
    *,
    sharex: bool = False,
    style: Mapping[str, Any] | None = None,
    **figure: Any,
) -> Iterator[Any]:
    """The axes of a picture that is written to ``path`` (.png, .svg, .pdf) where the block ends; the same data give the same bytes.

    ``figure`` are options of ``matplotlib.figure.Figure``, which knows nothing of windows and of the user's other figures; ``style`` are
    settings of matplotlib that hold for this picture alone.

    Raises:
        ConfigError: matplotlib is missing, or knows no such kind of file.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("a picture needs matplotlib. Install it with: pip install matplotlib") from None
    settings: Any = {"svg.hashsalt": "rlkit", **(style or {})}
    with rc_context(settings):
        made = Figure(**{"layout": "constrained", **figure})
        kinds = made.canvas.get_supported_filetypes()
        if path.suffix.lstrip(".") not in kinds:
            raise ConfigError(f"{path}: there are no pictures of this kind; name it .svg, .pdf or .png.")
        yield made.subplots(nrows, ncols, sharex=sharex)
        undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix)
        made.savefig(path, dpi=110 if style is None else 220, metadata=undated)


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
