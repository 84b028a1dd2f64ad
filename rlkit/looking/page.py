"""``report.html``: all that is known about a run, or several, as one page that needs no network and no other file."""

from __future__ import annotations

import html
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkit.evaluation.compare import mcnemar
from rlkit.evaluation.metrics import standard_error
from rlkit.files import Row, reason, replace_file
from rlkit.looking.charts import figure, number, sparkline
from rlkit.looking.panels import charts
from rlkit.looking.runs import DEFAULT, Group, Seen, differing, grouped, see
from rlkit.record.log import duration
from rlkit.record.meanings import meaning
from rlkit.record.results import digits

HERE = Path(__file__).parent
ROOM = 6_000_000  # characters that transcripts take at most
KINDS = {"train": "training", "fixed": "held out, the same prompts each time", "random": "held out, prompts drawn anew"}


def report_runs(folders: str | Path | Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Writes the report of a run, or of several over each other, and returns its path.

    Runs whose configurations differ in their seed alone are drawn as one, with their range.

    Args:
        out: the file; by default ``report.html`` in the folder of the (first) run.

    Raises:
        ConfigError: a folder is no run's.
    """
    runs = [see(folder) for folder in ([folders] if isinstance(folders, str | Path) else folders)]
    path = Path(out) if out is not None else runs[0].folder / "report.html"
    replace_file(path, page(runs))
    return path


def report_of(folder: Path, say: Callable[[str], object]) -> None:
    """The report of a run that has just ended. Where it cannot be written, that is said, and is no failure of the run."""
    try:
        report_runs(folder)
    except OSError as error:
        say(f"warning: report.html could not be written ({reason(error)}). Later: rlkit report {folder}")


def page(runs: Sequence[Seen]) -> str:
    """The whole document."""
    groups = grouped(runs)
    kept = transcripts(runs)
    title = " · ".join(group.label for group in groups)
    title = title if len(title) < 80 else f"{len(runs)} runs"
    sections = [
        ("overview", "Overview", _overview(groups) + _comparison(groups) + _alarms(runs)),
        *(
            (f"s{k}", name, f'<div class="charts">{"".join(map(figure, some))}</div>')
            for k, (name, some) in enumerate(charts(groups))
        ),
        ("responses", "Responses", _browser(runs, kept)),
        ("changed", "Prompts that changed", _changed(runs)),
        ("configuration", "Configuration", _configuration(runs)),
        ("environment", "Environment", _environment(runs)),
        ("metrics", "All metrics", _metrics(runs)),
    ]
    sections = [(anchor, name, body) for anchor, name, body in sections if body]
    links = "".join(f'<a href="#{anchor}">{_text(name)}</a>' for anchor, name, _ in sections)
    bodies = "".join(
        f'<section id="{anchor}"><h2>{_text(name)}</h2>{body}</section>' for anchor, name, body in sections
    )
    data = json.dumps(kept, ensure_ascii=False).replace("<", "\\u003c")
    style, script = (HERE / "page.css").read_text(), (HERE / "page.js").read_text()
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{view}<title>{_text(title)}</title><style>{style}</style></head>\n'
        f"<body><main><header><h1>{_text(title)}</h1></header><nav>{links}</nav>{bodies}</main>\n"
        f'<script type="application/json" id="transcripts">{data}</script>\n<script>{script}</script></body></html>\n'
    )


# -- pieces of HTML ---------------------------------------------------------------------------------------------------


def _text(x: object) -> str:
    return html.escape(str(x))


def _table(head: Sequence[str], rows: Iterable[Sequence[object]], right: frozenset[int] = frozenset()) -> str:
    """A table; columns of numbers, ``right``, end at one edge. What is :class:`_Raw` goes in as it is."""

    def cell(tag: str, k: int, x: object) -> str:
        kind = ' class="n"' if k in right else ""
        return f"<{tag}{kind}>{x.text if isinstance(x, _Raw) else _text(x)}</{tag}>"

    body = "".join(f"<tr>{''.join(cell('td', k, x) for k, x in enumerate(row))}</tr>" for row in rows)
    top = "".join(cell("th", k, x) for k, x in enumerate(head))
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


class _Raw:
    """Text that is HTML already."""

    def __init__(self, text: str) -> None:
        self.text = text


def _value(x: Any) -> str:
    return (
        "-"
        if x is None or (isinstance(x, float) and math.isnan(x))
        else number(x)
        if isinstance(x, int | float)
        else str(x)
    )


# -- sections ---------------------------------------------------------------------------------------------------------


def _score(run: Seen, last: bool) -> str:
    if not run.held_out:
        return "-"
    found = run.held_out[-1 if last else 0]
    error = "" if math.isnan(found.error) else f" ± {2 * found.error:.3f}"
    return digits(found.score) + error


def _state(run: Seen) -> str:
    total = run.config.get("steps")
    return f"{run.steps} of {total} steps" + ("" if run.ended else ", not at its end")


def _overview(groups: Sequence[Group]) -> str:
    head = (
        "run",
        "seed",
        "progress",
        "time",
        "held-out score",
        "after",
        "best",
        "KL to ref",
        "drift",
        "entropy",
        "tokens",
        "skipped",
        "alarms",
    )
    rows = []
    for group in groups:
        for run in group.runs:
            scores = [h for h in run.held_out if h.score is not None]
            best = max(scores, key=lambda h: h.score or 0.0, default=None)
            seconds = math.fsum(x for _, x in run.series("time/step"))
            rows.append(
                (
                    run.name if group.label == run.name else f"{group.label}: {run.name}",
                    run.config.get("seed", "-"),
                    _state(run),
                    duration(seconds),
                    _score(run, last=False),
                    _score(run, last=True),
                    "-" if best is None else f"{digits(best.score)} (step {best.step})",
                    _value(run.last("kl/ref")),
                    _value(run.last("drift/start")),
                    _value(run.last("entropy/sampled")),
                    _value(run.last("length/mean")),
                    _value(math.fsum(x for _, x in run.series("learner/skipped"))),
                    len(run.told),
                )
            )
    note = "Scores with two standard errors over prompts. KL, drift and entropy in nats per token, at the last step that measured them."
    return _table(head, rows, frozenset({1, 3, *range(7, 13)})) + f'<p class="note">{note}</p>'


def _comparison(groups: Sequence[Group]) -> str:
    """Each group against the first: the difference of their last scores, and how many prompts flipped where both ran once."""
    if len(groups) < 2:
        return ""
    first, rows = groups[0], list[tuple[object, ...]]()
    for other in groups[1:]:
        a, b = (_last_scores(group) for group in (first, other))
        if not a or not b:
            continue
        difference = statistics.fmean(b) - statistics.fmean(a)
        errors = [_error_of_mean(group) for group in (first, other)]
        interval = "-" if any(map(math.isnan, errors)) else f"{2 * math.hypot(*errors):.3f}"
        rows.append((f"{other.label} − {first.label}", f"{difference:+.3f}", interval, _flipped(first, other)))
    if not rows:
        return ""
    note = (
        "Of the last held-out scores. The interval is two standard errors: over seeds where both have several, else over prompts as if the "
        "two runs were independent, which is too wide for runs on the same prompts. The last column pairs prompts (McNemar)."
    )
    head = ("difference", "score", "±", "the same prompts, one run each")
    return f"<h3>Compared</h3>{_table(head, rows, frozenset({1, 2}))}<p class='note'>{_text(note)}</p>"


def _last_scores(group: Group) -> list[float]:
    return [run.held_out[-1].score for run in group.runs if run.held_out and run.held_out[-1].score is not None]


def _error_of_mean(group: Group) -> float:
    scores = _last_scores(group)
    if len(scores) > 1:
        return standard_error(scores)
    return group.runs[0].held_out[-1].error


def _flipped(a: Group, b: Group) -> str:
    if len(a.runs) > 1 or len(b.runs) > 1:
        return "-"
    before, after = a.runs[0].held_out[-1].solved, b.runs[0].held_out[-1].solved
    keys = ("data.", "eval.prompts", "seed")
    alike = not [key for key in differing([a.runs[0], b.runs[0]]) if key.startswith(keys)]
    if not before or len(before) != len(after) or not alike:
        return "-"
    gained = sum(y and not x for x, y in zip(before, after, strict=True))
    lost = sum(x and not y for x, y in zip(before, after, strict=True))
    return f"{gained} more solved, {lost} no longer; p = {mcnemar(gained, lost):.2g}"


def _alarms(runs: Sequence[Seen]) -> str:
    many = len(runs) > 1
    said = [
        f'<div class="alarm">{_text(f"{run.name}: " if many else "")}{_text(x.text)}</div>'
        for run in runs
        for x in run.told
    ]
    return f"<h3>Alarms</h3>{''.join(said)}" if said else '<p class="lead">No alarm was raised.</p>'


def transcripts(runs: Sequence[Seen]) -> dict[str, Any]:
    """What the browser of responses gets: rows of as many steps as have room, the first and the last among them."""
    rows = [row for k, run in enumerate(runs) for row in _responses(run, k)]
    steps = sorted({row["step"] for row in rows})
    every, kept = 1, rows
    while sum(
        len(r["said"]) * (6 if "pieces" in r else 1) + len(r["asked"]) + 200 for r in kept
    ) > ROOM and every < len(steps):
        every *= 2
        chosen = {*steps[::every], *steps[:1], *steps[-1:]}
        kept = [row for row in rows if row["step"] in chosen]
    rewards = [row["reward"] for row in kept if row["reward"] is not None]

    def scale(name: str) -> float:
        sizes = sorted(abs(x) for row in kept for x in row.get(name, ()))
        return max(1e-6, sizes[int(0.98 * (len(sizes) - 1))]) if sizes else 1.0

    return {
        "rows": kept,
        "all": len(rows),
        "runs": [run.name for run in runs],
        "kinds": KINDS,
        "middle": (min(rewards) + max(rewards)) / 2 if rewards else 0,
        "scale": {"kl": scale("kl"), "surprise": scale("surprise")},
    }


def _responses(run: Seen, k: int) -> Iterable[Row]:
    for kind, rows in (("train", run.rollouts), ("fixed", run.samples)):
        for row in rows:
            yield {
                "run": k,
                "kind": row.get("sample", kind),
                "step": row["step"],
                "id": row["prompt_id"],
                "asked": str(row.get("question", row["prompt"])),
                "said": row["response"],
                "answer": None if row.get("answer") is None else str(row["answer"]),
                "reward": row["reward"],
                "parts": row.get("parts", {}) if len(row.get("parts", {})) > 1 else {},
                "finish": row["finish"],
                "tokens": row["tokens"],
                "error": row.get("error"),
            } | {name: row[name] for name in ("pieces", "kl", "surprise") if name in row}


def _browser(runs: Sequence[Seen], kept: Mapping[str, Any]) -> str:
    rows = kept["rows"]
    if not rows:
        return ""

    def options(pairs: Iterable[tuple[object, object]]) -> str:
        return "".join(f'<option value="{_text(value)}">{_text(name)}</option>' for value, name in pairs)

    prompts = dict.fromkeys((row["id"], row["asked"].replace("\n", " ")[:70]) for row in rows)
    has_kl, has_surprise = (any(name in row for row in rows) for name in ("kl", "surprise"))
    colours = (
        [("kl", "KL to the reference")] * has_kl + [("surprise", "surprise, −log μ")] * has_surprise + [("", "none")]
    )
    orders = (
        ("new", "newest first"),
        ("step", "oldest first"),
        ("best", "best first"),
        ("worst", "worst first"),
        ("long", "longest first"),
        ("kl", "most KL first"),
    )
    of = (
        ""
        if kept["all"] == len(rows)
        else f" of {kept['all']} (evenly over the steps, as many as this page has room for)"
    )
    lead = f"{len(rows)} stored responses{of}. Colours need a step at which rlkit looks at tokens (log.breakdown)."
    kinds = [(kind, name) for kind, name in KINDS.items() if any(row["kind"] == kind for row in rows)]
    return (
        f'<p class="lead">{_text(lead)}</p><div class="filters">'
        f'<label>from<select id="kind">{options([("", "everywhere"), *kinds])}</select></label>'
        f"<label{' hidden' if len(runs) == 1 else ''}>run"
        f'<select id="run">{options([("", "all"), *enumerate(kept["runs"])])}</select></label>'
        '<label>reward from<input id="low" type="number" step="any"></label><label>to<input id="high" type="number" step="any"></label>'
        '<label>step from<input id="from" type="number"></label><label>to<input id="to" type="number"></label>'
        f'<label>prompt<select id="prompt">{options([("", "all"), *prompts])}</select></label>'
        '<label>text<input id="text" type="search"></label>'
        f'<label>order<select id="order">{options(orders)}</select></label>'
        f'<label{" hidden" if len(colours) == 1 else ""}>colour<select id="colour">{options(colours)}</select></label>'
        '<button id="clear">clear</button></div>'
        '<p class="note"><span id="found"></span> <span><span id="scale" class="scale"></span><span id="ends"></span></span></p>'
        '<div id="cards"></div><button id="more" class="screen">more</button>'
    )


def _changed(runs: Sequence[Seen]) -> str:
    """Held-out prompts whose outcome at the last evaluation is not that of the first; texts of those that are stored each time."""
    out = []
    for run in runs:
        if (
            len(run.held_out) < 2
            or len(run.held_out[0].solved) != len(run.held_out[-1].solved)
            or not run.held_out[0].solved
        ):
            continue
        first, last = run.held_out[0], run.held_out[-1]
        pairs = list(zip(first.solved, last.solved, strict=True))
        gained, lost = sum(b and not a for a, b in pairs), sum(a and not b for a, b in pairs)
        name = f"{run.name}: " if len(runs) > 1 else ""
        out.append(
            f"<p>{_text(name)}Of {len(pairs)} held-out prompts, {gained} are solved at step {last.step} that were not at step "
            f"{first.step}, and {lost} no longer (McNemar: p = {mcnemar(gained, lost):.2g}).</p>"
        )
        out += [_before_and_after(a, b) for a, b in _pairs(run) if a["reward"] != b["reward"]]
    return "".join(out)


def _pairs(run: Seen) -> Iterable[tuple[Row, Row]]:
    """The first and the last response to each prompt that is stored at every evaluation."""
    fixed = [row for row in run.samples if row.get("sample", "fixed") == "fixed"]
    first, last = ({r["prompt_id"]: r for r in rows} for rows in (reversed(fixed), fixed))
    return [(first[i], last[i]) for i in first if first[i]["step"] != last[i]["step"]]


def _before_and_after(a: Row, b: Row) -> str:
    def side(row: Row) -> str:
        reward = "no reward" if row["reward"] is None else f"reward {_value(row['reward'])}"
        return f'<div><small>step {row["step"]}, {reward}</small><div class="said">{_text(row["response"])}</div></div>'

    asked = _text(a.get("question", a["prompt"]))
    return f'<div class="card"><div class="asked">{asked}</div><div class="pair">{side(a)}{side(b)}</div></div>'


def _configuration(runs: Sequence[Seen]) -> str:
    keys = list(dict.fromkeys(key for run in runs for key in run.config))
    if len(runs) == 1:
        (run,) = runs
        given = [key for key in keys if run.origin(key) != DEFAULT]
        rest = [key for key in keys if run.origin(key) == DEFAULT]
        rows = [(_code(key), _code(_plain(run.config[key])), run.origin(key)) for key in given]
        defaults = _table(("key", "default"), [(_code(key), _code(_plain(run.config[key]))) for key in rest])
        more = f"<details><summary>{len(rest)} defaults</summary>{defaults}</details>" if rest else ""
        return _table(("key", "value", "read from"), rows) + more
    apart = set(differing(runs))
    head = ("key", *(run.name for run in runs))

    def rows_of(some: Iterable[str]) -> list[Sequence[object]]:
        return [(_code(key), *(_code(_plain(run.config.get(key))) for run in runs)) for key in some]

    alike = [key for key in keys if key not in apart]
    return (
        _table(head, rows_of(key for key in keys if key in apart))
        + f"<details><summary>{len(alike)} keys that are alike</summary>{_table(head[:2], [row[:2] for row in rows_of(alike)])}</details>"
    )


def _code(text: str) -> _Raw:
    return _Raw(f"<code>{_text(text)}</code>")


def _named(text: str, metric: str) -> _Raw:
    """A metric's name, whose meaning stands beside the pointer."""
    found = meaning(metric)
    told = "" if found is None else f"{found.meaning}{f' ({found.unit})' if found.unit else ''}".replace("`", "")
    return _Raw(f'<code title="{_text(told)}">{_text(text)}</code>')


def _plain(x: Any) -> str:
    """A value as a configuration has it."""
    return "null" if x is None else str(x).lower() if isinstance(x, bool) else str(x)


def _environment(runs: Sequence[Seen]) -> str:
    """Every start of every run: when, by which command, on what."""
    return "".join(_start(run, start) for run in runs for start in run.starts)


def _start(run: Seen, start: Row) -> str:
    git = start.get("git", {})
    changed = [f"{key}: {_plain(old)} → {_plain(new)}" for key, (old, new) in start.get("changed", {}).items()]
    facts = {
        "command": " ".join(start.get("command", [])),
        "packages": ", ".join(f"{name} {version}" for name, version in start.get("packages", {}).items()),
        "machine": f"Python {start.get('python')}, {start.get('platform')}, {start.get('cpus')} CPUs",
        "commit": (git.get("commit") or "none") + (", with changes" if git.get("dirty") else ""),
        "changed": "; ".join(changed),
    }
    head = f"{run.name}, started {start.get('started')}" + (
        f", from step {start['from_step']}" if "from_step" in start else ""
    )
    return f"<h3>{_text(head)}</h3>" + _table(("", ""), [(name, _code(x)) for name, x in facts.items() if x])


def _metrics(runs: Sequence[Seen]) -> str:
    """Every metric of every run: its first and last value, its range, and its course."""
    rows = []
    for name in sorted({name for run in runs for row in run.rows for name in row} - {"step"}):
        for run in runs:
            points = run.series(name)
            if points:
                values = [y for _, y in points]
                where = name if len(runs) == 1 else f"{name} · {run.name}"
                ends = (values[0], values[-1], min(values), max(values))
                rows.append((_named(where, name), *(_value(float(x)) for x in ends), _Raw(sparkline(points))))
    table = _table(("metric", "first", "last", "least", "most", ""), rows, frozenset({1, 2, 3, 4}))
    return f"<details><summary>{len(rows)} metrics</summary>{table}</details>" if rows else ""
