"""What samples of one model say: every metric, and the tables of the main ones."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkit.evaluation.compare import Forgetting, aligned
from rlkit.evaluation.metrics import summarize
from rlkit.evaluation.samples import Record
from rlkit.evaluation.voting import temperature_vote, weighted_vote
from rlkit.files import replace_file, told


@dataclass(frozen=True)
class Report:
    """Metrics of samples; ``str`` makes the tables, :meth:`write` a file with all of it.

    Attributes:
        model: of which these are samples. samples: the rows, as :mod:`rlkit.evaluation.samples` describes them.
        settings: how they were drawn and graded, where that is known.
        summaries: by temperature, what :func:`rlkit.evaluation.metrics.summarize` finds: every metric with its interval.
        majority_of_all: the share of prompts whose majority is right, where prompts have different numbers of samples.
        self_certainty_vote: the same with votes weighed by self-certainty, where samples have it.
        temperature_vote: the same with a vote over all temperatures, where there are several.
        forgetting: the KL of a base model to this one, where it was asked for; ``base`` is that model.
    """

    model: str
    samples: tuple[Record, ...]
    settings: Mapping[str, Any]
    summaries: Mapping[float, Mapping[str, Any]]
    majority_of_all: float | None = None
    self_certainty_vote: float | None = None
    temperature_vote: float | None = None
    forgetting: Forgetting | None = None
    base: str | None = None

    @classmethod
    def of(
        cls,
        model: str,
        samples: Sequence[Record],
        settings: Mapping[str, Any],
        *,
        ks: Sequence[int] | None = None,
        forgetting: Forgetting | None = None,
        base: str | None = None,
    ) -> Report:
        """Every metric of ``samples``; ``ks`` are the k of pass@k and maj@k, None the powers of two.

        Raises:
            ConfigError: a malformed sample, or a k above the number of samples of some prompt.
        """
        rows = voting(samples)
        temperatures = sorted({r.get("temperature", 1.0) for r in rows})
        at = {t: [r for r in rows if r.get("temperature", 1.0) == t] for t in temperatures}
        by_prompt: dict[tuple[str, str], list[Record]] = {}
        for r in rows:
            by_prompt.setdefault((r.get("dataset", ""), r["prompt_id"]), []).append(r)
        groups = list(by_prompt.values())
        many = len({len(g) for g in groups}) > 1
        certain = len(groups[0]) > 1 and all("certainty" in r for r in rows)
        return cls(
            model,
            tuple(samples),
            dict(settings),
            {t: summarize(at[t], ks=ks) for t in temperatures},
            majority_of_all=_mean([_vote(g, [1.0] * len(g)) for g in groups]) if many else None,
            self_certainty_vote=_mean([_vote(g, [r["certainty"] for r in g]) for g in groups]) if certain else None,
            temperature_vote=_mean([_over(g, temperatures) for g in groups]) if len(temperatures) > 1 else None,
            forgetting=forgetting,
            base=base,
        )

    @property
    def score(self) -> float:
        """The mean over prompts of how many of their samples are right, at the lowest temperature if there are several."""
        return float(self.summaries[min(self.summaries)]["overall"]["avg"]["value"])

    def as_dict(self) -> dict[str, Any]:
        """What ``report.json`` holds."""
        votes = ("majority_of_all", "self_certainty_vote", "temperature_vote")
        out: dict[str, Any] = {str(t): dict(found) for t, found in self.summaries.items()}
        out |= {name: getattr(self, name) for name in votes if getattr(self, name) is not None}
        if self.forgetting is not None:
            out["forgetting"] = {k: v for k, v in dataclasses.asdict(self.forgetting).items() if k != "values"}
        return out

    def write(self, path: str | Path) -> None:
        """All of it as JSON."""
        write_json(path, self.as_dict())

    def __str__(self) -> str:
        lines = []
        for t, found in self.summaries.items():
            which = f"temperature {t:g}; " if len(self.summaries) > 1 else ""
            lines.append(f"\n{which}mean over prompts, ± half of the 95 % interval (bootstrap over prompts)")
            lines.append(aligned(_table(found)))
        if self.majority_of_all is not None:
            prompts = len({(r.get("dataset", ""), r["prompt_id"]) for r in self.samples})
            each = len(self.samples) / prompts
            lines.append(f"majority of all samples of a prompt ({each:.1f} on average): {self.majority_of_all:.4f}")
        if self.self_certainty_vote is not None:
            lines.append(f"vote weighed by self-certainty: {self.self_certainty_vote:.4f}")
        if self.temperature_vote is not None:
            lines.append(f"vote over all temperatures: {self.temperature_vote:.4f}")
        if self.forgetting is not None:
            f = self.forgetting
            lines.append(
                f"\nforgetting: KL({self.base}‖model) on its own responses: {f.per_sequence:.4f} ± {1.96 * f.per_sequence_error:.4f} nats "
                f"per response, {f.per_token:.5f} per token ({f.sequences} responses)"
            )
        return "\n".join(lines)


def write_json(path: str | Path, content: Any) -> None:
    """A report, whole or not at all."""
    with told("the report", "Make room, or give another --out."):
        replace_file(Path(path), json.dumps(content, indent=1))


def voting(rows: Sequence[Record]) -> list[Record]:
    """Samples as the metrics read them: ``answer`` is what a response votes for. Files of others may have that already."""
    return [{**r, "answer": r["vote"]} if "vote" in r else r for r in rows]


def _vote(group: Sequence[Record], weights: Sequence[float]) -> float:
    return weighted_vote([r.get("answer") for r in group], [r["correct"] for r in group], list(weights))


def _over(group: Sequence[Record], temperatures: Sequence[float]) -> float:
    """Whether the vote over all temperatures is right."""
    answers = {t: [r.get("answer") for r in group if r.get("temperature", 1.0) == t] for t in temperatures}
    vote = temperature_vote(answers).answer
    return 0.0 if vote is None else next((r["correct"] for r in group if r.get("answer") == vote), 0.0)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _table(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The main metrics of each data set, and of all."""
    parts = [*found["datasets"].items(), *([("all", found["overall"])] if len(found["datasets"]) > 1 else [])]
    shown = sorted({int(k) for _, part in parts for k in part["pass@k"]})
    few = [k for k in shown if k in (4, 16, 64, shown[-1]) and k > 1]
    most = few[-1:]
    head = ("data set", "prompts", "n", "avg", *(f"pass@{k}" for k in few), *(f"maj@{k}" for k in most))
    table = [(*head, "cut off", "length")]
    for name, part in parts:
        cells = [
            part["avg"],
            *(part["pass@k"].get(str(k)) for k in few),
            *((part["maj@k"] or {}).get(str(k)) for k in most),
        ]
        low, high = (part["samples_per_prompt"][x] for x in ("min", "max"))
        n = f"{low}" if low == high else f"{low}-{high}"
        length = f"{part['length']['mean']['value']:.0f}" if part["length"] else "-"
        table.append((name or "-", str(part["prompts"]), n, *map(_cell, cells), _cell(part["truncated"]), length))
    return table


def _cell(x: Mapping[str, float] | None) -> str:
    return "-" if x is None or x["value"] is None else f"{x['value']:.4f} ± {(x['high'] - x['low']) / 2:.4f}"
