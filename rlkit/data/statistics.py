"""What is known about every prompt: one SQLite table in the run folder, a part of every checkpoint.

Open it with any SQLite tool while the run goes on or after it: ``select * from prompts order by pass_rate_ema``.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import math
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlkit.errors import DataError
from rlkit.files import replace_file
from rlkit.samples import Prompt, Rollout

COLUMNS = (
    "groups",
    "responses",
    "failures",
    "passes",
    "pass_rate_ema",
    "reward_mean",
    "reward_square",
    "length_mean",
    "kl_mean",
    "kl_responses",
    "last_step",
)


def pass_rate(group: Sequence[Rollout]) -> float:
    """Mean reward of the scored responses, bounded to [0, 1]; nan if none was scored."""
    rewards = [min(1.0, max(0.0, r.reward)) for r in group if not math.isnan(r.reward)]
    return sum(rewards) / len(rewards) if rewards else math.nan


class PromptStatistics:
    """One row a prompt, as arrays in the order of ``prompts``.

    Columns:
        groups, responses: how often it was asked and answered. failures: responses without a reward (a verifier that failed).
        passes: sum of rewards, each bounded to [0, 1]: the Beta posterior of the pass rate is ``1 + passes, 1 + scored - passes``.
        pass_rate_ema: ``decay * ema + (1 - decay) * pass rate of the group``, ``initial`` at first.
        reward_mean, reward_square: means of the reward and of its square. length_mean: tokens. kl_mean: nats per response to the reference,
        over ``kl_responses``. last_step: the last step that it was a part of, -1 if none.
    """

    def __init__(self, prompts: Sequence[Prompt], decay: float = 0.9, initial: float = 0.5) -> None:
        self.ids = [p.id for p in prompts]
        self.index = {name: i for i, name in enumerate(self.ids)}
        self.decay, self.step = decay, 0
        self.data = {name: np.zeros(len(self.ids)) for name in COLUMNS}
        self.data["pass_rate_ema"][:] = initial
        self.data["last_step"][:] = -1

    def __getitem__(self, column: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        return self.data[column]

    def observe(self, group: Sequence[Rollout]) -> None:
        """A finished group, dropped ones too."""
        d, i = self.data, self.index[group[0].prompt.id]
        scored = [r.reward for r in group if not math.isnan(r.reward)]
        before = d["responses"][i] - d["failures"][i]
        d["groups"][i] += 1
        d["length_mean"][i] += (sum(len(r.tokens) for r in group) - len(group) * d["length_mean"][i]) / (
            d["responses"][i] + len(group)
        )
        d["responses"][i] += len(group)
        d["failures"][i] += len(group) - len(scored)
        d["last_step"][i] = self.step
        if scored:
            rate, n = pass_rate(group), before + len(scored)
            d["passes"][i] += rate * len(scored)
            d["pass_rate_ema"][i] = self.decay * d["pass_rate_ema"][i] + (1 - self.decay) * rate
            d["reward_mean"][i] += (sum(scored) - len(scored) * d["reward_mean"][i]) / n
            d["reward_square"][i] += (sum(x * x for x in scored) - len(scored) * d["reward_square"][i]) / n

    def observe_kl(self, rollouts: Sequence[Rollout], kl: Sequence[float]) -> None:
        """The KL of trained responses, nats each."""
        d = self.data
        for r, value in zip(rollouts, kl, strict=True):
            i = self.index[r.prompt.id]
            d["kl_responses"][i] += 1
            d["kl_mean"][i] += (value - d["kl_mean"][i]) / d["kl_responses"][i]

    def posterior(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """The Beta posterior of every pass rate, from a uniform prior."""
        scored = self.data["responses"] - self.data["failures"]
        return 1 + self.data["passes"], 1 + scored - self.data["passes"]

    def metrics(self) -> dict[str, float]:
        asked = self.data["groups"] > 0
        if not asked.any():
            return {}
        rate = self.data["pass_rate_ema"][asked]
        variance = (self.data["reward_square"] - self.data["reward_mean"] ** 2)[asked]
        return {
            "prompts/seen": float(asked.mean()),
            "prompts/pass_rate_ema": float(rate.mean()),
            "prompts/solved": float((rate > 0.9).mean()),
            "prompts/unsolved": float((rate < 0.1).mean()),
            "prompts/reward_variance": float(variance.mean()),
        }

    # -- files ----------------------------------------------------------------------------------------------------

    def copy(self) -> PromptStatistics:
        """The same table, which later observations do not change."""
        out = copy.copy(self)
        out.data = {name: column.copy() for name, column in self.data.items()}
        return out

    def save(self, path: Path) -> None:
        """Writes the table, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        # SQLite would say of a full disk only that something failed.
        with contextlib.closing(sqlite3.connect(":memory:")) as db:
            db.execute(f"create table prompts (id text primary key, {', '.join(f'{c} real' for c in COLUMNS)})")
            rows = zip(self.ids, *(self.data[c].tolist() for c in COLUMNS), strict=True)
            db.executemany(f"insert into prompts values ({', '.join('?' * (1 + len(COLUMNS)))})", rows)
            db.commit()
            replace_file(path, db.serialize())

    def load(self, path: Path) -> None:
        """Raises DataError if the table is damaged or about other prompts."""
        try:
            with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as db:
                rows = {row[0]: row[1:] for row in db.execute(f"select id, {', '.join(COLUMNS)} from prompts")}
        except sqlite3.Error as error:
            raise DataError(f"{path}: not a table of prompt statistics ({error}).") from error
        strange = [name for name in rows if name not in self.index]
        if strange or len(rows) != len(self.ids):
            raise DataError(
                f"{path}: the statistics are about {len(rows)} prompts, the data set has {len(self.ids)}"
                + (f"; {strange[0]!r} is not among them" if strange else "")
                + ". It is another data set: start a run of another name, or use the data of the first run."
            )
        for name, values in rows.items():
            for column, value in zip(COLUMNS, values, strict=True):
                self.data[column][self.index[name]] = value

    def export(self, path: str | Path) -> None:
        """The same table as CSV."""
        with open(path, "w", newline="") as f:
            out = csv.writer(f)
            out.writerow(("id", *COLUMNS))
            out.writerows(zip(self.ids, *(self.data[c].tolist() for c in COLUMNS), strict=True))
