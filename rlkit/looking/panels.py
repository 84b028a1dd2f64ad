"""Which curves a report shows, and in which order: one run with all metrics of a panel, or several groups of runs metric by metric."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlkit.looking.charts import Chart, Line, Point
from rlkit.looking.runs import Group, Seen

Band = list[tuple[float, float, float]]


@dataclass(frozen=True)
class Panel:
    """A picture of some metrics, which are names or patterns of names; ``but`` are left out."""

    title: str
    unit: str
    metrics: tuple[str, ...]
    but: tuple[str, ...] = ()
    floor: float | None = None
    stacked: bool = False
    note: str = ""


@dataclass(frozen=True)
class Section:
    title: str
    panels: tuple[Panel, ...]


NATS = "nats per token"
OF_RUNS = "band: the range of a group's runs"
OVER_PROMPTS = "band: two standard errors over prompts"
SECTIONS = (
    Section(
        "What is learned",
        (
            Panel(
                "Parts of the reward",
                "mean",
                ("reward/*",),
                ("reward/mean", "reward/std", "reward/equal_groups", "reward/errors", "reward/timeouts"),
            ),
            Panel("Groups of equal rewards", "share", ("reward/equal_groups",), floor=0),
            Panel("Spread of rewards", "standard deviation", ("reward/std",), floor=0),
            Panel("Responses", "tokens", ("length/mean", "length/max"), floor=0),
            Panel("Responses at the limit", "share", ("length/truncated",), floor=0),
            Panel("Entropy of what was sampled", NATS, ("entropy/*",)),
            Panel("Prompts", "share", ("prompts/solved", "prompts/unsolved", "prompts/pass_rate_ema"), floor=0),
        ),
    ),
    Section(
        "Where the KL comes from",
        (
            Panel(
                "KL to the reference, and from the start model", NATS, ("kl/ref", "kl/ref_k3", "kl/old", "drift/start")
            ),
            Panel("KL of whole responses", "nats per response", ("kl/ref_sequence", "drift/start_sequence")),
            Panel(
                "KL by place in the response", NATS, ("kl_by/position/*",), note="q1 is the first quarter of a response"
            ),
            Panel(
                "KL by surprise of the token",
                NATS,
                ("kl_by/surprise/*",),
                note="q4: the quarter sampled against most odds",
            ),
            Panel("KL by advantage", NATS, ("kl_by/advantage/*",)),
            Panel("KL by pass rate of the prompt", NATS, ("kl_by/pass_rate/*",)),
        ),
    ),
    Section(
        "What each term does",
        (
            Panel("Loss by term", "loss", ("loss/*",)),
            Panel("Share of the gradient", "of the summed norms", ("gradient/share/*",), floor=0, stacked=True),
            Panel("Angle between gradients", "cosine", ("gradient/cosine/*",)),
            Panel("Norm of the gradient", "before clipping", ("learner/grad_norm",), floor=0),
            Panel("Coefficients", "", ("coef/*",), ("coef/*/*",)),
            Panel("Learning rate", "", ("learner/lr",), floor=0),
        ),
    ),
    Section(
        "Engine and learner",
        (
            Panel("Difference of their log-probs", "nats", ("mismatch/mean",), floor=0),
            Panel("Largest ratio", "of new to old probabilities", ("ratio/max",)),
            Panel("Age of the samples", "steps", ("rollout/lag_mean", "rollout/lag_max"), floor=0),
            Panel("Groups that were not trained on", "so far", ("rollout/dropped", "rollout/aborted"), floor=0),
        ),
    ),
    Section(
        "Time and memory",
        (
            Panel(
                "Seconds of a step by stage",
                "seconds",
                ("time/generate", "time/annotate", "time/update", "time/sync", "time/*"),
                ("time/step",),
                floor=0,
                stacked=True,
            ),
            Panel("Speed", "response tokens a second", ("speed/*",), floor=0),
            Panel("Without work", "share of the step", ("idle/*",), floor=0),
            Panel("Memory", "MiB", ("memory/*",), floor=0),
        ),
    ),
)


def charts(groups: Sequence[Group]) -> Iterator[tuple[str, list[Chart]]]:
    """Sections of charts that have something to show, each with its title."""
    for section in SECTIONS:
        made = [_reward(groups), *_held_out(groups), _frontier(groups)] if section is SECTIONS[0] else []
        for panel in section.panels:
            made += _panel(panel, groups)
        shown = [chart for chart in made if any(line.points for line in chart.lines)]
        if shown:
            yield section.title, shown


def matching(panel: Panel, runs: Sequence[Seen]) -> list[str]:
    """The metrics of a panel that these runs have, in the order of its patterns."""
    known = sorted({name for run in runs for row in (*run.rows[:1], *run.rows[-1:], *_rare(run)) for name in row})
    found = [
        name
        for pattern in panel.metrics
        for name in known
        if fnmatch.fnmatchcase(name, pattern) and not any(fnmatch.fnmatchcase(name, x) for x in panel.but)
    ]
    return list(dict.fromkeys(found))


def _rare(run: Seen) -> Sequence[dict[str, object]]:
    """The row with the most metrics: some are measured now and then."""
    return [max(run.rows, key=len)] if run.rows else []


def _panel(panel: Panel, groups: Sequence[Group]) -> list[Chart]:
    names = matching(panel, [run for group in groups for run in group.runs])
    if len(groups) == 1 and len(groups[0].runs) == 1:
        run = groups[0].runs[0]
        prefix = panel.metrics[-1].rpartition("*")[0]
        lines = [
            Line(name.removeprefix(prefix), run.series(name), k, _error_band(run, name)) for k, name in enumerate(names)
        ]
        return [Chart(panel.title, panel.unit, lines, floor=panel.floor, stacked=panel.stacked, note=panel.note)]
    return [
        Chart(
            panel.title if len(names) == 1 else name,
            panel.unit,
            lines_of(groups, name),
            floor=panel.floor,
            note=panel.note,
        )
        for name in names
    ]


def _error_band(run: Seen, metric: str) -> Band:
    """Two standard errors around a metric that has its error beside it."""
    errors = dict(run.series(f"{metric}_error"))
    return [(x, y - 2 * errors[x], y + 2 * errors[x]) for x, y in run.series(metric) if x in errors]


def lines_of(groups: Sequence[Group], metric: str) -> list[Line]:
    """One bold line a group; where it has several runs, their mean with the range of them all, and each run faintly."""
    return [
        line for k, group in enumerate(groups) for line in summed_up(group, k, [r.series(metric) for r in group.runs])
    ]


def summed_up(group: Group, style: int, each: Sequence[Sequence[Point]]) -> list[Line]:
    """The lines of one group, whose runs have these points."""
    if len(each) == 1:
        return [Line(group.label, each[0], style)]
    values: dict[float, list[float]] = {}
    for points in each:
        for x, y in points:
            values.setdefault(x, []).append(y)
    whole = {x: ys for x, ys in sorted(values.items()) if len(ys) == len(each)}  # a mean of fewer runs would jump
    mean = [(x, math.fsum(ys) / len(ys)) for x, ys in whole.items()]
    band = [(x, min(ys), max(ys)) for x, ys in whole.items()]
    faint = [Line(group.label, points, style, faint=True) for points in each]
    return [*faint, Line(f"{group.label} ({len(each)} runs)", mean, style, band)]


def _reward(groups: Sequence[Group]) -> Chart:
    note = OF_RUNS
    lines = lines_of(groups, "reward/mean")
    if len(groups) == 1 and len(groups[0].runs) == 1:
        note = "band: two standard errors of the batch's responses"
        (run,) = groups[0].runs
        count, spread = dict(run.series("batch/sequences")), dict(run.series("reward/std"))
        band = [
            (x, y - 2 * error, y + 2 * error)
            for x, y in run.series("reward/mean")
            for error in [spread.get(x, 0.0) / math.sqrt(max(1.0, count.get(x, 1.0)))]
        ]
        lines = [Line("reward/mean", run.series("reward/mean"), 0, band)]
    return Chart("Reward in training", "mean of a batch", lines, note=note if any(line.band for line in lines) else "")


def _held_out(groups: Sequence[Group]) -> list[Chart]:
    """The score of every evaluation, and pass@k of the smallest and the largest k by data set."""
    scores, one = list[Line](), len(groups) == 1 and len(groups[0].runs) == 1
    for k, group in enumerate(groups):
        each = [[(float(h.step), h.score) for h in run.held_out if h.score is not None] for run in group.runs]
        scores += summed_up(group, k, each)
    if one:
        (run,) = groups[0].runs
        band = [
            (float(h.step), h.score - 2 * h.error, h.score + 2 * h.error)
            for h in run.held_out
            if h.score is not None and not math.isnan(h.error)
        ]
        scores = [Line("score", scores[0].points, 0, band)]
    out = [
        Chart(
            "Held-out score",
            "mean reward",
            scores,
            note="" if not any(line.band for line in scores) else OVER_PROMPTS if one else OF_RUNS,
        )
    ]
    if one:
        lines = [
            Line(
                f"{name} {k}".strip(),
                [(float(h.step), h.datasets[name][k]) for h in run.held_out if name in h.datasets],
                i,
            )
            for i, (name, k) in enumerate(_passes(run))
        ]
        out.append(Chart("Held-out by data set", "share of prompts", lines, floor=0))
    return out


def _passes(run: Seen) -> list[tuple[str, str]]:
    """(data set, pass@k) for the smallest and the largest k that every evaluation has; nothing that the score says already."""
    if not run.held_out:
        return []
    found = []
    for name, values in run.held_out[-1].datasets.items():
        ks = [k for k in values if all(k in h.datasets.get(name, values) for h in run.held_out)]
        found += [(name, k) for k in dict.fromkeys([*ks[:1], *ks[-1:]])]
    return found if len(found) > 1 else []


def _frontier(groups: Sequence[Group]) -> Chart:
    """Reward against the square root of the KL: what a run pays for what it gets."""

    def path(run: Seen) -> list[Point]:
        rewards = dict(run.series("reward/mean"))
        return [
            (math.sqrt(max(0.0, kl)), rewards[step]) for step, kl in run.series("kl/ref_sequence") if step in rewards
        ]

    lines = [
        Line(group.label, path(run), k, kind="path", faint=j > 0)
        for k, group in enumerate(groups)
        for j, run in enumerate(group.runs)
    ]
    return Chart(
        "Reward against KL",
        "mean of a batch",
        lines,
        xlabel="square root of nats per response",
        note="the mark is the newest step",
    )
