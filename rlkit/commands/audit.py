"""``rlkit audit-reward``: one verifier, or two, over stored responses.

What they decide and why, where they disagree, and how often a stored label is met.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkit.errors import ConfigError
from rlkit.rewards.scoring import RewardSpec, Scorer
from rlkit.samples import Prompt, Rollout

LABELS = ("correct", "reward", "label")  # columns that may hold a stored verdict
EXPLAINED = "rlkit.rewards.math:explained"  # the reward `math` with its reasons


@dataclass(frozen=True)
class Scored:
    """One response under one verifier; ``score`` is nan if the verifier failed, then ``reason`` says how.

    Of the reward `math`: ``way`` found the answer, ``tier`` compared it, ``reason`` is why it counts or not.
    """

    score: float
    reason: str = ""
    tier: str = ""
    way: str = ""

    @property
    def correct(self) -> bool | None:
        return None if math.isnan(self.score) else self.score > 0.5


@dataclass(frozen=True)
class Audit:
    """``rows`` as they were read; for every verifier (``names``) one :class:`Scored` per row; ``labels`` are stored verdicts or None."""

    names: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    labels: tuple[bool | None, ...]
    scored: tuple[tuple[Scored, ...], ...]  # [verifier][row]

    def disagreements(self) -> list[int]:
        """Rows where the first two verifiers differ, a failure of one of them included."""
        if len(self.scored) < 2:
            return []
        return [
            k for k, (a, b) in enumerate(zip(self.scored[0], self.scored[1], strict=True)) if a.correct != b.correct
        ]

    def against_label(self, verifier: int = 0) -> dict[str, list[int]]:
        """Rows by outcome against the stored label: agree, false_positive, false_negative, failed; rows without a label are left out."""
        out: dict[str, list[int]] = {"agree": [], "false_positive": [], "false_negative": [], "failed": []}
        for k, (label, s) in enumerate(zip(self.labels, self.scored[verifier], strict=True)):
            if label is not None:
                wrong = "false_positive" if s.correct else "false_negative"
                kind = "failed" if s.correct is None else "agree" if s.correct == label else wrong
                out[kind].append(k)
        return out

    def report(self, show: int = 5) -> str:
        """A text for the screen; ``show`` examples of each kind of difference."""
        lines = [f"{len(self.rows)} responses"]
        for v, name in enumerate(self.names):
            known = [s.correct for s in self.scored[v] if s.correct is not None]
            lines.append(
                f"{name}: {sum(known)} of {len(known)} correct ({sum(known) / max(1, len(known)):.4f}), "
                f"{len(self.rows) - len(known)} failed"
            )
            for what, values in (
                ("reason", [s.reason for s in self.scored[v]]),
                ("found by", [s.way for s in self.scored[v]]),
                ("tier", [s.tier for s in self.scored[v]]),
            ):
                counts = Counter(value for value in values if value)
                if counts:
                    lines.append(f"  {what}: " + ", ".join(f"{key} {n}" for key, n in counts.most_common()))
            outcome = self.against_label(v)
            total = sum(len(k) for k in outcome.values())
            if total:
                lines.append(
                    f"  stored label: {len(outcome['agree'])} of {total} agree ({len(outcome['agree']) / total:.4f}); "
                    f"{len(outcome['false_positive'])} accepted against it, {len(outcome['false_negative'])} refused against it"
                )
                for kind in ("false_positive", "false_negative"):
                    lines += [f"    {kind}: {self._row(k, [v])}" for k in outcome[kind][:show]]
        if len(self.names) > 1:
            different = self.disagreements()
            lines.append(
                f"{self.names[0]} and {self.names[1]} disagree on {len(different)} of {len(self.rows)} "
                f"({len(different) / max(1, len(self.rows)):.4f})"
            )
            lines += [f"    {self._row(k, [0, 1])}" for k in different[:show]]
        return "\n".join(lines)

    def _row(self, k: int, verifiers: Sequence[int]) -> str:
        row = self.rows[k]
        verdicts = ", ".join(
            f"{self.names[v]} {s.score:g}" + (f" ({s.reason}{f', found by {s.way}' * bool(s.way)})" if s.reason else "")
            for v, s in ((v, self.scored[v][k]) for v in verifiers)
        )
        return f"line {row['line']}: {verdicts}; reference {str(row['answer'])[:60]!r}, response ends {str(row['response'])[-80:]!r}"


def read_responses(file: str | Path, say: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Rows of a JSONL file with "response" and "answer", each with its "line".

    Raises:
        ConfigError: no such file, a line that is no JSON object, or one that lacks a column.
    """
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"there is no file {str(file)!r} with responses.")
    rows = []
    with path.open("rb") as lines:
        for k, line in enumerate(lines, 1):
            try:
                text = line.decode("utf-8-sig" if k == 1 else "utf-8").strip("\0 \t\r\n")
                if not text:
                    continue
                row = json.loads(text)
            except ValueError as error:
                if k > 1 and not line.endswith(b"\n"):
                    say(f"note: {path}:{k}: the last line was cut off and is left out.")
                    break
                if isinstance(error, UnicodeDecodeError):
                    raise ConfigError(f"{path}:{k}: not UTF-8 ({error.reason} at byte {error.start}).") from None
                why = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                raise ConfigError(
                    f"{path}:{k}: not JSON ({why}); write one object with response and answer per line."
                ) from None
            if k == 1 and isinstance(row, dict) and "evaluation" in row:
                continue  # the first line of what `rlkit eval` writes
            missing = [name for name in ("response", "answer") if not isinstance(row, dict) or name not in row]
            if missing:
                raise ConfigError(
                    f"{path}:{k}: the row has no {missing[0]!r}; write one object with response and answer per line."
                )
            rows.append({**row, "line": k})
    if not rows:
        raise ConfigError(f"{path} has no rows.")
    return rows


def _label(row: dict[str, Any]) -> bool | None:
    for name in LABELS:
        value = row.get(name)
        if isinstance(value, bool | int | float) and not (isinstance(value, float) and math.isnan(value)):
            return float(value) > 0.5
    return None


def audit(
    file: str | Path,
    verifiers: Sequence[str | RewardSpec],
    *,
    workers: int | None = None,
    say: Callable[[str], None] = print,
) -> Audit:
    """Runs verifiers over the responses of a JSONL file, in the same worker processes and with the same time-outs as in a run.

    Rows need "response" and "answer"; "finish", "tokens", "id", "prompt" and all other columns are passed as in a run; "correct", "reward"
    or "label" is a stored verdict. A verifier is a :class:`RewardSpec`, a built-in name, ``my_file.py:fn`` or ``package.module:fn``.

    Raises:
        ConfigError: the file or a verifier cannot be read.
    """
    rows = read_responses(file, say)
    names: list[str] = []
    scored: list[tuple[Scored, ...]] = []
    taken = {"response", "answer", "finish", "tokens", "id", "prompt"}
    columns = sorted({name for row in rows for name in row} - taken)
    for verifier in verifiers:
        spec = verifier if isinstance(verifier, RewardSpec) else RewardSpec(verifier)
        label = spec.label if spec.label not in names else f"{spec.label} ({len(names) + 1})"
        spec = dataclasses.replace(spec, name="verifier", fn=EXPLAINED if spec.is_math else spec.fn, weight=1.0)
        scorer = Scorer(
            [spec], on_error="mask", workers=workers or max(1, os.cpu_count() or 1), report=lambda text: None
        )
        try:
            scorer.check(columns)
            rollouts = []
            for row in rows:
                tokens = list(row.get("tokens") or [])
                prompt = Prompt(
                    str(row.get("id", row["line"])),
                    (),
                    str(row.get("prompt", "")),
                    row["answer"],
                    {c: row.get(c) for c in columns},
                )
                rollouts.append(Rollout.given(prompt, tokens, row.get("finish") or "stop", text=str(row["response"])))
            scorer.score(rollouts)
        finally:
            scorer.close()
        names.append(label)
        scored.append(tuple(_scored(r) for r in rollouts))
    return Audit(tuple(names), tuple(rows), tuple(_label(row) for row in rows), tuple(scored))


def _scored(r: Rollout) -> Scored:
    found = {
        part.split("/")[1]: part.split("/", 2)[2]
        for part in r.parts
        if part.count("/") >= 2 and part.split("/")[1] in ("reason", "tier", "way")
    }
    if r.error is not None:
        return Scored(math.nan, reason=r.error.split(": ")[1])
    tier, way = (found.get(what, "").replace("none", "") for what in ("tier", "way"))
    return Scored(float(r.reward), found.get("reason", ""), tier, way)
